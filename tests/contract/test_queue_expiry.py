"""Jobs with a time after which they are not begun: no attempt starts, and they end as cancelled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, NewJob
from tests.contract.looks import document, server_time
from tests.contract.shells import Shell
from tests.waiting import wait_until_async

LATER = datetime(2126, 5, 1, tzinfo=UTC)


def let_expire(jobs: Collection[Any], **more: Any) -> None:
    """Make it too late, a second ago, for the jobs that have such a time."""
    past = {"$subtract": ["$$NOW", 1000]}
    changed = jobs.update_many(
        {"expires_at": {"$exists": True}}, [{"$set": {"expires_at": past, **more}}]
    )
    assert changed.modified_count


# putting


@pytest.mark.parametrize("expires", [60, timedelta(minutes=1)])
async def test_seconds_count_from_the_put_by_the_servers_clock(
    queue: Any, jobs: Collection[Any], expires: Any
) -> None:
    job_id = await queue.put({}, delay=5, expires=expires)

    left = document(jobs, job_id)["expires_at"] - server_time(jobs)
    assert timedelta(seconds=50) < left < timedelta(seconds=61)


async def test_a_moment_is_stored_as_it_is(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, expires=LATER)

    assert document(jobs, job_id)["expires_at"] == LATER


async def test_of_many_each_has_its_own_or_that_of_all(queue: Any, jobs: Collection[Any]) -> None:
    own = NewJob({}, expires=LATER)

    first, second, third = await queue.put_many([own, NewJob({}), {}], expires=60)

    soon = server_time(jobs) + timedelta(seconds=61)
    assert document(jobs, first)["expires_at"] == LATER
    assert document(jobs, second)["expires_at"] < soon
    assert document(jobs, third)["expires_at"] < soon


async def test_a_job_without_has_no_such_field(queue: Any, jobs: Collection[Any]) -> None:
    assert "expires_at" not in document(jobs, await queue.put({}))


@pytest.mark.parametrize(
    "expires", [-1, "soon", datetime(2030, 1, 1), True, float("nan"), [1]], ids=repr
)
async def test_what_is_no_time_is_refused(queue: Any, expires: Any) -> None:
    with pytest.raises(ConfigurationError, match="expires"):
        await queue.put({}, expires=expires)

    assert await queue.size() == 0


# too late


async def test_a_job_that_is_too_late_is_not_handed_out_and_is_gone(
    shell: Shell, jobs: Collection[Any]
) -> None:
    await shell.queue().put({}, expires=60)
    let_expire(jobs)

    assert await shell.queue().next() is None

    assert jobs.count_documents({}) == 0


async def test_the_others_are_handed_out_in_their_order(
    shell: Shell, jobs: Collection[Any]
) -> None:
    await shell.queue().put_many([{}, {}, {}], expires=60, priority=5)
    let_expire(jobs)
    there = [await shell.queue().put({}, expires=expires) for expires in [60, None] * 8]
    queue = shell.queue()

    taken = [(await queue.next()).id for _ in there]

    assert taken == there
    assert jobs.count_documents({}) == 16


@pytest.mark.parametrize("kept_by", ["job", "queue"])
async def test_one_that_is_kept_says_why_it_was_not_run(
    shell: Shell, jobs: Collection[Any], kept_by: str
) -> None:
    on_job, on_queue = ({"keep": 60}, {}) if kept_by == "job" else ({}, {"keep": 60})
    job_id = await shell.queue().put({}, expires=60, **on_job)
    let_expire(jobs)

    assert await shell.queue(**on_queue).next() is None

    stored = document(jobs, job_id)
    assert (stored["state"], stored["last_error"]) == ("cancelled", "expired")
    assert stored["attempts"] == 0
    assert stored["removed_at"] - stored["finished_at"] == timedelta(seconds=60)
    assert not {"lease", "locked_by", "locked_until", "kept", "allowed"} & stored.keys()


async def test_one_that_waits_for_its_time_ends_as_well(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, delay=600, expires=60, keep=60)
    let_expire(jobs)

    assert await queue.next() is None

    assert document(jobs, job_id)["state"] == "cancelled"


async def test_one_whose_end_somebody_waits_for_stays_for_a_minute(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, delay=600, expires=60)
    let_expire(jobs, awaited=True)

    assert await queue.next() is None

    stored = document(jobs, job_id)
    assert (stored["state"], stored["awaited"]) == ("cancelled", False)
    assert stored["removed_at"] - stored["finished_at"] == timedelta(seconds=60)


async def test_a_retry_does_not_begin_either(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, expires=60, keep=60)
    await (await queue.next()).error("broken", delay=0)
    let_expire(jobs)

    assert await queue.next() is None

    stored = document(jobs, job_id)
    assert (stored["state"], stored["attempts"]) == ("cancelled", 1)
    assert [error["message"] for error in stored["errors"]] == ["broken"]


async def test_one_that_runs_by_then_goes_on(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, expires=60)
    job = await queue.next()
    let_expire(jobs)

    assert await queue.next() is None

    await job.progress(1)
    await job.complete()


async def test_a_wait_ends_what_is_too_late_when_it_is(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, delay=600, expires=0.5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.next, 10)
        await wait_until_async(lambda: not jobs.count_documents({}), "it is gone", 5)
        tasks.start_soon(queue.put, {"ends": "the wait"})


@pytest.mark.parametrize("time", [None, "2020-01-01", 5])
async def test_what_is_no_moment_is_no_limit(queue: Any, jobs: Collection[Any], time: Any) -> None:
    """As other programs may insert it."""
    await queue.put({}, expires=60, delay=60)
    ready = {"queue": "default", "state": "ready", "payload": {}, "priority": 0}
    there = jobs.insert_one({**ready, "expires_at": time}).inserted_id

    assert (await queue.next()).id == there


# put back


async def test_one_that_has_expired_can_be_put_back_and_has_no_such_time(
    shell: Shell, jobs: Collection[Any]
) -> None:
    job_id = await shell.queue().put({"n": 1}, expires=60, keep=60)
    let_expire(jobs)
    assert await shell.queue().next() is None

    assert await shell.queue().requeue(job_id) == 1

    job = await shell.queue().next()
    assert (job.data, job.attempts) == ({"n": 1}, 1)
    assert not {"expires_at", "removed_at", "finished_at"} & document(jobs, job_id).keys()


async def test_a_dead_one_that_would_be_too_late_runs_when_it_is_put_back(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, expires=60, max_attempts=1)
    await (await queue.next()).error("broken")
    let_expire(jobs)

    assert await queue.requeue() == 1

    assert (await queue.next()).id == job_id


# what other programs store


async def test_a_time_that_another_program_gave_needs_no_index(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_one({"queue": queue.name, "state": "ready", "payload": {}, "expires_at": LATER})
    assert await queue.next() is not None

    assert await queue.next() is None
    assert await queue.next(wait=0.1) is None


async def test_a_document_as_the_id_of_one_that_is_too_late_strands_no_other(
    queue: Any, jobs: Collection[Any]
) -> None:
    late = {"_id": {"a": 1}, "queue": queue.name, "state": "ready", "payload": {}}
    jobs.insert_one({**late, "expires_at": datetime(2020, 1, 1, tzinfo=UTC)})
    ids = await queue.put_many([{}, {}])

    claimed = await queue.claim(5)

    assert sorted(job.id for job in claimed) == ids
    assert jobs.count_documents({"_id": {"a": 1}, "state": "running"}) == 0
