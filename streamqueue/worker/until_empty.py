"""The end of a run that is to end when nothing is left to do: ``worker.run(until="empty")``.

Whenever this process has nothing to do, the documents are counted; the run ends when they show no
job that is ready, due or running. What the other consumers still run is waited for: a change stream
of its own, opened when that is first so, tells of their ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic
from ..outage import LoggedOutage
from ..protocol import operations
from ..stream.async_ends import AsyncEndStream
from ..stream.verdict import OPEN_SECONDS, READ_ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from .claimer import Claimer
    from .completer import Completer
    from .slots import Slots

logger = plain.logger("streamqueue.worker")

AGAIN = Backoff(initial=0.2, maximum=5, factor=2, jitter=0.5)
"""The pause after counts that failed in a row."""
BETWEEN = 0.02
"""Seconds between two counts: others may end thousands of jobs a second."""
TICK_PAUSE, TICK_PATIENCE = 0.1, 5.0
"""Seconds between two looks at a tick that is due, which may be taken without putting a job; and
how long it is waited for: a schedule that cannot fire must not keep the worker."""


class Remaining(NamedTuple):
    """What is left in the queues of a worker that ended because there was nothing to do.

    Attributes:
        scheduled: jobs that are to run later: delayed ones, and retries after their backoff.
        waiting: jobs that wait for another one: a parent, or the running one of their key.
        paused: ready jobs of paused queues.
    """

    scheduled: int
    waiting: int
    paused: int


class UntilEmpty:
    """Sees when there is nothing left to do for a worker.

    Args:
        max_await: seconds one read of its stream may stay silent.
        begun: each set once a part of the worker has done what it does at its beginning, such as to
            store its schedules, before which it is not over.
        then: told when it is so, of what else there is; it has to stop the worker.
        make_due: asked when some of the jobs are to run later, and this process has nothing to do,
            with the queues; returns whether it has made some due. None leaves them.
    """

    def __init__(
        self,
        store: AsyncStore,
        settings: PresentSettings,
        claimer: Claimer,
        slots: Slots,
        completer: Completer,
        *,
        max_await: float,
        begun: Sequence[anyio.Event],
        then: Callable[[Remaining], None],
        make_due: Callable[[Sequence[str]], Awaitable[bool]] | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._claimer = claimer
        self._slots = slots
        self._completer = completer
        self._max_await = max_await
        self._begun = begun
        self._then = then
        self._make_due = make_due
        self._remaining = Remaining(0, 0, 0)
        self._later = 0
        self._ticks_since: float | None = None
        self._changed = anyio.Event()
        self._outage = LoggedOutage(logger, "empty", "Counting what is left")
        claimer.on_idle = slots.on_none_held = completer.on_all_through = self.look

    def look(self) -> None:
        """Count, if this process has nothing to do: something has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Say when nothing is left to do, and return."""
        for begun in self._begun:
            await begun.wait()
        async with anyio.create_task_group() as hearing:
            await self._until_empty(lambda: hearing.start_soon(self._hear))
            remaining = self._remaining
            logger.info(
                "Nothing is left to do: %d jobs are scheduled, %d wait for others, %d are in "
                "paused queues",
                *remaining,
                extra={"event": "worker_empty", "count": sum(remaining)},
            )
            self._then(remaining)
            hearing.cancel_scope.cancel()

    async def _until_empty(self, hear: Callable[[], object]) -> None:
        failures, hears = 0, False
        while True:
            if not self._idle:
                await self._until_changed()
                continue
            self._changed = anyio.Event()  # before the count: what changes meanwhile is for another
            try:
                left = await self._count()
                if await self._made_due():
                    continue
                ticks = not left and await self._awaits_ticks()
            except READ_ERRORS as error:
                self._outage.failed(error, "What is left could not be counted: %s")
                failures += 1
                await anyio.sleep(AGAIN.delay(failures))
                continue
            failures = 0
            self._outage.succeeded()
            if not (left or ticks) and self._idle:
                return
            if left and not hears:
                hears = True
                logger.info(
                    "Waiting for %d jobs that are held back or run elsewhere",
                    left,
                    extra={"event": "worker_waits_for_others", "count": left},
                )
                hear()
            with anyio.move_on_after(TICK_PAUSE if ticks else None):
                await self._until_changed()
            await anyio.sleep(BETWEEN)

    @property
    def _idle(self) -> bool:
        busy = self._slots.held or self._completer.lets_through
        return self._claimer.idle and not busy

    async def _until_changed(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    async def _count(self) -> int:
        """Return how many jobs are to be done; note what else there is."""
        queues, paused = self._settings.open_queues(), sorted(self._settings.paused)
        pipeline = operations.left_in(queues, paused, self._store.jobs.name)
        found = operations.read_left(await self._store.aggregate(pipeline))
        due, ready = found[operations.DUE], found[operations.READY]
        self._later = found[operations.SCHEDULED] - due
        self._remaining = Remaining(
            found[operations.SCHEDULED], found[operations.WAITING], found[operations.PAUSED]
        )
        # What the server refuses to have changed stays as it is: nobody can do it.
        due = max(0, due - len(self._store.unpromotable))
        ready = max(0, ready - len(self._store.unclaimable))
        return due + ready + found[operations.RUNNING]

    async def _awaits_ticks(self) -> bool:
        """Return whether a schedule is due that puts jobs into these queues, and may still fire."""
        rows: list[dict[str, Any]] = []
        if not self._store.settings_refused:
            rows = await self._store.read_settings(operations.schedules_late())
        open_queues = self._settings.open_queues()
        if not any(_is_due(row) and row.get("queue") in open_queues for row in rows):
            self._ticks_since = None
            return False
        if self._ticks_since is None:
            self._ticks_since = monotonic()
        return monotonic() - self._ticks_since < TICK_PATIENCE

    async def _made_due(self) -> bool:
        return (
            self._make_due is not None
            and self._later > 0
            and self._idle
            and await self._make_due(self._settings.open_queues())
        )

    async def _hear(self) -> None:
        """Look whenever a job of anybody's has ended, for ever."""
        stream = AsyncEndStream(self._store.jobs, lambda: None)
        try:
            while True:
                if not stream.open_now:
                    await anyio.sleep(max(0.0, stream.pace.again_at - monotonic()))
                    await stream.open(operations.ends_of_attempts(), None, OPEN_SECONDS)
                    self.look()  # of what has ended before that no event tells
                elif await stream.read(self._max_await):
                    self.look()
                await checkpoint_if_cancelled()
        finally:
            with CancelScope(shield=True):
                await stream.shut()


def _is_due(schedule: Mapping[str, Any]) -> bool:
    """Whether a tick is late by more than it may be spread."""
    late, spread = schedule.get("late"), schedule.get("spread")
    allowed = 1000 * spread if isinstance(spread, (int, float)) else 0
    return isinstance(late, int) and late > allowed and not schedule.get("paused")
