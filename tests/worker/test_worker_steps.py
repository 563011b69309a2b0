"""Steps in a worker: async and blocking handlers, leases, cancels, transactions, metrics.

Laws: one holder; an unknown outcome is not a failure; a handler cannot reach its neighbours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    ConfigurationError,
    Job,
    JobCancelled,
)
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, INTERRUPTED, failing
from tests.worker.started import StartedWorker, WorkerStarter
from tests.worker.test_worker_cancel import without_stream

AT_ONCE = Backoff(initial=0.01, maximum=0.02)


def steps(worker: StartedWorker) -> dict[str, int]:
    """How many steps came to what."""
    return {
        result: int(count)
        for result in ("run", "replayed", "failed")
        if (count := worker.metric("streamqueue_steps_total", result=result))
    }


def parted(*, fails: int = 1) -> tuple[list[str], Callable[..., Any], Callable[..., Any]]:
    """An async handler and a blocking one with three steps, which fails behind each of the first
    two, once; and what their steps did."""
    did: list[str] = []

    def work(name: str) -> str:
        did.append(name)
        return name.upper()

    def check(job: Any, number: int) -> None:
        if job.attempts == number + 1 and number < fails:
            raise OSError(f"behind {number}")

    async def handler(job: AsyncJob) -> Any:
        values = []
        for number, name in enumerate("abc"):
            values.append(await job.step(name, work, name))
            check(job, number)
        return values

    def blocking(job: Job) -> Any:
        values = []
        for number, name in enumerate("abc"):
            values.append(job.step(name, work, name))
            check(job, number)
        return values

    return did, handler, blocking


@pytest.mark.parametrize("blocks", [False, True], ids=["async", "blocking"])
async def test_each_step_runs_once_though_the_attempts_fail_in_between(
    start: WorkerStarter, queue: AsyncMongoQueue, blocks: bool
) -> None:
    did, handler, blocking = parted(fails=2)
    worker = await start(blocking if blocks else handler, backoff=AT_ONCE)

    assert await queue.request({}, timeout=10) == ["A", "B", "C"]
    assert did == ["a", "b", "c"]
    assert steps(worker) == {"run": 3, "replayed": 3}


async def test_a_blocking_step_of_an_async_handler_does_not_block_the_loop(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    other = anyio.Event()
    go = threading.Event()

    async def handler(job: AsyncJob) -> Any:
        if job.data.get("other"):
            go.set()
            other.set()
            return None
        return await job.step("wait", go.wait, 5.0)

    await start(handler)
    waits = await queue.put({}, keep=60)
    await queue.put({"other": True})

    assert await queue.result(waits, wait=10) is True


async def test_a_step_in_a_thread_keeps_its_job_until_it_returns_when_that_is_cancelled(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    began, go = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(10)

    async def handler(job: AsyncJob) -> None:
        await job.step("work", work)

    worker = await start(handler)
    job_id = await queue.put({})
    await wait_until_async(began.is_set, "it has begun")
    await queue.cancel(job_id)
    await worker.until_idle()
    assert worker.outcomes() == {}

    go.set()

    await worker.until_outcomes(cancelled=1)


async def test_no_job_without_steps_is_sent_one_command_more(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        pass

    worker = await start(handler)
    await worker.until_idle()
    worker.commands.forget()
    await queue.put({})
    await worker.until_outcomes(completed=1)

    assert [sent.name for sent in worker.commands.besides("getMore")] == ["findAndModify", "delete"]


async def test_a_step_costs_one_write_and_a_replayed_one_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    _, handler, _ = parted()
    worker = await start(handler, backoff=AT_ONCE)
    await worker.until_idle()
    worker.commands.forget()
    await queue.put({})
    await worker.until_outcomes(retried=1, completed=1)

    writes = [
        sent
        for sent in worker.commands.named("findAndModify")
        if "concatArrays" in str(sent.command)
    ]
    reads = [sent for sent in worker.commands.named("find") if "lease" in str(sent.command)]
    assert len(writes) == 3
    assert reads == []


@pytest.mark.parametrize("fault", [CONNECTION_CUT, INTERRUPTED], ids=["cut", "interrupted"])
async def test_a_write_of_unknown_outcome_is_repeated(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any], fault: dict[str, Any]
) -> None:
    did, _, _ = parted()
    begun, go = anyio.Event(), anyio.Event()

    async def work() -> str:
        did.append("work")
        begun.set()
        await go.wait()
        return "done"

    async def handler(job: AsyncJob) -> Any:
        return await job.step("work", work)

    worker = await start(handler)
    job_id = await queue.put({}, keep=60)
    await begun.wait()
    with failing(client, "findAndModify", app=worker.app, times=3, **fault) as struck:
        go.set()
        assert await queue.result(job_id, wait=10) == "done"
        assert struck.hits() == 3

    assert did == ["work"]


async def test_a_step_that_cannot_be_stored_ends_with_the_lease_and_runs_again(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    did: list[int] = []
    go = anyio.Event()
    errors: list[str] = []

    async def work() -> str:
        did.append(1)
        if len(did) == 1:
            await go.wait()
        return "done"

    async def handler(job: AsyncJob) -> Any:
        try:
            return await job.step("work", work)
        except BaseException as error:
            errors.append(type(error).__name__)
            raise

    worker = await start(handler, timeout=1, reap_interval=0.2)
    job_id = await queue.put({}, keep=60)
    await wait_until_async(lambda: did, "it runs")
    with failing(client, "findAndModify", "update", app=worker.app, **INTERRUPTED):
        go.set()
        await wait_until_async(lambda: errors, "it is told so", 5)

    assert await queue.result(job_id, wait=10) == "done"
    assert len(did) == 2
    assert errors[0] in ("LeaseLost", "CancelledError")
    assert steps(worker) == {"run": 1, "failed": 1}


async def test_a_step_learns_that_its_job_is_to_be_cancelled(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    told: list[Exception] = []

    async def work() -> None:
        await anyio.sleep(0.05)

    async def handler(job: AsyncJob) -> None:
        for number in range(500):
            try:
                await job.step(f"s{number}", work)
            except JobCancelled as error:
                told.append(error)
                raise

    worker = await start(handler, timeout=300)
    job_id = await queue.put({})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")

    async with without_stream(client, worker):
        await queue.cancel(job_id)
        await worker.until_outcomes(cancelled=1)

    assert len(told) == 1


async def test_a_step_that_cannot_be_stored_makes_its_job_dead_and_no_other(
    start: WorkerStarter, queue: AsyncMongoQueue, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(job: AsyncJob) -> None:
        await job.step("work", lambda: object() if job.data["bad"] else 1)

    worker = await start(handler)
    bad = await queue.put({"bad": True})
    await queue.put({"bad": False})

    await worker.until_outcomes(dead=1, completed=1)
    info = await queue.get(bad)
    assert (info.state, info.attempts) == ("dead", 1)
    assert "step 'work'" in str(info.last_error)
    assert steps(worker) == {"run": 1, "failed": 1}
    assert [line.__dict__["event"] for line in caplog.records].count("job_dead") == 1


async def test_a_session_in_a_blocking_handler_is_refused_before_anything_is_run(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    did: list[str] = []
    raised: list[Exception] = []

    def handler(job: Job) -> None:
        with client.start_session() as session, session.start_transaction():
            try:
                job.step("book", did.append, "book", session=session)
            except ConfigurationError as error:
                raised.append(error)

    worker = await start(handler)
    await queue.put({})
    await worker.until_outcomes(completed=1)

    assert "needs an async handler" in str(raised[0])
    assert did == []


async def test_steps_in_transactions_are_once_in_effect_though_leases_are_renewed_meanwhile(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    started: list[StartedWorker] = []
    ledger = jobs.database.ledger
    ledger.insert_one({"_id": "made before: no transaction makes a collection"})

    async def book(session: Any, entry: str) -> str:
        target = settings_of(started[0].worker).store.jobs.database.ledger
        await target.insert_one({"entry": entry}, session=session)
        await anyio.sleep(0.15)
        return entry

    async def handler(job: AsyncJob) -> None:
        client = settings_of(started[0].worker).store.jobs.database.client
        async with client.start_session() as session:
            for number in range(4):
                entry = f"{job.data['n']}-{number}"

                async def booked(session: Any, entry: str = entry) -> None:
                    await job.step(entry, book, session, entry, session=session)

                await session.with_transaction(booked)
        if job.attempts < 3:
            raise OSError

    started.append(await start(handler, timeout=1.5, backoff=AT_ONCE))
    await queue.put_many([{"n": n} for n in range(6)])
    await started[0].until_outcomes(within=30, completed=6, retried=12)

    entries = sorted(each["entry"] for each in ledger.find({"entry": {"$exists": True}}))
    assert entries == [f"{n}-{number}" for n in range(6) for number in range(4)]


async def test_a_transaction_that_was_overtaken_by_a_renewal_is_tried_again_and_succeeds(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    started: list[StartedWorker] = []
    tries = 0

    async def handler(job: AsyncJob) -> None:
        target = settings_of(started[0].worker).store.jobs
        async with target.database.client.start_session() as session:

            async def booked(session: Any) -> None:
                nonlocal tries
                tries += 1
                await target.find_one({"_id": job.id}, session=session)  # here its snapshot begins
                if tries == 1:
                    await job.progress()
                await job.step("book", str, session=session)

            await session.with_transaction(booked)

    started.append(await start(handler))
    job_id = await queue.put({}, keep=60)
    await started[0].until_outcomes(completed=1)

    assert tries == 2
    assert [step.name for step in (await queue.get(job_id)).steps] == ["book"]


async def test_what_is_left_of_a_handler_can_do_no_step(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    kept: list[AsyncJob] = []

    async def handler(job: AsyncJob) -> None:
        kept.append(job)

    worker = await start(handler)
    await queue.put({})
    await worker.until_outcomes(completed=1)
    did: list[int] = []

    with pytest.raises(Exception, match="no longer held"):
        await kept[0].step("late", did.append, 1)

    assert did == []


async def test_transactions_of_steps_behind_one_another_may_outlast_the_lease(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    started: list[StartedWorker] = []

    async def work() -> None:
        await anyio.sleep(0.4)

    async def handler(job: AsyncJob) -> None:
        client = settings_of(started[0].worker).store.jobs.database.client
        async with client.start_session() as session:
            for number in range(8):
                async with await session.start_transaction():
                    await job.step(f"s{number}", work, session=session)

    started.append(await start(handler, timeout=2))
    await queue.put({})

    await started[0].until_outcomes(within=20, completed=1)


async def test_jobs_with_all_the_steps_that_they_may_have_are_claimed_together(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    """More than fits into one reply of 16 MB."""
    done = [{"name": f"s{number}", "result": "x" * 250_000} for number in range(16)]
    for number in range(6):
        jobs.insert_one(
            {"queue": "default", "state": "ready", "payload": {"n": number}, "steps": done}
        )

    async def handler(job: AsyncJob) -> None:
        assert len(await job.step("s15", str)) == 250_000

    worker = await start(handler)

    await worker.until_outcomes(within=60, completed=6)
    assert steps(worker) == {"replayed": 6}
