"""Several queues of one worker share its slots by weight: what is held counts, not what is begun.

Law: nobody polls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, ConfigurationError
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import StartedWorker, WorkerStarter
from tests.worker.test_worker_partition import add_ghost

SOON = 5.0
"""Seconds: long before any sweep, of which these workers have none."""
SLOTS = 8
LONG = 200
"""A backlog that no test comes to the end of, when its jobs are long."""


class Work:
    """Handlers that note what runs: those of long jobs return when they are told to, others soon.

    Attributes:
        running: how many jobs of each queue run now.
        least, most: how many of them did, since the last :meth:`watch`.
        begun: how many jobs of each queue have begun.
    """

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.least: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self._may_end: dict[str, anyio.Semaphore] = {}

    def register(self, worker: StartedWorker, queue: str, *, long: bool, **settings: Any) -> None:
        if long:
            self._may_end.setdefault(queue, anyio.Semaphore(0))
        worker.worker.handler(queue, **settings)(self._handle)

    async def _handle(self, job: AsyncJob) -> None:
        queue = job.queue
        self.begun[queue] += 1
        self._note(queue, 1)
        try:
            if queue in self._may_end:
                await self._may_end[queue].acquire()
            else:
                await anyio.sleep(0.01)
        finally:
            self._note(queue, -1)

    def _note(self, queue: str, change: int) -> None:
        count = self.running[queue] = self.running[queue] + change
        self.least[queue] = min(self.least.get(queue, count), count)
        self.most[queue] = max(self.most.get(queue, count), count)

    def watch(self) -> None:
        self.least, self.most = dict(self.running), dict(self.running)

    def let_end(self, queue: str, count: int = 1) -> None:
        for _ in range(count):
            self._may_end[queue].release()

    async def until_begun(self, queue: str, more: int) -> None:
        count = self.begun[queue] + more
        await wait_until_async(
            lambda: self.begun[queue] >= count, f"{more} more of {queue} began", 20
        )

    async def until_running(self, **counts: int) -> None:
        await wait_until_async(
            lambda: all(self.running[queue] == count for queue, count in counts.items()),
            f"{counts} run: {self.running}",
            SOON,
        )


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def queues(async_jobs: AsyncCollection[Any]) -> Callable[[str], AsyncMongoQueue]:
    return lambda name: AsyncMongoQueue(async_jobs, name=name)


@pytest.fixture
def prepare(start: WorkerStarter, work: Work) -> Any:
    """Prepares a worker of long jobs of these queues, with their weights."""

    def prepare(slots: int = SLOTS, **weights: int) -> StartedWorker:
        worker = start.prepare(concurrency=slots, sweep_interval=None)
        for queue, weight in weights.items():
            work.register(worker, queue, long=True, weight=weight)
        return worker

    return prepare


async def put(queues: Any, count: int = LONG, *names: str) -> None:
    for name in names:
        await queues(name).put_many([{}] * count)


async def completed(worker: StartedWorker, count: int) -> None:
    """Wait until so many jobs have completed, whatever was claimed ahead and given back."""
    await wait_until_async(
        lambda: worker.outcomes().get("completed", 0) >= count, f"{count} completed", 60
    )


def sent_by(worker: StartedWorker) -> Counter[str]:
    """Count what it has sent, but for reads of its stream, and of who else there is: how often it
    looks for that is a matter of time."""
    sent = worker.commands.besides("getMore")
    return Counter(each.name for each in sent if each.command[each.name] != "jobs.consumers")


# the shares


async def test_long_and_short_jobs_hold_half_the_slots_each(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(long=1)
    work.register(worker, "short", long=False)
    await put(queues, LONG, "long")
    await put(queues, 3000, "short")
    await start.begin(worker)
    await work.until_begun("short", 100)
    await work.until_running(long=SLOTS // 2)

    work.watch()
    for _ in range(6):
        work.let_end("long")
        await work.until_begun("long", 1)
        await work.until_begun("short", 10)

    half = SLOTS // 2
    assert half - 1 <= work.least["long"] <= work.most["long"] <= half + 1
    assert work.most["short"] <= half + 1
    assert (work.begun["short"] < 3000, work.begun["long"] < LONG) == (True, True)


@pytest.mark.few(1)
@pytest.mark.parametrize("others", [0, 3])
async def test_a_queue_whose_jobs_are_left_to_a_dead_consumer_lends_none_of_its_slots(
    start: WorkerStarter,
    prepare: Any,
    work: Work,
    queues: Any,
    jobs: Collection[Any],
    others: int,
) -> None:
    """Half of the backlog is the turn of one that is on the list and claims nothing."""
    empty = [f"other{n}" for n in range(others)]
    add_ghost(jobs, queues=["long", "short", *empty])
    worker = prepare(long=1)
    for queue in ("short", *empty):
        work.register(worker, queue, long=False)
    await put(queues, LONG, "long")
    await put(queues, 2000, "short")
    await start.begin(worker)
    await work.until_running(long=SLOTS // 2)

    work.watch()
    await work.until_begun("short", 1500)

    assert work.most["long"] == SLOTS // 2


async def test_weights_are_shares_of_the_slots_that_are_held(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(heavy=3, light=1)
    await put(queues, LONG, "light", "heavy")
    await start.begin(worker)
    await work.until_running(heavy=6, light=2)

    for _ in range(10):  # light ones are much shorter
        work.let_end("light", 2)
        await work.until_begun("light", 2)
    work.let_end("heavy", 3)
    await work.until_begun("heavy", 3)

    await work.until_running(heavy=6, light=2)


async def test_a_queue_alone_holds_all_and_gives_back_what_it_was_lent_as_its_jobs_end(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(first=1, other=1)
    await put(queues, LONG, "first")
    await start.begin(worker)
    await work.until_running(first=SLOTS)
    await put(queues, LONG, "other")
    await worker.until_idle()  # it has heard of them

    for ended in range(1, SLOTS // 2 + 1):
        work.let_end("first")
        await work.until_running(first=SLOTS - ended, other=ended)

    work.let_end("first")
    await work.until_begun("first", 1)
    await work.until_running(first=SLOTS // 2, other=SLOTS // 2)


async def test_the_first_job_of_a_newcomer_has_the_next_slot_that_ends(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(flood=1, other=1, late=1)
    await put(queues, LONG, "flood", "other")
    await start.begin(worker)
    await work.until_running(flood=4, other=4)
    await queues("flood").put_many([{}] * 100, priority=9)

    await queues("late").put({})
    await worker.until_idle()
    work.let_end("flood")

    await work.until_running(late=1, flood=3, other=4)


async def test_a_flood_of_short_jobs_is_in_nobodys_way(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(2, late=1)
    work.register(worker, "flood", long=False)
    await put(queues, 4000, "flood")
    await start.begin(worker)
    await work.until_begun("flood", 50)

    await queues("late").put({})
    await work.until_running(late=1)

    assert work.begun["flood"] < 2000


async def test_the_share_of_a_paused_queue_is_lent(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(first=1, other=1)
    await put(queues, LONG, "first", "other")
    await queues("other").pause()
    await start.begin(worker)
    await work.until_running(first=SLOTS)

    await queues("other").resume()
    await worker.until_idle()
    work.let_end("first", 4)

    await work.until_running(first=4, other=4)


async def test_what_a_queue_may_not_have_is_shared_by_the_others(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(first=1, other=1)
    work.register(worker, "few", long=True, concurrency=2)
    await put(queues, LONG, "few", "first", "other")
    await start.begin(worker)

    await work.until_running(few=2, first=3, other=3)


async def test_jobs_that_end_together_leave_their_slots_to_their_own_queues(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    worker = prepare(first=1, other=1)
    await put(queues, LONG, "first", "other")
    await start.begin(worker)
    await work.until_running(first=4, other=4)

    work.let_end("first", 4)
    await work.until_begun("first", 4)

    await work.until_running(first=4, other=4)


# a dispatcher's members


async def test_the_shares_hold_in_each_member_of_a_dispatcher(
    start: WorkerStarter, members: Members, prepare: Any, work: Work, queues: Any
) -> None:
    def member() -> tuple[StartedWorker, Work]:
        own, worker = Work(), members.prepare(concurrency=SLOTS)
        own.register(worker, "long", long=True)
        own.register(worker, "short", long=False)
        members.connect(worker)
        return worker, own

    host = prepare(long=1)
    work.register(host, "short", long=False)
    await put(queues, LONG, "long")
    await put(queues, 3000, "short")
    await members.open_for(host)
    started = [member() for _ in range(2)]
    for worker, _ in started:
        await members.begin(worker)

    for _, own in started:
        await own.until_begun("short", 30)
        await own.until_running(long=SLOTS // 2)
        own.watch()
    for _ in range(3):
        for _, own in started:
            own.let_end("long")
            await own.until_begun("long", 1)
            await own.until_begun("short", 10)

    half = SLOTS // 2
    for _, own in started:
        assert half - 1 <= own.least["long"] <= own.most["long"] <= half + 1
        assert own.most["short"] <= half + 1


async def test_a_newcomer_has_the_next_slot_that_ends_in_any_member_of_a_dispatcher(
    start: WorkerStarter, members: Members, prepare: Any, work: Work, queues: Any
) -> None:
    await put(queues, LONG, "flood")
    await members.open_for(prepare(flood=1, late=1))
    for _ in range(2):
        worker = members.prepare(concurrency=4)
        work.register(worker, "flood", long=True)
        work.register(worker, "late", long=True)
        members.connect(worker)
        await members.begin(worker)
    await work.until_running(flood=8)

    await queues("late").put({})
    await members.until_idle()
    work.let_end("flood")

    await work.until_running(late=1, flood=7)


# what it costs


@pytest.fixture
def of_many(start: WorkerStarter, work: Work) -> Callable[[int], StartedWorker]:
    """Prepares a worker of so many queues."""

    def of_many(count: int) -> StartedWorker:
        worker = start.prepare(concurrency=SLOTS, max_await=1)
        for number in range(count):
            work.register(worker, f"q{number}", long=False, weight=1 + number % 5)
        return worker

    return of_many


@pytest.mark.few(1)
@pytest.mark.parametrize("count", [2, 100])
async def test_an_idle_worker_of_many_queues_sends_what_one_of_a_single_queue_sends(
    start: WorkerStarter, of_many: Any, count: int
) -> None:
    sent = []
    for of in (1, count):
        worker = of_many(of)
        await start.begin(worker)
        await worker.until_idle(0.5)
        sent.append(sent_by(worker))
        worker.commands.forget()
        await anyio.sleep(1.5)
        assert len(worker.commands.all) <= 5
        await worker.stop()

    assert sent[0] == sent[1]


async def test_a_lone_job_in_any_of_many_queues_costs_the_claim_alone(
    start: WorkerStarter, of_many: Any, work: Work, queues: Any
) -> None:
    worker = of_many(100)
    await start.begin(worker)
    await worker.until_idle()
    worker.commands.forget()

    for name in ("q1", "q99", "q1"):
        await queues(name).put({})
        await work.until_begun(name, 1)
    await worker.until_outcomes(completed=3)

    assert sent_by(worker) == {"findAndModify": 3, "delete": 3}


@pytest.mark.slow
async def test_few_queues_with_work_among_many_are_found_in_few_reads(
    start: WorkerStarter, of_many: Any, queues: Any
) -> None:
    await put(queues, 300, "q7")
    await put(queues, 3, "q8", "q9")
    worker = of_many(190)
    await start.begin(worker)

    await completed(worker, 306)

    looks = [sent for sent in worker.commands.named("find", "aggregate") if "'ready'" in str(sent)]
    assert len(looks) <= 20


async def test_many_queues_that_all_have_work_are_read_many_at_a_time(
    start: WorkerStarter, work: Work, queues: Any
) -> None:
    worker = start.prepare(concurrency=20)
    for number in range(60):
        work.register(worker, f"q{number}", long=False)
        await put(queues, 5, f"q{number}")
    await start.begin(worker)

    await completed(worker, 300)

    reads = [sent for sent in worker.commands.named("find") if "'ready'" in str(sent)]
    assert len(reads) <= 30


async def test_queues_that_are_hidden_by_older_backlogs_have_their_shares_at_once(
    start: WorkerStarter, prepare: Any, work: Work, queues: Any
) -> None:
    names = [f"q{number}" for number in range(12)]
    await put(queues, LONG, *names)
    worker = prepare(24, **dict.fromkeys(names, 1))
    await start.begin(worker)

    await work.until_running(**dict.fromkeys(names, 2))

    assert len(worker.commands.claims()) <= 3


async def test_a_backlog_of_one_of_several_queues_is_claimed_many_at_a_time(
    start: WorkerStarter, work: Work, queues: Any
) -> None:
    worker = start.prepare(concurrency=100)
    work.register(worker, "full", long=False)
    work.register(worker, "empty", long=False)
    await put(queues, 1500, "full")
    await start.begin(worker)

    await completed(worker, 1500)

    assert len(worker.commands.claims()) <= 60


# registration


@pytest.mark.parametrize("weight", [0, -1, True, 1.5, "2", 1001, None])
async def test_a_weight_is_a_whole_number(start: WorkerStarter, weight: Any) -> None:
    with pytest.raises(ConfigurationError, match="weight must be a whole number from 1 to 1000"):
        start.prepare().worker.handler("emails", weight=weight)
