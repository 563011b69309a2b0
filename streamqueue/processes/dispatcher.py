"""One change stream and one reader of the backlog for all the consumer processes of a machine.

By itself each process reads every event and the head of every backlog, and throws most of it away:
with sixteen of them a lone job cost the server and the machine sixteen wake-ups. A dispatcher reads
once for all its members: it sends each event to one with a free slot, whose turn it is if it can
be, and each waiting job to one that asked. It runs no handler, so that nothing keeps it from that.

It decides nothing. A member claims what it was sent like anything else, and if it does not soon,
because it died or stands still, another one is told to look. Without a dispatcher each process
listens for itself (``subscriber``). Between machines, and with consumers that were started alone,
jobs are shared by turns (``worker.partition``), where all members of a dispatcher are one.

It also promotes what falls due: a job's time is then known to one that is not busy. And it hands
out nothing of a queue that is paused, and tells its members when the settings were changed.
"""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from prometheus_client import CollectorRegistry

from .. import signals
from ..health.health import Health
from ..metrics.series import Metrics
from ..protocol.fitting.kinds import unread
from ..protocol.foreign import is_ordinary
from ..signals import stop_signals
from ..store import first_answer
from ..store.present_settings import PresentSettings
from ..stream.verdict import change_of
from ..stream.watcher import Watcher
from ..worker.misfits import Misfits
from ..worker.partition import Partition
from ..worker.queues import fairness_of, share_slots
from ..worker.scheduler import Expiries, HeldBack, Timers
from ..worker.worker import Worker, settings_of
from .members import Members
from .messages import Asked, Bell, Broken, Buried, Opened, Refused, Tick
from .subscriber import TICK
from .waiting_jobs import RAW, WaitingJobs

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Mapping, Sequence

    from anyio.abc import TaskGroup, TaskStatus

    from ..protocol.fitting.kinds import ReaderOf
    from ..protocol.foreign import BuryReason
    from ..store.asynchronous import AsyncStore
    from ..stream.verdict import Reason
    from ..worker.sharing.fairness import Fairness
    from .members import Member
    from .messages import FromMember

EXPIRED_AGAIN = 5.0
"""Seconds until another member is asked to end what has expired, while there is some."""
HELD_BACK_AGAIN = 30.0
"""Seconds between two looks at jobs that wait for others, while there are some."""


