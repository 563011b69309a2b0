"""A lease is kept while its handler runs, and a handler ends when its lease is lost (law 2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, MongoQueue
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.processes import WorkerProcess
from tests.worker.started import WorkerStarter


class Gate:
    """A handler that waits until it is let go, and notes who was cancelled, and when."""

    def __init__(self) -> None:
        self.running: list[AsyncJob] = []
        self.cancelled: dict[Any, datetime] = {}
        self.open = anyio.Event()

    async def __call__(self, job: AsyncJob) -> None:
        self.running.append(job)
        try:
            await self.open.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled[job.id] = datetime.now(UTC)
            raise

    async def until_running(self, count: int) -> None:
        await wait_until_async(lambda: len(self.running) >= count, f"{count} handlers run")


async def test_handlers_longer_than_the_lease_keep_their_jobs(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    gate = Gate()
    await queue.put_many([{"n": n} for n in range(20)])
    worker = await start(gate, timeout=0.6, reap_interval=0.1)
    await start(gate, timeout=0.6, reap_interval=0.1)  # would take over what ran out
    await gate.until_running(20)
    await wait_until_async(
        lambda: len(worker.commands.renewals()) >= 12, "four timeouts have passed"
    )

    gate.open.set()

    await wait_until_async(
        lambda: sum(sum(each.outcomes().values()) for each in start.started) >= 20, "all ended"
    )
    assert len(gate.running) == 20
    assert not gate.cancelled
    renewed = [each.metric("streamqueue_leases_renewed_total") for each in start.started]
    assert sum(renewed) >= 20  # each of them, more than once most likely


def test_handlers_that_compute_in_threads_for_longer_than_the_lease_keep_their_jobs(
    spawn: Callable[..., WorkerProcess], jobs: Collection[Any]
) -> None:
    """Four of them hold the interpreter's lock nearly all the time; renewals get their turn."""
    MongoQueue(jobs).put_many([{"seconds": 5}] * 4)
    busy = spawn(handler="computes", concurrency=4, timeout=2)
    busy.until_said("started", times=4)
    other = spawn(handler="waits", timeout=2, reap_interval=0.1)  # would take over what ran out

    busy.until_said("finished", times=4, within=30)

    busy.stop()
    assert busy.outcomes() == {"completed": 4}
    assert not other.said("started")


