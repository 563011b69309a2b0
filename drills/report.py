"""What drills did and found, for people and for programs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drills.checker import Verdict
from streamqueue.clock import monotonic


@dataclass
class Report:
    """What a drill did and found.

    Attributes:
        hits: how often it hit what.
        wanted: how often it had to.
        counts: the account in numbers.
        verdicts: the laws that were broken.
        surprises: processes that ended by themselves, and what else went wrong.
        kept: where the histories are, when something is wrong.
    """

    drill: str
    seconds: float = 0.0
    hits: Counter[str] = field(default_factory=Counter)
    wanted: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    verdicts: list[Verdict] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: Path | None = None

    @property
    def missed(self) -> dict[str, int]:
        """What it hit too seldom, and how often it did."""
        return {hit: self.hits[hit] for hit, n in self.wanted.items() if self.hits[hit] < n}

    @property
    def passed(self) -> bool:
        return not (self.verdicts or self.surprises or self.missed)

    def broken(self, law: str) -> int:
        """Return for how many jobs a law was broken."""
        return len({verdict.job for verdict in self.verdicts if verdict.law == law})

    def problems(self) -> list[str]:
        """Say what is wrong, one text for each thing."""
        return [
            *self.surprises,
            *(f"hit {n} {hit}, not {self.wanted[hit]}" for hit, n in self.missed.items()),
            *map(str, self.verdicts),
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "drill": self.drill,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "hits": dict(self.hits),
            "wanted": self.wanted,
            "counts": {name: n for name, n in self.counts.items() if n},
            "broken": dict(Counter(verdict.law for verdict in self.verdicts)),
            "problems": self.problems(),
            "notes": self.notes,
        }


class Screen:
    """Shows how far a drill is, on one line where standard error is a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said = 0.0

    def say(self, what: str) -> None:
        """Show a line, unless another was shown a moment ago."""
        if monotonic() - self._said < (0.2 if self._terminal else 5.0):
            return
        self._said = monotonic()
        if self._terminal:
            sys.stderr.write(f"\r\033[K{what[:120]}")
        else:
            sys.stderr.write(f"{what}\n")
        sys.stderr.flush()

    def done(self, report: Report) -> None:
        """Show how a drill went."""
        clear = "\r\033[K" if self._terminal else ""
        verdict = "passed" if report.passed else "FAILED"
        sys.stderr.write(f"{clear}{report.drill}: {verdict} in {report.seconds:.0f} s\n")
        sys.stderr.flush()


WIDEST = 160
"""Characters of hits in the table; what has more is a footnote."""
COLUMNS = ("drill", "jobs", "hits", "lost", "unexpected", "doubled", "overlaps", "verdict")


def table(reports: Iterable[Report]) -> str:
    """Return the reports as a table."""
    rows = [COLUMNS, *(_row(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(report: Report) -> tuple[str, ...]:
    return (
        report.drill,
        str(report.counts["jobs"]),
        _hits(report) if _fits(report) else f"{report.hits.total()} of {len(report.hits)} kinds",
        str(report.broken("lost")),
        str(report.broken("unexpected")),
        str(report.broken("completed_twice")),
        str(report.broken("overlapping")),
        "passed" if report.passed else "FAILED",
    )


def footnotes(report: Report) -> list[str]:
    """Return what the table has no room for."""
    return report.notes if _fits(report) else [_hits(report), *report.notes]


def _hits(report: Report) -> str:
    return ", ".join(f"{count} {hit}" for hit, count in report.hits.items())


def _fits(report: Report) -> bool:
    return len(_hits(report)) <= WIDEST
