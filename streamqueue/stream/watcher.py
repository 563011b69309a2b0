"""The watcher of a worker or a dispatcher: it reads one change stream, wakes, and never decides.

States of the stream, and what leads out of each::

    opening ──opened──▶ reading ──event──▶ reading          tell the listener
       ▲                   │
       │                   ├── error: classified ───────▶ opening   with or without the token
       │                   ├── iteration just ended ────▶ opening   without the token
       │                   └── the listener looks often ▶ resting ─▶ opening   likewise
       └── pause: none if it was open for a while; while it cannot be opened 0.2 s … 5 s, jittered;
           without the rights half a minute

Every (re)opening is told to the listener, which then looks at the documents: the stream is open
first, so whatever the look misses becomes an event.

A read is never cancelled (pymongo closes a stream whose read is cancelled, and a scope that cancels
again leaks the server's cursor for ten minutes): it is shielded, and bounded by ``max_await`` in
the ordinary case and by ``pymongo.timeout`` when a connection is wedged.
"""

from __future__ import annotations

import math
import time
import traceback
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import pymongo
from anyio import TASK_STATUS_IGNORED, CancelScope
from pymongo.errors import PyMongoError

from .. import plain
from ..clock import monotonic
from ..outage import Outage
from ..protocol import operations
from .verdict import (
    INVALIDATED,
    OPEN_SECONDS,
    READ_ERRORS,
    WAIT_MARGIN,
    Pace,
    Reason,
    Verdict,
    buffered,
    classify,
    client_settings,
    log_broken,
    log_reopened,
    set_max_await,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyio.abc import TaskStatus
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.change_stream import AsyncChangeStream
    from pymongo.asynchronous.collection import AsyncCollection

    from ..health.health import Health
    from ..metrics.series import StreamMetrics

logger = plain.logger("streamqueue.watcher")

REST_AFTER = 0.5
"""Seconds the listener looks by itself without a break before the stream is closed: opening it
again is two commands, and a look at the documents."""
REST_TICK = 0.25
"""Seconds between two looks at whether that is still so and the server is there."""
LOADED_TICK = 0.08
"""Seconds between two reads while the listener is loaded: by then it is noticed that a queue was
paused, or that there is something more urgent. A pause is to hold within a tenth of a second."""
BELL_TICK = 0.06
"""Seconds between two looks at the settings of the queues meanwhile: a pause is to hold at once."""


class Listener(Protocol):
    """Who is told; called from the reading loop, so it must not wait for anything."""

    def opened(self) -> None:
        """The stream is open (again): look at the documents."""

    def broken(self, reason: Reason) -> None:
        """The stream is not open any more; it is being reopened."""

    def event(self, event: Mapping[str, Any]) -> None:
        """A job became, or may have become, ready, scheduled or expired."""

    @property
    def loaded(self) -> bool:
        """Whether it knows of so much to do that an event would tell it nothing new."""
        ...

    @property
    def looks_often(self) -> bool:
        """Whether it is loaded, and looks at the documents as soon as an event would come."""
        ...

    async def until_unloaded(self) -> None:
        """Return when the next event may not wait."""

    def unheard(self) -> None:
        """No event has been read for a while: look for what no look of its own would find."""

    def bell(self) -> None:
        """The settings of a queue may have been changed, and no event was read that says so."""


class Watcher:
    """Reads one change stream until stopped.

    Args:
        jobs: the collection; the stream gets a client of its own with the same address.
        queues: whose events to ask the server for.
        listener: who is told.
        max_await: seconds one read may stay silent.
        pipeline: what to ask the server for in place of what those queues need.

    Attributes:
        heard_at: :func:`monotonic` time of the stream's last sign of life.
    """

    def __init__(
        self,
        jobs: AsyncCollection[Any],
        queues: Sequence[str],
        listener: Listener,
        *,
        max_await: float,
        metrics: StreamMetrics,
        health: Health,
        pipeline: operations.Pipeline | None = None,
    ) -> None:
        self._jobs = jobs
        self._pipeline = pipeline or operations.stream_pipeline(queues, dependents=True)
        self._listener = listener
        self._max_await = max_await
        self._metrics = metrics
        self._health = health
        self._stopped = anyio.Event()
        self._token: Mapping[str, Any] | None = None
        self._tries = Pace()
        self._signs = self._pings = 0
        self.heard_at = -math.inf
        self._outage = Outage()
        self._was_open = False

    @property
    def signs(self) -> int:
        """How many signs of life the stream has given: events, or word that there are none."""
        return self._signs

    @property
    def pings(self) -> int:
        """How often the server has answered while the stream rested, which says nothing of jobs."""
        return self._pings

    def stop(self) -> None:
        """Make :meth:`run` return after the read under way, within ``max_await``."""
        self._stopped.set()

    async def run(
        self, *, must_open: bool = True, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Read until stopped; started once the first stream is open.

        Args:
            must_open: whether it is an error when the first stream cannot be opened.

        Raises:
            PyMongoError: so it was. All other errors are dealt with.
        """
        client = self._jobs.database.client._duplicate(**client_settings("streamqueue-stream"))
        jobs = watched(client, self._jobs)
        try:
            started = False
            while not self._stopped.is_set():
                try:
                    with CancelScope(shield=True):
                        stream = await self._open(jobs)
                except PyMongoError as error:
                    if must_open and not started:
                        raise
                    await self._recover(classify(error), error)
                    continue
                if not started:
                    started = True
                    task_status.started()
                if await self._read_until_broken(stream):
                    await self._rest(client)
        finally:
            self._metrics.connected.set(0)
            with CancelScope(shield=True):
                await client.close()

    async def _open(self, jobs: AsyncCollection[Any]) -> AsyncChangeStream[Any]:
        with pymongo.timeout(OPEN_SECONDS):
            stream = await jobs.watch(
                self._pipeline,
                resume_after=self._token,
                max_await_time_ms=int(self._max_await * 1000),
            )
        self._tries.opened()
        if not self._was_open:
            self._was_open = True
            logger.info("The change stream is open", extra={"event": "stream_opened"})
        log_reopened(logger, self._outage.succeeded())
        self._metrics.connected.set(1)
        self._health.clear("stream")
        self._listener.opened()
        return stream

    async def _read_until_broken(self, stream: AsyncChangeStream[Any]) -> bool:
        """Read; return whether it was closed because the listener looks often by itself."""
        often_from = math.inf
        try:
            while not self._stopped.is_set():
                now = monotonic()
                often_from = min(often_from, now) if self._listener.looks_often else math.inf
                if now - often_from >= REST_AFTER:
                    self._token = None  # what comes from now on is found by the look afterwards
                    return True
                await self._pace(stream)
                try:
                    with CancelScope(shield=True):
                        await self._read(stream)
                except READ_ERRORS as error:
                    await self._recover(classify(error), error)
                    return False
                if not stream.alive:
                    await self._recover(INVALIDATED, None)
                    return False
                self._token = stream.resume_token
                log_reopened(logger, self._outage.succeeded())
                self._signs += 1
                self._metrics.last_event.set(time.time())
                await anyio.lowlevel.checkpoint_if_cancelled()
            return False
        finally:
            with CancelScope(shield=True):
                try:
                    with pymongo.timeout(WAIT_MARGIN):
                        await stream.close()
                except PyMongoError:
                    pass  # its client is about to be closed, or the server has forgotten it already

    async def _rest(self, client: AsyncMongoClient[Any]) -> None:
        """Do without a stream while the listener looks often by itself.

        Read in the end, the events of a backlog cost as much as read at once: the server walks over
        every change of every job: 6.6 % of its time while no-op jobs were drained (6.0.5).
        """
        while self._listener.looks_often and not self._stopped.is_set():
            if await self._unloaded_within(REST_TICK):
                return
            try:
                with CancelScope(shield=True), pymongo.timeout(WAIT_MARGIN):
                    await client.admin.command("ping")
            except PyMongoError as error:
                await self._recover(classify(error), error)
                return
            self._metrics.last_event.set(time.time())
            self._pings += 1
            self._listener.unheard()

    async def _unloaded_within(self, seconds: float) -> bool:
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            with anyio.move_on_after(min(left, BELL_TICK)):
                await self._listener.until_unloaded()
                return True
            self._listener.bell()
        return False

    async def _pace(self, stream: AsyncChangeStream[Any]) -> None:
        """Read only now and then while the listener is loaded.

        A read that waits is woken by the server for every write to any collection. When none waits,
        and each takes what is there, a drain of no-op jobs at a concurrency of 20 costs the server
        95 us of CPU per job and not 140; and a worker whose slots are full uses 4 % of a core while
        700 jobs a second are put, and not 10 % (6.0.5, two cores).
        """
        loaded = self._listener.loaded
        set_max_await(stream, 0.001 if loaded else self._max_await)
        if loaded:
            with anyio.move_on_after(LOADED_TICK):
                await self._listener.until_unloaded()

    async def _read(self, stream: AsyncChangeStream[Any]) -> None:
        """Wait for an event, then tell it and those that came in the same reply."""
        with pymongo.timeout(self._max_await + WAIT_MARGIN):
            event = await stream.try_next()
            self.heard_at = monotonic()  # before it is told: who hears of it goes by that
            told = event is not None
            while event is not None:
                tell(self._listener, event, self._metrics)
                event = await stream.try_next() if buffered(stream) else None
        if told:
            # Whoever was woken goes first: preparing the next read takes as long as preparing a
            # claim. Twice, because pymongo writes a command that has a timeout in a task of its
            # own: in the first turn the claim is prepared, in the second it is sent.
            for _ in range(2):
                await anyio.lowlevel.checkpoint()

    async def _recover(self, verdict: Verdict, error: Exception | None) -> None:
        """Say what happened, drop the token if it is no good, and pause unless this is the first
        failure in a row."""
        self._metrics.connected.set(0)
        self._metrics.restarts[verdict.reason].inc()
        self._health.not_ready("stream", f"the change stream is being reopened ({verdict.reason})")
        self._listener.broken(verdict.reason)
        if not verdict.resume:
            self._token = None
        if self._outage.failed():
            log_broken(logger, verdict, error)
        with anyio.move_on_after(self._tries.failed(verdict)):
            await self._stopped.wait()


def tell(listener: Listener, event: Mapping[str, Any], metrics: StreamMetrics) -> None:
    """Count an event that has arrived and pass it on."""
    counter = metrics.events.get(event["operationType"])
    if counter is not None:
        counter.inc()
    written = event.get("wallTime")
    if written is not None:  # from MongoDB 6.0 on
        metrics.event_age.observe(max(0.0, time.time() - written.timestamp()))
    try:
        listener.event(event)
    except Exception as error:
        # One odd event must not end the reading of all others; a look finds its job. Without what
        # the exception says, which may be from the job.
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.error(
            "Could not use a change event: %s in %s, line %s",
            type(error).__name__,
            place.filename,
            place.lineno,
            extra={"event": "event_unusable", "error": type(error).__name__},
        )
        listener.opened()
