"""Slots: what keeps a limit of running jobs over all processes, and who may have one.

A running job has a slot of each limit that it is under, and one of its group where that is ordered.
No two have one in common, by a unique index. A slot is a text: what kind of limit it is of, its
number, and whose that limit is::

    q#3            the queue       o#1:ada            the order of a group
    t#2:resize     each task       g#1:ada            each group
    tq#1:6:resize  one task        tg#4:6:resizeada   of one task each group

A claim may take slot *s* only if *s* and the running jobs in higher slots, or in none, are together
no more than the limit. So a limit that was lowered, or set while jobs ran, is exceeded by no start.
What is known of the running jobs may be old: that can withhold a slot, but never give one too many.
For of all jobs that were claimed by this rule take the one in the highest slot: those above it, and
those without, were counted when it was claimed, and those below have a number each.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from .stored import text_in, texts_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .limits import Rate, Rule, Rules

    Among = Callable[["Scope", list[int]], list[int]]

CHOICE = 64
"""Free slots of which one is taken at random: of processes that plan at the same moment few have
the same one."""
_KINDS = {"queue": "q", "task": "t", "group": "g"}
_SLOT = re.compile(r"([a-z]+)#(\d+)(?::(.*))?", re.DOTALL)


class Scope(NamedTuple):
    """Whose a limit is: the jobs that are counted together.

    Attributes:
        kind: of the limit, in a letter or two.
        of: the task or the group; empty for the queue.
    """

    kind: str
    of: str = ""

    def slot(self, number: int) -> str:
        """Return the text of one of its slots."""
        return f"{self.kind}#{number}" + (f":{self.of}" if self.of else "")

    @property
    def is_shared(self) -> bool:
        """Whether it is not of one group alone."""
        return self.kind[-1] in "qt"

    @property
    def name(self) -> str:
        """What it is called in a store of many scopes."""
        return f"{self.kind}:{self.of}"


WHOLE_QUEUE = Scope("q")
"""Of the limits that are for all jobs of a queue together."""


def scope_and_number(slot: str) -> tuple[Scope, int] | None:
    """Return what a slot says; None for what is none."""
    match = _SLOT.fullmatch(slot)
    return None if match is None else (Scope(match[1], match[3] or ""), int(match[2]))


def scope_of(rule: Rule, task: str | None, group: str | None) -> Scope | None:
    """Return the scope of a job under a rule, None if it is not under it."""
    if rule.task is not None and rule.task != task:
        return None
    kind = _KINDS[rule.per]
    match rule.per:
        case "queue":
            of = ""
        case "task":
            of = task or ""
        case _:
            if group is None:
                return None
            of = group
    if rule.task is None:
        return Scope(kind, of)
    return Scope("t" + kind, f"{len(rule.task)}:{rule.task}{of}")


class Limited(NamedTuple):
    """A scope that a job is under, and what holds for it."""

    scope: Scope
    running: int | None
    rate: Rate | None


def limits_of(rules: Rules, task: str | None, group: str | None) -> list[Limited]:
    """Return the limits that a job is under; its group's order is one of them."""
    limits = [
        Limited(scope, rule.running, rule.rate)
        for rule in rules.limits
        if (scope := scope_of(rule, task, group)) is not None
    ]
    if rules.ordered and group is not None:
        limits.append(Limited(order_of(group), 1, None))
    return limits


def order_of(group: str) -> Scope:
    """Return the scope of the order of a group."""
    return Scope("o", group)


class Taken:
    """The slots of running jobs, as far as they are known.

    Args:
        rules: of their queue.
        running: the documents of its running jobs, with ``slots``, ``task`` and ``group``.
    """

    def __init__(self, rules: Rules, running: Iterable[Mapping[str, Any]]) -> None:
        self._numbers: dict[Scope, set[int]] = {}
        self._without: Counter[Scope] = Counter()
        for job in running:
            slots = set()
            for slot in texts_in(job.get("slots")):
                found = scope_and_number(slot)
                if found is not None:
                    scope, number = found
                    self._numbers.setdefault(scope, set()).add(number)
                    slots.add(scope)
            for limited in limits_of(rules, text_in(job.get("task")), text_in(job.get("group"))):
                if limited.running is not None and limited.scope not in slots:
                    self._without[limited.scope] += 1

    def running(self, scope: Scope) -> int:
        """Return how many running jobs are counted under a scope."""
        return len(self._numbers.get(scope, ())) + self._without[scope]

    def free(self, scope: Scope, limit: int, among: Among | None = None) -> int | None:
        """Return a slot that may be taken, None if there is none.

        The lowest one that is free may be, unless as many run as may; of the first ones that may
        be, it is a random one, of those that are left `among` them.
        """
        numbers = self._numbers.get(scope, set())
        higher = len(numbers)
        without = self._without[scope]
        found: list[int] = []
        for number in range(1, limit - without + 1):
            if number in numbers:
                higher -= 1
            elif number + higher + without > limit or len(found) == CHOICE:
                break
            else:
                found.append(number)
        if among is not None and found:
            found = among(scope, found)
        return random.choice(found) if found else None

    def take(self, scope: Scope, number: int) -> None:
        """Note that a slot is taken, or about to be."""
        self._numbers.setdefault(scope, set()).add(number)

    def give_back(self, slots: Iterable[str]) -> None:
        """Note that the jobs in these slots run no more."""
        for slot in slots:
            found = scope_and_number(slot)
            if found is not None:
                scope, number = found
                numbers = self._numbers.get(scope)
                if numbers is not None:
                    numbers.discard(number)
                    if not numbers:
                        del self._numbers[scope]

    def take_all(self, limits: Sequence[Limited], among: Among | None = None) -> list[str] | None:
        """Take a slot of each limit of running jobs, and return them; None, and take none, if one
        of them has none that may be taken."""
        slots: list[str] = []
        for limited in limits:
            if limited.running is not None:
                number = self.free(limited.scope, limited.running, among)
                if number is None:
                    self.give_back(slots)
                    return None
                self.take(limited.scope, number)
                slots.append(limited.scope.slot(number))
        return slots

    def is_full(self, limits: Sequence[Limited]) -> bool:
        """Whether one of these limits leaves no job of theirs to be started."""
        return any(
            limited.running is not None and self.free(limited.scope, limited.running) is None
            for limited in limits
        )
