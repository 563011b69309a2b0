"""What the holder of a job may do with it, and that nobody else may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, ConfigurationError, LeaseLost
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell


async def hold(queue: Any, **settings: Any) -> Any:
    """Put a job and claim it."""
    await queue.put({"n": 1}, **settings)
    return await queue.next()


# complete


async def test_a_completed_job_is_gone(queue: Any) -> None:
    job = await hold(queue)

    await job.complete()

    assert await queue.size() == 0


# error


async def test_an_error_is_stored_with_its_time_and_attempt(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await hold(queue)

    await job.error("oops")

    stored = document(jobs, job.id)
    [entry] = stored["errors"]
    assert stored["last_error"] == entry["message"] == "oops"
    assert entry["attempt"] == 1
    assert abs(entry["at"] - server_time(jobs)) < timedelta(seconds=10)


async def test_the_next_holder_sees_the_last_error(queue: Any) -> None:
    job = await hold(queue)
    await job.error("oops", delay=0)

    again = await queue.next()

    assert (again.last_error, again.attempts) == ("oops", 2)


async def test_a_failed_job_waits_for_its_backoff(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue(backoff=Backoff(initial=100, jitter=0))
    job = await hold(queue)

    await job.error("oops")

    stored = document(jobs, job.id)
    wait = stored["run_at"] - server_time(jobs)
    assert stored["state"] == "scheduled"
    assert timedelta(seconds=90) < wait <= timedelta(seconds=100)


async def test_the_backoff_grows_with_the_attempts(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue(backoff=Backoff(initial=100, factor=3, jitter=0))
    job = await hold(queue)
    await job.error(delay=0)

    await (await queue.next()).error()

    wait = document(jobs, job.id)["run_at"] - server_time(jobs)
    assert timedelta(seconds=290) < wait <= timedelta(seconds=300)


@pytest.mark.parametrize("delay", [50, timedelta(seconds=50)])
async def test_an_error_may_say_when_to_try_again(
    queue: Any, jobs: Collection[Any], delay: Any
) -> None:
    job = await hold(queue)

    await job.error("oops", delay=delay)

    wait = document(jobs, job.id)["run_at"] - server_time(jobs)
    assert timedelta(seconds=40) < wait <= timedelta(seconds=50)


async def test_without_a_delay_a_failed_job_is_claimable_at_once(queue: Any) -> None:
    job = await hold(queue)

    await job.error("oops", delay=0)

    assert (await queue.next()).id == job.id


async def test_a_failed_job_goes_behind_those_that_wait(queue: Any) -> None:
    job = await hold(queue)
    await queue.put({"n": 2})

    await job.error("oops", delay=0)

    assert (await queue.next()).data == {"n": 2}


async def test_a_job_is_dead_when_its_attempts_are_used_up(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await hold(queue, max_attempts=2)
    await job.error("first", delay=0)

    await (await queue.next()).error("second", delay=0)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["last_error"]) == ("dead", "second")
    assert abs(stored["finished_at"] - server_time(jobs)) < timedelta(seconds=10)
    assert await queue.next() is None


async def test_the_last_five_errors_are_kept(queue: Any, jobs: Collection[Any]) -> None:
    job = await hold(queue, max_attempts=8)
    for attempt in range(1, 8):
        await job.error(f"error {attempt}", delay=0)
        job = await queue.next()

    errors = document(jobs, job.id)["errors"]

    assert [entry["attempt"] for entry in errors] == [3, 4, 5, 6, 7]
    assert [entry["message"] for entry in errors] == [f"error {n}" for n in range(3, 8)]


async def test_an_error_without_a_message_keeps_the_last_one(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await hold(queue)
    await job.error("oops", delay=0)

    await (await queue.next()).error(delay=0)

    stored = document(jobs, job.id)
    assert (stored["last_error"], len(stored["errors"])) == ("oops", 1)


async def test_of_a_long_message_the_end_is_kept(queue: Any, jobs: Collection[Any]) -> None:
    job = await hold(queue)

    await job.error("x" * 100_000 + "the cause")

    stored = document(jobs, job.id)["last_error"]
    assert len(stored) == 4096
    assert stored.endswith("the cause")


@pytest.mark.parametrize(
    "message", ["$$ROOT", "$payload", "$$NOW", "", "a\0b", "\ud800"], ids=ascii
)
async def test_a_message_is_stored_as_it_is(
    queue: Any, jobs: Collection[Any], message: str
) -> None:
    job = await hold(queue)

    await job.error(message)

    expected = message.encode("utf-8", "backslashreplace").decode()
    assert document(jobs, job.id)["last_error"] == expected


async def test_a_message_may_be_an_exception(queue: Any, jobs: Collection[Any]) -> None:
    job = await hold(queue)

    await job.error(ValueError("oops"))

    assert document(jobs, job.id)["last_error"] == "oops"


async def test_a_name_of_a_consumer_is_stored_as_it_is(shell: Shell, jobs: Collection[Any]) -> None:
    job = await hold(shell.queue(consumer_id="$$ROOT"))

    assert document(jobs, job.id)["locked_by"] == "$$ROOT"


@pytest.mark.parametrize("ending", ["error", "release"])
async def test_a_job_that_is_given_back_carries_no_lock(
    queue: Any, jobs: Collection[Any], ending: str
) -> None:
    job = await hold(queue)

    await getattr(job, ending)()

    lock = {"locked_by", "locked_at", "locked_until", "lease"}
    assert not lock & document(jobs, job.id).keys()


@pytest.mark.few(5)
@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), True, "5"])
@pytest.mark.parametrize("method", ["error", "release"])
async def test_a_bad_delay_is_refused_and_the_job_stays_held(
    queue: Any, method: str, delay: Any
) -> None:
    job = await hold(queue)

    with pytest.raises(ConfigurationError, match="delay must be"):
        await getattr(job, method)(delay=delay)

    await job.complete()


# progress


async def test_progress_stores_a_count(queue: Any, jobs: Collection[Any]) -> None:
    job = await hold(queue)

    await job.progress(42)

    assert document(jobs, job.id)["progress"] == 42


async def test_progress_without_a_count_keeps_the_last_one(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await hold(queue)
    await job.progress(42)

    await job.progress()

    assert document(jobs, job.id)["progress"] == 42


async def test_progress_starts_the_timeout_again(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue(timeout=100)
    job = await hold(queue)
    let_lease_run_out(jobs, job.id)

    await job.progress()

    left = document(jobs, job.id)["locked_until"] - server_time(jobs)
    assert timedelta(seconds=90) < left <= timedelta(seconds=100)


async def test_a_job_that_made_progress_is_not_repaired(queue: Any, jobs: Collection[Any]) -> None:
    job = await hold(queue)
    let_lease_run_out(jobs, job.id)
    await job.progress()

    assert await queue.repair() == 0


@pytest.mark.parametrize("count", [1.5, "5", True, 2**63, [1], {"$set": 1}])
async def test_a_count_that_is_no_whole_number_is_refused(queue: Any, count: Any) -> None:
    job = await hold(queue)

    with pytest.raises(ConfigurationError, match="count must be"):
        await job.progress(count)


# release


async def test_a_released_job_is_as_it_was_before_the_claim(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({"n": 1}, priority=5, key="k")
    before = document(jobs, job_id)

    await (await queue.next()).release()

    assert document(jobs, job_id) == before


async def test_a_release_after_a_failure_keeps_the_failure(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await hold(queue)
    await job.error("oops", delay=0)

    await (await queue.next()).release()

    stored = document(jobs, job.id)
    assert (stored["attempts"], stored["last_error"]) == (1, "oops")


async def test_a_released_job_keeps_its_place_in_the_queue(queue: Any) -> None:
    job = await hold(queue)
    await queue.put({"n": 2})

    await job.release()

    assert (await queue.next()).id == job.id


async def test_a_release_may_say_when_to_try_again(queue: Any, jobs: Collection[Any]) -> None:
    job = await hold(queue)

    await job.release(delay=50)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("scheduled", 0)
    assert await queue.next() is None


async def test_a_job_may_be_released_more_often_than_it_has_attempts(queue: Any) -> None:
    job = await hold(queue, max_attempts=1)
    for _ in range(5):
        await job.release()
        job = await queue.next()

    assert job.attempts == 1


# A job that is no longer held.

CALLS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "complete": lambda job: job.complete(),
    "error": lambda job: job.error("too late"),
    "progress": lambda job: job.progress(5),
    "release": lambda job: job.release(),
}


async def complete_it(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    await job.complete()


async def error_it(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    await job.error("oops", delay=0)


async def bury_it(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"max_attempts": 1}})
    await job.error("oops")


async def release_it(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    await job.release()


async def repair_it(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    let_lease_run_out(jobs, job.id)
    assert await shell.queue().repair() == 1


async def give_it_to_another(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    await repair_it(job, shell, jobs)
    assert (await shell.queue(consumer_id="consumer-2").next()).id == job.id


async def give_it_to_a_namesake(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    await repair_it(job, shell, jobs)
    assert (await shell.queue(consumer_id="consumer-1").next()).id == job.id


async def clear_it(job: Any, shell: Shell, jobs: Collection[Any]) -> None:
    assert await shell.queue().clear() == 1


LOSSES = [
    *(complete_it, error_it, bury_it, release_it, repair_it),
    *(give_it_to_another, give_it_to_a_namesake, clear_it),
]


@pytest.mark.few(16)
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_job_that_is_no_longer_held_cannot_be_changed(
    shell: Shell,
    jobs: Collection[Any],
    lose: Callable[[Any, Shell, Collection[Any]], Awaitable[None]],
    call: Callable[[Any], Awaitable[None]],
) -> None:
    job = await hold(shell.queue(consumer_id="consumer-1"))
    await lose(job, shell, jobs)
    before = jobs.find_one({"_id": job.id})

    with pytest.raises(LeaseLost) as caught:
        await call(job)

    assert caught.value.job_id == job.id
    assert jobs.find_one({"_id": job.id}) == before


async def test_a_lease_that_ran_out_is_still_held_until_somebody_takes_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    job = await hold(queue)
    let_lease_run_out(jobs, job.id)

    await job.complete()

    assert await queue.size() == 0


async def test_the_new_holder_is_not_disturbed_by_the_old_one(
    shell: Shell, jobs: Collection[Any]
) -> None:
    old = await hold(shell.queue())
    let_lease_run_out(jobs, old.id)
    new = await shell.queue().next()
    with pytest.raises(LeaseLost):
        await old.complete()

    await new.complete()

    assert jobs.count_documents({}) == 0
