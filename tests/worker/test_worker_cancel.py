"""Cancelling what runs: its worker hears of it, stops the handler, and ends it as cancelled."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Cancel, Discard, Job, JobCancelled
from streamqueue.worker.leases import Leases
from tests.waiting import wait_until_async
from tests.worker.faults import SHUTTING_DOWN, failing
from tests.worker.members import SOON, Members
from tests.worker.started import STREAM_APP, StartedWorker, WorkerStarter


class Sleeps:
    """An async handler that ends only when it is cancelled."""

    def __init__(self) -> None:
        self.running: list[Any] = []
        self.cancelled: list[Any] = []

    async def __call__(self, job: AsyncJob) -> None:
        self.running.append(job.id)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(job.id)
            raise

    async def until_running(self, count: int) -> None:
        await wait_until_async(lambda: len(self.running) >= count, f"{count} handlers run")

    async def until_cancelled(self, job_id: Any, within: float = SOON) -> None:
        await wait_until_async(lambda: job_id in self.cancelled, "it is cancelled", within)


@asynccontextmanager
async def without_stream(client: MongoClient[Any], worker: StartedWorker) -> AsyncIterator[None]:
    """Let no event come to this worker."""
    with failing(client, "getMore", "aggregate", app=STREAM_APP, **SHUTTING_DOWN):
        await wait_until_async(
            lambda: worker.metric("streamqueue_stream_connected") == 0, "its stream is broken"
        )
        yield


async def test_an_async_handler_is_cancelled_and_its_job_gone(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Sleeps()
    worker = await start(handler)
    job_id, other = await queue.put_many([{}, {}])
    await handler.until_running(2)

    assert await queue.cancel(job_id) == "asked"
    await handler.until_cancelled(job_id)
    await worker.until_outcomes(cancelled=1)

    assert [document["_id"] for document in jobs.find()] == [other]
    assert handler.cancelled == [job_id]


async def test_a_kept_job_stays_as_cancelled(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Sleeps()
    worker = await start(handler, keep=60)
    job_id = await queue.put({})
    await handler.until_running(1)

    await queue.cancel(job_id)
    await worker.until_outcomes(cancelled=1)

    [document] = jobs.find()
    assert document["state"] == "cancelled"
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)
    assert {"lease", "locked_by", "kept", "last_error"}.isdisjoint(document)


async def returns(job: AsyncJob) -> str:
    return "a result"


async def fails(job: AsyncJob) -> str:
    raise ValueError


async def calls_complete(job: AsyncJob) -> None:
    await job.complete("a result")


async def calls_error(job: AsyncJob) -> None:
    await job.error("no")


async def calls_release(job: AsyncJob) -> None:
    await job.release()


async def discards_in_a_block(job: AsyncJob) -> None:
    async with job:
        raise Discard("no use")


@pytest.mark.parametrize(
    "afterwards",
    [returns, fails, calls_complete, calls_error, calls_release, discards_in_a_block],
)
async def test_the_job_is_cancelled_whatever_its_handler_does_afterwards(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], afterwards: Any
) -> None:
    running = anyio.Event()
    told: list[BaseException] = []

    async def handler(job: AsyncJob) -> Any:
        running.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            assert job.cancelled
            try:
                with anyio.CancelScope(shield=True):
                    return await afterwards(job)
            except Exception as error:
                told.append(error)
                raise

    worker = await start(handler, keep=60)
    job_id = await queue.put({})
    await running.wait()

    await queue.cancel(job_id)
    await worker.until_outcomes(cancelled=1)

    [document] = jobs.find()
    assert document["state"] == "cancelled"
    assert "result" not in document
    if afterwards.__name__.startswith("calls"):
        assert isinstance(told[0], JobCancelled)


async def test_a_blocking_handler_sees_it_and_its_next_call_says_so(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    running = threading.Event()
    told: list[Exception] = []

    def handler(job: Job) -> str:
        running.set()
        while not job.cancelled:
            threading.Event().wait(0.005)
        try:
            job.progress(1)
        except JobCancelled as error:
            told.append(error)
        return "a result"

    worker = await start(handler, keep=60)
    job_id = await queue.put({})
    await wait_until_async(running.is_set, "it runs")

    await queue.cancel(job_id)
    await worker.until_outcomes(cancelled=1)

    [document] = jobs.find()
    assert document["state"] == "cancelled"
    assert "result" not in document
    assert len(told) == 1


async def test_it_is_heard_with_all_slots_full_and_more_jobs_waiting(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    handler = Sleeps()
    await start(handler, concurrency=2)
    ids = await queue.put_many([{} for _ in range(10)])
    await handler.until_running(2)

    await queue.cancel(ids[0])

    await handler.until_cancelled(ids[0])
    await handler.until_running(3)


async def test_it_is_heard_with_a_dispatcher_between(
    members: Members, queue: AsyncMongoQueue
) -> None:
    handlers = [Sleeps(), Sleeps()]
    await members.open()
    for handler in handlers:
        await members.start(handler, concurrency=1)
    await members.until_idle()
    ids = await queue.put_many([{} for _ in range(6)])
    await wait_until_async(lambda: all(handler.running for handler in handlers), "both are full")
    [held] = [handler for handler in handlers if ids[0] in handler.running]

    await queue.cancel(ids[0])

    await held.until_cancelled(ids[0])
    assert sum(len(handler.cancelled) for handler in handlers) == 1


async def test_a_request_whose_event_was_lost_is_found_by_the_next_renewal(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    handler = Sleeps()
    worker = await start(handler, timeout=3)
    [job_id, _] = await queue.put_many([{}, {}])
    await handler.until_running(2)

    async with without_stream(client, worker):
        await queue.cancel(job_id)
        await handler.until_cancelled(job_id, within=2.5)
        await worker.until_outcomes(cancelled=1)

    assert handler.cancelled == [job_id]


async def test_a_request_whose_event_was_lost_is_found_when_the_stream_is_open_again(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    handler = Sleeps()
    worker = await start(handler, timeout=300)
    job_id = await queue.put({})
    await handler.until_running(1)

    async with without_stream(client, worker):
        await queue.cancel(job_id)

    await handler.until_cancelled(job_id, within=10)


async def test_a_request_whose_event_was_lost_is_found_by_the_progress_of_the_handler(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    told: list[Exception] = []

    async def handler(job: AsyncJob) -> None:
        while True:
            try:
                await job.progress()
            except JobCancelled as error:
                told.append(error)
                raise
            await anyio.sleep(0.01)

    worker = await start(handler, timeout=300)
    job_id = await queue.put({})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")

    async with without_stream(client, worker):
        await queue.cancel(job_id)
        await worker.until_outcomes(cancelled=1)

    assert len(told) == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_job_is_renewed_until_its_handler_has_ended(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], in_thread: bool
) -> None:
    running, over = threading.Event(), threading.Event()

    def blocking(job: Job) -> None:
        running.set()
        over.wait()

    async def shielded(job: AsyncJob) -> None:
        running.set()
        with anyio.CancelScope(shield=True):
            await wait_until_async(over.is_set, "it may end")

    worker = await start(blocking if in_thread else shielded, timeout=1.5, reap_interval=0.1)
    job_id = await queue.put({})
    await wait_until_async(running.is_set, "it runs")
    await queue.cancel(job_id)
    [before] = jobs.find()

    await wait_until_async(
        lambda: jobs.find_one({"locked_until": {"$gt": before["locked_until"] + 2 * ONE}}),
        "it is renewed again and again",
    )
    over.set()

    await worker.until_outcomes(cancelled=1)
    assert jobs.count_documents({}) == 0


ONE = timedelta(seconds=1)


async def test_a_completion_that_is_on_its_way_stands(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    go = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        await go.wait()

    worker = await start(handler)
    job_id = await queue.put({})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")

    with failing(client, "delete", app=worker.app, blockConnection=True, blockTimeMS=1000) as hits:
        go.set()
        await wait_until_async(lambda: hits.hits(), "its delete is on its way")
        assert await queue.cancel(job_id) == "asked"
        await worker.until_outcomes(completed=1)

    assert jobs.count_documents({}) == 0


async def test_a_job_that_is_given_back_at_the_end_of_a_drain_is_cancelled_if_it_was_asked_for(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = Sleeps()
    worker = await start(handler, keep=60, timeout=300, drain_timeout=0)
    job_id = await queue.put({})
    await handler.until_running(1)
    monkeypatch.setattr(Leases, "look", lambda _: None)  # the event is lost

    await queue.cancel(job_id)
    await worker.stop()

    [document] = jobs.find()
    assert document["state"] == "cancelled"


async def test_a_job_that_an_older_version_gave_back_is_cancelled_before_its_handler_is_called(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    handler = Sleeps()
    worker = await start(handler)

    jobs.insert_one(
        {"queue": "default", "state": "ready", "payload": {}, "cancel_requested_at": "then"}
    )

    await worker.until_outcomes(cancelled=1)
    assert handler.running == []
    assert jobs.count_documents({}) == 0


def raises_in_thread(reason: str | None) -> Callable[..., Any]:
    def handler(job: Job) -> None:
        raise Cancel(reason)

    return handler


def raises(reason: str | None) -> Callable[..., Any]:
    async def handler(job: AsyncJob) -> None:
        raise Cancel(reason)

    return handler


@pytest.mark.parametrize("make", [raises, raises_in_thread])
@pytest.mark.parametrize(("reason", "keep"), [(None, 60), ("no such customer", 60), (None, None)])
async def test_a_handler_may_cancel_its_job(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    make: Any,
    reason: str | None,
    keep: float | None,
) -> None:
    worker = await start(make(reason), keep=keep)
    await queue.put({})

    await worker.until_outcomes(cancelled=1)

    found = [(document["state"], document.get("last_error")) for document in jobs.find()]
    assert found == ([] if keep is None else [("cancelled", reason)])


async def test_jobs_of_a_dead_consumer_that_were_asked_for_are_counted_as_cancelled(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({})
    await queue.next()
    await queue.cancel(job_id)
    jobs.update_one({}, [{"$set": {"locked_until": "$$NOW"}}])

    worker = await start(Sleeps())

    await wait_until_async(lambda: not jobs.count_documents({}), "it is gone")
    reaped = {"queue": "default", "result": "cancelled"}
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_reaped_total", **reaped) == 1, "it is counted"
    )
