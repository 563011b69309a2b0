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

import math
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from prometheus_client import CollectorRegistry
from pymongo.errors import PyMongoError

from .. import plain, signals
from ..clock import monotonic
from ..health.health import Health
from ..metrics.series import Metrics
from ..outage import LoggedOutage
from ..protocol.document import CODEC
from ..protocol.foreign import is_ordinary, is_unplaced
from ..signals import stop_signals
from ..store import first_answer
from ..store.present_settings import PresentSettings
from ..stream.verdict import change_of
from ..stream.watcher import Watcher
from ..worker.backlog import Backlog
from ..worker.handler import limited
from ..worker.intake import AFTER_FAILURE, Intake
from ..worker.partition import Partition
from ..worker.scheduler import Expiries, Timers
from ..worker.worker import Worker, settings_of
from .members import Members, RoomOfMembers
from .messages import Asked, Bell, Broken, Buried, Opened, Refused, Tick
from .subscriber import TICK

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from anyio.abc import TaskGroup, TaskStatus
    from bson.codec_options import CodecOptions

    from ..protocol.foreign import BuryReason
    from ..store.asynchronous import AsyncStore
    from ..stream.verdict import Reason
    from .members import Member
    from .messages import FromMember

logger = plain.logger("streamqueue.dispatcher")

READ_EVERY = 0.02
"""After an empty read, further requests are answered with nothing for this many seconds, instead of
reading again."""
EXPIRED_AGAIN = 5.0
"""Seconds until another member is asked to end what has expired, while there is some."""
RAW: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)
"""What is passed on is not taken apart."""


