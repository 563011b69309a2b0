"""How many jobs may run at once, or start in a time, and in which order: the rules of a queue.

They are stored among the settings of the queue, so that they hold for all processes::

    declared     what the handler says of the last worker that was started:
                 {limits: [...], ordered: true | "strict", fair: true}
    limits       what ``limit()`` has said: [{per, running, rate}], which wins

A limit is stored as ``{per: "queue" | "task" | "group", task, running, rate}``; with a ``task`` it
holds for the jobs of that task alone, and the rate is ``{count, seconds, burst}``. What is not
understood is not set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..durations import seconds, shown
from ..errors import ConfigurationError
from ..options import whole_number
from .stored import seconds_in, text_in, whole_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

Per = Literal["task", "queue", "group"]
Ordered = Literal["strict"] | bool

MOST_RUNNING = 1_000_000
MOST_STARTS = 1_000_000
LEAST_SECONDS = 0.01


@dataclass(frozen=True, slots=True, init=False)
class Rate:
    """A number of starts in a time, over all processes, by the server's clock.

    Starts are spread over the time: ten in a second are one each tenth of a second, and not ten at
    once and nothing for the rest. In any span of `seconds` there are at most `count` + `burst`; for
    that a rate is up to 5 % slower than it says, and more only where `seconds` is under 0.2.

    A start counts once a job is claimed by it: each attempt is one, and what is given back, or
    whose lease is lost, has used its own. One that nobody uses within a moment is not made up for.

    Attributes:
        count: how many jobs may start, from 1 to a million.
        seconds: in how many seconds; from 0.01. A number or a timedelta; 1 by default.
        burst: how many may start at once after a pause, from 1, the default, which spreads them as
            evenly as can be, to `count`.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    count: int
    seconds: float
    burst: int

    def __init__(self, count: int, seconds: float | timedelta = 1.0, burst: int = 1) -> None:
        object.__setattr__(self, "count", whole_number(count, "count", 1, MOST_STARTS))
        object.__setattr__(self, "seconds", _seconds(seconds, "seconds", minimum=LEAST_SECONDS))
        object.__setattr__(self, "burst", whole_number(burst, "burst", 1, self.count))

    @property
    def interval(self) -> float:
        """Seconds from one start to the next, where starts are as close as they may always be."""
        return self.seconds / self.count

    def __str__(self) -> str:
        burst = f", {self.burst} at once" if self.burst > 1 else ""
        return f"{self.count} in {self.seconds:g} s{burst}"

    def stored(self) -> dict[str, Any]:
        """Return it as it is stored."""
        return {"count": self.count, "seconds": self.seconds, "burst": self.burst}

    @classmethod
    def from_stored(cls, value: object) -> Rate | None:
        """Return a stored rate, None for what is none."""
        if not isinstance(value, dict):
            return None
        count, span = whole_of(value.get("count"), 0), seconds_in(value.get("seconds"), None)
        if span is None:
            return None
        try:
            return cls(count, span, whole_of(value.get("burst"), 1))
        except ConfigurationError:
            return None


_seconds = seconds  # where a parameter has that name


@dataclass(frozen=True, slots=True, init=False)
class Limit:
    """How many jobs may run at once, or start in a time, over all processes.

    What it holds back stays ready, and uses no attempt.

    Attributes:
        running: jobs that may run at once, from 1 to a million; None, the default, limits none. It
            counts leases: a job whose lease has ended counts no more, though a handler that cannot
            be stopped may still be at it. (How many run in one process is ``concurrency``.)
        rate: how many may start in a time; a whole number is so many in a second. None, the
            default, limits none.
        per: of which jobs: all of the "queue", those of a "task", or those of a "group", each of
            which has as many. None, the default, is the queue at a handler, and the task at a task.
            Under a limit per group are only jobs that have one (``put(group=)``).

    Raises:
        ConfigurationError: it limits nothing, or a value is none of these.
    """

    running: int | None
    rate: Rate | None
    per: Per | None

    def __init__(
        self,
        running: int | None = None,
        rate: Rate | int | None = None,
        per: Per | None = None,
    ) -> None:
        if running is None and rate is None:
            raise ConfigurationError("a Limit needs running= or rate=, or both")
        object.__setattr__(self, "running", None if running is None else running_limit(running))
        object.__setattr__(self, "rate", None if rate is None else rate_limit(rate))
        object.__setattr__(self, "per", None if per is None else limited_per(per))


def running_limit(value: object) -> int:
    """Return how many jobs may run at once, or raise ConfigurationError."""
    return whole_number(value, "running", 1, MOST_RUNNING)


def rate_limit(value: object) -> Rate:
    """Return a rate, of which a number is so many in a second, or raise ConfigurationError."""
    if isinstance(value, Rate):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Rate(value)
    raise ConfigurationError(
        f"rate must be a Rate(count, seconds), or a whole number of starts in a second, not "
        f"{shown(value)}"
    )


