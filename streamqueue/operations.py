"""Every command sent to MongoDB, as plain data. No I/O and no clock: the whole protocol, readable.

The life of a job, a verb on each arrow::

    scheduled ──promote──▶ ready ──claim──▶ running ──complete──▶ (gone)
                             ▲                 │
                             ├──── release ────┤  the attempt does not count
                             ├──── error ──────┤  by way of scheduled, when there is a backoff
                             ├──── reap ───────┤  the lease ran out
                             │                 ├──── error, reap: attempts used up ──▶ dead
                             │                 └──── discard ──▶ dead
                             └──── requeue ──── dead

Rules that hold for all of it:

* A claim is one compare-and-set on ``state: ready`` and writes a fresh random token (``lease``).
  Every later write of that attempt matches ``{_id, lease: token}``, so whoever lost the lease
  changes nothing.
* Times that are stored or compared are the server's: ``$$NOW``.
* Values that are not ours stand under ``$literal``: an update pipeline evaluates ``"$$ROOT"``.
* Numbers written by other programs are checked before they are added to, so that one damaged
  document cannot fail the batch it is in.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteError

from .document import CLAIM_ORDER, INDEXES, MAX_ERRORS, JobRecord, State, cut_error
from .durations import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bson import ObjectId

Document = dict[str, Any]
Pipeline = list[dict[str, Any]]

DUPLICATE_KEY = 11000
MAX_COUNT = 2**31

EVENT_DOCUMENT_BYTES = 16 * 1024
"""Jobs up to this size travel in their event, so an idle consumer needs no read to run them."""

BACKLOG_DOCUMENT_BYTES = 2 * 1024
"""Jobs up to this size come whole when a backlog is read: that is cheaper than reading them again
once they are claimed (about 3 us against 12 us a small job), and a bite of them stays small."""


class Update(NamedTuple):
    filter: Document
    update: Pipeline


class Find(NamedTuple):
    filter: Document
    projection: Document | None = None
    sort: Sequence[tuple[str, int]] | None = None
    limit: int = 0
    bare: bool = False  # read with BARE_CODEC: no document can fail it


def new_token() -> bytes:
    """Return the identity of one claim: 16 random bytes, never used twice."""
    return os.urandom(16)


def _in(values: Sequence[Any]) -> Document:
    return {"$eq": values[0]} if len(values) == 1 else {"$in": list(values)}


def _count(field: str, default: int) -> Document:
    """An expression: the field where it is a count, else its default.

    NaN sorts before all numbers, so it is no count either.
    """
    value = f"${field}"
    is_count = {"$and": [{"$isNumber": value}, {"$gte": [value, 0]}, {"$lt": [value, MAX_COUNT]}]}
    return {"$cond": [is_count, value, default]}


def _later(delay: float) -> Document:
    return {"$add": ["$$NOW", milliseconds(delay)]}


_UNLOCK: Document = dict.fromkeys(("locked_by", "locked_at", "locked_until", "lease"), "$$REMOVE")

# claim


_IDENTITY = ("_id", "queue", "priority")
_CARRIED = (
    *(*_IDENTITY, "run_at", "state", "attempts", "max_attempts"),
    *("key", "traceparent", "last_error"),
)


def candidates(
    queues: Sequence[str], limit: int, *, carry: bool = False, bare: bool = False
) -> Find:
    """What waits at the head of the queues: ids and priorities, read from the index alone.

    With `carry` also all that a handler sees of the job; without the payload where that is large.
    """
    projection: Document = dict.fromkeys(_IDENTITY, 1)
    if carry:
        projection = dict.fromkeys(_CARRIED, 1)
        small = {"$lte": [{"$bsonSize": "$$ROOT"}, BACKLOG_DOCUMENT_BYTES]}
        projection["payload"] = {"$cond": [small, "$payload", "$$REMOVE"]}
    wanted: Document = {"queue": _in(queues), "state": "ready"}
    return Find(wanted, projection, CLAIM_ORDER, limit, bare)


def claim(
    ids: Sequence[ObjectId], consumer: str, token: bytes, timeout: float, *, fresh: bool = False
) -> Update:
    """Take those of the jobs that are still ready.

    `fresh` takes only jobs never attempted before: what their event carried is then still true.
    """
    wanted: Document = {"_id": _in(ids), "state": "ready"}
    if fresh:
        wanted["attempts"] = {"$in": [0, None]}
    return Update(
        wanted,
        [
            {
                "$set": {
                    "state": "running",
                    "locked_by": {"$literal": consumer},
                    "locked_at": "$$NOW",
                    "locked_until": _later(timeout),
                    "lease": token,
                    "attempts": {"$add": [_count("attempts", 0), 1]},
                }
            }
        ],
    )


DOCUMENT_ERRORS = {
    2: "BadValue",
    14: "TypeMismatch",
    121: "DocumentValidationFailure",
    10334: "BSONObjectTooLarge",
    17280: "KeyTooLong",
    17419: "resulting document is too large",
}
"""Errors of an update that are one document's fault, not the server's."""


def halves(ids: Sequence[ObjectId]) -> tuple[Sequence[ObjectId], Sequence[ObjectId]]:
    """Parts to send again when one document spoiled an update for all: a few more find it."""
    middle = len(ids) // 2
    return ids[:middle], ids[middle:]


def bury(job_id: Any, message: str) -> Update:
    """Make a ready job dead that nobody could run."""
    return Update({"_id": {"$eq": job_id}, "state": "ready"}, _fail(message, 0, True))


def quarantine(job_id: Any) -> Update:
    """The same for one that no claim can change, with a write that does not make it larger.

    A document near 16 MB takes no new fields (error 17419), so there is no room to say why.
    """
    return Update({"_id": {"$eq": job_id}, "state": "ready"}, [{"$set": {"state": "dead"}}])


def claimed(ids: Sequence[ObjectId], token: bytes) -> Find:
    """The jobs that a claim took, as they are now."""
    return Find({"_id": _in(ids), "lease": token}, None, CLAIM_ORDER)


def unclaim(ids: Sequence[ObjectId], token: bytes) -> Update:
    """Undo a claim whose outcome is unknown; also when it was never applied."""
    return Update({"_id": _in(ids), "lease": token}, _release(None))


# the held job


def held(job_id: ObjectId, token: bytes) -> Document:
    """The filter every write of an attempt has."""
    return {"_id": job_id, "lease": token}


def held_any(ids: Sequence[ObjectId], tokens: Iterable[bytes]) -> Document:
    """The same for several attempts at once.

    Pairs a job with another job's token, which is exact as long as the process that sends it has at
    most one live attempt per job (see ``worker.lease``).
    """
    return {"_id": _in(ids), "lease": _in(list(tokens))}


def renew(wanted: Document, timeout: float, progress: int | None = None) -> Update:
    """Extend the lease to `timeout` from now, optionally noting progress."""
    fields: Document = {"locked_until": _later(timeout)}
    if progress is not None:
        fields["progress"] = {"$literal": progress}
    return Update(wanted, [{"$set": fields}])


def error(
    job_id: ObjectId, token: bytes, message: str | None, delay: float, max_attempts: int
) -> Update:
    """End the attempt as failed: back after `delay`, or dead when the attempts are used up.

    `max_attempts` is for a job that does not say.
    """
    return Update(held(job_id, token), _fail(message, delay, _exhausted(max_attempts)))


def discard(job_id: ObjectId, token: bytes, message: str) -> Update:
    """End the attempt and the job with it: dead, whatever attempts are left."""
    return Update(held(job_id, token), _fail(message, 0, True))


def release(job_id: ObjectId, token: bytes, delay: float | None = None) -> Update:
    """Give the job back as it was before the claim, at once or after `delay`."""
    return Update(held(job_id, token), _release(delay))


def release_many(ids: Sequence[ObjectId], tokens: Iterable[bytes]) -> Update:
    """Give back several jobs."""
    return Update(held_any(ids, tokens), _release(None))


def _release(delay: float | None) -> Pipeline:
    fields: Document = {
        "state": "ready",
        "attempts": {"$max": [0, {"$subtract": [_count("attempts", 1), 1]}]},
        **_UNLOCK,
    }
    if delay:
        fields |= {"state": "scheduled", "run_at": _later(delay)}
    return [{"$set": fields}]


def _exhausted(max_attempts: int) -> Document:
    return {"$gte": [_count("attempts", 0), _count("max_attempts", max_attempts)]}


def _fail(message: str | None, delay: float, dead: Document | bool) -> Pipeline:
    again = "scheduled" if delay > 0 else "ready"
    fields: Document = {
        "state": {"$cond": [dead, "dead", again]},
        "run_at": {"$cond": [dead, "$run_at", _later(delay)]},
        "finished_at": {"$cond": [dead, "$$NOW", "$$REMOVE"]},
        **({} if message is None else _note({"$literal": cut_error(message)})),
        **_UNLOCK,
    }
    return [{"$set": fields}]


def _note(text: Document) -> Document:
    """Fields that keep an error: the last one, and the last few with time and attempt."""
    entry = {"at": "$$NOW", "attempt": _count("attempts", 0), "message": text}
    errors = {"$cond": [{"$isArray": "$errors"}, "$errors", []]}
    return {
        "last_error": text,
        "errors": {"$slice": [{"$concatArrays": [errors, [entry]]}, -MAX_ERRORS]},
    }


# time passing


def due(queues: Sequence[str], limit: int) -> Find:
    """Scheduled jobs whose time has come."""
    return Find(
        {
            "queue": _in(queues),
            "state": "scheduled",
            **_past("run_at"),
        },
        {"_id": 1},
        [("run_at", 1)],
        limit,
        bare=True,
    )


def promote(ids: Sequence[ObjectId]) -> Update:
    """Make due jobs ready; the change event of it is what wakes consumers."""
    return Update(
        {"_id": _in(ids), "state": "scheduled", **_past("run_at")},
        [{"$set": {"state": "ready"}}],
    )


def next_due(queues: Sequence[str], limit: int = 1) -> Find:
    """The scheduled jobs that are due first, with the milliseconds until then as ``due_in``."""
    return Find(
        {"queue": _in(queues), "state": "scheduled"},
        {"_id": 1, "due_in": _milliseconds_until("run_at")},
        [("run_at", 1)],
        limit,
        bare=True,
    )


def next_expiry(queues: Sequence[str] | None, limit: int = 1) -> Find:
    """The running jobs whose lease ends first, with the milliseconds until then as ``due_in``."""
    return Find(
        {"state": "running", **_of(queues)},
        {"_id": 1, "due_in": _milliseconds_until("locked_until")},
        [("locked_until", 1)],
        limit,
        bare=True,
    )


def expired(queues: Sequence[str] | None, limit: int) -> Find:
    """Running jobs whose lease has ended, of these queues or of all in the collection."""
    return Find(
        {"state": "running", **_of(queues), **_past("locked_until")},
        {"_id": 1, "queue": 1, "attempts": 1, "max_attempts": 1, "locked_by": 1},
        [("locked_until", 1)],
        limit,
        bare=True,
    )


def group_expired(
    found: Iterable[Mapping[str, Any]], limit_of: Callable[[str], int]
) -> dict[tuple[str, str], list[ObjectId]]:
    """Sort expired jobs by queue and by what reaping will make of them, for the metrics."""
    groups: dict[tuple[str, str], list[ObjectId]] = {}
    for document in found:
        record = JobRecord.from_document(document, max_attempts=0)
        limit = record.max_attempts or limit_of(record.queue)
        result = "dead" if record.attempts >= limit else "requeued"
        groups.setdefault((record.queue, result), []).append(record.id)
    return groups


def _of(queues: Sequence[str] | None) -> Document:
    return {} if queues is None else {"queue": _in(queues)}


def _milliseconds_until(field: str) -> Document:
    """An expression; what is no date is due at once, so that its job hides none behind it."""
    is_date = {"$eq": [{"$type": f"${field}"}, "date"]}
    return {"$cond": [is_date, {"$subtract": [f"${field}", "$$NOW"]}, 0]}


def milliseconds_since(field: str, *, no_date: int | None) -> Document:
    """An expression; with another value for what is no date."""
    is_date = {"$eq": [{"$type": f"${field}"}, "date"]}
    return {"$cond": [is_date, {"$subtract": ["$$NOW", f"${field}"]}, no_date]}


def _past(field: str) -> Document:
    """A filter: the moment has come, or is none.

    The comparison takes in all that sorts before dates, such as a missing field; the types that
    sort after them are named. Both branches are ranges of the index.
    """
    no_moment = {"$type": ["timestamp", "regex", "maxKey"]}
    return {"$or": [{"$expr": {"$lte": [f"${field}", "$$NOW"]}}, {field: no_moment}]}


def reap(ids: Sequence[ObjectId], max_attempts: int) -> Update:
    """Return jobs whose lease has ended, or bury them; a renewed one is left alone."""
    dead = _exhausted(max_attempts)
    by = {"$cond": [{"$eq": [{"$type": "$locked_by"}, "string"]}, "$locked_by", "?"]}
    note = _note({"$concat": ["lease ran out: consumer ", by, " was lost"]})
    return Update(
        {"_id": _in(ids), "state": "running", **_past("locked_until")},
        [
            {
                "$set": {
                    "state": {"$cond": [dead, "dead", "ready"]},
                    "finished_at": {"$cond": [dead, "$$NOW", "$$REMOVE"]},
                    **note,
                    **_UNLOCK,
                }
            }
        ],
    )


def adopt(queues: Sequence[str], ids: Sequence[ObjectId] | None = None) -> Update:
    """Give ready jobs inserted without a priority their place in the claim order; all, or some.

    An absent priority sorts behind every number: behind a backlog such a job would wait for ever.
    """
    which = {} if ids is None else {"_id": _in(ids)}
    return Update(
        {**_unplaced(queues), **which},
        [{"$set": {"priority": 0, "run_at": {"$ifNull": ["$run_at", "$$NOW"]}}}],
    )


def unplaced(queues: Sequence[str], limit: int) -> Find:
    """The jobs that :func:`adopt` gives a place."""
    return Find(_unplaced(queues), {"_id": 1}, None, limit, bare=True)


def _unplaced(queues: Sequence[str]) -> Document:
    return {"queue": _in(queues), "state": "ready", "priority": None}


# consumers


SILENT_AFTER = 75.0
"""Seconds until a consumer that says nothing counts as gone: it says so every 30, and two may be
missed."""


def register(
    consumer: str, queues: Sequence[str], concurrency: int, about: Mapping[str, Any]
) -> Update:
    """Say that a consumer lives, and what for. An upsert, in the collection of consumers.

    `about` is for people to read.
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
                }
            }
        ],
    )


