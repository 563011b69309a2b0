"""Jobs that are left to others, because their payload does not fit or their task is not known: let
through by a worker that can run them, and dead when none has come."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from ..clock import monotonic
from ..store.left import AGAIN
from .scheduler import SPREAD, Alarm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..metrics.series import Metrics
    from ..protocol.fitting.kinds import ReaderOf
    from ..store.asynchronous import AsyncStore

SOON = 0.05
"""Seconds after word of one: many come together."""
APART = 1.0
"""Seconds between two looks because of such word."""


class Misfits:
    """Looks for the jobs of these queues that are left to others: when the stream was opened, when
    it says that there is one, and once a minute while there are some.

    Args:
        readers: of each queue, what says for a task what reads the payloads of its jobs.
        grace: seconds for which a misfit is left to others before it is dead.
        let: told when some were let through.

    Attributes:
        looked: set by the first look.
    """

    def __init__(
        self,
        store: AsyncStore,
        readers: Mapping[str, ReaderOf],
        grace: float,
        metrics: Metrics,
        let: Callable[[], None],
    ) -> None:
        self._store = store
        self._queues = list(readers)
        self._readers = readers
        self._grace = grace
        self._metrics = metrics
        self._let = let
        self.looked = anyio.Event()
        self._some = True
        self._looked_at = -math.inf
        self._alarm = Alarm()

    def note(self) -> None:
        """Look soon: there is one."""
        self._some = True
        self._alarm.ring_at(max(monotonic() + SOON, self._looked_at + APART))

    def opened(self) -> None:
        """Look whether there are some: nobody may be left who knew of them."""
        self._some = True
        self._alarm.ring_at(monotonic())

    async def run(self) -> None:
        """Look for ever."""
        what = "Looking for jobs that are left to others"
        await self._alarm.keep(self.run_once, "promote", what, SPREAD)

    async def run_once(self) -> float:
        """Let through what can be run here, and bury what was left for too long; return the seconds
        until the next look."""
        if not self._some:
            return math.inf
        self._some = False  # what is said meanwhile is for the next look
        self._looked_at = monotonic()
        self._store.left.over()
        try:
            with self._metrics.timed("promote"):
                await self._store.prepare()  # the index, if one was left here for the first time
                look = await self._store.look_for_left(self._queues, self._readers, self._grace)
        except BaseException:
            self._some = True
            raise
        self.looked.set()
        if look.let_through:
            self._let()
        self._some = self._some or look.let_through + look.left > 0
        return min(AGAIN, look.next_in) if self._some else math.inf
