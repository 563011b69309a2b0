"""Ends that the server refuses are written smaller, or told at once.

Law: an unknown outcome is not a failure.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, Discard, Snooze
from tests.contract.looks import document
from tests.contract.shells import Shell

NEARLY_FULL = 16 * 1024 * 1024 - 700
"""Bytes of a payload that leaves room for a claim, and for no message."""
NO_STATE = {"state": {"$in": ["ready", "running"]}}
"""A rule of the collection under which no attempt can fail."""


def rule(jobs: Collection[Any], validator: dict[str, Any]) -> None:
    jobs.database.command("collMod", jobs.name, validator=validator)


async def nearly_full(queue: Any, jobs: Collection[Any], **fields: Any) -> Any:
    """Insert a job to which hardly anything can be added, and claim it."""
    payload = {"x": "a" * NEARLY_FULL}
    # As its first document ever a collection takes none of that size (388, seen on 6.0.5).
    jobs.delete_one({"_id": jobs.insert_one({}).inserted_id})
    jobs.insert_one(
        {"queue": "default", "state": "ready", "priority": 0, "payload": payload, **fields}
    )
    return await queue.next(wait=10)


async def test_an_error_without_room_is_written_without_its_message(
    shell: Shell, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = await nearly_full(shell.queue(backoff=Backoff(initial=100, jitter=0)), jobs)

    await job.error("e" * 4000)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 1)
    assert not {"last_error", "lease", "locked_by"} & stored.keys()
    [line] = [line for line in caplog.records if line.name == "streamqueue.job"]
    assert (line.event, line.job_id, line.code) == ("end_shortened", str(job.id), 17419)  # type: ignore[attr-defined]


@pytest.mark.few(1)
async def test_the_last_error_without_room_buries_the_job(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await nearly_full(queue, jobs, max_attempts=1)

    await job.error("e" * 4000)

    stored = document(jobs, job.id)
    assert stored["state"] == "dead"
    assert "finished_at" in stored


@pytest.mark.parametrize(
    ("raised", "state"), [(ValueError, "ready"), (Snooze(0), "ready"), (Discard, "dead")]
)
async def test_a_block_ends_its_job_as_far_as_a_rule_of_the_collection_lets_it(
    shell: Shell, jobs: Collection[Any], raised: Any, state: str
) -> None:
    queue = shell.queue(backoff=Backoff(initial=0, jitter=0))
    job_id = await queue.put({})
    job = await queue.next(wait=10)
    forbidden = ("last_error", "errors", "finished_at", "run_at")
    jobs.update_one({"_id": job_id}, {"$unset": {"run_at": ""}})
    rule(
        jobs,
        {
            "$nor": [{name: {"$exists": True}} for name in forbidden],
            "attempts": {"$gte": 1},
        },
    )

    with pytest.raises((ValueError, Snooze, Discard)):
        async with job:
            raise raised

    stored = document(jobs, job_id)
    assert stored["state"] == state
    assert "lease" not in stored


CALLS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "error": lambda job: job.error("oops", delay=50),
    "release": lambda job: job.release(delay=50),
    "progress": lambda job: job.progress(5),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_that_is_refused_for_good_says_so_and_the_job_stays_held(
    queue: Any, jobs: Collection[Any], call: Callable[[Any], Awaitable[None]]
) -> None:
    await queue.put({"n": 1})
    job = await queue.next(wait=10)
    rule(jobs, {"payload.n": {"$ne": 1}})

    with pytest.raises(OperationFailure) as caught:
        await call(job)

    assert caught.value.code == 121
    await job.complete()  # removing it needs no rule


async def test_a_block_whose_end_is_refused_raises_its_own_exception_and_logs_the_refusal(
    queue: Any, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put({"n": 1})
    job = await queue.next(wait=10)
    rule(jobs, {"payload.n": {"$ne": 1}})

    with pytest.raises(ValueError, match="its own"):
        async with job:
            raise ValueError("its own")

    [line] = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert (line.levelname, line.event) == ("ERROR", "end_refused")  # type: ignore[attr-defined]
    assert (line.job_id, line.code) == (str(job.id), 121)  # type: ignore[attr-defined]
