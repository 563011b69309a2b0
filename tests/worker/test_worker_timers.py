"""Jobs for later start when they are due, by a timer and not by asking.

Law: nobody polls.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from bson import Code, MaxKey, Timestamp
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Retry, Snooze, clock
from streamqueue.worker import scheduler
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import WorkerStarter


class Starts:
    """A handler that notes when each job started, and how late that was."""

    def __init__(self) -> None:
        self.lateness: list[float] = []
        self.seen: list[Any] = []
        self.first_at = 0.0

    async def __call__(self, job: AsyncJob) -> None:
        self.first_at = self.first_at or time.monotonic()
        self.seen.append(job.data["n"])
        if "due" in job.data:
            self.lateness.append((datetime.now(UTC) - job.data["due"]).total_seconds())

    async def until_seen(self, count: int, within: float = 10) -> None:
        await wait_until_async(lambda: len(self.seen) >= count, f"{count} jobs came", within)


async def test_delayed_jobs_start_when_they_are_due_and_not_before(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    await start(starts, sweep_interval=None)

    for n in range(9):
        due = datetime.now(UTC) + timedelta(seconds=0.3 + n / 10)
        await queue.put({"n": n, "due": due}, run_at=due)
    await starts.until_seen(9)

    assert min(starts.lateness) > -0.005
    assert statistics.median(starts.lateness) < 0.2
    assert max(starts.lateness) < 1


async def test_nothing_is_sent_until_a_delayed_job_is_due(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    worker = await start(starts)
    await worker.until_idle()
    worker.commands.forget()

    put_at = time.monotonic()
    await queue.put({"n": 1}, delay=1.5)
    await starts.until_seen(1)

    sent_early = [
        sent.name for sent in worker.commands.besides("getMore") if sent.at < put_at + 1.45
    ]
    assert sent_early == []


async def test_a_job_scheduled_later_but_due_earlier_moves_the_timer(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    worker = await start(starts, sweep_interval=None)
    await queue.put({"n": "later"}, delay=60)
    await worker.until_idle()

    await queue.put({"n": "sooner"}, delay=0.3)

    await starts.until_seen(1, within=1.5)
    assert starts.seen == ["sooner"]


@pytest.mark.parametrize("on_conflict", ["replace", "earlier"])
async def test_a_job_that_is_put_again_for_an_earlier_time_moves_the_timer(
    start: WorkerStarter, queue: AsyncMongoQueue, on_conflict: Any
) -> None:
    starts = Starts()
    await start(starts, sweep_interval=None)
    await queue.put({"n": 1}, key="k", delay=3600)
    await anyio.wait_all_tasks_blocked()

    await queue.put({"n": 2}, key="k", on_conflict=on_conflict, delay=0.2)
    await starts.until_seen(1)

    assert starts.seen == [2 if on_conflict == "replace" else 1]


@pytest.mark.parametrize("on_conflict", ["replace", "earlier"])
async def test_a_job_that_becomes_ready_by_a_put_wakes_the_worker(
    start: WorkerStarter, queue: AsyncMongoQueue, on_conflict: Any
) -> None:
    starts = Starts()
    await start(starts, sweep_interval=None)
    await queue.put({"n": 1}, key="k", delay=3600)

    await queue.put({"n": 2}, key="k", on_conflict=on_conflict)

    await starts.until_seen(1)


async def test_a_job_that_is_replaced_by_one_that_expires_sooner_ends_by_then(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await start(Starts(), sweep_interval=None)
    await queue.put({"n": 1}, key="k", delay=3600, keep=60)

    await queue.put({"n": 2}, key="k", on_conflict="replace", delay=3600, expires=0.3, keep=60)

    await wait_until_async(lambda: jobs.find_one({"state": "cancelled"}), "it has expired")


async def test_jobs_scheduled_before_the_worker_started_are_run_when_due(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    await queue.put({"n": "due"}, delay=0.05)
    await queue.put({"n": "not yet"}, delay=1)

    await start(starts, sweep_interval=None)

    await starts.until_seen(2, within=3)
    assert starts.seen == ["due", "not yet"]


NO_DATES = (None, Timestamp(2**31, 1), Code("x"), Code("x", {}), MaxKey())


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "run_at",
    [
        *({}, {"run_at": datetime(2020, 1, 1, tzinfo=UTC)}),
        {"run_at": [datetime(2020, 1, 1, tzinfo=UTC)], "priority": [1, 2]},
        *({"run_at": date} for date in NO_DATES),
    ],
    ids=repr,
)
async def test_a_foreign_scheduled_job_that_is_due_already_is_run(
    start: WorkerStarter, jobs: Collection[Any], run_at: dict[str, Any]
) -> None:
    starts = Starts()
    worker = await start(starts, sweep_interval=None)
    await worker.until_idle()

    jobs.insert_one({"queue": "default", "state": "scheduled", "payload": {"n": 1}, **run_at})

    await starts.until_seen(1, within=2)


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [(ValueError(), [1, 2]), (Retry(delay=0.3), [1, 2]), (Snooze(0.3), [1, 1])],
    ids=["the backoff", "retry", "snooze"],
)
async def test_a_job_that_waits_for_its_next_attempt_comes_back_by_itself(
    start: WorkerStarter, queue: AsyncMongoQueue, outcome: Exception, attempts: list[int]
) -> None:
    runs: list[tuple[int, float]] = []

    async def handler(job: AsyncJob) -> None:
        runs.append((job.attempts, time.monotonic()))
        if len(runs) == 1:
            raise outcome

    await start(handler, backoff=Backoff(initial=0.3, jitter=0), sweep_interval=None)
    await queue.put({"n": 1})
    await wait_until_async(lambda: len(runs) == 2, "it came back", 3)

    assert [attempt for attempt, _ in runs] == attempts
    assert 0.29 < runs[1][1] - runs[0][1] < 1.3


async def test_a_thousand_jobs_due_together_are_all_run_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    starts = Starts()
    worker = await start(starts, concurrency=50, sweep_interval=None)
    due = datetime.now(UTC) + timedelta(seconds=1)
    await queue.put_many([{"n": n} for n in range(1000)], run_at=due)

    await worker.until_outcomes(completed=1000, within=15)

    assert Counter(starts.seen) == Counter(range(1000))
    assert jobs.count_documents({}) == 0


async def test_a_promotion_that_failed_is_tried_again(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    starts = Starts()
    worker = await start(starts, sweep_interval=None)
    await worker.until_idle()

    with failing(client, "update", app=worker.app, times=2, errorCode=262) as hits:
        await queue.put({"n": 1}, delay=0.1)
        await wait_until_async(lambda: hits.hits() >= 2, "the promotion failed")

    await starts.until_seen(1, within=4)


@pytest.mark.parametrize("left", [math.inf, 1e12, 3.0], ids=["never", "in ages", "soon"])
async def test_it_looks_again_after_a_while_whatever_it_was_told(
    monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    for module in (clock, scheduler):
        monkeypatch.setattr(module, "LONGEST_SLEEP", 0.02)
    looks = 0

    async def look() -> float:
        nonlocal looks
        looks += 1
        return left

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.Alarm().keep, look, "promote", "Promoting due jobs", 0.001)
        await wait_until_async(lambda: looks >= 3, "three looks", 3)
        tasks.cancel_scope.cancel()
