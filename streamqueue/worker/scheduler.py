"""Jobs that fall due, or are too late: promoted or ended by a timer, not found by polling.

Each timer is armed by what the stream shows and by one look ahead after every promotion and every
(re)opening of the stream. It looks again after a minute, whatever it was armed by: a date that is
stored may be anything, and must not hold up what comes after it. That is one look at an index.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from .. import plain
from ..backoff import Backoff
from ..clock import LONGEST_SLEEP, monotonic, sleep_until
from ..outage import LoggedOutage
from ..protocol import operations
from ..protocol.foreign import oddness_of
from ..stream.verdict import READ_ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from bson import Timestamp

    from ..metrics.series import Metrics, Operation
    from ..options import WorkerOptions
    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from .claimer import Claimer
    from .queues import RegisteredQueue
    from .source import Source

logger = plain.logger("streamqueue.timers")

SPREAD = 0.003
"""Seconds of jitter for promotions."""
RETRY = Backoff(initial=1, maximum=5, jitter=0.5)
CONFIRM_AFTER = 1.0
"""Seconds a job must stay unannounced before it counts as missed: its event may be on its way."""
SIGNS = 2
"""Signs of life after which the stream must have announced a job."""
SWEEP_LIMIT = 100


class Alarm:
    """One point in time that can be moved closer."""

    def __init__(self) -> None:
        self._due = -math.inf
        self._moved = anyio.Event()

    def ring_at(self, due: float) -> None:
        """Ring at this :func:`monotonic` time, or earlier if it is set so already."""
        if due < self._due:
            self._due = due
            self._moved.set()

    async def keep(
        self, once: Callable[[], Awaitable[float]], operation: Operation, what: str, spread: float
    ) -> None:
        """Call `once` each time the alarm rings, and once a minute at the least, for ever; it
        returns the seconds to the next time.

        `operation` and `what` name it in the log.

        `spread` is jitter in seconds, so that not every process wakes in the same millisecond.
        """
        outage = LoggedOutage(logger, operation, what)
        failures = 0
        while True:
            await self.wait()
            try:
                left = await once()
            except READ_ERRORS as error:
                outage.failed(error, "%s failed: %s", what)
                failures += 1
                left = RETRY.delay(failures)
            else:
                failures = 0
                outage.succeeded()
            self.ring_at(monotonic() + min(left, LONGEST_SLEEP) + random.uniform(0, spread))

    async def wait(self) -> None:
        """Wait until the alarm rings, which disarms it; the first time it rings at once."""
        while (left := self._due - monotonic()) > 0:
            self._moved = anyio.Event()
            with anyio.move_on_after(min(left, LONGEST_SLEEP)):
                await self._moved.wait()
        self._due = math.inf


class Timers:
    """Promotes the scheduled jobs of these queues when they are due."""

    def __init__(self, store: AsyncStore, queues: Sequence[str], metrics: Metrics) -> None:
        self._store = store
        self._queues = list(queues)
        self._metrics = metrics
        self._alarm = Alarm()

    def note(self, run_at: datetime | None) -> None:
        """Promote a job that was scheduled for this time; None when that is not known."""
        if run_at is None or self._store.clock.stale:
            self.look()
        else:
            left = (run_at - self._store.clock.now()).total_seconds()
            self._alarm.ring_at(monotonic() + max(0.0, left) + random.uniform(0.001, SPREAD))

    def look(self) -> None:
        """Look at the documents now: events may have been missed."""
        self._alarm.ring_at(monotonic())

    async def run(self) -> None:
        """Promote for ever."""
        await self._alarm.keep(self.run_once, "promote", "Promoting due jobs", SPREAD)

    async def run_once(self) -> float:
        """Promote what is due; return the seconds until the next job is."""
        with self._metrics.timed("promote"):
            await self._store.prepare()  # the server's time, for the next note
            left = await self._store.seconds_to_due(self._queues)
            if left > SPREAD:
                return left
            await self._store.promote(self._queues)
            return await self._store.seconds_to_due(self._queues)


class Expiries:
    """Has the jobs of these queues ended that wait and are too late, when they are.

    Nothing is asked where no job can have such a time, but once whenever the stream was opened.

    Args:
        end: ends them, or has somebody do so; returns the seconds until there may be others.
    """

    def __init__(
        self, store: AsyncStore, queues: Sequence[str], end: Callable[[], Awaitable[float]]
    ) -> None:
        self._store = store
        self._queues = list(queues)
        self._end = end
        self._unsure = True
        self._alarm = Alarm()

    def note(self, expires_at: datetime) -> None:
        """Be there at that time, which some job has."""
        self._store.expiring = True
        if self._store.clock.stale:
            self.look()
        else:
            left = (expires_at - self._store.clock.now()).total_seconds()
            self._alarm.ring_at(monotonic() + max(0.0, left) + random.uniform(0.001, SPREAD))

    def look(self) -> None:
        """Look at the documents now, if jobs may have such a time: events may have been missed."""
        if self._store.expiring:
            self._alarm.ring_at(monotonic())

    def opened(self) -> None:
        """Look whether jobs have such a time: some may have been put since the last look."""
        self._unsure = True
        self._alarm.ring_at(monotonic())

    async def run(self) -> None:
        """End what is too late for ever."""
        await self._alarm.keep(self.run_once, "promote", "Ending what has expired", SPREAD)

    async def run_once(self) -> float:
        """End what is too late; return the seconds until the next job is."""
        if not (self._unsure or self._store.expiring):
            return math.inf
        unsure, self._unsure = self._unsure, False  # the stream may be opened meanwhile
        try:
            await self._store.prepare()  # the server's time, for the next note
            left = await self._store.seconds_to_too_late(self._queues)
        except BaseException:
            self._unsure = self._unsure or unsure
            raise
        return left if left > SPREAD else await self._end()


class HeldBack:
    """Lets the jobs of these queues through that wait for others which have ended.

    Whoever ends those does so, unless it is killed in between. So this looks whenever the stream
    was opened, and once in the time of a lease while it knows of some that wait.

    Args:
        timeout: the lease, in seconds.
    """

    def __init__(
        self, store: AsyncStore, queues: Sequence[str], timeout: float, metrics: Metrics
    ) -> None:
        self._store = store
        self._queues = list(queues)
        self._timeout = timeout
        self._metrics = metrics
        self._unsure = True
        self._some_wait = False
        self._alarm = Alarm()
        store.parked = self.note

    def note(self) -> None:
        """Look when the lease has ended of whoever a job waits for."""
        self._some_wait = True
        self._alarm.ring_at(monotonic() + self._timeout)

    def look(self) -> None:
        """Look at the documents now, if jobs may wait for others: whoever ended those may have died
        before it let them through."""
        if self._store.keyed:
            self.opened()

    def opened(self) -> None:
        """Look whether some wait: nobody may be left who knew of them."""
        self._unsure = True
        self._alarm.ring_at(monotonic())

    async def run(self) -> None:
        """Look for ever."""
        what = "Looking for jobs that wait for others"
        await self._alarm.keep(self.run_once, "promote", what, SPREAD)

    async def run_once(self) -> float:
        """Let through who waits for nobody any more; return the seconds until the next look."""
        if not (self._unsure or self._some_wait):
            return math.inf
        self._unsure = self._some_wait = False  # what is said meanwhile is for the next look
        try:
            with self._metrics.timed("promote"):
                look = await self._store.look_for_held_back(self._queues)
        except BaseException:
            self._unsure = True
            raise
        self._some_wait = self._some_wait or look.waiting > 0
        return self._timeout if self._some_wait else math.inf


class Look(Protocol):
    def look(self) -> None:
        """Look at the documents now."""


class Looks:
    """Several that look together."""

    def __init__(self, *looks: Look) -> None:
        self._looks = looks

    def look(self) -> None:
        """Look at the documents now."""
        for each in self._looks:
            each.look()


class Sweep:
    """Counts jobs that the stream failed to announce, and wakes the claimer for them.

    Not a way to find work: while the stream does its duty the count stays 0. A job counts as missed
    if a majority of the servers had it as ready at one moment and at a later one, nothing was done
    to it in between (a claim that came late and was given back leaves no trace in the document, but
    its events), and the stream has said more than once since that there is nothing, or nothing of
    it. A stream that says nothing at all has not missed anything: it is cut, and the driver, or we,
    are about to resume it.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredQueue],
        settings: PresentSettings,
        claimer: Claimer,
        timers: Look,
        options: WorkerOptions,
        metrics: Metrics,
        source: Source,
    ) -> None:
        # An idle stream says that there is nothing every `max_await`.
        self._confirm_after = max(CONFIRM_AFTER, (SIGNS + 0.5) * options.max_await)
        self._source = source
        self._store = store
        self._handlers = handlers
        self._settings = settings
        self._claimer = claimer
        self._timers = timers
        self._interval = options.sweep_interval or 0.0
        self._metrics = metrics
        self._outage = LoggedOutage(logger, "sweep", "The safety sweep")

    async def run(self) -> None:
        """Sweep for ever, at intervals jittered by half."""
        while True:
            await sleep_until(monotonic() + self._interval * random.uniform(0.5, 1.5))
            self._timers.look()  # it may have failed to announce what falls due as well
            self._settings.rang()  # nor rings the bell if who changed them died in between
            try:
                await self.run_once()
            except READ_ERRORS as error:
                self._outage.failed(error, "The safety sweep failed: %s")
            else:
                self._outage.succeeded()

    async def run_once(self) -> int:
        """Return how many ready jobs nobody had announced to this idle process."""
        if not (self._claimer.idle and await self._waiting()):
            return 0
        # There may be some: the rest is to be sure.
        before, first = await self._waiting_safely()
        signs = self._source.signs
        await anyio.sleep(self._confirm_after)
        if not self._claimer.idle:
            return 0
        after, last = await self._waiting_safely()
        left = {job_id: queue for job_id, queue in after.items() if job_id in before}
        if not left:
            return 0
        try:
            # The first sign may have been on its way when we looked; the second was asked for
            # after that, and would have brought the event.
            if self._source.signs - signs < SIGNS:
                return 0
            for job_id in await self._store.changed_between(list(left), first, last):
                left.pop(job_id, None)
            self._count(left.values())
            return len(left)
        finally:
            self._claimer.scan("sweep")

    def _count(self, queues: Collection[str]) -> None:
        for queue in queues:
            if queue in self._handlers:
                self._handlers[queue].metrics.missed_wakeups.inc()
        if queues:
            logger.error(
                "The change stream failed to announce %d ready jobs",
                len(queues),
                extra={
                    "event": "missed_wakeup",
                    "queues": sorted(set(queues)),
                    "count": len(queues),
                },
            )

    async def _waiting(self) -> dict[Any, str]:
        """Return the ids of the ready jobs, with their queues."""
        if self._store.unclaimable.full or not self._claimer.open_queues():
            return {}  # there are others of them, which look like any job; or all are paused
        with self._metrics.timed("scan"):
            return self._sift(await self._store.find(self._command()))

    async def _waiting_safely(self) -> tuple[dict[Any, str], Timestamp]:
        """Return the ready jobs that a majority of the servers has, and the moment of that."""
        with self._metrics.timed("scan"):
            found, moment = await self._store.find_committed(self._command())
        return self._sift(found), moment

    def _command(self) -> operations.Find:
        limit = SWEEP_LIMIT + len(self._store.unclaimable)
        queues, tasks = self._claimer.open_queues(), self._store.left.tasks
        return operations.candidates(queues, limit, bare=True, tasks=tasks, known=True)

    def _sift(self, found: Iterable[Mapping[str, Any]]) -> dict[Any, str]:
        # Those that cannot be claimed wait, but not for want of a wake-up. Odd ones are about to be
        # buried, and have neither an id nor a queue to be counted by.
        stuck, left = self._store.unclaimable, self._store.left
        return {
            job["_id"]: job["queue"]
            for job in found
            if oddness_of(job) is None and job["_id"] not in stuck and left.takes(job)
        }
