"""The safety sweep counts what the stream failed to announce, and nothing else (law 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pymongo import MongoClient

from streamqueue import AsyncJob, AsyncMongoQueue
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

    monkeypatch.setattr("streamqueue.worker.run.Run.event", ignore)


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
