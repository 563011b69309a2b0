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


def compute() -> None:
    threading.Event().wait(SECONDS)


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
