"""The held job: every write of the attempt that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..document import cut_error
from .commands import Document, Find, Update
from .expressions import later, one_of
from .keys.holding import (
    BARE_HOLDER,
    LET_GO,
    UNNEEDED_AS_BARE_HOLDER,
    holding_on,
    not_holding_on,
)
from .transitions import (
    CANCELLED,
    KEPT,
    PROGRESS,
    UNLOCK,
    answered,
    exhausted,
    failed,
    noted,
    released,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson import ObjectId


NOTHING: Document = {}


def held(job_id: ObjectId, token: bytes) -> Document:
    """The filter every write of an attempt has."""
    return {"_id": job_id, "lease": token}


def held_any(ids: Sequence[ObjectId], tokens: Iterable[bytes]) -> Document:
    """The same for several attempts at once.

    Pairs a job with another job's token, which is exact as long as the process that sends it has at
    most one live attempt per job (see ``worker.leases``).
    """
    return {"_id": one_of(ids), "lease": one_of(list(tokens))}


def renew(wanted: Document, timeout: float, progress: Mapping[str, Any] = NOTHING) -> Update:
    """Extend the lease to `timeout` from now, optionally noting these fields of its progress."""
    return Update(wanted, [{"$set": {"locked_until": later(timeout), **_literal(progress)}}])


def with_progress(end: Update, progress: Mapping[str, Any]) -> Update:
    """The same end of an attempt, after what is still to be stored of its progress: whatever
    becomes of that by the end, a job that dies keeps the newest."""
    if not progress:
        return end
    return Update(end.filter, [{"$set": _literal(progress)}, *end.update])


def _literal(fields: Mapping[str, Any]) -> Document:
    return {name: {"$literal": value} for name, value in fields.items()}


def store_step(
    job_id: ObjectId, token: bytes, name: str, result: Any, timeout: float | None
) -> Update:
    """Store the result of a step, unless it is there: so it may be sent again and again.

    Args:
        result: an expression (see ``protocol.result``).
        timeout: the lease is extended by it; None leaves the lease alone.
    """
    stored: Document = {"$cond": [{"$isArray": "$steps"}, "$steps", []]}
    step = {"name": {"$literal": name}, "at": "$$NOW", "result": result}
    is_there = {"$in": [{"$literal": name}, {"$map": {"input": stored, "in": "$$this.name"}}]}
    added = {"$concatArrays": [stored, [step]]}
    fields: Document = {"steps": {"$cond": [is_there, "$steps", added]}}
    if timeout is not None:
        fields["locked_until"] = later(timeout)
    return Update(held(job_id, token), [{"$set": fields}])


def stored_step(job_id: ObjectId, token: bytes, name: str) -> Find:
    """The held job, if this step of it is stored."""
    return Find({**held(job_id, token), "steps.name": {"$eq": name}}, {"_id": 1}, None, 1)


ASKED_FOR: Document = {"cancel_requested_at": {"$ne": None}}
"""A condition: somebody has asked for the job to be cancelled. (Programs that write all of their
fields store null for what is not so.)"""


def unasked(wanted: Document) -> Document:
    """The same filter, but for the jobs that somebody has asked to cancel: so whoever renews learns
    of it, though no event has come."""
    return {**wanted, "cancel_requested_at": None}


def cancelled(job_id: ObjectId, token: bytes, message: str | None = None) -> Update:
    """End the attempt and the job with it, as cancelled; the message says why."""
    fields = {**CANCELLED, **UNLOCK}
    if message is not None:
        fields |= noted({"$literal": cut_error(message)})
    return Update(held(job_id, token), [{"$set": fields}])


def leaving_its_holder(end: Update) -> Update:
    """The same end of an attempt, after which of a job that nobody keeps there is left what holds
    its key."""
    return Update(end.filter, [*end.update, UNNEEDED_AS_BARE_HOLDER])


def done(job_id: ObjectId, token: bytes, result: Any = None) -> Update:
    """Complete a job that stays: for as long as it is kept, and as whoever waits for it needs.

    `result` is an expression (see ``protocol.result``), or None for none.
    """
    fields: Document = {
        "state": "done",
        "finished_at": "$$NOW",
        **KEPT,
        **UNLOCK,
        **answered(),
        "held_key": LET_GO,
    }
    if result is not None:
        fields["result"] = result
    return Update(held(job_id, token), [{"$set": fields}])


def done_but_for_its_key(job_id: ObjectId, token: bytes) -> Update:
    """Complete a job that nobody keeps, and whose key is held for longer: of what somebody waits
    for nothing changes."""
    return Update(holding_on(_unneeded(held(job_id, token))), [BARE_HOLDER])


def held_for_long_enough(wanted: Document) -> Document:
    """The filter for those of some held jobs that nobody keeps or awaits and whose key need not be
    held any longer: complete, they are removed."""
    return not_holding_on(_unneeded(wanted))


def _unneeded(wanted: Document) -> Document:
    return {**wanted, "awaited": {"$ne": True}}


def not_done(ids: Sequence[ObjectId]) -> Find:
    """Those of some held jobs that no complete has ended, with their tokens, whether somebody has
    asked to cancel them, and whether others come after them. (What only holds a key has no
    state.)"""
    fields = {"_id": 1, "lease": 1, "cancel_requested_at": 1, "needed": 1}
    return Find({"_id": one_of(ids), "state": {"$nin": ["done", None]}}, fields)


def error(
    job_id: ObjectId, token: bytes, message: str | None, delay: float, max_attempts: int
) -> Update:
    """End the attempt as failed: back after `delay`, or dead when the attempts are used up.

    `max_attempts` is for a job that does not say, and whose claim did not.
    """
    return Update(held(job_id, token), failed(message, delay, exhausted(max_attempts)))


def discard(job_id: ObjectId, token: bytes, message: str) -> Update:
    """End the attempt and the job with it: dead, whatever attempts are left."""
    return Update(held(job_id, token), failed(message, 0, True))


def release(job_id: ObjectId, token: bytes, delay: float | None = None) -> Update:
    """Give the job back as it was before the claim, at once or after `delay`."""
    return Update(held(job_id, token), released(delay))


def release_many(ids: Sequence[ObjectId], tokens: Iterable[bytes]) -> Update:
    """Give back several jobs."""
    return Update(held_any(ids, tokens), released(None))


def smaller(end: Update) -> list[Update]:
    """The same end of an attempt in ever smaller writes, to try when the server refuses it.

    First as a job, though nobody keeps it (a validator may want all that a job has), then without
    its message and the newest of its progress (a document near 16 MB has no room for one), then
    with nothing but the state and the lock (a validator may know no other field).
    """
    *_, (at, fields) = [(at, each["$set"]) for at, each in enumerate(end.update) if "$set" in each]
    as_job = end.update[: at + 1]
    no_message = {name: value for name, value in fields.items() if name not in _MESSAGE}
    needed = {"state", "awaited", "held_key", "waits_for", "misfit_at", *PROGRESS, *UNLOCK}
    if _may_be_scheduled(fields["state"]):
        needed.add("run_at")
    bare = {name: value for name, value in no_message.items() if name in needed}
    ends = [Update(end.filter, as_job)] if len(as_job) < len(end.update) else []
    for left in (no_message, bare):
        if len(left) < len(fields) or at:
            fields, at = left, 0
            ends.append(Update(end.filter, [{"$set": left}]))
    return ends


_MESSAGE = ("last_error", "errors")


def _may_be_scheduled(state: Any) -> bool:
    if isinstance(state, dict):
        return any(map(_may_be_scheduled, state["$cond"][1:]))
    return bool(state == "scheduled")
