"""The concurrency of a handler: a queue that may not take all the slots, beside others.

Laws: nobody polls; nothing is stuck.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, ConfigurationError
from streamqueue.stream import watcher
from streamqueue.worker import backlog
from tests.waiting import wait_until_async
from tests.worker.members import Members, StartedDispatcher
from tests.worker.started import StartedWorker, WorkerStarter

SOON = 2.0
"""Seconds: long before any sweep, of which these workers have none."""


class Held:
    """Handlers of several queues that return when they are told to, and note what runs."""

    def __init__(self) -> None:
        self.order: list[tuple[str, Any]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._may_end: dict[str, anyio.Semaphore] = {}

    def register(self, worker: StartedWorker, queue: str, **settings: Any) -> None:
        self._may_end.setdefault(queue, anyio.Semaphore(0))
        worker.worker.handler(queue, **settings)(self._handle)

    async def _handle(self, job: AsyncJob) -> None:
        self.order.append((job.queue, job.data.get("n")))
        self.running[job.queue] += 1
        self.most[job.queue] = max(self.most[job.queue], self.running[job.queue])
        try:
            await self._may_end[job.queue].acquire()
        finally:
            self.running[job.queue] -= 1

    def let_end(self, queue: str, count: int = 1) -> None:
        for _ in range(count):
            self._may_end[queue].release()

    async def until_begun(self, queue: str, count: int, within: float = SOON) -> None:
        await wait_until_async(
            lambda: sum(name == queue for name, _ in self.order) >= count,
            f"{count} of {queue} began",
            within,
        )

    async def until_running(self, **counts: int) -> None:
        await wait_until_async(
            lambda: all(self.running[queue] == count for queue, count in counts.items()),
            f"{counts} run",
            SOON,
        )


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def queues(async_jobs: AsyncCollection[Any]) -> Callable[[str], AsyncMongoQueue]:
    return lambda name: AsyncMongoQueue(async_jobs, name=name)


@pytest.fixture
def begin(start: WorkerStarter, held: Held) -> Any:
    """Starts a worker of 4 slots, of which ``slow`` may have 2, and ``quick`` all."""

    async def begin(slow: int | None = 2, concurrency: int = 4, **settings: Any) -> StartedWorker:
        settings = {"concurrency": concurrency, "sweep_interval": None, **settings}
        worker = start.prepare(**settings)
        held.register(worker, "slow", concurrency=slow)
        held.register(worker, "quick")
        await start.begin(worker)
        return worker

    return begin


@pytest.fixture(params=["before", "after"])
def put_before(request: pytest.FixtureRequest) -> bool:
    """Whether jobs are there before the worker is, which finds them by a look, or after."""
    return bool(request.param == "before")


async def test_a_queue_takes_no_more_slots_than_its_concurrency(
    begin: Any, held: Held, queues: Any, jobs: Collection[Any], put_before: bool
) -> None:
    worker = None if put_before else await begin()
    await queues("slow").put_many([{"n": n} for n in range(6)])
    await queues("quick").put_many([{"n": n} for n in range(6)])
    worker = worker or await begin()

    await held.until_running(slow=2, quick=2)
    await worker.until_idle()
    assert held.most == {"slow": 2, "quick": 2}


async def test_jobs_that_are_held_back_are_not_written_to(
    begin: Any, held: Held, queues: Any, jobs: Collection[Any], put_before: bool
) -> None:
    worker = None if put_before else await begin()
    await queues("slow").put_many([{"n": n} for n in range(6)])
    before = {job["_id"]: job for job in jobs.find({"payload.n": {"$gt": 1}})}
    worker = worker or await begin()

    await held.until_running(slow=2)
    await worker.until_idle()

    ids = {"_id": {"$in": list(before)}, "state": "ready"}
    assert {job["_id"]: job for job in jobs.find(ids)} == before


async def test_a_slot_that_comes_free_is_taken_at_once_and_in_order(
    begin: Any, held: Held, queues: Any
) -> None:
    await begin()
    await queues("slow").put_many([{"n": n} for n in range(4)])
    await held.until_begun("slow", 2)

    for begun in (3, 4):
        held.let_end("slow")
        await held.until_begun("slow", begun)

    assert held.order == [("slow", n) for n in range(4)]
    assert held.most["slow"] == 2


async def test_a_flood_of_urgent_jobs_that_are_held_back_stands_before_nobody(
    begin: Any, held: Held, queues: Any, put_before: bool
) -> None:
    worker = None if put_before else await begin()
    await queues("slow").put_many([{"n": n} for n in range(3000)], priority=9)
    await queues("quick").put_many([{"n": n} for n in range(2)])
    worker = worker or await begin()

    await held.until_running(slow=2, quick=2)


async def test_with_jobs_held_back_a_lone_job_of_another_queue_starts_by_its_event(
    begin: Any, held: Held, queues: Any
) -> None:
    worker = await begin()
    await queues("slow").put_many([{"n": n} for n in range(6)])
    await held.until_running(slow=2)
    await worker.until_idle()
    worker.commands.forget()

    await queues("quick").put({"n": 1})

    await held.until_begun("quick", 1)
    assert worker.commands.named("find", "aggregate") == []


async def test_a_worker_that_holds_jobs_back_sends_nothing(
    begin: Any, held: Held, queues: Any
) -> None:
    worker = await begin(timeout=60, reap_interval=60)
    await queues("slow").put_many([{"n": n} for n in range(6)])
    await held.until_running(slow=2)

    await worker.until_idle(1.0)


async def test_the_sweep_does_not_call_what_is_held_back_unannounced(
    begin: Any, held: Held, queues: Any
) -> None:
    worker = await begin(sweep_interval=0.1)
    await queues("slow").put_many([{"n": n} for n in range(6)])
    await held.until_running(slow=2)
    worker.commands.forget()

    await wait_until_async(lambda: len(worker.commands.named("find")) > 5, "it has swept")

    assert worker.metric("streamqueue_missed_wakeups_total") == 0


async def test_a_priority_counts_within_its_queue_alone(
    begin: Any, held: Held, queues: Any
) -> None:
    for n, (queue, priority) in enumerate([("slow", 1), ("quick", 3), ("slow", 2), ("quick", 0)]):
        await queues(queue).put({"n": n}, priority=priority)

    await begin()
    await held.until_running(slow=2, quick=2)

    by_queue = {name: [n for queue, n in held.order if queue == name] for name in held.running}
    assert by_queue == {"quick": [1, 3], "slow": [2, 0]}


async def test_a_queue_alone_may_have_no_more_than_its_concurrency_either(
    start: WorkerStarter, held: Held, queues: Any
) -> None:
    worker = start.prepare(concurrency=5, sweep_interval=None)
    held.register(worker, "slow", concurrency=1)
    await start.begin(worker)
    await queues("slow").put_many([{"n": n} for n in range(3)])

    for begun in (1, 2, 3):
        await held.until_begun("slow", begun)
        held.let_end("slow")

    await worker.until_outcomes(completed=3)
    assert held.most["slow"] == 1


async def test_two_workers_have_two_such_shares(begin: Any, held: Held, queues: Any) -> None:
    workers = [await begin(slow=1) for _ in range(2)]
    await queues("slow").put_many([{"n": n} for n in range(4)])

    await held.until_running(slow=2)
    for worker in workers:
        await worker.until_idle()
    assert held.most["slow"] == 2


async def test_a_mixed_load_is_done_within_all_shares(start: WorkerStarter, queues: Any) -> None:
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()
    done: Counter[int] = Counter()

    async def handler(job: AsyncJob) -> None:
        running[job.queue] += 1
        most[job.queue] = max(most[job.queue], running[job.queue])
        await anyio.sleep(job.data["seconds"])
        done[job.data["n"]] += 1
        running[job.queue] -= 1

    shares = {"one": 1, "three": 3, "all": None}
    workers = []
    for _ in range(2):
        worker = start.prepare(concurrency=6, sweep_interval=None)
        for queue, share in shares.items():
            worker.worker.handler(queue, concurrency=share)(handler)
        await start.begin(worker)
        workers.append(worker)
    chance = random.Random(17)
    for n in range(0, 600, 20):
        queue = queues(chance.choice(list(shares)))
        payloads = [{"n": n + i, "seconds": chance.choice((0, 0, 0.003))} for i in range(20)]
        await queue.put_many(payloads, priority=chance.randint(0, 2))

    await wait_until_async(lambda: len(done) == 600, "all are done", 30)
    assert (set(done.values()), most["one"] <= 2, most["three"] <= 6) == ({1}, True, True)


async def test_a_lone_job_is_heard_of_while_a_queue_with_few_slots_is_worked_off(
    start: WorkerStarter, queues: Any
) -> None:
    """What waits for the few slots is no reason to leave the stream alone."""
    begun: Counter[str] = Counter()

    async def handler(job: AsyncJob) -> None:
        begun[job.queue] += 1
        await anyio.sleep(job.data["seconds"])

    worker = start.prepare(sweep_interval=None)
    worker.worker.handler("slow", concurrency=1)(handler)
    worker.worker.handler("quick")(handler)
    await queues("slow").put_many([{"seconds": 0.005} for _ in range(3000)])
    await queues("quick").put_many([{"seconds": 0} for _ in range(3000)])
    await start.begin(worker)
    await wait_until_async(lambda: begun["quick"] == 3000, "the others are done", 30)

    await queues("quick").put({"seconds": 0})

    await wait_until_async(lambda: begun["quick"] == 3001, "it began", 1.0)
    assert begun["slow"] < 3000


async def test_a_queue_with_few_slots_is_looked_at_while_the_stream_rests(
    start: WorkerStarter, queues: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed while a backlog is worked off: no event tells of its jobs."""
    monkeypatch.setattr(watcher, "REST_AFTER", 0.2)
    monkeypatch.setattr(backlog, "OFTEN", 60.0)
    monkeypatch.setattr(backlog, "MAX_CHUNK", 64)
    begun: Counter[str] = Counter()

    async def handler(job: AsyncJob) -> None:
        begun[job.queue] += 1
        await anyio.sleep(0.01)

    worker = start.prepare(concurrency=5, sweep_interval=None)
    worker.worker.handler("few", concurrency=2)(handler)
    worker.worker.handler("many")(handler)
    await queues("many").put_many([{}] * 3000)
    await start.begin(worker)
    await wait_until_async(lambda: worker.commands.named("ping"), "the stream is closed")

    await queues("few").put({}, priority=1)

    await wait_until_async(lambda: begun["few"], "it began")
    assert begun["many"] < 3000


