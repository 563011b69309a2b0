"""What is asked of the driver, and of its event loop, that neither has a public word for."""

from __future__ import annotations

import asyncio  # noqa: TID251 - the wait is the driver's own, and anyio's would change what it does
import contextvars
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pymongo.lock
from bson.raw_bson import RawBSONDocument
from pymongo.monitoring import CommandListener

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping

    from bson.timestamp import Timestamp
    from pymongo import AsyncMongoClient
    from pymongo.monitoring import (
        CommandFailedEvent,
        CommandStartedEvent,
        CommandSucceededEvent,
    )


def bear_cancellation() -> None:
    """Replace the wait with which pymongo waits for a server, where Python's own loses a lock.

    While no server can be written to, pymongo waits with ``asyncio.wait_for`` on a condition. On
    Python 3.11 that runs the wait in a task of its own, and a cancellation that arrives while the
    task takes the condition's lock back leaves the lock taken for ever. Every later command of
    the client then waits, and so does its close: seen with 20 commands cancelled at once during
    an election, 3 times in 20 (pymongo 4.20.1, Python 3.11.7; scopes of anyio, which cancel again
    until it helps, 23 times in 30). From 3.12 on ``wait_for`` waits in the caller's task, and so
    does what is put in its place here, for every client of the process: a handler's own too.
    """
    if sys.version_info < (3, 12) and hasattr(pymongo.lock, "wait_for"):
        pymongo.lock.wait_for = _wait_for  # pyright: ignore[reportPrivateImportUsage]


async def _wait_for(awaited: Awaitable[Any], timeout: float | None) -> Any:
    async with asyncio.timeout(timeout):
        return await awaited


def known_cluster_time(client: Any) -> Timestamp | None:
    """Return a moment on the server's logical clock before all that is sent from now on: the latest
    that any server has told this client, with its last reply or heartbeat. None if none has."""
    topology = getattr(client, "_topology", None)
    told = topology.max_cluster_time() if topology is not None else None
    return told["clusterTime"] if told else None


class RawReply(RawBSONDocument):
    """A document that is not decoded, also of a write.

    To a write concern error that has labels (a primary that steps down) pymongo adds these, as to
    a dict: with a plain RawBSONDocument the write raises AttributeError (4.20.1), and is not tried
    again.
    """

    _added: Mapping[str, Any] = MappingProxyType({})

    def update(self, fields: Mapping[str, Any]) -> None:
        """Add fields, which the bytes do not have."""
        self._added = {**self._added, **fields}

    def __getitem__(self, name: str) -> Any:
        return self._added[name] if name in self._added else super().__getitem__(name)


class Later:
    """Runs something after a while, in a task that nobody waits for, unless it is called off.

    For what is to happen when no call is under way in whose tasks it could be.
    """

    def __init__(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._run = run
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, seconds: float) -> None:
        """Run it in so many seconds, unless it is to be run by then already."""
        if self._timer is not None:
            return
        # Without the caller's context: a pymongo.timeout() of it is not for this.
        self._timer = asyncio.get_running_loop().call_later(
            seconds, self._start, context=contextvars.Context()
        )

    def call_off(self) -> None:
        """Do not run it, unless it has begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        self._timer = None
        self._task = asyncio.get_running_loop().create_task(self._run())


class ClosedWithItsLoop(CommandListener):
    """Closes an async client in the event loop that it was first used in, whoever ends the loop.

    A client can be closed in its own loop only, and left open it warns, as do its sockets. Whoever
    makes one for another program (the fixtures for tests) does not know when the loop ends. But a
    loop closes its async generators at its end, so one of those waits there.

    Attributes:
        client: the client, made with this as one of its ``event_listeners``.
    """

    client: AsyncMongoClient[Any]

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: AsyncGenerator[None] | None = None

    def started(self, event: CommandStartedEvent) -> None:
        """Wait for the end of the loop that sends the first command."""
        if self._loop is not None:
            return
        self._loop, self._waiting = asyncio.get_running_loop(), self._close_at_the_end()
        try:
            self._waiting.__anext__().send(None)  # up to its yield, as nothing there has to wait
        except StopIteration:
            pass

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the client now, unless its loop has ended, or it was not used. Call it outside of
        the loop."""
        if self._loop is None or self._waiting is None or self._loop.is_closed():
            return
        self._loop.run_until_complete(self._waiting.aclose())

    async def _close_at_the_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.client.close()
