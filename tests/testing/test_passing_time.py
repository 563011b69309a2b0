"""``advance``: time passes for what is stored."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from bson import Int64
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    ConfigurationError,
    DuplicateJob,
    JobNotFound,
    Limit,
    MongoQueue,
    Rate,
    Schedules,
    Task,
    Topic,
    Worker,
)
from streamqueue.testing import advance, run_until_empty
from streamqueue.worker.schedules.declaration import Declaration

HOUR = timedelta(hours=1)
MOMENT = timedelta(seconds=5)


@pytest.fixture
def queue(jobs: Collection[Any]) -> MongoQueue:
    return MongoQueue(jobs)


async def test_a_delayed_job_is_due_when_its_time_has_passed(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": 1}, delay=3600)

    await advance(async_jobs, 3590)
    assert queue.next() is None
    await advance(async_jobs, 10)

    job = queue.next()
    assert job is not None
    assert job.data == {"n": 1}


async def test_a_lease_ends_when_its_time_has_passed(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({})
    held = queue.next()
    assert held is not None

    await advance(async_jobs, 300)

    assert queue.repair() == 1


async def test_what_has_expired_is_not_begun(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({}, expires=60)

    await advance(async_jobs, 61)

    assert queue.next() is None


async def test_a_key_is_held_until_its_time_has_passed(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({}, key="report", unique_for=3600)
    job = queue.next()
    assert job is not None
    job.complete()

    with pytest.raises(DuplicateJob):
        queue.put({}, key="report")
    await advance(async_jobs, HOUR)

    queue.put({}, key="report")


async def test_what_is_kept_is_gone_when_its_time_has_passed(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    job_id = queue.put({}, keep=3600)
    job = queue.next()
    assert job is not None
    job.complete(5)

    await advance(async_jobs, HOUR - MOMENT)
    assert queue.result(job_id) == 5
    await advance(async_jobs, MOMENT)

    with pytest.raises(JobNotFound):
        queue.get(job_id)


async def test_a_run_until_empty_has_stored_its_schedules_however_long_that_takes(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Declaration.store

    async def late(declaration: Declaration, *, again: bool) -> None:
        await anyio.sleep(0.5)
        await store(declaration, again=again)

    monkeypatch.setattr(Declaration, "store", late)
    worker = Worker(async_jobs)

    @worker.schedule(every=86400)
    @worker.handler("reports")
    async def report(job: AsyncJob) -> None: ...

    await run_until_empty(worker)

    assert len(Schedules(jobs).list()) == 1


async def test_a_misfit_is_dead_when_its_grace_has_passed(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    worker = Worker(async_jobs, misfit_grace=HOUR)
    worker.task()(resize)
    job_id = queue.put(Task("resize").call(height=1))

    report = await run_until_empty(worker)
    assert (report.waiting, queue.get(job_id).attempts) == (1, 0)
    await advance(async_jobs, HOUR)
    report = await run_until_empty(worker)

    assert (report.waiting, queue.get(job_id).state) == (0, "dead")


async def resize(width: int) -> None: ...


async def test_a_schedule_fires_when_its_time_has_passed(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    ticks = []
    worker = Worker(async_jobs)

    @worker.schedule(every=86400)
    @worker.handler("reports")
    async def report(job: AsyncJob) -> None:
        ticks.append(job.run_at)

    await run_until_empty(worker)
    assert ticks == []
    await advance(async_jobs, timedelta(days=1))
    await run_until_empty(worker)

    assert len(ticks) == 1


async def test_a_stored_schedule_is_due_as_much_earlier(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    Schedules(jobs).add("nightly", every=3600, queue="default")
    settings = jobs.database[f"{jobs.name}.settings"]
    [before] = settings.find({"kind": "schedule"})

    await advance(async_jobs, 600)

    [after] = settings.find({"kind": "schedule"})
    assert before["next_tick"] - after["next_tick"] == timedelta(seconds=600)
    assert after.keys() == before.keys()


async def test_the_end_of_a_pause_that_a_schedule_catches_up_moves_too(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    schedules = Schedules(jobs)
    schedules.add("polls", every=3600, queue="default")
    schedules.pause("polls")
    schedules.resume("polls", catch_up="one")
    settings = jobs.database[f"{jobs.name}.settings"]
    [before] = settings.find({"kind": "schedule"})

    await advance(async_jobs, 600)

    [after] = settings.find({"kind": "schedule"})
    moved = before["behind"]["until"] - timedelta(seconds=600)
    assert after["behind"] == {**before["behind"], "until": moved}


async def test_a_subscription_ends_when_its_time_has_passed(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    topic = Topic(jobs, "orders")
    topic.subscribe("emails", expires=3600)
    topic.subscribe("reports")

    await advance(async_jobs, HOUR)

    assert topic.subscribers() == ["reports"]


async def test_a_rate_has_room_again_when_its_time_has_passed(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], queue: MongoQueue
) -> None:
    worker = Worker(async_jobs)

    @worker.handler("default", limits=Limit(rate=Rate(1, 3600)))
    async def handle(job: AsyncJob) -> None:
        pass

    queue.put({})
    await run_until_empty(worker)
    [before] = jobs.database[f"{jobs.name}.rates"].find()

    await advance(async_jobs, HOUR)

    [after] = jobs.database[f"{jobs.name}.rates"].find()
    assert before["last"] - after["last"] == Int64(3600 * 10**9)


async def test_a_date_at_the_beginning_of_the_calendar_stays_a_date(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], queue: MongoQueue
) -> None:
    job_id = queue.put({}, delay=60)
    jobs.update_one({"_id": job_id}, {"$set": {"run_at": datetime(1, 1, 1)}})

    await advance(async_jobs, HOUR)

    found = jobs.find_one({"_id": job_id}) or {}
    assert found["run_at"] == datetime(1, 1, 1, tzinfo=UTC)


async def test_no_field_is_added(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], queue: MongoQueue
) -> None:
    queue.put({})
    before = jobs.find_one({"queue": "default"}) or {}

    await advance(async_jobs, 1)

    assert (jobs.find_one({"queue": "default"}) or {}).keys() == before.keys()


async def test_time_does_not_go_back(async_jobs: AsyncCollection[Any]) -> None:
    with pytest.raises(ConfigurationError, match="by"):
        await advance(async_jobs, -1)


async def test_a_patched_clock_is_a_line_of_the_log(
    async_jobs: AsyncCollection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)

    with caplog.at_level(logging.WARNING, "streamqueue.testing"):
        await advance(async_jobs, 1)

    assert "not; advance(jobs, seconds) moves them" in caplog.text
