"""Workers and limits: what is held back costs nothing, and starts as soon as there is room.

The leases are of five minutes, and once in that time a worker looks by itself: what starts within
seconds does so because somebody has said so.

Laws: a limit is a limit; nobody polls; the race is shaped.
"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.contract.looks import let_lease_run_out
from tests.contract.test_queue_limits import put_all, rule
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import WorkerStarter

SOON = 10.0
QUIET: dict[str, Any] = {"timeout": 300.0, "sweep_interval": None}


class Doors:
    """A handler that goes on when it is told to, and notes how many run at once."""

    def __init__(self, *, open_: bool = False) -> None:
        self.running: set[int] = set()
        self.most = 0
        self.ran: list[int] = []
        self._open = anyio.Event()
        if open_:
            self._open.set()

    async def __call__(self, job: AsyncJob) -> None:
        self.running.add(job.data["n"])
        self.most = max(self.most, len(self.running))
        await self._open.wait()
        await anyio.lowlevel.checkpoint()
        self.running.discard(job.data["n"])
        self.ran.append(job.data["n"])

    def open(self) -> None:
        self._open.set()

    async def until_running(self, count: int) -> None:
        await wait_until_async(lambda: len(self.running) >= count, f"{count} run", SOON)

    async def until_ran(self, count: int) -> None:
        await wait_until_async(lambda: len(self.ran) >= count, f"{count} have run", 4 * SOON)


# what is held back


async def test_what_is_held_back_is_written_to_as_often_as_any_other_job(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    """Twice, and many share a write: for its claim and for its end, however many wait."""
    handler = Doors(open_=True)
    rule(jobs, limits=[{"per": "queue", "running": 4}])
    put_all(jobs, "-" * 200)
    worker = await start(handler, concurrency=20, **QUIET)

    await worker.until_outcomes(completed=200)

    assert handler.most <= 4
    written = worker.commands.named("update", "findAndModify", "delete")
    on_jobs = [sent for sent in written if sent.command[sent.name] == jobs.name]
    assert len(on_jobs) <= 2.2 * 200


@pytest.mark.slow
async def test_one_place_that_is_free_has_few_try_to_take_it(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    handler = Doors(open_=True)
    rule(jobs, limits=[{"per": "queue", "running": 3}])
    workers = [await start(handler, concurrency=5, **QUIET) for _ in range(4)]

    put_all(jobs, "-" * 100)
    await handler.until_ran(100)

    assert handler.most <= 3
    tried = sum(len(worker.commands.claims()) for worker in workers)
    assert tried <= 1.5 * 100


async def test_a_worker_sends_nothing_while_all_that_waits_is_held_back(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "-" * 20)
    held = await queue.next()
    assert held is not None
    handler = Doors(open_=True)

    async def other(job: AsyncJob) -> None:
        await handler(job)

    one_queue = await start(handler, **QUIET)
    two_queues = await start(handler, other, **QUIET)

    await one_queue.until_idle(0.5)
    await two_queues.until_idle(0.5)
    assert not handler.ran


# room


async def test_a_limit_that_is_set_on_a_busy_queue_lets_the_next_start_when_enough_have_ended(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Doors()
    put_all(jobs, "-" * 10)
    worker = await start(handler, concurrency=20, **QUIET)
    await handler.until_running(10)
    await queue.limit(running=2)
    put_all(jobs, "-" * 5)
    await worker.until_idle(0.1)

    handler.open()

    await handler.until_ran(15)


async def test_what_was_claimed_by_hand_before_there_was_a_limit_makes_room_as_well(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    put_all(jobs, "--")
    held = await queue.next()
    assert held is not None
    await queue.limit(running=1)
    handler = Doors(open_=True)
    worker = await start(handler, **QUIET)
    await worker.until_idle(0.1)
    assert await queue.next() is None

    await held.complete()

    await handler.until_ran(1)


async def test_a_dead_consumer_leaves_its_places_to_others_as_soon_as_its_leases_are_over(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 3}])
    put_all(jobs, "-" * 6)
    assert len(await queue.claim(3)) == 3
    handler = Doors()
    worker = await start(handler, **QUIET)
    await worker.until_idle(0.1)

    let_lease_run_out(jobs)

    await handler.until_running(3)
    handler.open()
    await handler.until_ran(6)
    assert handler.most == 3


async def test_a_worker_that_is_stopped_leaves_its_place_to_others(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "--")
    first, second = Doors(), Doors(open_=True)
    leaving = await start(first, **QUIET)
    await first.until_running(1)
    staying = await start(second, **QUIET)
    await staying.until_idle(0.1)

    leaving.worker.stop()
    await leaving.until_idle(0.1)
    first.open()

    await second.until_ran(1)


async def test_a_limit_that_is_raised_is_used_at_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "-" * 6)
    handler = Doors()
    await start(handler, **QUIET)
    await handler.until_running(1)

    await queue.limit(running=3)
    await handler.until_running(3)
    await queue.limit(running=None)
    await handler.until_running(6)

    handler.open()
    await handler.until_ran(6)


async def test_members_of_a_dispatcher_obey_limits_of_some_of_their_queues(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 2}])
    handler, free = Doors(open_=True), Doors(open_=True)

    async def other(job: AsyncJob) -> None:
        await free(job)

    await members.open("other")
    for _ in range(2):
        await members.start(handler, other, concurrency=4, **QUIET)
    put_all(jobs, "-" * 30)
    jobs.update_many({"payload.n": {"$gte": 15}}, {"$set": {"queue": "other"}})

    await handler.until_ran(15)
    await free.until_ran(15)
    assert handler.most <= 2
    await members.until_idle(0.5)
