"""Jobs claimed ahead of the free slots, while handlers return quickly; and given back when they do
not.

Laws: batches form by themselves; going down is graceful.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.clock import monotonic
from streamqueue.metrics.series import AttemptOutcome, Metrics
from streamqueue.options import WorkerOptions
from streamqueue.protocol.document import JobRecord
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.worker.execution import unbegun
from streamqueue.worker.execution.attempt import Attempt
from streamqueue.worker.leases import Leases
from streamqueue.worker.sharing.shares import Shares
from streamqueue.worker.slots import AHEAD_SECONDS, MOST_AHEAD, Slots
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import WorkerStarter


class Handler:
    """A handler that returns at once, until it is told to hold on to its jobs."""

    def __init__(self, quick: float = float("inf")) -> None:
        self.begun: list[int] = []
        self.at_once = self.most_at_once = 0
        self.gate = anyio.Event()
        self._quick = quick

    async def __call__(self, job: AsyncJob) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.append(job.data["n"])
        if len(self.begun) > self._quick:
            await self.gate.wait()
        await checkpoint()
        self.at_once -= 1


async def test_handlers_that_return_at_once_share_claims_beyond_the_slots(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    handler = Handler()
    await queue.put_many([{"n": n} for n in range(1000)])

    worker = await start(handler, concurrency=4)
    await wait_until_async(lambda: worker.outcomes().get("completed") == 1000, "all ran", 30)

    assert len(worker.commands.claims()) <= 125  # four at a time would be 250
    assert handler.most_at_once <= 4
    assert handler.begun == list(range(1000))


async def test_what_was_claimed_for_handlers_that_then_take_long_goes_back_for_others(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Handler(quick=300)
    await queue.put_many([{"n": n} for n in range(1000)])

    worker = await start(handler, concurrency=4)
    await wait_until_async(lambda: len(handler.begun) == 304, "its slots are full")

    await wait_until_async(
        lambda: jobs.count_documents({"state": "running"}) == 4, "the others went back"
    )
    assert jobs.count_documents({"state": "ready", "attempts": {"$ne": 0}}) == 0
    handler.gate.set()
    await wait_until_async(lambda: worker.outcomes().get("completed") == 1000, "all ran", 30)
    assert sorted(handler.begun) == list(range(1000))


async def test_a_worker_that_stops_begins_no_job_that_it_has_claimed_ahead(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unbegun, "MOST_SECONDS", 60.0)
    handler = Handler(quick=300)
    await queue.put_many([{"n": n} for n in range(1000)])
    worker = await start(handler, concurrency=4)
    await wait_until_async(lambda: len(handler.begun) == 304, "its slots are full")
    await wait_until_async(
        lambda: jobs.count_documents({"state": "running"}) > 4, "jobs are claimed ahead"
    )

    worker.worker.stop()
    await wait_until_async(
        lambda: jobs.count_documents({"state": "running"}) == 4, "the others went back"
    )
    handler.gate.set()
    await worker.stop()

    assert len(handler.begun) == 304
    assert jobs.count_documents({"state": "ready", "attempts": 0}) == 1000 - 304
    assert jobs.count_documents({}) == 1000 - 304


class TwoUnbegun:
    """Two attempts that wait for a slot, of which there is none."""

    def __init__(self, async_jobs: AsyncCollection[Any], jobs: Collection[Any]) -> None:
        metrics = Metrics.of(CollectorRegistry())
        registered: Any = SimpleNamespace(metrics=metrics.consumer("default", "h"))
        self.slots = Slots(0)
        shares = Shares(self.slots, {"default": 2})
        self.share = registered.share = shares.share("default")
        self.outcome = registered.metrics.outcome
        self.store = AsyncStore(async_jobs)
        self.leases = Leases(self.store, WorkerOptions(timeout=5.0), metrics)
        self.attempts: list[Attempt] = []
        self.unbegun = unbegun.Unbegun(self.store, self.leases, self.slots, self.attempts.append)
        for _ in range(2):
            document = {"_id": ObjectId(), "queue": "default", "lease": b"t", "attempts": 1}
            jobs.insert_one({**document, "state": "running", "payload": {}})
            record = JobRecord.from_document({**document, "payload": {}}, max_attempts=3)
            ender: Any = None
            attempt = Attempt(record, registered, ender, sent=monotonic(), timeout=5.0)
            self.attempts.append(attempt)
            self.slots.take()
            self.share.take()
            self.leases.add(attempt)
            self.unbegun.add(attempt)


async def test_one_whose_lease_has_ended_meanwhile_is_lost_and_not_given_back(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    two = TwoUnbegun(async_jobs, jobs)
    two.attempts[0].deadline = monotonic()

    count = await two.unbegun.give_back()

    assert count == 1
    assert jobs.distinct("_id", {"state": "ready"}) == [two.attempts[1].record.id]
    assert two.outcome[AttemptOutcome.LEASE_LOST]._value.get() == 1
    assert two.outcome[AttemptOutcome.RELEASED]._value.get() == 1
    assert two.leases.under_way() == []


async def test_what_could_not_be_given_back_is_given_back_later(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    two = TwoUnbegun(async_jobs, jobs)

    with failing(client, "update", app=None, errorCode=11601):
        await two.unbegun.give_back()
        before = jobs.count_documents({"state": "ready"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(two.store.keep_untaking)
        await wait_until_async(
            lambda: jobs.count_documents({"state": "ready", "attempts": 0}) == 2, "they are back"
        )
        tasks.cancel_scope.cancel()

    assert before == 0


async def test_one_for_which_a_slot_is_free_waits_for_the_event_loop_alone_and_is_kept(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    two = TwoUnbegun(async_jobs, jobs)
    two.slots.concurrency = 1

    await two.unbegun.give_back_overdue()
    none_yet = jobs.count_documents({"state": "ready"})
    for attempt in two.attempts:
        attempt.claimed_at -= unbegun.MOST_SECONDS
    await two.unbegun.give_back_overdue()

    assert none_yet == 0
    assert jobs.distinct("_id", {"state": "ready"}) == [two.attempts[1].record.id]
    assert two.leases.held() == [two.attempts[0]]


async def test_what_is_given_back_leaves_the_slots_of_its_queue_to_others(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    two = TwoUnbegun(async_jobs, jobs)
    before = two.share.room

    await two.unbegun.give_back()

    assert (before, two.share.room) == (0, 2)


# how many


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, float]:
    now = {"at": 100.0}
    monkeypatch.setattr("streamqueue.worker.slots.monotonic", lambda: now["at"])
    return now


def claim_and_run(slots: Slots, jobs: int) -> None:
    for _ in range(jobs):
        slots.take()
        slots.handler_starts()
        slots.handler_over()
        slots.ended()


def test_nothing_is_claimed_ahead_of_handlers_that_still_run(clock: dict[str, float]) -> None:
    slots = Slots(4)
    slots.answered(0.01)
    for _ in range(4):
        slots.take()
        slots.handler_starts()
    clock["at"] += 1

    slots.answered(0.01)

    assert slots.wanted == slots.free == 0


def test_the_faster_handlers_return_the_more_is_claimed_ahead_up_to_a_limit(
    clock: dict[str, float],
) -> None:
    slots, wanted = Slots(4), []
    slots.answered(0.01)
    for jobs in (4, 40, 400, 4000):
        claim_and_run(slots, jobs)
        clock["at"] += 0.1
        slots.answered(0.01)
        wanted.append(slots.wanted)

    assert wanted == [4, 12, 120, 4 + MOST_AHEAD]


def test_however_long_claims_take_no_more_is_claimed_ahead_than_is_begun_in_a_moment(
    clock: dict[str, float],
) -> None:
    slots = Slots(4)
    slots.answered(2.0)
    claim_and_run(slots, 400)
    clock["at"] += 4

    slots.answered(2.0)

    assert slots.wanted == 4 + 100 * AHEAD_SECONDS


def test_what_is_known_of_quick_handlers_is_forgotten_when_jobs_were_given_back(
    clock: dict[str, float],
) -> None:
    slots = Slots(4)
    slots.answered(0.01)
    claim_and_run(slots, 400)
    clock["at"] += 0.1
    slots.answered(0.01)
    slots.take()

    slots.given_back(1)

    assert slots.wanted == 4


def test_while_jobs_wait_to_be_begun_the_next_claim_waits_for_half_of_the_places(
    clock: dict[str, float],
) -> None:
    slots = Slots(10)
    for _ in range(6):
        slots.take()
    few = slots.wanted
    slots.handler_starts()
    slots.handler_over()

    assert (few, slots.wanted) == (0, 5)
