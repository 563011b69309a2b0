"""Queues with rules, in a worker: what may start is chosen from the documents, and whoever makes
room for others lets them know.

Of such a queue nothing is taken from what was announced, or handed out, or read ahead: which of its
jobs may start depends on what runs everywhere. While all that waits is held back nobody looks,
until a job of ours has ended, an event tells of one that came back, or the bell rings, which
whoever ends a job rings unless it takes the next one itself. Once in the time of a lease a look
makes good what somebody did not come to say who was killed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio

from ...clock import LONGEST_SLEEP, monotonic
from ...errors import ConfigurationError
from ...store.flows.ruled import Chosen
from ...store.lines import log_rules_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ...store.asynchronous import AsyncStore
    from ..slots import Slots

GRACE = 0.02
"""Seconds within which this process takes the place of a job of its own that has ended, or tells
the others."""


class RuledQueues:
    """Those queues of a worker that have rules, as far as is known.

    Args:
        slots: of the process: nothing is claimed for those that are about to be free.
        timeout: of a lease, in seconds.

    Attributes:
        on_room: called with a queue of which more may be chosen than was.
    """

    def __init__(self, store: AsyncStore, slots: Slots, timeout: float) -> None:
        self._store = store
        self._slots = slots
        self._timeout = timeout
        self._look_at: dict[str, float] = {}  # of those in which something is held back
        self._unsaid: dict[str, float] = {}  # of those in which there is room, since when
        self._refused: set[str] = set()  # queues whose rules cannot be kept
        self._changed = anyio.Event()
        self.on_room: Callable[[str], object] = lambda _queue: None

    def __contains__(self, queue: object) -> bool:
        return queue in self._store.ruled

    def __bool__(self) -> bool:
        return bool(self._store.ruled)

    def among(self, queues: Collection[str]) -> list[str]:
        """Return those of the queues that have rules."""
        ruled = self._store.ruled
        return [queue for queue in queues if queue in ruled] if ruled else []

    async def choose(self, queue: str, most: int) -> Sequence[Mapping[str, Any]] | None:
        """Return up to so many jobs that may be claimed now, with their slots; None with no slot of
        the process free, for nothing is claimed ahead."""
        most = min(most, self._slots.free)
        if most < 1:
            return None
        self._unsaid.pop(queue, None)
        self._look_at.pop(queue, None)
        try:
            chosen = await self._store.choose(queue, most)
        except ConfigurationError as error:  # the other queues go on
            if queue not in self._refused:
                self._refused.add(queue)
                log_rules_refused(queue, error)
            chosen = Chosen([], held_back=True)
        else:
            self._refused.discard(queue)
        if chosen.held_back:
            self._look_at[queue] = min(monotonic() + self._timeout, chosen.again_at)
            self._changed.set()
        return chosen.jobs

    def give_up(self, queue: str) -> None:
        """Read anew what runs in a queue: jobs were chosen that are not claimed."""
        if queue in self._store.ruled:
            self._store.ruled[queue].forget()

    def ended(self, queue: str, slots: Sequence[str]) -> None:
        """Have the place of a job of ours taken that has ended, and had these slots."""
        if queue in self._store.ruled:
            self._store.ruled[queue].give_back(slots)
        self._unsaid.setdefault(queue, monotonic())
        self._changed.set()
        self.on_room(queue)

    def look(self) -> None:
        """Look again wherever something is held back: somebody else may have made room."""
        for queue in list(self._look_at):
            self.on_room(queue)

    async def run(self) -> None:
        """Tell others of room that is not taken here, and look now and then, for ever."""
        while True:
            waits = [said + GRACE for said in self._unsaid.values()]
            left = min([*waits, *self._look_at.values()], default=math.inf) - monotonic()
            self._changed = anyio.Event()
            with anyio.move_on_after(min(max(left, 0), LONGEST_SLEEP)):
                await self._changed.wait()
            await self.say_room(since=monotonic() - GRACE)
            for queue, at in list(self._look_at.items()):
                if at <= monotonic():
                    self._look_at[queue] = monotonic() + self._timeout
                    self.on_room(queue)

    async def say_room(self, *, since: float = math.inf) -> None:
        """Tell others of room that is not taken here; of what was there at that time."""
        unsaid = [queue for queue, at in self._unsaid.items() if at <= since]
        for queue in unsaid:
            del self._unsaid[queue]
        if unsaid:
            await self._store.say_room()
