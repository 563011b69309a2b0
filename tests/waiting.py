"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value], what: str, within: float = 10.0) -> Value:
    """Return the first true answer, or fail saying what did not happen in that many seconds."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        time.sleep(0.005)
    return value


async def wait_until_async(
    condition: Callable[[], Value | Awaitable[Value]], what: str, within: float = 10.0
) -> Value:
    """The same in an event loop; the condition may be a coroutine function."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {within} s"
        await anyio.sleep(0.005)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
