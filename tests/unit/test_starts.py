"""What a process holds of reserved starts: when it asks for more, and what it lets go of.

Laws: a limit is a limit; nobody polls; bounded.
"""

from __future__ import annotations

import random

import pytest

from streamqueue.protocol.limits import Rate
from streamqueue.protocol.rates import MILLISECOND, SECOND, Reservation, date, pace_of
from streamqueue.store import starts
from streamqueue.store.starts import Starts
from tests.buckets import BEGIN, Bucket, local, most_in_a_window, run

NOW = 0.0
RATE = Rate(20, 0.4)
INTERVAL = pace_of(RATE).interval


def after(milliseconds: float) -> float:
    return NOW + milliseconds / 1000


def reserved(count: int, rate: Rate = RATE, now: int = BEGIN) -> Reservation:
    """What a full bucket gives."""
    return Bucket().reserve(pace_of(rate), count, now)


def none_near(milliseconds: int) -> Reservation:
    """What a bucket gives whose next start is so far away."""
    return Reservation((), BEGIN + milliseconds * MILLISECOND, after(milliseconds))


@pytest.fixture
def held() -> Starts:
    return Starts()


# how many to ask for


def test_a_job_that_waits_asks_for_a_start(held: Starts) -> None:
    assert held.wants("q", RATE, 1, NOW) == 1


def test_no_job_asks_for_none(held: Starts) -> None:
    assert held.wants("q", RATE, 0, NOW) == 0


def test_no_more_are_asked_for_than_jobs_wait(held: Starts) -> None:
    assert held.wants("q", Rate(1000), 7, NOW) == 7


def test_at_a_high_rate_those_of_the_next_moments_are_asked_for_at_once(held: Starts) -> None:
    assert held.wants("q", Rate(1000), 10_000, NOW) == 48


def test_at_a_low_rate_one_is_asked_for(held: Starts) -> None:
    assert held.wants("q", Rate(1, 3600), 10_000, NOW) == 1


def test_a_burst_is_asked_for_at_once(held: Starts) -> None:
    assert held.wants("q", Rate(10, 1, burst=5), 10_000, NOW) == 5


def test_while_one_asks_the_others_of_its_process_do_not(held: Starts) -> None:
    held.wants("q", RATE, 3, NOW)

    assert held.wants("q", RATE, 3, NOW) == 0


def test_after_an_error_it_is_asked_again(held: Starts) -> None:
    held.wants("q", RATE, 3, NOW)

    assert held.wants("q", RATE, 3, after(51)) > 0


def test_who_holds_some_asks_for_no_more_until_they_end(held: Starts) -> None:
    held.add("q", RATE, reserved(3), NOW)

    assert held.wants("q", RATE, 100, after(35)) == 0
    assert held.wants("q", RATE, 100, after(51)) > 0


def test_who_holds_as_many_as_jobs_wait_asks_for_none(held: Starts) -> None:
    held.add("q", Rate(10, 1, burst=5), reserved(2, Rate(10, 1, burst=5)), NOW)

    assert held.wants("q", Rate(10, 1, burst=5), 2, NOW) == 0
    assert held.wants("q", Rate(10, 1, burst=5), 3, NOW) == 1


def test_who_got_none_asks_again_only_when_the_next_start_is_near(held: Starts) -> None:
    held.add("q", RATE, none_near(200), NOW)

    assert held.wants("q", RATE, 1, after(149)) == 0
    assert held.wants("q", RATE, 1, after(200 + 330)) == 1


def test_who_gets_none_for_long_asks_less_often(
    held: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)
    waits = []
    for _ in range(5):
        held.add("q", RATE, none_near(50), NOW)
        waits.append(held.next_at("q", RATE, 1, NOW) - NOW)

    assert waits == pytest.approx([0.04, 0.08, 0.16, 0.32, 0.32], abs=0.002)


