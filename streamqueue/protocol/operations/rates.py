"""Rates: starts reserved in their buckets, which have a collection of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson import Int64

from ...durations import milliseconds
from ..rates import AHEAD, LIMIT, MILLISECOND, OTHER_CLOCK, Answered, moment_of, reservation
from .commands import Find, Update
from .expressions import one_of
from .replies import DUPLICATE_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..rates import Pace, Reservation
    from .commands import Document

MOST_TAKEN = 8
"""Reservations that a bucket remembers: of those that others make until the first is read."""


def reserve(bucket: str, pace: Pace, count: int, by: bytes) -> Update:
    """Reserve so many of the next starts of a bucket, or as many as are near. An upsert, which a
    duplicate key fails when two make the bucket at once.

    Nothing is written when none is near. A last start that was planned by another clock, which was
    far ahead of this one, counts as the latest that may be: it was no later than that when it was
    planned, and holds up nobody for as long as the clocks differ. A smaller difference is waited
    out, because a command that is late looks the same: let the last start go back for that, and two
    starts are planned at one time.

    Args:
        by: which finds what was reserved: fresh for each try.
    """
    interval = Int64(pace.interval)
    is_long = {"$eq": [{"$type": "$last"}, "long"]}
    latest = {"$add": ["$$now", Int64(AHEAD)]}
    is_odd = {"$gt": ["$last", {"$add": ["$$now", Int64(OTHER_CLOCK)]}]}
    as_if_full = {"$subtract": ["$$now", Int64(pace.interval * (pace.burst - 1))]}
    near = {"$floor": {"$divide": [{"$subtract": [latest, "$$first"]}, interval]}}
    times = {
        "now": {"$multiply": [{"$toLong": "$$NOW"}, Int64(MILLISECOND)]},
        # (Null plus an interval is null, which is no maximum.)
        "known": {"$cond": [is_long, {"$cond": [is_odd, latest, "$last"]}, None]},
        "first": {"$max": [{"$add": ["$$known", interval]}, as_if_full]},
        "granted": {"$toInt": {"$max": [0, {"$min": [count, {"$add": [near, 1]}]}]}},
        # (Of none the first is an interval after the last, and this is that.)
        "last": {"$add": ["$$first", {"$multiply": [{"$subtract": ["$$granted", 1]}, interval]}]},
    }
    bucket_then: Document = {
        "last": "$$last",
        "taken": _taken(by),
        "full_at": _date({"$add": ["$$last", Int64(pace.to_fill)]}),
    }
    changed = _let(times, {"$mergeObjects": ["$$ROOT", bucket_then]})
    return Update({"_id": {"$eq": bucket}}, [{"$replaceWith": changed}])


def _let(variables: Mapping[str, Any], result: Document) -> Document:
    """An expression; each of the variables may be made of those before it."""
    for name, value in reversed(list(variables.items())):
        result = {"$let": {"vars": {name: value}, "in": result}}
    return result


def _taken(by: bytes) -> Document:
    """An expression: the last reservations, with this one if it is one."""
    before = {"$cond": [{"$isArray": "$taken"}, "$taken", []]}
    mine = {"by": {"$literal": by}, "first": "$$first", "count": "$$granted", "at": "$$now"}
    more = {"$slice": [{"$concatArrays": [before, [mine]]}, -MOST_TAKEN]}
    return {"$cond": [{"$gt": ["$$granted", 0]}, more, before]}


def _date(moment: Document) -> Document:
    """An expression: a time in nanoseconds as a date, which is later, by no more than 2 ms."""
    whole = {"$toLong": {"$divide": [moment, MILLISECOND]}}
    return {"$add": [{"$toDate": whole}, 2]}  # one for the fraction, one for that of a double


def reserve_one(collection: str, update: Update, by: bytes, write_concern: Document) -> Document:
    """Send one such update, and have what was reserved in the reply."""
    return {
        "findAndModify": collection,
        "query": update.filter,
        "update": update.update,
        "upsert": True,
        "new": True,
        "fields": _reserved_by(by),
        "maxTimeMS": milliseconds(LIMIT),
        "writeConcern": write_concern,
    }


def reserve_each(collection: str, updates: Sequence[Update], write_concern: Document) -> Document:
    """Send many, whichever of them fail."""
    return {
        "update": collection,
        "updates": [{"q": one.filter, "u": one.update, "upsert": True} for one in updates],
        "ordered": False,
        "maxTimeMS": milliseconds(LIMIT),
        "writeConcern": write_concern,
    }


def reserved(buckets: Sequence[str], by: bytes) -> Find:
    """What was reserved in these buckets."""
    return Find({"_id": one_of(buckets)}, _reserved_by(by), limit=len(buckets))


def _reserved_by(by: bytes) -> Document:
    mine = {"$eq": ["$$this.by", {"$literal": by}]}
    return {"now": "$$NOW", "last": 1, "taken": {"$filter": {"input": "$taken", "cond": mine}}}


def made_by_others(reply: Mapping[str, Any]) -> list[int]:
    """Return which of many upserts failed because another one made the document, by their
    positions; none if anything else went wrong with one."""
    errors = reply.get("writeErrors", ())
    if "writeConcernError" in reply or any(one["code"] != DUPLICATE_KEY for one in errors):
        return []
    return [one["index"] for one in errors]


def reservation_in(
    bucket: Mapping[str, Any], pace: Pace, sent: float, received: float
) -> Reservation:
    """Return what was reserved, by a bucket as it was read.

    Args:
        sent: when it was asked for, by a clock that counts seconds.
        received: when it was there.
    """
    answered = Answered(moment_of(bucket["now"]), sent, received)
    for mine in bucket["taken"]:
        times = (mine["first"], mine["count"], mine["at"])
        return reservation(pace, answered, bucket["last"], *times)
    return reservation(pace, answered, bucket["last"])
