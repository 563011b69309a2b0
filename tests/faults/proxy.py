"""TCP proxies before the members of a replica set, that read what passes and break it on purpose.

The members must be known to the replica set by the proxies' addresses (``ReplicaSet(proxied=True)``
does it), or a driver learns the real ones from ``hello`` and walks round them. The members talk to
each other through them too.

They run in a thread of their own; every method may be called from any other thread.
"""

from __future__ import annotations

import random
import re
import socket
import struct
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import anyio
import anyio.abc
import bson
from anyio.from_thread import BlockingPortal, start_blocking_portal

HOST = "127.0.0.1"

Kind = Literal["put", "claim", "complete", "renew", "change"]
KINDS: tuple[Kind, ...] = ("put", "claim", "complete", "renew", "change")

STREAM = "streamqueue-stream"
"""What the client of a worker's change stream calls itself."""

_OP_QUERY, _OP_MSG = 2004, 2013
_HEADER = struct.Struct("<iiii")
_HELLO = {"hello", "ismaster"}
_WRITES = {"insert", "update", "delete", "findAndModify"}
_NOT_OK = b"\x01ok\0" + bytes(8)
_CODE = re.compile(rb"\x10code\0(.{4})", re.DOTALL)
_LONGEST_ERROR = 10_000
_BROKEN = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@dataclass
class Command:
    """A write on its way to the server.

    Attributes:
        kind: what the queue does by it.
        retryable: identifies it and the driver's second try of it; None when there will be none.
    """

    kind: Kind | None
    retryable: tuple[Any, ...] | None


@dataclass
class Plan:
    """Which commands lose their connection.

    Attributes:
        kinds: of these kinds.
        share: each with this probability.
        reply: after the server has answered that it did something, so that the sender cannot know;
            else before the server has received anything.
        again: whether the driver's own second try is treated alike, so that the queue sees it.
        left: how many more, or None for any number.
    """

    kinds: Sequence[Kind]
    share: float = 1.0
    reply: bool = True
    again: bool = False
    left: int | None = None


@dataclass
class Counts:
    """How often what happened.

    Attributes:
        cuts: connections that ended with a command of this kind unsent or unanswered; under
            ``all`` those that were cut whatever they did.
        ambiguous: those of them where the server had done what was asked for.
        told: those of the ambiguous ones that no second try of the driver could hide.
        wedged: connections that were left open and pass nothing any more.
        errors: what the server answered to change streams, by its code.
    """

    cuts: Counter[str] = field(default_factory=Counter)
    ambiguous: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    wedged: int = 0
    errors: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.cuts.total()} cuts {dict(self.cuts)}, "
            f"ambiguous {dict(self.ambiguous)}, of these told {dict(self.told)}, "
            f"{self.wedged} connections wedged"
        )


