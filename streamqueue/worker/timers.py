"""Jobs that fall due: promoted by a timer, not found by polling.

The timer is armed by what the stream shows and by one look ahead after every promotion and every
(re)opening of the stream. With nothing scheduled it is not armed and sends nothing.
"""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from pymongo.errors import PyMongoError

from .. import operations
from ..clock import monotonic
from ..outage import LoggedOutage
from .backlog import oddness_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from ..async_store import AsyncStore
    from ..metrics import Metrics, Operation
    from .claimer import Claimer
    from .handler import RegisteredHandler

logger = logging.getLogger("streamqueue.timers")

SPREAD = 0.003
"""Seconds of jitter for promotions."""
RETRY_PAUSE = 1.0
CONFIRM_AFTER = 1.0
"""Seconds a job must stay unannounced before it counts as missed: its event may be on its way."""
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
        """Do something each time it rings, for ever; it returns the seconds to the next time.

        `operation` and `what` name it in the log.

        `spread` is jitter in seconds, so that not every process wakes in the same millisecond.
        """
        outage = LoggedOutage(logger, operation, what)
        while True:
            await self.wait()
            try:
                left = await once()
            except PyMongoError as error:
                outage.failed(error, "%s failed: %s", what)
                left = RETRY_PAUSE
            else:
                outage.succeeded()
            if math.isfinite(left):
                self.ring_at(monotonic() + left + random.uniform(0, spread))

    async def wait(self) -> None:
        """Return when it rings; it is disarmed by that. Rings at once the first time."""
        while (left := self._due - monotonic()) > 0:
            self._moved = anyio.Event()
            with anyio.move_on_after(left if math.isfinite(left) else None):
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
        """A job was scheduled for then; None when that is not known."""
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


class Look(Protocol):
    def look(self) -> None:
        """Look at the documents now."""


class Sweep:
    """Counts jobs that the stream failed to announce, and wakes the claimer for them.

    Not a way to find work: while the stream does its duty the count stays 0. Nor has a stream that
    says nothing at all missed anything: it is cut, and the driver, or we, are about to resume it.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredHandler],
        claimer: Claimer,
        clocks: Sequence[Look],
        interval: float,
        max_await: float,
        metrics: Metrics,
        signs: Callable[[], int],
    ) -> None:
        # An idle stream says that there is nothing every `max_await`.
        self._confirm_after = max(CONFIRM_AFTER, 1.5 * max_await)
        self._signs = signs
        self._store = store
        self._handlers = handlers
        self._claimer = claimer
        self._clocks = clocks
        self._interval = interval
        self._metrics = metrics
        self._outage = LoggedOutage(logger, "sweep", "The safety sweep")

    async def run(self) -> None:
        """Sweep for ever, at intervals jittered by half."""
        while True:
            await anyio.sleep(self._interval * random.uniform(0.5, 1.5))
            # The stream shows nothing of other queues, whose last consumer may be dead.
            for clock in self._clocks:
                clock.look()
            try:
                await self.run_once()
            except PyMongoError as error:
                self._outage.failed(error, "The safety sweep failed: %s")
            else:
                self._outage.succeeded()

    async def run_once(self) -> int:
        """Return how many ready jobs nobody had announced to this idle process."""
        if not self._claimer.idle:
            return 0
        signs = self._signs()
        found = {job["_id"] for job in await self._waiting()}
        if not found:
            return 0
        await anyio.sleep(self._confirm_after)
        if not self._claimer.idle:
            return 0
        left = [job for job in await self._waiting() if job["_id"] in found]
        if left:
            self._claimer.scan("sweep")
        if self._signs() == signs:
            return 0
        for job in left:
            self._handlers[job["queue"]].metrics.missed_wakeups.inc()
        if left:
            logger.error(
                "The change stream failed to announce %d ready jobs",
                len(left),
                extra={
                    "event": "missed_wakeup",
                    "queues": sorted({job["queue"] for job in left}),
                    "count": len(left),
                },
            )
        return len(left)

    async def _waiting(self) -> list[dict[str, Any]]:
        stuck = self._store.unclaimable  # they wait, but not for want of a wake-up
        if stuck.full:
            return []  # there are others of them, which look like any job
        command = operations.candidates(list(self._handlers), SWEEP_LIMIT + len(stuck), bare=True)
        with self._metrics.timed("scan"):
            found = await self._store.find(command)
        # Odd ones are about to be buried, and have neither an id nor a queue to be counted by.
        return [job for job in found if oddness_of(job) is None and job["_id"] not in stuck]
