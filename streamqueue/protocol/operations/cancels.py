"""Cancelling: what waits is ended, and whoever runs a job is asked to end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..document import State
from .attempts import ASKED_FOR, held
from .commands import Document, Find, Update
from .expressions import one_of, one_of_ids
from .keys.holding import IS_A_JOB, UNNEEDED_AS_BARE_HOLDER, removable
from .transitions import cancelled_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import ObjectId


_FIRST_LIVE = "ready"
"""The first by its name of the states in which a job has not ended; all others come before it."""
_WAITING = [State.READY, State.SCHEDULED, "waiting"]


def cancel_waiting(queue: str, job_id: Any, keep: float | None) -> Document:
    """The filter for a job that waits and that nobody keeps or waits for: cancelled, it is gone.

    `keep` is for a job that does not say: the one of the queue object.
    """
    return removable(
        {
            "_id": {"$eq": job_id},
            "queue": {"$eq": queue},
            "state": {"$in": [str(state) for state in _WAITING]},
            "keep": {"$lte": 0} if keep else {"$not": {"$gt": 0}},
        }
    )


def cancel(queue: str, job_id: Any, keep: float | None, *, as_job: bool = False) -> Update:
    """End a job that waits, or ask whoever runs it; of one that was asked for nothing changes.
    `as_job`: if it holds a key for longer it stays a job."""
    runs = {"$eq": ["$state", "running"]}
    fields = {
        name: {"$cond": [runs, f"${name}", value]}
        for name, value in cancelled_fields(keep or 0).items()
    }
    asked = {"$ifNull": ["$cancel_requested_at", "$$NOW"]}
    fields["cancel_requested_at"] = {"$cond": [runs, asked, "$cancel_requested_at"]}
    wanted = {"_id": {"$eq": job_id}, "queue": {"$eq": queue}, "state": {"$gte": _FIRST_LIVE}}
    held = [] if keep or as_job else [UNNEEDED_AS_BARE_HOLDER]
    return Update(wanted, [{"$set": fields}, *held])


def states_of(queue: str, job_id: Any) -> Find:
    """The state of a job, if this queue has it."""
    wanted = {"_id": {"$eq": job_id}, "queue": {"$eq": queue}, **IS_A_JOB}
    return Find(wanted, {"state": 1}, None, 1)


def can_be_cancelled(document: Document) -> bool:
    """Whether a job is one that :func:`cancel` changes, by its state."""
    state = document.get("state")
    return isinstance(state, str) and state >= _FIRST_LIVE


def asked_for(ids: Sequence[ObjectId]) -> Find:
    """Those of some held jobs that somebody has asked to cancel, with their tokens."""
    return Find({"_id": one_of(ids), **ASKED_FOR}, {"_id": 1, "lease": 1})


def held_asked_for(job_id: ObjectId, token: bytes) -> Document:
    """The filter for one of them."""
    return {**held(job_id, token), **ASKED_FOR}


def cancelled_to_holders(ids: Sequence[Any]) -> Update:
    """Leave what holds their keys of those of some jobs that were cancelled."""
    wanted = {"_id": one_of_ids(ids), "state": "cancelled", "unique_until": {"$type": "date"}}
    return Update(wanted, [UNNEEDED_AS_BARE_HOLDER])


def cancelled_and_over(ids: Sequence[Any]) -> Document:
    """The filter for those of some jobs that were cancelled, and that nobody keeps."""
    over = {"$lte": ["$removed_at", "$$NOW"]}
    ended = {"state": "cancelled", "removed_at": {"$type": "date"}}
    return {"_id": one_of_ids(ids), **ended, "$expr": over}
