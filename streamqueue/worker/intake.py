"""When whoever takes in jobs looks for them: shared by the claimer and the dispatcher.

Both leave a job to the consumer whose turn it is (``partition``) and look again when that one has
had its chance; both try refused jobs again after a while; and both let the change stream wait while
they know of more than they can take.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio

from ..backoff import Backoff
from ..clock import LONGEST_SLEEP, monotonic
from .partition import turn_over

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..metrics.series import ClaimTrigger
    from ..store.asynchronous import AsyncStore
    from .backlog import Backlog
    from .partition import Partition

AFTER_FAILURE = Backoff(initial=0.2, maximum=5, factor=2, jitter=0.5)
"""The pause after claims, or reads of what waits, that failed in a row."""


class Intake:
    """The wake-ups, turns and pauses of a consumer or a dispatcher.

    Args:
        backlog: is told when it is our turn at what was left to others.
    """

    def __init__(self, store: AsyncStore, partition: Partition, backlog: Backlog) -> None:
        self._refused, self._left_out = store.unclaimable, store.left
        self._partition = partition
        self._backlog = backlog
        self._woken = anyio.Event()
        self._unloaded = anyio.Event()
        self._turn_at = math.inf  # when to look for what was left to others

    @property
    def awaits_turn(self) -> bool:
        """Whether a job was left to others and is to be looked for later."""
        return math.isfinite(self._turn_at)

    async def until_unloaded(self) -> None:
        """Return when an event is of use again: at the next :meth:`unloaded`."""
        self._unloaded = anyio.Event()
        await self._unloaded.wait()

    def unloaded(self) -> None:
        """Let events come: what was known is taken."""
        self._unloaded.set()

    def turn(self, job: Mapping[str, Any]) -> int:
        """Return how many others come first for a job that has just become ready."""
        self._partition.job_came()
        return self._partition.turn(job)

    def wait_for_turn(self, turn: int) -> None:
        """Look for what was left to others when so many of them have had their chance."""
        at = turn_over(turn)
        if at < self._turn_at:
            self._turn_at = at
            self._woken.set()

    def wait_for_lanes(self) -> None:
        """Wait for our turn, if something was left to others when lanes were read."""
        if self._backlog.lanes_left:
            self._backlog.lanes_left = False
            self.wait_for_turn(1)

    def wake(self) -> None:
        """Make :meth:`wait` return."""
        self._woken.set()

    async def until_woken(self) -> None:
        """Wait for the next :meth:`wake`."""
        await self._woken.wait()
        self._woken = anyio.Event()

    async def wait(self, *, refused_too: bool) -> ClaimTrigger | None:
        """Wait for a wake-up, for our turn at what was left to others or, with `refused_too`, for
        the time to try refused jobs again; return why the documents are to be read, or None."""
        left = self._turn_at - monotonic()
        if refused_too:
            left = min(left, self._refused.wait())
        left = min(left, self._left_out.wait())
        with anyio.move_on_after(min(left, LONGEST_SLEEP)):
            await self.until_woken()
        if self._turn_at <= monotonic():
            self._turn_at = math.inf
            self._backlog.turn_came()
            return "stream"
        if self._left_out and not self._left_out.wait():
            self._left_out.over()
            return "scan"
        return "scan" if refused_too and not self._refused.wait() else None
