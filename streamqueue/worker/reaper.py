"""Returns what dead consumers held. Runs in every process; needs no leader, being idempotent.

It sleeps until the first lease in the collection ends, and looks when the next one does at least
every ``reap_interval``. That look is the one thing here that comes close to polling, and it cannot
be spared: a claim makes no event (each would wake every consumer), nor would that of a job in
another queue, whose last consumer may be the one that died. It reads one entry of an index, of
running jobs alone, so it costs 0.2 reads a second for each process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from ..clock import monotonic
from ..metrics.bundles import ReapResult
from ..store.lines import log_reaped
from .scheduler import Alarm

if TYPE_CHECKING:
    from ..metrics.series import Metrics
    from ..options import WorkerOptions
    from ..protocol.terms import LimitOf
    from ..store.asynchronous import AsyncStore
    from .partition import Partition

SPREAD = 0.25
"""Seconds of jitter after a lease has ended: mostly one process reaps, the others find nothing."""


RESULTS: dict[str, ReapResult] = {name: name for name in get_args(ReapResult)}


class Reaper:
    """Reaps the whole collection: also queues whose last consumer is gone."""

    def __init__(
        self,
        store: AsyncStore,
        limit_of: LimitOf,
        options: WorkerOptions,
        partition: Partition,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._partition = partition
        self._limit_of = limit_of
        self._interval = options.reap_interval
        self._metrics = metrics
        self._alarm = Alarm()

    def look(self) -> None:
        """Look now: events may have been missed."""
        self._alarm.ring_at(monotonic())

    async def run(self) -> None:
        """Reap for ever."""
        await self._alarm.keep(self.run_once, "reap", "Reaping", SPREAD)

    async def run_once(self) -> float:
        """Return expired leases; return the seconds until the next look."""
        with self._metrics.timed("reap"):
            await self._store.prepare()  # the server's time, for the wait of jobs in the metrics
            left = await self._store.seconds_to_expiry(None)
            if left > 0.001:
                return min(left, self._interval)
            holders: set[str] = set()
            reaped = await self._store.reap(None, self._limit_of, holders)
            await self._partition.gone(holders)
            log_reaped(reaped, holders)
            for (queue, result), count in reaped.items():
                self._metrics.reaped(queue, RESULTS[result], count)
            return min(await self._store.seconds_to_expiry(None), self._interval)
