"""Jobs that the server refuses to change stop nobody, and are not tried without end.

Law: poison is contained.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Timestamp
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.store import refused
from streamqueue.store.flows import timers
from streamqueue.worker import scheduler
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

PAST = datetime(2020, 1, 1, tzinfo=UTC)
STUCK: dict[str, dict[str, Any]] = {
    "scheduled": {"state": "scheduled", "run_at": PAST},
    "running": {"state": "running", "locked_until": PAST, "lease": b"a", "attempts": 1},
    "ready": {"state": "ready", "seq": Timestamp(0, 0), "run_at": PAST, "priority": 9},
}
Seen = list[tuple[int, float]]


def insert_stuck(jobs: Collection[Any], kind: str, count: int = 1) -> None:
    """Insert jobs that the server lets nobody change, because a validator came after them."""
    job = {"queue": "default", "payload": {"n": -1, "bad": True}, **STUCK[kind]}
    jobs.insert_many([dict(job) for _ in range(count)])
    jobs.database.command("collMod", jobs.name, validator={"payload.bad": {"$exists": False}})


@pytest.fixture
def seen() -> Seen:
    """The number of each job that was run, and when it started."""
    return []


@pytest.fixture
def handler(seen: Seen) -> Callable[[AsyncJob], Any]:
    async def handler(job: AsyncJob) -> None:
        seen.append((job.data["n"], time.monotonic()))

    return handler


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", STUCK)
async def test_a_job_that_cannot_be_changed_is_tried_at_intervals_that_grow(
    start: WorkerStarter, jobs: Collection[Any], handler: Callable[..., Any], kind: str
) -> None:
    insert_stuck(jobs, kind)

    worker = await start(handler)
    await worker.until_idle(0.9)  # between the third try and the fourth, at the latest

    sent = worker.commands.besides("getMore")
    assert len(sent) < 60, [command.name for command in sent]


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", STUCK)
async def test_a_job_that_could_not_be_changed_is_run_once_it_can_be(
    start: WorkerStarter, jobs: Collection[Any], handler: Callable[..., Any], kind: str
) -> None:
    insert_stuck(jobs, kind)
    worker = await start(handler)
    await worker.until_idle(0.3)

    jobs.database.command("collMod", jobs.name, validator={})

    await worker.until_outcomes(completed=1, within=5)


async def test_a_job_that_cannot_be_promoted_does_not_delay_the_one_behind_it(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    seen: Seen,
) -> None:
    """It was there before the worker: no event says when it is due, only the look ahead does."""
    insert_stuck(jobs, "scheduled")
    due = time.monotonic() + 2.2
    await queue.put({"n": 1}, delay=2.2)

    await start(handler, sweep_interval=None)
    await wait_until_async(lambda: seen, "the job behind it is run", 5)

    assert seen[0][1] - due < 2


async def test_a_lease_that_cannot_be_ended_does_not_delay_the_one_behind_it(
    start: WorkerStarter, jobs: Collection[Any], handler: Callable[..., Any], seen: Seen
) -> None:
    insert_stuck(jobs, "running")
    ends = datetime.now(UTC) + timedelta(seconds=2.2)
    due = time.monotonic() + 2.2
    good = {**STUCK["running"], "locked_until": ends, "queue": "default", "payload": {"n": 1}}
    jobs.insert_one(good)

    await start(handler, sweep_interval=None, reap_interval=60)
    await wait_until_async(lambda: seen, "the job behind it is run", 5)

    assert seen[0][1] - due < 0.6


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", STUCK)
async def test_more_stuck_jobs_than_are_read_at_a_time_hide_no_other(
    start: WorkerStarter,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    seen: Seen,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timers, "BATCH", 10)
    insert_stuck(jobs, kind, 100)
    later = {"run_at": PAST + timedelta(1), "locked_until": PAST + timedelta(1), "priority": 0}
    job = {"queue": "default", "payload": {"n": 1}, **STUCK[kind]}
    jobs.insert_one({**job, **{name: later[name] for name in later if name in job}})

    await start(handler, concurrency=2)

    await wait_until_async(lambda: seen, "the job behind them is run", 15)


@pytest.mark.parametrize("oddness", [{"queue": ["default"]}, {"_id": {"shop": 1}}])
async def test_an_odd_document_that_cannot_be_buried_stops_nobody(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    seen: Seen,
    oddness: dict[str, Any],
) -> None:
    insert_stuck(jobs, "ready")
    jobs.delete_many({})
    odd = {"queue": "default", "payload": {"bad": True}, **STUCK["ready"], **oddness}
    jobs.insert_one(odd, bypass_document_validation=True)

    worker = await start(handler, sweep_interval=None)
    await queue.put({"n": 1})
    await wait_until_async(lambda: seen, "the good job is run", 5)

    await worker.until_idle(0.4)


async def test_more_stuck_jobs_than_can_be_remembered_keep_no_worker_busy(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused, "MOST_STUCK", 3)
    insert_stuck(jobs, "ready", 10)
    worker = await start(handler, concurrency=2, sweep_interval=None)

    await worker.until_idle(0.3)
    await queue.put({"n": 1})
    await wait_until_async(lambda: seen, "a job that is put later is run", 15)
    await worker.until_idle(0.3)


async def test_more_stuck_jobs_than_can_be_remembered_are_no_missed_wakeups(
    start: WorkerStarter,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refused, "MOST_STUCK", 3)
    monkeypatch.setattr(scheduler, "CONFIRM_AFTER", 0.01)
    insert_stuck(jobs, "ready", 10)

    worker = await start(handler, concurrency=2, sweep_interval=0.1)

    def sweeps() -> int:
        finds = worker.commands.named("find")
        return sum(sent.command["filter"].get("state") == "scheduled" for sent in finds)

    await wait_until_async(lambda: sweeps() >= 15, "the sweep has looked several times")
    assert worker.metric("streamqueue_missed_wakeups_total") == 0


async def test_a_job_that_cannot_be_claimed_is_no_missed_wakeup(
    start: WorkerStarter,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "CONFIRM_AFTER", 0.01)
    insert_stuck(jobs, "ready")
    caplog.set_level(logging.ERROR, "streamqueue")

    worker = await start(handler, concurrency=2, sweep_interval=0.1)

    def sweeps() -> int:
        finds = [sent.command for sent in worker.commands.named("find")]
        ready = [find for find in finds if find["filter"].get("state") == "ready"]
        return sum(find.get("limit", 0) >= scheduler.SWEEP_LIMIT for find in ready)

    await wait_until_async(lambda: sweeps() >= 6, "the sweep has looked several times")

    assert [record.event for record in caplog.records] == ["job_stuck"]  # type: ignore[attr-defined]
    assert worker.metric("streamqueue_missed_wakeups_total") == 0


@pytest.mark.parametrize("kind", STUCK)
async def test_what_a_refusal_quotes_is_not_logged(
    start: WorkerStarter,
    jobs: Collection[Any],
    handler: Callable[..., Any],
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The server names the rule that was broken and the values that broke it."""
    insert_stuck(jobs, kind)
    jobs.database.command("collMod", jobs.name, validator={"payload.bad": "hunter2"})
    caplog.set_level(logging.DEBUG, "streamqueue")

    await start(handler, reap_interval=0.1)
    await wait_until_async(
        lambda: any(getattr(record, "event", "") == "job_stuck" for record in caplog.records),
        "its refusal is logged",
    )

    assert "hunter2" not in "".join(str(vars(record)) for record in caplog.records)
