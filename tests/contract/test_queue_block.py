"""A job as a context manager: what the end of the block means for the job."""

from __future__ import annotations

from typing import Any, cast

import pymongo
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import Discard, LeaseLost, Retry, Snooze
from tests.contract.looks import document, let_lease_run_out
from tests.contract.shells import Shell
from tests.hellish import HELLISH, TextThatExits


class Oops(Exception):
    pass


@pytest.fixture
async def job(queue: Any) -> Any:
    """A job this test holds."""
    await queue.put({"n": 1}, priority=3)
    return await queue.next()


async def test_a_block_gives_the_payload(job: Any) -> None:
    async with job as data:
        assert data == {"n": 1}


async def test_a_block_gives_the_payload_by_its_old_name_too(job: Any) -> None:
    async with job as data:
        assert data["payload"] == {"n": 1}


async def test_a_block_that_ends_completes_the_job(job: Any, queue: Any) -> None:
    async with job:
        pass

    assert await queue.size() == 0


async def test_a_job_is_held_inside_its_block(job: Any, queue: Any) -> None:
    async with job:
        assert (await queue.stats())["locked"] == 1


async def test_an_exception_goes_on_after_the_block(job: Any) -> None:
    error = Oops("broken")

    with pytest.raises(Oops) as caught:
        async with job:
            raise error

    assert caught.value is error


async def test_an_exception_is_stored_with_its_traceback(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Oops):
        async with job:
            raise Oops("broken")

    stored = document(jobs, job.id)
    assert stored["last_error"].startswith("Traceback (most recent call last):")
    assert 'raise Oops("broken")' in stored["last_error"]
    assert stored["last_error"].rstrip().endswith("Oops: broken")


@pytest.mark.parametrize("kind", HELLISH, ids=lambda kind: kind.__name__)
async def test_an_exception_that_cannot_be_shown_is_stored_by_its_name(
    job: Any, jobs: Collection[Any], kind: type[BaseException]
) -> None:
    with pytest.raises(kind):
        async with job:
            raise kind()

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 1)
    assert kind.__name__ in stored["last_error"]


@pytest.mark.parametrize("kind", HELLISH, ids=lambda kind: kind.__name__)
async def test_a_reason_that_cannot_be_shown_is_stored_by_its_name(
    job: Any, jobs: Collection[Any], kind: type[BaseException]
) -> None:
    with pytest.raises(Discard):
        async with job:
            raise Discard(kind())

    assert document(jobs, job.id)["state"] == "dead"


async def test_an_error_message_that_has_no_text_is_stored_by_its_name(
    job: Any, jobs: Collection[Any]
) -> None:
    await job.error(TextThatExits())

    assert "TextThatExits" in document(jobs, job.id)["last_error"]


async def test_an_exception_counts_as_an_attempt(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Oops):
        async with job:
            raise Oops

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 1)


async def test_an_exception_in_the_last_attempt_is_the_jobs_end(queue: Any) -> None:
    await queue.put({}, max_attempts=1)

    with pytest.raises(Oops):
        async with await queue.next():
            raise Oops

    assert (await queue.stats())["errors"] == 1


# Ended inside.


@pytest.mark.parametrize("ending", ["complete", "error", "release"])
async def test_a_job_that_was_ended_inside_is_left_as_it_is(
    job: Any, jobs: Collection[Any], ending: str
) -> None:
    async with job:
        await getattr(job, ending)()
        before = jobs.find_one({"_id": job.id})

    assert jobs.find_one({"_id": job.id}) == before


@pytest.mark.parametrize("ending", ["complete", "error", "release"])
async def test_an_exception_after_the_end_of_the_job_changes_nothing(
    job: Any, jobs: Collection[Any], ending: str
) -> None:
    async def end_and_raise() -> None:
        async with job:
            await getattr(job, ending)()
            afterwards.append(jobs.find_one({"_id": job.id}))
            raise Oops

    afterwards: list[Any] = []

    with pytest.raises(Oops):
        await end_and_raise()

    assert jobs.find_one({"_id": job.id}) == afterwards[0]


async def test_a_job_that_was_ended_inside_and_claimed_again_is_left_to_its_holder(
    job: Any, queue: Any
) -> None:
    async with job:
        await job.release()
        again = await queue.next()

    await again.complete()


async def test_progress_inside_does_not_end_the_job(job: Any, queue: Any) -> None:
    async with job:
        await job.progress(5)

    assert await queue.size() == 0


# Lost inside.


@pytest.fixture
async def lost_job(job: Any, queue: Any, jobs: Collection[Any]) -> Any:
    """A job that is no longer this test's."""
    let_lease_run_out(jobs, job.id)
    await queue.repair()
    return job


async def test_a_job_that_was_lost_raises_nothing_at_the_end(lost_job: Any, queue: Any) -> None:
    async with lost_job:
        pass

    assert (await queue.stats())["available"] == 1


