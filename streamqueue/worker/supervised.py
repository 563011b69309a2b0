"""A process of a supervisor (``processes``), and the socket pair between the two.

The process says when it is ready, and from then on that its event loop turns. The supervisor says
to stop, and to hurry, here and not with a signal: service managers send theirs to every process of
a service, and one passed on as well would count as the second. It also brings connections: of a
worker with the dealer, and of the dealer with each worker. When the supervisor is gone, killed
even, its end is closed, and that is an order to stop.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from ..errors import only_one

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from ..health import Health

logger = logging.getLogger("streamqueue.worker")

READY, BEAT, STOP, HURRY, JOIN = b"r", b"b", b"s", b"h", b"j"
MOST_JOINED = 64
"""Connections taken in one read of the socket pair; the rest comes with the next."""


class Supervised(Protocol):
    """What a process of a supervisor runs: a worker, or a dealer."""

    @property
    def health(self) -> Health: ...

    @property
    def stopping(self) -> bool: ...

    async def run(self, *, task_status: TaskStatus[None]) -> None: ...

    def stop(self) -> None: ...

    def join(self, channel: socket.socket) -> None: ...


async def run_supervised(worker: Supervised, channel: socket.socket) -> None:
    """Run a worker as one of several processes, until it, or its supervisor, is told to stop.

    Args:
        channel: this process's end of the socket pair. It stays open.

    Raises:
        Whatever :meth:`Worker.run` raises.
    """
    channel.setblocking(False)
    with suppress(BlockingIOError):
        _orders(worker, channel)  # the dealer first: what else there is was followed by SIGTERM
    worker.health.observe(partial(_say, channel, BEAT))
    try:
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: TaskStatus[None]) -> None:
                await worker.run(task_status=task_status)
                tasks.cancel_scope.cancel()

            await tasks.start(run)
            await _obey(worker, channel)
    except BaseExceptionGroup as group:
        raise only_one(group) from None


async def _obey(worker: Supervised, channel: socket.socket) -> None:
    _say(channel, READY)
    orders: set[bytes] | None = set()
    while orders is not None:
        await anyio.wait_readable(channel)
        try:
            orders = _orders(worker, channel)
        except BlockingIOError:
            continue
        if orders == set():
            continue
        if orders is None:
            logger.warning("The supervisor is gone", extra={"event": "supervisor_gone"})
        if not worker.stopping:  # it may have had a signal of its own
            worker.stop()
        if orders and HURRY in orders:
            worker.stop()


def _orders(worker: Supervised, channel: socket.socket) -> set[bytes] | None:
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
        worker.join(connection)
    return {said[i : i + 1] for i in range(len(said))} - {JOIN} if said else None


def _say(channel: socket.socket, what: bytes) -> None:
    try:
        channel.send(what)
    except OSError:
        pass  # the supervisor is gone, as the next read will say, or has not listened for hours
