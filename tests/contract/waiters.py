"""Calls that wait for jobs, each in a task of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import create_task_group, fail_after
from pymongo.synchronous.collection import Collection

from tests.contract.looks import awaited_streams
from tests.waiting import wait_until_async

WAIT = 60.0
"""What a test asks to wait for at most; what wakes it must do so long before."""
SOON = 5.0


class Waiter:
    """A call that waits for jobs, in a task of its own."""

    def __init__(self) -> None:
        self.result: Any = "still waiting"
        self.done = anyio.Event()

    async def run(self, call: Callable[[], Awaitable[Any]]) -> None:
        self.result = await call()
        self.done.set()

    async def soon(self) -> Any:
        """What the call returned, which it must do long before its wait is over."""
        with fail_after(SOON):
            await self.done.wait()
        return self.result


@asynccontextmanager
async def waiting(
    jobs: Collection[Any], *calls: Callable[[], Awaitable[Any]]
) -> AsyncIterator[list[Waiter]]:
    """Run calls, and go on once the server is asked for events: they have looked and found none."""
    waiters = [Waiter() for _ in calls]
    async with create_task_group() as tasks:
        for waiter, call in zip(waiters, calls, strict=True):
            tasks.start_soon(waiter.run, call)
        await wait_until_async(lambda: awaited_streams(jobs), "a stream is waited for")
        yield waiters
