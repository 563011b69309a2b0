"""A process of a supervisor (``supervisor``), and the socket pair between the two.

The process says when it is ready, and from then on that its event loop turns; how long a stop may
take it, so that one that stands still is not waited for; and when it was told to stop, by whomever:
an end without that is none in order, whatever its exit code. The supervisor says
to stop, and to hurry, here and not with a signal: service managers send theirs to every process of
a service, and one passed on as well would count as the second. It also brings connections between
the dispatcher and each worker. When the supervisor is gone, killed even, its end is closed, and
that is an order to stop.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from .. import plain
from ..errors import StreamQueueError, only_one
from ..worker.run import NOT_TOLD
from .messages import BEAT, HURRY, JOIN, LIMIT, READY, TOLD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskStatus

    from ..health.health import Health

logger = plain.logger("streamqueue.worker")

MOST_JOINED = 64
"""Connections taken in one read of the socket pair; the rest comes with the next."""


class Supervised(Protocol):
    """What a process of a supervisor runs: a worker, or a dispatcher."""

    @property
    def health(self) -> Health: ...

    @property
    def stopping(self) -> bool: ...

    async def run(self, *, task_status: TaskStatus[None]) -> object: ...

    def stop(self) -> None: ...


async def run_supervised(
    part: Supervised,
    channel: socket.socket,
    join: Callable[[socket.socket], None],
    *,
    drain: float | None = None,
    run: Callable[..., Awaitable[object]] | None = None,
) -> None:
    """Run a worker or a dispatcher as one of several processes, until told to stop.

    Args:
        channel: this process's end of the socket pair. It stays open.
        join: takes each connection that the supervisor brings.
        drain: seconds that a stop may take its handlers; None lets the supervisor wait for ever.
        run: runs it, until told to stop or, in order, before; None is its own method.

    Raises:
        Whatever :meth:`Worker.run` raises.
    """
    channel.setblocking(False)
    with suppress(BlockingIOError):
        _orders(channel, join)  # connections; an order to stop was followed by SIGTERM
    part.health.observe(partial(_say, channel, BEAT))
    ended = False
    try:
        async with anyio.create_task_group() as tasks:

            async def run_to_its_end(*, task_status: TaskStatus[None]) -> None:
                nonlocal ended
                await (run or part.run)(task_status=task_status)
                ended = True
                say_told(channel)
                tasks.cancel_scope.cancel()

            await tasks.start(run_to_its_end)
            if not ended:
                if drain is not None:
                    _say(channel, LIMIT + b"%d;" % int(drain))
                await _obey(part, channel, join)
    except BaseExceptionGroup as group:
        error = only_one(group)
        raise error from error.__cause__
    if not ended:
        raise StreamQueueError(NOT_TOLD)


async def _obey(
    part: Supervised, channel: socket.socket, join: Callable[[socket.socket], None]
) -> None:
    _say(channel, READY)
    orders: set[bytes] | None = set()
    while orders is not None:
        await anyio.wait_readable(channel)
        try:
            orders = _orders(channel, join)
        except BlockingIOError:
            continue
        if orders == set():
            continue
        if orders is None:
            logger.warning("The supervisor is gone", extra={"event": "supervisor_gone"})
        if not part.stopping:  # it may have had a signal of its own
            part.stop()
        if orders and HURRY in orders:
            part.stop()


def _orders(channel: socket.socket, join: Callable[[socket.socket], None]) -> set[bytes] | None:
    """Read what the supervisor has sent and join whom it introduces; return its other orders, or
    None when it is gone.

    Raises:
        BlockingIOError: it has sent nothing.
    """
    try:
        said, descriptors, _, _ = socket.recv_fds(channel, 16, MOST_JOINED)
    except BlockingIOError:
        raise
    except OSError:
        return None
    for descriptor in descriptors:
        connection = socket.socket(fileno=descriptor)
        connection.set_inheritable(False)  # or what a handler starts keeps it open after our death
        join(connection)
    return {said[i : i + 1] for i in range(len(said))} - {JOIN} if said else None


def say_told(channel: socket.socket) -> None:
    """Say that this process ends because it was told to."""
    _say(channel, TOLD)


def _say(channel: socket.socket, what: bytes) -> None:
    try:
        channel.send(what)
    except OSError:
        pass  # the supervisor is gone, as the next read will say, or has not listened for hours
