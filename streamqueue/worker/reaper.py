"""Returns what dead consumers held. Runs in every process; needs no leader, being idempotent.

It does not poll either: activity arms it. Whoever sees a job become ready knows that somebody will
hold it, and looks within ``reap_interval`` when the first lease ends; then it sleeps until that
moment. When nothing is running it is not armed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..clock import monotonic
from ..store import log_reaped
from .timers import Alarm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..async_store import AsyncStore
    from ..metrics import Metrics
    from .handler import RegisteredHandler
    from .peers import Peers

SPREAD = 0.25
"""Seconds of jitter after a lease has ended: mostly one process reaps, the others find nothing."""


class Reaper:
    """Reaps the whole collection: also queues whose last consumer is gone."""

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredHandler],
        max_attempts: int,
        interval: float,
        peers: Peers,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._peers = peers
        self._handlers = handlers
        self._max_attempts = max_attempts
        self._interval = interval
        self._metrics = metrics
        self._alarm = Alarm()

    def activity(self) -> None:
        """Somebody holds, or is about to hold, a job."""
        self._alarm.ring_at(monotonic() + self._interval)

    def look(self) -> None:
        """Look now: events may have been missed."""
        self._alarm.ring_at(monotonic())

    async def run(self) -> None:
        """Reap for ever."""
        await self._alarm.keep(self.run_once, "reap", "Reaping", SPREAD)

    def _limit_of(self, queue: str) -> int:
        """Return the attempts of a job that does not say."""
        registered = self._handlers.get(queue)
        return self._max_attempts if registered is None else registered.handler.max_attempts

    async def run_once(self) -> float:
        """Return expired leases; return the seconds until the next one ends."""
        with self._metrics.timed("reap"):
            await self._store.prepare()  # the server's time, for the wait of jobs in the metrics
            left = await self._store.seconds_to_expiry(None)
            if left > 0.001:
                return left
            holders: set[str] = set()
            reaped = await self._store.reap(None, self._limit_of, holders)
            await self._peers.gone(holders)
            log_reaped(reaped, holders)
            for (queue, result), count in reaped.items():
                self._metrics.reaped(queue, "dead" if result == "dead" else "requeued", count)
            return await self._store.seconds_to_expiry(None)
