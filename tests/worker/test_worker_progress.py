"""Progress in a worker: many calls, few writes, and the last value is always stored."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import anyio
import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Discard, Job, LeaseLost
from tests.waiting import wait_until_async
from tests.worker.started import StartedWorker, WorkerStarter


def stored(jobs: Collection[Any]) -> dict[str, Any]:
    found = jobs.find_one({})
    assert found is not None
    return found


def writes(worker: StartedWorker) -> int:
    return str([sent.command for sent in worker.commands.named("update")]).count("'progress': {")


CALLS = 100_000


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_hundred_thousand_calls_are_few_writes_and_the_last_is_stored(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    seconds = [0.0]

    async def counts(job: AsyncJob) -> None:
        began = time.monotonic()
        for count in range(CALLS):
            await job.progress(count + 1)
        seconds.append(time.monotonic() - began)
        raise Discard("done with it")

    def counts_in_a_thread(job: Job) -> None:
        began = time.monotonic()
        for count in range(CALLS):
            job.progress(count + 1)
        seconds.append(time.monotonic() - began)
        raise Discard("done with it")

    worker = await start(counts if kind == "async" else counts_in_a_thread)
    await queue.put({})

    await worker.until_outcomes(dead=1, within=60)
    assert stored(jobs)["progress"] == CALLS
    assert 1 < writes(worker) <= 4 + seconds[-1]  # at most five in the first second


async def test_a_handler_that_returns_at_once_leaves_its_last_value_on_a_kept_job(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        await job.progress(1)
        await job.progress(2, "last")

    worker = await start(handler, keep=60)
    await queue.put({})

    await worker.until_outcomes(completed=1)
    assert (stored(jobs)["progress"], stored(jobs)["note"]) == (2, "last")


async def test_what_was_merged_is_written_while_the_handler_goes_on_in_silence(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    heard = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        await job.progress(1)
        await job.progress(2, "kept")
        await heard.wait()

    await start(handler)
    await queue.put({})

    await wait_until_async(lambda: stored(jobs).get("note") == "kept", "the note", 5)
    heard.set()
    assert stored(jobs)["progress"] == 2


async def test_a_merged_write_renews_the_lease(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    ends = []
    heard = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        await job.progress(1)
        ends.append(stored(jobs)["locked_until"])
        await job.progress(2)
        await heard.wait()

    await start(handler)
    await queue.put({})

    await wait_until_async(lambda: jobs.find_one({"progress": 2}), "it was written", 5)
    ends.append(stored(jobs)["locked_until"])
    heard.set()
    assert ends[0] < ends[1]


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_call_that_is_merged_says_that_the_lease_is_lost_once_that_is_known(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    told: list[LeaseLost] = []

    def take_it_away() -> None:
        jobs.update_one({}, {"$set": {"lease": b"another", "state": "dead"}})

    async def handler(job: AsyncJob) -> None:
        await job.progress(0)
        take_it_away()
        try:
            with anyio.CancelScope(shield=True):  # or it would be cancelled instead
                for count in range(1, 10**9):
                    await job.progress(count)
        except LeaseLost as error:
            told.append(error)

    def in_a_thread(job: Job) -> None:
        job.progress(0)
        take_it_away()
        try:
            for count in range(1, 10**9):
                job.progress(count)
        except LeaseLost as error:
            told.append(error)

    worker = await start(handler if kind == "async" else in_a_thread)
    await queue.put({})

    await worker.until_outcomes(lease_lost=1)
    await wait_until_async(lambda: told, "the handler was told")


async def test_calls_of_a_blocking_handler_that_are_merged_do_not_wait_for_the_event_loop(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    merging, looping, done = threading.Event(), threading.Event(), threading.Event()

    def handler(job: Job) -> None:
        job.progress(0)
        job.progress(1)  # the first one that waits has itself planned
        merging.set()
        looping.wait()
        for count in range(100):
            job.progress(count)
        done.set()

    worker = await start(handler)
    await queue.put({})
    await wait_until_async(merging.is_set, "calls are merged")

    looping.set()
    finished = done.wait(5)  # the event loop stands still meanwhile

    await worker.until_outcomes(completed=1)
    assert finished


async def test_a_merged_note_that_is_refused_costs_no_lease(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = []

    async def handler(job: AsyncJob) -> None:
        await job.progress(1)
        await job.progress(2, "refused")
        await wait_until_async(
            lambda: [line for line in caplog.records if "refuses" in line.message], "refused", 5
        )
        refused.append(job.id)
        until = stored(jobs)["locked_until"]
        await wait_until_async(lambda: stored(jobs)["locked_until"] > until, "it is renewed", 5)

    jobs.database.create_collection(jobs.name, validator={"note": {"$exists": False}})
    worker = await start(handler, timeout=3)
    await queue.put({})

    await worker.until_outcomes(completed=1, within=15)
    [line] = [line for line in caplog.records if line.levelno >= logging.ERROR]
    assert "refuses the progress" in line.message
    assert isinstance(refused[0], ObjectId)
