"""Whose turn a job is, and a slot, where several processes choose of one queue with rules.

All of them would go for what comes first, and most would be too late. Where claims were lost to
others lately each goes for its own first. How far it reaches for those depends on how many may
start at once: where that is one, it is the job that comes first, whosever turn it is.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol

from ..protocol import operations
from ..protocol.rates import pace_of
from ..protocol.slots import WHOLE_QUEUE
from ..protocol.stored import text_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..protocol.limits import Rules
    from ..protocol.slots import Scope, Taken

    Job = dict[str, Any]

MOST = 500
FEW = 4
"""Slots that are free and are too few to be divided: whoever is the first has them."""
REACH = 2
"""Jobs among which whoever may start one looks for its own, for each that may start."""
REACH_OF_RATE = 4
"""The same where a rate says how many may: by it there is a start for one process after another,
and most of them wait for theirs."""


class Turns(Protocol):
    """Who knows whose turn it is."""

    def divide(
        self, jobs: Iterable[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Return the jobs that are ours to take, and the others, each in their order."""
        ...

    def owns(self, queue: str, number: int) -> bool:
        """Return whether a slot of this number is ours to take."""
        ...


class Chance:
    """Turns by chance, where nobody knows the others."""

    def divide(
        self, jobs: Iterable[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Return the jobs in any order, as ours."""
        shuffled = list(jobs)
        random.shuffle(shuffled)
        return shuffled, []

    def owns(self, queue: str, number: int) -> bool:
        """Say of each slot that it is ours."""
        return True


BY_CHANCE = Chance()


class OwnSlots:
    """The slots of a queue that are ours to take in one choice. Who has none of its own that is
    free goes for one of the others' own, and for no more of those at a time."""

    def __init__(self, turns: Turns, queue: str) -> None:
        self._turns = turns
        self._queue = queue
        self._had: set[Scope] = set()

    def among(self, scope: Scope, numbers: list[int]) -> list[int]:
        """Return which of some slots to take one of."""
        if not scope.is_shared or len(numbers) <= FEW:
            return numbers
        own = [number for number in numbers if self._turns.owns(self._queue, number)]
        if own or scope not in self._had:
            self._had.add(scope)
            return own or numbers
        return []


def ours_first(
    turns: Turns | None, jobs: Sequence[Job], reach: int, name_of: Callable[[Job], object]
) -> Sequence[Job]:
    """Return jobs with those first whose turn is ours, among the first of them and among those of
    one priority; the others as they come.

    Args:
        reach: how many those first ones are.
        name_of: says by what it is told whose turn a job is.
    """
    if turns is None or reach <= 1:
        return jobs
    near = [{"_id": name_of(job), "queue": job["queue"], "job": job} for job in jobs[:reach]]
    own, others = turns.divide(near)
    in_turn = [each["job"] for each in (*own, *others)]
    in_turn.sort(key=lambda job: operations.claim_order_of(job)[0])  # stable
    return [*in_turn, *jobs[reach:]]


def reach_of(rules: Rules, taken: Taken) -> int:
    """Return among how many of the jobs that come first each process may look for its own."""
    reach = MOST * REACH
    for rule in rules.limits:
        if rule.for_all:
            if rule.running is not None:
                free = rule.running - taken.running(WHOLE_QUEUE)
                reach = min(reach, free * (REACH if free > 1 else 1))
            if rule.rate is not None:
                most = pace_of(rule.rate).at_once
                reach = min(reach, most * (REACH_OF_RATE if most > 1 else 1))
    return reach


def group_of(job: Job) -> str | None:
    """Return the group of a job as it was read."""
    return text_in(job.get("group"))


def id_of(job: Job) -> object:
    """Return the id of a job."""
    return job["_id"]


def group_or_id_of(job: Job) -> object:
    """Return the group of a job, or its id if it has none."""
    return group_of(job) or job["_id"]
