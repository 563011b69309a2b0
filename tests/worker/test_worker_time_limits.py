"""Time limits: what becomes of a handler that takes too long, and of its job.

Laws: one holder; poison is contained.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, ConfigurationError, Job, Snooze
from tests.waiting import wait_until_async
from tests.worker.started import StartedWorker, WorkerStarter

LIMIT = 0.2
AT_ONCE = Backoff(initial=0.001, maximum=0.001)


@pytest.fixture
def limited(start: WorkerStarter) -> Any:
    """Starts a worker whose handler has a time limit."""

    async def begin(handler: Any, limit: Any = LIMIT, run_in: Any = None, **of: Any) -> Any:
        worker = start.prepare(**{"backoff": AT_ONCE, **of})
        worker.worker.handler("default", time_limit=limit, run_in=run_in)(handler)
        await start.begin(worker)
        return worker

    return begin


def last_error(jobs: Collection[Any]) -> str:
    [job] = jobs.find()
    return str(job["last_error"])


async def test_an_async_handler_is_cancelled_at_its_limit_and_its_attempt_has_failed(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(60)

    worker = await limited(handler)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(dead=1)
    assert f"time limit of {LIMIT} s" in last_error(jobs).splitlines()[-1]
    assert "in handler" in last_error(jobs)  # where it was


async def test_the_attempt_after_one_that_took_too_long_may_complete_the_job(
    limited: Any, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        if job.attempts == 1:
            await anyio.sleep(60)

    worker = await limited(handler, timedelta(seconds=LIMIT))
    await queue.put({})

    await worker.until_outcomes(retried=1, completed=1)


async def test_each_attempt_has_the_whole_limit(limited: Any, queue: AsyncMongoQueue) -> None:
    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(0.6)
        if job.attempts == 1:
            raise ValueError

    worker = await limited(handler, 1.0)
    await queue.put({})

    await worker.until_outcomes(retried=1, completed=1)


async def test_a_handler_that_swallows_its_cancellation_and_returns_has_failed_all_the_same(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> str:
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            return "done"
        return "never"

    worker = await limited(handler)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(dead=1)
    assert "time limit" in last_error(jobs)


async def test_a_handler_that_goes_on_after_its_cancellation_is_cancelled_again(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            await anyio.sleep(60)

    worker = await limited(handler)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(dead=1)
    assert "time limit" in last_error(jobs)


async def test_what_a_handler_raises_after_its_limit_is_no_way_around_it(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        try:
            await anyio.sleep(60)
        finally:
            raise Snooze(60)

    worker = await limited(handler)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(dead=1)
    assert "time limit" in last_error(jobs)


async def test_a_handler_within_its_limit_knows_nothing_of_it(
    limited: Any, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(0.01)

    worker = await limited(handler, 60)
    await queue.put_many([{} for _ in range(20)])

    await worker.until_outcomes(completed=20)
    assert worker.metric("streamqueue_overdue_handlers") == 0


async def test_a_job_whose_handler_is_stopped_for_the_end_of_the_drain_time_has_not_failed(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(60)

    worker = await limited(handler, 30, drain_timeout=0)
    await queue.put({})
    await running(worker)

    await worker.stop()
    [job] = jobs.find()
    assert (job["state"], job["attempts"], job.get("last_error")) == ("ready", 0, None)


async def test_what_a_handler_has_completed_itself_before_its_limit_is_completed(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    stopped = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        await job.complete()
        try:
            await anyio.sleep(60)
        finally:
            stopped.set()

    worker = await limited(handler)
    await queue.put({})

    await worker.until_outcomes(completed=1)
    with anyio.fail_after(10):
        await stopped.wait()


# threads


class Blocking:
    """A blocking handler that returns when it is told to."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.running = self.most = self.begun = 0
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> str:
        with self._lock:
            self.begun += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.may_end.wait(30)
        with self._lock:
            self.running -= 1
        return "done"


@pytest.fixture
def blocking() -> Any:
    handler = Blocking()
    yield handler
    handler.may_end.set()


async def running(worker: StartedWorker, count: int = 1) -> None:
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_running") == count, f"{count} run"
    )


async def overdue(worker: StartedWorker, count: int = 1) -> None:
    await wait_until_async(
        lambda: worker.metric("streamqueue_overdue_handlers") == count, f"{count} are overdue"
    )


async def test_a_thread_over_its_limit_is_named_with_its_job_at_once(
    limited: Any, queue: AsyncMongoQueue, blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    worker = await limited(blocking)
    job_id = await queue.put({})

    await overdue(worker)
    [line] = [line for line in caplog.records if getattr(line, "event", "") == "time_limit"]
    assert (vars(line)["job_id"], vars(line)["task"]) == (str(job_id), "Blocking")


async def test_no_attempt_runs_beside_a_thread_that_is_over_its_limit(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any], blocking: Blocking
) -> None:
    """For as long as several leases last, with slots free, and other workers' reapers about."""
    worker = await limited(blocking, concurrency=3, timeout=1.5, reap_interval=0.1)
    await queue.put({})
    await overdue(worker)

    renewals = worker.metric("streamqueue_leases_renewed_total")
    await wait_until_async(
        lambda: worker.metric("streamqueue_leases_renewed_total") >= renewals + 4, "it is renewed"
    )
    assert (blocking.begun, worker.outcomes()) == (1, {})
    blocking.may_end.set()
    await wait_until_async(lambda: worker.outcomes().get("retried", 0) >= 1, "it has failed")
    assert blocking.most == 1


async def test_a_thread_that_returns_after_its_limit_has_failed(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any], blocking: Blocking
) -> None:
    worker = await limited(blocking)
    await queue.put({}, max_attempts=1)
    await overdue(worker)

    blocking.may_end.set()

    await worker.until_outcomes(dead=1)
    assert f"time limit of {LIMIT} s" in last_error(jobs)
    assert worker.metric("streamqueue_overdue_handlers") == 0


async def test_a_thread_that_is_left_behind_after_its_limit_has_failed(
    limited: Any, queue: AsyncMongoQueue, jobs: Collection[Any], blocking: Blocking
) -> None:
    """Or a job whose handler never returns would never use up its attempts."""
    worker = await limited(blocking, drain_timeout=0, backoff=Backoff(initial=60))
    await queue.put({})
    await overdue(worker)

    await worker.stop()

    [job] = jobs.find()
    assert (job["state"], job["attempts"], worker.worker.left) == ("scheduled", 1, 1)
    assert "time limit" in job["last_error"]


async def test_a_worker_is_not_ready_while_all_its_slots_are_overdue(
    limited: Any, queue: AsyncMongoQueue, blocking: Blocking
) -> None:
    worker = await limited(blocking, concurrency=2, max_attempts=1)
    health = worker.worker.health
    await queue.put({})
    await overdue(worker)
    assert health.ready()

    await queue.put({})
    await wait_until_async(lambda: not health.ready(), "it is not ready")
    assert health.reasons() == {"handlers": "all 2 handlers are over their time limits"}

    blocking.may_end.set()
    await wait_until_async(health.ready, "it is ready again")


# registration


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "1 s", True])
async def test_a_limit_that_is_no_duration_is_refused(start: WorkerStarter, limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="time_limit"):
        start.prepare().worker.handler("default", time_limit=limit)
