"""Putting jobs."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from anyio import create_task_group
from bson import ObjectId, Timestamp
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, PayloadError, StreamQueueError
from tests.contract.looks import document, server_time
from tests.contract.shells import Shell


async def data_in_order(queue: Any) -> list[Any]:
    """Claim everything there is, one by one."""
    found = []
    while job := await queue.next():
        found.append(job.data)
    return found


async def test_a_job_that_was_put_can_be_claimed(queue: Any) -> None:
    await queue.put({"foobar": 1})

    job = await queue.next()

    assert job.data == {"foobar": 1}


async def test_a_put_returns_the_id_of_the_job(queue: Any) -> None:
    job_id = await queue.put({"foobar": 1})

    job = await queue.next()

    assert job.id == job_id
    assert isinstance(job_id, ObjectId)


async def test_a_put_leaves_the_callers_dict_alone(queue: Any) -> None:
    payload = {"foobar": 0, "priority": 1}

    await queue.put(payload)

    assert payload == {"foobar": 0, "priority": 1}


async def test_a_new_job_has_the_documented_fields(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({"foobar": 1}, priority=5, key="k", max_attempts=7)

    stored = document(jobs, job_id)

    assert type(stored.pop("seq")) is Timestamp
    times = {"run_at": stored.pop("run_at"), "created_at": stored.pop("created_at")}
    assert stored == {
        "_id": job_id,
        "v": 1,
        "queue": "default",
        "state": "ready",
        "priority": 5,
        "attempts": 0,
        "max_attempts": 7,
        "payload": {"foobar": 1},
        "key": "k",
        "held_key": "k",
    }
    assert times["run_at"] == times["created_at"]


async def test_a_job_has_the_attempts_of_its_queue_unless_it_has_its_own(shell: Shell) -> None:
    queue = shell.queue(max_attempts=5)
    await queue.put_many([{"n": 1}], max_attempts=2)
    await queue.put({"n": 2}, max_attempts=9)
    await queue.put({"n": 3})

    jobs = await queue.claim(3)

    assert [job.max_attempts for job in jobs] == [2, 9, 5]


@pytest.mark.parametrize(
    "payload",
    [
        {"$a": 1},
        {"a.b": 1},
        {"": 1},
        {"$set": {"state": "dead"}},
        {"a": {"$literal": "$$ROOT", "b.c": {"": None}}},
        {"text": "$$ROOT", "nul": "a\0b"},
        {"_id": 5, "queue": "other", "lease": "x"},
        {"payload": 5},
        {},
    ],
    ids=str,
)
async def test_any_payload_comes_back_as_it_was(queue: Any, payload: dict[str, Any]) -> None:
    await queue.put(payload)

    job = await queue.next()

    assert job.data == payload


@pytest.mark.parametrize("payload", [None, 5, ["a"], {1: 2}, {"v": {1}}, {"v": 2**63}], ids=str)
async def test_a_payload_that_cannot_be_stored_is_refused(queue: Any, payload: Any) -> None:
    with pytest.raises(PayloadError):
        await queue.put(payload)


# Order.


async def test_a_higher_priority_comes_first(queue: Any) -> None:
    for priority in (0, 5, -5, 2**31 - 1):
        await queue.put({"n": priority}, priority=priority)

    assert await data_in_order(queue) == [{"n": n} for n in (2**31 - 1, 5, 0, -5)]


async def test_a_priority_in_the_payload_is_taken_out_of_it(queue: Any) -> None:
    await queue.put({"foobar": 1})
    await queue.put({"foobar": 0, "priority": 1})

    job = await queue.next()

    assert (job.data, job.priority) == ({"foobar": 0}, 1)


async def test_each_of_many_has_the_priority_of_its_payload(queue: Any) -> None:
    await queue.put_many([{"n": 1}, {"n": 2, "priority": 5}, {"n": 3, "priority": -1}])

    assert await data_in_order(queue) == [{"n": 2}, {"n": 1}, {"n": 3}]


async def test_an_explicit_priority_wins_and_leaves_the_payload_whole(queue: Any) -> None:
    await queue.put({"priority": 1}, priority=7)

    job = await queue.next()

    assert (job.data, job.priority) == ({"priority": 1}, 7)


async def test_equals_are_first_in_first_out(queue: Any) -> None:
    for n in range(20):
        await queue.put({"n": n})

    assert await data_in_order(queue) == [{"n": n} for n in range(20)]


async def test_many_put_together_keep_their_order(queue: Any) -> None:
    await queue.put({"n": 0})
    await queue.put_many([{"n": n} for n in range(1, 50)])
    await queue.put({"n": 50})

    assert await data_in_order(queue) == [{"n": n} for n in range(51)]


# Many.


async def test_many_ids_come_back_in_order(queue: Any, jobs: Collection[Any]) -> None:
    ids = await queue.put_many([{"n": n} for n in range(5)])

    assert [document(jobs, job_id)["payload"]["n"] for job_id in ids] == [0, 1, 2, 3, 4]


async def test_many_may_come_from_a_generator(queue: Any) -> None:
    ids = await queue.put_many({"n": n} for n in range(3))

    assert len(ids) == await queue.size() == 3


async def test_no_payloads_put_no_jobs(queue: Any) -> None:
    assert await queue.put_many([]) == []


async def test_with_one_bad_payload_of_many_none_is_put(queue: Any) -> None:
    with pytest.raises(PayloadError):
        await queue.put_many([{"n": 1}, {"n": {1}}, {"n": 3}])

    assert await queue.size() == 0


async def test_puts_at_the_same_time_are_all_stored(queue: Any, jobs: Collection[Any]) -> None:
    async with create_task_group() as tasks:
        for n in range(50):
            tasks.start_soon(queue.put, {"n": n})

    assert sorted(job["payload"]["n"] for job in jobs.find()) == list(range(50))


async def test_of_puts_at_the_same_time_only_the_duplicate_fails(queue: Any) -> None:
    await queue.put({"n": 0}, key="k3")
    outcomes: Counter[str] = Counter()

    async def put(key: str) -> None:
        try:
            await queue.put({}, key=key)
        except DuplicateJob as error:
            outcomes[error.key] += 1
        else:
            outcomes["put"] += 1

    async with create_task_group() as tasks:
        for n in range(10):
            tasks.start_soon(put, f"k{n}")

    assert outcomes == {"put": 9, "k3": 1}


# Later.


async def test_a_delayed_job_is_not_claimed_early(queue: Any) -> None:
    await queue.put({}, delay=60)

    assert await queue.next() is None
    assert (await queue.stats())["scheduled"] == 1


async def test_a_delay_counts_from_now_by_the_servers_clock(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, delay=timedelta(minutes=1))

    wait = document(jobs, job_id)["run_at"] - server_time(jobs)

    assert timedelta(seconds=50) < wait <= timedelta(seconds=60.1)


async def test_a_job_may_say_when_it_is_to_run(queue: Any, jobs: Collection[Any]) -> None:
    moment = datetime(2090, 1, 1, 12, tzinfo=UTC)

    job_id = await queue.put({}, run_at=moment)

    assert document(jobs, job_id)["run_at"] == moment
    assert await queue.next() is None


async def test_a_moment_that_has_passed_means_now(queue: Any) -> None:
    await queue.put({"n": 1})
    await queue.put({"n": 2}, run_at=datetime(2020, 1, 1, tzinfo=UTC))

    assert await data_in_order(queue) == [{"n": 1}, {"n": 2}]


async def test_a_moment_without_a_time_zone_is_refused(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match="must have a time zone"):
        await queue.put({}, run_at=datetime(2090, 1, 1))


async def test_a_delayed_job_is_claimed_once_it_is_due(queue: Any) -> None:
    await queue.put({"n": 1}, delay=0.1)

    job = await queue.next(wait=10)

    assert job.data == {"n": 1}


@pytest.mark.parametrize("method", ["put", "put_many"])
async def test_a_job_cannot_have_both_a_delay_and_a_moment(queue: Any, method: str) -> None:
    payload = {} if method == "put" else [{}]

    with pytest.raises(ConfigurationError, match="not both"):
        await getattr(queue, method)(payload, delay=5, run_at=datetime(2090, 1, 1, tzinfo=UTC))


# Keys.


async def test_a_second_live_job_with_the_key_is_refused(queue: Any) -> None:
    job_id = await queue.put({}, key="order:5")

    with pytest.raises(DuplicateJob) as caught:
        await queue.put({}, key="order:5")

    assert (caught.value.key, caught.value.job_id) == ("order:5", job_id)


@pytest.mark.parametrize("state", ["scheduled", "running"])
async def test_a_key_is_taken_while_its_job_waits_or_runs(queue: Any, state: str) -> None:
    await queue.put({}, key="k", delay=60 if state == "scheduled" else None)
    await queue.next()

    with pytest.raises(DuplicateJob):
        await queue.put({}, key="k")


async def test_a_key_is_free_again_when_its_job_is_completed(queue: Any) -> None:
    await queue.put({"n": 1}, key="k")
    await (await queue.next()).complete()

    await queue.put({"n": 2}, key="k")

    assert await data_in_order(queue) == [{"n": 2}]


async def test_a_key_is_free_again_when_its_job_is_dead(queue: Any) -> None:
    await queue.put({"n": 1}, key="k", max_attempts=1)
    await (await queue.next()).error("oops")

    await queue.put({"n": 2}, key="k")

    assert await data_in_order(queue) == [{"n": 2}]


async def test_a_key_belongs_to_one_queue(shell: Shell) -> None:
    one, other = shell.queue(name="one"), shell.queue(name="other")
    await one.put({}, key="k")

    await other.put({}, key="k")

    assert await other.size() == 1


async def test_a_claimed_job_knows_its_key(queue: Any) -> None:
    await queue.put({}, key="k")

    assert (await queue.next()).key == "k"


# Repeating a put whose outcome is unknown.


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_put_may_be_repeated_with_the_same_id(queue: Any, key: str | None) -> None:
    job_id = ObjectId()
    await queue.put({"n": 1}, job_id=job_id, key=key)

    again = await queue.put({"n": 1}, job_id=job_id, key=key)

    assert again == job_id
    assert await queue.size() == 1


async def test_repeating_a_put_does_not_take_the_job_from_its_holder(queue: Any) -> None:
    job_id = await queue.put({"n": 1}, job_id=ObjectId())
    job = await queue.next()

    await queue.put({"n": 1}, job_id=job_id)

    await job.complete()


async def test_an_id_of_another_queues_job_is_not_taken_for_a_repetition(shell: Shell) -> None:
    one, other = shell.queue(name="one"), shell.queue(name="other")
    job_id = await one.put({"n": 1})

    # To return here would promise a job that is nowhere.
    with pytest.raises((StreamQueueError, PyMongoError)):
        await other.put({"n": 2}, job_id=job_id)


async def test_an_id_may_be_given_as_text(queue: Any) -> None:
    job_id = ObjectId()

    assert await queue.put({}, job_id=str(job_id)) == job_id


async def test_an_operator_is_no_id(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match="a job id is an ObjectId"):
        await queue.put({}, job_id={"$ne": None})


async def test_a_clash_with_an_index_of_the_user_is_not_taken_for_a_duplicate_key(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"order": 5})
    await queue.put({"order": 6})
    index = jobs.create_index("payload.order", unique=True)

    try:
        with pytest.raises(DuplicateKeyError):
            await queue.put({"order": 5})
    finally:
        jobs.drop_index(index)
