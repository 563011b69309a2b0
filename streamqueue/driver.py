"""What pymongo's async client needs before its commands may be cancelled on Python 3.11."""

from __future__ import annotations

import asyncio  # noqa: TID251 - the wait is the driver's own, and anyio's would change what it does
import sys
from typing import TYPE_CHECKING, Any

import pymongo.lock

if TYPE_CHECKING:
    from collections.abc import Awaitable


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
        pymongo.lock.wait_for = _wait_for


async def _wait_for(awaited: Awaitable[Any], timeout: float | None) -> Any:
    async with asyncio.timeout(timeout):
        return await awaited
