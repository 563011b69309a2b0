"""What a handler may do, and what becomes of its job."""

from __future__ import annotations

import asyncio  # noqa: TID251 - as a handler may
import contextlib
import gc
import random
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Discard, Job, LeaseLost, Retry, Snooze
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

CANCELLED = anyio.get_cancelled_exc_class


def stored(jobs: Collection[Any]) -> dict[str, Any]:
    """Return the only job there is."""
    [job] = jobs.find()
    return job


def take_away(jobs: Collection[Any], job_id: ObjectId) -> None:
    """Let somebody else hold the job."""
    jobs.update_one({"_id": job_id}, {"$set": {"lease": b"somebody else's"}})


class Broken(Exception):
    """One that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


# the two kinds


async def test_an_async_handler_gets_an_async_job_and_its_return_completes_it(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen = []

    async def handler(job: AsyncJob) -> None:
        seen.append((type(job), job.data, job.attempts, job.queue))

    worker = await start(handler)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert seen == [(AsyncJob, {"n": 1}, 1, "default")]
    assert jobs.count_documents({}) == 0


async def test_a_blocking_handler_gets_a_job_in_a_thread_and_its_return_completes_it(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen = []

    def handler(job: Job) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        seen.append((type(job), job.data, job.attempts, in_main))

    worker = await start(handler)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert seen == [(Job, {"n": 1}, 1, False)]
    assert jobs.count_documents({}) == 0


async def test_blocking_handlers_run_beside_each_other(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    together = threading.Barrier(3)

    def handler(job: Job) -> None:
        together.wait(timeout=5)

    worker = await start(handler, concurrency=3, max_attempts=1)
    await queue.put_many([{"n": n} for n in range(3)])

    await worker.until_outcomes(completed=3)


async def test_each_queue_has_its_own_handler(start: WorkerStarter, uri: str, queue: Any) -> None:
    seen = []

    async def first(job: AsyncJob) -> None:
        seen.append(("first", job.queue))

    async def second(job: AsyncJob) -> None:
        seen.append(("second", job.queue))

    worker = await start(first, second)
    await queue.put({})
    await AsyncMongoQueue(queue._jobs, name="second").put({})

    await worker.until_outcomes(completed=2)
    assert sorted(seen) == [("first", "default"), ("second", "second")]


async def test_a_function_that_returns_a_coroutine_is_not_reported_complete(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    """As a decorator does that is not made for coroutines: the work was never done."""

    async def work(job: Any) -> None:
        pass

    coroutines = []

    def handler(job: Any) -> Any:
        coroutines.append(work(job))
        return coroutines[-1]

    worker = await start(handler)
    await queue.put({"n": 1}, max_attempts=1)

    try:
        await worker.until_outcomes(dead=1)
    finally:
        for coroutine in coroutines:
            coroutine.close()


# what it may ask of its job


async def test_progress_of_a_blocking_handler_is_stored_and_extends_the_lease(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen = []

    def handler(job: Job) -> None:
        before = stored(jobs)["locked_until"]
        job.progress(42)
        after = stored(jobs)
        seen.append((after["progress"], after["locked_until"] > before))

    worker = await start(handler)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert seen == [(42, True)]


@pytest.mark.parametrize(
    ("call", "outcome", "state", "attempts"),
    [
        ("complete", "completed", None, None),
        ("error", "retried", "scheduled", 1),
        ("release", "released", "scheduled", 0),
    ],
)
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_what_a_handler_ended_itself_stays_as_it_is(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    kind: str,
    call: str,
    outcome: str,
    state: str | None,
    attempts: int | None,
) -> None:
    arguments = {} if call == "complete" else {"delay": 60}

    async def waits(job: AsyncJob) -> None:
        await getattr(job, call)(**arguments)

    def blocks(job: Job) -> None:
        getattr(job, call)(**arguments)

    worker = await start(waits if kind == "async" else blocks)
    await queue.put({"n": 1})

    await worker.until_outcomes(**{outcome: 1})
    left = jobs.find_one() or {}
    assert (left.get("state"), left.get("attempts")) == (state, attempts)


@pytest.mark.few(3)
@pytest.mark.parametrize("call", ["complete", "error", "release", "progress"])
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_every_call_on_a_lost_job_raises_lease_lost_and_changes_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str, call: str
) -> None:
    raised = []

    async def waits(job: AsyncJob) -> None:
        take_away(jobs, job.id)
        try:
            await getattr(job, call)()
        except LeaseLost as error:
            raised.append(error.job_id)
            raise

    def blocks(job: Job) -> None:
        take_away(jobs, job.id)
        try:
            getattr(job, call)()
        except LeaseLost as error:
            raised.append(error.job_id)
            raise

    worker = await start(waits if kind == "async" else blocks)
    job_id = await queue.put({"n": 1})

    await worker.until_outcomes(lease_lost=1)
    assert raised == [job_id]
    assert (stored(jobs)["state"], stored(jobs)["lease"]) == ("running", b"somebody else's")


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_lost_job_whose_handler_returns_is_not_completed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    async def waits(job: AsyncJob) -> None:
        take_away(jobs, job.id)

    def blocks(job: Job) -> None:
        take_away(jobs, job.id)

    worker = await start(waits if kind == "async" else blocks)
    await queue.put({"n": 1})

    await worker.until_outcomes(lease_lost=1)
    assert stored(jobs)["lease"] == b"somebody else's"
    assert worker.metric("streamqueue_leases_lost_total") == 1


async def test_a_second_complete_raises_lease_lost(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    raised = []

    async def handler(job: AsyncJob) -> None:
        await job.complete()
        with contextlib.suppress(LeaseLost):
            await job.complete()
            return
        raised.append(True)

    worker = await start(handler)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert raised == [True]


async def test_an_error_after_a_complete_leaves_the_job_completed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        await job.complete()
        raise ValueError("too late")

    worker = await start(handler)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_job_used_as_a_block_in_its_handler_ends_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    seen = []

    async def waits(job: AsyncJob) -> None:
        async with job as data:
            seen.append(data)

    def blocks(job: Job) -> None:
        with job as data:
            seen.append(data)

    worker = await start(waits if kind == "async" else blocks)
    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert seen == [{"n": 1}]
    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_job_used_as_a_block_fails_once_when_the_block_raises(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    async def waits(job: AsyncJob) -> None:
        async with job:
            raise ValueError("no")

    def blocks(job: Job) -> None:
        with job:
            raise ValueError("no")

    worker = await start(
        waits if kind == "async" else blocks, backoff=Backoff(initial=60, jitter=0)
    )
    await queue.put({"n": 1})

    await worker.until_outcomes(retried=1)
    assert len(stored(jobs)["errors"]) == 1


# how it may end


async def test_an_exception_is_stored_with_its_traceback(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        raise ValueError("the reason")

    worker = await start(handler, backoff=Backoff(initial=60, jitter=0))
    await queue.put({"n": 1})

    await worker.until_outcomes(retried=1)
    text = stored(jobs)["last_error"]
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("ValueError: the reason")


def due_in(jobs: Collection[Any]) -> float:
    return (stored(jobs)["run_at"] - datetime.now(UTC)) / timedelta(seconds=1)


@pytest.mark.parametrize(
    ("outcome", "wait"),
    [(Retry(delay=60), 60), (Retry(delay=timedelta(minutes=2)), 120), (Retry(), 40)],
    ids=["with a delay", "with a timedelta", "after the backoff"],
)
async def test_retry_counts_the_attempt_and_waits(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    outcome: Exception,
    wait: float,
) -> None:
    async def handler(job: AsyncJob) -> None:
        raise outcome

    worker = await start(handler, backoff=Backoff(initial=40, jitter=0))
    await queue.put({"n": 1})

    await worker.until_outcomes(retried=1)
    assert (stored(jobs)["state"], stored(jobs)["attempts"]) == ("scheduled", 1)
    assert due_in(jobs) == pytest.approx(wait, abs=5)


async def test_snooze_does_not_count_the_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        raise Snooze(60)

    worker = await start(handler)
    await queue.put({"n": 1})

    await worker.until_outcomes(released=1)
    assert (stored(jobs)["state"], stored(jobs)["attempts"]) == ("scheduled", 0)
    assert due_in(jobs) == pytest.approx(60, abs=5)


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_discard_buries_the_job_at_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    async def waits(job: AsyncJob) -> None:
        raise Discard("no such customer")

    def blocks(job: Job) -> None:
        raise Discard("no such customer")

    worker = await start(waits if kind == "async" else blocks, max_attempts=9)
    await queue.put({"n": 1})

    await worker.until_outcomes(dead=1)
    assert (stored(jobs)["state"], stored(jobs)["last_error"]) == ("dead", "no such customer")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "raised",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        Retry(delay="soon"),  # type: ignore[arg-type]
        Retry(delay=float("nan")),
        Snooze(-1),
        Snooze(None),  # type: ignore[arg-type]
        Discard(ValueError("not a text")),
        Discard(None),
        Broken(),
        ExceptionGroup("several", [ValueError(), TypeError()]),
        ValueError("lone surrogate \ud800"),
        StopIteration(),
    ],
    ids=lambda error: (
        f"{type(error).__name__}({type(error.args[0]).__name__ if error.args else ''})"
    ),
)
async def test_no_exception_of_a_handler_takes_the_worker_down(
    start: WorkerStarter, queue: AsyncMongoQueue, raised: BaseException
) -> None:
    async def handler(job: AsyncJob) -> None:
        if job.data["n"] == 1:
            raise raised

    worker = await start(handler)
    await queue.put({"n": 1}, max_attempts=1)
    await wait_until_async(lambda: worker.outcomes() or worker.ended.is_set(), "the job has ended")

    assert worker.error is None
    await queue.put({"n": 2})
    await worker.until_outcomes(dead=1, completed=1)


async def in_a_task(raise_it: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await asyncio.create_task(raise_it())


async def in_a_forgotten_task(raise_it: Callable[[], Coroutine[Any, Any, None]]) -> None:
    task = asyncio.create_task(raise_it())
    while not task.done():
        await anyio.lowlevel.checkpoint()
    raise ValueError(str(task.exception()))


async def in_a_task_group(raise_it: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(raise_it)


async def in_a_task_that_is_cancelled(raise_it: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def exit_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await raise_it()

    task = asyncio.create_task(exit_when_cancelled())
    await anyio.lowlevel.checkpoint()
    task.cancel()
    await task


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize(
    "begin", [in_a_task, in_a_forgotten_task, in_a_task_group, in_a_task_that_is_cancelled]
)
async def test_no_task_that_a_handler_begins_takes_the_worker_down(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    begin: Callable[..., Coroutine[Any, Any, None]],
    kind: type[BaseException],
) -> None:
    async def raise_it() -> None:
        raise kind

    async def handler(job: AsyncJob) -> None:
        if job.data["n"] == 1:
            await begin(raise_it)

    worker = await start(handler)
    await queue.put({"n": 1}, max_attempts=1)
    await worker.until_outcomes(dead=1)
    await queue.put({"n": 2})
    await worker.until_outcomes(dead=1, completed=1)

    assert f"{kind.__name__}() in a task that a handler began" in stored(jobs)["last_error"]


async def test_a_task_of_a_handler_that_is_cancelled_before_it_begins_is_no_warning(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        task = asyncio.create_task(anyio.sleep(1), name="forgotten")
        assert "sleep" in repr(task)
        task.cancel()

    worker = await start(handler)
    await queue.put({})
    await worker.until_outcomes(completed=1)
    gc.collect()


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, Retry(delay=-1)])
async def test_no_exception_of_a_blocking_handler_takes_the_worker_down(
    start: WorkerStarter, queue: AsyncMongoQueue, raised: Any
) -> None:
    def handler(job: Job) -> None:
        if job.data["n"] == 1:
            raise raised

    worker = await start(handler)
    await queue.put({"n": 1}, max_attempts=1)
    await queue.put({"n": 2})

    await worker.until_outcomes(dead=1, completed=1)


async def test_a_cancellation_of_the_handlers_own_is_a_failure_like_others(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        if job.data["n"] == 1:
            raise CANCELLED()()

    worker = await start(handler)
    await queue.put_many([{"n": 1}, {"n": 2}], max_attempts=1)

    await worker.until_outcomes(dead=1, completed=1)


# attempts


async def test_a_failing_job_is_run_as_often_as_it_may_be_and_is_dead_then(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    attempts = []

    async def handler(job: AsyncJob) -> None:
        attempts.append(job.attempts)
        raise ValueError(f"attempt {job.attempts}")

    worker = await start(handler, backoff=Backoff(initial=0))
    await queue.put({"n": 1}, max_attempts=3)

    await worker.until_outcomes(retried=2, dead=1)
    assert attempts == [1, 2, 3]
    assert stored(jobs)["state"] == "dead"
    assert [error["attempt"] for error in stored(jobs)["errors"]] == [1, 2, 3]


async def test_a_job_without_a_number_of_attempts_takes_its_handlers(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    async def fails(job: AsyncJob) -> None:
        raise ValueError

    worker = start.prepare(backoff=Backoff(initial=0), max_attempts=5)
    worker.worker.handler("default", max_attempts=2)(fails)
    await start.begin(worker)
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {}})

    await worker.until_outcomes(retried=1, dead=1)


async def test_every_attempt_ends_in_exactly_one_outcome(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    started = 0
    released = set()

    async def handler(job: AsyncJob) -> None:
        nonlocal started
        started += 1
        chance = random.Random(f"{job.data['n']} {job.attempts}").random()
        if chance < 0.2:
            raise ValueError
        if chance < 0.3:
            raise Retry(delay=0.01)
        if chance < 0.35 and job.id not in released:
            released.add(job.id)  # once: its attempts stay as they are
            await job.release(delay=0.01)
        elif chance < 0.45:
            raise Discard
        elif chance < 0.55:
            take_away(jobs, job.id)
        elif chance < 0.65:
            await job.complete()
            raise ValueError

    worker = await start(handler, backoff=Backoff(initial=0.01))
    await queue.put_many([{"n": n} for n in range(100)])
    over = {"state": {"$in": ["ready", "scheduled"]}}
    await wait_until_async(
        lambda: not jobs.count_documents(over) and not worker.metric("streamqueue_jobs_running"),
        "all is done",
    )
    await worker.stop()

    assert started >= 100
    assert sum(worker.outcomes().values()) == started
    assert worker.metric("streamqueue_job_duration_seconds_count") == started
    assert worker.metric("streamqueue_jobs_running") == 0