async def test_one_update_renews_every_lease_of_the_process(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    gate = Gate()
    await queue.put_many([{"n": n} for n in range(20)])
    worker = await start(gate, timeout=0.6)
    await gate.until_running(20)

    await wait_until_async(lambda: len(worker.commands.renewals()) >= 6, "six renewals")

    renewed = [
        len(sent.command["updates"][0]["q"]["_id"]["$in"]) for sent in worker.commands.renewals()
    ]
    assert renewed == [20] * len(renewed)
    gate.open.set()
    await worker.until_outcomes(completed=20)


async def test_a_handler_is_cancelled_soon_after_its_lease_was_lost(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    worker = await start(gate, timeout=1.5)
    job_id = await queue.put({"n": 1})
    await gate.until_running(1)

    jobs.update_one({"_id": job_id}, {"$set": {"lease": b"an operator's"}})
    taken_at = time.monotonic()
    await worker.until_outcomes(lease_lost=1)

    assert time.monotonic() - taken_at < 1.5
    assert job_id in gate.cancelled
    left = jobs.find_one({"_id": job_id})
    assert left is not None
    assert (left["state"], left["lease"]) == ("running", b"an operator's")


async def test_only_the_handler_whose_lease_was_lost_is_cancelled(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    ids = await queue.put_many([{"n": n} for n in range(5)])
    worker = await start(gate, timeout=0.6)
    await gate.until_running(5)

    jobs.update_one({"_id": ids[2]}, {"$set": {"lease": b"an operator's"}})
    await worker.until_outcomes(lease_lost=1)
    gate.open.set()

    await worker.until_outcomes(lease_lost=1, completed=4)
    assert list(gate.cancelled) == [ids[2]]


async def test_a_job_that_was_removed_loses_its_handler(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    gate = Gate()
    worker = await start(gate, timeout=0.6)
    await queue.put({"n": 1})
    await gate.until_running(1)

    await queue.clear()

    await worker.until_outcomes(lease_lost=1)


async def test_a_job_claimed_again_by_the_same_worker_ends_the_old_attempt_at_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    worker = await start(gate, timeout=60)
    job_id = await queue.put({"n": 1})
    await gate.until_running(1)

    jobs.update_one({"_id": job_id}, {"$set": {"state": "ready"}, "$unset": {"lease": ""}})
    await worker.until_outcomes(lease_lost=1)
    gate.open.set()

    await worker.until_outcomes(lease_lost=1, completed=1)
    assert [job.attempts for job in gate.running] == [1, 2]


@pytest.mark.parametrize(
    "fault",
    [{"closeConnection": True}, {"errorCode": 91}, {"blockConnection": True, "blockTimeMS": 1500}],
    ids=["connections cut", "errors", "no answer"],
)
async def test_a_handler_whose_renewals_fail_is_cancelled_before_the_lease_can_be_anybody_elses(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    fault: dict[str, Any],
) -> None:
    gate = Gate()
    worker = await start(gate, timeout=1.2)
    job_id = await queue.put({"n": 1})
    await gate.until_running(1)

    with failing(client, "update", app=worker.app, **fault) as hits:
        # Before that one may still be on its way, and extend the lease.
        await wait_until_async(lambda: hits.hits() > 0, "a renewal fails")
        leased_until = jobs.find_one({"_id": job_id}, {"locked_until": 1})["locked_until"]  # type: ignore[index]
        await wait_until_async(lambda: gate.cancelled, "the handler is cancelled", 3)

    assert gate.cancelled[job_id] <= leased_until
    gate.open.set()


async def test_a_lease_outlives_renewals_that_fail_now_and_then(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    gate = Gate()
    worker = await start(gate, timeout=3)
    await queue.put({"n": 1})
    await gate.until_running(1)

    with failing(client, "update", app=worker.app, times=2, closeConnection=True) as hits:
        await wait_until_async(lambda: hits.hits() >= 2, "renewals failed")
    worker.commands.forget()
    await wait_until_async(lambda: worker.commands.renewals(), "it is renewed again")
    gate.open.set()

    await worker.until_outcomes(completed=1)
    assert len(gate.running) == 1


async def test_a_claim_that_was_answered_after_its_deadline_starts_no_handler(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    gate = Gate()
    gate.open.set()
    worker = await start(gate, timeout=0.4, reap_interval=0.1)
    await worker.until_idle()
    slow = {"blockConnection": True, "blockTimeMS": 700}

    with failing(client, "update", app=worker.app, times=1, **slow):
        await queue.put({"n": 1})
        await worker.until_outcomes(lease_lost=1)

    await worker.until_outcomes(lease_lost=1, completed=1)
    assert [job.attempts for job in gate.running] == [2]


async def test_a_namesake_of_the_holder_holds_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """Both are called the same, as after a restart; the first one's lease ran out meanwhile."""
    first, second = Gate(), Gate()
    old = await start(first, timeout=1, consumer_id="worker-1", reap_interval=0.1)
    job_id = await queue.put({"n": 1})
    await first.until_running(1)

    with failing(client, "update", app=old.app, closeConnection=True):
        new = await start(second, timeout=1, consumer_id="worker-1", reap_interval=0.1)
        await second.until_running(1)
    first.open.set()

    assert old.outcomes() == {"lease_lost": 1}
    assert jobs.count_documents({"_id": job_id, "state": "running"}) == 1
    second.open.set()
    await new.until_outcomes(completed=1)
