"""Slots: the texts, the scopes, and the rule by which no start exceeds a limit, however it changes.

Law: a limit is a limit.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamqueue import Limit, Rate
from streamqueue.protocol.limits import Rule, Rules
from streamqueue.protocol.slots import (
    CHOICE,
    Limited,
    Scope,
    Taken,
    limits_of,
    scope_and_number,
    scope_of,
)

QUEUE = Scope("q")
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(kind=st.sampled_from(["q", "t", "g", "o", "tg"]), of=names, number=st.integers(1, 10**6))
def test_a_slot_says_whose_it_is_and_its_number(kind: str, of: str, number: int) -> None:
    scope = Scope(kind, of)

    assert scope_and_number(scope.slot(number)) == (scope, number)


@given(tasks=st.tuples(names, names), groups=st.tuples(names, names))
def test_scopes_of_a_task_and_a_group_are_one_only_if_both_are(
    tasks: tuple[str, str], groups: tuple[str, str]
) -> None:
    scopes = [
        scope_of(Rule("group", task, 1), task, group)
        for task, group in zip(tasks, groups, strict=True)
    ]

    assert (scopes[0] == scopes[1]) == (tasks[0] == tasks[1] and groups[0] == groups[1])


@pytest.mark.parametrize(
    ("rule", "job", "scope"),
    [
        (Rule("queue", None, 1), (None, None), Scope("q")),
        (Rule("task", None, 1), ("resize", None), Scope("t", "resize")),
        (Rule("task", None, 1), (None, None), Scope("t")),
        (Rule("group", None, 1), ("resize", "ada"), Scope("g", "ada")),
        (Rule("group", None, 1), ("resize", None), None),
        (Rule("queue", "resize", 1), ("resize", "ada"), Scope("tq", "6:resize")),
        (Rule("queue", "resize", 1), ("crop", "ada"), None),
        (Rule("group", "resize", 1), ("resize", "ada"), Scope("tg", "6:resizeada")),
    ],
)
def test_a_job_is_counted_with_those_that_its_limit_is_for(
    rule: Rule, job: tuple[str | None, str | None], scope: Scope | None
) -> None:
    assert scope_of(rule, *job) == scope


def test_several_limits_hold_together_and_none_is_taken_unless_all_are() -> None:
    rules = Rules((Rule("queue", None, 10), Rule("group", None, 1)))
    running = [{"slots": ["q#1", "g#1:ada"], "group": "ada"}]
    taken = Taken(rules, running)

    assert taken.take_all(limits_of(rules, None, "ada")) is None
    assert taken.running(QUEUE) == 1
    assert taken.take_all(limits_of(rules, None, "bob")) is not None


def test_jobs_that_were_claimed_without_a_slot_count() -> None:
    rules = Rules((Rule("queue", None, 3),))
    taken = Taken(rules, [{}, {}])

    assert taken.free(QUEUE, 3) == 1
    taken.take(QUEUE, 1)
    assert taken.free(QUEUE, 3) is None


def test_no_slot_is_given_below_a_limit_that_was_lowered_while_as_many_run_above_it() -> None:
    rules = Rules((Rule("queue", None, 4),))
    taken = Taken(rules, [{"slots": [f"q#{number}"]} for number in (2, 3, 4)])

    assert taken.free(QUEUE, 4) == 1
    assert taken.free(QUEUE, 3) is None
    taken.give_back(["q#4"])
    assert taken.free(QUEUE, 3) == 1


def test_a_slot_is_chosen_among_the_first_few_that_are_free() -> None:
    taken = Taken(Rules((Rule("queue", None, 1000),)), [])
    seen: list[int] = []

    def the_last(scope: Scope, numbers: list[int]) -> list[int]:
        seen.extend(numbers)
        return numbers[-1:]

    assert taken.free(QUEUE, 1000, the_last) == CHOICE
    assert seen == list(range(1, CHOICE + 1))


@given(
    numbers=st.sets(st.integers(1, 12), max_size=12),
    without=st.integers(0, 5),
    limit=st.integers(1, 12),
)
def test_a_slot_is_withheld_exactly_when_as_many_run_as_may(
    numbers: set[int], without: int, limit: int
) -> None:
    rules = Rules((Rule("queue", None, limit),))
    running: list[dict[str, Any]] = [{"slots": [QUEUE.slot(number)]} for number in numbers]
    taken = Taken(rules, running + [{}] * without)

    assert (taken.free(QUEUE, limit) is not None) == (len(numbers) + without < limit)


@given(data=st.data())
def test_no_start_exceeds_a_limit_however_it_changes_and_however_old_what_is_known(
    data: st.DataObject,
) -> None:
    """Claims by several processes, each by what it read at some time since the limit was changed,
    and a unique index between them."""
    running: list[dict[str, Any]] = [{} for _ in range(data.draw(st.integers(0, 4)))]
    limit = data.draw(st.integers(1, 8))
    views = [Taken(Rules((Rule("queue", None, limit),)), running) for _ in range(3)]
    for _ in range(data.draw(st.integers(5, 60))):
        step = data.draw(st.sampled_from(["claim", "claim", "claim", "end", "read", "change"]))
        view = data.draw(st.integers(0, 2))
        rules = Rules((Rule("queue", None, limit),))
        if step == "change":
            limit = data.draw(st.integers(1, 8))
            views = [Taken(Rules((Rule("queue", None, limit),)), running) for _ in range(3)]
        elif step == "read":
            views[view] = Taken(rules, running)
        elif step == "end" and running:
            running.pop(data.draw(st.integers(0, len(running) - 1)))
        elif step == "claim":
            number = views[view].free(QUEUE, limit)
            if number is None:
                fresh = Taken(rules, running)
                assert (fresh.free(QUEUE, limit) is None) == (len(running) >= limit)
                continue
            slot = QUEUE.slot(number)
            if any(slot in job.get("slots", ()) for job in running):
                continue  # the index refuses it
            running.append({"slots": [slot]})
            assert len(running) <= limit


def test_processes_that_plan_at_once_have_different_slots_mostly() -> None:
    random.seed(1)
    rules = Rules((Rule("queue", None, 50),))

    chosen = {Taken(rules, []).free(QUEUE, 50) for _ in range(20)}

    assert len(chosen) > 10


def test_a_limit_of_starts_alone_takes_no_slot() -> None:
    limit = Limit(rate=Rate(5))
    taken = Taken(Rules(), [])

    assert taken.take_all([Limited(QUEUE, limit.running, limit.rate)]) == []


STRANGE_SLOTS = ["", "q", "q#", "#1", "q#x", "Q#1", 5, None]


def test_what_another_program_wrote_into_the_slots_of_a_job_is_no_slot() -> None:
    rules = Rules((Rule("queue", None, 3),))
    taken = Taken(rules, [{"slots": STRANGE_SLOTS}, {"slots": [*STRANGE_SLOTS, "q#2"]}])

    assert taken.running(QUEUE) == 2
    assert taken.free(QUEUE, 3) == 1


def test_what_gives_back_slots_frees_those_alone_that_are_known() -> None:
    taken = Taken(Rules((Rule("queue", None, 2),)), [{"slots": ["q#1"]}, {"slots": ["q#2"]}])

    taken.give_back(["none", "g#1:ada", "q#3", "q#2"])

    assert taken.running(QUEUE) == 1
    assert taken.free(QUEUE, 2) == 2
