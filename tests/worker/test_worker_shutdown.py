"""Stopping a worker in its own event loop: drain, release, leave nothing behind.

Law: going down is graceful.
"""

from __future__ import annotations

import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, ConfigurationError
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP, WorkerStarter


async def for_ever(job: Any) -> None:
    await anyio.sleep_forever()


async def test_a_running_handler_finishes_after_a_stop(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    started, finish = anyio.Event(), anyio.Event()

    async def handler(job: Any) -> None:
        started.set()
        await finish.wait()

    worker = await start(handler, drain_timeout=10)
    await queue.put({"n": 1})
    await started.wait()
    worker.worker.stop()
    finish.set()
    await worker.until_ended()

    assert worker.outcomes() == {"completed": 1}
    assert jobs.count_documents({}) == 0


async def test_nothing_is_claimed_after_a_stop(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    started, finish = anyio.Event(), anyio.Event()

    async def handler(job: Any) -> None:
        started.set()
        await finish.wait()

    worker = await start(handler, drain_timeout=10)
    await queue.put({"n": 1})
    await started.wait()
    worker.worker.stop()
    later = await queue.put({"n": 2})
    finish.set()
    await worker.until_ended()

    assert [job["_id"] for job in jobs.find({"state": "ready"})] == [later]


async def test_a_claim_that_is_answered_after_a_stop_is_given_back(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    worker = await start(for_ever, drain_timeout=10)
    await worker.until_idle()
    slow = {"blockConnection": True, "blockTimeMS": 500}

    with failing(client, "findAndModify", app=worker.app, times=1, **slow) as hits:
        await queue.put({"n": 1})
        await wait_until_async(hits.hits, "the claim is under way")
        await worker.stop(within=5)

    assert worker.outcomes() == {}
    [stored] = jobs.find()
    assert (stored["state"], stored["attempts"]) == ("ready", 0)
    assert "lease" not in stored


@pytest.mark.parametrize("concurrency", [1, 2], ids=["every slot busy", "a slot free"])
async def test_a_handler_longer_than_the_drain_time_is_released_without_blame(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], concurrency: int
) -> None:
    worker = await start(for_ever, drain_timeout=0.2, concurrency=concurrency)
    job_id = await queue.put({"n": 1})
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_running") == 1, "the handler runs"
    )

    await worker.stop(within=5)

    assert worker.outcomes() == {"released": 1}
    stored = jobs.find_one({"_id": job_id})
    assert stored is not None
    assert (stored["state"], stored["attempts"]) == ("ready", 0)
    assert "lease" not in stored


@pytest.mark.parametrize("concurrency", [1, 2], ids=["every slot busy", "a slot free"])
async def test_a_second_stop_ends_the_drain_time(
    start: WorkerStarter, queue: AsyncMongoQueue, concurrency: int
) -> None:
    worker = await start(for_ever, drain_timeout=60, concurrency=concurrency)
    await queue.put({"n": 1})
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_running") == 1, "the handler runs"
    )

    worker.worker.stop()
    worker.worker.stop()

    await worker.until_ended(within=5)
    assert worker.outcomes() == {"released": 1}


async def test_leases_are_renewed_while_a_stopped_worker_drains(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    started, finish = anyio.Event(), anyio.Event()

    async def handler(job: Any) -> None:
        started.set()
        await finish.wait()

    worker = await start(handler, timeout=1.5, drain_timeout=10)
    await queue.put({"n": 1})
    await started.wait()
    worker.worker.stop()
    worker.commands.forget()
    await wait_until_async(lambda: len(worker.commands.renewals()) >= 4, "a timeout has passed")
    finish.set()
    await worker.until_ended()

    assert worker.outcomes() == {"completed": 1}


async def test_a_handler_that_ends_while_it_is_cancelled_is_not_released(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: Any) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass  # cleaned up, and says by returning that the job is done

    worker = await start(handler, drain_timeout=0.1)
    await queue.put({"n": 1})
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_running") == 1, "the handler runs"
    )

    await worker.stop()

    assert worker.outcomes() == {"completed": 1}
    assert jobs.count_documents({}) == 0


async def test_an_idle_worker_stops_within_a_read_of_its_stream(start: WorkerStarter) -> None:
    worker = await start(for_ever, max_await=1)
    await worker.until_idle()

    asked_at = time.monotonic()
    await worker.stop()

    assert time.monotonic() - asked_at < 1.5


async def test_no_cursor_and_no_connection_of_the_stream_is_left_after_a_stop(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    async def handler(job: Any) -> None:
        pass

    def of_the_stream(**idle: bool) -> list[Any]:
        pipeline: list[dict[str, Any]] = [
            {"$currentOp": {"idleConnections": True, "idleCursors": True, "allUsers": True}},
            {"$match": {"appName": STREAM_APP}},
        ]
        return list(client.admin.aggregate(pipeline))

    cursors = client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"]
    for _ in range(3):
        worker = await start(handler)
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1)
        await worker.stop()

    await wait_until_async(lambda: not of_the_stream(), "the stream's connections are closed", 3)
    left = client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"]
    assert left <= cursors  # (one of an earlier test may have gone meanwhile)


async def test_a_worker_that_is_run_again_becomes_ready_again(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: Any) -> None:
        pass

    worker = await start(handler)
    await worker.stop()
    async with anyio.create_task_group() as tasks:

        async def run_again(*, task_status: Any) -> None:
            await worker.worker.run(handle_signals=False, task_status=task_status)

        await tasks.start(run_again)
        reasons = worker.worker.health.reasons()
        worker.worker.stop()

    assert reasons == {}


async def test_a_worker_that_does_not_run_cannot_be_stopped(start: WorkerStarter) -> None:
    worker = start.prepare(for_ever)

    with pytest.raises(ConfigurationError, match="not running"):
        worker.worker.stop()


async def test_a_run_ends_without_a_handler_that_does_not(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamqueue.worker.drain.GRACE", 0.2)
    started, let_go = anyio.Event(), anyio.Event()

    async def handler(job: Any) -> None:
        started.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except anyio.get_cancelled_exc_class():
                await anyio.lowlevel.cancel_shielded_checkpoint()

    worker = await start(handler, drain_timeout=0.1)
    await queue.put({"n": 1})
    await started.wait()

    await worker.stop(within=5)
    let_go.set()

    assert worker.worker.left == 1
    assert [(job["state"], job["attempts"]) for job in jobs.find()] == [("ready", 0)]