def test_each_scope_has_its_own(held: Starts) -> None:
    held.add("g:ada", RATE, reserved(3), NOW)

    assert held.take("g:bob", RATE, NOW) is None
    assert held.wants("g:bob", RATE, 1, NOW) == 1


# whose turn it is


def test_a_reserved_start_is_of_one_job(held: Starts) -> None:
    held.add("q", RATE, reserved(1), NOW)

    start = held.take("q", RATE, NOW)

    assert start == (NOW, after(20), BEGIN, date(BEGIN + 20 * MILLISECOND))
    assert held.take("q", RATE, NOW) is None


def test_a_start_is_not_taken_before_its_time(held: Starts) -> None:
    held.add("q", RATE, reserved(2), NOW)
    held.take("q", RATE, NOW)

    assert held.take("q", RATE, after(19.9)) is None
    assert held.take("q", RATE, after(20)) is not None


def test_a_void_start_is_not_taken(held: Starts) -> None:
    held.add("q", RATE, reserved(1), NOW)

    assert held.take("q", RATE, after(20)) is None


def test_a_start_that_started_nothing_may_be_taken_again(held: Starts) -> None:
    held.add("q", RATE, reserved(3), NOW)
    start = held.take("q", RATE, NOW)
    assert start is not None

    held.give_back("q", RATE, start, NOW)

    assert held.take("q", RATE, NOW) == start


def test_a_start_of_another_rate_is_dropped(held: Starts) -> None:
    held.add("q", RATE, reserved(3), NOW)

    assert held.take("q", Rate(51), NOW) is None
    assert held.wants("q", Rate(51), 1, NOW) == 1


# when to look again


def test_who_waits_for_a_start_looks_when_it_is_due(held: Starts) -> None:
    held.add("q", RATE, reserved(2), NOW)
    held.take("q", RATE, NOW)

    assert held.next_at("q", RATE, 1, NOW) == after(20)


def test_who_has_too_few_looks_when_more_may_be_asked_for(held: Starts) -> None:
    held.add("q", Rate(4), reserved(1, Rate(4)), NOW)
    held.take("q", Rate(4), NOW)

    assert held.next_at("q", Rate(4), 1, NOW) == after(230)


def test_who_knows_nothing_looks_at_once(held: Starts) -> None:
    assert held.next_at("q", RATE, 1, NOW) <= NOW


# what is forgotten


def test_groups_that_are_quiet_are_forgotten(held: Starts) -> None:
    for number in range(1000):
        moment = BEGIN + number * SECOND
        held.add(f"g:{number}", RATE, reserved(1, now=moment), local(moment))

    assert len(held) <= 2


def test_no_more_scopes_are_known_than_a_process_has_room_for(
    held: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "MOST_SCOPES", 100)
    for number in range(1000):
        held.add(f"g:{number}", Rate(1, 3600), reserved(1, Rate(1, 3600)), NOW)

    assert len(held) == 100


# all together


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize("rate", [Rate(50), Rate(50, 1, 10), Rate(3), Rate(1000)], ids=str)
def test_processes_that_have_jobs_keep_the_rate(rate: Rate, processes: int) -> None:
    random.seed(f"{rate}{processes}")

    result = run(rate, processes, 20, trip=0.003)

    assert len(result.starts) == pytest.approx(20 * rate.count, rel=0.07)
    assert most_in_a_window(result.starts, SECOND) <= rate.count + rate.burst


@pytest.mark.parametrize(("processes", "most"), [(1, 0.55), (8, 3)])
def test_a_start_costs_few_round_trips(processes: int, most: float) -> None:
    random.seed(processes)

    result = run(Rate(50), processes, 20, trip=0.003)

    assert result.asked / len(result.starts) <= most


def test_a_process_that_has_room_for_few_leaves_the_rate_to_the_others() -> None:
    random.seed(1)

    result = run(Rate(50, 1, 10), 8, 20, trip=0.003, free=1)

    assert len(result.starts) == pytest.approx(1000, rel=0.07)