class Dispatcher:
    """Hands out the jobs of a worker's queues to its members.

    Args:
        store: the collection.
        queues: the worker's.
        max_await: seconds one read of the stream may stay silent.
        fairness: shares the slots of a member among the queues, if that is to be done.
        readers: of each queue, what says for a task what reads the payloads of its jobs; of one
            that is not there, none is needed.
        misfit_grace: seconds for which a job whose payload does not fit is left to others.
    """

    def __init__(
        self,
        store: AsyncStore,
        queues: Sequence[str],
        *,
        max_await: float,
        fairness: Fairness | None = None,
        readers: Mapping[str, ReaderOf] | None = None,
        misfit_grace: float = 3600.0,
    ) -> None:
        self._store = store
        self._queues = list(queues)
        self.health = Health()
        self._registry = CollectorRegistry()  # served by nobody: its processes have their own
        self._buried: Counter[BuryReason] = Counter()
        store.buried = self._note_buried
        self._members = Members(self)
        self._partition = Partition(store, None, queues, own=self._members.names)
        self._settings = PresentSettings(store, queues)
        self._waiting = WaitingJobs(store, self._settings, self._partition, self._members, fairness)
        metrics = Metrics(self._registry)
        self._timers = Timers(store, queues, metrics)
        self._expiries = Expiries(store, queues, self._have_one_expire)
        self._held_back = HeldBack(store, queues, HELD_BACK_AGAIN, metrics)
        readers = dict.fromkeys(queues, unread) | dict(readers or {})
        let = self._waiting.look_for_more
        self._misfits = Misfits(store, readers, misfit_grace, metrics, let)
        self._watcher = Watcher(
            store.jobs.with_options(codec_options=RAW),
            queues,
            self,
            max_await=max_await,
            metrics=metrics.stream,
            health=self.health,
        )
        self._settings.connect(self._watcher, self._settings_read)
        self._open = self._was_open = self._bell_told = False
        self._ruled: frozenset[str] = frozenset()
        self._tasks: TaskGroup | None = None
        self._stop: anyio.Event | None = None
        self._ending = False

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
        """Hand out jobs until stopped, once; started as soon as the change stream is open.

        Args:
            handle_signals: let SIGTERM, SIGINT and SIGHUP (in the main thread) stop it, from then
                on, once nobody is joined any more.

        Raises:
            ReplicaSetRequired: a standalone server.
            PyMongoError: no server, or a privilege is missing.
        """
        self._stop = anyio.Event()
        await first_answer.prepare(self._store)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.health.keep_beating)
            await tasks.start(self._watcher.run)
            await self._partition.join()
            self._waiting.share()
            tasks.start_soon(partial(self._settings.run, always=True))
            tasks.start_soon(self._partition.run)
            tasks.start_soon(self._timers.run)
            tasks.start_soon(self._expiries.run)
            tasks.start_soon(self._held_back.run)
            tasks.start_soon(self._misfits.run)
            tasks.start_soon(self._waiting.run)
            tasks.start_soon(self._tick)
            tasks.start_soon(self._members.run)
            self._tasks = tasks
            if handle_signals and threading.current_thread() is threading.main_thread():
                await tasks.start(self._obey_signals)
            task_status.started()
            await self._stop.wait()
            self._tasks = None
            self._watcher.stop()
            self._waiting.stop()
            tasks.cancel_scope.cancel()

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        # Service managers send them to every process of a service; the others still drain.
        ending = signals.ending()
        if ending is not None:
            ending.wait_for_others()
        with stop_signals() as received:
            task_status.started()
            async for _ in received:
                self._ending = True
                self._end_if_alone()

    def _end_if_alone(self) -> None:
        if self._ending and not self._members:
            self.stop()

    def join(self, channel: socket.socket) -> None:
        """Take the process at the other end for a member from now on, until it closes its end."""
        if self._tasks is None:
            channel.close()
        else:
            self._tasks.start_soon(self._members.serve, channel)

    def joined(self, member: Member) -> None:
        """Tell a new member how things stand."""
        self._partition.own_changed()
        member.connection.send(Refused(refused=self._store.unclaimable.ids()))
        if self._open:
            member.connection.send(Opened(opened=True))
        self._report_buried()

    def left(self, member: Member, *, leaving: bool) -> None:
        """See to what a member has left behind."""
        self._partition.own_changed()
        self._end_if_alone()
        if self.stopping:
            return
        if member.unacknowledged:
            self._waiting.look_for_more()
        else:
            self._waiting.have_known_fetched()
        if not leaving and self._tasks is not None:
            self._tasks.start_soon(self._partition.gone, [member.consumer])
            for other in self._members:  # it may have held jobs, whose leases will end
                other.ask_to_fetch(everything=True)

    def late(self, member: Member) -> None:
        """Have another member look for what this one does nothing about."""
        self._waiting.note_more()
        other = self._members.free(besides=member)
        if other is not None:
            other.ask_to_fetch(everything=True)

    def said(self, member: Member, message: FromMember) -> None:
        """Do as a member asks."""
        if "idle" in message:
            self._waiting.leave_out(message["refused"])
            room = message.get("room")
            member.acknowledged(int(message["done"]), int(message["idle"]), room)
            if message["more"]:
                self._waiting.note_more()
            self._waiting.have_known_fetched()
        elif "ask" in message:
            if member.unacknowledged_jobs:
                self._waiting.note_more()  # they may be among what it asks for
            self._waiting.leave_out(message["refused"])
            member.acknowledged(int(message["done"]), room=message.get("room"))
            member.held, member.ahead = message.get("held", {}), message.get("ahead", {})
            member.requested = int(message["ask"])
            self._waiting.asked()
        elif "lost" in message:
            self._waiting.lost(int(message["lost"]), int(message["won"]))

    async def _tick(self) -> None:
        """Tell the members whether the dispatcher and its stream live, and what is refused."""
        seen, pinged, told = 0, 0, self._store.unclaimable.ids()
        while True:
            await anyio.sleep(TICK)
            signs, pings = self._watcher.signs, self._watcher.pings
            stuck = self._store.unclaimable.ids()
            if stuck != told:
                told = stuck
                self._members.broadcast(Refused(refused=stuck))
            # What is said of the stream vouches for the settings that the members have read. While
            # those are not sure here, nobody is to go by them.
            alive = signs - seen if self._settings.sure else 0
            self._members.broadcast(Tick(tick=alive, pings=pings - pinged))
            seen, pinged = signs, pings

    # the watcher's listener

    def opened(self) -> None:
        if self._was_open:
            self._store.recheck_indexes()  # a stream may break because its collection was dropped
        self._open = self._was_open = True
        self._settings.rang()
        self._waiting.opened()
        self._timers.look()
        self._expiries.opened()
        self._misfits.opened()
        self._members.broadcast(Opened(opened=True))

    def broken(self, reason: Reason) -> None:
        self._open = False
        self._members.broadcast(Broken(broken=reason))

    @property
    def loaded(self) -> bool:
        return self._waiting.loaded

    @property
    def looks_often(self) -> bool:
        return self._waiting.looks_often

    async def until_unloaded(self) -> None:
        await self._waiting.until_unloaded()

    def unheard(self) -> None:
        self._waiting.unheard()
        self._timers.look()
        self._expiries.look()

    def bell(self) -> None:
        self._settings.rang()

    async def _settings_read(self, paused: Collection[str], resumed: Collection[str]) -> None:
        told, self._bell_told = self._bell_told, False
        ruled, self._ruled = self._ruled, frozenset(self._store.ruled)
        if not (paused or resumed) and ruled == self._ruled:
            return
        if not told:  # it was read without a bell
            self._members.broadcast(Bell(bell=True))
        self._waiting.settings_changed(resumed=bool(resumed))

    def event(self, event: Mapping[str, Any]) -> None:
        change = change_of(event)
        if change.expires_at is not None:
            self._expiries.note(change.expires_at)
        if change.bell:
            self._settings.rang()
            # At once, whatever is read here: of a pause that is over by then nothing would show.
            self._members.broadcast(Bell(bell=True))
            self._bell_told = True
        if change.scheduled:
            self._timers.note(change.run_at)
            if self._store.ruled and event["operationType"] != "insert":  # it may have run
                self._members.broadcast(Bell(bell=True))
        if change.ready:
            job = change.job
            if job is None or not is_ordinary(job) or job["queue"] not in self._queues:
                # It may be a job that never had a place in the claim order.
                self._waiting.look_for_more(adopt=True)
            else:
                self._waiting.ready(event, job)
        if change.expired:
            self._have_one_look()
        if change.asked:  # any of them may hold it, whether it has a free slot or not
            self._members.broadcast(Asked(asked=True))
        if change.waits:
            self._store.needless = False
            self._held_back.note()
        if change.left:
            self._misfits.note()

    def _note_buried(self, reason: BuryReason, count: int) -> None:
        self._buried[reason] += count
        self._report_buried()

    def _report_buried(self) -> None:
        """Have a member count what was buried here: nobody asks a dispatcher for its metrics."""
        member = next(iter(self._members), None)
        if member is not None:
            for reason, count in self._buried.items():
                member.connection.send(Buried(buried=reason, count=count))
            self._buried.clear()

    async def _have_one_expire(self) -> float:
        # Not ended here: a member counts it.
        self._have_one_look()
        return EXPIRED_AGAIN

    def _have_one_look(self) -> None:
        # Whether it has a free slot or not: that is no matter here.
        member = self._members.free() or next(iter(self._members), None)
        if member is not None:
            member.ask_to_fetch(everything=True)


def dispatcher_for(worker: Worker) -> Dispatcher:
    """Return the dispatcher for several processes of a worker.

    Raises:
        ConfigurationError: no handler is registered.
    """
    settings = settings_of(worker)
    settings.check_handlers()
    handlers, options = settings.handlers, settings.options
    fairness = None
    if share_slots(handlers, options.concurrency):
        fairness = fairness_of(handlers, options.concurrency)
    settings.store.left.tasks = settings.known_tasks
    return Dispatcher(
        settings.store,
        list(handlers),
        max_await=options.max_await,
        fairness=fairness,
        readers={name: queue.reader for name, queue in handlers.items()},
        misfit_grace=options.misfit_grace,
    )
