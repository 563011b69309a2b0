"""How many handlers may run, and how many jobs may be held: what the claimer may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from ..clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_AHEAD = 300
"""Jobs claimed beyond the free slots at the most: they are held here, and others go without."""
AHEAD_SECONDS = 0.2
"""How long a job that was claimed ahead should wait for a slot at the most, also when claims take
longer: after a little more it is given back (``execution.executor``)."""
ROUNDS = 3
"""For so many claims one after the other there should be jobs: while the handlers of one run, the
next is on its way, and its answer may come late. (With 2, no-op handlers waited a tenth of the time
at a concurrency of 100, and a quarter at 20.)"""
SMOOTH = 0.7
"""What a measured rate of handlers is worth at the next claim."""


class Slots:
    """Counts handlers that run and jobs that are held.

    A slot is free as soon as its handler is over, while the final write is still on its way; so a
    process holds at most twice as many jobs as it has places for, and claims overlap with
    completes.

    While handlers return quickly, jobs are also claimed *ahead*, for slots that will be free by the
    time the claim is answered; else all of them would stand empty that long, again and again.

    Attributes:
        on_none_held: called when the last of the held jobs has had its final write, if somebody
            waits for that.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._running = 0
        self._held = 0
        self._unstarted = 0
        self._ahead = 0
        self._rate = 0.0  # at which handlers come to their end
        self._over = 0  # handlers, since the last claim was answered
        self._answered_at = 0.0
        self._changed = anyio.Event()
        self.on_none_held: Callable[[], None] | None = None

    @property
    def free(self) -> int:
        """How many handlers could start now, and have no job."""
        return self.concurrency - self._running - self._unstarted

    @property
    def wanted(self) -> int:
        """How many jobs to claim now: zero while claimed ones wait to be begun, and less than half
        of the places want one."""
        places = self.concurrency + self._ahead
        count = min(places - self._running - self._unstarted, 2 * places - self._held)
        if self._unstarted and 2 * count < places:
            return 0  # handlers that return at once leave more in a moment: one claim for all
        return max(0, count)

    @property
    def ahead(self) -> int:
        """How many jobs may be claimed beyond the slots."""
        return self._ahead

    @property
    def startable(self) -> int:
        """How many of the claimed jobs may have their handler called."""
        return self.concurrency - self._running

    @property
    def unstarted(self) -> int:
        """How many of the claimed jobs wait for their handler to be called."""
        return self._unstarted

    @property
    def held(self) -> int:
        """How many jobs have not had their final write yet."""
        return self._held

    def answered(self, seconds: float) -> None:
        """A claim took so many seconds: the next is ahead by what comes to its end meanwhile."""
        now = monotonic()
        since = max(now - self._answered_at, seconds, 1e-3)
        # A burst counts for a few claims more, for the ends of handlers come in bursts.
        self._rate = max(self._over / since, SMOOTH * self._rate)
        over = int(self._rate * min(seconds, AHEAD_SECONDS))
        most = min(MOST_AHEAD, int(self._rate * AHEAD_SECONDS))
        self._ahead = min(most, max(over, ROUNDS * over - self.concurrency))
        self._over = 0
        self._answered_at = now

    def take(self) -> None:
        """A job is claimed: its handler is to start."""
        self._held += 1
        self._unstarted += 1

    def handler_starts(self) -> None:
        """Its handler is called."""
        self._running += 1
        self._unstarted -= 1
        if not self._unstarted:
            self._changed.set()

    def handler_waits(self) -> None:
        """Its handler was not called after all: the job waits for a slot again."""
        self._running -= 1
        self._unstarted += 1

    def handler_over(self) -> None:
        """Its handler is over: another may start."""
        self._running -= 1
        self._over += 1
        self._changed.set()

    def ended(self) -> None:
        """Its final write is done."""
        self._held -= 1
        self._changed.set()
        self._say_none_held()

    def given_back(self, count: int) -> None:
        """So many jobs were given back whose handlers were not called: those that run take long."""
        self._held -= count
        self._unstarted -= count
        self.idle()
        self._changed.set()
        self._say_none_held()

    def _say_none_held(self) -> None:
        if self.on_none_held is not None and not self._held:
            self.on_none_held()

    def idle(self) -> None:
        """Nothing waits: how quick the next handlers are is not known."""
        self._ahead = self._over = 0
        self._rate = 0.0

    def nudge(self) -> None:
        """Make :meth:`wait_for_change` return."""
        self._changed.set()

    async def wait_for_change(self) -> None:
        """Return when a handler or a job has ended since the last call, or at a nudge."""
        await self._changed.wait()
        self._changed = anyio.Event()
