"""What becomes of a job whose handler has failed, where the error decides that."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    Cancel,
    ConfigurationError,
    Discard,
    Job,
    Retry,
    Snooze,
    Worker,
)
from tests.worker.programs import in_child
from tests.worker.started import StartedWorker, WorkerStarter

SOON = Backoff(initial=3600, maximum=3600, jitter=0)
"""Long enough to be seen."""


def raising(error: BaseException) -> Any:
    async def handler(job: AsyncJob) -> None:
        raise error

    return handler


async def run_once(
    start: WorkerStarter, queue: AsyncMongoQueue, handler: Any, **settings: Any
) -> StartedWorker:
    """Run a job until its first attempt has ended."""
    worker = start.prepare(backoff=SOON)
    worker.worker.handler("default", **settings)(handler)
    await start.begin(worker)
    await queue.put({})
    return worker


def wait_of(jobs: Collection[Any]) -> timedelta:
    """Return how long the job is to wait from now on."""
    [job] = jobs.find()
    run_at: datetime = job["run_at"]
    return run_at.replace(tzinfo=UTC) - datetime.now(UTC)


def seconds_to_wait(jobs: Collection[Any]) -> float:
    return round(wait_of(jobs).total_seconds(), -1)


class Refused(OSError):
    """As a library derives its own."""


class OddClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise SystemExit


TO_DISCARD = [
    (Refused(), OSError),
    (Refused(), (ValueError, Refused)),
    (Refused(), (ValueError, (KeyError, OSError))),
    (ExceptionGroup("two", [ValueError(), Refused()]), OSError),
    (ExceptionGroup("two", [ExceptionGroup("one", [Refused()])]), OSError),
    (ExceptionGroup("one", [ValueError()]), ExceptionGroup),
    (SystemExit(1), SystemExit),
    (OddClass(), OddClass),
]
DISCARDED = [
    *("a subclass", "one of several", "tuples in tuples", "in a group", "deep in a group"),
    *("the group itself", "no Exception", "an odd class"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("error", "discard_on"), TO_DISCARD, ids=DISCARDED)
async def test_an_error_to_discard_on_makes_the_job_dead_at_once(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    error: BaseException,
    discard_on: Any,
) -> None:
    worker = await run_once(start, queue, raising(error), discard_on=discard_on)

    await worker.until_outcomes(dead=1)
    [job] = jobs.find()
    assert job["attempts"] == 1
    assert f"{type(error).__name__}" in job["last_error"]
    assert "Traceback" in job["last_error"]
    assert [entry["attempt"] for entry in job["errors"]] == [1]


async def test_any_other_error_is_retried(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    worker = await run_once(start, queue, raising(ValueError()), discard_on=(KeyError, OSError))

    await worker.until_outcomes(retried=1)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Refused(), "retried"),
        (ExceptionGroup("two", [Refused(), OSError()]), "retried"),
        (ValueError(), "dead"),
        (ExceptionGroup("two", [Refused(), ValueError()]), "dead"),
    ],
    ids=["one of them", "a group of them", "another", "a group with another"],
)
async def test_with_errors_to_retry_on_those_alone_are_retried(
    start: WorkerStarter, queue: AsyncMongoQueue, error: Exception, outcome: str
) -> None:
    worker = await run_once(start, queue, raising(error), retry_on=OSError)

    await worker.until_outcomes(**{outcome: 1})


async def test_discard_comes_before_retry(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    handler = raising(Refused())
    worker = await run_once(start, queue, handler, retry_on=OSError, discard_on=Refused)

    await worker.until_outcomes(dead=1)


async def test_without_any_to_retry_on_none_is(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await run_once(start, queue, raising(OSError()), retry_on=())

    await worker.until_outcomes(dead=1)


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        (Retry(60), "retried"),
        (Snooze(60), "released"),
        (Cancel(), "cancelled"),
        (Discard(), "dead"),
    ],
    ids=["retry", "snooze", "cancel", "discard"],
)
async def test_what_a_handler_asks_for_is_left_as_it_is(
    start: WorkerStarter, queue: AsyncMongoQueue, asked: Exception, outcome: str
) -> None:
    worker = await run_once(start, queue, raising(asked), retry_on=(), discard_on=Exception)

    await worker.until_outcomes(**{outcome: 1})


async def test_what_a_handler_says_of_its_job_is_left_as_it_is(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        await job.error("not yet")

    worker = await run_once(start, queue, handler, retry_on=())

    await worker.until_outcomes(retried=1)


async def test_a_time_limit_is_an_error_as_any(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(30)

    limited = {"time_limit": 0.05, "discard_on": TimeoutError}
    worker = await run_once(start, queue, handler, **limited)

    await worker.until_outcomes(dead=1)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"discard_on": LookupError}, "dead"),
        ({"discard_on": in_child.Hopeless}, "retried"),
        ({"retry_on": LookupError}, "retried"),
        ({"retry_on": OSError}, "dead"),
    ],
    ids=["to discard", "not to discard", "to retry", "not to retry"],
)
async def test_an_error_in_a_child_process_counts_as_any(
    start: WorkerStarter, queue: AsyncMongoQueue, settings: Any, outcome: str
) -> None:
    worker = await run_once(start, queue, in_child.raises, run_in="process", **settings)

    await worker.until_outcomes(within=30, **{outcome: 1})


async def test_a_child_process_that_has_ended_is_no_error_of_the_handler(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await run_once(start, queue, in_child.exits, run_in="process", retry_on=())

    await worker.until_outcomes(within=30, retried=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"retry_on": "OSError"},
        {"discard_on": OSError()},
        {"discard_on": (OSError, int)},
        {"discard_on": None},
    ],
    ids=["a text", "an exception", "another class", "none"],
)
async def test_what_is_no_class_of_exceptions_is_refused(async_jobs: Any, settings: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be an exception's class, or a tuple"):
        Worker(async_jobs).handler("emails", **settings)


# how long to wait


async def test_a_backoff_function_is_given_the_attempt_and_its_error(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    given = []

    def backoff(attempt: int, error: BaseException) -> float:
        given.append((attempt, error))
        return 500

    raised = OSError()
    worker = await run_once(start, queue, raising(raised), backoff=backoff)

    await worker.until_outcomes(retried=1)
    assert given == [(1, raised)]
    assert seconds_to_wait(jobs) == 500


async def test_a_backoff_function_may_return_a_timedelta(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    def backoff(attempt: int, error: BaseException) -> timedelta:
        return timedelta(seconds=500)

    worker = await run_once(start, queue, raising(OSError()), backoff=backoff)

    await worker.until_outcomes(retried=1)
    assert seconds_to_wait(jobs) == 500


async def test_a_delay_that_was_asked_for_comes_before_the_function(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await run_once(start, queue, raising(Retry(200)), backoff=lambda *_: 500)

    await worker.until_outcomes(retried=1)
    assert seconds_to_wait(jobs) == 200


def raises(attempt: int, error: BaseException) -> float:
    raise SystemExit


@pytest.mark.parametrize(
    "backoff",
    [raises, lambda *_: "soon", lambda *_: -1, lambda *_: float("nan"), lambda *_: None],
    ids=["raises", "a text", "negative", "no number", "nothing"],
)
async def test_a_function_that_gives_no_seconds_leaves_it_to_the_workers_backoff(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
    backoff: Any,
) -> None:
    worker = await run_once(start, queue, raising(OSError()), backoff=backoff)

    await worker.until_outcomes(retried=1)
    assert seconds_to_wait(jobs) == 3600
    [line] = [line for line in caplog.records if getattr(line, "event", "") == "backoff_failed"]
    assert line.levelno == logging.ERROR


async def wait_async(attempt: int, error: BaseException) -> float:
    return 1


@pytest.mark.parametrize(
    ("backoff", "sentence"),
    [
        (5, "must be a Backoff, or a def that takes the attempt's number and its error, not 5"),
        (wait_async, "must be a Backoff, or a def"),
        (lambda attempt: 1, "takes \\(attempt\\)"),
        (Backoff, "must be a Backoff, or a def"),
    ],
    ids=["a number", "an async def", "one argument", "a class"],
)
async def test_what_is_no_backoff_is_refused(async_jobs: Any, backoff: Any, sentence: str) -> None:
    def handler(job: Job) -> None:
        pass

    with pytest.raises(ConfigurationError, match=sentence):
        Worker(async_jobs).handler("emails", backoff=backoff)(handler)


async def test_a_backoff_function_is_refused_for_a_child_process(async_jobs: Any) -> None:
    register = Worker(async_jobs).handler("emails", run_in="process", backoff=lambda *_: 1)

    with pytest.raises(ConfigurationError, match="does not leave the child process"):
        register(in_child.raises)
