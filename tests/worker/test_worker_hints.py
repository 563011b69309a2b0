"""What was read ahead, or came in an event, is a hint: what runs is what the claim returned."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

PAST = datetime(2026, 1, 1, tzinfo=UTC)


class Gate:
    """A handler that notes what it sees, and lets one job at a time pass."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.passes = anyio.Semaphore(0)

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append((job.queue, dict(job.data)))
        await self.passes.acquire()


@pytest.mark.parametrize("size", [10, 3000])
async def test_a_job_edited_after_it_was_read_ahead_runs_as_it_is(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], size: int
) -> None:
    gate = Gate()
    await queue.put_many([{"n": n, "amount": 1, "x": "." * size} for n in range(4)])
    worker = await start(gate, concurrency=1)
    await wait_until_async(lambda: len(gate.seen) == 1, "the first one runs")

    jobs.update_many({"state": "ready"}, {"$set": {"payload.amount": 1000}})
    for _ in range(4):
        gate.passes.release()

    await worker.until_outcomes(completed=4)
    assert [data["amount"] for _, data in gate.seen] == [1, 1000, 1000, 1000]


@pytest.mark.parametrize("size", [10, 3000])
async def test_a_job_moved_to_another_queue_after_it_was_read_ahead_is_left_to_that(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], size: int
) -> None:
    gate = Gate()
    await queue.put_many([{"n": n, "x": "." * size} for n in range(3)])
    worker = await start(gate, concurrency=1)
    await wait_until_async(lambda: len(gate.seen) == 1, "the first one runs")

    jobs.update_one({"state": "ready", "payload.n": 1}, {"$set": {"queue": "elsewhere"}})
    moved = jobs.find_one({"queue": "elsewhere"}, {"_id": 1}) or {}
    with jobs.watch([{"$match": {"documentKey": moved}}]) as changes:
        for _ in range(3):
            gate.passes.release()

        await worker.until_outcomes(completed=2)
        assert [data["n"] for _, data in gate.seen] == [0, 2]
        assert jobs.count_documents({"queue": "elsewhere", "state": "ready", "attempts": 0}) == 1
        assert changes.try_next() is None  # nor was it claimed for a while


async def test_a_job_moved_between_two_queues_of_a_worker_runs_where_it_is_then(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()

    async def other(job: AsyncJob) -> None:
        gate.seen.append((job.queue, dict(job.data)))

    await queue.put_many([{"n": n} for n in range(3)])
    worker = await start(gate, other, concurrency=1)
    await wait_until_async(lambda: len(gate.seen) == 1, "the first one runs")

    jobs.update_one({"state": "ready", "payload.n": 1}, {"$set": {"queue": "other"}})
    for _ in range(3):
        gate.passes.release()

    await worker.until_outcomes(completed=3)
    assert {(name, data["n"]) for name, data in gate.seen} == {
        ("default", 0),
        ("other", 1),
        ("default", 2),
    }


@pytest.mark.parametrize("attempts", [False, "", [], {}])
async def test_a_job_with_an_odd_number_of_attempts_is_run_once(
    start: WorkerStarter, jobs: Collection[Any], attempts: object
) -> None:
    seen = []

    async def handle(job: AsyncJob) -> None:
        seen.append(job.attempts)

    worker = await start(handle)
    await worker.until_idle()  # or its first look and the event may both find it
    jobs.insert_one(
        {"queue": "default", "state": "ready", "priority": 0, "payload": {}, "attempts": attempts}
    )

    await worker.until_outcomes(completed=1)
    assert seen == [1]
    assert len(worker.commands.claims()) == 1


async def test_a_job_inserted_again_under_its_id_runs_again(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    """As a program does that names its jobs after the day, with everything else the same."""
    again = {"_id": "2026-11-29", "queue": "default", "state": "ready", "priority": 0}

    async def handle(job: AsyncJob) -> None:
        pass

    worker = await start(handle, sweep_interval=None)
    for count in (1, 2, 3):
        jobs.insert_one({**again, "run_at": PAST, "payload": {}})
        await worker.until_outcomes(completed=count)


async def test_a_locked_job_keeps_no_other_from_being_run(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handle(job: AsyncJob) -> None:
        pass

    ids = await queue.put_many([{} for _ in range(20)])
    client = jobs.database.client
    with client.start_session() as session:
        session.start_transaction()
        jobs.update_one({"_id": ids[3]}, {"$set": {"touched": True}}, session=session)
        worker = await start(handle, concurrency=20)
        await worker.until_outcomes(completed=19)
        session.abort_transaction()

    await worker.until_outcomes(completed=20)


async def test_large_jobs_are_claimed_in_pieces_that_fit(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handle(job: AsyncJob) -> None:
        pass

    for _ in range(20):
        await queue.put({"x": "." * 1_000_000})
    worker = await start(handle, concurrency=20)

    await worker.until_outcomes(completed=20)
