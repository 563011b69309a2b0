"""What filters and updates are made of, where any program may have stored anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...durations import LONGEST, milliseconds
from ..foreign import StrangeId, among
from ..foreign import literal as strange_literal
from ..schema import FIRST_DATE, LAST_DATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .commands import Document


MAX_COUNT = 2**31


def one_of(values: Sequence[Any]) -> Document:
    """A condition: the field is one of these."""
    return {"$eq": values[0]} if len(values) == 1 else {"$in": list(values)}


def one_of_ids(ids: Sequence[Any]) -> Any:
    """The same for ids of documents that may be anybody's."""
    return among(ids) if any(type(job_id) is StrangeId for job_id in ids) else one_of(ids)


def literal(value: Any) -> Any:
    """An expression; this value, whatever it is."""
    return strange_literal(value) if isinstance(value, StrangeId) else {"$literal": value}


def count_of(field: str, default: int | Document) -> Document:
    """An expression: the field where it is a count, else its default.

    NaN sorts before all numbers, so it is no count either.
    """
    value = f"${field}"
    is_count = {"$and": [{"$isNumber": value}, {"$gte": [value, 0]}, {"$lt": [value, MAX_COUNT]}]}
    return {"$cond": [is_count, value, default]}


def seconds_of(field: str, default: float | Document) -> Document:
    """An expression: the field where it is a duration, else its default."""
    value = f"${field}"
    is_duration = {"$and": [{"$isNumber": value}, {"$gte": [value, 0]}, {"$lte": [value, LONGEST]}]}
    return {"$cond": [is_duration, value, default]}


def later(delay: float) -> Document:
    """An expression; the server's time, so many seconds later."""
    return {"$add": ["$$NOW", milliseconds(delay)]}


def near(date: str) -> Document:
    """An expression; the date, or the nearest one within the years 1 to 9999.

    Every stored date must pass through here before it is subtracted from: the server counts in 64
    bits and wraps around, so a job that was due 300 million years ago would never be.
    """
    return {"$max": [FIRST_DATE, {"$min": [LAST_DATE, date]}]}


def past(field: str, by: float = 0.0) -> Document:
    """A filter: the moment has come, so many seconds ago, or is none.

    The comparison takes in all that sorts before dates, such as a missing field; the types that
    sort after them are named. Both branches are ranges of the index.
    """
    moment: str | Document = {"$subtract": ["$$NOW", round(by * 1000)]} if by else "$$NOW"
    return {"$or": [{"$expr": {"$lte": [f"${field}", moment]}}, {field: {"$type": _NO_MOMENT}}]}


_NO_MOMENT = ["timestamp", "regex", "dbPointer", "javascript", "javascriptWithScope", "maxKey"]


def milliseconds_since(field: str, *, no_date: int | None) -> Document:
    """An expression; with another value for what is no date."""
    return {"$cond": [is_date(field), {"$subtract": ["$$NOW", near(f"${field}")]}, no_date]}


def milliseconds_until(field: str) -> Document:
    """An expression; what is no date is due at once, so that its job hides none behind it."""
    return {"$cond": [is_date(field), {"$subtract": [near(f"${field}"), "$$NOW"]}, 0]}


def is_date(field: str) -> Document:
    """An expression; whether the field is a date."""
    return {"$eq": [{"$type": f"${field}"}, "date"]}


def is_timestamp(field: str) -> Document:
    """An expression; whether the field is one of the server's logical clock."""
    return {"$eq": [{"$type": f"${field}"}, "timestamp"]}