def deregister(consumer: str, *others: str) -> Document:
    """The filter for consumers that have gone."""
    return {"_id": _in([consumer, *others])}


def registered() -> Find:
    """All consumers there are, with the milliseconds since each was seen as ``silent``, and since
    it started as ``up``."""
    times = {
        "silent": milliseconds_since("seen_at", no_date=None),
        "up": milliseconds_since("started_at", no_date=None),
    }
    about = dict.fromkeys(("queues", "concurrency", "host", "pid", "version"), 1)
    return Find({"_id": {"$type": "string"}}, {**about, **times})


_LEADER: Document = {"leader": "state"}
"""Where the list of consumers keeps who exports the state; no consumer's name, those are text."""


def lead(consumer: str, timeout: float) -> Update:
    """Become, or stay, the one that exports the state: the ``holder`` of what this leaves behind.

    An upsert, in the collection of consumers. It changes nothing while somebody else leads. (The
    condition is in the update: a filter with ``$expr`` is not allowed in an upsert.)
    """
    me = {"$literal": consumer}
    ours = {"$or": [{"$eq": ["$holder", me]}, {"$lte": ["$held_until", "$$NOW"]}]}
    fields: Document = {
        "holder": me,
        "held_until": _later(timeout),
        # What versions that know of no leader read: one consumer more, of no queue.
        "seen_at": "$$NOW",
        "queues": {"$literal": []},
    }
    update = {name: {"$cond": [ours, value, f"${name}"]} for name, value in fields.items()}
    return Update({"_id": _LEADER}, [{"$set": update}])


