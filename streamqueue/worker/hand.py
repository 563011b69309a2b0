"""What a process is dealt: its share of the events and of what waits (``dealer``).

What it is dealt is a hint like any event: the claim decides. And it can do without: while nobody
deals, or the dealer has fallen silent, it listens to a change stream of its own, as a worker that
was started alone.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from anyio import TASK_STATUS_IGNORED
from pymongo.errors import PyMongoError

from ..stream import WAIT_MARGIN
from ..watcher import Listener, Watcher, tell
from .feed import NOT_UNDERSTOOD, Feed, refuse

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Sequence

    from anyio.abc import TaskStatus

    from ..health import Health
    from ..metrics import StreamMetrics

logger = logging.getLogger("streamqueue.hand")

TICK = 1.0
"""Seconds between two signs of life of a dealer."""
SILENT_AFTER = TICK + WAIT_MARGIN
"""Seconds without one after which nobody waits for it any longer."""
ANSWER_WITHIN = 2.0
"""Seconds a dealer may take to read what waits; after that a process reads for itself."""

Answer = tuple["Sequence[dict[str, Any]]", bool]
"""Waiting jobs, and whether there are more."""


class DealtListener(Listener, Protocol):
    """What is told, besides what a stream tells; from the reading loop, so it must not wait."""

    def dealt_to(self, yes: bool) -> None:
        """From now on a dealer minds who gets what; or does so no more."""

    def more(self, everything: bool) -> None:
        """Jobs are waiting: ask for them; `everything`: and look for all there may be to do."""

    def activity(self) -> None:
        """Jobs were announced, perhaps to other processes."""

    def stuck(self, job_ids: Sequence[Any]) -> None:
        """These jobs, and no others, are known to be such that nobody can claim them."""


class Invitations:
    """Connections to a dealer, as the supervisor brings them: one for each dealer that lives."""

    def __init__(self) -> None:
        self._newest: socket.socket | None = None
        self._came = anyio.Event()

    def __bool__(self) -> bool:
        return self._newest is not None

    def bring(self, channel: socket.socket) -> None:
        """Here is another; one that nobody has taken yet is no good any more."""
        if self._newest is not None:
            self._newest.close()
        self._newest = channel
        self._came.set()

    async def take(self) -> Feed:
        """Wait for one and return it."""
        while self._newest is None:
            self._came = anyio.Event()
            await self._came.wait()
        channel, self._newest = self._newest, None
        return Feed(channel)


class Hand:
    """Listens to a dealer, or in its absence to a stream of its own.

    Args:
        invitations: where connections to a dealer come from.
        consumer: the name of this one.
        listener: who is told.
        watcher: makes the stream of its own.
    """

    def __init__(
        self,
        invitations: Invitations,
        consumer: str,
        listener: DealtListener,
        watcher: Callable[[], Watcher],
        *,
        metrics: StreamMetrics,
        health: Health,
    ) -> None:
        self._invitations = invitations
        self._consumer = consumer
        self._listener = listener
        self._new_watcher = watcher
        self._watcher: Watcher | None = None
        self._metrics = metrics
        self._health = health
        self._stopped = False
        self._task_status: TaskStatus[None] = TASK_STATUS_IGNORED
        self._started = False
        self._signs = 0
        self._feed: Feed | None = None
        self._open = False  # the dealer's stream
        self._dealt_to = False
        self._changed = anyio.Event()
        # What the dealer knows of us.
        self._received = self._free = 0
        self._reported = (0, 0, False)
        self._asking = False
        self._answer: Answer | None = None
        self._answered = anyio.Event()

    @property
    def signs(self) -> int:
        """As :attr:`Watcher.signs`."""
        return self._signs + (0 if self._watcher is None else self._watcher.signs)

    @property
    def deals(self) -> bool:
        """Whether somebody deals: then :meth:`ask` is the way to what waits."""
        return self._dealt_to

    def stop(self) -> None:
        """Make :meth:`run` return soon."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.stop()
        if self._feed is not None:
            self._feed.send({"leaving": True})
            self._feed.close()
        self._changed.set()

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Listen until stopped; started once the dealer's stream, or one of its own, is open.

        Raises:
            PyMongoError: there is no dealer, and the first stream could not be opened.
        """
        self._task_status = task_status
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen_to_dealers)
            if self._invitations:
                with anyio.move_on_after(SILENT_AFTER):
                    await self._until_dealt_to(True)
            while not self._stopped:
                if self._dealt_to:
                    await self._until_dealt_to(False)
                else:
                    await self._listen_alone()
            tasks.cancel_scope.cancel()

    def started(self, value: None = None) -> None:
        """Note that a stream is open, here or at the dealer's."""
        if not self._started:
            self._started = True
            self._task_status.started()

    async def _until_dealt_to(self, yes: bool) -> None:
        while self._dealt_to is not yes and not self._stopped:
            self._changed = anyio.Event()
            await self._changed.wait()

    async def _listen_alone(self) -> None:
        self._watcher = watcher = self._new_watcher()
        try:
            await watcher.run(must_open=not self._started, task_status=self)
        except PyMongoError:
            if not self._started:  # else a dealer has come meanwhile
                raise
        self._signs += watcher.signs
        self._watcher = None
        if self._dealt_to:  # what it noted last was about its own
            if self._open:
                self._note_open()
            else:
                self._health.not_ready("stream", "the change stream is being reopened")

    async def _listen_to_dealers(self) -> None:
        while not self._stopped:
            self._feed = await self._invitations.take()
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._feed.keep_sending)
                    await self._listen_to(self._feed)
            except BaseException:
                self._stopped = True  # it is the run that ends, by a stop or an error
                raise
            finally:
                self._feed.close()
                self._feed = None
                self._be_dealt_to(False)

    async def _listen_to(self, feed: Feed) -> None:
        """Listen until one end closes. A dealer that is silent may only have been stopped, and
        have been told to go on."""
        self._received = 0
        self._reported = (0, self._free, False)
        self._open = False
        feed.send({"consumer": self._consumer, "free": self._free})
        while not feed.closed:
            frames: Collection[dict[str, Any]] = ()
            with anyio.move_on_after(SILENT_AFTER if self._dealt_to else None) as patience:
                frames = await feed.receive()
            if patience.cancelled_caught:
                self._be_dealt_to(False)
            elif self._open and not self._dealt_to and frames:
                self._be_dealt_to(True)
                self._note_open()
                self._listener.more(everything=True)
            try:
                for frame in frames:
                    self._hear(frame)
            except NOT_UNDERSTOOD as error:
                refuse(feed, error)
            # Whoever was woken goes first: preparing the next read takes a while.
            await anyio.lowlevel.checkpoint()

    def _be_dealt_to(self, yes: bool) -> None:
        if self._dealt_to is yes:
            return
        self._dealt_to = yes
        self._changed.set()
        self._listener.dealt_to(yes)
        if yes:
            if self._watcher is not None:
                self._watcher.stop()
            logger.info(
                "Dealt jobs by the dealer, without a change stream of its own",
                extra={"event": "dealer_joined", "consumer": self._consumer},
            )
            return
        self._metrics.connected.set(0)
        self._reply(None)
        if not self._stopped:
            self._health.not_ready("stream", "the change stream is being opened")
            logger.warning(
                "No dealer any more: listening to a change stream of its own",
                extra={"event": "dealer_gone", "consumer": self._consumer},
            )

    def _note_open(self) -> None:
        self._metrics.connected.set(1)
        self._health.clear("stream")

    def _hear(self, frame: dict[str, Any]) -> None:
        if "event" in frame:
            self._received += 1
            tell(self._listener, frame["event"], self._metrics)
        elif "jobs" in frame:
            if self._asking:
                self._reply((frame["jobs"], frame["more"]))
            else:  # too late: it asks again, or the dealer would wait for it
                self._listener.more(everything=False)
        elif "tick" in frame:
            if frame["tick"] > 0:
                self._signs += frame["tick"]
                self._metrics.last_event.set(time.time())
            if frame["active"]:
                self._listener.activity()
        elif "stuck" in frame:
            self._listener.stuck(frame["stuck"])
        elif "opened" in frame:
            self._open = True
            self._be_dealt_to(True)
            self._note_open()
            self._metrics.last_event.set(time.time())
            self.started()
            self._listener.opened()
        elif "broken" in frame:
            reason = frame["broken"]
            self._open = False
            self._metrics.connected.set(0)
            self._metrics.restarts[reason].inc()
            self._health.not_ready("stream", f"the change stream is being reopened ({reason})")
        elif "look" in frame:
            self._received += 1
            self._listener.more(everything=frame["look"] == "everything")
        elif frame.get("undecodable") == "jobs":
            self._reply(None)
        elif frame.get("undecodable") == "event":
            self._received += 1
            self._listener.more(everything=True)

    def _reply(self, answer: Answer | None) -> None:
        self._answer = answer
        self._answered.set()

    # what the claimer says and asks

    async def ask(self, count: int, stuck: Collection[Any]) -> Answer | None:
        """Return up to `count` waiting jobs that were dealt to nobody else, and whether there are
        more; None when nobody deals, or not soon.

        Args:
            stuck: ids of jobs that the server let this process not claim, since it last said so.
        """
        if not self._dealt_to or self._feed is None:
            return None
        self._answered = anyio.Event()
        self._answer = None
        self._asking = True
        self._reported = (-1, 0, False)  # whatever is reported next is new
        self._feed.send({"ask": count, "done": self._received, "stuck": list(stuck)})
        try:
            with anyio.move_on_after(ANSWER_WITHIN):
                await self._answered.wait()
        finally:
            self._asking = False
        return self._answer

    def lost(self, wanted: int, won: int) -> None:
        """Say that a claim of `wanted` jobs won `won`, because somebody else was faster."""
        if self._feed is not None:
            self._feed.send({"lost": wanted, "won": won})

    def settled(self, free: int, more: bool, stuck: Sequence[Any]) -> None:
        """Say that everything dealt so far was dealt with.

        Args:
            free: jobs that can be claimed now.
            more: whether it knows of waiting jobs that it cannot take.
            stuck: as for :meth:`ask`.
        """
        self._free = free
        report = (self._received, free, more)
        if self._feed is not None and (report != self._reported or stuck):
            self._reported = report
            self._feed.send(
                {"free": free, "done": self._received, "more": more, "stuck": list(stuck)}
            )
