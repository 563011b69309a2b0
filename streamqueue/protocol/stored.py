"""What is in a stored field, whichever program wrote it: a value of its kind, or none."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from ..durations import LONGEST

Default = TypeVar("Default")


def whole_of(value: object, default: Default) -> int | Default:
    """Return a stored whole number, or the default for what is none."""
    if type(value) is int:  # as almost always
        return value
    if isinstance(value, float) and value.is_integer():  # mongosh writes 1 as a double
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def seconds_in(value: object, default: float | None) -> float | None:
    """Return a stored length of time, or the default for what is none."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return float(value) if 0 <= value <= LONGEST else default


def text_in(value: object) -> str | None:
    """Return a stored text, or None for what is none."""
    return value if type(value) is str else None  # Code is a str too, and has no hash


def texts_in(value: object) -> tuple[str, ...]:
    """Return a stored list of texts, without what is none; empty for what is no list."""
    if not isinstance(value, list):
        return ()
    return tuple(one for one in value if type(one) is str)


def list_in(value: object) -> tuple[Any, ...]:
    """Return a stored list; empty for what is none."""
    return tuple(value) if isinstance(value, list) else ()


def date_of(value: object) -> datetime | None:
    """Return a stored date, or None for what is none, or beyond the years of Python."""
    return value if isinstance(value, datetime) and value.tzinfo is not None else None