async def test_an_exception_after_a_loss_goes_on(lost_job: Any, jobs: Collection[Any]) -> None:
    before = document(jobs, lost_job.id)

    with pytest.raises(Oops):
        async with lost_job:
            raise Oops

    assert document(jobs, lost_job.id) == before


async def test_a_call_inside_that_finds_the_job_lost_raises(lost_job: Any) -> None:
    with pytest.raises(LeaseLost):
        async with lost_job:
            await lost_job.progress()


# Interrupted.


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_an_interruption_gives_the_job_back_without_blame(
    job: Any, jobs: Collection[Any], interruption: type[BaseException]
) -> None:
    with pytest.raises(interruption):
        async with job:
            raise interruption

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("ready", 0)
    assert "last_error" not in stored


# Outcomes.


async def test_a_retry_says_when(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Retry):
        async with job:
            raise Retry(delay=0)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("ready", 1)


async def test_a_retry_leaves_it_to_the_backoff(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Retry):
        async with job:
            raise Retry

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 1)
    assert "Retry" in stored["last_error"]


async def test_a_retry_in_the_last_attempt_is_the_jobs_end(queue: Any) -> None:
    await queue.put({}, max_attempts=1)

    with pytest.raises(Retry):
        async with await queue.next():
            raise Retry(delay=0)

    assert (await queue.stats())["errors"] == 1


async def test_a_snooze_does_not_count(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Snooze):
        async with job:
            raise Snooze(60)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 0)


async def test_a_discarded_job_is_dead_at_once(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Discard):
        async with job:
            raise Discard("no such user")

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("dead", 1)
    assert stored["last_error"] == "no such user"


async def test_a_reason_to_discard_may_be_an_exception(job: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(Discard):
        async with job:
            raise Discard(Oops("no such user"))

    stored = document(jobs, job.id)
    assert (stored["state"], stored["last_error"]) == ("dead", "no such user")


async def test_a_retry_is_stored_with_its_delay_its_reason_and_its_cause(
    job: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(Retry):
        async with job:
            raise Retry(5, reason="too many requests") from Oops("429")

    stored = document(jobs, job.id)["last_error"]
    assert "Oops: 429\n" in stored
    assert stored.endswith("Retry: again after 5 s: too many requests, because of Oops: 429\n")


@pytest.mark.parametrize(
    ("raised", "state", "attempts"),
    [
        ([Retry(delay=60)], "scheduled", 1),
        ([Snooze(60)], "scheduled", 0),
        ([Discard("no such user")], "dead", 1),
        ([ExceptionGroup("inner", [Discard("no such user")])], "dead", 1),
        ([Snooze(60), Discard("no such user"), Retry(0)], "dead", 1),
        ([Discard("no such user"), Oops("real")], "scheduled", 1),
    ],
    ids=["retry", "snooze", "discard", "nested", "several", "beside a failure"],
)
async def test_a_group_of_nothing_but_outcomes_counts_as_one(
    job: Any, jobs: Collection[Any], raised: list[Exception], state: str, attempts: int
) -> None:
    with pytest.raises(ExceptionGroup):
        async with job:
            raise ExceptionGroup("tasks", raised)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == (state, attempts)


async def test_a_failure_beside_an_interruption_is_a_failure(
    job: Any, jobs: Collection[Any]
) -> None:
    with pytest.raises(BaseExceptionGroup):
        async with job:
            raise BaseExceptionGroup("tasks", [Oops("real"), KeyboardInterrupt()])

    assert document(jobs, job.id)["attempts"] == 1


@pytest.mark.parametrize(
    "outcome", [Retry(delay=-1), Retry(cast("Any", "soon")), Snooze(float("nan"))]
)
async def test_an_outcome_that_makes_no_sense_does_not_leave_the_job_locked(
    job: Any, jobs: Collection[Any], outcome: Exception
) -> None:
    with pytest.raises((type(outcome), ValueError)):
        async with job:
            raise outcome

    assert document(jobs, job.id)["state"] != "running"


# Transactions.


async def test_a_block_may_complete_in_a_transaction_of_its_own(
    job: Any, queue: Any, shell: Shell
) -> None:
    async with job, shell.transaction() as session:
        await job.complete(session=session)

    assert await queue.size() == 0


async def test_an_aborted_completion_leaves_the_job_to_the_end_of_the_block(
    job: Any, shell: Shell, jobs: Collection[Any]
) -> None:
    async def complete_and_fail() -> None:
        async with job, shell.transaction() as session:
            await job.complete(session=session)
            raise Oops

    with pytest.raises(Oops):
        await complete_and_fail()

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 1)


async def test_a_block_inside_the_transaction_that_completes_it_does_not_wait_for_itself(
    job: Any, queue: Any, shell: Shell
) -> None:
    async with shell.transaction() as session:
        with pymongo.timeout(2):  # it would wait for a minute, and then find the transaction gone
            async with job:
                await job.complete(session=session)

    assert await queue.size() == 0
