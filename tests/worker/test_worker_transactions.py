"""Open transactions hold up nobody but their own job, and a handler's own succeed.

Laws: one holder; a handler cannot reach its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, LeaseLost
from streamqueue.clock import monotonic
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.started import Sent, StartedWorker, WorkerStarter

BY_ITSELF = {"$set": {"changed_by": "somebody else"}}


class Transactions:
    """The handler of a worker: jobs with ``"session": True`` are given one of the worker's client,
    the others wait until they are let go."""

    def __init__(self) -> None:
        self.worker: StartedWorker
        self.inside: Callable[[AsyncJob, AsyncClientSession], Any]
        self.running = 0
        self.go = anyio.Event()
        self.cancelled: list[Any] = []

    async def __call__(self, job: AsyncJob) -> None:
        self.running += 1
        try:
            if job.data.get("session"):
                async with self.client.start_session() as session:
                    await self.inside(job, session)
            else:
                await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(job.id)
            raise

    @property
    def client(self) -> AsyncMongoClient[Any]:
        return settings_of(self.worker.worker).store.jobs.database.client

    async def until_running(self, count: int) -> None:
        await wait_until_async(lambda: self.running >= count, f"{count} handlers run")


@pytest.fixture
def handler() -> Transactions:
    return Transactions()


@pytest.fixture
def begin(start: WorkerStarter, handler: Transactions) -> Callable[..., Any]:
    """Starts a worker with that handler."""

    async def begin(**settings: Any) -> StartedWorker:
        handler.worker = await start(handler, **{"sweep_interval": None, **settings})
        return handler.worker

    return begin


def renewed(worker: StartedWorker) -> float:
    return worker.metric("streamqueue_leases_renewed_total")


async def test_a_handlers_open_transaction_holds_up_no_other_lease(
    begin: Callable[..., Any], handler: Transactions, queue: AsyncMongoQueue
) -> None:
    worker = await begin(timeout=1.5)

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async with await session.start_transaction():
            await job.complete(session=session)
            before = renewed(worker)
            await wait_until_async(lambda: renewed(worker) >= before + 4, "others are renewed", 1.4)
        handler.go.set()

    handler.inside = inside
    await queue.put_many([{}, {}, {"session": True}])

    await worker.until_outcomes(completed=3)
    assert not handler.cancelled


async def test_somebody_elses_open_transaction_holds_up_only_the_job_it_has_changed(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
) -> None:
    worker = await begin(timeout=1.5)
    ids = await queue.put_many([{} for _ in range(6)])
    await handler.until_running(6)

    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": ids[2]}, BY_ITSELF, session=session)
        await wait_until_async(lambda: renewed(worker) >= 10, "the others, twice", 1.4)
    worker.commands.forget()
    await wait_until_async(
        lambda: sum(ids[2] in ids_of(sent) for sent in worker.commands.renewals()) >= 2,
        "it too is renewed, and again",
    )
    handler.go.set()

    await worker.until_outcomes(completed=6)
    assert not handler.cancelled


def ids_of(sent: Sent) -> list[Any]:
    wanted = sent.command["updates"][0]["q"]["_id"]
    return list(wanted.get("$in", [wanted.get("$eq")]))


async def test_a_blocked_job_delays_no_other_complete(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
) -> None:
    worker = await begin(timeout=20)
    ids = await queue.put_many([{} for _ in range(10)])
    await handler.until_running(10)

    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": ids[3]}, BY_ITSELF, session=session)
        handler.go.set()
        await worker.until_outcomes(completed=9)
        await queue.put_many([{} for _ in range(5)])
        await worker.until_outcomes(completed=14)
        session.abort_transaction()

    await worker.until_outcomes(completed=15)
    assert jobs.count_documents({}) == 0


async def test_one_blocked_job_that_ends_alone_delays_no_other_complete(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
) -> None:
    worker = await begin(timeout=20, concurrency=2)
    blocked = await queue.put({})
    await handler.until_running(1)

    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": blocked}, BY_ITSELF, session=session)
        handler.go.set()
        await wait_until_async(lambda: worker.commands.named("delete"), "its complete is sent")
        await queue.put({})
        await worker.until_outcomes(completed=1)
        session.abort_transaction()

    await worker.until_outcomes(completed=2)


async def test_a_transaction_longer_than_a_third_of_the_lease_completes_its_job(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    """Its first try meets a renewal; the next has the lease for itself."""
    worker = await begin(timeout=1.5)
    tries = []

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async def work(session: AsyncClientSession) -> None:
            tries.append(1)
            await handler.client[jobs.database.name][jobs.name].find_one({}, session=session)
            before = renewed(worker)
            # Of the other job, if no longer of this one.
            await wait_until_async(lambda: renewed(worker) >= before + 2, "two are renewed")
            await job.complete(session=session)

        await session.with_transaction(work)
        handler.go.set()

    handler.inside = inside
    await queue.put_many([{}, {"session": True}])

    await worker.until_outcomes(completed=2, within=5)
    assert len(tries) == 2


async def test_a_lease_is_renewed_before_a_handler_hears_of_a_conflict(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    worker = await begin(timeout=60)
    leases = []

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        def lease() -> Any:
            return jobs.find_one({"_id": job.id})["locked_until"]  # type: ignore[index]

        await session.start_transaction()
        await handler.client[jobs.database.name][jobs.name].find_one({}, session=session)
        jobs.update_one({"_id": job.id}, BY_ITSELF)
        leases.append(lease())
        with pytest.raises(OperationFailure) as caught:
            await job.complete(session=session)
        assert caught.value.has_error_label("TransientTransactionError")
        leases.append(lease())
        await session.abort_transaction()

    handler.inside = inside
    await queue.put({"session": True})

    await worker.until_outcomes(completed=1)
    before, after = leases
    assert after > before


async def test_a_transaction_that_outlasts_its_lease_is_aborted_and_its_handler_told(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    worker = await begin(timeout=0.6, reap_interval=0.1)

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async with await session.start_transaction():
            await job.complete(session=session)
            if job.attempts == 1:
                await handler.go.wait()

    handler.inside = inside
    job_id = await queue.put({"session": True})

    await worker.until_outcomes(lease_lost=1, completed=1)
    assert handler.cancelled == [job_id]
    assert jobs.count_documents({}) == 0


async def test_a_complete_that_the_lease_has_no_time_for_is_refused(
    begin: Callable[..., Any], handler: Transactions, queue: AsyncMongoQueue
) -> None:
    worker = await begin(timeout=0.6, reap_interval=60)
    told: list[BaseException] = []

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        attempt: Any = job._holder
        await session.start_transaction()
        await job.complete(session=session)
        await session.abort_transaction()
        await session.start_transaction()
        with anyio.CancelScope(shield=True):
            await wait_until_async(lambda: attempt.deadline - monotonic() < 0.05, "it ends")
            try:
                await job.complete(session=session)
            except LeaseLost as error:
                told.append(error)
        await handler.go.wait()

    handler.inside = inside
    await queue.put({"session": True})

    await worker.until_outcomes(lease_lost=1)
    assert told


async def test_a_handler_may_go_on_after_the_commit(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
) -> None:
    worker = await begin(timeout=1.5)

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async with await session.start_transaction():
            await job.complete(session=session)
        before = renewed(worker)
        await wait_until_async(lambda: renewed(worker) >= before + 4, "the other outlives a lease")
        handler.go.set()

    handler.inside = inside
    await queue.put_many([{}, {"session": True}])

    await worker.until_outcomes(completed=2)
    assert not handler.cancelled
    assert len(worker.commands.renewals()) < 20


async def test_a_job_whose_transaction_was_committed_is_completed_whatever_its_handler_raises(
    begin: Callable[..., Any], handler: Transactions, queue: AsyncMongoQueue
) -> None:
    worker = await begin(timeout=60)

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async with await session.start_transaction():
            await job.complete(session=session)
        raise ValueError

    handler.inside = inside
    await queue.put({"session": True})

    await worker.until_outcomes(completed=1)


async def test_a_job_whose_transaction_was_aborted_fails_as_any_other(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    worker = await begin(timeout=60, backoff=Backoff(initial=60, jitter=0))

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async with await session.start_transaction():
            await job.complete(session=session)
            raise ValueError

    handler.inside = inside
    await queue.put({"session": True})

    await worker.until_outcomes(retried=1)
    assert jobs.count_documents({"state": "scheduled"}) == 1


async def test_a_transaction_left_open_delays_only_the_complete_of_its_own_job(
    begin: Callable[..., Any], handler: Transactions, queue: AsyncMongoQueue
) -> None:
    worker = await begin(timeout=20)
    left_open: list[AsyncClientSession] = []

    async def inside(job: AsyncJob, _: AsyncClientSession) -> None:
        session = handler.client.start_session()
        await session.start_transaction()
        await job.complete(session=session)
        left_open.append(session)

    handler.inside = inside
    handler.go.set()
    await queue.put({"session": True})
    await wait_until_async(lambda: left_open, "it has returned")
    try:
        await queue.put_many([{} for _ in range(5)])
        await worker.until_outcomes(completed=5)
    finally:
        await left_open[0].abort_transaction()

    await worker.until_outcomes(completed=6)


async def test_a_job_is_given_back_whose_handler_is_stopped_in_its_transaction(
    begin: Callable[..., Any],
    handler: Transactions,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
) -> None:
    worker = await begin(timeout=20, drain_timeout=0.1)
    inside_it = anyio.Event()

    async def inside(job: AsyncJob, session: AsyncClientSession) -> None:
        async with await session.start_transaction():
            await job.complete(session=session)
            inside_it.set()
            await handler.go.wait()

    handler.inside = inside
    await queue.put({"session": True})
    await inside_it.wait()

    await worker.stop(within=5)

    assert worker.outcomes() == {"released": 1}
    assert jobs.count_documents({"state": "ready", "attempts": 0}) == 1
