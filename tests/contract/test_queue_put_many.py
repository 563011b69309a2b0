"""Many jobs at once, with settings of their own, and again after a break half way."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import BulkWriteError
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob, NewJob
from tests.contract.looks import document
from tests.contract.shells import Shell


def new_jobs(count: int) -> list[NewJob]:
    return [NewJob({"n": n}, job_id=ObjectId()) for n in range(count)]


def numbers(jobs: Collection[Any]) -> list[int]:
    return sorted(job["payload"]["n"] for job in jobs.find())


async def test_jobs_with_settings_of_their_own_come_among_payloads(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = ObjectId()

    ids = await queue.put_many(
        [{"n": 0}, NewJob({"n": 1}, job_id=job_id, priority=5, key="k"), {"n": 2}], delay=60
    )

    assert ids[1] == job_id
    assert [document(jobs, found)["payload"]["n"] for found in ids] == [0, 1, 2]
    stored = document(jobs, job_id)
    assert (stored["priority"], stored["key"], stored["state"]) == (5, "k", "scheduled")


async def test_of_many_new_jobs_none_was_there(queue: Any) -> None:
    assert (await queue.put_many([*new_jobs(3), {"n": 3}])).existing == []


async def test_many_jobs_of_which_some_were_stored_before_it_broke_are_there_once(
    queue: Any, jobs: Collection[Any]
) -> None:
    many = new_jobs(5)
    await queue.put_many(many[1:3])

    ids = await queue.put_many(many)

    assert ids == [job.job_id for job in many]
    assert ids.existing == [1, 2]
    assert numbers(jobs) == [0, 1, 2, 3, 4]


async def test_more_jobs_than_a_reply_has_room_for_can_be_put_again(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamqueue.queue.producer.MAX_BATCH", 2)
    holder = await queue.put({"n": 9}, key="taken")
    many = [*new_jobs(5), NewJob({"n": 5}, key="taken")]
    await queue.put_many(many[1:4])

    with pytest.raises(DuplicateJob) as caught:
        await queue.put_many(many)

    assert caught.value.existing == [1, 2, 3, 5]
    assert caught.value.job_id == holder
    assert numbers(jobs) == [0, 1, 2, 3, 4, 9]


async def test_repeating_many_leaves_those_that_run_to_their_holders(queue: Any) -> None:
    many = new_jobs(2)
    await queue.put_many(many)
    job = await queue.next()

    await queue.put_many(many)

    await job.complete()


async def test_an_id_of_another_queues_job_is_not_taken_for_a_repetition_of_many(
    shell: Shell,
) -> None:
    one, other = shell.queue(name="one"), shell.queue(name="other")
    many = new_jobs(3)
    await one.put_many(many[1:2])

    with pytest.raises(BulkWriteError):
        await other.put_many(many)


async def test_with_keys_taken_the_rest_is_put_and_it_says_which(
    queue: Any, jobs: Collection[Any]
) -> None:
    holder = await queue.put({"n": 9}, key="taken")
    many: list[Any] = [
        *new_jobs(2),
        NewJob({"n": 2}, key="taken"),
        NewJob({"n": 3}, key="free"),
        {"n": 4},
    ]
    await queue.put_many(many[:1])

    with pytest.raises(DuplicateJob) as caught:
        await queue.put_many(many)

    assert (caught.value.key, caught.value.job_id) == ("taken", holder)
    assert caught.value.existing == [0, 2]
    assert caught.value.ids[:3] == [many[0].job_id, many[1].job_id, holder]
    assert numbers(jobs) == [0, 1, 3, 4, 9]


async def test_of_two_with_one_key_in_one_call_the_second_is_refused(
    queue: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(DuplicateJob) as caught:
        await queue.put_many([NewJob({"n": 0}, key="k"), NewJob({"n": 1}, key="k")])

    assert caught.value.existing == [1]
    assert caught.value.ids[0] == caught.value.ids[1] == caught.value.job_id
    assert numbers(jobs) == [0]


async def test_what_the_server_refuses_for_another_reason_is_raised_as_it_is(
    queue: Any, jobs: Collection[Any]
) -> None:
    many = new_jobs(3)
    await queue.put_many(many[:1])
    jobs.database.command("collMod", jobs.name, validator={"payload.n": {"$lt": 2}})

    with pytest.raises(BulkWriteError):
        await queue.put_many(many)