class Dispatcher:
    """Hands out the jobs of a worker's queues to its members.

    Args:
        store: the collection.
        queues: the worker's.
        max_await: seconds one read of the stream may stay silent.
        limited: those of the queues of which a member may not run as many jobs as it has slots.
    """

    def __init__(
        self,
        store: AsyncStore,
        queues: Sequence[str],
        *,
        max_await: float,
        limited: Collection[str] = (),
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
        self._backlog = Backlog(
            store,
            self._settings,
            self._partition,
            shares={queue: RoomOfMembers(self._members, queue) for queue in limited},
            dispatched=self._members.dispatched,
            codec=RAW,
        )
        self._lanes = self._backlog.lanes
        self._intake = Intake(store, self._partition, self._backlog)
        metrics = Metrics(self._registry)
        self._timers = Timers(store, queues, metrics)
        self._expiries = Expiries(store, queues, self._have_one_expire)
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
        self._more = self._adopt = True
        self._read_at = -math.inf
        self._tasks: TaskGroup | None = None
        self._stop: anyio.Event | None = None
        self._ending = False
        self._reading = LoggedOutage(logger, "dispatch", "Reading what waits")

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
            if self._partition.count() > 1:
                self._backlog.contend()
            tasks.start_soon(partial(self._settings.run, always=True))
            tasks.start_soon(self._partition.run)
            tasks.start_soon(self._timers.run)
            tasks.start_soon(self._expiries.run)
            tasks.start_soon(self._dispatch)
            tasks.start_soon(self._tick)
            tasks.start_soon(self._members.run)
            self._tasks = tasks
            if handle_signals and threading.current_thread() is threading.main_thread():
                await tasks.start(self._obey_signals)
            task_status.started()
            await self._stop.wait()
            self._tasks = None
            self._watcher.stop()
            self._intake.unloaded()
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
            self._look_for_more()
        elif self.loaded:
            self._have_one_fetch()
        if not leaving and self._tasks is not None:
            self._tasks.start_soon(self._partition.gone, [member.consumer])
            for other in self._members:  # it may have held jobs, whose leases will end
                other.ask_to_fetch(everything=True)

    def late(self, member: Member) -> None:
        """Have another member look for what this one does nothing about."""
        self._note_more()
        other = self._members.free(besides=member)
        if other is not None:
            other.ask_to_fetch(everything=True)

    def said(self, member: Member, message: FromMember) -> None:
        """Do as a member asks."""
        if "idle" in message:
            self._leave_out(message["refused"])
            room = message.get("room")
            member.acknowledged(int(message["done"]), int(message["idle"]), room)
            if message["more"]:
                self._note_more()
            if self.loaded:
                self._have_one_fetch()
            elif self._lanes:
                self._have_lanes_fetched()
        elif "ask" in message:
            if member.unacknowledged_jobs:
                self._note_more()  # they may be among what it asks for
            self._leave_out(message["refused"])
            member.acknowledged(int(message["done"]), room=message.get("room"))
            member.requested = int(message["ask"])
            self._intake.wake()
        elif "lost" in message:
            self._partition.look()
            if self._backlog.claimed(int(message["lost"]), int(message["won"])):
                self._look_for_more()  # what was read is forgotten

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
        """Read what waits, once a member with a free slot has asked for it."""
        self._note_more()
        self._adopt = self._adopt or adopt
        self._have_one_fetch()

    def _note_more(self) -> None:
        self._more = True
        self._lanes.look()

    def _have_lanes_fetched(self) -> None:
        """Have those ask for what waits in the lanes who can claim it."""
        for queue, lane in self._lanes.items():
            waits = lane.waits and queue not in self._settings.paused
            member = self._members.free(queue=queue) if waits else None
            if member is not None:
                member.ask_to_fetch()

    def _have_one_fetch(self) -> None:
        # Not itself a reason to read: each answer would be the reason for the next question. Nor of
        # use while all queues are paused, when a member that is asked to fetch has nothing to ask.
        member = self._members.free() if self._settings.open_queues() else None
        if member is not None:
            member.ask_to_fetch()

    async def _dispatch(self) -> None:
        failures = 0
        while True:
            asking = self._members.asking()
            if asking:
                try:
                    await self._answer(asking)
                    failures = 0
                    self._reading.succeeded()
                except (PyMongoError, BSONError) as error:
                    self._reading.failed(error, "Reading what waits failed, trying again: %s")
                    self._note_more()
                    self._adopt = True
                    failures += 1
                    await anyio.sleep(AFTER_FAILURE.delay(failures))
                    if not self._members.asking():  # who asked has left
                        self._have_one_fetch()
            else:
                if not self.loaded:
                    self._intake.unloaded()
                if await self._intake.wait(refused_too=not self._more):
                    self._look_for_more()

    async def _answer(self, asking: Iterable[Member]) -> None:
        if self._backlog.stale:
            self._backlog.drop()
            self._more = True
        self._lanes.drop(stale=True)
        lately = self._store.unclaimable.full or monotonic() - self._read_at < READ_EVERY
        if not self._backlog and (self._more or not lately):
            # Cleared before the read: what is announced while it is under way counts as new.
            self._more = False
            self._read_at = monotonic()
            with self._backlog.looking():
                if self._adopt:
                    self._adopt = False
                    await self._store.prepare()
                    self._adopt = (
                        await self._store.adopt(self._settings.open_queues()) or self._adopt
                    )
                await self._backlog.read(sum(member.requested for member in asking))
            if self._backlog.left and not self._backlog:
                self._intake.wait_for_turn(1)
            elif self._backlog.deep or self._backlog.left:
                self._more = True
        elif self._lanes:
            await self._backlog.read_lanes(0)
        if self._backlog.lanes_left:
            self._backlog.lanes_left = False
            self._intake.wait_for_turn(1)
        asking = self._members.asking()
        for index, member in enumerate(asking):
            share = math.ceil((len(self._backlog) + len(self._lanes)) / (len(asking) - index))
            jobs = self._backlog.take(min(member.requested, share), member.room)
            member.reply(jobs, more=bool(self._backlog) or self._more)
        if self.loaded:
            self._have_one_fetch()
        elif self._lanes:
            self._intake.unloaded()
            self._have_lanes_fetched()

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
        self._note_more()
        self._adopt = True
        self._backlog.drop()  # something more urgent may have come meanwhile
        self._timers.look()
        self._expiries.opened()
        self._members.broadcast(Opened(opened=True))

    def broken(self, reason: Reason) -> None:
        self._open = False
        self._members.broadcast(Broken(broken=reason))

    @property
    def loaded(self) -> bool:
        return (self._more or bool(self._backlog)) and bool(self._settings.open_queues())

    @property
    def looks_often(self) -> bool:
        return self._backlog.outruns_events(self.loaded)

    async def until_unloaded(self) -> None:
        await self._intake.until_unloaded()

    def unheard(self) -> None:
        self._adopt = True
        self._lanes.look()
        self._timers.look()
        self._expiries.look()

    def bell(self) -> None:
        self._settings.rang()

    async def _settings_read(self, paused: Collection[str], resumed: Collection[str]) -> None:
        told, self._bell_told = self._bell_told, False
        if not (paused or resumed):
            return
        if not told:  # it was read without a bell
            self._members.broadcast(Bell(bell=True))
        self._backlog.drop()  # it may have jobs of a queue that is paused now
        self._look_for_more(adopt=bool(resumed))

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
        if change.ready:
            job = change.job
            if job is None or not is_ordinary(job) or job["queue"] not in self._queues:
                # It may be a job that never had a place in the claim order.
                self._look_for_more(adopt=True)
            else:
                self._ready(event, job)
        if change.expired:
            self._have_one_look()
        if change.asked:  # any of them may hold it, whether it has a free slot or not
            self._members.broadcast(Asked(asked=True))

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

    def _ready(self, event: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        if job["queue"] in self._settings.paused:
            return  # it is looked for when the queue goes on
        unplaced = is_unplaced(job)
        lane = self._lanes.get(job["queue"])
        if lane is not None and not self._members.have_room(job["queue"]):
            lane.unread = True
            self._adopt = self._adopt or unplaced
            return
        turn = self._intake.turn(job)
        if self._backlog.yields_to(job):
            self._backlog.drop()  # it comes first: read the head again
            self._more = True
        if self._more or self._backlog:
            self._look_for_more(adopt=unplaced)
        elif turn:
            self._adopt = self._adopt or unplaced
            self._intake.wait_for_turn(turn)
        else:
            member = self._members.free(first=self._partition.first(job), queue=job["queue"])
            if member is not None:
                member.announce(event, job["queue"])
            elif lane is None:
                self._look_for_more(adopt=unplaced)
            else:
                lane.unread = True
                self._adopt = self._adopt or unplaced


def dispatcher_for(worker: Worker) -> Dispatcher:
    """Return the dispatcher for several processes of a worker.

    Raises:
        ConfigurationError: no handler is registered.
    """
    settings = settings_of(worker)
    settings.check_handlers()
    max_await = settings.options.max_await
    return Dispatcher(
        settings.store,
        list(settings.handlers),
        max_await=max_await,
        limited=limited(settings.handlers, settings.options.concurrency),
    )
