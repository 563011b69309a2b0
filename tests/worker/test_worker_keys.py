"""Jobs with keys in a worker: never two at once of one key, and the newest is always run."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Cancel, Discard, DuplicateJob
from streamqueue.metrics.series import Metrics
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.worker.scheduler import HeldBack
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

PAST = datetime(2001, 1, 1, tzinfo=UTC)


class Gate:
    """A handler whose jobs end when they are told to; notes what ran, and how many at once."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen: list[int] = []
        self.running: Counter[str | None] = Counter()
        self.most = 0
        self.open = anyio.Event()

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append(job.data["n"])
        self.running[job.key] += 1
        self.most = max(self.most, *self.running.values())
        try:
            await self.open.wait()
            if self.error is not None and job.data["n"] == 1:
                raise self.error
        finally:
            self.running[job.key] -= 1


async def replaced(queue: AsyncMongoQueue, n: int, **more: Any) -> Any:
    return await queue.put({"n": n}, key="k", on_conflict="replace", **more)


async def until_parked(jobs: Collection[Any]) -> None:
    await wait_until_async(
        lambda: jobs.count_documents({"state": "waiting"}), "the second job was not parked"
    )


async def until_seen(gate: Gate, *numbers: int) -> None:
    await until_seen_by(gate.seen, *numbers)


async def until_seen_by(seen: list[int], *numbers: int) -> None:
    await wait_until_async(lambda: seen == [*numbers], f"{numbers} were not seen")


async def test_what_comes_while_a_job_runs_is_run_after_it_in_its_newest_form(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    worker = await start(gate)
    await replaced(queue, 1)
    await until_seen(gate, 1)
    await replaced(queue, 2)
    await until_parked(jobs)
    await replaced(queue, 3)

    gate.open.set()

    await worker.until_outcomes(completed=2)
    assert (gate.seen, gate.most) == ([1, 3], 1)
    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("error", [OSError("no"), Discard("no"), Cancel("no")])
async def test_one_that_waits_is_run_however_the_other_ends(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], error: Exception
) -> None:
    gate = Gate(error)
    await start(gate)
    await replaced(queue, 1)
    await until_seen(gate, 1)
    await replaced(queue, 2)
    await until_parked(jobs)

    gate.open.set()

    await until_seen(gate, 1, 2)
    assert gate.most == 1


