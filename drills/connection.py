"""A connection through a proxy: what is asked for is read, and what is planned for it done."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from drills.commands import Kind
from drills.messages import (
    HEADER,
    HELLO,
    LOOKED_AT,
    OP_MSG,
    application,
    command_of,
    did_something,
    error_code,
    length_at,
    name_of,
    sections,
)
from drills.plans import Command, Held, Plan

if TYPE_CHECKING:
    from drills.proxy import Proxies

STREAM = "streamqueue-stream"
"""What the client of a worker's change stream calls itself."""

LINGER = 1.0
"""Seconds in which the server may carry out what came late from a sender that is gone."""

_BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)

_Verdict = bool | tuple[Held, tuple[float, float]]
"""What becomes of a message: it passes (True), or nothing does any more (False), or it is held."""


class Connection:
    """One of a client: two pumps, and what is to become of what they pass."""

    def __init__(
        self,
        proxies: Proxies,
        target: int,
        client: anyio.abc.SocketStream,
        server: anyio.abc.SocketStream,
    ) -> None:
        self.target = target
        self.app: str | None = None
        self.monitors = True
        self.wedged = False
        self._proxies = proxies
        self._client = client
        self._server = server
        self._doomed: dict[int, tuple[Command, Plan]] = {}
        self._late: dict[int, Kind] = {}  # held back and not answered yet
        self._answered = anyio.Event()
        self._passing = anyio.Event()
        self._passing.set()
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        with self._scope:
            if self._proxies.swallows(None):
                self.wedge()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pump, self._client, self._server, self._request)
                tasks.start_soon(self._pump, self._server, self._client, self._reply)
        for _, plan in self._doomed.values():  # of those that will never be answered
            if plan.left is not None:
                plan.left += 1

    async def _pump(
        self,
        source: anyio.abc.SocketStream,
        sink: anyio.abc.SocketStream,
        look: Callable[[memoryview], _Verdict],
    ) -> None:
        received = bytearray()
        with suppress(*_BROKEN):
            while True:
                await self._passing.wait()
                received += await source.receive(1 << 18)
                passed = 0
                while (length := length_at(received, passed)) is not None:
                    message = memoryview(received)[passed : passed + length]
                    try:
                        verdict = look(message)
                    finally:
                        message.release()
                    if verdict is False:
                        return
                    if verdict is not True:
                        # What came before it is on its way, what comes behind it waits.
                        await self._pass_on(sink, received, passed)
                        passed = 0
                        await self._proxies.hold(*verdict)
                    passed += length
                await self._pass_on(sink, received, passed)
        if source is self._client and self._late:
            with anyio.move_on_after(LINGER):
                await self._answered.wait()
        self._scope.cancel()

    async def _pass_on(
        self, sink: anyio.abc.SocketStream, received: bytearray, length: int
    ) -> None:
        """Send so much of what was received, and forget it."""
        if not length:
            return
        complete = bytes(received[:length])
        del received[:length]
        if self._proxies.delay:
            await anyio.sleep(self._proxies.delay)
        await self._passing.wait()
        await sink.send(complete)

    def wedge(self) -> None:
        self.wedged = True
        self._passing = anyio.Event()
        self._proxies.counts.wedged += 1

    def cut(self, what: str | None = None) -> None:
        if what is not None:
            self._proxies.counts.cuts[what] += 1
        with suppress(*_BROKEN):
            # A reset, as from a machine that is gone: nothing that was sent before counts.
            raw = self._client.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._scope.cancel()

    def _request(self, message: memoryview) -> _Verdict:
        """Look at a message of the client."""
        _, request_id, _, opcode = HEADER.unpack_from(message)
        if self.app is None:
            self.app = application(message, opcode)
            if self.app is not None and not self.wedged and self._proxies.swallows(self.app):
                self.wedge()
        if opcode != OP_MSG:
            return True
        name = name_of(message)
        self.monitors = self.monitors and name.lower() in HELLO
        if name not in LOOKED_AT or not self._proxies.plans:
            return True
        command = command_of(message)
        if command.kind is None:
            return True
        plan = self._proxies.plan_for(command, self.app)
        if plan is None:
            return True
        if plan.reply:
            self._doomed[request_id] = command, plan
            return True
        if plan.hold is not None:
            self._late[request_id] = command.kind
            return Held(str(self.app), command.kind, "request"), plan.hold
        self._proxies.was_cut(command, plan, done=False)
        self.cut()
        return False

    def _reply(self, message: memoryview) -> _Verdict:
        if self.app == STREAM and (code := error_code(message)) is not None:
            self._proxies.counts.errors[code] += 1
        if not self._doomed and not self._late:
            return True
        _, _, response_to, opcode = HEADER.unpack_from(message)
        if response_to in self._late:
            self._was_late(self._late.pop(response_to), message)
        command, plan = self._doomed.pop(response_to, (None, None))
        if command is None or command.kind is None or plan is None or opcode != OP_MSG:
            return True
        reply, _ = sections(message)
        if not did_something(command.kind, reply):
            # It did nothing, so not to know it is no ambiguity: it may pass, and the next is meant.
            if plan.left is not None:
                plan.left += 1
            return True
        if plan.hold is not None:
            return Held(str(self.app), command.kind, "reply"), plan.hold
        self._proxies.was_cut(command, plan, done=True)
        self.cut()
        return False

    def _has_gone(self) -> bool:
        """Whether the client has closed its end, read or not."""
        ends = select.poll()
        ends.register(
            self._client.extra(anyio.abc.SocketAttribute.raw_socket).fileno(), select.POLLRDHUP
        )
        return bool(ends.poll(0))

    def _was_late(self, kind: Kind, message: memoryview) -> None:
        """Note that a request that was held back has its answer."""
        reply, _ = sections(message)
        if self._has_gone() and did_something(kind, reply):
            self._proxies.counts.late[kind] += 1
        if not self._late:
            self._answered.set()
            self._answered = anyio.Event()
