"""The list of live consumers, and who of them leads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .commands import Document, Find, Update
from .expressions import is_date, later, milliseconds_since, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


SILENT_AFTER = 75.0
"""Seconds until a consumer that says nothing counts as gone: it says so every 30, and two may be
missed."""


def register(
    consumer: str,
    queues: Sequence[str],
    concurrency: int,
    about: Mapping[str, Any],
    schedules: Sequence[str] = (),
) -> Update:
    """Say that a consumer lives, and what for. An upsert, in the collection of consumers.

    Args:
        about: for people to read.
        schedules: the names of those that its code declares.
    """
    return Update(
        {"_id": {"$eq": consumer}},
        [
            {
                "$set": {
                    "queues": {"$literal": list(queues)},
                    "concurrency": {"$literal": concurrency},
                    "started_at": {"$ifNull": ["$started_at", "$$NOW"]},
                    "seen_at": "$$NOW",
                    **{name: {"$literal": value} for name, value in about.items()},
                    # (An earlier one of this name may have declared some.)
                    "schedules": {"$literal": list(schedules)} if schedules else "$$REMOVE",
                }
            }
        ],
    )


def deregister(consumer: str, *others: str) -> Document:
    """The filter for consumers that have gone."""
    return {"_id": one_of([consumer, *others])}


def lives(consumer: Mapping[str, Any]) -> bool:
    """Whether a consumer, as it was read, has said something of late."""
    silent = consumer.get("silent")
    return isinstance(silent, (int, float)) and silent < SILENT_AFTER * 1000


def registered() -> Find:
    """All consumers there are, with the milliseconds since each was seen as ``silent``, and since
    it started as ``up``.

    One that will be seen in a year is as silent as one that was seen a year ago.
    """
    times = {
        "silent": {"$abs": milliseconds_since("seen_at", no_date=None)},
        "up": milliseconds_since("started_at", no_date=None),
    }
    about = dict.fromkeys(("queues", "concurrency", "host", "pid", "version"), 1)
    return Find({"_id": {"$type": "string"}}, {**about, **times})


def declarers(schedule: str, last: str | None) -> Find:
    """Those of the consumers whose code declares a schedule, and who has declared it last."""
    wanted = {"$or": [{"_id": {"$eq": last}}, {"schedules": {"$eq": schedule}}]}
    return Find(wanted, registered().projection)


_LEADER: Document = {"leader": "state"}
"""Where the list of consumers keeps who exports the state; no consumer's name, those are text."""


LONGEST_LEAD = 86400.0
"""Seconds; a place that is held for longer than that, and than this one would, is held by nobody:
else a date in the year 10000 would be the end of all exporting."""


def lead(consumer: str, timeout: float) -> Update:
    """Become, or stay, the one that exports the state: the ``holder`` of what this leaves behind.

    An upsert, in the collection of consumers. It changes nothing while somebody else leads. (The
    condition is in the update: a filter with ``$expr`` is not allowed in an upsert.)
    """
    me = {"$literal": consumer}
    longest = later(max(timeout, LONGEST_LEAD))
    is_held = {
        "$and": [
            is_date("held_until"),
            {"$gt": ["$held_until", "$$NOW"]},
            {"$lte": ["$held_until", longest]},  # else no leader has written it
        ]
    }
    ours = {"$or": [{"$eq": ["$holder", me]}, {"$not": [is_held]}]}
    fields: Document = {
        "holder": me,
        "held_until": later(timeout),
        # What versions that know of no leader read: one consumer more, of no queue.
        "seen_at": "$$NOW",
        "queues": {"$literal": []},
    }
    update = {name: {"$cond": [ours, value, f"${name}"]} for name, value in fields.items()}
    return Update({"_id": _LEADER}, [{"$set": update}])


def resign(consumer: str) -> Document:
    """The filter for this consumer's place as the leader."""
    return {"_id": _LEADER, "holder": {"$eq": consumer}}
