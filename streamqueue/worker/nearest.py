"""The wait for the nearest of several times, which a nearer one may join while it goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from ..clock import LONGEST_SLEEP, monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable


class Nearest:
    """Wakes one task at the nearest of the times it waits for."""

    def __init__(self) -> None:
        self._armed = -math.inf  # what is waited for; while nobody waits nothing is nearer
        self._nearer = anyio.Event()

    def note(self, time: float) -> None:
        """End the wait if this :func:`monotonic` time is before all it waits for; else nearly
        free."""
        if time < self._armed:
            self._armed = time
            self._nearer.set()

    async def wait(self, times: Iterable[float]) -> None:
        """Return at the first of these times, or as soon as a nearer one was noted."""
        nearest = min(times, default=math.inf)
        if nearest <= monotonic():
            await checkpoint()
            return
        self._armed = nearest
        self._nearer = anyio.Event()
        try:
            while (left := nearest - monotonic()) > 0 and not self._nearer.is_set():
                with anyio.move_on_after(min(left, LONGEST_SLEEP)):
                    await self._nearer.wait()
        finally:
            self._armed = -math.inf
