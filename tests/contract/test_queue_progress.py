"""What the holder of a job says of its progress, and how often that is written."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, Discard, LeaseLost
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell
from tests.waiting import wait_until_async
from tests.worker.faults import DONE_AND_NOT_HEARD, failing


@pytest.fixture
async def job(queue: Any) -> Any:
    """A held job, with one attempt."""
    await queue.put({"n": 1}, max_attempts=1)
    return await queue.next()


def shown(jobs: Collection[Any], job: Any) -> tuple[Any, Any]:
    """The count and the note that are stored."""
    stored = document(jobs, job.id)
    return stored.get("progress"), stored.get("note")


async def test_progress_stores_a_note_beside_the_count(job: Any, jobs: Collection[Any]) -> None:
    await job.progress(42, "half of it")

    assert shown(jobs, job) == (42, "half of it")


@pytest.mark.parametrize("note", ["", "$$ROOT", "x" * 1024, "é" * 512, "a\x00b"])
async def test_a_note_is_any_text_of_a_kilobyte(job: Any, jobs: Collection[Any], note: str) -> None:
    await job.progress(note=note)

    assert shown(jobs, job) == (None, note)


@pytest.mark.parametrize("note", ["x" * 1025, "é" * 513])
async def test_a_longer_note_is_refused_with_both_numbers(job: Any, note: str) -> None:
    with pytest.raises(ConfigurationError, match=r"at most 1,024 bytes.* 1,02[56]"):
        await job.progress(1, note)


@pytest.mark.parametrize("note", [5, b"half", ["half"], "\ud800"])
async def test_a_note_that_is_no_text_is_refused(job: Any, note: Any) -> None:
    with pytest.raises(ConfigurationError, match="note must be"):
        await job.progress(note=note)


async def test_many_calls_share_few_writes(job: Any, jobs: Collection[Any]) -> None:
    began = time.monotonic()
    with jobs.watch() as stream:
        for count in range(500):
            await job.progress(count, f"{count} of 500")
        seconds = time.monotonic() - began
        await job.error()

        writes = 0
        while stream.next()["updateDescription"]["updatedFields"].get("state") != "dead":
            writes += 1

    assert writes <= 2 + seconds


async def error(job: Any) -> None:
    await job.error("broken")


async def discard(job: Any) -> None:
    with pytest.raises(Discard):
        async with job:
            raise Discard("broken")


@pytest.mark.parametrize("die", [error, discard])
async def test_the_last_value_is_stored_with_the_end(
    job: Any, jobs: Collection[Any], die: Callable[[Any], Awaitable[None]]
) -> None:
    await job.progress(1)
    await job.progress(2, "first")
    await job.progress(note="last")

    await die(job)

    assert document(jobs, job.id)["state"] == "dead"
    assert shown(jobs, job) == (2, "last")


async def test_a_job_that_is_kept_shows_the_last_value(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({}, keep=60)
    job = await queue.next()
    await job.progress(1)
    await job.progress(2, "last")

    await job.complete("done")

    assert shown(jobs, job) == (2, "last")


async def test_what_was_said_after_a_quiet_second_is_written_at_once(
    job: Any, jobs: Collection[Any]
) -> None:
    await job.progress(1)
    await wait_for(1.05)

    await job.progress(2)

    assert shown(jobs, job) == (2, None)


async def test_what_was_kept_is_written_by_the_next_call_after_the_second(
    job: Any, jobs: Collection[Any]
) -> None:
    await job.progress(1)
    await job.progress(2, "kept")
    await wait_for(1.05)

    await job.progress(3)

    assert shown(jobs, job) == (3, "kept")


async def wait_for(seconds: float) -> None:
    over = time.monotonic() + seconds
    await wait_until_async(lambda: time.monotonic() > over, "time passed")


async def test_a_call_that_says_nothing_renews_the_lease_at_once(
    job: Any, jobs: Collection[Any]
) -> None:
    await job.progress(1)
    await job.progress(2)
    let_lease_run_out(jobs, job.id)

    await job.progress()

    left = document(jobs, job.id)["locked_until"] - server_time(jobs)
    assert left > timedelta(seconds=200)
    assert shown(jobs, job) == (2, None)


async def test_a_short_timeout_is_started_again_often_enough(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(timeout=1.5)
    await queue.put({})
    job = await queue.next()
    await job.progress(1)
    before = document(jobs, job.id)["locked_until"]
    await wait_for(0.2)

    await job.progress(2)

    assert document(jobs, job.id)["locked_until"] > before


async def test_progress_that_the_driver_sent_twice_is_no_request_to_cancel(
    job: Any, client: MongoClient[Any]
) -> None:
    """A server that repeats the reply to a write sends the whole document (6.0.5)."""
    with failing(client, "findAndModify", app=None, times=1, **DONE_AND_NOT_HEARD) as fault:
        await job.progress()

    assert fault.hits() == 1
    await job.complete()


@pytest.mark.parametrize("end", ["complete", "error", "release"])
async def test_after_the_end_even_a_call_that_would_be_kept_is_told_so(job: Any, end: str) -> None:
    await job.progress(1)
    await getattr(job, end)()

    with pytest.raises(LeaseLost):
        await job.progress(2)


async def test_who_was_told_that_the_lease_is_lost_is_told_so_again(
    job: Any, jobs: Collection[Any]
) -> None:
    await job.progress(1)
    jobs.update_one({"_id": job.id}, {"$set": {"lease": b"another"}})
    with pytest.raises(LeaseLost):
        await job.progress()

    with pytest.raises(LeaseLost):
        await job.progress(2)
