"""What is asked of MongoDB to know how the queue stands, as plain data; it changes nothing.

Every look but one is answered from an index alone, so it costs what it counts: see their tests. Of
the running jobs, which are as many as there are slots, the documents are read: no index knows when
they were claimed. (6.0.5 walks over the whole collection for ``distinct`` on a partial index, and
for a ``$group`` by queue, so queues are found by jumping from one to the next.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson.datetime_ms import DatetimeMS
from bson.timestamp import Timestamp

from ..names import LONGEST
from ..protocol.document import State
from ..protocol.operations import (
    MISFIT_AT,
    NOT_LEFT,
    Find,
    milliseconds_since,
    near,
    of_queue,
    past,
    union,
)
from ..protocol.schema import CLAIM_ORDER, HELD_INDEX, INDEXES, MISFIT_INDEX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bson import ObjectId

    from ..protocol.operations import Document, Pipeline

_LAST_ERROR: Document = {"$last": {"$cond": [{"$isArray": "$errors"}, "$errors", []]}}
_FAILURE: Document = {
    **dict.fromkeys(("queue", "state", "attempts", "last_error"), 1),
    "at": {"$let": {"vars": {"last": _LAST_ERROR}, "in": "$$last.at"}},
}
OLDEST, DUE, OVERDUE = "oldest", "due", "overdue"
OVERDUE_AFTER = 10.0
"""Seconds after its time from which a job that nobody has made ready counts as overdue."""
_ANY_DATE: Document = {"$gte": DatetimeMS(-(2**63)), "$lte": DatetimeMS(2**63 - 1)}
"""A filter: it is a date. (One by the type would have to read the document.)"""
_ANY_TIMESTAMP: Document = {"$gte": Timestamp(0, 0), "$lte": Timestamp(2**32 - 1, 2**32 - 1)}
"""A filter: it is one of the server's logical clock."""

QUEUE_FIRST = (State.READY, State.SCHEDULED, State.WAITING, State.DEAD)
"""The states whose index begins with the queue."""

KEYS: Mapping[State, Document] = {
    state: index.document["key"]
    for state, index in zip(
        QUEUE_FIRST, (INDEXES[0], INDEXES[2], INDEXES[2], INDEXES[3]), strict=True
    )
}
"""The keys of those indexes. One that is named is read in its order, also when it has entries of
lists; to sort by a field that is a list anywhere, the server would read all of it."""


def next_queue(state: State, place: str, *, past: bool) -> Find:
    """The first job with a text as its queue that comes in this place or later, by the alphabet.

    With `past`, later. A list of texts is in the place of each of them.
    """
    wanted: Document = {"queue": {_from(past=past): place}, "state": state}
    return Find(wanted, {"_id": 0, "queue": 1}, _BY_QUEUE, 1)


def bare_queues(state: State, name: str, limit: int) -> Find:
    """The queues of some jobs in a queue: its name, or a list with the name in it."""
    return Find(of_queue(name, state), {"_id": 0, "queue": 1}, None, limit)


def foreign_names(
    state: State, place: str, end: str | None, *, past: bool, limit: int, sort: bool
) -> Pipeline:
    """Count the documents of a state from this place on, up to the end, but no more than that many.

    The limit stands in front, because the index of a list has no range with two ends. `sort` where
    the index cannot be named.
    """
    counted: list[Document] = [
        {"$match": {"queue": {_from(past=past): place}, "state": state}},
        *([{"$sort": dict(_BY_QUEUE)}] if sort else []),
        {"$limit": limit},
    ]
    if end is not None:
        counted.append({"$match": {"queue": {"$lt": end}}})
    return [*counted, {"$count": "count"}]


def _from(*, past: bool) -> str:
    return "$gt" if past else "$gte"


_BY_QUEUE = [("queue", 1), ("state", 1)]
_TEXT_LIKE = {2, 4, 14}  # strings, lists and symbols
_NO_TEXT = [number for number in (-1, *range(1, 20), 127) if number not in _TEXT_LIKE | {10}]
"""The types of what has no place in the alphabet; 10 (null) is asked for as a value."""


def foreign_queues(collection: str, limit: int) -> Pipeline:
    """Count the documents without any text as their queue, no more than so many of each state.

    Rows ``{_id: <state>, count}``.
    """
    no_text = [{"queue": {"$in": [None, []]}}, {"queue": {"$type": _NO_TEXT}}]
    looks: list[Pipeline] = [
        [
            {"$match": {"state": state, "$or": no_text}},
            {"$limit": limit},
            {"$count": "count"},
            {"$set": {"_id": state}},
        ]
        for state in QUEUE_FIRST
    ]
    return union(collection, looks)


