"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import anyio

Value = TypeVar("Value")


def wait_until(condition: Callable[..., Value | None], what: str, within: float = 10.0) -> Value:
    """Return the first true answer, or fail saying what did not happen in that many seconds.

    The condition is called with nothing; its defaults may hold what a loop goes on to change.
    """
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.005)
    return value


async def wait_until_async(
    condition: Callable[..., Value | Awaitable[Value | None] | None],
    what: str,
    within: float = 10.0,
) -> Value:
    """The same in an event loop; the condition may be a coroutine function."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        value: Any = await answer if isinstance(answer, Awaitable) else answer
        if value:
            found: Value = value
            return found
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        await anyio.sleep(0.005)


def free_port(following: int = 0) -> int:
    """Return a port of the loopback address that nobody uses, nor so many that follow it."""
    while True:
        with ExitStack() as listeners:
            first = listeners.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                for other in range(port + 1, port + 1 + following):
                    listeners.enter_context(socket.socket()).bind(("127.0.0.1", other))
            except (OSError, OverflowError):
                continue
            return port
