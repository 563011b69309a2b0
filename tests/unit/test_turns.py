"""Whose turn it is: each process goes for its own first, as far as it may reach.

Laws: the race is shaped; a limit is a limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from bson import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from streamqueue import Rate
from streamqueue.protocol.limits import Rule, Rules
from streamqueue.protocol.operations import claim_order_of
from streamqueue.protocol.slots import Limited, Scope, Taken
from streamqueue.store.turns import BY_CHANCE, MOST, OwnSlots, ours_first, reach_of

QUEUE = Scope("q")


class OneOf:
    """The turns of one of several processes, by numbers."""

    def __init__(self, place: int, count: int) -> None:
        self._place = place
        self._count = count

    def owns(self, queue: str, number: int) -> bool:
        return number % self._count == self._place

    def divide(self, jobs: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        jobs = list(jobs)
        own = [job for job in jobs if self.owns("", job["_id"])]
        return own, [job for job in jobs if job not in own]


def jobs_of(priorities: Iterable[int]) -> list[dict[str, Any]]:
    """Jobs in claim order."""
    jobs = [
        {"_id": number, "queue": "q", "priority": priority, "seq": Timestamp(1, number + 1)}
        for number, priority in enumerate(priorities)
    ]
    return sorted(jobs, key=claim_order_of)


def ids(jobs: Iterable[dict[str, Any]]) -> list[Any]:
    return [job["_id"] for job in jobs]


def id_of(job: dict[str, Any]) -> Any:
    return job["_id"]


def test_own_jobs_come_first_and_the_others_behind_them_as_they_are() -> None:
    jobs = jobs_of([0] * 8)

    assert ids(ours_first(OneOf(1, 3), jobs, 6, id_of)) == [1, 4, 0, 2, 3, 5, 6, 7]


@pytest.mark.parametrize("turns", [None, OneOf(1, 3)])
def test_with_one_to_start_or_nobody_in_the_way_they_stay_as_they_come(turns: Any) -> None:
    jobs = jobs_of([0] * 8)

    assert ids(ours_first(turns, jobs, 1 if turns else 8, id_of)) == ids(jobs)


@given(
    priorities=st.lists(st.integers(0, 2), max_size=20),
    reach=st.integers(0, 25),
    turns=st.sampled_from([OneOf(0, 3), BY_CHANCE]),
)
def test_none_is_lost_and_none_comes_before_one_that_is_more_urgent(
    priorities: list[int], reach: int, turns: Any
) -> None:
    jobs = jobs_of(priorities)

    in_turn = ours_first(turns, jobs, reach, id_of)

    assert sorted(ids(in_turn)) == sorted(ids(jobs))
    assert [job["priority"] for job in in_turn] == [job["priority"] for job in jobs]
    assert ids(in_turn)[reach:] == ids(jobs)[reach:]


@pytest.mark.parametrize(
    ("rules", "running", "reach"),
    [
        ((), 0, 2 * MOST),
        ([Rule("queue", None, 10)], 4, 12),
        ([Rule("queue", None, 10)], 9, 1),
        ([Rule("queue", None, 10)], 10, 0),
        ([Rule("queue", None, None, Rate(50))], 0, 12),
        ([Rule("queue", None, None, Rate(1, 60))], 0, 1),
        ([Rule("group", None, 1)], 0, 2 * MOST),
    ],
)
def test_it_reaches_as_far_as_jobs_may_start(rules: list[Rule], running: int, reach: int) -> None:
    stored = Rules(tuple(rules))
    taken = Taken(stored, [{"slots": [QUEUE.slot(number + 1)]} for number in range(running)])

    assert reach_of(stored, taken) == reach


def test_each_takes_its_own_slots_and_one_of_the_others_when_it_has_none() -> None:
    rules = Rules((Rule("queue", None, 11),))
    running = [{"slots": [QUEUE.slot(number)]} for number in (4, 8)]
    limits = [Limited(QUEUE, 11, None)]

    def all_taken(place: int) -> list[list[str] | None]:
        taken, own = Taken(rules, running), OwnSlots(OneOf(place, 4), "q")
        return [taken.take_all(limits, own.among) for _ in range(4)]

    assert sorted(filter(None, all_taken(1))) == [["q#1"], ["q#5"], ["q#9"]]
    (one,) = filter(None, all_taken(0))
    assert one[0] in {f"q#{number}" for number in (1, 2, 3, 5, 6, 7, 9, 10, 11)}


def test_a_few_slots_are_divided_among_nobody() -> None:
    own = OwnSlots(OneOf(0, 4), "q")

    assert own.among(QUEUE, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert own.among(QUEUE, [1, 2, 3, 4, 5]) == [4]


def test_slots_of_a_group_are_everybodys() -> None:
    own = OwnSlots(OneOf(0, 4), "q")

    assert own.among(Scope("o", "ada"), [1]) == [1]
    assert own.among(Scope("g", "ada"), [1, 2]) == [1, 2]
    assert own.among(Scope("g", "ada"), [1, 2]) == [1, 2]
    assert own.among(Scope("tg", "6:resizeada"), [3]) == [3]
