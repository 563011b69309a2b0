"""Durations and points in time as the public API takes them, normalised at the door.

A duration is a float of seconds or a timedelta; inside the package it is always float seconds, and
milliseconds exist only in the commands sent to MongoDB.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from .errors import ConfigurationError

LONGEST = 10 * 365 * 24 * 3600.0
"""Ten years: longer is a mistake in the unit, and dates stay far from BSON's limits."""


def seconds(value: float | timedelta, name: str, *, minimum: float = 0.0) -> float:
    """Return a duration in seconds; ConfigurationError names the argument and its range."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(
            f"{name} must be a number of seconds or a timedelta, not {type(value).__name__}"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not minimum <= number <= LONGEST:  # also false for NaN
        raise ConfigurationError(
            f"{name} must be from {minimum:g} seconds to ten years, not {shown(value)}"
        )
    return number


def seconds_or_moment(
    value: float | timedelta | datetime | None, name: str
) -> float | datetime | None:
    """Return a duration in seconds, or a point in time if it is one; None for None."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return point_in_time(value, name)
    return seconds(value, name)


def shown(value: object) -> str:
    """Return what a message shows of a bad argument: short, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # an int of 5000 digits has none, and neither have some objects
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:79] + "…"


def milliseconds(value: float) -> int:
    """Return whole milliseconds, rounded up so that a short wait never becomes none."""
    return math.ceil(value * 1000)


def point_in_time(value: datetime, name: str) -> datetime:
    """Return an aware UTC datetime; a naive one is refused because it names no point in time."""
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{name} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ConfigurationError(
            f"{name} must have a time zone: a naive datetime means another moment on each machine "
            "(use datetime.now(UTC) + timedelta(...))"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ConfigurationError(f"{name} is outside the years 1 to 9999 in UTC") from None
