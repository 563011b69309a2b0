"""Workers that go by the rules of a queue: limits over all of them, and the order of groups.

Law: a limit is a limit; nobody polls.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, MongoQueue
from streamqueue.protocol.limits import UNRULED
from streamqueue.worker.worker import settings_of
from tests.contract.test_queue_limits import put_all, rule
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import WorkerStarter

SOON = 10.0


class Running:
    """How many run at once, of all and of each group, and what ran in which order."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.of: Counter[str | None] = Counter()
        self.most_of = 0
        self.done: list[int] = []

    async def __call__(self, job: AsyncJob) -> None:
        group = job._record.group
        self.now += 1
        self.of[group] += 1
        self.most = max(self.most, self.now)
        self.most_of = max(self.most_of, self.of[group])
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.now -= 1
            self.of[group] -= 1
            self.done.append(job.data["n"])


@pytest.mark.slow
async def test_several_workers_keep_a_limit_and_use_it(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 3}])
    handler = Running(0.01)
    for _ in range(4):
        await start(handler, concurrency=5)

    put_all(jobs, "-" * 60)

    await wait_until_async(lambda: len(handler.done) == 60, "60 jobs have run", 4 * SOON)
    assert handler.most == 3
    assert sorted(handler.done) == list(range(60))


async def test_ordered_groups_run_side_by_side_each_in_its_order(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    handler = Running(0.005)
    put_all(jobs, "abcd" * 15)
    for _ in range(2):
        worker = start.prepare(concurrency=10)
        worker.worker.handler("default", ordered=True)(handler)
        await start.begin(worker)

    await wait_until_async(lambda: len(handler.done) == 60, "60 jobs have run", 4 * SOON)

    assert handler.most_of == 1
    assert handler.most > 1
    for first in range(4):
        ours = [n for n in handler.done if n % 4 == first]
        assert ours == sorted(ours)


async def test_a_place_that_comes_free_is_taken_at_once_by_whoever_waits_for_it(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "--")
    held = await queue.next()
    assert held is not None
    handler = Running()
    await start(handler)

    await held.complete()

    await wait_until_async(lambda: handler.done == [1], "the other job has run", SOON)


async def test_a_limit_that_is_set_on_a_busy_queue_holds_for_the_next_start(
    start: WorkerStarter, jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    handler = Running(0.05)
    worker = await start(handler, concurrency=10)
    put_all(jobs, "-" * 10)
    await wait_until_async(lambda: handler.most == 10, "all run", SOON)

    rule(jobs, limits=[{"per": "queue", "running": 2}])
    await queue.resume()  # rings
    ruled = settings_of(worker.worker).store.ruled
    await wait_until_async(lambda: "default" in ruled, "it has read the rules", SOON)
    await wait_until_async(lambda: handler.now == 0, "all have ended", SOON)
    handler.most = 0
    put_all(jobs, "-" * 10)

    await wait_until_async(lambda: len(handler.done) == 20, "20 jobs have run", 4 * SOON)
    assert handler.most == 2


async def test_members_of_a_dispatcher_keep_a_limit(
    members: Members, jobs: Collection[Any], blocking: MongoQueue
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 2}])
    handler = Running(0.01)
    await members.open()
    for _ in range(3):
        await members.start(handler, concurrency=4)

    put_all(jobs, "-" * 30)

    await wait_until_async(lambda: len(handler.done) == 30, "30 jobs have run", 4 * SOON)
    assert handler.most == 2


@pytest.fixture
def blocking(jobs: Collection[Any]) -> MongoQueue:
    return MongoQueue(jobs)


async def test_starts_keep_a_rate_over_all_workers(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "rate": {"count": 50, "seconds": 1.0}}])
    began: list[float] = []

    async def handler(_job: AsyncJob) -> None:
        began.append(anyio.current_time())

    put_all(jobs, "-" * 60)
    for _ in range(3):
        await start(handler)

    await wait_until_async(lambda: len(began) == 60, "60 jobs have run", 4 * SOON)
    began.sort()
    assert began[-1] - began[0] > 59 / 51 * 0.9


async def test_a_queue_object_waits_for_the_next_start(
    jobs: Collection[Any], queue: AsyncMongoQueue
) -> None:
    rule(jobs, limits=[{"per": "queue", "rate": {"count": 5, "seconds": 1.0}}])
    put_all(jobs, "---")
    began: list[datetime] = []

    for _ in range(3):
        job = await queue.next(wait=SOON)
        assert job is not None
        assert job.locked_at is not None
        began.append(job.locked_at)

    assert (began[2] - began[0]).total_seconds() > 0.3


async def test_rules_that_are_taken_away_while_jobs_are_chosen_by_them_end_no_worker(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    handler = Running()
    worker = await start(handler, handle_other, concurrency=4)
    await worker.until_idle()
    store = settings_of(worker.worker).store
    choose = store.choose

    async def choose_after(queue: str, most: int) -> Any:
        store.follow(queue, UNRULED)
        return await choose(queue, most)

    store.choose = choose_after  # type: ignore[method-assign]
    put_all(jobs, "-" * 5)

    await wait_until_async(lambda: len(handler.done) == 5, "5 jobs have run", 4 * SOON)


async def handle_other(job: AsyncJob) -> None:
    pass


async def test_what_waits_in_several_queues_starts_when_their_rules_are_taken_away(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    queues = [MongoQueue(jobs, name=name) for name in ("default", "handle_more")]
    go_on = anyio.Event()
    begun: Counter[str] = Counter()

    async def handle(job: AsyncJob) -> None:
        begun[job.queue] += 1
        await go_on.wait()

    async def handle_more(job: AsyncJob) -> None:
        await handle(job)

    for each in queues:
        each.limit(running=1)
        each.put_many([{}] * 3)
    worker = await start(handle, handle_more)
    await wait_until_async(lambda: begun.total() == 2, "one of each runs", SOON)
    await worker.until_idle()

    for each in queues:
        each.limit(running=None)

    try:
        await wait_until_async(lambda: begun.total() == 6, "all run", SOON)
    finally:
        go_on.set()
        for each in queues:
            each.close()
