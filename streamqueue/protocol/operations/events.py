"""The change events that a stream asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..settings import BELL
from .expressions import one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import Timestamp

    from .commands import Document, Pipeline

HEAD = ("_id", "queue", "state", "priority", "seq", "run_at")
"""What an event says of a job. Never the payload: what runs is what the claim returned."""


ASKED_AT = "cancel_requested_at"
"""What says that whoever runs a job is to cancel it."""


ENDS_SOON = 1
"""Seconds after an event within which a lease that was set by it counts as brought near. The
time of an event is cut to whole seconds (there is a finer one from 6.0 on only)."""


def stream_pipeline(queues: Sequence[str], *, dependents: bool = False) -> Pipeline:
    """What the server filters and cuts before an event is sent: whatever makes work of a job.

    That is a job which is claimable or scheduled now, a change of what it is claimed by, a lease
    brought near its end, and word that a running job is to be cancelled; whoever wrote it, as an
    update or a replacement. (An update written as a pipeline surfaces as ``replace`` where that is
    shorter.) What consumers write all the time does not pass: claims, renewals, and ends of
    attempts that leave nothing to claim. The bell does, which says that somebody has changed the
    settings of a queue.

    With `dependents` a job passes too that is put to come after others: should whoever puts it die
    before it has looked how these stand, somebody is to know of it. And so does one that is left to
    others from now on: one of those may be us.

    A plain update does not say whose job it was, nor, if it leaves the state alone, in which state
    it is; it is let through for any. ``_id`` must stay, or the stream cannot be resumed (error
    280).
    """
    whole = {
        "operationType": {"$in": ["insert", "replace"]},
        "fullDocument.queue": one_of(queues),
        "fullDocument.state": {"$in": [*_CLAIMABLE, "running"]},
    }
    waits = {
        "operationType": {"$ne": "update"},
        "fullDocument.queue": one_of(queues),
        "fullDocument.state": "waiting",
    }
    part = {
        "operationType": "update",
        f"{_UPDATED}.queue": {"$in": [None, *queues]},
        f"{_UPDATED}.state": {"$in": [None, *_CLAIMABLE, *(["waiting"] if dependents else [])]},
    }
    # The first ring of a collection's bell, or one that is written as a whole; others are updates
    # of a document that says neither its queue nor its state.
    bell = {"operationType": {"$ne": "update"}, "fullDocument._id": BELL}
    return [
        # The server applies this to its oplog, before it makes events of it. What is left are
        # claimable jobs, renewals and edits by hand; to find out which in here as well would cost
        # half as much again for every write to any job (6.0.5).
        {"$match": {"$or": [whole, part, bell, *([waits] if dependents else [])]}},
        {
            "$project": {
                "operationType": 1,
                "documentKey": 1,
                "wallTime": 1,
                **{f"{_UPDATED}.{field}": 1 for field in (*HEAD[1:], "locked_until", *_MOMENTS)},
                _REMOVED: 1,
                **{f"fullDocument.{field}": 1 for field in (*HEAD, "task", "misfit_at", *_MOMENTS)},
                "makes_work": _MAKES_WORK,
            }
        },
        {"$match": {"makes_work": True}},
    ]


_CLAIMABLE = ["ready", "scheduled"]
_MOMENTS = ("expires_at", ASKED_AT)


_UPDATED, _REMOVED = "updateDescription.updatedFields", "updateDescription.removedFields"


def _updated(field: str) -> Document:
    """An expression for events: an update has set the field."""
    return {"$ne": [{"$type": f"${_UPDATED}.{field}"}, "missing"]}


def _ends_soon(lease_end: str) -> Document:
    """An expression for events: a lease ends soon after, or at no date."""
    # (5.0 converts no timestamp to a date, but does this.)
    near = {"$dateAdd": {"startDate": "$clusterTime", "unit": "second", "amount": ENDS_SOON}}
    is_date = {"$eq": [{"$type": lease_end}, "date"]}
    return {"$not": [{"$and": [is_date, {"$gt": [lease_end, near]}]}]}


_UNSET = ["priority", "seq", "run_at", "locked_until"]
_MAKES_WORK: Document = {
    "$or": [
        {"$in": ["$fullDocument.state", _CLAIMABLE]},
        {"$in": [f"${_UPDATED}.state", _CLAIMABLE]},
        {
            "$and": [
                {"$eq": ["$operationType", "insert"]},
                {"$eq": ["$fullDocument.state", "waiting"]},
            ]
        },
        {
            "$and": [
                {"$eq": ["$fullDocument.state", "running"]},
                _ends_soon("$fullDocument.locked_until"),
            ]
        },
        {
            "$and": [
                {"$eq": ["$fullDocument.state", "running"]},
                {"$ne": [{"$ifNull": [f"$fullDocument.{ASKED_AT}", None]}, None]},
            ]
        },
        *(_updated(f"waits_for.{what}") for what in ("misfit", "task")),
        {
            "$and": [
                {"$eq": ["$operationType", "replace"]},
                {"$eq": ["$fullDocument.state", "waiting"]},
                {"$ne": [{"$type": "$fullDocument.misfit_at"}, "missing"]},
            ]
        },
        *(_updated(field) for field in ("queue", "priority", "seq", "run_at", ASKED_AT)),
        {"$and": [_updated("locked_until"), _ends_soon(f"${_UPDATED}.locked_until")]},
        {
            "$and": [
                {"$ne": [{"$setIntersection": [{"$ifNull": [f"${_REMOVED}", []]}, _UNSET]}, []]},
                # Without a state it is no job any more, and only holds a key.
                {"$not": [{"$in": ["state", {"$ifNull": [f"${_REMOVED}", []]}]}]},
            ]
        },
        {"$eq": ["$documentKey._id", BELL]},
    ]
}


def changes(ids: Sequence[Any], last: Timestamp) -> Pipeline:
    """What the server filters of the events of a few jobs: that there was one by a moment."""
    wanted = {"documentKey._id": one_of(ids), "clusterTime": {"$lte": last}}
    return [{"$match": wanted}, {"$project": {"documentKey": 1}}]