async def test_an_attempt_that_fails_while_a_newer_job_waits_is_superseded(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate(OSError("no"))
    worker = await start(gate)
    first = await replaced(queue, 1, keep=60)
    await until_seen(gate, 1)
    await replaced(queue, 2)

    gate.open.set()

    await worker.until_outcomes(cancelled=1, completed=1)
    info = await queue.get(first)
    assert (info.state, info.last_error) == ("cancelled", "superseded: a newer job has its key")
    assert gate.seen == [1, 2]


async def test_the_job_that_waits_for_one_of_a_dead_consumer_is_run_when_its_lease_has_ended(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    gate.open.set()
    first = await replaced(queue, 1)
    await queue.next()
    await replaced(queue, 2)
    worker = await start(gate)
    await until_parked(jobs)

    jobs.update_one({"_id": first}, {"$set": {"locked_until": PAST}})

    await until_seen(gate, 2)
    await wait_until_async(lambda: jobs.count_documents({}) == 0, "something was left")
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_reaped_total", result="cancelled") == 1,
        "it was not counted",
    )


async def test_what_nobody_came_to_let_through_is_found(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    first = await replaced(queue, 1)
    await queue.next()
    worker = await start(gate, timeout=1.5)
    await worker.until_idle()
    await replaced(queue, 2)
    await until_parked(jobs)
    await worker.until_idle()  # whoever has parked it has looked again

    jobs.delete_one({"_id": first})

    await until_seen(gate, 2)


async def test_what_has_been_left_waiting_is_found_by_who_comes(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    await replaced(queue, 2)
    jobs.update_many({}, {"$set": {"state": "waiting"}})

    await start(gate)

    await until_seen(gate, 2)


@pytest.mark.slow
async def test_of_four_workers_no_two_run_jobs_of_one_key(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    gate.open.set()
    for _ in range(4):
        await start(gate)

    for n in range(30):
        await queue.put({"n": n}, key=str(n % 3), on_conflict="replace")

    await wait_until_async(lambda: jobs.count_documents({}) == 0, "something was left", 30)
    assert gate.most == 1
    assert {27, 28, 29} <= set(gate.seen)


async def test_of_many_that_are_claimed_together_only_those_wait_that_must(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    for key in "ab":
        await queue.put({"n": 1}, key=key, key_until="start")
    assert len(await queue.claim(2)) == 2
    for key in "ab":
        await queue.put({"n": 2}, key=key, key_until="start")
    await queue.put_many([{"n": 3}] * 15)

    await start(gate, concurrency=20)

    await wait_until_async(lambda: len(gate.seen) == 15, "the others were not run")
    assert set(gate.seen) == {3}
    assert jobs.distinct("attempts", {"state": "waiting"}) == [0]


@pytest.mark.parametrize("keep", [None, 60])
async def test_a_completed_job_holds_its_key_for_as_long_as_it_was_put_for(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], keep: float | None
) -> None:
    gate = Gate()
    gate.open.set()
    worker = await start(gate, keep=keep)
    await queue.put({"n": 1}, key="k", unique_for=3600)
    await queue.put({"n": 2}, key="other", unique_for=3600)

    await worker.until_outcomes(completed=2)

    for key in ("k", "other"):
        with pytest.raises(DuplicateJob):
            await queue.put({}, key=key)
    assert await queue.size() == (0 if keep is None else 2)


async def test_where_a_validator_wants_all_that_a_job_has_a_completed_one_stays(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    worker = await start(gate)
    job_id = await queue.put({"n": 1}, key="k", unique_for=3600)
    await until_seen(gate, 1)
    jobs.database.command("collMod", jobs.name, validator={"payload": {"$exists": True}})

    gate.open.set()

    await worker.until_outcomes(completed=1)
    assert (await queue.get(job_id)).state == "done"


async def test_of_a_job_that_takes_longer_than_its_key_is_held_nothing_is_left(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    gate = Gate()
    worker = await start(gate)
    await queue.put({"n": 1}, key="1", unique_for=3600)
    await queue.put({"n": 2}, key="2", unique_for=3600)
    await wait_until_async(lambda: len(gate.seen) == 2, "they are run")
    jobs.update_one({"key": "1"}, {"$set": {"unique_until": PAST}})

    gate.open.set()

    await worker.until_outcomes(completed=2)
    assert jobs.distinct("key") == ["2"]


async def test_a_result_that_nobody_keeps_need_not_be_one_that_can_be_stored(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> object:
        return object()

    worker = await start(handler)
    await queue.put({}, key="k", unique_for=3600)

    await worker.until_outcomes(completed=1)


async def test_somebody_who_awaits_such_a_job_is_told_its_result(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    begun = anyio.Event()

    async def handler(job: AsyncJob) -> int:
        begun.set()
        await wait_until_async(
            lambda: jobs.count_documents({"awaited": True}), "nobody waited for it"
        )
        return 42

    await start(handler)
    job_id = await queue.put({}, key="k", unique_for=3600)
    await begun.wait()

    assert await queue.result(job_id, wait=30) == 42


async def test_a_job_completed_in_a_transaction_lets_the_other_through(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen: list[int] = []

    def client() -> AsyncMongoClient[Any]:
        return settings_of(worker.worker).store.jobs.database.client

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data["n"])
        if job.data["n"] == 2:
            return
        async with client().start_session() as session:

            async def work(session: AsyncClientSession) -> None:
                await job.complete(session=session)
                await replaced(queue, 2)
                await until_parked(jobs)

            await session.with_transaction(work)

    worker = await start(handler)
    await replaced(queue, 1)

    await wait_until_async(lambda: seen == [1, 2], "the second was not run")


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_job_completed_in_a_session_lets_the_other_through(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    goes_on: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once without a transaction; else when it is seen that it was committed."""
    monkeypatch.setattr(HeldBack, "note", lambda _: None)  # nobody looks for it
    seen: list[int] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data["n"])
        if job.data["n"] == 2:
            return
        client = settings_of(worker.worker).store.jobs.database.client
        async with client.start_session() as session:
            await replaced(queue, 2)
            await until_parked(jobs)
            await worker.until_idle()  # whoever has parked it has looked again
            if not goes_on:
                await job.complete(session=session)
            else:
                async with await session.start_transaction():
                    await job.complete(session=session)
                await until_seen_by(seen, 1, 2)

    worker = await start(handler, timeout=2 if goes_on else 60, sweep_interval=None)
    await replaced(queue, 1)

    await until_seen_by(seen, 1, 2)
    await worker.until_outcomes(completed=2)


async def test_a_job_whose_transaction_was_committed_lets_the_other_through_whatever_is_raised(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen: list[int] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data["n"])
        if job.data["n"] == 2:
            return
        client = settings_of(worker.worker).store.jobs.database.client
        async with client.start_session() as session:
            await replaced(queue, 2)
            await until_parked(jobs)
            await worker.until_idle()  # whoever has parked it has looked again
            async with await session.start_transaction():
                await job.complete(session=session)
        raise ValueError

    worker = await start(handler, timeout=60, sweep_interval=None)
    await replaced(queue, 1)

    await worker.until_outcomes(completed=2)


async def test_one_that_is_parked_while_somebody_looks_is_found_by_the_next_look(
    async_jobs: AsyncCollection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AsyncStore(async_jobs)
    held_back = HeldBack(store, ["default"], 60, Metrics(CollectorRegistry()))
    look = store.look_for_held_back

    async def overtaken(queues: Any) -> Any:
        found = await look(queues)
        await async_jobs.insert_one({"queue": "default", "state": "waiting", "key": "k"})
        store.parked()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(store, "look_for_held_back", overtaken)
        assert await held_back.run_once() == 60

    await held_back.run_once()

    assert await async_jobs.count_documents({"state": "ready"}) == 1
