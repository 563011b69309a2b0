"""Final writes: committed in groups, and never doubted when only their answer was lost.

Law: an unknown outcome is not a failure.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Discard, Snooze
from tests.waiting import wait_until_async
from tests.worker.faults import (
    CONNECTION_CUT,
    REPLICATION_TIMED_OUT,
    TIME_LIMIT,
    WRITE_FAULTS,
    failing,
)
from tests.worker.started import WorkerStarter


class Together:
    """A handler whose jobs all return at the same moment."""

    def __init__(self) -> None:
        self.running = 0
        self.go = anyio.Event()

    async def __call__(self, job: AsyncJob) -> None:
        self.running += 1
        await self.go.wait()


async def test_handlers_that_finish_together_share_their_deletes(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    together = Together()
    worker = await start(together, concurrency=100)
    await queue.put_many([{"n": n} for n in range(100)])
    await wait_until_async(lambda: together.running == 100, "all run")

    together.go.set()
    await worker.until_outcomes(completed=100)

    assert len(worker.commands.named("delete")) <= 10
    assert jobs.count_documents({}) == 0


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("count", "fault"),
    [
        *(pytest.param(10, fault, id=f"ten, {name}") for name, fault in WRITE_FAULTS.items()),
        pytest.param(1, CONNECTION_CUT, id="one, the connection is cut"),
        pytest.param(1, REPLICATION_TIMED_OUT, id="one, replication times out"),
    ],
)
async def test_completes_whose_first_tries_fail_are_reported_completed_once(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    count: int,
    fault: dict[str, Any],
) -> None:
    together = Together()
    worker = await start(together)
    await queue.put_many([{"n": n} for n in range(count)])
    await wait_until_async(lambda: together.running == count, "all run")

    with failing(client, "delete", app=worker.app, times=3, **fault) as hits:
        together.go.set()
        await worker.until_outcomes(completed=count)
        assert hits.hits() > 0

    assert jobs.count_documents({}) == 0
    assert together.running == count


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("raised", "outcome", "state", "fault"),
    [
        *(
            pytest.param(ValueError, "retried", "scheduled", fault, id=f"error, {name}")
            for name, fault in WRITE_FAULTS.items()
        ),
        pytest.param(Snooze(60), "released", "scheduled", REPLICATION_TIMED_OUT, id="release"),
        pytest.param(Discard, "dead", "dead", REPLICATION_TIMED_OUT, id="discard"),
    ],
)
async def test_other_ends_whose_first_tries_fail_are_written_once(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    raised: Any,
    outcome: str,
    state: str,
    fault: dict[str, Any],
) -> None:
    go = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        await go.wait()
        raise raised

    worker = await start(handler, backoff=Backoff(initial=60, jitter=0))
    await queue.put({"n": 1})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")

    with failing(client, "update", app=worker.app, times=3, **fault) as hits:
        go.set()
        await worker.until_outcomes(**{outcome: 1})
        assert hits.hits() > 0

    [left] = jobs.find()
    assert left["state"] == state
    assert len(left.get("errors", [])) == (0 if outcome == "released" else 1)


async def test_a_job_that_was_lost_is_not_completed_with_the_others_of_its_group(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    together = Together()
    worker = await start(together)
    ids = await queue.put_many([{"n": n} for n in range(10)])
    await wait_until_async(lambda: together.running == 10, "all run")

    jobs.update_one({"_id": ids[3]}, {"$set": {"lease": b"an operator's"}})
    together.go.set()

    await worker.until_outcomes(completed=9, lease_lost=1)
    assert [job["_id"] for job in jobs.find()] == [ids[3]]


async def test_a_complete_that_arrives_after_the_lease_is_not_taken_for_that_of_the_next_holder(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    go, over = anyio.Event(), anyio.Event()
    told: list[Exception | None] = []

    async def slow(job: AsyncJob) -> None:
        await go.wait()
        try:
            await job.complete()
            told.append(None)
        except Exception as error:
            told.append(error)
        with anyio.CancelScope(shield=True):  # with its one slot, or it would be the next holder
            await over.wait()

    async def quick(job: AsyncJob) -> None:
        pass

    held_up = await start(slow, concurrency=1, timeout=1)
    await queue.put({"n": 1})
    await wait_until_async(lambda: held_up.metric("streamqueue_jobs_running") == 1, "it runs")

    held = {"blockConnection": True, "blockTimeMS": 3500}
    with failing(client, "delete", "update", app=held_up.app, **held):
        next_holder = await start(quick, reap_interval=0.1)
        go.set()
        await next_holder.until_outcomes(completed=1)
        await wait_until_async(lambda: told, "it is told how its complete went")
    over.set()

    await held_up.until_outcomes(lease_lost=1)
    assert isinstance(told[0], PyMongoError)
    assert jobs.count_documents({}) == 0


async def test_a_handler_that_ignores_that_its_complete_failed_gives_its_slot_back(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    go, ignored = anyio.Event(), []

    async def ignores(job: AsyncJob) -> None:
        await go.wait()
        try:
            await job.complete()
        except Exception as error:
            ignored.append(error)

    worker = await start(ignores, concurrency=1, timeout=0.5, reap_interval=0.1)
    await queue.put({"n": 1}, max_attempts=100)
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")

    with failing(client, "delete", "update", app=worker.app, **TIME_LIMIT):
        go.set()
        await wait_until_async(lambda: ignored, "it failed")
        await worker.until_outcomes(lease_lost=1)

    await worker.until_outcomes(lease_lost=1, completed=1)
    await worker.stop(within=2)
