"""Steps are held against what was stored, and against what is in effect."""

from __future__ import annotations

from typing import Any

import pytest

from drills.step_laws import LAWS
from drills.told import Broken, Planted


@pytest.fixture
def steps(broken: Broken) -> Any:
    return lambda: broken(laws=LAWS)


def stored(told: Planted, at: float, *, since: float, value: str = "x", **more: Any) -> None:
    told.step(at, "stored", since=since, value=value, **{"in_transaction": False, **more})


@pytest.fixture(autouse=True)
def job(one: Planted) -> None:
    one.put(0.5)
    one.start(1, "a")


def test_a_step_that_was_not_stored_may_run_again(one: Planted, steps: Any) -> None:
    one.step(1.1, "runs", since=1)
    one.step(3.1, "runs", since=3)
    stored(one, 3.2, since=3)

    assert steps() == set()


def test_an_attempt_that_began_before_a_step_was_stored_may_run_it(
    one: Planted, two: Planted, steps: Any
) -> None:
    one.step(2.1, "runs", since=2)
    stored(one, 2.2, since=2)
    two.step(2.5, "runs", since=1)

    assert steps() == set()


def test_an_attempt_that_began_afterwards_may_not(one: Planted, two: Planted, steps: Any) -> None:
    one.step(2.1, "runs", since=2)
    stored(one, 2.2, since=2)
    two.step(2.5, "runs", since=2.4)

    assert steps() == {"step_repeated"}


def test_all_attempts_are_given_one_result(one: Planted, two: Planted, steps: Any) -> None:
    stored(one, 2, since=1)
    stored(two, 3, since=2.5)
    assert steps() == set()

    stored(two, 4, since=3.5, value="y")
    assert steps() == {"step_differs"}


@pytest.mark.parametrize(("effects", "wrong"), [(0, True), (1, False), (2, True)])
def test_a_step_of_a_transaction_is_once_in_effect(
    one: Planted, steps: Any, effects: int, wrong: bool
) -> None:
    stored(one, 2, since=1, in_transaction=True)
    for _ in range(effects):
        one.step(9, "effect", since=0)

    assert steps() == ({"step_effect_not_once"} if wrong else set())


def test_an_effect_whose_commit_was_answered_to_nobody_may_be_there_once(
    one: Planted, steps: Any
) -> None:
    one.step(9, "effect", since=0)
    assert steps() == set()

    one.step(9, "effect", since=0)
    assert steps() == {"step_effect_not_once"}
