"""A client in any language inserts ``{queue, state: "ready", payload}`` and nothing else."""

from __future__ import annotations

from typing import Any

import anyio
from pymongo import WriteConcern
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

FOREIGN: dict[str, Any] = {"queue": "default", "state": "ready", "payload": {"n": "foreign"}}


async def test_a_foreign_job_wakes_an_idle_worker(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    seen = []

    async def handler(job: AsyncJob) -> None:
        seen.append((job.data, job.priority, job.attempts, job.max_attempts))

    worker = await start(handler, max_attempts=7, sweep_interval=None)
    await worker.until_idle()

    jobs.insert_one(FOREIGN.copy())

    await worker.until_outcomes(completed=1)
    assert seen == [({"n": "foreign"}, 0, 1, 7)]
    assert jobs.count_documents({}) == 0


async def test_foreign_jobs_from_before_the_start_are_run(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        pass

    jobs.insert_many([FOREIGN.copy() for _ in range(30)])

    worker = await start(handler, concurrency=3, sweep_interval=None)

    await worker.until_outcomes(completed=30)


async def test_a_foreign_job_has_its_turn_in_a_backlog_that_never_ends(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen: list[Any] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data["n"])

    async def keep_two_hundred_waiting() -> None:
        put = 0
        while "foreign" not in seen:
            if put - len(seen) < 200:
                await queue.put_many([{"n": n} for n in range(put, put + 100)])
                put += 100
            await anyio.sleep(0.002)

    await start(handler, concurrency=2, sweep_interval=None)
    async with anyio.create_task_group() as producer:
        producer.start_soon(keep_two_hundred_waiting)
        await wait_until_async(lambda: len(seen) > 100, "a backlog is being worked")
        jobs.insert_one(FOREIGN.copy())

        await wait_until_async(lambda: "foreign" in seen, "the foreign job had its turn")
        producer.cancel_scope.cancel()


async def test_an_unchecked_write_of_a_foreign_client_is_run_too(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        pass

    worker = await start(handler, sweep_interval=None)
    await worker.until_idle()

    jobs.with_options(write_concern=WriteConcern(0)).insert_one(FOREIGN.copy())

    await worker.until_outcomes(completed=1)
