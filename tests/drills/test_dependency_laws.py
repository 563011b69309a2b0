"""Dependents are held against the ends of their parents, and against what they saw of them."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId

from drills import dependency_laws
from drills.told import JOB, OTHER, Broken, Planted, document, read

THIRD = ObjectId("0123456789abcdef01234569")


@pytest.fixture
def laws(broken: Broken) -> Any:
    """Returns the names of the laws about dependents that are broken."""
    return lambda *documents: broken(*documents, laws=dependency_laws.LAWS)


def put(one: Planted, rule: str | None = None) -> None:
    """Put a job, and one that comes after it."""
    one.put(1, after=[])
    one.put(1, job=OTHER, after=[str(JOB)], if_parent_fails=rule)


def dependent(state: str) -> dict[str, Any]:
    return {**document(state), "_id": OTHER}


@pytest.mark.parametrize("rule", [None, "hold", "cancel", "run"])
def test_a_dependent_may_start_once_its_parent_may_be_done(
    one: Planted, two: Planted, laws: Any, rule: str | None
) -> None:
    put(one, rule)
    one.start(2, "a")
    one.end(2.5, "complete", "a", "unknown")
    two.start(2.6, "b", job=OTHER)

    assert laws() == set()


@pytest.mark.parametrize("rule", ["hold", "cancel", "run"])
def test_a_dependent_may_not_start_before_that(
    one: Planted, two: Planted, laws: Any, rule: str
) -> None:
    put(one, rule)
    one.start(2, "a")
    two.start(2.3, "b", job=OTHER)
    one.end(2.5, "complete", "a")

    assert laws() == {"ran_before_its_parents"}


def test_a_complete_that_was_refused_lets_nobody_run(one: Planted, two: Planted, laws: Any) -> None:
    put(one)
    one.start(2, "a")
    one.end(2.5, "complete", "a", "refused")
    two.start(3, "b", job=OTHER)

    assert laws() == {"ran_before_its_parents"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("run", set()), ("hold", {"ran_before_its_parents"}), ("cancel", {"ran_before_its_parents"})],
)
def test_a_discarded_parent_lets_run_by_one_rule_only(
    one: Planted, two: Planted, laws: Any, rule: str, expected: set[str]
) -> None:
    put(one, rule)
    one.start(2, "a")
    one.end(2.5, "error", "a", discard=True)
    two.start(3, "b", job=OTHER)

    assert laws() == expected


def test_an_attempt_that_may_be_repeated_is_no_end(one: Planted, two: Planted, laws: Any) -> None:
    put(one, "run")
    one.start(2, "a", number=2)
    one.end(2.5, "error", "a")
    two.start(3, "b", job=OTHER)

    assert laws() == {"ran_before_its_parents"}


def test_the_last_attempt_ends_with_its_lease(one: Planted, two: Planted, laws: Any) -> None:
    put(one, "run")
    one.start(2, "a", number=3)
    two.start(9, "b", job=OTHER)

    assert laws() == set()


def test_one_of_two_parents_does_not_do(one: Planted, two: Planted, laws: Any) -> None:
    one.put(1)
    one.put(1, job=THIRD)
    one.put(1, job=OTHER, after=[str(JOB), str(THIRD)])
    one.start(2, "a")
    one.end(2.5, "complete", "a")
    two.start(3, "b", job=OTHER)

    assert laws() == {"ran_before_its_parents"}


@pytest.mark.parametrize(
    ("rule", "seen", "fine"),
    [
        ("hold", {"done": 1}, True),
        ("hold", {"running": 1}, False),
        ("hold", {"gone": 1}, False),
        ("cancel", {"dead": 1}, False),
        ("run", {"dead": 1, "gone": 2}, True),
        ("run", {"ready": 1}, False),
    ],
)
def test_a_handler_sees_parents_that_have_ended(
    one: Planted, two: Planted, laws: Any, rule: str, seen: dict[str, int], fine: bool
) -> None:
    put(one, rule)
    one.start(2, "a")
    one.end(2.5, "complete", "a")
    two.start(3, "b", job=OTHER)
    two.saw(3.1, "b", seen, job=OTHER)

    assert laws() == (set() if fine else {"parents_not_visible"})


@pytest.mark.parametrize("rule", ["hold", "cancel", "run"])
def test_a_dependent_whose_parent_is_done_may_not_be_cancelled(
    one: Planted, laws: Any, rule: str
) -> None:
    put(one, rule)
    one.start(2, "a")
    one.end(2.5, "complete", "a")

    assert laws(dependent("cancelled")) == {"cancelled_for_nothing"}


@pytest.mark.parametrize("rule", ["hold", "cancel"])
def test_a_dependent_may_be_cancelled_when_its_parent_was(
    one: Planted, laws: Any, rule: str
) -> None:
    put(one, rule)
    one.cancel(2, "cancelled")

    assert laws(dependent("cancelled")) == set()


def test_a_dead_parent_cancels_by_one_rule_only(one: Planted, laws: Any) -> None:
    put(one, "hold")
    one.start(2, "a")
    one.end(2.5, "error", "a", discard=True)

    assert laws(dependent("waiting")) == set()
    assert laws(dependent("cancelled")) == {"cancelled_for_nothing"}


def test_whoever_comes_after_one_that_was_cancelled_for_that_may_be_too(
    one: Planted, laws: Any
) -> None:
    put(one, "cancel")
    one.put(1, job=THIRD, after=[str(OTHER)])
    one.start(2, "a")
    one.end(2.5, "error", "a", discard=True)

    last = {**document("cancelled"), "_id": THIRD}
    assert laws(dependent("cancelled"), last) == set()


def test_the_figures_say_how_long_after_the_last_parent_a_dependent_starts(
    one: Planted, two: Planted, tmp_path: Any
) -> None:
    put(one)
    one.start(2, "a")
    one.end(2.5, "complete", "a")
    two.start(2.75, "b", job=OTHER)

    [figures] = dependency_laws.notes(read(tmp_path))
    assert figures.startswith("1 dependents run, 0 cancelled, the largest after 1 others; ")
    assert "started 250 ms after the last of those was done (median)" in figures
