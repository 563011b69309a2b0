"""Several groups and lone workers on one collection, and workers that leave theirs.

Law: the race is shaped.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.processes import dispatcher as dispatchers
from streamqueue.worker import scheduler
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.members import Members, Notes, completed, lost, until_done
from tests.worker.started import StartedWorker, WorkerStarter
from tests.worker.test_worker_partition import add_ghost, consumers
from tests.worker.test_worker_stuck import insert_stuck


async def until_acquainted(
    queue: AsyncMongoQueue, jobs: Collection[Any], *workers: StartedWorker
) -> None:
    """Put jobs until every worker has had some: they have noticed one another."""
    while not all(worker.metric("streamqueue_attempts_total") >= 5 for worker in workers):
        await queue.put({})
        await until_done(jobs)


# several


@pytest.mark.slow
async def test_two_tables_share_lone_jobs_by_turns(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await members.open()
    here = await members.start_many(2, notes)
    await members.open()
    there = await members.start_many(2, notes)
    await until_acquainted(queue, jobs, *here, *there)
    before = lost(*here, *there)
    shares = completed(*here), completed(*there)

    for n in range(60):
        await queue.put({"n": n})
        await until_done(jobs)

    assert Counter(n for n in notes.seen if n is not None) == Counter(range(60))
    # Without turns one of two claims is lost: 60. On a busy machine many turns pass unused.
    assert lost(*here, *there) - before <= 45
    assert completed(*here) - shares[0] >= 10
    assert completed(*there) - shares[1] >= 10


@pytest.mark.slow
async def test_two_tables_share_a_backlog_and_lose_few_claims(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.001)
    await members.open()
    here = await members.start_many(2, notes, concurrency=20)
    await members.open()
    there = await members.start_many(2, notes, concurrency=20)

    await queue.put_many([{"n": n} for n in range(4000)])
    await until_done(jobs, 30)

    assert Counter(notes.seen) == Counter(range(4000))
    assert lost(*here, *there) <= 600
    assert min(completed(*here), completed(*there)) >= 400


@pytest.mark.slow
async def test_a_table_and_a_lone_worker_share_jobs_by_turns(
    members: Members, start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await members.open()
    joined = await members.start_many(3, notes)
    alone = await start(notes, sweep_interval=None)
    await until_acquainted(queue, jobs, *joined, alone)
    before = lost(*joined, alone)

    for n in range(60):
        await queue.put({"n": n})
        await until_done(jobs)
    await queue.put_many([{"n": n} for n in range(60, 1000)])
    await until_done(jobs, 10)

    assert Counter(n for n in notes.seen if n is not None) == Counter(range(1000))
    assert lost(*joined, alone) - before <= 250


@pytest.mark.few(1)
@pytest.mark.parametrize("waiting", [0, 100])
async def test_jobs_whose_turn_is_a_consumers_that_never_comes_are_handed_out_soon(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], waiting: int
) -> None:
    add_ghost(jobs)
    notes = Notes()
    await queue.put_many([{"n": n} for n in range(waiting)])
    await members.open()
    await members.start_many(2, notes)

    for n in range(waiting, waiting + 20):
        await queue.put({"n": n})
        await notes.until_seen(n + 1)


async def test_a_dispatcher_that_may_not_read_the_list_of_consumers_deals_all_the_same(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    add_ghost(jobs)
    notes = Notes()
    namespace = f"{jobs.database.name}.{consumers(jobs).name}"
    with failing(client, "find", "delete", "update", app=None, errorCode=13, namespace=namespace):
        await members.open()
        await members.start_many(2, notes)
        for n in range(10):
            await queue.put({"n": n})
            await notes.until_seen(n + 1)
        await queue.put_many([{"n": n} for n in range(10, 200)])
        await notes.until_seen(200)


# leaving


async def test_a_worker_that_is_stopped_leaves_its_jobs_to_the_others(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.01)
    await members.open()
    workers = await members.start_many(3, notes, concurrency=2)
    await queue.put_many([{"n": n} for n in range(200)])
    await notes.until_seen(20)

    await workers[0].stop()
    await workers[1].stop()
    await until_done(jobs, 5)

    assert Counter(notes.seen) == Counter(range(200))
    await wait_until_async(lambda: completed(*workers) == 200, "each is counted")


async def test_a_worker_that_was_stopped_between_jobs_is_sent_no_more(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await members.open()
    first, second = await members.start_many(2, notes)

    await first.stop()
    for n in range(10):
        await queue.put({"n": n})
        await notes.until_seen(n + 1)

    await wait_until_async(lambda: completed(second) == 10, "each is counted")
    assert completed(first) == 0


async def test_a_worker_drains_when_its_dispatcher_has_ended_first(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.3)
    dispatcher = await members.open()
    [worker] = await members.start_many(1, notes, concurrency=2)
    await queue.put_many([{"n": n} for n in range(2)])
    await notes.until_seen(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatcher.stop)
        tasks.start_soon(worker.stop)

    assert worker.outcomes() == {"completed": 2}
    assert jobs.count_documents({}) == 0


async def test_jobs_that_a_stopped_worker_gives_back_are_run_by_others_at_once(
    members: Members, queue: AsyncMongoQueue
) -> None:
    long, short = Notes(30), Notes()
    await members.open()
    first = await members.start(long, concurrency=3, drain_timeout=0)
    await queue.put_many([{"n": n} for n in range(3)])
    await long.until_seen(3)
    await members.start_many(1, short)

    await first.stop()

    await short.until_seen(3)


# at random


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
async def test_whatever_comes_and_goes_no_job_is_left_while_a_slot_is_free(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], seed: int
) -> None:
    choose = random.Random(seed)
    seen: list[int] = []

    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(job.data["seconds"])
        seen.append(job.data["n"])

    dispatcher = await members.open()
    workers = await members.start_many(3, handler, concurrency=choose.choice([1, 2, 20, 50]))
    put = 0
    for _ in range(25):
        kind = choose.choice(["put", "put", "many", "many", "late", "leave", "dispatcher"])
        count = {"many": choose.choice([5, 40, 80, 300]), "late": 10, "put": 1}.get(kind, 5)
        seconds = choose.choice([0, 0, 0.001, 0.01])
        new = [{"n": put + n, "seconds": seconds} for n in range(count)]
        put += count
        await queue.put_many(new, delay=choose.random() * 0.1 if kind == "late" else None)
        if kind == "leave":
            worker = workers.pop(0)
            workers.append(await members.start(handler, concurrency=choose.choice([1, 5])))
            await worker.stop()
        elif kind == "dispatcher":
            await dispatcher.stop()
            dispatcher = await members.open()
            for worker in workers:
                members.connect(worker)
        if choose.random() < 0.6:
            await until_done(jobs, 20)
    await until_done(jobs, 20)

    assert sorted(seen) == list(range(put))
    await members.until_idle(0.3)


# the sweep


async def test_at_a_table_nothing_is_missed(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "CONFIRM_AFTER", 0.5)
    monkeypatch.setattr(dispatchers, "TICK", 0.02)
    await members.open()
    workers = [await members.start(Notes(), sweep_interval=0.1, concurrency=2) for _ in range(3)]

    for n in range(100):
        await queue.put({"n": n})
    await queue.put_many([{"n": n} for n in range(200)])
    await queue.put_many([{"n": n} for n in range(50)], delay=0.2)
    await until_done(jobs, 5)

    assert [worker.metric("streamqueue_missed_wakeups_total") for worker in workers] == [0, 0, 0]


@pytest.mark.slow
async def test_a_job_that_nobody_can_claim_is_no_missed_wakeup_for_any_worker(
    members: Members, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "CONFIRM_AFTER", 0.01)
    monkeypatch.setattr(dispatchers, "TICK", 0.02)
    insert_stuck(jobs, "ready")
    await members.open()
    workers = [await members.start(Notes(), sweep_interval=0.1) for _ in range(3)]

    def sweeps(worker: StartedWorker) -> int:
        finds = worker.commands.named("find")
        return sum(sent.command.get("limit", 0) >= scheduler.SWEEP_LIMIT for sent in finds)

    await wait_until_async(
        lambda: all(sweeps(worker) >= 60 for worker in workers), "all have looked several times", 30
    )
    assert [worker.metric("streamqueue_missed_wakeups_total") for worker in workers] == [0, 0, 0]
