"""Which queues a census counts, of all those that there are.

There is a limit, because each queue is a few series; and whoever may insert a job may invent names.
So those that a live worker serves come first, then those that were shown before, then new ones: a
name that is made up takes no series away. What has been empty for a while is forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Collection, Set

FORGET_AFTER = 3600.0
"""Seconds for which a queue without jobs and without a worker is shown with zeros: alerts look back
for minutes, and a queue that is empty now and then keeps its series."""


class Roll:
    """The queues that are counted, from one census to the next.

    Attributes:
        left_out: how many of the queues of the last choice were not chosen.
    """

    def __init__(self) -> None:
        self.left_out = 0
        self._alive_at: dict[str, float] = {}  # of those that are shown

    @property
    def shown(self) -> Set[str]:
        """The queues that were shown last time, and are not forgotten."""
        return self._alive_at.keys()

    def choose(self, found: Collection[str], served: Set[str], limit: int) -> list[str]:
        """Return the queues to count, the most important ones first.

        Args:
            found: all names there are.
            served: those that a live worker works on.
            limit: how many may be counted.
        """
        shown = self.shown
        by_importance = sorted(
            {*found, *served, *shown},
            key=lambda name: (name not in served, name not in shown, name),
        )
        self.left_out = max(0, len(by_importance) - limit)
        return by_importance[:limit]

    def counted(self, alive: Set[str], others: Set[str]) -> None:
        """Note what was shown: queues that have jobs or a worker, and those that have neither."""
        now = monotonic()
        self._alive_at = {
            name: now if name in alive else self._alive_at.get(name, now)
            for name in sorted(alive | others)
        }
        self._alive_at = {
            name: at for name, at in self._alive_at.items() if now - at < FORGET_AFTER
        }
