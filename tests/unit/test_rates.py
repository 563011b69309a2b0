"""The arithmetic of rates: how far apart starts are planned, and how many that lets through.

Law: a limit is a limit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamqueue.protocol.limits import Rate
from streamqueue.protocol.rates import (
    AHEAD,
    LEAST_LATE,
    MILLISECOND,
    SECOND,
    Answered,
    Start,
    bucket_id,
    date,
    moment_of,
    pace_of,
    reservation,
)
from tests.buckets import BEGIN, Bucket, local, most_in_a_window

RATES = [
    Rate(1000, 1),
    Rate(3, 1),
    Rate(3000, 1),
    Rate(7, 60),
    Rate(1, 3600),
    Rate(100_000, 1),
    Rate(1_000_000, 1),
    Rate(50, 1, burst=50),
]


@st.composite
def rates(draw: st.DrawFn) -> Rate:
    count = draw(st.sampled_from([1, 2, 3, 7, 50, 300, 1000]) | st.integers(1, 1_000_000))
    seconds = draw(st.sampled_from([0.01, 0.1, 1 / 3, 1, 60]) | st.floats(0.01, 86_400))
    return Rate(count, seconds, draw(st.integers(1, min(count, 20)) | st.just(count)))


# the interval


@given(rates())
def test_a_window_with_what_may_be_late_is_no_longer_than_one_interval_more(rate: Rate) -> None:
    pace = pace_of(rate)

    assert rate.seconds * SECOND + pace.late <= (rate.count + 1) * pace.interval * (1 + 1e-12)


@given(rates())
def test_no_rate_becomes_faster(rate: Rate) -> None:
    assert pace_of(rate).interval >= rate.interval * SECOND * (1 - 1e-12)


@given(rates())
def test_a_start_may_always_be_late_by_what_a_claim_takes(rate: Rate) -> None:
    assert pace_of(rate).late >= LEAST_LATE


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_a_rate_is_kept_within_a_tenth(rate: Rate) -> None:
    assert pace_of(rate).interval <= rate.interval * SECOND * 1.1


@pytest.mark.parametrize("rate", [Rate(20), Rate(10), Rate(1, 3600), Rate(5, 0.1)], ids=str)
def test_starts_that_are_far_apart_are_so_by_the_interval_of_the_rate(rate: Rate) -> None:
    assert pace_of(rate).interval == round(rate.interval * SECOND)


# windows


class AtTheWorst:
    """What processes may do at the worst: reserve at any moment, and start as late as may be."""

    def __init__(self, rate: Rate, tick: int = 1) -> None:
        self.tick = tick  # of the clock that lets claims through
        self.rate, self.pace = rate, pace_of(rate)
        self.bucket = Bucket()
        self.now = BEGIN
        self.starts: list[int] = []
        self.reserved: list[Start] = []

    def reserve(self, pause: float, late_command: int, count: int, lateness: list[float]) -> None:
        """Pause for so many intervals, and start what is then reserved.

        Args:
            late_command: for how long the command waited, by whose beginning it is dated.
            lateness: of the starts, by turns, as a share of what there may be.
        """
        self.now += int(pause * self.pace.interval)
        found = self.bucket.reserve(self.pace, count, self.now - late_command)
        self.reserved += found.starts
        for number, start in enumerate(found.starts):
            room = moment_of(start.until) - self.tick - start.planned
            self.starts.append(start.planned + int(room * lateness[number % len(lateness)]))

    def most(self, length: int) -> int:
        return most_in_a_window(sorted(self.starts), length)

    @property
    def allowed(self) -> int:
        return self.rate.count + self.rate.burst


COMMANDS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 1.0, 5.0, 100.0]) | st.floats(0, 60),
        st.sampled_from([0, 0, 0, MILLISECOND, 70 * MILLISECOND, 9 * SECOND]),
        st.integers(1, 60),
        st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=1, max_size=5),
    ),
    min_size=2,
    max_size=60,
)


@st.composite
def small_rates(draw: st.DrawFn) -> Rate:
    """Rates whose windows a few commands fill."""
    count = draw(st.integers(1, 60))
    seconds = draw(st.sampled_from([0.01, 0.05, 0.1, 0.5, 1, 1 / 3, 60]) | st.floats(0.01, 100))
    return Rate(count, seconds, draw(st.integers(1, count)))


@given(small_rates(), COMMANDS)
def test_no_window_has_more_starts_than_the_rate_and_its_burst(
    rate: Rate, commands: list[Any]
) -> None:
    worst = AtTheWorst(rate)
    for command in commands:
        worst.reserve(*command)

    assert worst.most(int(rate.seconds * SECOND)) <= worst.allowed


@given(small_rates(), st.sampled_from([0.999, 2.0]) | st.floats(0, 3))
def test_no_window_has_more_when_all_that_may_be_late_wait_for_one_moment(
    rate: Rate, wait: float
) -> None:
    """The most there can be: many that were planned before it begin then, and the next on time."""
    worst = AtTheWorst(rate)
    window = int(rate.seconds * SECOND)
    moment = BEGIN + int(wait * worst.pace.late)
    while worst.now < moment + window:
        worst.reserve(1.0, 0, 1000, [0.0])

    starts = [
        min(max(one.planned, moment), moment_of(one.until) - worst.tick) for one in worst.reserved
    ]

    assert most_in_a_window(sorted(starts), window) <= worst.allowed


@given(small_rates(), COMMANDS)
def test_no_window_has_more_by_the_dates_that_let_claims_through(
    rate: Rate, commands: list[Any]
) -> None:
    worst = AtTheWorst(rate, tick=MILLISECOND)
    for command in commands:
        worst.reserve(*command)

    dates = sorted(-(-start // MILLISECOND) * MILLISECOND for start in worst.starts)

    assert most_in_a_window(dates, int(rate.seconds * SECOND)) <= worst.allowed


@pytest.mark.parametrize("rate", [Rate(20), Rate(20, 1, 10), Rate(3)], ids=str)
def test_as_many_as_are_promised_may_come_in_one_window(rate: Rate) -> None:
    worst = AtTheWorst(rate)
    worst.reserve(1, 0, rate.burst, [1.0])
    while worst.now < BEGIN + 2 * rate.seconds * SECOND:
        worst.reserve(1, 0, rate.burst, [0.0])

    assert worst.most(int(rate.seconds * SECOND)) == worst.allowed


@pytest.mark.few(3)
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_over_a_long_time_the_rate_is_kept(rate: Rate) -> None:
    worst = AtTheWorst(rate)
    interval = worst.pace.interval
    for _ in range(200 if interval > MILLISECOND else 5):
        worst.reserve(max(1.0, AHEAD / 2 / interval), 0, 1_000_000, [0.5])
    worst.reserve(1, 0, 1, [0.5])
    steady = [start for start in worst.starts if start > BEGIN]

    span = (steady[-1] - steady[0]) / SECOND
    assert len(steady) == pytest.approx(span * rate.count / rate.seconds, rel=0.1)


# reserved starts


@given(small_rates(), COMMANDS)
def test_no_two_starts_are_planned_closer_than_an_interval(rate: Rate, commands: list[Any]) -> None:
    worst = AtTheWorst(rate)
    for command in commands:
        worst.reserve(*command)

    planned = sorted(one.planned for one in worst.reserved)

    assert all(later - one >= worst.pace.interval for one, later in pairwise(planned))


@given(small_rates(), st.integers(0, 2 * SECOND), st.integers(1, 60))
def test_a_start_is_void_when_its_time_to_be_late_is_over(
    rate: Rate, pause: int, count: int
) -> None:
    bucket, pace = Bucket(), pace_of(rate)
    bucket.reserve(pace, count, BEGIN)
    now = (BEGIN + pause) // MILLISECOND * MILLISECOND

    for start in bucket.reserve(pace, count, now).starts:
        assert start.planned >= now - (rate.burst - 1) * pace.interval
        assert moment_of(start.until) <= max(start.planned, now) + pace.late


# reserving


def test_none_is_reserved_far_from_now() -> None:
    bucket, pace = Bucket(), pace_of(Rate(1000))

    found = bucket.reserve(pace, 1000, BEGIN).starts

    assert max(one.planned for one in found) <= BEGIN + AHEAD
    assert len(found) == AHEAD // pace.interval + 1


def test_a_burst_is_there_at_once_after_a_pause() -> None:
    pace = pace_of(Rate(10, burst=4))

    found = Bucket().reserve(pace, 10, BEGIN).starts

    assert sum(one.due <= local(BEGIN) < one.void for one in found) == 4


def test_a_start_of_a_burst_is_good_for_as_long_as_any_other() -> None:
    pace = pace_of(Rate(10, burst=4))

    first, *_ = Bucket().reserve(pace, 10, BEGIN).starts

    assert moment_of(first.until) == BEGIN + pace.late


def test_a_rate_that_has_become_faster_holds_at_once() -> None:
    bucket = Bucket()
    bucket.reserve(pace_of(Rate(1, 3600)), 1, BEGIN)

    assert bucket.reserve(pace_of(Rate(100)), 1, BEGIN + SECOND).starts


def test_a_rate_that_has_become_slower_holds_from_the_last_start_on() -> None:
    bucket = Bucket()
    bucket.reserve(pace_of(Rate(100)), 1, BEGIN)

    found = bucket.reserve(pace_of(Rate(1, 3600)), 1, BEGIN + SECOND)

    assert found == ((), BEGIN + 3600 * SECOND, 3600.0)


def test_a_clock_that_went_back_by_an_hour_holds_up_nobody_for_longer_than_an_interval() -> None:
    bucket, pace = Bucket(), pace_of(Rate(10))
    bucket.reserve(pace, 1, BEGIN + 3600 * SECOND)

    bucket.reserve(pace, 1, BEGIN)

    assert bucket.reserve(pace, 1, BEGIN + pace.interval).starts


# clocks


@given(
    st.integers(0, SECOND),
    st.integers(0, SECOND),
    st.floats(0, 1e8),
    st.integers(-SECOND, SECOND),
)
def test_what_is_due_here_is_due_by_the_dates_of_the_server(
    asked: int, way_back: int, ahead: float, planned: int
) -> None:
    at = BEGIN + asked
    received = local(at + way_back) + ahead
    answered = Answered(at // MILLISECOND * MILLISECOND, received, received)

    start = reservation(pace_of(Rate(50)), answered, 0, BEGIN + planned, 1, at).starts[0]

    # What the server's clock shows when it is due, but for what a float of seconds leaves out.
    shown = at + way_back + round((start.due - received) * SECOND) + 1000
    assert shown - shown % MILLISECOND >= start.planned


def test_a_start_whose_answer_was_slow_is_void_when_it_may_be_so_for_the_server() -> None:
    pace = pace_of(Rate(50))
    answered = Answered(BEGIN, local(BEGIN), local(BEGIN) + 0.04)

    start = reservation(pace, answered, 0, BEGIN + 10 * MILLISECOND, 1, BEGIN).starts[0]

    assert start.due == pytest.approx(local(BEGIN) + 0.05)
    assert start.void == pytest.approx(local(moment_of(start.until)))


@given(st.integers(0, 10**18))
def test_a_date_is_its_moment_but_for_what_dates_leave_out(moment: int) -> None:
    assert moment_of(date(moment)) == moment - moment % MILLISECOND


# names


def test_queues_and_scopes_have_buckets_of_their_own() -> None:
    pairs = [("a", "t:b"), ("a", "g:b"), ("a", "q:"), ("b", "q:"), ("a", "t:b:q:")]

    assert len({bucket_id(*pair) for pair in pairs}) == len(pairs)