def queue_census(queue: str, collection: str) -> Pipeline:
    """Count a queue's jobs by state, and find how long its due jobs wait; running ones excepted.

    Rows ``{_id: <state> | "overdue", count}``, and ``{_id: "oldest" | "due", age}`` in
    milliseconds: of the ready job that is first in the order of a priority and became due first
    among those, and of the scheduled one, negative while it is not due.
    """
    counts = [_count(queue, state) for state in QUEUE_FIRST]
    ages = [_oldest_ready(queue), _oldest_placed(queue), _first_due(queue)]
    return union(collection, [*counts, _overdue(queue), *ages])


def _count(queue: str, state: State) -> Pipeline:
    return [{"$match": of_queue(queue, state)}, {"$count": "count"}, {"$set": {"_id": state}}]


def _overdue(queue: str) -> Pipeline:
    # What has no date at all is due at once; and whoever makes jobs ready needs a moment.
    wanted = {**of_queue(queue, State.SCHEDULED), **past("run_at", OVERDUE_AFTER)}
    return [{"$match": wanted}, {"$count": "count"}, {"$set": {"_id": OVERDUE}}]


_AGE: Document = {"$project": {"age": {"$subtract": ["$$NOW", near("$at")]}}}

# The index has the priority before the order. One key for each priority is looked at, because this
# sort and this group are what the server makes a DISTINCT_SCAN of.


def _oldest_ready(queue: str) -> Pipeline:
    return _oldest(of_queue(queue, State.READY))


def _oldest_placed(queue: str) -> Pipeline:
    # Apart, because what has no place sorts first, and would hide all others of its priority.
    return _oldest({**of_queue(queue, State.READY), "seq": _ANY_TIMESTAMP})


def _oldest(wanted: Document) -> Pipeline:
    # Only an ObjectId says when it was made; a number or a text may be taken for a date as well.
    has_time = {"$eq": [{"$type": "$job"}, "objectId"]}
    put_at: Document = {"$cond": [has_time, {"$toDate": "$job"}, "$$NOW"]}
    is_date = {"$eq": [{"$type": "$run_at"}, "date"]}
    firsts = {"run_at": {"$first": "$run_at"}, "job": {"$first": "$_id"}}
    return [
        {"$match": wanted},
        {"$sort": dict(CLAIM_ORDER)},
        {"$group": {"_id": "$priority", **firsts}},
        {"$group": {"_id": OLDEST, "at": {"$min": {"$cond": [is_date, "$run_at", put_at]}}}},
        _AGE,
    ]


def _first_due(queue: str) -> Pipeline:
    return [
        {"$match": {**of_queue(queue, State.SCHEDULED), "run_at": _ANY_DATE}},
        {"$sort": {"run_at": 1}},
        {"$limit": 1},
        {"$project": {"_id": DUE, "age": milliseconds_since("run_at", no_date=0)}},
    ]


def running_census(queues: Sequence[str]) -> Pipeline:
    """Count the running jobs, and those whose lease has ended, by queue; and since when, in
    milliseconds, the one that was claimed first has been running.

    Those of other queues than these are one row, ``{_id: None}``: any number of queues may be made
    up.
    """
    known = {"$cond": [_is_one_of(queues), "$queue", None]}
    return [{"$match": {"state": State.RUNNING}}, {"$group": {"_id": known, **_HELD}}]


def running_elsewhere(queues: Sequence[str], limit: int) -> Pipeline:
    """Count the running jobs of all other queues likewise, but no more than so many jobs.

    What is too long for a name, or no text, is one row.
    """
    return [
        {"$match": {"state": State.RUNNING, "$expr": {"$not": [_is_one_of(queues)]}}},
        {"$limit": limit},
        {"$group": {"_id": short_text("$queue", LONGEST), **_HELD}},
    ]


def held_census(limit: int, rows: int) -> Pipeline:
    """Count by consumer how many jobs it holds, and for how long the one it has held longest.

    Reads the running jobs themselves, no more than so many; and the rows are bounded too, because
    ``locked_by`` is what anybody may have written. Rows with ``_id`` None: no text, or too long.
    """
    by_holder = {"_id": short_text("$locked_by", LONGEST_HOLDER), **_HELD}
    return [
        {"$match": {"state": State.RUNNING}},
        {"$limit": limit},
        {"$group": by_holder},
        {"$sort": {"running": -1, "_id": 1}},
        {"$limit": rows},
    ]


