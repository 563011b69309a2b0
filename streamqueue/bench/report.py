"""What was measured, as rows; how they are shown; and how far it has come meanwhile."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FLOOR = "floor"
BAR_WIDTH = 24


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return None for no values."""
        return cls(statistics.median(values), min(values), max(values)) if values else None

    def as_json(self) -> dict[str, float]:
        return {
            "median": _rounded(self.median),
            "min": _rounded(self.low),
            "max": _rounded(self.high),
        }

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: ours, the floor, and the ratio of ours to the base.

    Attributes:
        base: what the ratio is to: the floor, or another row.
    """

    name: str
    unit: str
    ours: Spread | None
    floor: Spread | None = None
    ratio: Spread | None = None
    base: str | None = None

    @classmethod
    def against(
        cls,
        name: str,
        unit: str,
        ours: Sequence[float],
        base: Sequence[float],
        base_name: str = FLOOR,
    ) -> Row:
        """Return a row with the ratio to the base, made round by round."""
        ratios = [mine / other for mine, other in zip(ours, base, strict=True) if other > 0]
        floor = Spread.of(base) if base_name == FLOOR else None
        return cls(name, unit, Spread.of(ours), floor, Spread.of(ratios), base_name)

    @classmethod
    def alone(cls, name: str, unit: str, ours: Sequence[float]) -> Row:
        """Return a row that has nothing to be compared with."""
        return cls(name, unit, Spread.of(ours))

    @classmethod
    def floor_alone(cls, name: str, unit: str, floor: Sequence[float]) -> Row:
        """Return a row about the floor itself."""
        return cls(name, unit, None, Spread.of(floor))

    def as_json(self) -> dict[str, Any]:
        spreads = {"ours": self.ours, "floor": self.floor, "ratio": self.ratio}
        return {
            "name": self.name,
            "unit": self.unit,
            **{key: value and value.as_json() for key, value in spreads.items()},
            "ratio_to": self.base if self.ratio else None,
        }


@dataclass(slots=True)
class Table:
    """The rows of one part, and what has to be known to read them."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"rows": [row.as_json() for row in self.rows], "notes": self.notes}


def show(environment: dict[str, Any], tables: dict[str, Table], *, as_json: bool) -> None:
    """Print it all."""
    if as_json:
        parts = {name: table.as_json() for name, table in tables.items()}
        sys.stdout.write(json.dumps({"environment": environment, "parts": parts}) + "\n")
        return
    for name, value in environment.items():
        shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        sys.stdout.write(f"{name:<14} {shown}\n")
    for name, table in tables.items():
        sys.stdout.write("\n" + "\n".join(_lines(name, table)) + "\n")


def _lines(title: str, table: Table) -> Iterator[str]:
    cells = [(title, "unit", "ours", "floor", "ratio")]
    for row in table.rows:
        ratio = ""
        if row.ratio is not None:
            ratio = str(row.ratio) + ("" if row.base == FLOOR else f" to {row.base}")
        cells.append((row.name, row.unit, str(row.ours or ""), str(row.floor or ""), ratio))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    for number, line in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(padded).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
    yield from table.notes


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Progress:
    """One moving line on a terminal, elsewhere a line a step. On stderr: stdout is the result."""

    def __init__(self, steps: int) -> None:
        self.part = ""
        self._steps = steps
        self._done = -1
        self._live = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Say what is measured now."""
        self._done = min(self._done + 1, self._steps)
        text = f"{self.part}: {text}"
        if self._live:
            filled = BAR_WIDTH * self._done // max(1, self._steps)
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            width = shutil.get_terminal_size().columns - 1
            self._write("\r" + f"[{bar}] {text}"[:width].ljust(width))
        else:
            self._write(f"[{self._done + 1}/{self._steps}] {text}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
