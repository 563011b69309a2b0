"""A member's side of a dispatcher: its share of the events and of what waits.

Whatever the dispatcher sends is a hint like any event: the claim decides. And a member can do
without: while there is no dispatcher, or it is silent, the member listens to a change stream of its
own, as a worker that was started alone.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from pymongo.errors import PyMongoError

from .. import plain
from ..clock import monotonic
from ..protocol.foreign import REASONS
from ..stream.verdict import WAIT_MARGIN
from ..stream.watcher import tell
from ..worker.worker import Worker, settings_of
from .frames import NOT_UNDERSTOOD, Connection, refuse
from .messages import Ask, Idle, Joining, Leaving, Lost

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Mapping

    from anyio.abc import TaskStatus

    from ..stream.watcher import Watcher
    from ..worker.sharing.fairness import Holder
    from ..worker.source import Answer, SourceSettings
    from .messages import FromDispatcher

logger = plain.logger("streamqueue.subscriber")

TICK = 1.0
"""Seconds between two signs of life of a dispatcher."""
SILENT_AFTER = TICK + WAIT_MARGIN
"""Seconds without one after which nobody waits for it any longer."""
ANSWER_WITHIN = 2.0
"""Seconds a dispatcher may take to read what waits; after that a process reads for itself."""
Report = tuple[int, int, bool, "Mapping[str, int] | None"]
"""Events received, free slots, whether there is more than it can take, and room in queues."""


class PendingConnections:
    """Connections to dispatchers that the supervisor has brought, until they are taken."""

    def __init__(self) -> None:
        self._newest: socket.socket | None = None
        self._came = anyio.Event()

    def __bool__(self) -> bool:
        return self._newest is not None

    def bring(self, channel: socket.socket) -> None:
        """Offer a connection to a new dispatcher; an older one that was not taken yet is closed."""
        if self._newest is not None:
            self._newest.close()
        self._newest = channel
        self._came.set()

    async def take(self) -> Connection:
        """Wait for a connection and return it."""
        while self._newest is None:
            self._came = anyio.Event()
            await self._came.wait()
        channel, self._newest = self._newest, None
        return Connection(channel)


class Subscriber:
    """A source of jobs: a dispatcher, or in its absence a stream of the process's own.

    Args:
        connections: brings a connection to each dispatcher there is.
    """

    def __init__(self, connections: PendingConnections, settings: SourceSettings) -> None:
        self._connections = connections
        self._consumer, self._listener, self._new_watcher, self._metrics, self._health = settings
        self._watcher: Watcher | None = None
        self._stopped = False
        self._task_status: TaskStatus[None] = TASK_STATUS_IGNORED
        self._started = False
        self._signs = 0
        self._heard_at = -math.inf
        self._connection: Connection | None = None
        self._open = False  # the dispatcher's stream
        self._dispatched = False
        self._changed = anyio.Event()
        # What the dispatcher knows of us.
        self._received = self._free = 0
        self._reported: Report = (0, 0, False, None)
        self._asking = False
        self._answer: Answer | None = None
        self._answered = anyio.Event()

    @property
    def signs(self) -> int:
        """As :attr:`Watcher.signs`."""
        return self._signs + (0 if self._watcher is None else self._watcher.signs)

    @property
    def heard_at(self) -> float:
        """As :attr:`Watcher.heard_at`; of a dispatcher's stream, when that says so."""
        return self._heard_at if self._watcher is None else self._watcher.heard_at

    @property
    def dispatched(self) -> bool:
        """Whether a dispatcher hands out the jobs: then :meth:`ask` is the way to what waits."""
        return self._dispatched

    def stop(self) -> None:
        """Make :meth:`run` return soon."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.stop()
        if self._connection is not None:
            self._connection.send(Leaving(leaving=True))
            self._connection.close()
        self._changed.set()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Listen until stopped; started once the dispatcher's stream, or one of its own, is open.

        Raises:
            PyMongoError: there is no dispatcher, and the first stream could not be opened.
        """
        self._task_status = task_status
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen_to_dispatchers)
            if self._connections:
                with anyio.move_on_after(SILENT_AFTER):
                    await self._until_dispatched(True)
            while not self._stopped:
                if self._dispatched:
                    await self._until_dispatched(False)
                else:
                    await self._listen_alone()
            tasks.cancel_scope.cancel()

    def started(self, value: None = None) -> None:
        """Note that a stream is open, here or at the dispatcher's."""
        if not self._started:
            self._started = True
            self._task_status.started()

    async def _until_dispatched(self, yes: bool) -> None:
        while self._dispatched is not yes and not self._stopped:
            self._changed = anyio.Event()
            await self._changed.wait()

    async def _listen_alone(self) -> None:
        self._watcher = watcher = self._new_watcher()
        try:
            await watcher.run(must_open=not self._started, task_status=self)
        except PyMongoError:
            if not self._started:  # else a dispatcher has come meanwhile
                raise
        self._signs += watcher.signs
        self._watcher = None
        if self._dispatched:  # what it noted last was about its own
            if self._open:
                self._note_open()
            else:
                self._health.not_ready("stream", "the change stream is being reopened")

    async def _listen_to_dispatchers(self) -> None:
        while not self._stopped:
            self._connection = await self._connections.take()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._connection.keep_sending)
                    await self._listen_to(self._connection)
            except BaseException:
                self._stopped = True  # it is the run that ends, by a stop or an error
                raise
            finally:
                self._connection.close()
                self._connection = None
                self._note_dispatched(False)

    async def _listen_to(self, connection: Connection) -> None:
        """Listen until one end closes. A dispatcher that is silent may only have been stopped, and
        have been told to go on."""
        self._received = 0
        self._reported = (0, self._free, False, None)
        self._open = False
        connection.send(Joining(consumer=self._consumer, free=self._free))
        while not connection.closed:
            frames: Collection[Any] = ()
            with anyio.move_on_after(SILENT_AFTER if self._dispatched else None) as patience:
                frames = await connection.receive()
            if patience.cancelled_caught:
                self._note_dispatched(False)
            elif self._open and not self._dispatched and frames:
                self._note_dispatched(True)
                self._note_open()
                self._listener.more(everything=True)
            try:
                for frame in frames:
                    self._hear(frame)
            except NOT_UNDERSTOOD as error:
                refuse(connection, error)
            # Whoever was woken goes first: preparing the next read takes a while.
            await anyio.lowlevel.checkpoint()

    def _note_dispatched(self, yes: bool) -> None:
        if self._dispatched is yes:
            return
        self._dispatched = yes
        self._changed.set()
        self._listener.dispatched(yes)
        if yes:
            if self._watcher is not None:
                self._watcher.stop()
            logger.info(
                "Listening to the dispatcher, without a change stream of its own",
                extra={"event": "dispatcher_joined", "consumer": self._consumer},
            )
            return
        self._metrics.connected.set(0)
        self._reply(None)
        if not self._stopped:
            self._health.not_ready("stream", "the change stream is being opened")
            logger.warning(
                "No dispatcher any more: listening to a change stream of its own",
                extra={"event": "dispatcher_gone", "consumer": self._consumer},
            )

    def _note_open(self) -> None:
        self._metrics.connected.set(1)
        self._health.clear("stream")

    def _hear(self, message: FromDispatcher) -> None:
        if "event" in message:
            self._received += 1
            tell(self._listener, message["event"], self._metrics)
        elif "jobs" in message:
            if self._asking:
                self._reply((message["jobs"], message["more"]))
            else:  # too late: it asks again, or the dispatcher would wait for it
                self._listener.more(everything=False)
        elif "fetch" in message:
            self._received += 1
            self._listener.more(everything=message["fetch"] == "everything")
        elif "tick" in message:
            self._signs += max(0, message["tick"])
            if message["tick"] > 0:
                self._heard_at = monotonic()
            if message["tick"] > 0 or message.get("pings", 0) > 0:
                self._metrics.last_event.set(time.time())
        elif "refused" in message:
            self._listener.refused(message["refused"])
        elif "buried" in message:
            if message["buried"] in REASONS:
                self._listener.buried(message["buried"], int(message["count"]))
        elif "asked" in message:
            self._listener.asked()
        elif "bell" in message:
            self._listener.bell()
        elif "opened" in message:
            self._open = True
            self._note_dispatched(True)
            self._note_open()
            self._metrics.last_event.set(time.time())
            self.started()
            self._listener.opened()
        elif "broken" in message:
            reason = message["broken"]
            self._open = False
            self._metrics.connected.set(0)
            self._metrics.restarts[reason].inc()
            self._health.not_ready("stream", f"the change stream is being reopened ({reason})")
        elif message.get("undecodable") == "jobs":
            self._reply(None)
        elif message.get("undecodable") == "event":
            self._received += 1
            self._listener.more(everything=True)

    def _reply(self, answer: Answer | None) -> None:
        self._answer = answer
        self._answered.set()

    # what the claimer says and asks

    async def ask(
        self, count: int, refused: Collection[Any], holder: Holder | None = None
    ) -> Answer | None:
        """Return up to `count` waiting jobs that were sent to nobody else, and whether there are
        more; None without a dispatcher, or when it takes long.

        Args:
            refused: ids of jobs that the server let this process not claim, since it last said so.
            holder: what the queues of this process hold of its slots, if they share them.
        """
        if not self._dispatched or self._connection is None:
            return None
        self._answered = anyio.Event()
        self._answer = None
        self._asking = True
        self._reported = (-1, 0, False, None)  # whatever is reported next is new
        message = Ask(ask=count, done=self._received, refused=list(refused))
        if holder is not None:
            message["held"] = dict(holder.held)
            message["ahead"] = holder.ahead
            message["room"] = holder.room
        self._connection.send(message)
        try:
            with anyio.move_on_after(ANSWER_WITHIN):
                await self._answered.wait()
        finally:
            self._asking = False
        return self._answer

    def lost(self, wanted: int, won: int) -> None:
        """Say that a claim of `wanted` jobs won `won`, because somebody else was faster."""
        if self._connection is not None:
            self._connection.send(Lost(lost=wanted, won=won))

    def report(
        self,
        free: int,
        more: bool,
        refused: Collection[Any],
        room: Mapping[str, int] | None = None,
    ) -> None:
        """Say that everything sent so far was dealt with.

        Args:
            free: jobs that can be claimed now.
            more: whether it knows of waiting jobs that it cannot take.
            refused: as for :meth:`ask`.
            room: how many of them may be of each of these queues.
        """
        self._free = free
        report = (self._received, free, more, room)
        if self._connection is not None and (report != self._reported or refused):
            self._reported = report
            message = Idle(idle=free, done=self._received, more=more, refused=list(refused))
            if room is not None:
                message["room"] = room
            self._connection.send(message)


def subscribe(worker: Worker) -> Callable[[socket.socket], None]:
    """Have a worker listen to a dispatcher, while there is one; return what brings it a connection
    to a new one. A connection is good for one run."""
    connections = PendingConnections()
    settings_of(worker).make_source = partial(Subscriber, connections)
    return connections.bring