# with a dispatcher


@pytest.fixture
def member(members: Members, held: Held) -> Any:
    """Starts a member of the dispatcher that may run so many jobs of ``slow``, and 4 in all."""

    async def begin(slow: int | None = 1) -> StartedWorker:
        worker = members.prepare(concurrency=4)
        held.register(worker, "slow", concurrency=slow)
        held.register(worker, "quick")
        members.connect(worker)
        await members.begin(worker)
        return worker

    return begin


async def open_dispatcher(members: Members, start: WorkerStarter, held: Held) -> StartedDispatcher:
    host = start.prepare(concurrency=4)
    held.register(host, "slow", concurrency=1)  # how many is each member's own to say
    held.register(host, "quick")
    return await members.open_for(host)


async def test_members_of_a_dispatcher_are_handed_what_they_have_room_for(
    start: WorkerStarter, members: Members, member: Any, held: Held, queues: Any, put_before: bool
) -> None:
    payloads = [{"n": n} for n in range(6)]
    if put_before:
        await queues("slow").put_many(payloads, priority=1)
        await queues("quick").put_many(payloads)
    await open_dispatcher(members, start, held)
    for _ in range(2):
        await member()
    if not put_before:
        await queues("slow").put_many(payloads, priority=1)
        await queues("quick").put_many(payloads)

    await held.until_running(slow=2, quick=6)
    await members.until_idle()
    assert held.most == {"slow": 2, "quick": 6}


