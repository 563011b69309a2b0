"""Consumers that know of one another: turns at jobs, shares of a backlog, and nobody needed for it.

Law: the race is shaped.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from bson import ObjectId
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.protocol.operations import SILENT_AFTER
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.worker.partition import Partition
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import StartedWorker, WorkerStarter


async def passes(job: AsyncJob) -> None:
    pass


def consumers(jobs: Collection[Any]) -> Collection[Any]:
    return jobs.database[f"{jobs.name}.consumers"]


def add_ghost(jobs: Collection[Any], *, silent: float = 0, queues: Any = ("default",)) -> None:
    """Enter a consumer that claims nothing, as one that has died or has no free slot."""
    consumers(jobs).update_one(
        {"_id": "ghost"},
        [
            {
                "$set": {
                    "queues": list(queues),
                    "seen_at": {"$subtract": ["$$NOW", int(silent * 1000)]},
                }
            }
        ],
        upsert=True,
    )


def lost(*workers: StartedWorker) -> float:
    """How many claims they have lost to one another."""
    return sum(w.metric("streamqueue_claims_total", result="lost") for w in workers)


# the list


async def test_a_worker_is_on_the_list_while_it_runs(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = await start(passes, consumer_id="ada", concurrency=7)
    [listed] = consumers(jobs).find()
    await worker.stop()

    assert (listed["_id"], listed["queues"], listed["concurrency"]) == ("ada", ["default"], 7)
    assert list(consumers(jobs).find()) == []


async def test_of_each_job_every_consumer_knows_its_turn_and_no_two_have_the_same(
    async_jobs: AsyncCollection[Any],
) -> None:
    store = AsyncStore(async_jobs)
    partition = [Partition(store, name, ["default"], 1) for name in ("ada", "bob", "eve")]
    for _ in range(2):  # the second time everybody sees all
        for one in partition:
            await one.join()

    ids: list[Any] = [*(ObjectId() for _ in range(30)), "a", 7, b"7", None, {"a": 1}, "\udc00"]
    for job_id in ids:
        job = {"_id": job_id, "queue": "default"}
        assert sorted(one.turn(job) for one in partition) == [0, 1, 2]
        assert [one.turn(job) == 0 for one in partition] == [
            bool(one.divide([job])[0]) for one in partition
        ]


async def test_jobs_put_one_after_the_other_are_divided_in_equal_shares(
    async_jobs: AsyncCollection[Any],
) -> None:
    store = AsyncStore(async_jobs)
    partition = [Partition(store, name, ["default"], 1) for name in ("ada", "bob", "eve")]
    for _ in range(2):
        for one in partition:
            await one.join()

    jobs = [{"_id": ObjectId(), "queue": "default"} for _ in range(300)]

    shares = [len(one.divide(jobs)[0]) for one in partition]
    assert sum(shares) == 300
    assert max(shares) - min(shares) <= 2  # the counter in the ids may wrap once


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"silent": SILENT_AFTER + 1}, id="silent for too long"),
        pytest.param({"queues": ["others"]}, id="of another queue"),
        pytest.param({"queues": [7, None]}, id="damaged"),
    ],
)
async def test_who_cannot_come_for_a_job_has_no_turn(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], entry: dict[str, Any]
) -> None:
    add_ghost(jobs, **entry)
    partition = Partition(AsyncStore(async_jobs), "ada", ["default"], 1)

    await partition.join()

    assert partition.count() == 1
    assert partition.turn({"_id": ObjectId(), "queue": "default"}) == 0


async def test_a_worker_without_the_right_to_write_the_list_works_as_if_alone(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: Any
) -> None:
    add_ghost(jobs)
    worker = start.prepare(passes, sweep_interval=None)

    namespace = f"{jobs.database.name}.{consumers(jobs).name}"
    with failing(
        client, "update", app=worker.app, times=1, errorCode=13, namespace=namespace
    ) as refusal:
        await start.begin(worker)
        assert refusal.hits() == 1
    await queue.put_many([{"n": n} for n in range(30)])

    await worker.until_outcomes(completed=30)
    assert [found["_id"] for found in consumers(jobs).find()] == ["ghost"]


# turns


async def test_idle_workers_leave_jobs_to_the_one_whose_turn_it_is(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    workers = [await start(passes) for _ in range(3)]
    while not all(worker.metric("streamqueue_attempts_total") >= 5 for worker in workers):
        await queue.put({})  # until they have noticed one another
        await wait_until_async(lambda: not jobs.count_documents({}), "it is done")
    before = lost(*workers)

    for _ in range(60):
        await queue.put({})
        await wait_until_async(lambda: not jobs.count_documents({}), "it is done")

    # Without turns two of three claims are lost: 120. On a busy machine some turns pass unused.
    assert lost(*workers) - before <= 40


async def test_a_consumer_whose_lease_ran_out_is_taken_off_the_list(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    add_ghost(jobs)
    await queue.put({})
    held = {"state": "running", "locked_by": "ghost", "lease": b"token", "attempts": 1}
    jobs.update_one({}, [{"$set": {**held, "locked_until": "$$NOW"}}])

    worker = await start(passes, consumer_id="ada", reap_interval=0.1)
    await worker.until_outcomes(completed=1)

    await wait_until_async(
        lambda: [found["_id"] for found in consumers(jobs).find()] == ["ada"], "it is gone"
    )


async def test_a_fleet_that_was_killed_holds_up_no_job_for_long(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    add_ghost(jobs)
    [ghost] = consumers(jobs).find()
    consumers(jobs).insert_many([{**ghost, "_id": f"ghost {n}"} for n in range(500)])
    worker = await start(passes, sweep_interval=None)

    for n in range(20):
        await queue.put({"n": n})
        await worker.until_outcomes(completed=n + 1, within=2)


@pytest.mark.parametrize("waiting", [0, 300])
async def test_jobs_whose_turn_is_a_consumers_that_never_comes_are_taken_by_others(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], waiting: int
) -> None:
    add_ghost(jobs)
    await queue.put_many([{"n": n} for n in range(waiting)])
    worker = await start(passes, sweep_interval=None)

    for n in range(20):
        await queue.put({"n": n})

    await worker.until_outcomes(completed=waiting + 20, within=5)


async def test_a_more_urgent_job_is_not_left_to_a_consumer_that_never_comes(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    add_ghost(jobs)
    seen: list[int] = []

    async def notes(job: AsyncJob) -> None:
        seen.append(job.priority)

    await queue.put_many([{"n": n} for n in range(100)])
    for _ in range(8):  # some of them are the ghost's to take
        await queue.put({}, priority=1)

    worker = await start(notes, concurrency=1, sweep_interval=None)
    await worker.until_outcomes(completed=108)

    assert seen == [1] * 8 + [0] * 100


# shares


@pytest.mark.slow
async def test_workers_that_share_a_backlog_lose_few_claims(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await queue.put_many([{"n": n} for n in range(4000)])
    async with anyio.create_task_group() as together:
        workers = [start.prepare(passes, concurrency=50) for _ in range(4)]
        for worker in workers:
            together.start_soon(start.begin, worker)

    await wait_until_async(lambda: not jobs.count_documents({}), "all jobs are done", 30)

    # Their first claims, and those ahead of them, may all go for the same head. (Without turns they
    # lose three of four: 12,000.)
    assert lost(*workers) <= 4 * 150 + 200


async def test_jobs_of_a_backlog_are_read_once_when_they_are_claimed(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    await queue.put_many([{"n": n} for n in range(400)])

    worker = await start(passes, concurrency=50)
    await worker.until_outcomes(completed=400)

    claims, reads = len(worker.commands.claims()), len(worker.commands.named("find"))
    assert claims <= 16
    # Reads of up to 200 ids, and those that look for what is scheduled or expired.
    assert reads - claims <= 14


async def test_large_jobs_of_a_backlog_are_read_when_they_are_claimed(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    sizes: list[int] = []

    async def notes(job: AsyncJob) -> None:
        sizes.append(len(job.data["text"]))

    await queue.put_many([{"text": "x" * size} for size in (1, 5000, 10, 100_000)])

    worker = await start(notes, concurrency=4)
    await worker.until_outcomes(completed=4)

    assert sorted(sizes) == [1, 10, 5000, 100_000]