class Proxies:
    """One proxy before each port.

    Args:
        targets: the ports of the members.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.counts = Counts()
        self.delay = 0.0
        """Seconds that every message waits, each way."""
        self._targets = list(targets)
        self._ports: list[int] = []
        self._plans: list[Plan] = []
        self._plan_of: dict[tuple[Any, ...], Plan] = {}
        self._recent: deque[tuple[Any, ...]] = deque()
        self._connections: set[_Connection] = set()
        self._black_holes: list[str | None] = []
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        self._starting = start_blocking_portal()
        self._portal = self._starting.__enter__()
        self._running, self._ports = self._portal.start_task(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._portal is not None
        self._portal.call(self._ended.set)
        with suppress(Exception):
            self._running.result()
        self._portal = None
        self._starting.__exit__(None, None, None)

    @property
    def hosts(self) -> list[str]:
        """The addresses to use instead of the members', in their order."""
        return [f"{HOST}:{port}" for port in self._ports]

    async def _serve(self, *, task_status: anyio.abc.TaskStatus[list[int]]) -> None:
        self._ended = anyio.Event()
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            ports = []
            for target in self._targets:
                listener = await anyio.create_tcp_listener(
                    local_host=HOST, family=socket.AF_INET, reuse_port=False
                )
                await stack.enter_async_context(listener)
                ports.append(int(listener.extra(anyio.abc.SocketAttribute.local_port)))
                tasks.start_soon(listener.serve, self._handler(target))
            task_status.started(ports)
            await self._ended.wait()
            tasks.cancel_scope.cancel()

    def _handler(self, target: int) -> Any:
        async def handle(client: anyio.abc.SocketStream) -> None:
            async with client:
                try:
                    server = await anyio.connect_tcp(HOST, target)
                except OSError:
                    return
                async with server:
                    connection = _Connection(self, target, client, server)
                    self._connections.add(connection)
                    try:
                        await connection.run()
                    finally:
                        self._connections.discard(connection)

        return handle

    # what is done to connections

    def cut(self, *, app: str | None = None, target: int | None = None) -> int:
        """Cut every connection, or those of an application or to a port; return how many."""
        return int(self._call(self._cut, app, target))

    def wedge(self, *, app: str | None = None) -> int:
        """Leave these open and pass nothing any more; return how many.

        Later connections are fine, and so are those by which drivers watch the server: they have
        no reason to think that anything is wrong.
        """
        return int(self._call(self._wedge, app, False))

    def black_hole(self, app: str | None = None) -> None:
        """Wedge these, and every later one as soon as it says who it is (None: all of all)."""
        self._black_holes.append(app)
        self._call(self._wedge, app, True)

    def heal(self) -> None:
        """Break nothing more. Wedged connections are cut: what they held up would come late."""
        self._plans.clear()
        self._black_holes.clear()
        self.delay = 0.0
        self._call(self._release)

    def cut_commands(
        self,
        *kinds: Kind,
        share: float = 1.0,
        reply: bool = True,
        again: bool = False,
        times: int | None = None,
    ) -> Plan:
        """From now on cut connections at these commands: see :class:`Plan`."""
        plan = Plan(kinds or KINDS, share, reply, again, times)
        self._plans.append(plan)
        return plan

    def _call(self, function: Any, *arguments: Any) -> Any:
        assert self._portal is not None
        return self._portal.call(function, *arguments)

    def _of(self, app: str | None, target: int | None) -> list[_Connection]:
        return [
            connection
            for connection in self._connections
            if (app is None or connection.app == app) and target in (None, connection.target)
        ]

    def _cut(self, app: str | None, target: int | None) -> int:
        connections = self._of(app, target)
        for connection in connections:
            connection.cut("all")
        return len(connections)

    def _wedge(self, app: str | None, monitors: bool) -> int:
        connections = [
            connection
            for connection in self._of(app, None)
            if not connection.wedged and (monitors or not connection.monitors)
        ]
        for connection in connections:
            connection.wedge()
        return len(connections)

    def _release(self) -> None:
        for connection in list(self._connections):
            if connection.wedged:
                connection.cut("all")

    # what connections ask

    def swallows(self, app: str | None) -> bool:
        """Whether this application's connections are to be wedged as they come."""
        return any(wanted is None or wanted == app for wanted in self._black_holes)

    def plan_for(self, command: Command) -> Plan | None:
        """Return the plan that this command falls under, if any."""
        if command.retryable is not None and (plan := self._plan_of.pop(command.retryable, None)):
            return plan
        for plan in self._plans:
            if command.kind in plan.kinds and plan.left != 0 and random.random() < plan.share:
                if plan.left is not None:
                    plan.left -= 1
                return plan
        return None

    def was_cut(self, command: Command, plan: Plan, *, done: bool) -> None:
        """Count a cut; have the second try cut too if it is planned and to come."""
        kind = str(command.kind)
        self.counts.cuts[kind] += 1
        second = command.retryable in self._recent
        if done and not second:
            self.counts.ambiguous[kind] += 1
        if done and (command.retryable is None or second):
            self.counts.told[kind] += 1
        if command.retryable is not None and not second:
            self._recent.append(command.retryable)
            if len(self._recent) > 1000:
                self._recent.popleft()
            if plan.again:
                self._plan_of[command.retryable] = plan


