"""Queues that are paused while workers serve them: nothing starts, and nothing is forgotten.

Laws: the document is the truth; the wake-up path cannot die; nobody polls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from streamqueue.store import known_settings
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.stream import watcher
from streamqueue.worker import backlog, scheduler
from streamqueue.worker.execution import unbegun
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, failing
from tests.worker.members import Members, Notes
from tests.worker.started import STREAM_APP, WorkerStarter

HELD_AFTER = 1.0
"""Seconds after a pause has returned from which on nothing may start; a tenth of it is the rule."""


class Starts:
    """A handler that notes when its jobs began, and holds on to some."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.at: list[float] = []
        self.seen: list[Any] = []
        self.gate = anyio.Event()
        self.seconds = seconds

    async def __call__(self, job: AsyncJob) -> None:
        self.at.append(time.monotonic())
        self.seen.append(job.data.get("n"))
        if job.data.get("waits"):
            await self.gate.wait()
        await anyio.sleep(self.seconds)

    async def until_still(self) -> None:
        """Wait until none has begun for as long as a pause may take to hold."""
        await anyio.sleep(HELD_AFTER)
        before = len(self.at)
        await anyio.sleep(0.1)
        assert len(self.at) == before, "jobs begin in a paused queue"

    def since(self, moment: float) -> list[float]:
        """How long after that moment jobs began."""
        return [at - moment for at in self.at if at > moment]


def settings_reads(*workers: Any) -> int:
    """How often they have read the settings of the queues."""
    return sum(
        str(sent.command.get("find", "")).endswith(".settings")
        for worker in workers
        for sent in worker.commands.named("find")
    )


@asynccontextmanager
async def puts_going_on(queue: AsyncMongoQueue) -> AsyncIterator[None]:
    """Put one job after the other meanwhile."""

    async def put() -> None:
        while True:
            await queue.put({"n": -1})
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put)
        yield
        tasks.cancel_scope.cancel()


# a worker with a stream of its own


