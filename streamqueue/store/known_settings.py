"""What somebody who claims knows of the settings of their queues, and whether it still holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..clock import monotonic
from ..protocol.settings import UNSET

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..protocol.settings import QueueSettings

SURE_FOR = 2.0
"""Seconds for which what was read counts without a sign of life from a stream, which would have
brought the bell: so a change holds everywhere so long after it at the latest."""


class KnownSettings:
    """The settings of these queues as they were read last.

    Nobody claims before there has been a reading, nor while nothing of the last two seconds vouches
    for it: that is a reading that was sent then, or a stream that was open all the time since the
    reading and has said something then.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = list(queues)
        self._settings: Mapping[str, QueueSettings] = {}
        self._read_at = -math.inf
        self._rings, self._answered_rings = 1, 0

    @property
    def rung(self) -> bool:
        """Whether the bell may have rung since the last reading was sent."""
        return self._rings != self._answered_rings

    def rang(self) -> None:
        """Note that the bell may have rung."""
        self._rings += 1

    def sure_until(self, heard_at: float) -> float:
        """Return until which :func:`monotonic` time it is known how the queues are set.

        Args:
            heard_at: the time of the stream's last sign of life.
        """
        if self.rung:
            return self._read_at + SURE_FOR
        return max(self._read_at, heard_at) + SURE_FOR

    def asking(self) -> tuple[float, int]:
        """Return what :meth:`answered` takes; asked for before the reading is sent."""
        return monotonic(), self._rings

    def answered(
        self, asked: tuple[float, int], settings: Mapping[str, QueueSettings] | None
    ) -> None:
        """Note what was read; None is nothing that may be known, and changes nothing."""
        self._read_at, self._answered_rings = asked
        if settings is not None:
            self._settings = settings

    def of(self, queue: str) -> QueueSettings:
        """Return what is known of a queue."""
        return self._settings.get(queue, UNSET)

    @property
    def paused(self) -> frozenset[str]:
        """Those of the queues that are paused."""
        return frozenset(queue for queue in self._queues if self.of(queue).paused)
