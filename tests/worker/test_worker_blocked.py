"""A handler that blocks the event loop is named, with the place and the lag."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

SECONDS = 2.5
SHORT = 0.4


def compute() -> None:
    threading.Event().wait(SECONDS)


@pytest.mark.slow
async def test_what_blocks_the_event_loop_is_named_once_a_minute(
    start: WorkerStarter, queue: AsyncMongoQueue, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[Any]:
        return [line for line in caplog.records if getattr(line, "event", "") == "loop_blocked"]

    async def report(job: AsyncJob) -> None:
        compute()

    caplog.set_level(logging.WARNING, "streamqueue")
    worker = await start(report, concurrency=1)
    first = await queue.put({})
    await queue.put({})
    await worker.until_outcomes(completed=2)
    await worker.until_idle(0.7)  # longer than from beat to beat

    [line] = await wait_until_async(lines, "a line")
    assert (line.task, line.job_id, line.queue) == ("report", str(first), "default")
    assert SECONDS - 0.6 < line.seconds < 10 * SECONDS
    assert "test_worker_blocked.py, line" in line.place
    assert "in compute; called by" in line.place
    assert line.place.endswith("in report")


async def test_a_handler_that_takes_batches_is_named_as_well(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("blocked.TICK", "blocked.LATE", "executor.TICK"):
        monkeypatch.setattr(f"streamqueue.worker.execution.{name}", 0.05)
    seen: list[str] = []

    def lines() -> list[Any]:
        return [line for line in caplog.records if getattr(line, "event", "") == "loop_blocked"]

    async def report(jobs: list[AsyncJob]) -> None:
        seen.extend(str(job.id) for job in jobs)
        threading.Event().wait(SHORT)

    caplog.set_level(logging.WARNING, "streamqueue")
    worker = start.prepare()
    worker.worker.handler("default", batch=2)(report)
    await start.begin(worker)
    await queue.put_many([{}, {}])

    found = await wait_until_async(lambda: [one for one in lines() if one.task == "report"], "one")
    assert found[0].job_id in seen
    assert found[0].place.endswith("in report")
