"""No job put at any moment around the opening of the stream is left waiting.

Law: the document is the truth.
"""

from __future__ import annotations

import random
import time
from typing import Any

import anyio
import pytest
from pymongo import MongoClient

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP, WorkerStarter

STARTS = 50
PUTS_PER_START = 6
LONGEST_START = 0.15
LONGEST_WAIT = 5.0

SLOW = {"blockConnection": True, "blockTimeMS": 300}


@pytest.mark.slow
async def test_no_job_put_around_the_opening_of_a_stream_waits(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    handled: dict[int, float] = {}
    put: dict[int, float] = {}
    waits: list[float] = []
    start_took = LONGEST_START

    async def handler(job: AsyncJob) -> None:
        handled[job.data["n"]] = time.monotonic()

    async def put_at_random(n: int) -> None:
        await anyio.sleep(random.uniform(0, 1.3 * start_took))
        await queue.put({"n": n})
        put[n] = time.monotonic()

    for round_ in range(STARTS):
        numbers = range(round_ * PUTS_PER_START, (round_ + 1) * PUTS_PER_START)
        async with anyio.create_task_group() as puts:
            for n in numbers:
                puts.start_soon(put_at_random, n)
            began = time.monotonic()
            worker = await start(handler, sweep_interval=None, max_await=0.05)
            opened = time.monotonic()
            start_took = min(LONGEST_START, opened - began)
        await wait_until_async(
            lambda numbers=numbers: all(n in handled for n in numbers),
            "all of this round are handled",
        )
        waits += [handled[n] - max(put[n], opened) for n in numbers]
        await worker.stop()

    assert len(waits) == STARTS * PUTS_PER_START
    assert max(waits) < LONGEST_WAIT


async def nothing(job: AsyncJob) -> None:
    pass


async def test_a_job_put_while_a_stream_takes_its_time_to_open_is_found_by_the_scan_after_it(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    await queue.size()
    worker = start.prepare(nothing, sweep_interval=None)

    with failing(client, "aggregate", app=STREAM_APP, times=1, **SLOW) as hits:
        async with anyio.create_task_group() as opening:
            opening.start_soon(start.begin, worker)
            await wait_until_async(hits.hits, "it is being opened")
            await queue.put({"n": 1})

    await worker.until_outcomes(completed=1, within=LONGEST_WAIT)


async def test_a_job_put_while_a_stream_takes_its_time_to_reopen_is_found_by_the_scan_after_it(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    worker = await start(nothing, sweep_interval=None)
    await worker.until_idle()
    with failing(client, "getMore", app=STREAM_APP, times=1, errorCode=8000):
        await wait_until_async(
            lambda: worker.metric("streamqueue_stream_restarts_total"), "it broke"
        )

    # After an error it does not know, it pauses before it opens the stream again.
    with failing(client, "aggregate", app=STREAM_APP, times=1, **SLOW) as hits:
        await wait_until_async(hits.hits, "it is being reopened")
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1, within=LONGEST_WAIT)
