"""The safety sweep counts what the stream failed to announce, and nothing else.

Law: the document is the truth.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.metrics.series import Metrics
from streamqueue.options import WorkerOptions
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.store.present_settings import PresentSettings
from streamqueue.worker import scheduler
from streamqueue.worker.scheduler import Sweep
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, failing
from tests.worker.started import STREAM_APP, WorkerStarter


async def nothing(job: AsyncJob) -> None:
    pass


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worker hear its stream open, and none of its events."""

    def ignore(self: object, event: Mapping[str, Any]) -> None:
        pass

    monkeypatch.setattr("streamqueue.worker.listener.WorkerListener.event", ignore)


@pytest.mark.usefixtures("deaf")
async def test_a_job_that_was_not_announced_is_found_counted_and_run(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await start(nothing, sweep_interval=0.2)
    await worker.until_idle(0.05)

    await queue.put({"n": 1})
    await worker.until_outcomes(completed=1)

    assert worker.metric("streamqueue_missed_wakeups_total", queue="default") == 1
    assert worker.metric("streamqueue_claims_total", trigger="sweep", result="won") == 1


@pytest.mark.usefixtures("deaf")
async def test_a_delayed_job_that_was_not_announced_is_run_in_the_end(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await start(nothing, sweep_interval=0.2)
    await worker.until_idle(0.05)

    await queue.put({"n": 1}, delay=0.2)

    await worker.until_outcomes(completed=1, within=5)


async def test_what_is_put_while_the_stream_is_cut_is_found_and_not_missed(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    worker = await start(nothing, sweep_interval=0.2)

    with failing(client, "getMore", "aggregate", app=STREAM_APP, **CONNECTION_CUT) as cut:
        await wait_until_async(cut.hits, "the stream is cut, and the driver resumes it")
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1)

    assert worker.metric("streamqueue_claims_total", trigger="sweep", result="won") == 1
    assert worker.metric("streamqueue_missed_wakeups_total") == 0


async def test_a_healthy_stream_misses_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await start(nothing, sweep_interval=0.1, concurrency=2)

    for n in range(100):
        await queue.put({"n": n})
    await queue.put_many([{"n": n} for n in range(200)])
    await queue.put_many([{"n": n} for n in range(50)], delay=0.2)
    await worker.until_outcomes(completed=350)

    assert worker.metric("streamqueue_missed_wakeups_total") == 0


async def test_a_job_whose_claim_is_late_is_not_missed(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    """It looks as if nobody knew of it: it is announced no more, and not claimed yet."""
    worker = await start(nothing, sweep_interval=0.5)
    await worker.until_idle(0.2)  # or it would be another write that is late
    late = {"blockConnection": True, "blockTimeMS": 2500}

    with failing(client, "update", "findAndModify", app=worker.app, times=1, **late):
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1)

    assert worker.metric("streamqueue_missed_wakeups_total") == 0


# One sweep of a consumer that nobody tells anything.


class Idle:
    """A claimer that has nothing to do, and a stream that keeps saying that there is nothing."""

    idle = True

    def __init__(self) -> None:
        self.scans: list[str] = []
        self._signs = 0
        self.signs_each_time = scheduler.SIGNS

    def open_queues(self) -> list[str]:
        return ["default"]

    @property
    def signs(self) -> int:
        self._signs += self.signs_each_time
        return self._signs

    def scan(self, trigger: str) -> None:
        self.scans.append(trigger)


@pytest.fixture
def claimer(monkeypatch: pytest.MonkeyPatch) -> Idle:
    monkeypatch.setattr(scheduler, "CONFIRM_AFTER", 0.3)
    return Idle()


@pytest.fixture
async def sweep(uri: str, jobs: Collection[Any], claimer: Idle) -> AsyncIterator[Sweep]:
    metrics = Metrics(CollectorRegistry())
    handlers: Any = {"default": SimpleNamespace(metrics=metrics.consumer("default", "task"))}
    async with AsyncMongoClient(uri, appname="sweep") as client:
        store = AsyncStore(client[jobs.database.name][jobs.name])
        part: Any = claimer
        settings = PresentSettings(store, ["default"])
        options = WorkerOptions(max_await=0.05)
        yield Sweep(store, handlers, settings, part, part, options, metrics, part)


async def during(sweep: Sweep, client: MongoClient[Any], change: Any) -> int:
    """Return what a sweep counts while something happens between its two looks."""
    counted: list[int] = []

    async def run() -> None:
        counted.append(await sweep.run_once())

    slow = {"blockConnection": True, "blockTimeMS": 100}
    with failing(client, "find", app="sweep", **slow) as looks:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await wait_until_async(lambda: looks.hits() >= 2, "it looks")
            await anyio.sleep(0.2)  # that look has its answer, and the next is yet to come
            await change()
    return counted[0]


async def test_a_job_that_lies_there_untouched_is_missed(
    sweep: Sweep, claimer: Idle, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    await queue.put({"n": 1})

    async def nothing_happens() -> None:
        pass

    assert await during(sweep, client, nothing_happens) == 1
    assert claimer.scans == ["sweep"]


async def test_a_job_that_was_claimed_and_given_back_meanwhile_is_not_missed(
    sweep: Sweep, claimer: Idle, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    """As by a claim that came too late: its document is the same before and after."""
    await queue.put({"n": 1})

    async def claim_and_release() -> None:
        job = await queue.next()
        assert job is not None
        await job.release()

    assert await during(sweep, client, claim_and_release) == 0
    assert claimer.scans == ["sweep"]


async def test_a_stream_that_has_said_little_since_has_missed_nothing(
    sweep: Sweep, claimer: Idle, queue: AsyncMongoQueue
) -> None:
    """The one sign of life may have been on its way when the job was put."""
    await queue.put({"n": 1})
    claimer.signs_each_time = 1

    assert await sweep.run_once() == 0
    assert claimer.scans == ["sweep"]
