"""The wait between two attempts."""

from __future__ import annotations

import dataclasses
import math
import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamqueue import Backoff, ConfigurationError
from streamqueue.durations import LONGEST

ATTEMPTS = st.integers(min_value=1, max_value=1_000_000)
DURATIONS = st.floats(min_value=0, max_value=LONGEST)
FACTORS = st.floats(min_value=1, max_value=1000)
SHARES = st.floats(min_value=0, max_value=1)


def test_each_wait_is_the_one_before_times_the_factor() -> None:
    backoff = Backoff(initial=2, maximum=1000, factor=3, jitter=0)

    waits = [backoff.delay(attempt) for attempt in (1, 2, 3, 4)]

    assert waits == [2, 6, 18, 54]


def test_a_wait_is_never_longer_than_the_maximum() -> None:
    backoff = Backoff(initial=1, maximum=60, factor=10, jitter=0)

    waits = [backoff.delay(attempt) for attempt in (2, 3, 4, 1_000_000)]

    assert waits == [10, 60, 60, 60]


@given(attempt=ATTEMPTS, initial=DURATIONS, maximum=DURATIONS, factor=FACTORS, jitter=SHARES)
def test_a_wait_is_finite_and_within_zero_and_the_maximum(
    attempt: int, initial: float, maximum: float, factor: float, jitter: float
) -> None:
    backoff = Backoff(initial, maximum, factor, jitter)

    wait = backoff.delay(attempt)

    assert math.isfinite(wait)
    assert 0 <= wait <= maximum


@given(attempt=st.integers(1, 40), jitter=SHARES, seed=st.integers())
def test_jitter_takes_away_at_most_its_share(attempt: int, jitter: float, seed: int) -> None:
    whole = Backoff(jitter=0).delay(attempt)
    random.seed(seed)

    wait = Backoff(jitter=jitter).delay(attempt)

    assert whole * (1 - jitter) <= wait <= whole


@given(initial=DURATIONS, maximum=DURATIONS, factor=FACTORS, attempt=st.integers(1, 3000))
def test_without_jitter_a_later_attempt_never_waits_less(
    initial: float, maximum: float, factor: float, attempt: int
) -> None:
    backoff = Backoff(initial, maximum, factor, jitter=0)

    assert backoff.delay(attempt) <= backoff.delay(attempt + 1)


def test_full_jitter_spreads_over_the_whole_wait() -> None:
    backoff = Backoff(initial=100, maximum=100)
    random.seed(1)

    waits = [backoff.delay(1) for _ in range(1000)]

    assert min(waits) < 5
    assert max(waits) > 95


@pytest.mark.parametrize("attempt", [1, 2, 1000, 1100, 1_000_000])
def test_an_initial_wait_of_nothing_stays_nothing(attempt: int) -> None:
    backoff = Backoff(initial=0, jitter=0)

    assert backoff.delay(attempt) == 0


@pytest.mark.parametrize("attempt", [0, -1, -(2**63)])
def test_a_damaged_attempt_number_waits_like_the_first(attempt: int) -> None:
    backoff = Backoff(initial=7, jitter=0)

    assert backoff.delay(attempt) == 7


def test_a_whole_factor_is_computed_in_floating_point() -> None:
    # 2 ** 10**12 as an int would take all memory there is; attempts come from documents.
    backoff = Backoff(factor=2)

    assert isinstance(backoff.factor, float)


def test_durations_may_be_timedeltas() -> None:
    backoff = Backoff(timedelta(minutes=1), timedelta(minutes=3), jitter=0)

    assert [backoff.delay(1), backoff.delay(3)] == [60, 180]


def test_it_cannot_be_changed_after_it_was_checked() -> None:
    backoff = Backoff()

    with pytest.raises(dataclasses.FrozenInstanceError):
        backoff.initial = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", ["initial", "maximum"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "1", None, timedelta(-1)])
def test_a_bad_duration_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Backoff(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.9, 0, -2, 1001, math.nan, math.inf, True, "2", None])
def test_a_bad_factor_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="factor"):
        Backoff(factor=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "1", None])
def test_a_bad_jitter_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="jitter"):
        Backoff(jitter=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("attempt", [1025, 10**6, 10**400], ids=["1025", "a million", "10**400"])
def test_no_number_of_failures_is_too_many(attempt: int) -> None:
    assert Backoff(initial=0.2, maximum=5, factor=2, jitter=0).delay(attempt) == 5
    assert Backoff(initial=0.2, maximum=5, factor=1, jitter=0).delay(attempt) == 0.2
    assert Backoff(initial=0, maximum=5, factor=2, jitter=0).delay(attempt) == 0
