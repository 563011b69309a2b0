"""A worker begins no job that is too late, and ends those that wait by a timer.

Law: nobody polls.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff
from streamqueue.protocol.schema import EXPIRES_INDEX
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.worker.scheduler import Expiries
from tests.waiting import wait_until, wait_until_async
from tests.worker.members import Members, Notes
from tests.worker.started import StartedWorker, WorkerStarter


def let_expire(jobs: Collection[Any]) -> None:
    past = {"$subtract": ["$$NOW", 1000]}
    changed = jobs.update_many({"expires_at": {"$exists": True}}, [{"$set": {"expires_at": past}}])
    assert changed.modified_count


async def until_gone(jobs: Collection[Any], within: float = 5) -> None:
    await wait_until_async(lambda: not jobs.count_documents({}), "it is gone", within)


def looks(worker: StartedWorker) -> int:
    """How often it has asked for jobs that are too late."""
    return sum("expires_at" in str(sent.command) for sent in worker.commands.named("find"))


async def test_what_is_too_late_when_the_worker_starts_is_not_begun(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await queue.put_many([{"n": 1}] * 3, expires=60)
    let_expire(jobs)

    worker = await start(notes)

    await worker.until_outcomes(expired=3)
    await until_gone(jobs)
    assert notes.seen == []


async def test_a_claimed_job_that_is_too_late_is_not_begun_and_uses_no_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    """It was claimed in time, and the event loop stood still."""
    seen = []
    await queue.put_many([{"n": 1}, {"n": 2}], expires=2, keep=60)
    too_late = time.monotonic() + 2.2

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data["n"])
        wait_until(lambda: time.monotonic() > too_late, "it is too late")

    worker = await start(handler)

    await worker.until_outcomes(completed=1, expired=1)
    stored = jobs.find_one({"state": "cancelled"})
    assert stored is not None
    assert (stored["payload"], stored["last_error"]) == ({"n": 2}, "expired")
    assert stored["attempts"] == 0
    assert seen == [1]


async def test_a_job_for_later_ends_at_its_time_and_nothing_is_sent_before(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    worker = await start(notes)
    await worker.until_idle()
    worker.commands.forget()

    await queue.put({"n": 1}, delay=600, expires=1.5)
    await worker.until_idle()
    before = looks(worker)
    await worker.until_outcomes(expired=1)

    await until_gone(jobs)
    assert before == 0
    assert notes.seen == []


async def test_a_retry_that_would_be_too_late_does_not_begin(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    runs = []

    async def handler(job: AsyncJob) -> None:
        runs.append(job.attempts)
        raise ValueError

    worker = await start(handler, backoff=Backoff(initial=60, jitter=0))
    await queue.put({}, expires=1, keep=60)

    await worker.until_outcomes(retried=1, expired=1)
    stored = jobs.find_one({})
    assert stored is not None
    assert (stored["state"], stored["last_error"], stored["attempts"]) == (
        "cancelled",
        "expired",
        1,
    )
    assert runs == [1]


async def test_one_that_was_put_before_the_worker_started_ends_at_its_time(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await queue.put({}, delay=600, expires=1)

    worker = await start(Notes())

    await worker.until_outcomes(expired=1)
    await until_gone(jobs)


async def test_one_that_runs_by_then_goes_on(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    running, go_on = anyio.Event(), anyio.Event()

    async def handler(_: AsyncJob) -> None:
        running.set()
        await go_on.wait()

    worker = await start(handler)
    await queue.put({}, expires=60)
    await running.wait()
    let_expire(jobs)
    await queue.put({}, delay=600, expires=0.01)  # makes it look
    await wait_until_async(lambda: worker.outcomes().get("expired"), "the other one ended")
    go_on.set()

    await worker.until_outcomes(completed=1, expired=1)


async def test_who_does_not_use_it_is_asked_nothing_after_the_first_look(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    worker = await start(notes, sweep_interval=0.2)

    for n in range(20):
        await queue.put({"n": n})
    await queue.put({"n": 20}, delay=0.2)
    await notes.until_seen(21, within=10)

    assert looks(worker) == 1


async def test_behind_a_dispatcher_a_member_ends_it_and_counts_it(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await members.open()
    workers = await members.start_many(2, Notes())
    await members.until_idle()

    await queue.put({}, delay=600, expires=0.5)

    await until_gone(jobs)
    await wait_until_async(
        lambda: sum(worker.outcomes().get("expired", 0) for worker in workers) == 1, "counted"
    )


async def test_the_first_job_with_a_time_that_is_put_while_somebody_looks_ends_in_time(
    async_jobs: AsyncCollection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AsyncStore(async_jobs)
    ended: list[bool] = []

    async def end() -> float:
        ended.append(True)
        return math.inf

    expiries = Expiries(store, ["default"], end)
    look = store.seconds_to_too_late

    async def overtaken(queues: Any) -> float:
        found = await look(queues)
        await async_jobs.database.command("createIndexes", async_jobs.name, indexes=[EXPIRES_INDEX])
        job = {"queue": "default", "state": "ready", "expires_at": datetime(2001, 1, 1, tzinfo=UTC)}
        await async_jobs.insert_one(job)
        expiries.opened()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(store, "seconds_to_too_late", overtaken)
        await expiries.run_once()

    await expiries.run_once()

    assert ended