class _Connection:
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

    async def _pump(
        self, source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, look: Any
    ) -> None:
        received = bytearray()
        with suppress(*_BROKEN):
            while True:
                await self._passing.wait()
                received += await source.receive(1 << 18)
                passed = 0
                while (length := _length(received, passed)) is not None:
                    message = memoryview(received)[passed : passed + length]
                    try:
                        may_pass = look(message)
                    finally:
                        message.release()
                    if not may_pass:
                        return
                    passed += length
                if passed:
                    complete = bytes(received[:passed])
                    del received[:passed]
                    if self._proxies.delay:
                        await anyio.sleep(self._proxies.delay)
                    await self._passing.wait()
                    await sink.send(complete)
        self._scope.cancel()

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

    def _request(self, message: memoryview) -> bool:
        """Look at a message of the client; return whether it may pass."""
        _, request_id, _, opcode = _HEADER.unpack_from(message)
        if self.app is None:
            self.app = _application(message, opcode)
            if self.app is not None and not self.wedged and self._proxies.swallows(self.app):
                self.wedge()
        if opcode != _OP_MSG:
            return True
        name = _name(message)
        self.monitors = self.monitors and name.lower() in _HELLO
        if name not in _WRITES or not self._proxies._plans:
            return True
        command = _write(name, message)
        if command.kind is None:
            return True
        plan = self._proxies.plan_for(command)
        if plan is None:
            return True
        if plan.reply:
            self._doomed[request_id] = command, plan
            return True
        self._proxies.was_cut(command, plan, done=False)
        self.cut()
        return False

    def _reply(self, message: memoryview) -> bool:
        if self.app == STREAM and len(message) < _LONGEST_ERROR:
            text = bytes(message)
            if _NOT_OK in text and (code := _CODE.search(text)):
                self._proxies.counts.errors[struct.unpack("<i", code[1])[0]] += 1
        if not self._doomed:
            return True
        _, _, response_to, opcode = _HEADER.unpack_from(message)
        command, plan = self._doomed.pop(response_to, (None, None))
        if command is None or plan is None or opcode != _OP_MSG:
            return True
        reply, _ = _sections(message)
        if not (reply.get("n") or reply.get("value")):
            # It did nothing, so not to know it is no ambiguity: it may pass, and the next is meant.
            if plan.left is not None:
                plan.left += 1
            return True
        self._proxies.was_cut(command, plan, done=True)
        self.cut()
        return False


def _length(received: bytearray, start: int) -> int | None:
    """Return the length of the message that starts there, or None while it is incomplete."""
    if len(received) < start + 4:
        return None
    length = int(struct.unpack_from("<i", received, start)[0])
    return length if len(received) >= start + length else None


def _sections(message: memoryview) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the body of an OP_MSG and its document sequences, by name."""
    flags = struct.unpack_from("<I", message, 16)[0]
    end = len(message) - (4 if flags & 1 else 0)  # a checksum
    body: dict[str, Any] = {}
    sequences: dict[str, list[Any]] = {}
    at = 20
    while at < end:
        kind = message[at]
        (size,) = struct.unpack_from("<i", message, at + 1)
        section = bytes(message[at + 1 : at + 1 + size])
        if kind == 0:
            body = bson.decode(section)
        else:
            name, _, documents = section[4:].partition(b"\0")
            sequences[name.decode()] = bson.decode_all(documents)
        at += 1 + size
    return body, sequences


def _name(message: memoryview) -> str:
    """Return the first key of an OP_MSG's first section if that is its body: the command."""
    if message[20] != 0:
        return ""
    head = bytes(message[26:58])
    return head[: head.find(b"\0")].decode("ascii", "replace")


def _application(message: memoryview, opcode: int) -> str | None:
    """Return who a handshake is from: the application, or the name of a driver without one."""
    if opcode == _OP_QUERY:
        end = bytes(message[20:]).index(0) + 21
        hello = bson.decode(bytes(message[end + 8 :]))
    elif opcode == _OP_MSG and _name(message).lower() in _HELLO:
        hello, _ = _sections(message)
    else:
        return None
    client = hello.get("client")
    if client is None:
        return None
    application = client.get("application", {}).get("name")
    return str(application or client.get("driver", {}).get("name", ""))


def _write(name: str, message: memoryview) -> Command:
    """Read a write: what the queue does by it, and how its second try will be known."""
    body, sequences = _sections(message)
    retryable = None
    if "txnNumber" in body:
        retryable = (bytes(body["lsid"]["id"]), int(body["txnNumber"]))
    return Command(_kind(name, body, sequences), retryable)


def _kind(name: str, body: dict[str, Any], sequences: dict[str, list[Any]]) -> Kind | None:
    if name == "insert":
        return "put"
    if name == "delete":
        deletes = sequences.get("deletes") or body.get("deletes", [])
        return "complete" if deletes and "lease" in deletes[0]["q"] else None
    if name == "update":
        update = (sequences.get("updates") or body.get("updates", [{}]))[0].get("u")
    else:
        update = body.get("update")
    if not isinstance(update, list):
        return None
    fields = update[0].get("$set", {})
    if fields.get("state") == "running":
        return "claim"
    return "renew" if "locked_until" in fields and "state" not in fields else "change"
