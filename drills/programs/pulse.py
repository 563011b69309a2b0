"""Knows when this process was kept from running: on a machine under load, nobody's fault."""

from __future__ import annotations

import anyio

from drills.history import History
from streamqueue.clock import monotonic

TICK = 0.02
HICCUP = 0.2
"""A wait in which this process itself was late by so many seconds says nothing."""
WORTH_A_LINE = 0.1


class Pulse:
    """Beats in the event loop.

    Args:
        history: where to note for how long the loop stood still.
    """

    def __init__(self, history: History | None = None) -> None:
        self._history = history
        self._late: list[float] = []

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            due = monotonic() + TICK
            await anyio.sleep(TICK)
            self.beat(due)

    def beat(self, due: float) -> None:
        """Note by how much a beat came later than it was due."""
        late = monotonic() - due
        if late > HICCUP:
            self._late.append(monotonic())
        if self._history is not None and late > WORTH_A_LINE:
            self._history.note("process", state="late", seconds=round(late, 3))

    def faltered(self, since: float) -> bool:
        return bool(self._late) and self._late[-1] >= since
