"""One change stream and one reader of the backlog for all the consumer processes of a machine.

By itself each process reads every event and the head of every backlog, and throws most of it away:
with sixteen of them a lone job cost the server and the machine sixteen wake-ups. A dealer reads
once and deals out: each event to one process with a free slot, whose turn it is if it can be, and
each waiting job to one that asked. It runs no handler, so that nothing keeps it from dealing.

It decides nothing. A process claims what it was dealt like anything else, and if it does not soon,
because it died or stands still, another one is told to look. Without a dealer each process listens
for itself (``hand``). Between machines, and with consumers that were started alone, jobs are shared
by turns (``peers``), where all of a dealer's processes are one.

It also promotes what falls due: a job's time is then known to one that is not busy.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import threading
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from prometheus_client import CollectorRegistry
from pymongo.errors import PyMongoError

from ..clock import monotonic
from ..document import CODEC
from ..health import Health
from ..metrics import Metrics
from ..outage import LoggedOutage
from ..stream import changed_state
from ..watcher import Watcher
from .backlog import Backlog, oddness_of
from .claimer import LOADED_LEISURE
from .hand import TICK
from .peers import Peers, turn_over
from .table import Table
from .timers import Timers

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, Sequence

    from anyio.abc import TaskGroup, TaskStatus
    from bson.codec_options import CodecOptions

    from ..async_store import AsyncStore
    from ..stream import Reason
    from .seat import Seat

logger = logging.getLogger("streamqueue.dealer")

READ_EVERY = 0.02
"""Seconds after a read that found nothing more in which another process that asks is told so."""
FAILURE_PAUSE = 0.2
RAW: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)
"""What is passed on is not taken apart."""


class Dealer:
    """Deals out the jobs of a worker's queues to the processes that are seated.

    Args:
        store: the collection.
        queues: the worker's.
        max_await: seconds one read of the stream may stay silent.
    """

    def __init__(self, store: AsyncStore, queues: Sequence[str], *, max_await: float) -> None:
        self._store = store
        self._queues = list(queues)
        self.health = Health()
        self._registry = CollectorRegistry()  # served by nobody: its processes have their own
        self._table = Table(self)
        self._peers = Peers(store, None, queues, own=self._table.names)
        self._backlog = Backlog(store, queues, self._peers, dealt=self._table.dealt, raw=RAW)
        metrics = Metrics(self._registry)
        self._timers = Timers(store, queues, metrics)
        self._watcher = Watcher(
            store.jobs.with_options(codec_options=RAW),
            queues,
            self,
            max_await=max_await,
            metrics=metrics.stream,
            health=self.health,
        )
        self._open = self._was_open = False
        self._more = self._adopt = True
        self._read_at = -math.inf
        self._turn_at = math.inf
        self._left_last = False
        self._active = False
        self._wake = anyio.Event()
        self._unloaded = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._stop: anyio.Event | None = None
        self._ending = False
        self._reading = LoggedOutage(logger, "deal", "Reading what waits")

    @property
    def stopping(self) -> bool:
        """Whether it runs and was told to stop."""
        return self._stop is not None and self._stop.is_set()

    def stop(self) -> None:
        """Make :meth:`run` return."""
        if self._stop is not None:
            self._stop.set()

    async def run(
        self, *, handle_signals: bool = True, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Deal until stopped, once; started as soon as the change stream is open.

        Args:
            handle_signals: let SIGTERM and SIGINT (in the main thread) stop it, from then on, once
                nobody is seated any more.

        Raises:
            ReplicaSetRequired: a standalone server.
            PyMongoError: no server, or a privilege is missing.
        """
        self._stop = anyio.Event()
        await self._store.prepare()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.health.keep_beating)
            await tasks.start(self._watcher.run)
            await self._peers.join()
            if self._peers.count() > 1:
                self._backlog.contend()
            tasks.start_soon(self._peers.run)
            tasks.start_soon(self._timers.run)
            tasks.start_soon(self._deal)
            tasks.start_soon(self._tick)
            tasks.start_soon(self._table.run)
            self._tasks = tasks
            if handle_signals and threading.current_thread() is threading.main_thread():
                await tasks.start(self._obey_signals)
            task_status.started()
            await self._stop.wait()
            self._tasks = None
            self._watcher.stop()
            tasks.cancel_scope.cancel()

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        # Service managers send them to every process of a service; the others still drain.
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                self._ending = True
                self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._ending and not self._table:
            self.stop()

    # who is there

    def join(self, channel: socket.socket) -> None:
        """Deal to the process at the other end from now on, until it closes its end."""
        if self._tasks is None:
            channel.close()
        else:
            self._tasks.start_soon(self._table.serve, channel)

    def seated(self, seat: Seat) -> None:
        """Tell a process how things stand. (As the table's host.)"""
        self._peers.look()
        seat.feed.send({"stuck": self._store.unclaimable.ids()})
        if self._open:
            seat.feed.send({"opened": True})

    def left(self, seat: Seat, *, leaving: bool) -> None:
        """See to what a process has left behind. (As the table's host.)"""
        self._peers.look()
        self._end_if_alone()
        if self.stopping:
            return
        if seat.owes:
            self._look_for_more()
        elif self.loaded:
            self._have_one_ask()
        if not leaving and self._tasks is not None:
            self._tasks.start_soon(self._peers.gone, [seat.consumer])
            for other in self._table:  # it may have held jobs, whose leases will end
                other.look(everything=True)

    def late(self, seat: Seat) -> None:
        """Have another process look for what this one does nothing about. (As the table's host.)"""
        self._more = True
        other = self._table.free(besides=seat)
        if other is not None:
            other.look(everything=True)

    def said(self, seat: Seat, frame: Mapping[str, Any]) -> None:
        """Do as a process asks. (As the table's host.)"""
        if "ask" in frame:
            if seat.owes_jobs:
                self._more = True  # they may be among what it asks for
            self._leave_out(frame["stuck"])
            seat.settled(int(frame["done"]))
            seat.asked = int(frame["ask"])
            self._wake.set()
        elif "lost" in frame:
            self._peers.look()
            if self._backlog.claimed(int(frame["lost"]), int(frame["won"])):
                self._look_for_more()  # what was read is forgotten
        elif "free" in frame:
            self._leave_out(frame["stuck"])
            seat.settled(int(frame["done"]), int(frame["free"]))
            if frame["more"]:
                self._more = True
            if self.loaded:
                self._have_one_ask()

    def _leave_out(self, refused: Sequence[Any]) -> None:
        stuck = self._store.unclaimable
        for job_id in refused:
            stuck.hold(job_id)
        if refused and stuck.full:
            # More than can be left out: what is read next would be of them as well. It is time when
            # they are tried again; what is announced until then does not wait.
            self._backlog.drop()
            self._more = False

    # what waits

    def _look_for_more(self, *, adopt: bool = False) -> None:
        """There is something to read: have a process with a free slot ask for it."""
        self._more = True
        self._adopt = self._adopt or adopt
        self._have_one_ask()

    def _have_one_ask(self) -> None:
        # Not itself a reason to read: each answer would be the reason for the next question.
        seat = self._table.free()
        if seat is not None:
            seat.look()

    async def _deal(self) -> None:
        while True:
            asking = self._table.asking()
            if asking:
                try:
                    await self._answer(asking)
                    self._reading.succeeded()
                except (PyMongoError, BSONError) as error:
                    self._reading.failed(error, "Reading what waits failed, trying again: %s")
                    self._more = self._adopt = True
                    await anyio.sleep(FAILURE_PAUSE * random.uniform(0.5, 1.0))
                    if not self._table.asking():  # who asked has left
                        self._have_one_ask()
            else:
                if not (self._more or self._backlog):
                    self._unloaded.set()
                await self._wait()

    async def _wait(self) -> None:
        """Wait until somebody asks, or until it is our turn at what was left to others, or time to
        try again what nobody could claim; for those two, somebody is to ask."""
        stuck = self._store.unclaimable
        left = self._turn_at - monotonic()
        if not self._more:
            left = min(left, stuck.wait())
        with anyio.move_on_after(left if math.isfinite(left) else None):
            await self._wake.wait()
        self._wake = anyio.Event()
        if self._turn_at <= monotonic():
            self._turn_at = math.inf
            self._backlog.stealing = True
            self._look_for_more()
        elif not (self._more or stuck.wait()):
            self._look_for_more()

    async def _answer(self, asking: Iterable[Seat]) -> None:
        if self._backlog.stale:
            self._backlog.drop()
            self._more = True
        lately = self._store.unclaimable.full or monotonic() - self._read_at < READ_EVERY
        if not self._backlog and (self._more or not lately):
            # Cleared before the read: what is announced while it is under way counts as new.
            self._more = False
            self._read_at = monotonic()
            if self._adopt:
                self._adopt = False
                await self._store.prepare()
                await self._store.adopt(self._queues)
            await self._backlog.read(sum(seat.asked for seat in asking))
            if self._backlog.left and not self._backlog:
                self._wait_for_turn(1)
            elif self._backlog.deep or self._backlog.left:
                self._more = True
        asking = self._table.asking()
        for index, seat in enumerate(asking):
            share = math.ceil(len(self._backlog) / (len(asking) - index))
            jobs = self._backlog.take(min(seat.asked, share))
            seat.answer(jobs, more=bool(self._backlog) or self._more)
            if jobs:
                self._active = True
        if self.loaded:
            self._have_one_ask()

    def _wait_for_turn(self, turn: int) -> None:
        at = turn_over(turn)
        if at < self._turn_at:
            self._turn_at = at
            self._wake.set()

    async def _tick(self) -> None:
        """Tell the processes that the dealer lives, whether the stream does, and which jobs nobody
        can claim: those wait, but not for want of a wake-up."""
        seen, told = 0, self._store.unclaimable.ids()
        while True:
            await anyio.sleep(TICK)
            signs = self._watcher.signs
            stuck = self._store.unclaimable.ids()
            if stuck != told:
                told = stuck
                self._table.broadcast({"stuck": stuck})
            self._table.broadcast({"tick": signs - seen, "active": self._active})
            seen, self._active = signs, False

    # the watcher's listener

    def opened(self) -> None:
        if self._was_open:
            self._store.recheck_indexes()  # a stream may break because its collection was dropped
        self._open = self._was_open = True
        self._more = self._adopt = True
        self._timers.look()
        self._table.broadcast({"opened": True})

    def broken(self, reason: Reason) -> None:
        self._open = False
        self._table.broadcast({"broken": reason})

    @property
    def loaded(self) -> bool:
        return self._more or bool(self._backlog)

    @property
    def leisure(self) -> float:
        if self.loaded:
            return LOADED_LEISURE
        return self._peers.courtesy() if self._left_last else 0.0

    async def until_unloaded(self) -> None:
        self._unloaded = anyio.Event()
        await self._unloaded.wait()

    def event(self, event: Mapping[str, Any]) -> None:
        state = changed_state(event)
        self._active = True
        if state == "scheduled":
            fields = event.get("fullDocument") or event["updateDescription"]["updatedFields"]
            self._timers.note(fields.get("run_at"))
        elif state == "ready":
            job = event.get("fullDocument")
            if job is None or oddness_of(job) is not None or job["queue"] not in self._queues:
                self._look_for_more()
            else:
                self._ready(event, job)

    def _ready(self, event: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        unplaced = job.get("priority") is None
        self._peers.job_came()
        if self._backlog.yields_to(job):
            self._backlog.drop()  # it comes first: read the head again
            self._more = True
        turn = self._peers.turn(job)
        self._left_last = turn > 0
        if self._more or self._backlog:
            self._look_for_more(adopt=unplaced)
        elif turn:
            self._adopt = self._adopt or unplaced
            self._wait_for_turn(turn)
        else:
            seat = self._table.free(first=self._peers.first(job))
            if seat is None:
                self._look_for_more(adopt=unplaced)
            else:
                seat.announce(event)
