"""What a rate costs: nothing until the next start may come, and nobody is told when a job ends.

Law: nobody polls.
"""

from __future__ import annotations

from typing import Any

import anyio
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.protocol.settings import BELL
from tests.contract.test_queue_limits import put_all, rule
from tests.waiting import wait_until_async
from tests.worker.started import Commands, WorkerStarter

SOON = 10.0
QUIET: dict[str, Any] = {"timeout": 300.0, "sweep_interval": None}


def rate(jobs: Collection[Any], count: int, seconds: float, **more: Any) -> None:
    rule(jobs, limits=[{"per": "queue", "rate": {"count": count, "seconds": seconds}, **more}])


async def test_where_only_a_rate_holds_jobs_back_the_end_of_one_rings_for_nobody(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    rate(jobs, 50, 1.0)
    ran: list[int] = []

    async def handler(job: AsyncJob) -> None:
        ran.append(job.data["n"])

    put_all(jobs, "-" * 10)
    await start(handler)
    await wait_until_async(lambda: len(ran) == 10, "10 jobs have run", SOON)
    await wait_until_async(lambda: not jobs.count_documents({"state": "running"}), "ended", SOON)

    assert jobs.count_documents({"_id": BELL}) == 0


async def test_a_job_under_a_rate_of_its_queue_and_one_of_its_group_runs_soon(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    quick = {"count": 20, "seconds": 1.0}
    rule(jobs, limits=[{"per": each, "rate": quick} for each in ("queue", "group")])
    ran = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        ran.set()

    put_all(jobs, "a")
    await start(handler, **QUIET)

    with anyio.fail_after(SOON):
        await ran.wait()


async def test_by_hand_it_rings_for_nobody_either(
    jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    rate(jobs, 50, 1.0)
    put_all(jobs, "---")

    for _ in range(3):
        job = await queue.next(wait=SOON)
        assert job is not None
        await job.complete()

    assert jobs.count_documents({"_id": BELL}) == 0


async def test_with_a_limit_of_running_jobs_besides_it_rings(
    jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    rate(jobs, 50, 1.0, running=1)
    put_all(jobs, "--")

    job = await queue.next(wait=SOON)
    assert job is not None
    await job.complete()

    assert jobs.count_documents({"_id": BELL}) == 1


async def test_jobs_that_are_put_before_the_next_start_may_come_are_not_looked_at(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    rate(jobs, 1, 3600.0)
    ran: list[int] = []

    async def handler(job: AsyncJob) -> None:
        ran.append(job.data["n"])

    put_all(jobs, "---")
    worker = await start(handler, **QUIET)
    await wait_until_async(lambda: len(ran) == 1, "one has run", SOON)
    await worker.until_idle(0.5)
    before = len(worker.commands.named("find"))

    put_all(jobs, "-" * 50)
    await anyio.sleep(0.5)

    assert len(worker.commands.named("find")) == before
    assert len(ran) == 1


async def test_many_that_wait_for_starts_in_one_queue_object_read_little_for_each(
    uri: str, jobs: Collection[Any]
) -> None:
    rate(jobs, 40, 1.0)
    put_all(jobs, "-" * 48)
    commands = Commands()

    async with (
        AsyncMongoClient(uri, tz_aware=True, event_listeners=[commands]) as client,
        AsyncMongoQueue(client[jobs.database.name][jobs.name]) as queue,
    ):

        async def consume() -> None:
            for _ in range(6):
                job = await queue.next(wait=600)  # whoever is not woken waits for as long
                assert job is not None
                await job.complete()

        with anyio.fail_after(4 * SOON):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(consume)

    assert len(commands.named("find")) <= 48 * 20