def limited_per(value: object) -> Per:
    """Return of which jobs a limit is, or raise ConfigurationError."""
    for one in get_args(Per):
        if value == one and isinstance(value, str):
            return one  # type: ignore[no-any-return]
    raise ConfigurationError(f'per must be "task", "queue" or "group", not {shown(value)}')


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit of a queue, as it is stored.

    Attributes:
        per: whether all of its jobs are counted together, or those of each task or group.
        task: the task that it is for; None for all.
        running: jobs that may run at once, or None.
        rate: how many may start in a time, or None.
    """

    per: Per
    task: str | None = None
    running: int | None = None
    rate: Rate | None = None

    @property
    def for_all(self) -> bool:
        """Whether it is for all jobs of the queue together."""
        return self.per == "queue" and self.task is None

    def stored(self) -> dict[str, Any]:
        """Return it as it is stored."""
        fields = {
            "per": self.per,
            "task": self.task,
            "running": self.running,
            "rate": None if self.rate is None else self.rate.stored(),
        }
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def from_stored(cls, value: object) -> Rule | None:
        """Return a stored limit, None for what is none."""
        if not isinstance(value, dict) or value.get("per") not in get_args(Per):
            return None
        running = whole_of(value.get("running"), 0)
        return cls(
            value["per"],
            text_in(value.get("task")),
            running if 1 <= running <= MOST_RUNNING else None,
            Rate.from_stored(value.get("rate")),
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules by which the jobs of a queue are claimed, if they are not claimed as they come.

    Attributes:
        limits: each of another scope (``per`` and ``task``).
        ordered: whether those of a group run one at a time and in their order; "strict" if one
            that is dead holds its group as well.
        fair: whether groups take turns.
    """

    limits: tuple[Rule, ...] = ()
    ordered: Ordered = False
    fair: bool = False

    def __bool__(self) -> bool:
        return bool(self.limits or self.ordered or self.fair)

    @property
    def by_group(self) -> bool:
        """Whether it matters to which group a job belongs."""
        return bool(self.ordered or self.fair or any(rule.per == "group" for rule in self.limits))

    @property
    def by_running(self) -> bool:
        """Whether it matters which jobs run: not to a rate."""
        return bool(self.ordered or any(rule.running for rule in self.limits))

    @property
    def rate(self) -> Rate | None:
        """The rate that holds for all jobs of the queue together."""
        return next((rule.rate for rule in self.limits if rule.for_all), None)

    @property
    def features(self) -> set[str]:
        """What they use that needs indexes of its own."""
        used = {"limits": self.by_running, "group": self.by_group}
        return {name for name, is_used in used.items() if is_used}

    @property
    def by_task(self) -> bool:
        """Whether it matters to which task a job belongs."""
        return any(rule.per == "task" or rule.task is not None for rule in self.limits)

    def declared(self) -> dict[str, Any]:
        """Return what a worker stores that has these at its handler; empty for none."""
        fields = {
            "limits": [rule.stored() for rule in self.limits],
            "ordered": self.ordered,
            "fair": self.fair,
        }
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Rules:
        """Read what is stored of a queue."""
        declared = document.get("declared")
        if not isinstance(declared, dict):
            declared = {}
        ordered = declared.get("ordered")
        by_scope: dict[tuple[Per, str | None], Rule] = {}
        for rule in (*_rules_in(declared.get("limits")), *_rules_in(document.get("limits"))):
            known = by_scope.get((rule.per, rule.task), rule)
            by_scope[rule.per, rule.task] = Rule(
                rule.per,
                rule.task,
                known.running if rule.running is None else rule.running,
                known.rate if rule.rate is None else rule.rate,
            )
        return cls(
            tuple(rule for rule in by_scope.values() if rule.running or rule.rate),
            "strict" if ordered == "strict" else ordered is True,
            declared.get("fair") is True,
        )


def _rules_in(value: object) -> Iterable[Rule]:
    stored: Sequence[object] = value if isinstance(value, list) else ()
    return [rule for one in stored if (rule := Rule.from_stored(one)) is not None]


def check_rules(limits: object, ordered: object, fair: object, tasks: Sequence[str] = ()) -> Rules:
    """Return the rules that a handler, or a task, is registered with, or raise ConfigurationError.

    Args:
        limits: a Limit, or several, each for other jobs.
        ordered: False, True or "strict".
        fair: whether groups take turns.
        tasks: the names of the task; each is limited by itself.
    """
    given = [limits] if isinstance(limits, Limit) else limits
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigurationError(f"limits must be a Limit, or a list of them, not {shown(limits)}")
    rules: dict[Per, Rule] = {}
    for limit in given:
        if not isinstance(limit, Limit):
            raise ConfigurationError(f"limits must be of Limit(...) each, not {shown(limit)}")
        per: Per = limit.per or ("task" if tasks else "queue")
        if per in rules:
            raise ConfigurationError(
                f'two limits are per="{per}": make them one, Limit(running=..., rate=...)'
            )
        rules[per] = Rule(per, None, limit.running, limit.rate)
    if not isinstance(fair, bool):
        raise ConfigurationError(f"fair must be True or False, not {shown(fair)}")
    in_turn = tuple(rules[per] for per in get_args(Per) if per in rules)
    if tasks:
        in_turn = tuple(_at_task(rule, task) for rule in in_turn for task in tasks)
    return Rules(tuple(dict.fromkeys(in_turn)), _ordered(ordered), fair)


def _at_task(rule: Rule, task: str) -> Rule:
    """Return what a limit that is said at a task is: of all its jobs, or of those of each group of
    them; but what is said of the queue holds for that."""
    if rule.per == "queue":
        return rule
    per: Per = "queue" if rule.per == "task" else rule.per
    return Rule(per, task, rule.running, rule.rate)


def _ordered(value: object) -> Ordered:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value == "strict":
        return "strict"
    raise ConfigurationError(f'ordered must be True, False or "strict", not {shown(value)}')


UNRULED = Rules()
"""Those of a queue whose jobs are claimed as they come."""
