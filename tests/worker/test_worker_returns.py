"""What a handler returns without having begun it fails, and what cannot be a handler is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, ConfigurationError, Discard, Job, Retry, Snooze
from tests.worker.started import WorkerStarter


async def inner(job: Any) -> None: ...


def generates(job: Any) -> Any:
    yield


async def generates_async(job: Any) -> Any:
    yield


class CallGenerates:
    def __call__(self, job: Any) -> Any:
        yield


class CallGeneratesAsync:
    async def __call__(self, job: Any) -> Any:
        yield


class Awaitable:
    def __await__(self) -> Any:
        yield


def through(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


async def returns_inner(job: Any) -> Any:
    return inner(job)


async def returns_generator(job: Any) -> Any:
    return generates(job)


async def returns_async_generator(job: Any) -> Any:
    return generates_async(job)


async def returns_awaitable(job: Any) -> Any:
    return Awaitable()


async def returns_map(job: Any) -> Any:
    return map(print, ["never"])


NOT_BEGUN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "async, a coroutine": (returns_inner, "coroutine"),
    "async, a generator": (returns_generator, "generator"),
    "async, an async generator": (returns_async_generator, "async_generator"),
    "async, an awaitable": (returns_awaitable, "Awaitable"),
    "async, a map": (returns_map, "map"),
    "__call__ that generates": (CallGenerates(), "generator"),
    "async __call__ that generates": (CallGeneratesAsync(), "async_generator"),
    "a lambda": (lambda job: inner(job), "coroutine"),
    "a lambda that generates": (lambda job: (n for n in range(3)), "generator"),
    "a partial": (functools.partial(lambda _, job: generates(job), None), "generator"),
    "wrapped": (through(inner), "coroutine"),
    "a partial of one that is wrapped": (functools.partial(through(inner)), "coroutine"),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", NOT_BEGUN)
async def test_what_was_not_begun_is_a_failure_that_names_it(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], name: str
) -> None:
    handler, kind = NOT_BEGUN[name]
    worker = start.prepare()
    worker.worker.handler("default")(handler)
    await start.begin(worker)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(dead=1)
    last_error = (jobs.find_one() or {})["last_error"]
    assert "TypeError" in last_error
    assert f"returned a {kind}" in last_error


def no_job() -> None: ...


def two(job: Any, other: Any) -> None: ...


def named_only(*, job: Any) -> None: ...


class Takes:
    def __init__(self, job: Any) -> None: ...

    def method(self, job: Any) -> None: ...

    def call(self) -> None: ...


@pytest.mark.parametrize(
    "function",
    [no_job, two, named_only, Takes, functools.partial(Takes), Takes.method, Takes(1).call],
    ids=lambda function: getattr(function, "__qualname__", "partial"),
)
async def test_what_cannot_be_called_with_a_job_or_does_nothing_then_is_refused(
    start: WorkerStarter, function: Any
) -> None:
    with pytest.raises(ConfigurationError, match="a handler"):
        start.prepare().worker.handler("default")(function)


def injected(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(job: Any) -> Any:
        return function(job, "a connection")

    return wrapper


@pytest.mark.parametrize(
    "function",
    [
        Takes(1).method,
        injected(two),
        functools.partial(two, other=1),
        lambda *jobs: None,
        print,
        lambda job, retries=3: None,
    ],
    ids=["method", "injected", "partial", "any number", "builtin", "default"],
)
async def test_what_can_be_called_with_a_job_is_taken(start: WorkerStarter, function: Any) -> None:
    start.prepare().worker.handler("default")(function)


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        ([Retry(60)], "retried"),
        ([ExceptionGroup("inner", [Snooze(60)])], "released"),
        ([Discard("gone"), Retry(60)], "dead"),
        ([Snooze(60), ValueError("real")], "retried"),
    ],
    ids=["retry", "nested snooze", "discard before retry", "beside a failure"],
)
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_outcomes_in_a_group_count_as_if_they_were_raised_bare(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    raised: list[Exception],
    outcome: str,
    kind: str,
) -> None:
    async def waits(job: Any) -> None:
        raise ExceptionGroup("tasks", raised)

    def blocks(job: Job) -> None:
        raise ExceptionGroup("tasks", raised)

    worker = await start(waits if kind == "async" else blocks)
    await queue.put({})

    await worker.until_outcomes(**{outcome: 1})
