"""A lease is kept while its handler runs, and a handler ends when its lease is lost.

Law: one holder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, MongoQueue
from streamqueue.clock import monotonic
from streamqueue.metrics.series import Metrics
from streamqueue.options import WorkerOptions
from streamqueue.protocol.document import JobRecord
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.worker.execution.attempt import MARGIN_CAP, MARGIN_SHARE, Attempt
from streamqueue.worker.leases import Leases
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
    worker = await start(gate, timeout=1.5, reap_interval=0.1)
    await start(gate, timeout=1.5, reap_interval=0.1)  # would take over what ran out
    await gate.until_running(20)
    await wait_until_async(lambda: len(worker.commands.renewals()) >= 6, "two timeouts have passed")

    gate.open.set()

    await wait_until_async(
        lambda: sum(sum(each.outcomes().values()) for each in start.started) >= 20, "all ended"
    )
    assert len(gate.running) == 20
    assert not gate.cancelled
    renewed = [each.metric("streamqueue_leases_renewed_total") for each in start.started]
    assert sum(renewed) >= 20  # each of them, more than once most likely


@pytest.mark.slow
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
    worker = await start(gate, timeout=1.5)
    await gate.until_running(20)

    await wait_until_async(lambda: len(worker.commands.renewals()) >= 3, "three renewals")

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
    worker = await start(gate, timeout=1.5)
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
    worker = await start(gate, timeout=1.5)
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


@pytest.mark.few(1)
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


async def test_a_claim_that_was_answered_after_its_lease_starts_no_handler_and_is_made_anew(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    gate = Gate()
    gate.open.set()
    worker = await start(gate, timeout=0.4, reap_interval=0.1)
    await worker.until_idle()
    slow = {"blockConnection": True, "blockTimeMS": 700}

    with failing(client, "findAndModify", app=worker.app, times=1, **slow):
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1)

    assert [job.attempts for job in gate.running] == [1]


async def test_a_lease_is_counted_from_before_its_claim_was_sent(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    left: list[float] = []

    async def handler(job: AsyncJob) -> None:
        attempt: Any = job._holder
        left.append(attempt.deadline - monotonic())

    worker = await start(handler, timeout=60)
    await worker.until_idle()
    slow = {"blockConnection": True, "blockTimeMS": 200}

    with failing(client, "findAndModify", app=worker.app, times=1, **slow):
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1)

    margin = min(60 / MARGIN_SHARE, MARGIN_CAP)
    assert left[0] <= 60 - margin - 0.2


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


# what the keepers wait for


class Held:
    """Leases of half a minute, kept by themselves."""

    timeout = 30.0

    def __init__(self, jobs: AsyncCollection[Any], tasks: TaskGroup) -> None:
        metrics = Metrics.of(CollectorRegistry())
        self.registered: Any = type("Registered", (), {"metrics": metrics.consumer("default", "h")})
        self.leases = Leases(AsyncStore(jobs), WorkerOptions(timeout=self.timeout), metrics)
        tasks.start_soon(self.leases.run)

    def attempt(self, job_id: ObjectId, claimed_ago: float) -> Attempt:
        document = {"_id": job_id, "queue": "default", "lease": b"t", "attempts": 1, "payload": {}}
        record = JobRecord.from_document(document, max_attempts=3)
        completer: Any = None
        sent = monotonic() - claimed_ago
        return Attempt(record, self.registered, completer, sent=sent, timeout=self.timeout)


async def test_a_late_reply_to_a_claim_is_renewed_before_what_is_held_already(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    late = jobs.insert_one({"queue": "default", "state": "running", "lease": b"t"}).inserted_id
    async with anyio.create_task_group() as tasks:
        held = Held(async_jobs, tasks)
        held.leases.add(held.attempt(ObjectId(), claimed_ago=0))
        await anyio.wait_all_tasks_blocked()  # until then

        attempt = held.attempt(late, claimed_ago=28)
        deadline = attempt.deadline
        held.leases.add(attempt)

        await wait_until_async(lambda: attempt.deadline > deadline, "it is renewed", 5)
        tasks.cancel_scope.cancel()


async def test_a_lease_that_ends_before_what_is_held_already_is_lost_at_its_end(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    late = jobs.insert_one({"queue": "default", "state": "running", "lease": b"t"}).inserted_id
    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": late}, {"$set": {"n": 1}}, session=session)  # nobody can renew it
        async with anyio.create_task_group() as tasks:
            held = Held(async_jobs, tasks)
            held.leases.add(held.attempt(ObjectId(), claimed_ago=0))
            await anyio.wait_all_tasks_blocked()

            attempt = held.attempt(late, claimed_ago=28)
            held.leases.add(attempt)

            await wait_until_async(lambda: attempt.lost, "it is lost", 5)
            assert monotonic() >= attempt.deadline
            tasks.cancel_scope.cancel()


async def test_a_lease_that_has_ended_before_its_claim_was_answered_is_never_held(
    async_jobs: AsyncCollection[Any],
) -> None:
    async with anyio.create_task_group() as tasks:
        held = Held(async_jobs, tasks)
        attempt = held.attempt(ObjectId(), claimed_ago=29.5)

        held.leases.add(attempt)

        assert attempt.lost
        assert not held.leases.held()
        tasks.cancel_scope.cancel()


async def test_a_late_reply_to_an_older_renewal_shortens_no_lease(
    async_jobs: AsyncCollection[Any],
) -> None:
    async with anyio.create_task_group() as tasks:
        attempt = Held(async_jobs, tasks).attempt(ObjectId(), claimed_ago=20)
        attempt.extend(monotonic(), 30)
        before = attempt.deadline, attempt.renew_at

        attempt.extend(monotonic() - 10, 30)

        assert (attempt.deadline, attempt.renew_at) == before
        tasks.cancel_scope.cancel()


async def test_a_handler_that_goes_on_after_its_complete_is_not_renewed(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    gate = Gate()

    async def handler(job: AsyncJob) -> None:
        if job.data["n"]:
            await job.complete()
        await gate(job)

    worker = await start(handler, timeout=1.5)
    await queue.put_many([{"n": 0}, {"n": 1}])
    await gate.until_running(2)
    worker.commands.forget()

    await wait_until_async(lambda: len(worker.commands.renewals()) >= 4, "the other outlives it")
    gate.open.set()

    await worker.until_outcomes(completed=2)
    assert not gate.cancelled
    assert len(worker.commands.renewals()) < 10


async def test_a_job_whose_renewal_is_refused_costs_no_other_its_lease(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    worker = await start(gate, timeout=0.9)
    ids = await queue.put_many([{"n": n} for n in range(5)])
    await gate.until_running(5)

    jobs.database.command("collMod", jobs.name, validator={"payload.n": {"$ne": 2}})
    await worker.until_outcomes(lease_lost=1)
    renewals = len(worker.commands.renewals())
    await wait_until_async(
        lambda: len(worker.commands.renewals()) >= renewals + 3, "the others go on"
    )
    gate.open.set()

    await worker.until_outcomes(lease_lost=1, completed=4)
    assert list(gate.cancelled) == [ids[2]]
    jobs.database.command("collMod", jobs.name, validator={})


async def test_a_lease_of_months_is_as_good_as_a_short_one(
    queue: AsyncMongoQueue, start: WorkerStarter
) -> None:
    async def handler(job: AsyncJob) -> None:
        await job.progress(1)
        if job.data["n"] == 1:
            await job.error("no", delay=60)
        if job.data["n"] == 2:
            await job.release(delay=60)

    await queue.put_many([{"n": 1}, {"n": 2}, {"n": 3}])

    worker = await start(handler, timeout=90 * 86_400)

    await worker.until_outcomes(retried=1, released=1, completed=1)
