"""Claims: in batches, in order, shared fairly, and never lost when one fails.

Laws: an unknown outcome is not a failure; the race is shaped; batches form by themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest
from bson import ObjectId, Timestamp
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Retry
from streamqueue.protocol.schema import VALIDATOR
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, REPLICATION_TIMED_OUT, WRITE_FAULTS, failing
from tests.worker.started import WorkerStarter

READY: dict[str, Any] = {"queue": "default", "state": "ready"}


class Order:
    """A handler that notes the jobs in the order they come; each waits for a permit, if asked."""

    def __init__(self, *, permits: bool = False) -> None:
        self.seen: list[Any] = []
        self.attempts: list[int] = []
        self._permits = anyio.Semaphore(0) if permits else None

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append(job.data["n"])
        self.attempts.append(job.attempts)
        if self._permits is not None:
            await self._permits.acquire()

    def permit(self, jobs: int = 1) -> None:
        """Let so many handlers return."""
        assert self._permits is not None
        for _ in range(jobs):
            self._permits.release()

    async def until_seen(self, count: int, within: float = 10) -> None:
        await wait_until_async(lambda: len(self.seen) >= count, f"{count} jobs came", within)


# batches


async def test_a_backlog_is_claimed_in_batches_and_never_by_a_sorted_find_and_modify(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    order = Order()
    await queue.put_many([{"n": n} for n in range(200)])

    worker = await start(order, concurrency=50)
    await worker.until_outcomes(completed=200)

    assert len(worker.commands.claims()) <= 40
    assert worker.metric("streamqueue_claim_batch_jobs_sum") == 200
    assert worker.metric("streamqueue_claim_batch_jobs_count") == len(worker.commands.claims())
    assert [sent for sent in worker.commands.named("findAndModify") if "sort" in sent.command] == []


async def test_jobs_put_together_are_claimed_together_by_an_idle_worker(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    order = Order()
    worker = await start(order, concurrency=100)
    await worker.until_idle()

    await queue.put_many([{"n": n} for n in range(100)])
    await worker.until_outcomes(completed=100)

    assert len(worker.commands.claims()) <= 20


# order


async def test_a_backlog_is_worked_by_priority_and_first_in_first_out_within_one(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    for n in range(40):
        await queue.put({"n": n}, priority=n % 3)
    order = Order()

    worker = await start(order, concurrency=1)
    await worker.until_outcomes(completed=40)

    assert order.seen == sorted(range(40), key=lambda n: (-(n % 3), n))


async def test_jobs_put_while_a_worker_is_busy_are_taken_first_in_first_out(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    order = Order(permits=True)
    worker = await start(order, concurrency=1)
    for n in range(10):
        await queue.put({"n": n})
    await order.until_seen(1)

    order.permit(10)
    await worker.until_outcomes(completed=10)

    assert order.seen == list(range(10))


async def test_a_job_announced_while_every_slot_is_busy_is_run_when_one_comes_free(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    order = Order(permits=True)
    worker = await start(order, concurrency=1, sweep_interval=None)
    await worker.until_idle()
    await queue.put({"n": 1})
    await order.until_seen(1)
    events = worker.metric("streamqueue_stream_events_total")

    await queue.put({"n": 2})
    await wait_until_async(
        lambda: worker.metric("streamqueue_stream_events_total") > events, "it is announced"
    )
    order.permit(2)

    await order.until_seen(2, within=2)


@pytest.mark.parametrize("backlog", [10, 200])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_more_urgent_job_put_while_a_backlog_is_worked_is_taken_next(
    start: WorkerStarter, queue: AsyncMongoQueue, concurrency: int, backlog: int
) -> None:
    order = Order(permits=True)
    await queue.put_many([{"n": n} for n in range(backlog)])
    worker = await start(order, concurrency=concurrency)
    await order.until_seen(concurrency)
    events = worker.metric("streamqueue_stream_events_total")

    await queue.put({"n": "urgent"}, priority=1)
    await wait_until_async(
        lambda: worker.metric("streamqueue_stream_events_total") > events, "it is announced"
    )
    order.permit()
    await order.until_seen(concurrency + 1)

    assert order.seen[-1] == "urgent"
    order.permit(backlog + 1)


# many workers


async def test_two_workers_share_a_backlog_and_run_each_job_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    mine, theirs = Order(), Order()
    await queue.put_many([{"n": n} for n in range(300)])

    async with anyio.create_task_group() as both:
        both.start_soon(start, mine)
        both.start_soon(start, theirs)
    await wait_until_async(lambda: not jobs.count_documents({}), "all jobs are done")

    assert sorted(mine.seen + theirs.seen) == list(range(300))
    assert mine.seen
    assert theirs.seen


async def test_two_idle_workers_run_each_announced_job_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    order = Order()
    await start(order)
    await start(order)

    for n in range(50):
        await queue.put({"n": n})
    await wait_until_async(lambda: not jobs.count_documents({}), "all jobs are done")

    assert Counter(order.seen) == Counter(range(50))


async def test_a_job_put_again_under_the_same_id_after_it_was_done_is_run_again(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    order = Order()
    worker = await start(order, sweep_interval=None)
    job_id = ObjectId()
    await queue.put({"n": 1}, job_id=job_id)
    await worker.until_outcomes(completed=1)

    await queue.put({"n": 2}, job_id=job_id)

    await order.until_seen(2, within=2)


# what a claim rests on


async def test_whatever_a_worker_writes_to_a_job_waits_for_the_majority(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        if job.data.get("progress"):
            await job.progress()
        if job.data.get("fails") and job.attempts == 1:
            raise Retry(delay=0)

    await queue.put_many([{"n": n} for n in range(10)])
    worker = await start(handler)
    await worker.until_outcomes(completed=10)
    await worker.until_idle()
    await queue.put({"progress": True})
    await queue.put({"fails": True})
    await worker.until_outcomes(completed=12, retried=1)

    writes = [
        sent.command
        for sent in worker.commands.named("update", "delete", "findAndModify")
        if sent.command[sent.name] == jobs.name  # not the list of consumers, which is a courtesy
    ]
    assert len(writes) >= 8
    assert {write["writeConcern"]["w"] for write in writes} == {"majority"}


# claims that fail


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("jobs_before", "fault"),
    [
        *(pytest.param(30, fault, id=f"many wait, {name}") for name, fault in WRITE_FAULTS.items()),
        pytest.param(0, CONNECTION_CUT, id="announced, the connection is cut"),
        pytest.param(0, REPLICATION_TIMED_OUT, id="announced, replication times out"),
        pytest.param(1, CONNECTION_CUT, id="one waits, the connection is cut"),
        pytest.param(1, REPLICATION_TIMED_OUT, id="one waits, replication times out"),
    ],
)
async def test_failing_claims_are_tried_again_and_use_up_no_attempt(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    jobs_before: int,
    fault: dict[str, Any],
) -> None:
    order = Order(permits=True)
    worker = await start(order, concurrency=1)
    await queue.put({"n": -1})
    await order.until_seen(1)
    await queue.put_many([{"n": n} for n in range(jobs_before)])
    if not jobs_before:
        order.permit()
        await worker.until_outcomes(completed=1)

    with failing(client, "update", "findAndModify", app=worker.app, times=2, **fault) as hits:
        order.permit(50)
        await queue.put({"n": jobs_before})
        await worker.until_outcomes(completed=jobs_before + 2)
        assert hits.hits() >= 2

    assert sorted(order.seen) == list(range(-1, jobs_before + 1))
    assert set(order.attempts) == {1}


async def test_a_damaged_job_that_cannot_be_buried_strands_no_other(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """The batch is claimed, and then the write fails that buries the first job of it."""
    order = Order()
    jobs.insert_one({**READY, "payload": "damaged", "priority": 5})
    await queue.put_many([{"n": n} for n in range(3)])
    worker = start.prepare(order, concurrency=4)

    # The first two give foreign jobs their priority and claim the batch.
    with failing(client, "update", app=worker.app, skip=2, errorCode=262) as hits:
        await start.begin(worker)
        await wait_until_async(lambda: hits.hits() >= 1, "the burial failed")

    await order.until_seen(3, within=6)
    assert sorted(order.seen) == [0, 1, 2]


async def test_a_job_that_the_validator_refuses_to_have_claimed_stops_no_other(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It was there before the validator, which now refuses every change of it."""
    order = Order()
    placed = {"priority": 0, "seq": Timestamp(0, 0)}  # so that its claim is what is refused
    jobs.insert_one({**READY, **placed, "payload": {"n": "bad"}, "created_at": "yesterday"})
    jobs.database.command("collMod", jobs.name, validator=VALIDATOR)
    await queue.put_many([{"n": n} for n in range(5)])

    await start(order)

    await order.until_seen(5, within=6)
    assert sorted(order.seen) == [0, 1, 2, 3, 4]
    assert "Claiming failed" not in caplog.text


@pytest.mark.parametrize("kind", ["scheduled", "running"])
async def test_a_job_that_the_validator_refuses_to_have_returned_stops_no_other(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    order = Order()
    over = {"run_at": "soon"} if kind == "scheduled" else {"locked_until": "soon"}
    jobs.insert_one({**READY, **over, "state": kind, "payload": {"n": "bad"}, "priority": "high"})
    if kind == "running":
        ids = await queue.put_many([{"n": n} for n in range(5)])
        jobs.update_many(
            {"_id": {"$in": ids}},
            [{"$set": {"state": "running", "locked_until": "$$NOW", "lease": b"a", "attempts": 1}}],
        )
    else:
        await queue.put_many([{"n": n} for n in range(5)], delay=0.1)
    jobs.database.command("collMod", jobs.name, validator=VALIDATOR)

    await start(order, reap_interval=0.1)

    await order.until_seen(5, within=6)
    assert sorted(order.seen) == [0, 1, 2, 3, 4]
