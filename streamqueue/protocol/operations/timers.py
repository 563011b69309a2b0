"""What time does to jobs: they fall due, and leases end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...names import label_of
from ..document import JobRecord
from ..terms import said_of
from .commands import Document, Find, Update
from .expressions import milliseconds_until, one_of, one_of_ids, past
from .transitions import (
    LAST_IN,
    NO_PROGRESS,
    UNLISTED,
    answered,
    exhausted,
    held_unless,
    noted,
    over,
    unless_asked,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson import ObjectId

    from ..terms import LimitOf


def due(queues: Sequence[str], limit: int) -> Find:
    """Scheduled jobs whose time has come."""
    return Find(
        {
            "queue": one_of(queues),
            "state": "scheduled",
            **past("run_at"),
        },
        {"_id": 1},
        [("run_at", 1)],
        -limit,
        bare=True,
    )


def promote(ids: Sequence[ObjectId]) -> Update:
    """Make due jobs ready; the change event of it is what wakes consumers."""
    return Update(
        {"_id": one_of_ids(ids), "state": "scheduled", **past("run_at")},
        [{"$set": {"state": "ready", **NO_PROGRESS, **UNLISTED, **LAST_IN}}],
    )


def next_due(queues: Sequence[str], limit: int = 1) -> Find:
    """The scheduled jobs that are due first, with the milliseconds until then as ``due_in``."""
    return Find(
        {"queue": one_of(queues), "state": "scheduled"},
        {"_id": 1, "due_in": milliseconds_until("run_at")},
        [("run_at", 1)],
        -limit,
        bare=True,
    )


def next_expiry(queues: Sequence[str] | None, limit: int = 1) -> Find:
    """The running jobs whose lease ends first, with the milliseconds until then as ``due_in``."""
    return Find(
        {"state": "running", **_of(queues)},
        {"_id": 1, "due_in": milliseconds_until("locked_until")},
        [("locked_until", 1)],
        -limit,
        bare=True,
    )


_JUDGED_BY = (
    *("_id", "queue", "attempts", "max_attempts", "allowed", "locked_by"),
    *("cancel_requested_at", "task", "key", "key_until", "unique_until", "keep", "kept", "slots"),
    "after",
)


def expired(queues: Sequence[str] | None, limit: int) -> Find:
    """Running jobs whose lease has ended, of these queues or of all in the collection."""
    return Find(
        {"state": "running", **_of(queues), **past("locked_until")},
        dict.fromkeys(_JUDGED_BY, 1),
        [("locked_until", 1)],
        -limit,
        bare=True,
    )


def group_expired(
    found: Iterable[Mapping[str, Any]], limit_of: LimitOf
) -> dict[tuple[str, str], list[ObjectId]]:
    """Sort expired jobs by queue and by what reaping will make of them, for metrics and the log."""
    groups: dict[tuple[str, str], list[ObjectId]] = {}
    for document in found:
        record = JobRecord.from_document(document, max_attempts=0)
        queue = label_of(record.queue)
        limit = record.max_attempts or said_of(limit_of(queue), record.task)
        result = "dead" if record.attempts >= limit else "requeued"
        if record.asked:
            result = "cancelled"
        groups.setdefault((queue, result), []).append(record.id)
    return groups


def unkept_holders(found: Iterable[Mapping[str, Any]]) -> list[ObjectId]:
    """Return the ids of those of some running jobs that nobody keeps, but for their keys."""
    records = (JobRecord.from_document(document, max_attempts=0) for document in found)
    return [record.id for record in records if record.holds_on and not record.stays]


def _of(queues: Sequence[str] | None) -> Document:
    return {} if queues is None else {"queue": one_of(queues)}


def lost(ids: Sequence[Any]) -> Document:
    """The filter for those of some running jobs whose lease has ended."""
    return {"_id": one_of_ids(ids), "state": "running", **past("locked_until")}


def reap(ids: Sequence[ObjectId], max_attempts: int, *, note: bool = True) -> Update:
    """Return jobs whose lease has ended, or bury or cancel them; a renewed one is left alone.

    Without `note` nothing is said of it in the document, which is smaller afterwards: one near
    16 MB takes no text (error 17419).
    """
    dead = exhausted(max_attempts)
    by = {"$cond": [{"$eq": [{"$type": "$locked_by"}, "string"]}, "$locked_by", "?"]}
    text = {"$concat": ["lease ran out: consumer ", by, " was lost"]}
    return Update(
        lost(ids),
        [
            {
                "$set": unless_asked(
                    {
                        "state": {"$cond": [dead, "dead", "ready"]},
                        "finished_at": {"$cond": [dead, "$$NOW", "$$REMOVE"]},
                        **(noted(text) if note else {}),
                        **over(dead),
                        **answered(dead),
                        "held_key": held_unless(dead),
                        **UNLISTED,
                    }
                )
            }
        ],
    )
