"""Limits, the order of groups and rates are held against what ran, and when."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId

from drills.limit_laws import LAWS
from drills.told import LEASE, QUEUE, Broken, Planted

JOBS = [ObjectId(f"{number:024d}") for number in range(10)]


@pytest.fixture
def limits(broken: Broken) -> Any:
    return lambda *documents: broken(*documents, laws=LAWS)


def put_all(process: Planted, count: int, **more: Any) -> None:
    for number in range(count):
        process.put(1 + number / 10, job=JOBS[number], queue=QUEUE, **more)


# how many run at once


def run_three(one: Planted, at: float = 10.0) -> None:
    """Three that run from a second after one another on, for more than that."""
    for number in range(3):
        one.start(at + number / 2, f"t{number}", job=JOBS[number])
    for number in range(3):
        one.end(at + 1.5 + number / 10, "complete", f"t{number}", job=JOBS[number])


@pytest.mark.parametrize(("running", "beyond"), [(3, False), (2, True), (None, False)])
def test_more_than_a_limit_do_not_run_at_once(
    one: Planted, limits: Any, running: int | None, beyond: bool
) -> None:
    one.limit(0, running=running)
    put_all(one, 3)
    run_three(one)

    assert limits() == ({"beyond_limit"} if beyond else set())


def test_what_has_ended_and_whose_lease_is_over_run_no_more(one: Planted, limits: Any) -> None:
    one.limit(0, running=1)
    put_all(one, 3)
    one.start(10, "a", job=JOBS[0])
    one.end(10.5, "complete", "a", job=JOBS[0])
    one.start(10.6, "b", job=JOBS[1])  # and its process is killed
    one.start(10.6 + LEASE, "c", job=JOBS[2])

    assert limits() == set()


def test_one_that_was_killed_has_its_place_until_its_lease_is_over(
    one: Planted, two: Planted, limits: Any
) -> None:
    one.limit(0, running=1)
    put_all(one, 2)
    one.start(10, "a", job=JOBS[0])  # and its process is killed
    two.start(9.8 + LEASE, "b", job=JOBS[1])

    assert limits() == {"beyond_limit"}


@pytest.mark.parametrize(
    ("at", "outcome", "more", "beyond"),
    [
        (20, "acknowledged", {}, False),  # when they ran there was none
        (9.5, "acknowledged", {}, False),  # and they may not have known of it
        (9.5, "acknowledged", {"first": True}, True),
        (5, "acknowledged", {}, True),
        (5, "unknown", {}, False),
        (5, "failed", {}, False),
    ],
)
def test_a_limit_holds_when_everybody_knows_of_it(
    one: Planted, limits: Any, at: float, outcome: str, more: dict[str, Any], beyond: bool
) -> None:
    put_all(one, 3)
    one.limit(at, outcome, running=2, **more)
    run_three(one)

    assert limits() == ({"beyond_limit"} if beyond else set())


@pytest.mark.parametrize(("unknown", "beyond"), [(1, True), (3, False)])
def test_what_was_called_for_last_holds_whatever_came_of_a_call_before(
    one: Planted, limits: Any, unknown: int, beyond: bool
) -> None:
    put_all(one, 3)
    one.limit(unknown, "unknown", running=None)
    one.limit(2, running=2)
    run_three(one)

    assert limits() == ({"beyond_limit"} if beyond else set())


def test_what_runs_when_a_limit_is_lowered_runs_on_and_nothing_is_started(
    one: Planted, limits: Any
) -> None:
    one.limit(0, running=2, first=True)
    put_all(one, 3)
    one.start(1, "a", job=JOBS[0])
    one.start(1, "b", job=JOBS[1])
    for at in (2, 3.5, 5, 6.5):
        one.renew(at, "a", job=JOBS[0])
        one.renew(at, "b", job=JOBS[1])
    one.limit(1.5, running=1)
    assert limits() == set()

    one.end(7, "complete", "a", job=JOBS[0])
    one.start(7.3, "c", job=JOBS[2])

    assert limits() == {"beyond_limit"}


def test_jobs_of_another_queue_are_not_counted(one: Planted, limits: Any) -> None:
    one.limit(0, running=2)
    put_all(one, 2)
    one.put(1.5, job=JOBS[2], queue="another")
    run_three(one)

    assert limits() == set()


@pytest.mark.parametrize(("groups", "beyond"), [("abc", False), ("aab", True)])
def test_a_limit_of_a_group_is_for_each(
    one: Planted, limits: Any, groups: str, beyond: bool
) -> None:
    one.limit(0, running=1, per="group")
    for number, group in enumerate(groups):
        one.put(1, job=JOBS[number], queue=QUEUE, group=group)
    run_three(one)

    assert limits() == ({"beyond_limit"} if beyond else set())


# the order of groups


def two_of_a_group(one: Planted, second: str = "a", **more: Any) -> None:
    one.orders()
    one.put(1, job=JOBS[0], queue=QUEUE, group="a", **more)
    one.put(2, job=JOBS[1], queue=QUEUE, group=second)


def test_two_of_a_group_run_one_after_the_other(one: Planted, two: Planted, limits: Any) -> None:
    two_of_a_group(one)
    one.start(10, "a", job=JOBS[0])
    one.end(10.5, "complete", "a", job=JOBS[0])
    two.start(10.51, "b", job=JOBS[1])

    assert limits() == set()


def test_two_of_a_group_do_not_run_at_once(one: Planted, two: Planted, limits: Any) -> None:
    two_of_a_group(one)
    one.start(10, "a", job=JOBS[0])
    two.start(10.3, "b", job=JOBS[1])
    one.end(10.5, "complete", "a", job=JOBS[0])

    assert limits() == {"two_of_a_group", "group_out_of_order"}


def test_two_of_different_groups_may(one: Planted, two: Planted, limits: Any) -> None:
    two_of_a_group(one, second="b")
    two.start(10, "b", job=JOBS[1])
    one.start(10.2, "a", job=JOBS[0])

    assert limits() == set()


@pytest.mark.parametrize("end", ["error", "release"])
def test_the_next_one_waits_through_all_attempts(
    one: Planted, two: Planted, limits: Any, end: str
) -> None:
    two_of_a_group(one)
    one.start(10, "a", job=JOBS[0])
    one.end(10.5, end, "a", job=JOBS[0])
    two.start(11, "b", job=JOBS[1])
    two.end(11.5, "complete", "b", job=JOBS[1])

    assert limits() == {"group_out_of_order"}


@pytest.mark.parametrize(
    ("end", "more"),
    [("error", {"discard": True}), ("error", {"number": 3}), ("cancel", {}), ("complete", {})],
)
def test_whatever_may_have_ended_the_first_lets_the_next_one_pass(
    one: Planted, two: Planted, limits: Any, end: str, more: dict[str, Any]
) -> None:
    two_of_a_group(one)
    one.start(10, "a", job=JOBS[0], number=more.pop("number", 1))
    one.end(10.5, end, "a", "unknown", job=JOBS[0], **more)
    two.start(11, "b", job=JOBS[1])

    assert limits() == set()


def test_an_end_that_was_refused_is_none(one: Planted, two: Planted, limits: Any) -> None:
    two_of_a_group(one)
    one.start(10, "a", job=JOBS[0])
    one.end(10.5, "complete", "a", "refused", job=JOBS[0])
    two.start(13, "b", job=JOBS[1])

    assert limits() == {"group_out_of_order"}


def test_of_two_whose_puts_were_under_way_together_either_may_be_the_first(
    one: Planted, two: Planted, limits: Any
) -> None:
    one.orders()
    one.put(1, job=JOBS[0], queue=QUEUE, group="a")
    two.put(1.05, job=JOBS[1], queue=QUEUE, group="a")
    two.start(10, "b", job=JOBS[1])
    two.end(10.5, "complete", "b", job=JOBS[1])
    one.start(11, "a", job=JOBS[0])

    assert limits() == set()


def test_one_that_is_put_for_later_may_be_passed(one: Planted, two: Planted, limits: Any) -> None:
    two_of_a_group(one, delay=60)
    two.start(10, "b", job=JOBS[1])

    assert limits() == set()


def test_where_groups_are_not_ordered_nobody_waits(one: Planted, two: Planted, limits: Any) -> None:
    one.put(1, job=JOBS[0], queue=QUEUE, group="a")
    one.put(2, job=JOBS[1], queue=QUEUE, group="a")
    two.start(10, "b", job=JOBS[1])
    one.start(10.2, "a", job=JOBS[0])

    assert limits() == set()


# rates


@pytest.mark.parametrize(
    ("starts", "beyond"),
    [
        ([0, 500, 999], False),  # the count and the burst
        ([0, 500, 999, 999], True),
        ([0, 500, 999, 1000], False),
        ([0, 1, 2, 1001, 1002, 1003], False),
        ([0, 900, 901, 902, 1001], True),
    ],
)
def test_no_span_has_more_starts_than_the_count_and_the_burst(
    one: Planted, limits: Any, starts: list[int], beyond: bool
) -> None:
    one.limit(0, rate={"count": 2, "seconds": 1.0, "burst": 1})
    put_all(one, len(starts))
    for number, locked in enumerate(starts):
        one.start(10 + locked / 1000, f"t{number}", job=JOBS[number], locked=locked)

    assert limits() == ({"beyond_rate"} if beyond else set())


def test_a_rate_is_held_against_nobody_who_may_not_know_of_it(one: Planted, limits: Any) -> None:
    one.limit(9.5, rate={"count": 1, "seconds": 1.0})
    put_all(one, 4)
    for number in range(4):
        one.start(10, f"t{number}", job=JOBS[number], locked=10_000 + number)

    assert limits() == set()


def test_a_rate_of_a_group_is_for_each(one: Planted, limits: Any) -> None:
    one.limit(0, rate={"count": 1, "seconds": 1.0}, per="group")
    for number in range(4):
        one.put(1, job=JOBS[number], queue=QUEUE, group="ab"[number % 2])
        one.start(10, f"t{number}", job=JOBS[number], locked=10_000 + number)
    assert limits() == set()

    one.put(1, job=JOBS[4], queue=QUEUE, group="a")
    one.start(10, "t4", job=JOBS[4], locked=10_999)

    assert limits() == {"beyond_rate"}
