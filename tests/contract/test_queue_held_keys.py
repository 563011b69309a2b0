"""What becomes of a key: let go of, taken again, held for longer; and jobs that wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob
from tests.contract.looks import document
from tests.contract.shells import Shell

Settings = dict[str, Any]
PAST = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
def queue(shell: Shell) -> Any:
    return shell.queue(max_attempts=2)


async def claim(queue: Any) -> Any:
    job = await queue.next()
    assert job is not None
    return job


async def replaced(queue: Any, n: int, **more: Any) -> Any:
    return await queue.put({"n": n}, key="k", on_conflict="replace", **more)


async def is_free(queue: Any, **more: Any) -> bool:
    try:
        await queue.put({}, key="k", **more)
    except DuplicateJob:
        return False
    return True


def lose(jobs: Collection[Any]) -> None:
    """Let the leases of all running jobs have ended."""
    jobs.update_many({"state": "running"}, {"$set": {"locked_until": PAST}})


# The newest data is always processed.


async def test_what_is_put_while_the_job_runs_is_a_new_job_that_runs_after_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    await replaced(queue, 1)
    first = await claim(queue)
    second = await replaced(queue, 2)
    assert await replaced(queue, 3) == second

    assert await queue.next() is None  # it would run beside the first
    assert document(jobs, second)["state"] == "waiting"
    await first.complete()

    last = await claim(queue)
    assert (last.id, last.data["n"], last.attempts) == (second, 3, 1)
    await last.complete()
    assert await queue.size() == 0


@pytest.mark.parametrize(("key_until", "held"), [("start", None), ("end", "k")])
async def test_the_claim_lets_go_of_the_key_of_a_job_that_says_so(
    queue: Any, jobs: Collection[Any], key_until: str, held: str | None
) -> None:
    job_id = await queue.put({}, key="k", key_until=key_until)

    await claim(queue)

    assert document(jobs, job_id).get("held_key") == held
    assert document(jobs, job_id)["key"] == "k"


async def test_a_job_that_waits_says_for_whom(queue: Any) -> None:
    await replaced(queue, 1)
    first = await claim(queue)
    second = await replaced(queue, 2)
    await queue.next()

    info = await queue.get(second)

    assert (info.state, info.waits_for, info.attempts) == ("waiting", {"key": first.id}, 0)
    assert (await queue.get(first.id)).waits_for is None
    assert (await queue.stats())["waiting"] == 1


async def _complete(_: Any, __: Any, job: Any) -> None:
    await job.complete()


async def _kept(_: Any, jobs: Collection[Any], job: Any) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"awaited": True}})
    await job.complete()


async def _dead(_: Any, __: Any, job: Any) -> None:
    await job.error("no", delay=0)


async def _cancelled(queue: Any, _: Any, job: Any) -> None:
    await queue.cancel(job.id)
    await job.error("no")


async def _lost(queue: Any, jobs: Collection[Any], _: Any) -> None:
    lose(jobs)
    await queue.repair()


async def _lost_and_cancelled(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await queue.cancel(job.id)
    await _lost(queue, jobs, job)


End = Callable[[Any, Collection[Any], Any], Awaitable[None]]
ENDS: list[End] = [_complete, _kept, _dead, _cancelled, _lost, _lost_and_cancelled]


@pytest.mark.parametrize("end", ENDS)
async def test_whoever_ends_the_job_lets_the_one_through_that_waits(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    await queue.put({}, key="k", on_conflict="replace", max_attempts=1)
    job = await claim(queue)
    second = await replaced(queue, 2)
    await queue.next()

    await end(queue, jobs, job)

    assert document(jobs, second)["state"] == "ready"


@pytest.mark.parametrize("end", ENDS)
async def test_a_job_that_holds_its_key_until_its_end_lets_go_of_it_then(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    await queue.put({}, key="k", max_attempts=1)
    job = await claim(queue)
    assert not await is_free(queue)

    await end(queue, jobs, job)

    assert await is_free(queue)


@pytest.mark.parametrize("end", [_kept, _dead, _lost])
@pytest.mark.parametrize("key_until", ["start", "end"])
async def test_what_stays_of_a_job_that_has_ended_holds_no_key(
    queue: Any, jobs: Collection[Any], key_until: str, end: End
) -> None:
    job_id = await queue.put({}, key="k", max_attempts=1, key_until=key_until)

    await end(queue, jobs, await claim(queue))

    assert "held_key" not in document(jobs, job_id)


@pytest.mark.parametrize("end", ["cancel", "clear", "expiry"])
async def test_a_job_that_waits_lets_go_of_its_key_at_its_end(
    queue: Any, jobs: Collection[Any], end: str
) -> None:
    job_id = await queue.put({}, key="k", keep=60 if end == "expiry" else None, expires=60)
    if end == "cancel":
        await queue.cancel(job_id)
    elif end == "clear":
        await queue.clear()
    else:
        jobs.update_one({"_id": job_id}, {"$set": {"expires_at": PAST}})
        assert await queue.next() is None

    assert await is_free(queue)


async def test_a_job_completed_in_a_transaction_lets_the_other_through_with_it(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue()
    await replaced(queue, 1)
    first = await claim(queue)
    second = await replaced(queue, 2)
    await queue.next()

    async with shell.transaction() as session:
        await first.complete(session=session)
        assert document(jobs, second)["state"] == "waiting"

    assert (await claim(queue)).id == second


# Back to waiting.


@pytest.mark.parametrize("key_until", ["start", "end"])
async def test_a_job_that_waits_again_has_its_key_again(
    queue: Any, jobs: Collection[Any], key_until: str
) -> None:
    job_id = await queue.put({}, key="k", key_until=key_until)
    await (await claim(queue)).release()
    await (await claim(queue)).error("no", delay=0)

    assert document(jobs, job_id)["held_key"] == "k"
    assert not await is_free(queue)


async def _released(_: Any, __: Any, job: Any) -> None:
    await job.release()


async def _delayed(_: Any, __: Any, job: Any) -> None:
    await job.release(delay=60)


async def _failed(_: Any, __: Any, job: Any) -> None:
    await job.error("no")


AGAIN: list[End] = [_released, _delayed, _failed, _lost]


@pytest.mark.parametrize("parked", [False, True])
@pytest.mark.parametrize("again", AGAIN)
async def test_a_job_whose_key_a_newer_one_has_does_not_wait_again(
    queue: Any, jobs: Collection[Any], again: End, parked: bool
) -> None:
    first = await queue.put({}, key="k", on_conflict="replace", keep=60)
    job = await claim(queue)
    second = await replaced(queue, 2)
    if parked:
        assert await queue.next() is None

    await again(queue, jobs, job)

    info = await queue.get(first)
    assert (info.state, info.last_error) == (
        "cancelled",
        "superseded: a newer job has its key",
    )
    assert (await claim(queue)).id == second


async def test_one_that_nobody_keeps_is_gone_then(queue: Any, jobs: Collection[Any]) -> None:
    first = await replaced(queue, 1)
    job = await claim(queue)
    await replaced(queue, 2)

    await job.error("no")

    assert jobs.count_documents({"_id": first}) == 0


async def test_one_of_many_lost_jobs_stops_none_of_the_others(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put_many([{}] * 20)
    first = await queue.put({}, key="k", on_conflict="replace", keep=60)
    await queue.claim(21)
    await replaced(queue, 2)
    lose(jobs)

    assert await queue.repair() == 21

    assert jobs.count_documents({"state": "ready"}) == 21
    assert (await queue.get(first)).state == "cancelled"


async def test_a_dead_job_whose_key_is_taken_is_not_put_back(queue: Any) -> None:
    dead = await queue.put({}, key="k", max_attempts=1, key_until="start")
    await (await claim(queue)).error("no")
    second = await queue.put({}, key="k")

    with pytest.raises(DuplicateJob) as raised:
        await queue.requeue(dead)
    assert raised.value.job_id == second
    assert await queue.requeue() == 0

    await queue.cancel(second)
    assert await queue.requeue(dead) == 1
    assert not await is_free(queue)


# Held back.


async def test_of_a_batch_with_one_that_is_held_back_the_others_are_claimed(
    queue: Any, jobs: Collection[Any]
) -> None:
    for n in range(3):
        await queue.put({}, key=str(n), key_until="start")
    assert len(await queue.claim(3)) == 3
    for n in range(3):
        await queue.put({}, key=str(n), key_until="start")
    others = await queue.put_many([{}] * 30)

    claimed = await queue.claim(50)

    assert [job.id for job in claimed] == others
    assert jobs.distinct("attempts", {"state": "waiting"}) == [0]
    assert jobs.count_documents({"state": "waiting", "held_key": {"$exists": True}}) == 3


async def test_a_job_whose_holder_somebody_has_removed_is_found(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue()
    await replaced(queue, 1)
    first = await claim(queue)
    second = await replaced(queue, 2)
    await queue.next()
    jobs.delete_one({"_id": first.id})

    assert (await claim(queue)).id == second


async def test_somebody_who_has_only_just_come_finds_it_too(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue()
    await replaced(queue, 1)
    first = await claim(queue)
    second = await replaced(queue, 2)
    await queue.next()
    jobs.delete_one({"_id": first.id})

    assert (await claim(shell.queue("another"))).id == second


async def test_however_many_wait_for_long_they_hide_none_that_need_not(
    queue: Any, jobs: Collection[Any]
) -> None:
    waits = {"queue": "default", "state": "waiting", "payload": {}}
    jobs.insert_many({**waits, "waits_for": {"what": n}, "run_at": PAST} for n in range(2100))
    job_id = jobs.insert_one({**waits, "key": "k", "run_at": datetime.now(UTC)}).inserted_id

    assert (await claim(queue)).id == job_id


async def test_a_job_that_was_claimed_too_late_lets_the_one_through_that_waits(
    queue: Any, jobs: Collection[Any]
) -> None:
    assert await queue.next() is None  # nothing is held back, as far as it knows
    with_key = {"queue": "default", "payload": {}, "key": "k", "key_until": "start"}
    jobs.insert_one({**with_key, "state": "waiting", "held_key": "k", "payload": {"n": 2}})
    jobs.insert_one({**with_key, "state": "ready", "expires_at": PAST})

    assert (await claim(queue)).data["n"] == 2


async def test_who_waits_where_there_are_no_keys_is_not_woken_to_look_for_any(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    queue = shell.queue(timeout=0.1)
    await queue.next()
    client.admin.command("profile", 0)
    jobs.database.system.profile.drop()
    jobs.database.command("profile", 2)

    await queue.next(wait=0.8)

    looks = {"ns": jobs.full_name, "command.filter.state": "waiting"}
    # (Once a lease it would be eight times.)
    assert jobs.database.system.profile.count_documents(looks) <= 4


@pytest.mark.parametrize("end", ["complete", "cancel"])
async def test_one_that_waits_can_be_cancelled_and_moved(
    queue: Any, jobs: Collection[Any], end: str
) -> None:
    await replaced(queue, 1)
    first = await claim(queue)
    second = await replaced(queue, 2)
    await queue.next()

    await queue.reschedule(second, priority=5)
    assert document(jobs, second)["state"] == "waiting"
    if end == "cancel":
        assert await queue.cancel(second) == "cancelled"
        assert await is_free(queue)
    else:
        await queue.reschedule(second, delay=60)
        await first.complete()
        assert document(jobs, second)["state"] == "scheduled"
        assert "waits_for" not in document(jobs, second)


@pytest.mark.few(5)
@pytest.mark.parametrize(
    "damage",
    [
        {"held_key": None},
        {"held_key": 5, "key_until": ["start"]},
        {"key": None},
        {"key": [1, 5]},
        {"key": 5, "unique_until": 5},
        {"unique_until": ["x"]},
        {"unique_until": DatetimeMS(2**62)},
        {"unique_until": DatetimeMS(-(2**62))},
        {"waits_for": 5, "task": 7},
        {"waits_for": {"key": None}, "task": ["a"]},
    ],
    ids=str,
)
async def test_what_others_have_stored_in_these_fields_stops_nothing(
    queue: Any, jobs: Collection[Any], damage: Settings
) -> None:
    for end in (_complete, _failed, _lost, _cancelled):
        jobs.delete_many({})
        await replaced(queue, 1)
        await replaced(queue, 1, keep=60)
        jobs.update_many({}, {"$set": damage})
        damaged = await claim(queue)
        jobs.update_many({}, {"$set": damage})
        second = await queue.put({}, key="other", on_conflict="replace")
        jobs.update_one({"_id": second}, {"$set": damage})

        found = await queue.claim(5)
        await end(queue, jobs, damaged)
        found += await queue.claim(5)

        assert second in [job.id for job in found], end.__name__
