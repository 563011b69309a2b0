"""What each queue of a process holds of its slots, where several share them or one may not have
all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .fairness import EXACT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..slots import Slots

LAST_ENDS = 100
"""Handlers, about: which queues' were the last to come to their ends says whose will be next."""


class Shares:
    """The slots that the queues of a process hold.

    A slot is held from when a job is claimed until its handler is over, as of :class:`Slots`.

    Args:
        most: the slots of each queue that may not have all. Nothing is claimed ahead for those.

    Attributes:
        held: how many slots each queue holds, of those that hold any.
        due: how many it is due, if it is not the only one with work, as far as is known.
        on_room: called whenever a queue may have a slot again, after it could have none.
    """

    def __init__(self, slots: Slots, most: Mapping[str, int]) -> None:
        self._slots = slots
        self._most = most
        self.held: dict[str, int] = {}
        self.due: Mapping[str, float] = {}
        self.on_room: Callable[[], object] = lambda: None
        self._ended: dict[str, int] = {}

    def share(self, queue: str) -> Share:
        """Return the share of a queue."""
        return Share(self, queue, self._most.get(queue))

    @property
    def room(self) -> Mapping[str, int]:
        """How many jobs could be claimed of each queue that may not have all slots."""
        return {queue: most - self.held.get(queue, 0) for queue, most in self._most.items()}

    @property
    def ahead(self) -> Mapping[str, int]:
        """How many jobs of each queue may be claimed for slots that are about to be free.

        They are those of the queues whose handlers return quickly: those of others would wait for
        slots that are not theirs.
        """
        ahead = self._slots.ahead
        ended = sum(self._ended.values()) if ahead else 0
        if not ended:
            return {}
        return {
            queue: ahead * count // ended
            for queue, count in self._ended.items()
            if ahead * count >= ended and queue not in self._most
        }

    def took(self, queue: str) -> None:
        """A job of a queue was claimed."""
        self.held[queue] = self.held.get(queue, 0) + 1

    def over(self, queue: str) -> None:
        """Its handler is over."""
        ended = self._ended[queue] = self._ended.get(queue, 0) + 1
        if ended >= LAST_ENDS:
            self._ended = {each: count // 2 for each, count in self._ended.items() if count > 1}
        self.given_back(queue)

    def given_back(self, queue: str) -> None:
        """Its handler will not be called."""
        left = self.held[queue] - 1
        if left:
            self.held[queue] = left
        else:
            del self.held[queue]


class Share:
    """The slots that the jobs of one queue hold.

    Args:
        most: how many it may have, if those are not all.
    """

    def __init__(self, shares: Shares, queue: str, most: int | None) -> None:
        self._shares = shares
        self._queue = queue
        self._most = math.inf if most is None else most
        self._running = 0

    @property
    def room(self) -> float:
        """How many of its jobs could be claimed now, with slots free."""
        return self._most - self._shares.held.get(self._queue, 0)

    @property
    def may_start(self) -> bool:
        """Whether another of its claimed jobs may start.

        What was claimed ahead is for slots of its own: those of others are not lent to it, for its
        next jobs may take as long as they like.
        """
        due = self._shares.due.get(self._queue)
        return due is None or self._running < math.ceil(due - EXACT)

    def take(self) -> None:
        """A job of the queue is claimed."""
        self._shares.took(self._queue)

    def start(self) -> None:
        """Its handler is called."""
        self._running += 1

    def waits(self) -> None:
        """It was not called after all."""
        self._running -= 1

    def over(self) -> None:
        """Its handler is over."""
        self._running -= 1
        full = self.room < 1
        self._shares.over(self._queue)
        if full:
            self._shares.on_room()

    def given_back(self) -> None:
        """Its handler will not be called."""
        full = self.room < 1
        self._shares.given_back(self._queue)
        if full:
            self._shares.on_room()
