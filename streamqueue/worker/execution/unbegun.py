"""Claimed jobs whose handlers have not been called: they wait for a slot, or for the event loop.

With many of them a turn of the event loop begins only some. One that waits for a slot longer than
was thought goes back, for others to run.
"""

from __future__ import annotations

import contextvars
from collections import deque
from typing import TYPE_CHECKING

from anyio import CancelScope

from ...clock import monotonic
from ...metrics.series import AttemptOutcome
from ...store.given_up import GivenUp
from .tasks import call_soon

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextvars import Context

    from ...store.asynchronous import AsyncStore
    from ..leases import Leases
    from ..slots import Slots
    from .attempt import Attempt

TURN_SECONDS = 0.005
"""How long one turn of the event loop should take while attempts are begun: more of them are begun
in the next one after a shorter turn, and fewer after a longer one."""
MOST_AT_ONCE = 128
MOST_SECONDS = 0.25
"""How long a job that was claimed ahead waits for its handler to be called, before others may have
it: looked at twice a second."""


class Unbegun:
    """The attempts whose handlers have not been called, in the order of their claims.

    Args:
        begin: calls the handler of one.
    """

    def __init__(
        self, store: AsyncStore, leases: Leases, slots: Slots, begin: Callable[[Attempt], None]
    ) -> None:
        self._store = store
        self._leases = leases
        self._slots = slots
        self._begin = begin
        self._context = contextvars.copy_context()
        self._waiting: deque[Attempt] = deque()
        self._at_once = MOST_AT_ONCE
        self._turn_at: float | None = None  # while attempts are being begun
        self._closed = False

    def open(self, context: Context) -> None:
        """Begin attempts from now on, in this context."""
        self._context = context

    def close(self) -> None:
        """Begin no more of them."""
        self._closed = True

    def add(self, attempt: Attempt) -> None:
        """Begin an attempt once there is a slot for it, and the event loop has time."""
        alone = self._turn_at is None and not (self._waiting or self._closed)
        if alone and self._slots.startable > 0 and _may_start(attempt):
            self._begin(attempt)  # at once: a lone job waits for no turn of the event loop
        else:
            self._waiting.append(attempt)
        self._begin_soon()

    def slot_came_free(self) -> None:
        """Begin another."""
        if self._waiting:
            self._begin_soon()

    def _begin_soon(self) -> None:
        if self._turn_at is None and self._slots.startable > 0:
            self._turn_at = monotonic()
            call_soon(self._begin_some, self._context)

    def _begin_some(self) -> None:
        """Begin as many attempts as there are slots and one turn of the loop has time for."""
        now = monotonic()
        if self._turn_at is not None and now - self._turn_at > TURN_SECONDS:
            self._at_once = max(1, self._at_once // 2)
        else:
            self._at_once = min(MOST_AT_ONCE, self._at_once * 2)
        self._turn_at = now
        for _ in range(min(self._at_once, len(self._waiting), self._slots.startable)):
            if self._closed:
                return
            shared = self._waiting[0].registered.share is not None
            attempt = self._next() if shared else self._waiting.popleft()
            if attempt is None:
                self._turn_at = None  # those that wait are of queues that have their slots
                return
            self._begin(attempt)
        if self._waiting and self._slots.startable > 0:
            call_soon(self._begin_some, self._context)
        else:
            self._turn_at = None

    def _next(self) -> Attempt | None:
        """Take out the first one that may start."""
        for place, attempt in enumerate(self._waiting):
            if _may_start(attempt):
                del self._waiting[place]
                return attempt
        return None

    async def give_back_overdue(self) -> None:
        """Release those that have waited too long for a slot, with all that came after them."""
        if self._waiting and monotonic() - self._waiting[0].claimed_at >= MOST_SECONDS:
            # But for the first ones, which wait for the event loop alone.
            first = self._slots.startable if _may_start(self._waiting[0]) else 0
            await self._give_back(self._from(max(0, first)))

    async def give_back(self, others: Sequence[Attempt] = ()) -> int:
        """Release all of them, and others that have no slot; return how many that were."""
        return await self._give_back([*others, *self._from(0)])

    async def give_back_of(self, queues: Collection[str], others: Sequence[Attempt] = ()) -> int:
        """Release those of some queues, and others; return how many that were."""
        ours = [attempt for attempt in self._waiting if attempt.record.queue in queues]
        if ours:
            self._waiting = deque(
                attempt for attempt in self._waiting if attempt.record.queue not in queues
            )
        return await self._give_back([*others, *ours])

    def _from(self, place: int) -> list[Attempt]:
        """Take those out that come in this place or later."""
        return [self._waiting.pop() for _ in range(len(self._waiting) - place)]

    async def _give_back(self, attempts: Sequence[Attempt]) -> int:
        if not attempts:
            return 0
        self._slots.given_back(len(attempts))
        now = monotonic()
        for attempt in attempts:
            attempt.ending = True
            if attempt.deadline <= now:
                self._leases.lose(attempt)
        ours = [attempt for attempt in attempts if not attempt.lost]
        self._leases.forget(ours)
        with CancelScope(shield=True):
            pairs = [(attempt.record.id, attempt.record.token) for attempt in ours]
            await self._store.untake(GivenUp.of(pairs))  # tried again until it is certain
        for attempt in ours:
            attempt.outcome = AttemptOutcome.RELEASED
        for attempt in attempts:
            attempt.registered.metrics.outcome[attempt.result()].inc()
            self._leases.remove(attempt)
            if attempt.registered.share is not None:
                attempt.registered.share.given_back()
            del attempt.job  # as when one is settled
        self._slots.nudge()
        return len(ours)


def _may_start(attempt: Attempt) -> bool:
    share = attempt.registered.share
    return share is None or share.may_start
