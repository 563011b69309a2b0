"""TCP proxies before the members of a replica set, that read what passes and break it on purpose.

The members must be known to the replica set by the proxies' addresses (``ReplicaSet(proxied=True)``
does it), or a driver learns the real ones from ``hello`` and walks round them. The members talk to
each other through them too.

They run in a thread of their own; every method may be called from any other thread.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import anyio
import anyio.abc
from anyio.from_thread import BlockingPortal, start_blocking_portal

from drills.commands import KINDS, Kind
from drills.connection import Connection
from drills.plans import Command, Counts, Held, Plan

HOST = "127.0.0.1"


class Proxies:
    """One proxy before each port.

    Args:
        targets: the ports of the members.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.counts = Counts()
        self.delay = 0.0
        """Seconds that every message waits, each way."""
        self.holding = 0
        """Messages that are held back at this moment."""
        self._targets = list(targets)
        self._ports: list[int] = []
        self.plans: list[Plan] = []
        self._plan_of: dict[tuple[Any, ...], Plan] = {}
        self._recent: deque[tuple[Any, ...]] = deque()
        self._connections: set[Connection] = set()
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
        self._ended, self._let_go = anyio.Event(), anyio.Event()
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
                    connection = Connection(self, target, client, server)
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
        """Break nothing more. Wedged connections are cut: what they held up would come late.

        What is held back passes at once: to come late is what it is held for.
        """
        self.plans.clear()
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
        apps: Collection[str] | None = None,
    ) -> Plan:
        """From now on cut connections at these commands: see :class:`Plan`."""
        plan = Plan(kinds or KINDS, share, reply, again, times, apps=apps)
        self.plans.append(plan)
        return plan

    def hold_commands(
        self,
        *kinds: Kind,
        seconds: tuple[float, float],
        share: float = 1.0,
        reply: bool = False,
        times: int | None = None,
        apps: Collection[str] | None = None,
    ) -> Plan:
        """From now on hold these commands back, or the replies to those that did something.

        Each for so many seconds, drawn at random. What comes behind it on its connection waits, as
        with TCP; all other connections pass. It passes in the end, also when its sender has given
        it up by then.
        """
        plan = Plan(kinds or KINDS, share, reply, left=times, hold=seconds, apps=apps)
        self.plans.append(plan)
        return plan

    def withdraw(self, plan: Plan) -> None:
        """Let what falls under this plan pass from now on."""
        self.plans.remove(plan)

    def _call(self, function: Any, *arguments: Any) -> Any:
        assert self._portal is not None
        return self._portal.call(function, *arguments)

    def _of(self, app: str | None, target: int | None) -> list[Connection]:
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
        self._let_go.set()
        self._let_go = anyio.Event()
        for connection in list(self._connections):
            if connection.wedged:
                connection.cut("all")

    # what connections ask

    def swallows(self, app: str | None) -> bool:
        """Whether this application's connections are to be wedged as they come."""
        return any(wanted is None or wanted == app for wanted in self._black_holes)

    def plan_for(self, command: Command, app: str | None) -> Plan | None:
        """Return the plan that this command of an application falls under, if any."""
        if command.retryable is not None and (plan := self._plan_of.pop(command.retryable, None)):
            return plan
        for plan in self.plans:
            if plan.wants(command, app) and random.random() < plan.share:
                if plan.left is not None:
                    plan.left -= 1
                return plan
        return None

    async def hold(self, held: Held, seconds: tuple[float, float]) -> None:
        """Hold a message back."""
        self.holding += 1
        try:
            with anyio.move_on_after(random.uniform(*seconds)):
                await self._let_go.wait()
        finally:
            self.holding -= 1
            self.counts.held[held] += 1

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