async def test_a_slot_of_a_member_that_comes_free_is_taken_at_once(
    start: WorkerStarter, members: Members, member: Any, held: Held, queues: Any
) -> None:
    await open_dispatcher(members, start, held)
    for _ in range(2):
        await member()
    await queues("slow").put_many([{"n": n} for n in range(6)])
    await held.until_begun("slow", 2)
    await members.until_idle()

    for begun in (3, 4, 5, 6):
        held.let_end("slow")
        await held.until_begun("slow", begun)

    assert held.most["slow"] == 2


async def test_a_dispatcher_whose_members_hold_jobs_back_reads_nothing(
    start: WorkerStarter, members: Members, member: Any, held: Held, queues: Any
) -> None:
    await open_dispatcher(members, start, held)
    await member()
    await queues("slow").put_many([{"n": n} for n in range(4)])
    await held.until_running(slow=1)

    await members.until_idle(1.0)


async def test_a_lone_job_goes_to_a_member_that_has_room_without_a_look_at_what_waits(
    start: WorkerStarter, members: Members, member: Any, held: Held, queues: Any
) -> None:
    dispatcher = await open_dispatcher(members, start, held)
    for slow in (1, 4):
        await member(slow)
    await members.until_idle()
    dispatcher.commands.forget()

    for n in range(5):
        await queues("slow").put({"n": n})
        await held.until_begun("slow", n + 1)

    # (It may look who else there is, and when the next job is due.)
    assert not [sent for sent in dispatcher.commands.named("find") if "'ready'" in str(sent)]


