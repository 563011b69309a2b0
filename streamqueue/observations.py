"""What is asked of MongoDB to know how the queue stands, as plain data; it changes nothing.

Every look is answered from an index alone, so it costs what it counts: see the ``explain`` in their
tests. (6.0.5 walks over the whole collection for ``distinct`` on a partial index, and for a
``$group`` by queue, so queues are found by jumping from one to the next.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .document import State
from .operations import Find, milliseconds_since, of_queue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import ObjectId

    from .operations import Document, Pipeline

_LAST_ERROR: Document = {"$last": {"$cond": [{"$isArray": "$errors"}, "$errors", []]}}
_FAILURE: Document = {
    **dict.fromkeys(("queue", "state", "attempts", "last_error"), 1),
    "at": {"$let": {"vars": {"last": _LAST_ERROR}, "in": "$$last.at"}},
}
OLDEST, DUE = "oldest", "due"

QUEUE_FIRST = (State.READY, State.SCHEDULED, State.DEAD)
"""The states whose index begins with the queue."""


def next_queue(state: State, after: str, *, named: bool = False) -> Find:
    """The first queue, in alphabetical order, that comes after that one and has jobs in a state.

    A list of names is after a name that its names are after. `named` leaves such documents out, and
    reads them all to do so.
    """
    wanted: Document = {"queue": {"$gt": after}, "state": state}
    if named:
        wanted["$expr"] = {"$eq": [{"$type": "$queue"}, "string"]}
    return Find(wanted, {"_id": 0, "queue": 1}, [("queue", 1), ("state", 1)], 1)


def queue_census(queue: str, collection: str) -> Pipeline:
    """Count a queue's jobs by state, and find how long its due jobs wait; running ones excepted.

    Rows ``{_id: <state>, count}``, and ``{_id: "oldest" | "due", age}`` in milliseconds: of the
    ready job that became due first, and of the scheduled one, negative while it is not due.
    """
    first, *others = [_count(queue, state) for state in QUEUE_FIRST]
    looks = [*others, _oldest_ready(queue), _first_due(queue)]
    return first + [{"$unionWith": {"coll": collection, "pipeline": look}} for look in looks]


def _count(queue: str, state: State) -> Pipeline:
    return [{"$match": of_queue(queue, state)}, {"$count": "count"}, {"$set": {"_id": state}}]


def _oldest_ready(queue: str) -> Pipeline:
    # The index has the priority before the time. One key for each priority is looked at, because
    # this sort and this group are what the server makes a DISTINCT_SCAN of.
    # Only an ObjectId says when it was made; a number or a text may be taken for a date as well.
    has_time = {"$eq": [{"$type": "$job"}, "objectId"]}
    put_at: Document = {"$cond": [has_time, {"$toDate": "$job"}, "$$NOW"]}
    is_date = {"$eq": [{"$type": "$run_at"}, "date"]}
    return [
        {"$match": of_queue(queue, State.READY)},
        {"$sort": {"priority": -1, "run_at": 1, "_id": 1}},
        {
            "$group": {
                "_id": "$priority",
                "run_at": {"$first": "$run_at"},
                "job": {"$first": "$_id"},
            }
        },
        {"$group": {"_id": OLDEST, "at": {"$min": {"$cond": [is_date, "$run_at", put_at]}}}},
        {"$project": {"age": {"$subtract": ["$$NOW", "$at"]}}},
    ]


def _first_due(queue: str) -> Pipeline:
    return [
        {"$match": of_queue(queue, State.SCHEDULED)},
        {"$sort": {"run_at": 1}},
        {"$limit": 1},
        {"$project": {"_id": DUE, "age": milliseconds_since("run_at", no_date=0)}},
    ]


def running_census(*, by_holder: bool) -> Pipeline:
    """Count the running jobs, and those whose lease has ended, by queue.

    With `by_holder` also by who holds them, and for how long, which reads the jobs themselves.
    """
    expired = {"$cond": [{"$lte": ["$locked_until", "$$NOW"]}, 1, 0]}
    group: Document = {
        "_id": {"queue": "$queue"},
        "running": {"$sum": 1},
        "expired": {"$sum": expired},
    }
    if by_holder:
        group["_id"]["holder"] = "$locked_by"
        group["longest"] = {"$max": milliseconds_since("locked_at", no_date=0)}
    return [{"$match": {"state": State.RUNNING}}, {"$group": group}]


def end_of_oplog(direction: int) -> Find:
    """The oldest entry (1) or the newest one (-1)."""
    return Find({}, {"_id": 0, "ts": 1}, [("$natural", direction)], 1)


def pulse_pipeline() -> Pipeline:
    """What a stream shows to who watches the queue's pulse: what happened to jobs, not the jobs.

    ``queue`` is missing for updates, whose events carry no document.
    """
    fields = "$updateDescription.updatedFields"
    error = {"$ifNull": [f"{fields}.last_error", ""]}
    state = {"$ifNull": [f"{fields}.state", "$fullDocument.state"]}
    return [
        {"$match": {"operationType": {"$in": ["insert", "update", "replace", "delete"]}}},
        {
            "$project": {
                "operationType": 1,
                "documentKey": 1,
                "queue": "$fullDocument.queue",
                "state": state,
                "failed": {"$and": [{"$ne": [error, ""]}, {"$ne": [state, "running"]}]},
            }
        },
    ]


def failures(ids: Sequence[ObjectId]) -> Find:
    """What is stored of jobs that have failed, without their payloads."""
    return Find({"_id": {"$in": list(ids)}}, _FAILURE, bare=True)


def latest_dead(queue: str, limit: int) -> Find:
    """The jobs of a queue that died last, in the same form."""
    newest_first = [("finished_at", -1)]
    return Find(of_queue(queue, State.DEAD), _FAILURE, newest_first, limit, bare=True)
