"""Putting and completing in a transaction of the caller."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import LeaseLost
from tests.contract.shells import Shell


class RolledBack(Exception):
    pass


@pytest.mark.parametrize("method", ["put", "put_many"])
async def test_a_put_is_seen_when_its_transaction_is_committed(
    shell: Shell, queue: Any, method: str
) -> None:
    payload = {"n": 1} if method == "put" else [{"n": 1}]

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
