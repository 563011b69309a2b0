"""``streamqueue limit``: how many jobs of a queue may run, or start, set and shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from click import BadParameter

from ..errors import ConfigurationError
from ..protocol import operations
from ..protocol.limits import Rate, Rules
from ..protocol.settings import QueueSettings
from ..queue.blocking import MongoQueue
from ..store.blocking import Store
from .command import Options, command, option
from .connection import open_database
from .options import JSON, QUEUE, UNITS, WHERE, at_least_one, quoted
from .tables import columns, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..protocol.limits import Rule

NONE = "none"
"""What takes a limit away, where a number sets one."""
_RATE = re.compile(r"([0-9]{1,9})(?:/([0-9]{1,9}(?:\.[0-9]{1,9})?)?([smhd]))?")


def count_or_none(text: str) -> int | str:
    """Return a whole number from 1, or :data:`NONE`."""
    return NONE if text == NONE else at_least_one(text)


def rate_or_none(text: str) -> tuple[int, float] | str:
    """Return how many in how many seconds (50, 50/s, 100/60s, 1000/h), or :data:`NONE`."""
    if text == NONE:
        return NONE
    found = _RATE.fullmatch(text)
    if found is None:
        raise BadParameter(
            f"must be how many in a time, such as 50/s, 100/60s or 1000/h, or none, not "
            f"{quoted(text)}"
        )
    return int(found[1]), float(found[2] or 1) * UNITS[found[3] or "s"]


@command(
    *WHERE,
    QUEUE,
    JSON,
    option(
        "--running",
        "how many may run at once, or none",
        type=count_or_none,
        metavar="COUNT",
    ),
    option(
        "--rate",
        "how many may start in a time, such as 50/s, 100/60s or 1000/h, or none",
        type=rate_or_none,
        metavar="RATE",
    ),
    option(
        "--burst",
        "with --rate: how many may start at once after a pause; default 1",
        type=at_least_one,
        metavar="COUNT",
    ),
    option(
        "--per",
        "of all jobs of the queue, the default, or of those of each group",
        type=click.Choice(["queue", "group"]),
        default="queue",
    ),
    example="streamqueue limit --queue emails --running 3 --rate 50/s",
)
def limit(options: Options) -> None:
    """Set how many jobs of the queue may run at once, or start in a time, in all processes.

    What is not given stays; none takes a limit away, and what the code of workers declares holds
    again. Without --running and --rate it shows what holds.
    """
    changes: dict[str, Any] = {}
    if options.running is not None:
        changes["running"] = None if options.running == NONE else options.running
    if options.burst is not None and options.rate in (None, NONE):
        raise ConfigurationError("--burst goes with --rate: how many of that may start at once")
    if options.rate is not None:
        changes["rate"] = None
        if options.rate != NONE:
            count, seconds = options.rate
            changes["rate"] = Rate(count, seconds, options.burst or 1)
    with open_database(options) as database:
        queue = MongoQueue(database[options.collection], name=options.queue)
        if changes:
            queue.limit(**changes, per=options.per)
        store = Store(database[options.collection])
        store.prepare()
        found = store.read_settings(operations.settings_of([options.queue]))
    stored = _Stored(found[0] if found else {})
    show(options, {"queue": options.queue, **stored.facts()}, stored.lines(options.queue))


class _Stored:
    """The rules of a queue by whoever said them, and those that hold."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._holds = QueueSettings.from_document(document).rules
        self._declared = Rules.from_document({"declared": document.get("declared")})
        self._set = Rules.from_document({"limits": document.get("limits")})

    def facts(self) -> dict[str, Any]:
        """Return them for JSON."""
        return {
            "holds": _facts(self._holds),
            "declared": _facts(self._declared),
            "set": _facts(self._set)["limits"],
        }

    def lines(self, queue: str) -> Iterator[str]:
        """Yield them for people: what holds, and where it was said."""
        if not self._holds:
            yield f"no limits of queue {queue}"
            return
        rows = [("PER", "TASK", "RUNNING", "RATE")]
        for rule in self._holds.limits:
            declared, is_set = (_like(rule, among) for among in (self._declared, self._set))
            running, rate = (
                _cell(*(getattr(one, name) if one else None for one in (declared, is_set)))
                for name in ("running", "rate")
            )
            rows.append((rule.per, rule.task or "-", running, rate))
        if len(rows) > 1:
            yield from columns(rows)
        if self._holds.ordered:
            strictly = ", strictly" if self._holds.ordered == "strict" else ""
            yield f"the jobs of a group run in their order{strictly} (declared)"
        if self._holds.fair:
            yield "groups take turns (declared)"


def _like(rule: Rule, rules: Rules) -> Rule | None:
    """Return the rule that is for the same jobs."""
    for one in rules.limits:
        if (one.per, one.task) == (rule.per, rule.task):
            return one
    return None


def _cell(declared: object, is_set: object) -> str:
    if is_set is None:
        return "-" if declared is None else f"{declared} (declared)"
    instead = "" if declared is None else f", instead of {declared}"
    return f"{is_set} (set{instead})"


def _facts(rules: Rules) -> dict[str, Any]:
    limits = [rule.stored() for rule in rules.limits]
    return {"limits": limits, "ordered": rules.ordered, "fair": rules.fair}
