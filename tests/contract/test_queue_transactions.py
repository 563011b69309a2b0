"""Putting and completing in a transaction of the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pymongo
import pytest
from bson import ObjectId
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, LeaseLost, NewJob
from tests.contract.shells import Shell


class RolledBack(Exception):
    pass


@pytest.mark.parametrize("method", ["put", "put_many"])
async def test_a_put_is_seen_when_its_transaction_is_committed(
    shell: Shell, queue: Any, method: str
) -> None:
    payload = {"n": 1} if method == "put" else [{"n": 1}]
    await queue.size()  # the indexes are there: the server lets nobody make them beside this

    async with shell.transaction() as session:
        await getattr(queue, method)(payload, session=session)
        before = await queue.next()

    after = await queue.next()
    assert before is None
    assert after.data == {"n": 1}


async def test_a_put_is_never_seen_when_its_transaction_is_aborted(
    shell: Shell, queue: Any
) -> None:
    async def put_and_fail() -> None:
        async with shell.transaction() as session:
            await queue.put({"n": 1}, session=session)
            raise RolledBack

    with pytest.raises(RolledBack):
        await put_and_fail()

    assert await queue.size() == 0


async def test_a_completion_holds_when_its_transaction_is_committed(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({})
    job = await queue.next()

    async with shell.transaction() as session:
        await job.complete(session=session)
        before = jobs.count_documents({})

    assert (before, jobs.count_documents({})) == (1, 0)


async def test_a_job_is_still_held_when_its_completion_was_aborted(
    shell: Shell, queue: Any
) -> None:
    async def complete_and_fail() -> None:
        async with shell.transaction() as session:
            await job.complete(session=session)
            raise RolledBack

    await queue.put({})
    job = await queue.next()
    with pytest.raises(RolledBack):
        await complete_and_fail()

    await job.complete()

    assert await queue.size() == 0


async def test_a_completed_job_and_its_follower_come_together(shell: Shell, queue: Any) -> None:
    await queue.put({"step": 1})
    job = await queue.next()

    async with shell.transaction() as session:
        await job.complete(session=session)
        await queue.put({"step": 2}, session=session)

    assert (await queue.next()).data == {"step": 2}
    assert await queue.size() == 1


async def test_a_lost_job_cannot_be_completed_in_a_transaction(shell: Shell, queue: Any) -> None:
    await queue.put({})
    job = await queue.next()
    await job.complete()

    with pytest.raises(LeaseLost):
        async with shell.transaction() as session:
            await job.complete(session=session)


async def test_a_put_repeated_in_a_transaction_raises_because_that_has_ended(
    shell: Shell, queue: Any
) -> None:
    job_id = await queue.put({"n": 1})

    async def repeat() -> None:
        async with shell.transaction() as session:
            await queue.put({"n": 1}, job_id=job_id, session=session)

    with pytest.raises(DuplicateKeyError) as caught:
        await repeat()

    # With this label, `with_transaction` would try again until its two minutes are over.
    assert not caught.value.has_error_label("TransientTransactionError")


@pytest.mark.parametrize("many", [False, True], ids=["put", "put_many"])
async def test_a_taken_key_says_that_it_has_ended_the_transaction(
    shell: Shell, queue: Any, jobs: Collection[Any], many: bool
) -> None:
    await queue.put({}, key="k")

    async def put_twice() -> None:
        async with shell.transaction() as session:
            await queue.put({"n": 1}, session=session)
            if many:
                await queue.put_many([{}, NewJob({}, key="k")], session=session)
            else:
                await queue.put({}, key="k", session=session)

    with pytest.raises(DuplicateJob, match="ended the transaction"):
        await put_twice()

    assert jobs.count_documents({}) == 1


async def test_many_puts_repeated_in_a_transaction_raise(shell: Shell, queue: Any) -> None:
    jobs = [NewJob({"n": n}, job_id=ObjectId()) for n in range(3)]
    await queue.put_many(jobs[:1])

    async def repeat() -> None:
        async with shell.transaction() as session:
            await queue.put_many(jobs, session=session)

    with pytest.raises(BulkWriteError):
        await repeat()

    assert await queue.size() == 1


BESIDE: dict[str, Callable[[Any], Awaitable[None]]] = {
    "complete": lambda job: job.complete(),
    "error": lambda job: job.error("oops"),
    "release": lambda job: job.release(),
    "progress": lambda job: job.progress(5),
}


@pytest.mark.parametrize("call", BESIDE.values(), ids=BESIDE)
async def test_a_call_that_would_wait_for_the_jobs_own_transaction_is_refused(
    shell: Shell, queue: Any, call: Callable[[Any], Awaitable[None]]
) -> None:
    await queue.put({})
    job = await queue.next()

    async with shell.transaction() as session:
        await job.complete(session=session)
        with pymongo.timeout(2), pytest.raises(ConfigurationError, match="transaction"):
            await call(job)

    assert await queue.size() == 0


@pytest.mark.parametrize("call", BESIDE.values(), ids=BESIDE)
async def test_every_call_is_possible_after_the_transaction_was_aborted(
    shell: Shell, queue: Any, call: Callable[[Any], Awaitable[None]]
) -> None:
    async def complete_and_fail() -> None:
        async with shell.transaction() as session:
            await job.complete(session=session)
            raise RolledBack

    await queue.put({})
    job = await queue.next()
    with pytest.raises(RolledBack):
        await complete_and_fail()

    await call(job)
