"""The guide on what stands around handlers: its recipes, as they stand there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo.asynchronous.collection import AsyncCollection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Job, JobInfo, Worker
from tests.waiting import wait_until_async

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "around.md").read_text()
LIFESPAN, AROUND, CLASSES, PATIENCE, ON_DEAD = re.findall(
    r"^```python\n(.*?)^```$", GUIDE, re.M | re.S
)


class BadAddress(Exception):
    pass


class TooManyRequests(Exception):
    retry_after = 0.01


class Client:
    """What the guide calls: an HTTP client, a partner, a carrier, a chat."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.raises: list[Exception] = []

    async def __aenter__(self) -> Client:
        self.said.append("opened")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.said.append("closed")

    def say(self, what: Any) -> None:
        self.said.append(what)
        if self.raises:
            raise self.raises.pop(0)

    async def get(self, what: Any) -> None:
        self.say(what)


@pytest.fixture
def others() -> Client:
    return Client()


@pytest.fixture
def names(async_jobs: AsyncCollection[Any], others: Client) -> dict[str, Any]:
    """What the guide uses and does not define."""
    settings: dict[str, Any] = {
        "backoff": Backoff(initial=0.01),
        "max_await": 0.05,
        "registry": CollectorRegistry(),
    }
    make: Any = partial(Worker, **settings)
    return {
        **{each.__name__: each for each in (AsyncJob, Job, JobInfo, BadAddress, TooManyRequests)},
        "asynccontextmanager": asynccontextmanager,
        "perf_counter": perf_counter,
        "AsyncClient": lambda: others,
        "ship": others.say,
        "send": others.get,
        "notify": others.get,
        "durations": [],
        "jobs": async_jobs,
        "Worker": make,
        "worker": make(async_jobs),
    }


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await worker.run(handle_signals=False, task_status=task_status)

        await tasks.start(run)
        yield
        worker.stop()


async def run_jobs(
    names: dict[str, Any], jobs: AsyncCollection[Any], queue: str, *payloads: dict[str, Any]
) -> dict[str, int]:
    """Run jobs until all have ended; return what the queue counts then."""
    async with AsyncMongoQueue(jobs, name=queue) as puts, running(names["worker"]):
        await puts.put_many(payloads)

        async def none_is_left() -> bool:
            stats = await puts.stats()
            return stats["total"] == stats["errors"]

        async def ended() -> Any:
            # Twice, for a count may miss a job whose state changes under it.
            return await none_is_left() and await none_is_left()

        await wait_until_async(ended, "all have ended")
        return await puts.stats()


async def test_what_is_opened_once_is_there_for_every_job(
    names: dict[str, Any], async_jobs: AsyncCollection[Any], others: Client
) -> None:
    exec(LIFESPAN, names)

    await run_jobs(names, async_jobs, "calls", {"url": "a"}, {"url": "b"})

    assert sorted(others.said) == ["a", "b", "closed", "opened"]
    assert others.said[::3] == ["opened", "closed"]


async def test_every_attempt_is_timed(
    names: dict[str, Any], async_jobs: AsyncCollection[Any]
) -> None:
    exec(AROUND, names)

    worker: Worker = names["worker"]

    @worker.handler("calls")
    async def handler(job: AsyncJob) -> None:
        if job.attempts == 1:
            raise OSError

    await run_jobs(names, async_jobs, "calls", {})

    assert [queue for queue, _ in names["durations"]] == ["calls", "calls"]


@pytest.mark.parametrize(
    ("error", "calls", "dead"),
    [(ConnectionResetError(), 2, 0), (BadAddress(), 1, 1), (ValueError(), 1, 1)],
    ids=["retried", "discarded", "another"],
)
async def test_the_class_of_a_failure_decides(
    names: dict[str, Any],
    async_jobs: AsyncCollection[Any],
    others: Client,
    error: Exception,
    calls: int,
    dead: int,
) -> None:
    exec(CLASSES, names)
    others.raises = [error]

    stats = await run_jobs(names, async_jobs, "orders", {"order": 1})

    assert (len(others.said), stats["errors"]) == (calls, dead)


async def test_the_partner_says_how_long_to_wait(
    names: dict[str, Any], async_jobs: AsyncCollection[Any], others: Client
) -> None:
    exec(PATIENCE, names)
    others.raises = [TooManyRequests()] * 5

    await run_jobs(names, async_jobs, "partners", {"n": 1})

    assert len(others.said) == 6
    assert names["patience"](3, OSError()) == 8


async def test_a_death_is_told(
    names: dict[str, Any], async_jobs: AsyncCollection[Any], others: Client
) -> None:
    exec(ON_DEAD, names)

    worker: Worker = names["worker"]

    @worker.handler("calls", max_attempts=1)
    async def handler(job: AsyncJob) -> None:
        raise OSError("no answer")

    await run_jobs(names, async_jobs, "calls", {})

    [sentence] = others.said
    assert sentence.endswith("of calls is dead: OSError('no answer')")
