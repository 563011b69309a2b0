"""Ticks: the moments at which a rule puts its jobs.

A rule is a line of cron, read in a time zone, or a period on the grid of the Unix epoch. A tick is
a UTC instant, whatever the local clock shows then: the two passes of an hour that is there twice
are two hours, and an hour that is skipped is none. What that means for a line of cron is Debian's
rule, as cronsim has it: a line with a fixed time fires once, in the first pass or right after the
gap; one that repeats itself within the hour goes on with each hour that passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ..durations import seconds, shown
from ..errors import ConfigurationError
from .stored import text_in

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""What stands for a line of cron."""
FIELDS = 5
SHORTEST = 1.0
"""Seconds between two ticks at the least."""
LONGEST_LINE = 200
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TRIED_FROM = datetime(2000, 1, 1, tzinfo=UTC)
"""From when on a rule is tried, for one that never fires: each year has its like in the 50 years
that cronsim looks at from here."""
LOOKS_BACK = [timedelta(hours=1), timedelta(days=1), timedelta(days=40), timedelta(days=400)]
"""How far back the last tick is looked for, step by step: so few are stepped through that nobody
waits, whether a rule fires each minute or once a year."""
MOST_COUNTED = 2000
"""Ticks that are stepped through to be counted: 20 us each."""
NOT_INSTALLED = (
    "a schedule with a line of cron needs cronsim, which is not installed: "
    "pip install 'streamqueue[cron]' (every= needs nothing)"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """When a schedule fires; valid where :func:`check_rule` has made it.

    Attributes:
        cron: a line of five fields, or None.
        every: seconds from one tick to the next, or None; one of the two is given.
        offset: seconds by which the grid of `every` is moved.
        timezone: the zone in which `cron` is read.
    """

    cron: str | None
    every: float | None
    offset: float = 0.0
    timezone: str = "UTC"

    def document(self) -> dict[str, Any]:
        """Return what is stored of it: equal rules are equal documents."""
        if self.every is not None:
            return {"every": self.every, "offset": self.offset}
        return {"cron": self.cron, "timezone": self.timezone}

    @classmethod
    def from_document(cls, stored: object) -> Rule | None:
        """Return a stored rule; None if it is none, or not one that can be read here."""
        if not isinstance(stored, dict):
            return None
        try:
            return check_rule(
                cron=text_in(stored.get("cron")),
                every=stored.get("every"),
                offset=stored.get("offset", 0.0),
                timezone=text_in(stored.get("timezone", "UTC")),
            )
        except ConfigurationError:
            return None

    def __str__(self) -> str:
        if self.every is not None:
            return f"every {self.every:g} s" + (f" + {self.offset:g} s" if self.offset else "")
        return f"{self.cron} ({self.timezone})"

    def ticks(self, after: datetime) -> Iterator[datetime]:
        """Yield the ticks later than a moment, each later than the one before."""
        last = after
        for tick in self._candidates(after):
            # (Within the second pass of an hour a fixed time comes up that was in the first one.)
            if tick > last:
                yield tick
                last = tick

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick later than a moment; None if there is none within 50 years."""
        return next(self.ticks(after), None)

    def latest(self, after: datetime, until: datetime) -> datetime | None:
        """Return the last tick that is later than one moment and not later than another."""
        if self.every is not None:
            period = timedelta(seconds=self.every)
            tick = self._first_of_grid(until) - period
            return tick if tick > after else None
        for back in LOOKS_BACK:
            start = max(after, until - back)
            found = None
            for tick in self.ticks(start):
                if tick > until:
                    break
                found = tick
            if found is not None or start == after:
                return found
        return self._last_from(after, until)

    def count(self, after: datetime, until: datetime, most: int = MOST_COUNTED) -> int:
        """Return how many ticks are later than one moment and not later than another.

        Of a line of cron no more than `most` are counted: they have to be stepped through.
        """
        if self.every is not None:
            first = self._first_of_grid(after)
            if first > until:
                return 0
            return (until - first) // timedelta(seconds=self.every) + 1
        counted = 0
        for tick in self.ticks(after):
            if tick > until or counted == most:
                break
            counted += 1
        return counted

    def _last_from(self, after: datetime, until: datetime) -> datetime | None:
        found = None
        for tick in self.ticks(after):  # one that fires once in years
            if tick > until:
                break
            found = tick
        return found

    def _candidates(self, after: datetime) -> Iterator[datetime]:
        try:
            if self.cron is None:
                yield from self._grid(after)
            else:
                from cronsim import CronSim

                zone = _zone(self.timezone)
                for local in CronSim(self.cron, after.astimezone(zone)):
                    yield local.astimezone(UTC)
        except OverflowError:  # the year 9999 is over
            return

    def _grid(self, after: datetime) -> Iterator[datetime]:
        tick, period = self._first_of_grid(after), timedelta(seconds=self.every or SHORTEST)
        while True:
            yield tick
            tick += period

    def _first_of_grid(self, after: datetime) -> datetime:
        """Return the first place of the grid after a moment."""
        period = timedelta(seconds=self.every or SHORTEST)
        start = EPOCH + timedelta(seconds=self.offset)
        return start + ((after - start) // period + 1) * period


def check_rule(cron: object, every: Any, offset: Any = 0.0, timezone: object = "UTC") -> Rule:
    """Return the rule, or raise ConfigurationError with the reason why it is none."""
    if (cron is None) == (every is None):
        raise ConfigurationError(
            "when is it to fire? give a line of cron, such as '0 3 * * *', or every= seconds"
            + ("" if cron is None else ", not both")
        )
    if every is not None:
        if timezone != "UTC":
            raise ConfigurationError("timezone= is for a line of cron: every= counts in UTC")
        period = _whole_milliseconds(seconds(every, "every", minimum=SHORTEST))
        moved = _whole_milliseconds(seconds(offset, "offset"))
        return Rule(None, period, moved % period)
    if offset not in (0, timedelta(0)):
        raise ConfigurationError("offset= is for every=: a line of cron says its times itself")
    line, zone = _line(cron), _zone_name(timezone)
    rule = Rule(line, None, 0.0, zone)
    _try(rule, shown(cron))
    return rule


def _whole_milliseconds(value: float) -> float:
    """As dates are stored."""
    return math.floor(value * 1000 + 0.5) / 1000


def _line(cron: object) -> str:
    if not isinstance(cron, str):
        raise ConfigurationError(f"a line of cron is a text such as '0 3 * * *', not {shown(cron)}")
    if len(cron) > LONGEST_LINE:
        raise ConfigurationError(f"a line of cron has at most {LONGEST_LINE} characters")
    line = " ".join(cron.split())
    if line.startswith("@"):
        named = NAMED.get(line.lower())
        if named is None:
            raise ConfigurationError(
                f"{shown(cron)} is no line of cron: of the names there are {', '.join(NAMED)}"
            )
        return named
    count = len(line.split())
    if count != FIELDS:
        hint = ": for seconds, use every=" if count == FIELDS + 1 else ""
        raise ConfigurationError(
            f"a line of cron has five fields (minute, hour, day, month, day of the week), and "
            f"{shown(cron)} has {count}{hint}"
        )
    return line


def _zone_name(timezone: object) -> str:
    if not isinstance(timezone, str):
        raise ConfigurationError(
            f"timezone= is a name such as 'Europe/Berlin', not {shown(timezone)}"
        )
    _zone(timezone)
    return timezone


@lru_cache(maxsize=100)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder, a path, a NUL
        raise ConfigurationError(
            f"there is no time zone {shown(name)} here: give a name of the IANA list, such as "
            "'Europe/Berlin' (pip install tzdata, if the system has none)"
        ) from None


def _try(rule: Rule, line: str) -> None:
    """Raise if a rule cannot be read, or never fires."""
    try:
        from cronsim import CronSimError
    except ImportError:
        raise ConfigurationError(NOT_INSTALLED) from None
    _tried(rule, line, CronSimError)


@lru_cache(maxsize=10_000)
def _tried(rule: Rule, line: str, refusal: type[Exception]) -> None:
    try:
        first = rule.next(TRIED_FROM)
    except refusal as error:
        raise ConfigurationError(
            f"{line} is no line of cron, or one that never fires: {error}"
        ) from None
    if first is None:
        raise ConfigurationError(f"{line} never fires: there is no such day")


def three_ticks(rule: Rule, after: datetime) -> list[datetime]:
    """Return the next three ticks, for people to see."""
    ticks = rule.ticks(after)
    return [tick for tick, _ in zip(ticks, range(3), strict=False)]