async def test_a_member_passes_back_what_it_has_no_room_for(
    members: Members, start: WorkerStarter, held: Held, queues: Any, jobs: Collection[Any]
) -> None:
    worker = members.prepare(concurrency=4)
    held.register(worker, "slow", concurrency=1)
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})
    await queues("slow").put_many([{"n": n} for n in range(3)])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(members.begin, worker)
        asked = await dispatcher.until_heard("ask")
        dispatcher.say({"jobs": list(jobs.find()), "more": False})
        await held.until_running(slow=1)
        said = await dispatcher.until_heard("idle")

    assert (asked["room"], said["room"], said["more"]) == ({"slow": 1}, {"slow": 0}, True)


@pytest.mark.slow
async def test_members_work_off_a_mixed_load_within_their_shares(
    start: WorkerStarter, members: Members, member: Any, held: Held, queues: Any
) -> None:
    await open_dispatcher(members, start, held)
    for _ in range(2):
        await member()
    held.let_end("slow", 300)
    held.let_end("quick", 300)

    for n in range(0, 300, 30):
        for queue in ("slow", "quick"):
            await queues(queue).put_many([{"n": n + i} for i in range(30)])

    await wait_until_async(lambda: len(held.order) == 600, "all have run", 30)
    assert (held.most["slow"] <= 2, len(set(held.order))) == (True, 600)


# registration


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5, "2", 10_001])
async def test_a_concurrency_is_a_number_of_slots(start: WorkerStarter, concurrency: Any) -> None:
    with pytest.raises(ConfigurationError, match="concurrency must be a whole number from 1"):
        start.prepare().worker.handler("slow", concurrency=concurrency)


async def test_a_handler_that_may_have_more_slots_than_there_are_has_them_all(
    begin: Any, held: Held, queues: Any
) -> None:
    await begin(slow=50)
    await queues("slow").put_many([{"n": n} for n in range(6)])

    await held.until_running(slow=4)
