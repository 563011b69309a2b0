"""Messages that come late change what is certain, and no more than that."""

from __future__ import annotations

from typing import Any

import pytest

from drills import checker
from drills.told import LEASE, Broken, Planted

HELD = [checker.held_by_two]
LATE = [checker.started_late]


def test_a_put_is_late_by_what_messages_are_held_back(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.holds(5)
    one.put(1, "unknown")
    one.put(2)
    two.start(5, "a", 1)
    two.end(6.5, "complete", "a")
    two.start(7, "b", 1)
    two.end(8, "complete", "b")

    assert broken() == set()


def worked_on(one: Planted, two: Planted, **by: Any) -> None:
    """Have a handler end a second after another has started."""
    one.put(1)
    one.start(2, "a", 1, **by)
    two.start(2.2 + LEASE, "b", 2)
    one.cancelled(3.2 + LEASE, "a")


def test_held_by_two_while_a_workers_handler_runs_on(
    one: Planted, two: Planted, broken: Broken
) -> None:
    worked_on(one, two, kept=True)

    assert broken(laws=HELD) == {"held_by_two"}


def test_nobody_cancels_a_handler_outside_a_worker(
    one: Planted, two: Planted, broken: Broken
) -> None:
    worked_on(one, two, kept=False)

    assert broken(laws=HELD) == set()


def test_a_process_that_could_not_run_is_not_to_blame(
    one: Planted, two: Planted, broken: Broken
) -> None:
    worked_on(one, two, kept=True)
    one.stood_still(3.2 + LEASE, seconds=1)

    assert broken(laws=HELD) == set()


def test_a_handler_is_over_when_the_transaction_it_works_in_is_undone(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1, kept=True)
    number = one.begin(2.1, token="a")
    one.over(2 + LEASE, number, "aborted")
    two.start(2.2 + LEASE, "b", 2)
    one.cancelled(3.2 + LEASE, "a")  # when the abort was answered

    assert broken(laws=HELD) == set()


def test_a_claim_that_came_late_is_counted_where_it_took_effect(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.claim(2, "b")
    two.start(2.3, "a", 1, claimed=2.2)
    two.end(2.4, "error", "a")
    one.start(2.6, "b", 2, claimed=2)
    one.end(2.8, "complete", "b")

    assert broken() == set()


def test_attempts_miscounted_if_two_have_one_number_in_whichever_order(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    two.start(2.3, "a", 1, claimed=2.2)
    two.end(2.4, "error", "a")
    one.start(2.6, "b", 1, claimed=2)
    one.end(2.8, "complete", "b")

    assert broken() == {"attempts_miscounted"}


def test_attempts_miscounted_if_a_later_one_has_a_smaller_number(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.claim(1.5, "never answered")
    one.start(2, "a", 2)
    one.end(2.4, "error", "a")
    two.start(3, "b", 1)
    two.end(3.4, "complete", "b")

    assert broken() == {"attempts_miscounted"}


def held_long(one: Planted, renewals: list[float], over: float) -> None:
    """Run a handler from 2 to its end, with a claim sent at 1.9 and these renewals."""
    one.put(1)
    one.start(2, "a", 1, kept=True)
    for at in renewals:
        one.renew(at, "a")
    one.end(over, "complete", "a", "refused")


@pytest.mark.parametrize(
    ("renewals", "over", "laws"),
    [
        ([], 1.9 + LEASE, set()),
        ([], 3 + LEASE, {"ran_on"}),
        ([3.5], 3 + LEASE, set()),
        ([3.5, 5.0], 5.0 + LEASE, set()),
        ([2.8 + LEASE], 3 + LEASE, {"ran_on"}),
    ],
    ids=["ends in time", "is never renewed", "is renewed", "is renewed twice", "is renewed late"],
)
def test_ran_on_if_a_handler_has_no_lease_any_more(
    one: Planted, broken: Broken, renewals: list[float], over: float, laws: set[str]
) -> None:
    held_long(one, renewals, over)

    assert broken(laws=[checker.ran_on]) == laws


def test_a_handler_may_run_on_whose_lease_was_renewed_before_its_first_line(
    one: Planted, broken: Broken
) -> None:
    """Its claim was answered late, so that it was renewed at once."""
    one.put(1)
    one.renew(1.5 + LEASE, "a")
    one.start(1.6 + LEASE, "a", 1, claimed=2, kept=True)
    one.end(1.4 + 2 * LEASE, "complete", "a")

    assert broken(laws=[checker.ran_on]) == set()


def test_started_late_by_a_claim_that_took_longer_than_its_lease(
    one: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(3 + LEASE, "a", claimed=2)

    assert broken(laws=LATE) == {"started_late"}


def test_a_process_that_stood_still_may_start_late(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(3 + LEASE, "a", claimed=2)
    one.stood_still(3.1 + LEASE, seconds=1)

    assert broken(laws=LATE) == set()