def resign(consumer: str) -> Document:
    """The filter for this consumer's place as the leader."""
    return {"_id": _LEADER, "holder": {"$eq": consumer}}


# indexes


def create_indexes(collection: str, write_concern: Document) -> Document:
    """Make sure of the indexes. As a command, because pymongo's own call keeps the reply to itself,
    which alone says how many there were before."""
    return {
        "createIndexes": collection,
        "indexes": [index.document for index in INDEXES],
        "writeConcern": write_concern,
    }


# operators


def requeue(queue: str, job_id: ObjectId | None = None) -> Update:
    """Make dead jobs ready again, with all their attempts."""
    wanted: Document = {"queue": {"$eq": queue}, "state": "dead"}
    if job_id is not None:
        wanted["_id"] = {"$eq": job_id}
    fields = {"state": "ready", "attempts": 0, "run_at": "$$NOW", "finished_at": "$$REMOVE"}
    return Update(wanted, [{"$set": fields}])


def dead(queue: str, limit: int) -> Find:
    """The dead jobs of a queue, latest first, without their payloads."""
    fields = {"attempts": 1, "finished_at": 1, "last_error": 1}
    return Find(of_queue(queue, "dead"), fields, [("finished_at", -1)], limit)


def of_queue(queue: str, *states: str) -> Document:
    """The filter for every job of a queue, or those in some states."""
    wanted: Document = {"queue": {"$eq": queue}}
    if states:
        wanted["state"] = _in(states)
    return wanted


