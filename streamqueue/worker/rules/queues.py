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

from ... import plain
from ...backoff import Backoff
from ...clock import LONGEST_SLEEP, monotonic
from ...errors import ConfigurationError
from ...outage import LoggedOutage
from ...store.flows.ruled import Chosen
from ...store.lines import log_rules_refused
from ...stream.verdict import READ_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ...store.asynchronous import AsyncStore
    from ..slots import Slots

logger = plain.logger("streamqueue.claimer")

AGAIN = Backoff(initial=0.2, maximum=2, factor=2, jitter=0.5)
"""The pause after looks that failed in a row."""
GRACE = 0.02
"""Seconds within which this process takes the place of a job of its own that has ended, or tells
the others."""
CHOSEN_GRACE = 0.25
"""The same where jobs were chosen for the places: their claim is on its way, or will not be sent,
for the slots of the process went to other queues."""


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
        self._held_back: set[str] = set()  # those in which something is
        self._starts_at: dict[str, float] = {}  # when more may start of them, by a rate
        self._look_at = math.inf  # when to look at them in any case
        self._unsaid: dict[str, float] = {}  # when to tell of room, where there may be some
        self._refused: set[str] = set()  # queues whose rules cannot be kept
        self._looking = LoggedOutage(logger, "scan", "Looking at what is held back")
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
        if queue in self._unsaid:
            self._unsaid[queue] = monotonic() + CHOSEN_GRACE
        self._starts_at.pop(queue, None)
        self._held_back.discard(queue)
        try:
            chosen = await self._store.choose(queue, most)
        except ConfigurationError as error:  # the other queues go on
            if queue not in self._refused:
                self._refused.add(queue)
                log_rules_refused(queue, error)
            chosen = Chosen([], held_back=True)
        else:
            self._refused.discard(queue)
        self._note_room(queue, chosen, most)
        if chosen.held_back:
            self._held_back.add(queue)
            self._look_at = min(self._look_at, monotonic() + self._timeout)
            if chosen.again_at < math.inf:  # it may be at once: another rate is to be asked for
                self._starts_at[queue] = chosen.again_at
            self._changed.set()
        return chosen.jobs

    def _note_room(self, queue: str, chosen: Chosen, most: int) -> None:
        """See to it that others are told of the places that those chosen will not take."""
        ruled = self._store.ruled.get(queue)
        if ruled is None or queue not in self._unsaid:
            return
        if len(chosen.jobs) < most:  # others could start no more either
            ruled.room = min(ruled.room, len(chosen.jobs))
        if ruled.room > len(chosen.jobs):
            self._unsaid[queue] = monotonic() + GRACE
            self._changed.set()

    def give_up(self, queue: str) -> None:
        """Read anew what runs in a queue: jobs were chosen that are not claimed."""
        if queue in self._store.ruled:
            self._store.ruled[queue].forget()

    def ended(self, queue: str, slots: Sequence[str]) -> None:
        """Have the place of a job of ours taken that has ended, and had these slots; none, if there
        were no rules when it was claimed."""
        if not self._store.makes_room(queue, slots):
            return
        ruled = self._store.ruled.get(queue)
        if ruled is not None:
            ruled.ended(slots)
            ruled.room += 1
        say_at = monotonic() + GRACE
        self._unsaid[queue] = min(say_at, self._unsaid.get(queue, say_at))
        self._changed.set()
        self.on_room(queue)

    def look(self) -> None:
        """Look again wherever something is held back: somebody else may have made room."""
        if self._held_back:
            self._look_at = -math.inf
            self._changed.set()

    async def run(self) -> None:
        """Tell others of room that is not taken here, and look now and then, for ever."""
        failures = 0
        while True:
            waits = self._unsaid.values()
            look_at = self._look_at if self._held_back else math.inf
            left = min([*waits, *self._starts_at.values()], default=look_at) - monotonic()
            self._changed = anyio.Event()
            with anyio.move_on_after(min(max(left, 0), look_at - monotonic(), LONGEST_SLEEP)):
                await self._changed.wait()
            await self.say_room(until=monotonic())
            for queue, at in list(self._starts_at.items()):
                if at <= monotonic():
                    del self._starts_at[queue]
                    self.on_room(queue)
            if self._held_back and self._look_at <= monotonic():
                self._look_at = monotonic() + self._timeout
                try:
                    await self._look()
                except READ_ERRORS as error:
                    failures += 1
                    self._looking.failed(error, "Looking at what is held back failed: %s")
                    self._look_at = monotonic() + AGAIN.delay(failures)
                else:
                    failures = 0
                    self._looking.succeeded()

    async def _look(self) -> None:
        free = [queue for queue in self._held_back if queue not in self._store.ruled]
        for queue in free:  # their rules were taken away
            self._held_back.discard(queue)
            self.on_room(queue)
        queues = list(self._held_back)
        if len(queues) > 1:  # one is looked at as soon as it is asked whether to
            queues = await self._store.with_room(queues)
        for queue in queues:
            self.on_room(queue)

    async def say_room(self, *, until: float = math.inf) -> None:
        """Tell others of room that is not taken here, where it is time to by then."""
        room = 0
        for queue in [queue for queue, at in self._unsaid.items() if at <= until]:
            del self._unsaid[queue]
            ruled = self._store.ruled.get(queue)
            if ruled is not None:
                room, ruled.room = room + ruled.room, 0
        if room:
            await self._store.say_room()
