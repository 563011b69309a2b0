"""Durations and points in time at the door of the public API."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamqueue import ConfigurationError
from streamqueue.durations import LONGEST, milliseconds, point_in_time, seconds


class NoOffset(tzinfo):
    """A zone that does not say how far from UTC it is: such a datetime counts as naive."""

    def utcoffset(self, _when: datetime | None) -> timedelta | None:
        return None

    def dst(self, _when: datetime | None) -> timedelta | None:
        return None

    def tzname(self, _when: datetime | None) -> str | None:
        return None


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (0, 0.0),
        (1.5, 1.5),
        (3, 3.0),
        (timedelta(0), 0.0),
        (timedelta(minutes=2, milliseconds=1), 120.001),
        (LONGEST, LONGEST),
    ],
)
def test_a_duration_becomes_float_seconds(given_value: float | timedelta, expected: float) -> None:
    value = seconds(given_value, "delay")

    assert value == expected
    assert type(value) is float


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(-1, id="negative"),
        pytest.param(-0.001, id="slightly negative"),
        pytest.param(timedelta(microseconds=-1), id="negative timedelta"),
        pytest.param(math.nan, id="NaN"),
        pytest.param(math.inf, id="infinity"),
        pytest.param(-math.inf, id="minus infinity"),
        pytest.param(LONGEST * 1.001, id="over ten years"),
        pytest.param(timedelta.max, id="the longest timedelta"),
        pytest.param(10**400, id="too large for a float"),
        pytest.param(10**5000, id="too large to be printed"),
        pytest.param(True, id="a bool"),
        pytest.param("5", id="a string"),
        pytest.param(None, id="None"),
        pytest.param(5j, id="complex"),
        pytest.param([5], id="a list"),
        pytest.param(datetime(2020, 1, 1, tzinfo=UTC), id="a point in time"),
    ],
)
def test_a_bad_duration_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match="delay must be"):
        seconds(value, "delay")  # type: ignore[arg-type]


def test_a_duration_below_the_minimum_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"timeout must be from 0\.5 seconds"):
        seconds(0.4, "timeout", minimum=0.5)


@given(st.floats(min_value=0, max_value=LONGEST))
def test_milliseconds_are_whole_and_never_shorter_than_the_duration(value: float) -> None:
    whole = milliseconds(value)

    assert isinstance(whole, int)
    assert 0 <= whole - value * 1000 <= 1


def test_the_shortest_wait_is_not_rounded_to_none() -> None:
    assert milliseconds(1e-9) == 1


def test_a_point_in_time_becomes_utc() -> None:
    nepal = timezone(timedelta(hours=5, minutes=45))

    point = point_in_time(datetime(2030, 1, 1, 5, 45, tzinfo=nepal), "run_at")

    assert point == datetime(2030, 1, 1, tzinfo=UTC)
    assert point.tzinfo is UTC


@pytest.mark.parametrize(
    "naive",
    [
        pytest.param(datetime(2030, 1, 1), id="no zone"),
        pytest.param(datetime(2030, 1, 1, tzinfo=NoOffset()), id="a zone without offset"),
    ],
)
def test_a_naive_datetime_is_refused_with_what_to_do(naive: datetime) -> None:
    with pytest.raises(ConfigurationError, match=r"run_at must have a time zone.*now\(UTC\)"):
        point_in_time(naive, "run_at")


@pytest.mark.parametrize("value", [5, "2030-01-01", None, date(2030, 1, 1), timedelta(1)])
def test_what_is_not_a_datetime_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="run_at must be a datetime"):
        point_in_time(value, "run_at")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
    ],
)
def test_a_point_in_time_that_utc_cannot_express_is_refused(value: datetime) -> None:
    with pytest.raises(ConfigurationError, match="run_at"):
        point_in_time(value, "run_at")
