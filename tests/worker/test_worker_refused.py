"""What the server refuses at an attempt's end takes no slot and is not tried for ever.

Law: poison is contained.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import WorkerStarter

REFUSED = {"payload.bad": {"$exists": False}}
NEARLY_FULL = 16 * 1024 * 1024 - 700


async def test_an_error_without_room_ends_the_attempt_without_its_message(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def fails(job: AsyncJob) -> None:
        if "x" in job.data:
            raise RuntimeError("e" * 5000)

    worker = await start(fails, concurrency=1, max_attempts=2, backoff=Backoff(0, jitter=0))
    payload = {"x": "a" * NEARLY_FULL}
    jobs.insert_one({"queue": "default", "state": "ready", "priority": 1, "payload": payload})
    await queue.put({"n": 1})

    await worker.until_outcomes(retried=1, dead=1, completed=1)
    assert jobs.count_documents({"state": "dead", "attempts": 2}) == 1


async def test_an_end_that_is_refused_altogether_gives_the_slot_back_at_once(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    go = anyio.Event()

    async def fails(job: AsyncJob) -> None:
        if job.data.get("bad"):
            await go.wait()
            raise ValueError

    worker = await start(fails, concurrency=1, timeout=60)
    bad = await queue.put({"bad": True})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")
    jobs.database.command("collMod", jobs.name, validator=REFUSED)
    worker.commands.forget()

    go.set()
    await queue.put({"n": 1})

    await worker.until_outcomes(lease_lost=1, completed=1)
    tries = [sent for sent in worker.commands.named("update") if str(bad) in str(sent.command)]
    assert len(tries) <= 3
    [line] = [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert (line.event, line.job_id, line.code) == ("end_refused", str(bad), 121)  # type: ignore[attr-defined]


async def test_progress_that_is_refused_is_told_and_costs_no_lease(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    told: list[OperationFailure] = []

    async def notes(job: AsyncJob) -> None:
        try:
            await job.progress(5)
        except OperationFailure as error:
            told.append(error)

    jobs.database.create_collection(jobs.name, validator={"progress": {"$exists": False}})
    worker = await start(notes)
    await queue.put({})

    await worker.until_outcomes(completed=1)
    assert [error.code for error in told] == [121]


async def test_a_missing_right_is_no_refusal(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """It may be given back while the lease lasts."""
    go = anyio.Event()

    async def fails(job: AsyncJob) -> None:
        await go.wait()
        raise ValueError

    worker = await start(fails, backoff=Backoff(initial=60, jitter=0))
    await queue.put({})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")

    with failing(client, "update", app=worker.app, times=2, errorCode=13):
        go.set()
        await worker.until_outcomes(retried=1)

    [left] = jobs.find()
    assert "last_error" in left