COUNTED_STATES: Mapping[str, str] = {
    "available": State.READY,
    "scheduled": State.SCHEDULED,
    "locked": State.RUNNING,
    "errors": State.DEAD,
}
"""What ``stats()`` calls a state: mongoqueue's words."""


def find_job(queue: str, job_id: ObjectId) -> Find:
    """Whether this queue has a job with this id."""
    return Find({"_id": {"$eq": job_id}, "queue": {"$eq": queue}}, {"_id": 1}, None, 1)


def live_with_key(queue: str, key: str | None) -> Find:
    """The live job that has a key."""
    wanted = {"queue": {"$eq": queue}, "key": {"$eq": key}, "state": {"$gte": "ready"}}
    return Find(wanted, {"_id": 1}, None, 1)


def stats(queue: str, collection: str) -> Pipeline:
    """Count a queue's jobs by state, each from its own index, and all its documents."""

    def count(name: str, wanted: Document) -> Pipeline:
        return [
            {"$match": wanted},
            {"$count": "count"},
            {"$set": {"_id": name}},
        ]

    total, *states = [count("total", of_queue(queue))] + [
        count(name, of_queue(queue, state)) for name, state in COUNTED_STATES.items()
    ]
    return total + [{"$unionWith": {"coll": collection, "pipeline": part}} for part in states]


