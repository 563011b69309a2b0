"""What the command line prints of consumers and queues: lines of columns, narrow enough to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .census import ConsumerCensus


def consumers(found: Iterable[ConsumerCensus]) -> Iterator[str]:
    """Yield a line for each consumer, under a header; or say that there is none."""
    rows = [
        (
            consumer.name,
            ",".join(consumer.queues) or "(not on the list)",
            f"{consumer.running}/{'?' if consumer.slots is None else consumer.slots}",
            length(consumer.longest) if consumer.running else "-",
            "-" if consumer.up is None else length(consumer.up),
            "-" if consumer.silent is None else length(consumer.silent),
        )
        for consumer in found
    ]
    if not rows:
        yield "no live consumers"
        return
    header = ("CONSUMER", "QUEUES", "HOLDS", "LONGEST", "UP", "SEEN")
    yield from columns([header, *rows])


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows with their cells in columns, two spaces apart."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def length(seconds: float) -> str:
    """Return a length of time in its largest unit: 0.4s, 12s, 3m, 5h, 2d."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    for unit, size, limit in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if seconds < size * limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"