async def test_no_job_of_a_paused_queue_begins_until_it_is_resumed(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    worker = await start(starts)
    await queue.put({"n": 1})
    await wait_until_async(lambda: starts.seen == [1], "it works")

    await queue.pause()
    await wait_until_async(lambda: settings_reads(worker) == 2, "it has heard of the pause")
    await queue.put({"n": 2})
    await starts.until_still()
    await queue.resume()

    await wait_until_async(lambda: starts.seen == [1, 2], "it goes on", 5)


async def test_a_backlog_is_left_alone_within_moments_of_a_pause_and_taken_up_again(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    starts = Starts(seconds=0.01)
    await queue.put_many([{"n": n} for n in range(2000)])
    await start(starts, concurrency=10)
    await wait_until_async(lambda: len(starts.seen) > 20, "it is at it")

    await queue.pause()
    paused_at = time.monotonic()
    await starts.until_still()
    await wait_until_async(lambda: not jobs.count_documents({"state": "running"}), "none is held")

    assert max(starts.since(paused_at), default=0) < HELD_AFTER
    assert jobs.count_documents({"state": "ready", "attempts": {"$ne": 0}}) == 0
    left, resumed_at = jobs.count_documents({"state": "ready"}), time.monotonic()
    await queue.resume()
    await wait_until_async(lambda: len(starts.seen) == 2000 or starts.since(resumed_at), "goes on")
    assert left > 1000


async def test_a_pause_is_noticed_while_the_stream_rests(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is closed while a worker looks often by itself: no bell is heard then."""
    monkeypatch.setattr(watcher, "REST_AFTER", 0.2)
    monkeypatch.setattr(backlog, "OFTEN", 60.0)
    monkeypatch.setattr(backlog, "MAX_CHUNK", 64)
    starts = Starts(seconds=0.01)
    await queue.put_many([{"n": n} for n in range(3000)])
    worker = await start(starts, concurrency=5, sweep_interval=None)
    await wait_until_async(lambda: worker.commands.named("ping"), "the stream is closed")
    assert worker.metric("streamqueue_stream_restarts_total") == 0

    await queue.pause()
    paused_at = time.monotonic()
    await starts.until_still()

    assert max(starts.since(paused_at), default=0) < HELD_AFTER
    assert len(starts.seen) < 3000


async def test_running_jobs_of_a_paused_queue_go_on_to_their_end(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    await queue.put({"n": 1, "waits": True})
    worker = await start(starts, timeout=1.5)
    await wait_until_async(lambda: starts.seen == [1], "it runs")

    await queue.pause()
    await wait_until_async(worker.commands.renewals, "its lease is renewed")
    starts.gate.set()

    await worker.until_outcomes(completed=1)


async def test_what_was_claimed_and_not_begun_is_given_back_with_its_attempts_as_before(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unbegun, "MOST_SECONDS", 60.0)
    starts = Starts()
    await queue.put_many([{"n": n, "waits": n >= 300} for n in range(1000)])
    await start(starts, concurrency=4)
    await wait_until_async(lambda: len(starts.seen) == 304, "its slots are full")
    await wait_until_async(
        lambda: jobs.count_documents({"state": "running"}) > 4, "jobs are claimed ahead"
    )

    await queue.pause()
    await wait_until_async(
        lambda: jobs.count_documents({"state": "running"}) == 4, "the others went back"
    )
    starts.gate.set()
    await wait_until_async(lambda: not jobs.count_documents({"state": "running"}), "all ended")
    await starts.until_still()

    assert len(starts.seen) == 304
    assert jobs.count_documents({"state": "ready", "attempts": 0}) == 1000 - 304


async def test_a_claim_that_is_answered_after_the_pause_begins_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    starts = Starts()
    worker = await start(starts)
    await worker.until_idle()
    worker.commands.forget()
    slow = {"blockConnection": True, "blockTimeMS": 350}

    with failing(client, "findAndModify", app=worker.app, **slow) as claims:
        await queue.put({"n": 1})
        await wait_until_async(claims.hits, "it is being claimed")
        await queue.pause()
        await wait_until_async(lambda: settings_reads(worker), "it has heard of the pause")
    await wait_until_async(lambda: worker.commands.named("update", "delete"), "it has an end")
    await wait_until_async(
        lambda: jobs.count_documents({"state": "ready", "attempts": 0}), "it is given back"
    )

    assert starts.seen == []


async def test_other_queues_of_a_worker_go_on(
    start: WorkerStarter,
    async_jobs: AsyncCollection[Any],
    queue: AsyncMongoQueue,
) -> None:
    starts, others = Starts(), Starts()

    async def reports(job: AsyncJob) -> None:
        await others(job)

    report_queue = AsyncMongoQueue(async_jobs, name="reports")
    await start(starts, reports)
    await queue.pause()
    await queue.put_many([{"n": n} for n in range(200)], priority=9)
    await report_queue.put_many([{"n": n} for n in range(200)])

    await wait_until_async(lambda: len(others.seen) == 200, "the others ran")
    assert starts.seen == []
    await report_queue.put({"n": 200})
    await wait_until_async(lambda: len(others.seen) == 201, "one that is announced as well")


async def test_a_queue_that_may_have_only_some_of_the_slots_is_paused_and_goes_on_like_any_other(
    start: WorkerStarter, async_jobs: AsyncCollection[Any], queue: AsyncMongoQueue
) -> None:
    """What waits in it is known apart from all else (``worker.lanes``)."""
    starts, others = Starts(seconds=0.02), Starts()
    reports = AsyncMongoQueue(async_jobs, name="reports")
    worker = start.prepare(others)
    worker.worker.handler("reports", concurrency=1)(starts)
    await start.begin(worker)
    await reports.put_many([{"n": n} for n in range(50)])
    await wait_until_async(lambda: len(starts.seen) > 5, "it is at it")

    await reports.pause()
    await starts.until_still()
    early = len(starts.seen)
    await reports.put({"n": 50})
    await queue.put({"n": 1})
    await wait_until_async(lambda: others.seen, "the other queue goes on")
    await reports.resume()

    await wait_until_async(lambda: len(starts.seen) == 51, "it goes on")
    assert early < 51


@pytest.mark.slow
async def test_a_worker_that_is_started_while_its_queue_is_paused_claims_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    """Fifty starts while jobs are put."""
    starts = Starts()
    await queue.pause()

    async with puts_going_on(queue):
        for _ in range(5):
            workers = [start.prepare(starts, sweep_interval=None) for _ in range(10)]
            async with anyio.create_task_group() as tasks:
                for worker in workers:
                    tasks.start_soon(start.begin, worker)
            for worker in workers:
                await wait_until_async(
                    lambda worker=worker: settings_reads(worker), "it has read the settings"
                )
                worker.worker.stop()
            for worker in workers:
                await worker.until_ended()

    claims = [sent for worker in start.started for sent in worker.commands.claims()]
    assert len(start.started) == 50
    assert (claims, starts.seen) == ([], [])
    assert jobs.count_documents({"queue": "default", "attempts": {"$ne": 0}}) == 0


async def test_the_first_claim_waits_until_the_settings_can_be_read(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    starts = Starts()
    await queue.put({"n": 1})
    worker = start.prepare(starts)
    settings = f"{jobs.full_name}.settings"

    with failing(client, "find", app=worker.app, errorCode=11601, namespace=settings) as reads:
        await start.begin(worker)
        await wait_until_async(lambda: reads.hits() >= 2, "it tries again")
        claims = worker.commands.claims()

    assert claims == []
    await wait_until_async(lambda: starts.seen == [1], "it runs")


async def test_a_worker_that_waits_for_the_settings_can_be_stopped(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await queue.put({"n": 1})
    worker = start.prepare(Starts())
    settings = f"{jobs.full_name}.settings"

    with failing(client, "find", app=worker.app, errorCode=11601, namespace=settings) as reads:
        await start.begin(worker)
        await wait_until_async(reads.hits, "it tries")
        await worker.stop(within=5)

    assert worker.commands.claims() == []


async def test_a_worker_whose_stream_is_cut_reads_the_settings_before_its_next_claim(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_settings, "SURE_FOR", 0.5)
    starts = Starts()
    worker = await start(starts, concurrency=1)
    await queue.put_many([{"n": n, "waits": True} for n in range(2)])
    await wait_until_async(lambda: starts.seen, "a slot is full")

    with failing(client, "getMore", "aggregate", app=STREAM_APP, **CONNECTION_CUT):
        await wait_until_async(
            lambda: worker.metric("streamqueue_stream_restarts_total"), "its stream is cut"
        )
        await queue.pause()
        await anyio.sleep(0.6)
        starts.gate.set()
        await worker.until_outcomes(completed=1)
        await starts.until_still()

    assert len(starts.seen) == 1


async def test_a_bell_that_never_rang_is_made_good_by_the_sweep_which_misses_no_paused_job(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when whoever paused the queue died in between."""
    monkeypatch.setattr(scheduler, "CONFIRM_AFTER", 0.1)
    starts = Starts()
    worker = await start(starts, sweep_interval=0.3)
    await worker.until_idle(0.1)
    jobs.database[f"{jobs.name}.settings"].insert_one({"_id": "default", "paused": True})
    before = settings_reads(worker)
    await wait_until_async(lambda: settings_reads(worker) > before, "it has read them")
    await worker.until_idle(0.1)

    await queue.put({"n": 1})
    await anyio.sleep(1)

    assert starts.seen == []
    assert worker.metric("streamqueue_missed_wakeups_total") == 0


async def test_a_job_costs_no_reading_of_the_settings(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    starts = Starts()
    worker = await start(starts)

    for n in range(20):
        await queue.put({"n": n})
        await wait_until_async(lambda n=n: len(starts.seen) == n + 1, "it ran")

    assert settings_reads(worker) == 1


async def test_a_job_that_falls_due_in_a_paused_queue_is_promoted_and_waits(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    starts = Starts()
    await queue.pause()
    await start(starts)

    await queue.put({"n": 1}, delay=0.1)
    await wait_until_async(lambda: jobs.count_documents({"state": "ready"}), "it is ready")
    await queue.resume()

    await wait_until_async(lambda: starts.seen == [1], "it runs after that")


async def test_a_worker_says_when_a_queue_is_paused_and_when_it_goes_on(
    start: WorkerStarter, queue: AsyncMongoQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamqueue")

    def said(event: str) -> list[str]:
        return [
            vars(line)["queue"] for line in caplog.records if getattr(line, "event", "") == event
        ]

    await start(Starts())
    await queue.pause()
    await wait_until_async(lambda: said("queue_paused"), "it is said")
    await queue.resume()
    await wait_until_async(lambda: said("queue_resumed"), "it is said")

    assert (said("queue_paused"), said("queue_resumed")) == (["default"], ["default"])


# members of a dispatcher


async def test_members_of_a_dispatcher_begin_no_job_of_a_paused_queue(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    starts = Starts(seconds=0.01)
    await queue.put_many([{"n": n} for n in range(400)])
    await members.open()
    for _ in range(3):
        await members.start(starts, concurrency=5)
    await wait_until_async(lambda: len(starts.seen) > 50, "they are at it")

    await queue.pause()
    paused_at = time.monotonic()
    await starts.until_still()
    await wait_until_async(lambda: not jobs.count_documents({"state": "running"}), "none is held")

    assert max(starts.since(paused_at), default=0) < HELD_AFTER
    assert jobs.count_documents({"state": "ready", "attempts": {"$ne": 0}}) == 0
    await queue.resume()
    await until_done_but_for_the_bell(jobs, 60)


async def test_idle_members_of_a_dispatcher_leave_a_paused_queue_alone_and_wake_when_it_goes_on(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(2, notes)

    await queue.pause()
    await wait_until_async(lambda: settings_reads(*workers) == 4, "they have heard of the pause")
    await queue.put_many([{"n": n} for n in range(5)])
    await anyio.sleep(HELD_AFTER)
    early = list(notes.seen)
    told = sum(worker.metric("streamqueue_stream_events_total") for worker in workers)
    await queue.resume()

    await notes.until_seen(5)
    assert (early, told) == ([], 0)


async def test_a_dispatcher_tells_its_members_of_a_pause_and_of_its_end(
    members: Members, queue: AsyncMongoQueue
) -> None:
    await members.open()
    puppet = members.puppet(free=1)
    await puppet.until_heard("opened")

    await queue.pause()
    await puppet.until_heard("bell")
    await queue.put({"n": 1})
    await queue.resume()

    assert await puppet.until_heard("bell") == {"bell": True}


async def test_a_pause_that_is_over_before_a_dispatcher_has_read_of_it_is_told_too(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member may have read in between, and would stay paused."""
    await members.open()
    puppet = members.puppet(free=1)
    await puppet.until_heard("opened")

    async def reads_nothing(*_: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(AsyncStore, "settings_of", reads_nothing)
    await queue.pause()
    await queue.resume()

    assert await puppet.until_heard("bell") == {"bell": True}


async def test_a_dispatcher_asks_nobody_to_fetch_while_all_of_its_queues_are_paused(
    members: Members, queue: AsyncMongoQueue
) -> None:
    await queue.put_many([{"n": n} for n in range(5)])
    await queue.pause()
    await members.open()
    puppet = members.puppet(free=1)
    await puppet.until_heard("tick")  # by then it has read that they are
    puppet.passed.clear()
    puppet.say({"idle": 1, "done": 1, "more": True, "refused": []})

    await puppet.until_heard("tick")
    await puppet.until_heard("tick")

    assert "fetch" not in {name for frame in puppet.passed for name in frame}
    await queue.resume()
    await puppet.until_heard("fetch")


async def test_a_member_that_is_told_reads_the_settings_and_claims_nothing_of_what_it_is_sent(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    worker = members.prepare(notes)
    puppet = members.puppet_dispatcher(worker)
    puppet.say({"opened": True})
    await members.begin(worker)
    await wait_until_async(lambda: settings_reads(worker), "it has read the settings")
    before = settings_reads(worker)

    await queue.pause()
    job_id = await queue.put({"n": 1})
    puppet.say({"bell": True})
    await wait_until_async(lambda: settings_reads(worker) > before, "it has read them again")
    await worker.until_idle(0.1)
    job = {"_id": job_id, "queue": "default", "state": "ready", "priority": 0}
    puppet.say({"event": {"operationType": "insert", "fullDocument": job}})
    await puppet.until_heard("idle")
    await worker.until_idle()

    assert worker.commands.claims() == []


async def test_members_that_join_while_a_queue_is_paused_claim_nothing(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await queue.pause()
    await queue.put_many([{"n": n} for n in range(5)])
    await members.open()

    workers = [await members.start(notes) for _ in range(3)]
    for worker in workers:
        await wait_until_async(lambda worker=worker: settings_reads(worker), "it has read them")
    await members.until_idle()

    assert [sent for worker in workers for sent in worker.commands.claims()] == []


@pytest.mark.slow
async def test_members_serve_the_queues_that_are_not_paused(
    members: Members, async_jobs: AsyncCollection[Any], queue: AsyncMongoQueue
) -> None:
    paused, notes = Notes(), Notes()

    async def reports(job: AsyncJob) -> None:
        await notes(job)

    report_queue = AsyncMongoQueue(async_jobs, name="reports")
    await members.open("reports")
    await members.start(paused, reports, concurrency=2)
    await queue.pause()
    await queue.put_many([{"n": n} for n in range(200)], priority=9)
    await report_queue.put_many([{"n": n} for n in range(200)])

    await notes.until_seen(200, within=10)
    await report_queue.put({"n": 200})
    await notes.until_seen(201)
    assert paused.seen == []


async def test_a_member_whose_dispatcher_goes_away_stays_paused(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    [worker] = await members.start_many(1, notes)
    await queue.pause()
    await queue.put({"n": 1})
    before = settings_reads(worker)

    await dispatcher.stop()
    await wait_until_async(lambda: settings_reads(worker) > before, "it has read them itself")
    await worker.until_idle()
    early = list(notes.seen)
    await queue.resume()

    await notes.until_seen(1)
    assert early == []


async def until_done_but_for_the_bell(jobs: Collection[Any], within: float) -> None:
    await wait_until_async(
        lambda: not jobs.count_documents({"state": {"$exists": True}}), "all are done", within
    )
