"""A process of a supervisor: what is brought to it over their socket pair."""

from __future__ import annotations

import socket

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from streamqueue.health.health import Health
from streamqueue.processes.child import run_supervised
from streamqueue.processes.messages import JOIN


class Joined:
    """Notes its connections and ends with the first."""

    def __init__(self) -> None:
        self.health = Health()
        self.stopping = False
        self.connections: list[socket.socket] = []
        self._came = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await self._came.wait()

    def stop(self) -> None:
        raise AssertionError("nobody told it to")

    def join(self, channel: socket.socket) -> None:
        self.connections.append(channel)
        self._came.set()


async def test_a_connection_is_not_passed_on_to_what_a_handler_starts() -> None:
    worker = Joined()
    ours, theirs = socket.socketpair()
    one, other = socket.socketpair()
    with ours, theirs, one, other:
        socket.send_fds(ours, [JOIN], [other.fileno()])
        with anyio.fail_after(5):
            await run_supervised(worker, theirs, worker.join)
    [connection] = worker.connections
    with connection:
        assert not connection.get_inheritable()
