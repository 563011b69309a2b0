"""How many attempts a job has: its own number, else what its claim went by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import NewJob
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell

Put = Callable[[Any, Collection[Any], dict[str, Any]], Awaitable[Any]]


async def _put(queue: Any, _: Collection[Any], said: dict[str, Any]) -> Any:
    return await queue.put({}, **said)


async def _put_many(queue: Any, _: Collection[Any], said: dict[str, Any]) -> Any:
    return (await queue.put_many([{}], **said))[0]


async def _new_job(queue: Any, _: Collection[Any], said: dict[str, Any]) -> Any:
    return (await queue.put_many([NewJob({}, **said)]))[0]


async def _foreign(_: Any, jobs: Collection[Any], said: dict[str, Any]) -> Any:
    job = {"queue": "default", "state": "ready", "payload": {}, **said}
    return jobs.insert_one(job).inserted_id


WAYS = {"put": _put, "put_many": _put_many, "NewJob": _new_job, "foreign": _foreign}


@pytest.fixture(params=[*WAYS.values()], ids=[*WAYS])
def put(request: pytest.FixtureRequest) -> Put:
    """Each way a job comes into a queue."""
    way: Put = request.param
    return way


async def test_a_job_goes_by_the_queue_object_it_is_taken_from(
    shell: Shell, jobs: Collection[Any], put: Put
) -> None:
    job_id = await put(shell.queue(max_attempts=9), jobs, {})

    job = await shell.queue(max_attempts=2).next()

    assert job.max_attempts == 2
    assert "attempt 1 of 2" in repr(job)
    assert document(jobs, job_id)["allowed"] == 2


async def test_a_job_goes_by_what_it_was_put_with(
    shell: Shell, jobs: Collection[Any], put: Put
) -> None:
    job_id = await put(shell.queue(max_attempts=9), jobs, {"max_attempts": 4})

    job = await shell.queue(max_attempts=2).next()

    assert job.max_attempts == 4
    assert document(jobs, job_id)["allowed"] == 4


async def test_put_stores_no_number_that_it_was_not_told(
    shell: Shell, jobs: Collection[Any]
) -> None:
    job_id = await shell.queue(max_attempts=9).put({})

    assert "max_attempts" not in document(jobs, job_id)


@pytest.mark.parametrize(("allowed", "state"), [(1, "dead"), (2, "ready")])
async def test_another_consumer_returns_a_job_by_what_its_claim_went_by(
    shell: Shell, jobs: Collection[Any], allowed: int, state: str
) -> None:
    job_id = await shell.queue().put({})
    await shell.queue(max_attempts=allowed).next()
    let_lease_run_out(jobs)

    assert await shell.queue(max_attempts=3 - allowed).repair() == 1

    assert document(jobs, job_id)["state"] == state


async def test_an_attempt_ends_by_what_its_claim_went_by(
    shell: Shell, jobs: Collection[Any]
) -> None:
    job_id = await shell.queue().put({})
    await (await shell.queue(max_attempts=2).next()).error(delay=0)
    assert document(jobs, job_id)["state"] == "ready"

    await (await shell.queue(max_attempts=2).next()).error()

    assert document(jobs, job_id)["state"] == "dead"


async def test_a_running_job_that_does_not_say_is_returned_by_who_finds_it(
    shell: Shell, jobs: Collection[Any]
) -> None:
    """As one that an older version claimed, which knew of no such number."""
    job_id = await shell.queue().put({})
    await shell.queue().next()
    jobs.update_one({"_id": job_id}, {"$unset": {"allowed": 1}})
    let_lease_run_out(jobs)

    await shell.queue(max_attempts=1).repair()

    assert document(jobs, job_id)["state"] == "dead"


async def _error(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("broken", delay=0)


async def _error_later(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("broken", delay=60)


async def _release(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.release()


async def _reap(queue: Any, jobs: Collection[Any], job: Any) -> None:
    let_lease_run_out(jobs)
    await queue.repair()


async def _requeue(queue: Any, jobs: Collection[Any], job: Any) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"state": "dead"}})
    await queue.requeue(job.id)


@pytest.mark.parametrize("end", [_error, _error_later, _release, _reap, _requeue])
async def test_a_job_that_waits_again_shows_nothing_of_the_attempt_before(
    queue: Any, jobs: Collection[Any], end: Any
) -> None:
    job_id = await queue.put({})
    job = await queue.next()
    await job.progress(40, "almost half")

    await end(queue, jobs, job)

    assert document(jobs, job_id)["state"] in ("ready", "scheduled")
    assert not {"progress", "note", "allowed"} & document(jobs, job_id).keys()


async def test_a_job_that_falls_due_shows_no_progress(queue: Any, jobs: Collection[Any]) -> None:
    """As one that an older version put back."""
    job_id = await queue.put({}, delay=60)
    jobs.update_one({"_id": job_id}, {"$set": {"progress": 40, "run_at": server_time(jobs)}})

    assert await queue.next() is not None

    assert "progress" not in document(jobs, job_id)


async def test_a_dead_job_shows_how_far_it_got(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue(max_attempts=1)
    job_id = await queue.put({})
    job = await queue.next()
    await job.progress(40)

    await job.error("broken")

    assert document(jobs, job_id)["progress"] == 40