def read_stats(counts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Read the answer to :func:`stats`; what has no jobs is absent in it."""
    found = {count["_id"]: count["count"] for count in counts}
    return {name: found.get(name, 0) for name in (*COUNTED_STATES, "total")}


# change events


def stream_pipeline(queues: Sequence[str]) -> Pipeline:
    """What the server filters and cuts before an event is sent: jobs that became claimable or due.

    Requeues are updates, and an update written as a pipeline surfaces as ``replace`` (6.0.5), so
    the match is on the resulting state. A plain update event does not say the queue; it is let
    through for any. ``_id`` must stay, or the stream cannot be resumed (error 280).
    """
    states = {"$in": ["ready", "scheduled"]}
    small = {"$lte": [{"$bsonSize": "$fullDocument"}, EVENT_DOCUMENT_BYTES]}
    head = {
        field: f"$fullDocument.{field}"
        for field in ("_id", "queue", "state", "priority", "run_at", "attempts")
    }
    return [
        {
            "$match": {
                "$or": [
                    {
                        "operationType": {"$in": ["insert", "replace"]},
                        "fullDocument.queue": _in(queues),
                        "fullDocument.state": states,
                    },
                    {"operationType": "update", "updateDescription.updatedFields.state": states},
                ]
            }
        },
        {
            "$project": {
                "operationType": 1,
                "documentKey": 1,
                "wallTime": 1,
                "updateDescription.updatedFields.state": 1,
                "updateDescription.updatedFields.run_at": 1,
                "fullDocument": {"$cond": [small, "$fullDocument", head]},
            }
        },
    ]


def is_repeated_put(details: Mapping[str, Any] | None) -> bool:
    """Whether a duplicate-key error only says that this very job is stored already."""
    return list((details or {}).get("keyPattern", ())) == ["_id"]


def is_duplicate_job(details: Mapping[str, Any] | None) -> bool:
    """Whether it says that a live job has the key; a user's own index may have been meant."""
    return list((details or {}).get("keyPattern", ())) == ["queue", "key"]


def errors_of_each(error: BulkWriteError, count: int) -> list[Exception | None]:
    """Take an unordered group of inserts apart: what went wrong for each of `count`, if anything.

    A write concern error is everybody's: none of them is known to be safe.
    """
    details: Mapping[str, Any] = error.details or {}
    errors: list[Exception | None] = [error if details.get("writeConcernErrors") else None] * count
    for problem in details.get("writeErrors", ()):
        duplicate = problem["code"] == DUPLICATE_KEY
        kind = DuplicateKeyError if duplicate else WriteError
        errors[problem["index"]] = kind(problem["errmsg"], problem["code"], problem)
    return errors
