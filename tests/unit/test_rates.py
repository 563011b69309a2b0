"""The arithmetic of rates: how far apart starts are planned, and how many that lets through.

Law: a limit is a limit.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamqueue.names import is_name
from streamqueue.protocol.limits import Rate
from streamqueue.protocol.rates import (
    AHEAD,
    LEAST_LATE,
    MILLISECOND,
    SECOND,
    Reservation,
    Token,
    bucket_id,
    date,
    nanoseconds,
    pace_of,
    span_of,
)
from tests.buckets import BEGIN, Bucket, most_in_a_window

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


@pytest.mark.parametrize("rate", [Rate(50), Rate(10), Rate(1, 3600), Rate(5, 0.1)], ids=str)
def test_starts_that_are_far_apart_are_so_by_the_interval_of_the_rate(rate: Rate) -> None:
    assert pace_of(rate).interval == round(rate.interval * SECOND)


# windows


class Starts:
    """What processes may do at the worst: reserve at any moment, and start as late as may be."""

    def __init__(self, rate: Rate, tick: int = 1) -> None:
        self.tick = tick  # of the clock that lets claims through
        self.rate, self.pace = rate, pace_of(rate)
        self.bucket = Bucket()
        self.now = BEGIN
        self.starts: list[int] = []
        self.tokens: list[Token] = []

    def reserve(self, pause: float, late_command: int, count: int, lateness: list[float]) -> None:
        """Pause for so many intervals, and start what is then reserved.

        Args:
            late_command: for how long the command waited, by whose beginning it is dated.
            lateness: of the starts, by turns, as a share of what there may be.
        """
        self.now += int(pause * self.pace.interval)
        found = self.bucket.reserve(self.pace, count, self.now - late_command)
        self.tokens += found.tokens
        for number, token in enumerate(found.tokens):
            room = token.until - self.tick - token.planned
            self.starts.append(token.planned + int(room * lateness[number % len(lateness)]))

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
    starts = Starts(rate)
    for command in commands:
        starts.reserve(*command)

    assert starts.most(int(rate.seconds * SECOND)) <= starts.allowed


@given(small_rates(), COMMANDS)
def test_no_window_has_more_by_the_dates_that_let_claims_through(
    rate: Rate, commands: list[Any]
) -> None:
    starts = Starts(rate, tick=MILLISECOND)
    for command in commands:
        starts.reserve(*command)

    dates = sorted(nanoseconds(date(start)) for start in starts.starts)

    assert most_in_a_window(dates, int(rate.seconds * SECOND)) <= starts.allowed


@pytest.mark.parametrize("rate", [Rate(50), Rate(50, 1, 10), Rate(3)], ids=str)
def test_as_many_as_are_promised_may_come_in_one_window(rate: Rate) -> None:
    starts = Starts(rate)
    starts.reserve(1, 0, rate.burst, [1.0])
    while starts.now < BEGIN + 2 * rate.seconds * SECOND:
        starts.reserve(1, 0, rate.burst, [0.0])

    assert starts.most(int(rate.seconds * SECOND)) == starts.allowed


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_over_a_long_time_the_rate_is_kept(rate: Rate) -> None:
    starts = Starts(rate)
    interval = starts.pace.interval
    for _ in range(200 if interval > MILLISECOND else 5):
        starts.reserve(max(1.0, AHEAD / 2 / interval), 0, 1_000_000, [0.5])
    starts.reserve(1, 0, 1, [0.5])
    steady = [start for start in starts.starts if start > BEGIN]

    span = (steady[-1] - steady[0]) / SECOND
    assert len(steady) == pytest.approx(span * rate.count / rate.seconds, rel=0.1)


# tokens


@given(small_rates(), COMMANDS)
def test_no_two_starts_are_planned_closer_than_an_interval(rate: Rate, commands: list[Any]) -> None:
    starts = Starts(rate)
    for command in commands:
        starts.reserve(*command)

    planned = sorted(token.planned for token in starts.tokens)

    assert all(later - one >= starts.pace.interval for one, later in pairwise(planned))


@given(small_rates(), st.integers(0, 2 * SECOND), st.integers(1, 60))
def test_a_token_is_void_when_its_time_to_be_late_is_over(
    rate: Rate, pause: int, count: int
) -> None:
    bucket, pace = Bucket(), pace_of(rate)
    bucket.reserve(pace, count, BEGIN)
    now = (BEGIN + pause) // MILLISECOND * MILLISECOND

    for token in bucket.reserve(pace, count, now).tokens:
        assert token.planned >= now - (rate.burst - 1) * pace.interval
        assert token.until <= max(token.planned, now) + pace.late


# reserving


def test_none_is_reserved_far_from_now() -> None:
    bucket, pace = Bucket(), pace_of(Rate(1000))

    tokens = bucket.reserve(pace, 1000, BEGIN).tokens

    assert max(token.planned for token in tokens) <= BEGIN + AHEAD
    assert len(tokens) == AHEAD // pace.interval + 1


def test_a_burst_is_there_at_once_after_a_pause() -> None:
    pace = pace_of(Rate(10, burst=4))

    tokens = Bucket().reserve(pace, 10, BEGIN).tokens

    assert sum(token.planned <= BEGIN < token.until for token in tokens) == 4


def test_a_token_of_a_burst_is_good_for_as_long_as_any_other() -> None:
    pace = pace_of(Rate(10, burst=4))

    first, *_ = Bucket().reserve(pace, 10, BEGIN).tokens

    assert first.until == BEGIN + pace.late


def test_a_rate_that_has_become_faster_holds_at_once() -> None:
    bucket = Bucket()
    bucket.reserve(pace_of(Rate(1, 3600)), 1, BEGIN)

    assert bucket.reserve(pace_of(Rate(100)), 1, BEGIN + SECOND).tokens


def test_a_rate_that_has_become_slower_holds_from_the_last_start_on() -> None:
    bucket = Bucket()
    bucket.reserve(pace_of(Rate(100)), 1, BEGIN)

    found = bucket.reserve(pace_of(Rate(1, 3600)), 1, BEGIN + SECOND)

    assert found == Reservation((), BEGIN + 3600 * SECOND)


def test_a_clock_that_went_back_by_an_hour_holds_up_nobody_for_longer_than_an_interval() -> None:
    bucket, pace = Bucket(), pace_of(Rate(10))
    bucket.reserve(pace, 1, BEGIN + 3600 * SECOND)

    bucket.reserve(pace, 1, BEGIN)

    assert bucket.reserve(pace, 1, BEGIN + pace.interval).tokens


# dates


def test_a_date_is_never_before_its_moment() -> None:
    assert date(BEGIN + 1) == date(BEGIN + MILLISECOND) == date(BEGIN) + timedelta(milliseconds=1)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_a_moment_in_nanoseconds_is_exact(moment: datetime) -> None:
    assert moment == datetime.fromtimestamp(0, UTC) + timedelta(
        microseconds=nanoseconds(moment) // 1000
    )


def test_one_claim_by_many_tokens_is_good_while_all_of_them_are() -> None:
    early = Token(BEGIN, BEGIN + 20 * MILLISECOND)
    later = Token(BEGIN + 1, BEGIN + 30 * MILLISECOND)

    assert span_of([early, later]) == (date(BEGIN + MILLISECOND), date(early.until))


def test_tokens_that_are_never_good_together_have_no_time_for_one_claim() -> None:
    first, until = span_of([Token(BEGIN, BEGIN + MILLISECOND), Token(BEGIN + SECOND, BEGIN * 2)])

    assert until <= first


# names


def test_no_queue_has_the_name_of_a_bucket() -> None:
    assert not is_name(bucket_id("default", "q:"))


def test_queues_and_scopes_have_buckets_of_their_own() -> None:
    pairs = [("a", "t:b"), ("a", "g:b"), ("a", "q:"), ("b", "q:"), ("a", "t:b:q:")]

    assert len({bucket_id(*pair) for pair in pairs}) == len(pairs)