def _is_one_of(queues: Sequence[str]) -> Document:
    return {"$in": ["$queue", {"$literal": list(queues)}]}


def short_text(value: str, longest: int) -> Document:
    """An expression: the value where it is a text of no more bytes than that, else null."""
    is_text = {"$eq": [{"$type": value}, "string"]}
    # (Bytes may be counted of what is no valid text, characters may not.)
    size = {"$strLenBytes": {"$cond": [is_text, value, ""]}}
    return {"$cond": [{"$and": [is_text, {"$lte": [size, longest]}]}, value, None]}


LONGEST_HOLDER = 1024
"""Bytes of a consumer's name: 256 characters."""
_LEASE_IS_DATE: Document = {"$eq": [{"$type": "$locked_until"}, "date"]}  # else it has ended
_EXPIRED: Document = {
    "$cond": [{"$and": [_LEASE_IS_DATE, {"$gt": ["$locked_until", "$$NOW"]}]}, 0, 1]
}
_HELD: Document = {
    "running": {"$sum": 1},
    "expired": {"$sum": _EXPIRED},
    "longest": {"$max": milliseconds_since("locked_at", no_date=0)},
}


MOST_DEPENDENTS = 10_000
"""Jobs that wait for a dead parent that are counted."""


def held_dependents() -> Pipeline:
    """Count by queue the jobs that wait for a parent that is dead, :data:`MOST_DEPENDENTS` in all.
    To be sent with :data:`HELD_DEPENDENTS` as its hint.

    Rows ``{_id: <queue>, count}``.
    """
    wanted = {"queue": {"$gte": ""}, "state": State.WAITING, "waits_for.failed": True}
    by_queue = {"$group": {"_id": short_text("$queue", LONGEST), "count": {"$sum": 1}}}
    return [{"$match": wanted}, {"$limit": MOST_DEPENDENTS}, by_queue]


HELD_DEPENDENTS: Mapping[str, Any] = HELD_INDEX["key"]
"""The keys of the index that has them, and no other job; it is there where jobs have parents."""


MOST_LEFT = 10_000
"""Jobs that are left to other workers that are counted."""


def left_to_others() -> Pipeline:
    """Count by queue, and by why, the jobs that are left to other workers, :data:`MOST_LEFT` in
    all. To be sent with :data:`LEFT_TO_OTHERS` as its hint.

    Rows ``{_id: {queue, misfit: <whether that is why>}, count}``.
    """
    wanted = {"queue": {"$gte": ""}, "state": State.WAITING, MISFIT_AT: {"$exists": True}}
    of = {
        "queue": short_text("$queue", LONGEST),
        "misfit": {"$ne": [{"$type": "$waits_for.misfit"}, "missing"]},
    }
    by_queue = {"$group": {"_id": of, "count": {"$sum": 1}}}
    return [{"$match": {**wanted, "$nor": [NOT_LEFT]}}, {"$limit": MOST_LEFT}, by_queue]


LEFT_TO_OTHERS: Mapping[str, Any] = MISFIT_INDEX["key"]
"""The keys of the index that has them; it is there where there was one."""


def end_of_oplog(direction: int) -> Find:
    """Find the oldest entry (1) of the oplog, or the newest one (-1)."""
    return Find({}, {"_id": 0, "ts": 1}, [("$natural", direction)], 1)


def pulse_pipeline() -> Pipeline:
    """What a stream shows to who watches the queue's pulse: what happened to jobs, not the jobs.

    ``queue`` is missing for updates, whose events carry no document.
    """
    fields = "$updateDescription.updatedFields"
    # (A change that is larger than its document is written, and told, as a whole document.)
    error = {"$ifNull": [f"{fields}.last_error", "$fullDocument.last_error", ""]}
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
    """Find what is stored of jobs that have failed, without their payloads."""
    return Find({"_id": {"$in": list(ids)}}, _FAILURE, bare=True)


def latest_dead(queue: str, limit: int) -> Find:
    """Find the jobs of a queue that died last, in the same form."""
    newest_first = [("finished_at", -1)]
    return Find(of_queue(queue, State.DEAD), _FAILURE, newest_first, limit, bare=True)
