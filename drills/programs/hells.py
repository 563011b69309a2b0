"""Handlers from hell: what one may do to its task, its context, its worker and its own exception.

Each gets the job, and is done in an attempt's first try; what it fails with is for the worker to
write. Those of ``HARMLESS`` are no failures.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - handlers use asyncio's own means too
import contextvars
import decimal
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from streamqueue import AsyncJob, Retry
from tests.hellish import ALSO_HELLISH

EXIT_CODE = 99
FORK = multiprocessing.get_context("fork")
TENANT = contextvars.ContextVar("tenant", default="nobody")
LEFT: deque[Any] = deque(maxlen=100)
OVER: deque[Any] = deque(maxlen=100)


def check_surroundings() -> None:
    """End the process if a neighbour has changed what this attempt sees."""
    if TENANT.get() != "nobody" or str(Decimal("12345.67") + Decimal("0.01")) != "12345.68":
        os._exit(EXIT_CODE)


async def _pages() -> AsyncIterator[int]:
    with anyio.fail_after(0.3):
        yield 1
        yield 2


async def _pages_by_tasks() -> AsyncIterator[int]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        yield 1


async def sets_its_context(job: AsyncJob) -> None:
    TENANT.set("ada")
    decimal.getcontext().prec = 4


async def leaves_a_scope(job: AsyncJob) -> None:
    async for _ in _pages():
        break


async def keeps_a_scope(job: AsyncJob) -> None:
    LEFT.append(_pages())
    await anext(LEFT[-1])


async def leaves_a_group(job: AsyncJob) -> None:
    LEFT.append(_pages_by_tasks())
    await anext(LEFT[-1])


async def cancels_the_dead(job: AsyncJob) -> None:
    for task in OVER:
        task.cancel()
    OVER.append(asyncio.current_task())


async def cancels_itself(job: AsyncJob) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await anyio.sleep(0.01)


async def raises_what_cannot_be_shown(job: AsyncJob) -> None:
    raise ALSO_HELLISH[int(job.data["n"]) % len(ALSO_HELLISH)]()


async def exits(job: AsyncJob) -> None:
    sys.exit("for all others too?")


async def interrupts(job: AsyncJob) -> None:
    raise KeyboardInterrupt


async def exits_in_a_task(job: AsyncJob) -> None:
    await asyncio.gather(exits(job), return_exceptions=False)


async def exits_in_a_group(job: AsyncJob) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exits, job)


async def ends_a_child(job: AsyncJob) -> None:
    def run() -> None:
        child = FORK.Process(target=time.sleep, args=(30,))  # noqa: TID251
        child.start()
        child.terminate()
        child.join(5)
        if child.exitcode != -signal.SIGTERM:
            os._exit(EXIT_CODE)

    await anyio.to_thread.run_sync(run)


async def retries_in_a_group(job: AsyncJob) -> None:
    async def child() -> None:
        raise Retry(0.05, reason=ALSO_HELLISH[0]())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)


async def returns_a_coroutine(job: AsyncJob) -> Any:
    return anyio.lowlevel.checkpoint()


async def returns_a_generator(job: AsyncJob) -> Any:
    return _pages()


HARMLESS: dict[str, Callable[[AsyncJob], Awaitable[Any]]] = {
    "sets its context": sets_its_context,
    "leaves a scope": leaves_a_scope,
    "keeps a scope": keeps_a_scope,
    "leaves a group": leaves_a_group,
    "cancels the dead": cancels_the_dead,
    "ends a child": ends_a_child,
}
FAILING: dict[str, Callable[[AsyncJob], Awaitable[Any]]] = {
    "cancels itself": cancels_itself,
    "raises what cannot be shown": raises_what_cannot_be_shown,
    "exits": exits,
    "exits in a task": exits_in_a_task,
    "exits in a group": exits_in_a_group,
    "interrupts": interrupts,
    "retries in a group": retries_in_a_group,
    "returns a coroutine": returns_a_coroutine,
    "returns a generator": returns_a_generator,
}
