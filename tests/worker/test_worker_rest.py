"""The change stream is closed while a worker looks at what waits so often that it tells nothing.

Laws: the document is the truth; the wake-up path cannot die; nobody polls.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.stream import watcher
from streamqueue.worker import backlog
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP, StartedWorker, WorkerStarter


class Gate:
    """A handler whose jobs wait until it is opened, but for those that are told not to."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.opened = anyio.Event()

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append(job.data.get("n"))
        if job.data.get("waits"):
            await self.opened.wait()


@pytest.fixture
def eager_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker counts as one that looks often once it has read what waits twice."""
    monkeypatch.setattr(watcher, "REST_AFTER", 0.3)
    monkeypatch.setattr(watcher, "REST_TICK", 0.05)
    monkeypatch.setattr(backlog, "OFTEN", 60.0)
    monkeypatch.setattr(backlog, "MAX_CHUNK", 64)


async def busy(start: WorkerStarter, queue: AsyncMongoQueue, handler: Gate) -> StartedWorker:
    """Return a worker with more to do than it can."""
    some = [{"n": n} for n in range(150)]
    await queue.put_many(some, priority=-1)
    await queue.put_many([{"n": n, "waits": True} for n in range(150, 400)], priority=-1)
    worker = await start(handler, concurrency=2, sweep_interval=None)
    await wait_until_async(lambda: len(handler.seen) == 152, "its slots are full")
    return worker


async def resting(start: WorkerStarter, queue: AsyncMongoQueue, handler: Gate) -> StartedWorker:
    """The same, and its stream is closed."""
    worker = await busy(start, queue, handler)
    await wait_until_async(lambda: worker.commands.named("ping"), "the stream is closed")
    return worker


@pytest.mark.usefixtures("eager_to_rest")
async def test_a_stream_that_was_closed_for_a_backlog_is_open_again_when_that_is_worked_off(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    handler = Gate()
    worker = await resting(start, queue, handler)
    before = worker.metric("streamqueue_stream_events_total")
    await queue.put_many([{"n": n} for n in range(400, 500)], priority=-1)

    handler.opened.set()
    await wait_until_async(lambda: len(handler.seen) == 500, "all ran", 30)
    await worker.until_idle()
    unread = worker.metric("streamqueue_stream_events_total") - before
    worker.commands.forget()
    await queue.put({"n": 500})
    await wait_until_async(lambda: len(handler.seen) == 501, "it ran")
    await worker.until_idle()

    assert unread <= 50
    assert worker.metric("streamqueue_stream_events_total", operation="insert") >= 1
    assert [sent.name for sent in worker.commands.besides("getMore", "find", "delete")] == [
        "findAndModify"
    ]


@pytest.mark.usefixtures("eager_to_rest")
async def test_a_job_that_falls_due_is_made_ready_while_the_stream_is_closed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Gate()
    await resting(start, queue, handler)

    job_id = await queue.put({"n": "due"}, delay=0.1)

    await wait_until_async(
        lambda: jobs.count_documents({"_id": job_id, "state": "ready"}), "it is ready"
    )
    handler.opened.set()


@pytest.mark.usefixtures("eager_to_rest")
async def test_a_server_that_goes_away_while_the_stream_is_closed_shows_in_the_readiness(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    handler = Gate()
    worker = await resting(start, queue, handler)

    with failing(client, "ping", "aggregate", app=STREAM_APP, closeConnection=True):
        await wait_until_async(
            lambda: "stream" in worker.worker.health.reasons(), "it is not ready"
        )
        assert worker.metric("streamqueue_stream_connected") == 0

    await wait_until_async(lambda: not worker.worker.health.reasons(), "it is ready again")
    handler.opened.set()


@pytest.mark.usefixtures("eager_to_rest")
async def test_a_job_that_another_program_put_comes_in_its_turn_while_the_stream_is_closed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Gate()
    await resting(start, queue, handler)

    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": "foreign"}})
    handler.opened.set()
    await wait_until_async(lambda: "foreign" in handler.seen, "it ran", 30)

    assert len(handler.seen) < 380  # the others are less urgent


@pytest.mark.usefixtures("eager_to_rest")
async def test_a_stream_that_broke_is_opened_again_also_for_a_worker_that_looks_often(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watcher, "REST_AFTER", 60.0)
    handler = Gate()
    worker = await busy(start, queue, handler)

    with failing(client, "getMore", app=STREAM_APP, times=1, errorCode=8000):
        await wait_until_async(
            lambda: worker.metric("streamqueue_stream_restarts_total"), "it broke"
        )

    await wait_until_async(
        lambda: worker.metric("streamqueue_stream_connected") == 1, "it is open again"
    )
    assert worker.worker.health.reasons() == {}
    handler.opened.set()


async def test_a_worker_whose_jobs_take_long_goes_on_to_read_its_stream(
    start: WorkerStarter, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "REST_AFTER", 0.0)
    handler = Gate()
    await queue.put_many([{"n": n, "waits": True} for n in range(50)])
    worker = await start(handler, concurrency=2, sweep_interval=None)
    await wait_until_async(lambda: len(handler.seen) == 2, "its slots are full")

    await queue.put({"n": 50})

    await wait_until_async(
        lambda: worker.metric("streamqueue_stream_events_total", operation="insert"), "it is heard"
    )
    assert len(worker.commands.named("aggregate")) == 1
    handler.opened.set()
