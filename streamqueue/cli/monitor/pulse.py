"""The queue's pulse, for ``streamqueue top``: what comes and goes, who works, what failed last.

A census on a timer says how much there is, a change stream what came in between. Jobs that go are
deleted, and the event of that does not say from which queue; so what went is what came, less what
there is more. While the stream is broken nothing is said about either.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from pymongo.errors import PyMongoError

from ...clock import monotonic
from ...exporter import queries
from ...exporter.census import Surveyor
from ...failures import failure_name
from ...health.health import Health
from ...metrics.buckets import LATENCY_BUCKETS
from ...metrics.bundles import StreamMetrics
from ...names import INVALID, label_of
from ...protocol.document import BARE_CODEC, id_text
from ...store.asynchronous import AsyncStore
from ...stream.verdict import is_bell
from ...stream.watcher import Watcher
from ...tracebacks import last_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import TaskStatus
    from bson import ObjectId
    from pymongo.asynchronous.collection import AsyncCollection

    from ...exporter.counts import Census
    from ...stream.verdict import Reason

PATIENCE = 10.0
MAX_AWAIT = 0.25
LATEST = 5
"""Failures shown."""
KEPT = 20
"""Failures noted between two looks; what is completed by then is gone."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Jobs per second that came into a queue, and that left it; None when nobody could count."""

    came: float | None = None
    went: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed.

    Attributes:
        at: when, by the server's clock, or None.
        error: the last line of what is stored, which may quote the payload.
    """

    job_id: str
    queue: str
    at: datetime | None
    attempts: int
    dead: bool
    error: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """How the queues are at one moment.

    Attributes:
        flows: by queue, over the time since the moment before.
        failures: the latest, newest first.
        stream: ``open``, or why it is not.
    """

    at: datetime
    census: Census
    flows: Mapping[str, Flow] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    stream: str = "open"


def flow(came: int, before: int, now: int, seconds: float) -> Flow:
    """Return the flow of a queue, given what came, how many jobs there were, and there are."""
    if seconds <= 0:
        return Flow()
    return Flow(came / seconds, max(0, came - (now - before)) / seconds)


class PulseTaker:
    """Takes the pulse of a collection again and again.

    Its stream is read by :meth:`read`, in a task beside.

    Args:
        jobs: the collection.
    """

    def __init__(self, jobs: AsyncCollection[Any]) -> None:
        self._store = AsyncStore(jobs, patience=PATIENCE)
        self._surveyor = Surveyor(self._store, holders=True)
        self._stream = "not open yet"
        self._whole = False  # whether the stream was open since the last pulse
        self._came: Counter[str] = Counter()
        self._failed: deque[ObjectId] = deque(maxlen=KEPT)
        self._failures: dict[str, Failure] = {}
        self._before: Census | None = None
        self._taken_at = 0.0
        self._tried = anyio.Event()

    async def take(self) -> Pulse:
        """Look now; the first time there are no flows.

        Raises:
            ReplicaSetRequired: a standalone server.
            PyMongoError: the first look failed. Of later ones the pulse says so.
        """
        before = self._before
        try:
            await self._store.prepare()
            census, now = await self._surveyor.take(), monotonic()
            if before is None:
                await self._note_dead(census)
            await self._note_failures()
        except PyMongoError as error:
            if before is None:
                raise
            self._whole = False
            self._came.clear()  # nobody will be told, and there may be any number of names
            reason = f"no answer from the server ({failure_name(error)})"
            return Pulse(datetime.now(UTC), before, {}, self._latest(), reason)
        flows = {}
        if before is not None and self._whole:
            flows = self._flows(before, census, now - self._taken_at)
        self._whole = self._stream == "open"
        self._came.clear()
        self._before, self._taken_at = census, now
        return Pulse(datetime.now(UTC), census, flows, self._latest(), self._stream)

    def _flows(self, before: Census, now: Census, seconds: float) -> dict[str, Flow]:
        def count(census: Census, name: str) -> int:
            return sum(census.queues[name].jobs().values()) if name in census.queues else 0

        return {
            name: flow(self._came[name], count(before, name), count(now, name), seconds)
            for name in now.queues
        }

    # the stream

    async def read(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Read the stream for ever; started when it is open, or cannot be opened."""
        watcher = Watcher(
            # The ids of events are asked for as they came; and none of them fails the stream.
            self._store.jobs.with_options(codec_options=BARE_CODEC),
            [],
            self,
            max_await=MAX_AWAIT,
            metrics=StreamMetrics(None, LATENCY_BUCKETS),  # nobody asks for them, or for the health
            health=Health(),
            pipeline=queries.pulse_pipeline(),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(watcher.run, must_open=False))
            await self._tried.wait()
            task_status.started()

    # what the stream's listener is told, and asked

    loaded = looks_often = False

    async def until_unloaded(self) -> None:
        pass

    def unheard(self) -> None:
        pass

    def bell(self) -> None:
        pass

    def opened(self) -> None:
        self._stream = "open"
        self._tried.set()

    def broken(self, reason: Reason) -> None:
        self._stream = f"broken ({reason})"
        self._whole = False
        self._tried.set()

    def event(self, event: Mapping[str, Any]) -> None:
        if is_bell(event):  # no job
            return
        if event["operationType"] == "insert":
            self._came[label_of(event.get("queue"))] += 1
        elif event.get("failed"):
            self._failed.append(event["documentKey"]["_id"])

    # failures

    async def _note_dead(self, census: Census) -> None:
        for name, queue in census.queues.items():
            if queue.dead and name != INVALID:
                for found in await self._store.find(queries.latest_dead(name, LATEST)):
                    self._note_failure(found)

    async def _note_failures(self) -> None:
        if self._failed:
            ids = list(self._failed)
            self._failed.clear()
            for found in await self._store.find(queries.failures(ids)):
                self._note_failure(found)

    def _note_failure(self, found: Mapping[str, Any]) -> None:
        at, attempts = found.get("at"), found.get("attempts")
        job_id = id_text(found["_id"])
        self._failures[job_id] = Failure(
            job_id=job_id,
            queue=label_of(found.get("queue")),
            at=at if isinstance(at, datetime) else None,
            attempts=attempts if isinstance(attempts, int) else 0,
            dead=found.get("state") == "dead",
            error=last_line(found.get("last_error")),
        )
        if len(self._failures) > KEPT:
            kept = self._latest(KEPT)
            self._failures = {failure.job_id: failure for failure in kept}

    def _latest(self, limit: int = LATEST) -> tuple[Failure, ...]:
        longest_ago = datetime.min.replace(tzinfo=UTC)
        by_time = sorted(
            self._failures.values(), key=lambda failure: failure.at or longest_ago, reverse=True
        )
        return tuple(by_time[:limit])
