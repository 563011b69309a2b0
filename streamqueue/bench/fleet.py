"""How consumers are started: each by itself, or several of one worker, with a dispatcher.

``streamqueue worker --processes N`` is the way to have several on one machine. Separate workers are
what one has on as many machines; here they race on the processors of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .scale import Scale


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many consumers.

    Attributes:
        dispatched: whether a dispatcher joins them; it is one process more.
    """

    size: int
    dispatched: bool = False

    def __str__(self) -> str:
        if self.dispatched:
            return f"worker --processes {self.size}"
        return "1 worker" if self.size == 1 else f"{self.size} separate workers"


def of(*sizes: int) -> tuple[Fleet, ...]:
    """Return fleets of these sizes: all separate, then all with a dispatcher that can be."""
    return (
        *(Fleet(size) for size in sizes),
        *(Fleet(size, dispatched=True) for size in sizes if size > 1),
    )


def allowed(fleets: Iterable[Fleet], scale: Scale) -> list[Fleet]:
    """Return those that are not too large for this run."""
    return [fleet for fleet in fleets if fleet.size <= scale.processes]
