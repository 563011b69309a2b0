"""What a handler says that it takes, and what it gets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient

import streamqueue
from streamqueue import AsyncJob, ConfigurationError, Job, Worker
from streamqueue.worker.worker import settings_of

if TYPE_CHECKING:
    from streamqueue import Job as NotImported

Handler = Callable[[Any], Any]


def worker() -> Worker:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient("mongodb://127.0.0.1:9/")
    return Worker(client.app.jobs, registry=CollectorRegistry())


def register(function: Handler, **settings: Any) -> None:
    made = worker()
    made.handler("emails", **settings)(function)
    assert list(settings_of(made).handlers) == ["emails"]


async def async_of_job(job: Job) -> None:
    job.progress(1)


def blocking_of_async_job(job: AsyncJob) -> None: ...


async def async_of_a_dotted_job(job: streamqueue.Job) -> None: ...


async def async_of_a_job_with_a_type(job: Job[dict[str, int]]) -> None: ...


async def async_of_a_quoted_job(job: "Job") -> None: ...  # noqa: UP037 (as where no annotation is a text)


class Callables:
    async def method(self, job: Job) -> None: ...

    def __call__(self, job: AsyncJob) -> None: ...


def not_postponed(kind: object) -> Handler:
    """Return an async handler whose annotation is no text."""

    async def handler(job: Any) -> None: ...

    handler.__annotations__["job"] = kind
    return handler


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(async_of_job, id="async"),
        pytest.param(async_of_a_dotted_job, id="dotted"),
        pytest.param(async_of_a_job_with_a_type, id="with a type"),
        pytest.param(async_of_a_quoted_job, id="quoted"),
        pytest.param(not_postponed(Job), id="a class"),
        pytest.param(not_postponed(Job[int]), id="a class with a type"),
        pytest.param(Callables().method, id="method"),
        pytest.param(functools.partial(async_of_job), id="partial"),
    ],
)
def test_an_async_def_that_says_that_it_takes_a_job_is_refused(function: Handler) -> None:
    with pytest.raises(ConfigurationError, match=r"gets an AsyncJob: annotate it so, and await"):
        register(function)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(blocking_of_async_job, id="def"),
        pytest.param(Callables(), id="object"),
    ],
)
def test_a_def_that_says_that_it_takes_an_async_job_is_refused(function: Handler) -> None:
    with pytest.raises(ConfigurationError, match=r"gets a Job: annotate it so, and do not await"):
        register(function)


def test_a_def_for_a_child_process_that_says_that_it_takes_a_job_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"takes an AsyncJob, .* gets the payload alone"):
        register(blocking_of_async_job, run_in="process")


async def right_async(job: AsyncJob) -> None: ...


async def right_with_a_type(job: AsyncJob[dict[str, int]]) -> None: ...


def right_blocking(job: Job) -> None: ...


async def without_annotation(job):  # type: ignore[no-untyped-def]
    pass


async def of_a_name_that_is_not_there(job: NotImported) -> None: ...


async def of_either(job: AsyncJob | Job) -> None: ...


@functools.wraps(async_of_job)
async def converting(job: Any) -> None:
    """A decorator that hands the function another kind of job than it gets itself."""


def with_a_job_of_its_own() -> Handler:
    names: dict[str, Any] = {}
    exec(
        "from __future__ import annotations\n"
        "class Job: ...\n"
        "async def handler(job: Job) -> None: ...\n",
        names,
    )
    handler: Handler = names["handler"]
    return handler


@pytest.mark.parametrize(
    "function",
    [
        right_async,
        right_with_a_type,
        right_blocking,
        without_annotation,
        of_a_name_that_is_not_there,
        of_either,
        converting,
        pytest.param(with_a_job_of_its_own(), id="a job of its own"),
    ],
)
def test_what_does_not_certainly_say_the_wrong_kind_is_registered(function: Handler) -> None:
    register(function)


def test_the_payloads_type_stands_in_brackets_also_when_the_program_runs() -> None:
    assert str(AsyncJob[dict[str, int]]) == "streamqueue.queue.job.AsyncJob[dict[str, int]]"
    assert str(Job[int]) == "streamqueue.queue.job.Job[int]"


@pytest.mark.parametrize("kind", [list[AsyncJob], Sequence[AsyncJob[dict[str, int]]]], ids=str)
def test_what_says_that_it_takes_a_list_is_registered_with_a_batch_alone(kind: object) -> None:
    register(not_postponed(kind), batch=2)
    with pytest.raises(ConfigurationError, match="it gets one job: with batch="):
        register(not_postponed(kind))


@pytest.mark.parametrize("kind", [Job, list[Job]], ids=str)
def test_an_async_def_with_a_batch_that_says_that_it_takes_jobs_of_the_other_kind_is_refused(
    kind: object,
) -> None:
    with pytest.raises(ConfigurationError):
        register(not_postponed(kind), batch=2)


@pytest.mark.parametrize("kind", [list, list[Any], list[int]], ids=str)
def test_a_list_of_something_else_says_nothing_of_jobs(kind: object) -> None:
    register(not_postponed(kind), batch=2)
    register(not_postponed(kind))
