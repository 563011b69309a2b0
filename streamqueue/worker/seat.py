"""A process that is dealt jobs, as its dealer sees it: what it can take, and what it owes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bson import ObjectId

    from .feed import Feed

AGAIN_AFTER = 0.05
"""Seconds a process may take to deal with an event: many times what a claim takes."""
DEALT_FOR = 1.0
"""Seconds it may take to claim the waiting jobs it asked for; there may be hundreds of them."""


class Seat:
    """A process at the dealer's table.

    Args:
        free: how many jobs it could claim when it came.
        owing: called whenever it is dealt something that it has to deal with.

    Attributes:
        feed: the way to it.
        consumer: its name.
        asked: how many waiting jobs it has asked for and not been answered; 0 is none.
    """

    def __init__(self, feed: Feed, consumer: str, free: int, owing: Callable[[], None]) -> None:
        self.feed = feed
        self.consumer = consumer
        self._owing = owing
        self.asked = 0
        self._free = free
        self._sent = self._done = self._excused = 0
        self._announced = 0  # what `_sent` was with the last event
        self._sent_at = math.inf
        self._dealt: set[ObjectId] = set()
        self._dealt_at = math.inf

    @property
    def free(self) -> int:
        """How many jobs it could claim now; none while it has asked, or is late."""
        if self.asked or self._done < self._excused:
            return 0
        return self._free - (self._sent - self._done)

    @property
    def owes_jobs(self) -> bool:
        """Whether it was dealt jobs, announced or waiting ones, that it may not have claimed."""
        return self._announced > self._done or bool(self._dealt)

    @property
    def _owes_events(self) -> bool:
        return self._sent > max(self._done, self._excused)

    @property
    def owes(self) -> bool:
        """Whether it has been dealt something that it has not dealt with yet."""
        return self._owes_events or bool(self._dealt)

    @property
    def late(self) -> bool:
        """Whether it should have, long ago: it stands still, or cannot reach the server."""
        now = monotonic()
        events_late = self._owes_events and now - self._sent_at > AGAIN_AFTER
        return events_late or (bool(self._dealt) and now - self._dealt_at > DEALT_FOR)

    @property
    def dealt(self) -> set[ObjectId]:
        """The ids of waiting jobs that it is about to claim."""
        return self._dealt

    def announce(self, event: Mapping[str, Any]) -> None:
        """Deal it an event."""
        self._tell({"event": event})
        self._announced = self._sent

    def look(self, *, everything: bool = False) -> None:
        """Have it ask for what waits; `everything`: and look for all there may be to do."""
        self._tell({"look": "everything" if everything else "waiting"})

    def _tell(self, frame: Mapping[str, Any]) -> None:
        if not self._owes_events:
            self._sent_at = monotonic()
        self._sent += 1
        self.feed.send(frame)
        self._owing()

    def answer(self, jobs: Sequence[Mapping[str, Any]], *, more: bool) -> None:
        """Deal it waiting jobs; `more`: there are others."""
        self.asked = 0
        self._free -= len(jobs)
        self._dealt = {job["_id"] for job in jobs}
        self._dealt_at = monotonic()
        self.feed.send({"jobs": list(jobs), "more": more})
        if jobs:
            self._owing()

    def settled(self, done: int, free: int | None = None) -> None:
        """It has dealt with so many events in all, and with every waiting job."""
        self._dealt = set()
        if done != self._done:
            self._done = done
            self._sent_at = monotonic()
        if free is not None:
            self._free = free

    def excuse(self) -> None:
        """Others were told to look; nothing more is dealt to it until it has answered."""
        self._excused = self._sent
        self._dealt = set()
