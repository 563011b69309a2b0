"""Steps in a transaction of the caller: exactly once in effect.

Laws: nothing is lost; an unknown outcome is not a failure.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, LeaseLost, PayloadError
from tests.contract.looks import document, let_lease_run_out
from tests.contract.shells import Shell


class RolledBack(Exception):
    pass


class Effects:
    """What a step writes in its transaction: a document of a collection."""

    def __init__(self, shell: Shell, ledger: Collection[Any]) -> None:
        self._is_async = shell.is_async
        self._collection: Any = shell._jobs.database[ledger.name]
        self._ledger = ledger
        self.calls = 0

    @property
    def write(self) -> Any:
        """The function of a step, which takes the session."""
        return self._write_async if self._is_async else self._write

    def _write(self, session: Any, value: Any = "done") -> Any:
        self.calls += 1
        self._collection.insert_one({}, session=session)
        return value

    async def _write_async(self, session: Any, value: Any = "done") -> Any:
        self.calls += 1
        await self._collection.insert_one({}, session=session)
        return value

    async def begin(self, session: Any) -> None:
        """Write in the transaction before its step."""
        written: Any = self.write(session)
        if self._is_async:
            await written

    def count(self) -> int:
        """How many are there for good."""
        return self._ledger.count_documents({})


@pytest.fixture
async def effects(shell: Shell, jobs: Collection[Any]) -> AsyncIterator[Effects]:
    ledger = jobs.database[f"ledger_{secrets.token_hex(4)}"]
    ledger.insert_one({"_id": 0})
    ledger.delete_one({"_id": 0})
    yield Effects(shell, ledger)
    ledger.drop()


@pytest.fixture
async def job(queue: Any) -> Any:
    """A held job."""
    await queue.put({}, max_attempts=5)
    return await queue.next()


def stored(jobs: Collection[Any], job: Any) -> list[str]:
    return [step["name"] for step in document(jobs, job.id).get("steps", [])]


async def book_and_fail(shell: Shell, job: Any, effects: Effects) -> None:
    async with shell.transaction() as session:
        await job.step("book", effects.write, session, session=session)
        raise RolledBack


async def test_a_step_is_stored_when_its_transaction_is_committed(
    shell: Shell, queue: Any, job: Any, jobs: Collection[Any], effects: Effects
) -> None:
    async with shell.transaction() as session:
        assert await job.step("book", effects.write, session, session=session) == "done"
        before = stored(jobs, job), effects.count()

    assert before == ([], 0)
    assert (stored(jobs, job), effects.count()) == (["book"], 1)
    await job.error(delay=0)
    job = await queue.next()
    async with shell.transaction() as session:
        assert await job.step("book", effects.write, session, session=session) == "done"
    assert (effects.calls, effects.count()) == (1, 1)


async def test_a_step_is_not_stored_when_its_transaction_is_aborted(
    shell: Shell, job: Any, jobs: Collection[Any], effects: Effects
) -> None:
    with pytest.raises(RolledBack):
        await book_and_fail(shell, job, effects)

    assert (stored(jobs, job), effects.count()) == ([], 0)


async def test_what_was_aborted_may_be_called_again_in_the_same_attempt(
    shell: Shell, job: Any, jobs: Collection[Any], effects: Effects
) -> None:
    with pytest.raises(RolledBack):
        await book_and_fail(shell, job, effects)

    async with shell.transaction() as session:
        await job.step("book", effects.write, session, session=session)

    assert (stored(jobs, job), effects.count(), effects.calls) == (["book"], 1, 2)


@pytest.mark.parametrize("where", ["the same", "a later"])
async def test_what_was_not_aborted_may_not_be_called_again(
    shell: Shell, job: Any, effects: Effects, where: str
) -> None:
    async with shell.transaction() as session:
        await job.step("book", effects.write, session, session=session)
        if where == "the same":
            with pytest.raises(ConfigurationError, match="already"):
                await job.step("book", effects.write, session, session=session)
    if where == "a later":
        with pytest.raises(ConfigurationError, match="already"):
            async with shell.transaction() as session:
                await job.step("book", effects.write, session, session=session)

    assert (effects.calls, effects.count()) == (1, 1)


async def test_steps_and_the_end_of_a_job_may_share_a_transaction(
    shell: Shell, queue: Any, job: Any, effects: Effects
) -> None:
    async with shell.transaction() as session:
        await job.step("a", effects.write, session, session=session)
        await job.step("b", effects.write, session, session=session)
        await job.complete(session=session)

    assert await queue.size() == 0
    assert effects.count() == 2


async def test_a_session_without_a_transaction_is_refused_before_anything_is_run(
    shell: Shell, job: Any, effects: Effects
) -> None:
    session = shell.session()
    with pytest.raises(ConfigurationError, match="open transaction"):
        await job.step("book", effects.write, session, session=session)

    assert effects.calls == 0


@pytest.mark.parametrize("call", ["progress", "complete", "error", "release", "step"])
async def test_while_the_transaction_is_open_any_other_call_is_refused_and_waits_for_nothing(
    shell: Shell, job: Any, jobs: Collection[Any], effects: Effects, call: str
) -> None:
    calls: dict[str, tuple[Any, ...]] = {"step": ("other", effects.write, None)}
    async with shell.transaction() as session:
        await job.step("book", effects.write, session, session=session)
        with anyio.fail_after(5):
            with pytest.raises(ConfigurationError, match="a transaction is open"):
                await getattr(job, call)(*calls.get(call, ()))

    await job.complete()
    assert effects.count() == 1


async def test_a_step_of_a_lost_lease_leaves_no_effect(
    shell: Shell, queue: Any, job: Any, jobs: Collection[Any], effects: Effects
) -> None:
    let_lease_run_out(jobs, job.id)
    await queue.repair()
    await queue.next()

    with pytest.raises(LeaseLost):
        async with shell.transaction() as session:
            await job.step("book", effects.write, session, session=session)

    assert effects.count() == 0


async def test_a_lease_that_is_lost_in_between_aborts_the_transaction(
    shell: Shell, queue: Any, job: Any, jobs: Collection[Any], effects: Effects
) -> None:
    async def book_too_late() -> None:
        async with shell.transaction() as session:
            await effects.begin(session)
            let_lease_run_out(jobs, job.id)
            await queue.repair()
            await job.step("book", effects.write, session, session=session)

    with pytest.raises(OperationFailure) as caught:
        await book_too_late()

    assert caught.value.has_error_label("TransientTransactionError")
    assert effects.count() == 0


async def test_what_cannot_be_stored_makes_the_job_dead_and_leaves_no_effect(
    shell: Shell, job: Any, jobs: Collection[Any], effects: Effects
) -> None:
    async def book_both() -> None:
        async with shell.transaction() as session:
            await job.step("a", effects.write, session, session=session)
            await job.step("b", effects.write, session, object(), session=session)

    with pytest.raises(PayloadError, match="step 'b'"):
        await book_both()

    assert document(jobs, job.id)["state"] == "dead"
    assert (stored(jobs, job), effects.count()) == ([], 0)


async def test_the_blocks_of_transaction_and_job_may_stand_one_inside_the_other(
    shell: Shell, queue: Any, job: Any, effects: Effects
) -> None:
    async with job:
        async with shell.transaction() as session:
            await job.step("a", effects.write, session, session=session)
        async with shell.transaction() as session:
            await job.step("b", effects.write, session, session=session)

    assert await queue.size() == 0
    assert effects.count() == 2
