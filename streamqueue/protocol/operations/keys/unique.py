"""Keys: a put that finds its own taken, who holds them, and those that an earlier version left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson.raw_bson import RawBSONDocument

from ....durations import milliseconds
from ...document import VERSION
from ..commands import Document, Find, Update
from ..expressions import is_date, is_timestamp, later, literal, near, one_of, one_of_ids
from ..transitions import HAS_JOINED, LAST_IN
from .holding import HOLDS_ON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...put import Put
    from ...unique import TaskKey

EARLIER_AT_ONCE = 1000
"""Jobs of an earlier version that one command brings up to date."""
LIVE: Document = {"$gte": "ready"}
"""A condition: the state is one of a job that has not ended."""


def holding(queue: str, keys: Sequence[TaskKey]) -> Document:
    """The filter for what holds keys of a queue, whatever its state. (A task that is null is one
    that nobody stored.) With keys of several tasks it is for each of them in each of these."""
    tasks = list(dict.fromkeys(key.task for key in keys))
    texts = list(dict.fromkeys(key.key for key in keys))
    return {"queue": {"$eq": queue}, "task": one_of(tasks), "held_key": one_of(texts)}


def holders(queue: str, *keys: TaskKey) -> Find:
    """Who holds these keys, one for each at most; with keys of several tasks maybe others too."""
    shown = {"task": 1, "held_key": 1, "state": 1, "outdated": OUTDATED}
    most = len(keys) * len({key.task for key in keys})
    return Find(holding(queue, keys), shown, None, most)


UNBEGUN_STATES = ("scheduled", "ready", "waiting")
"""States of a job that a put may still change: nobody has begun it."""
_LIVES: Document = {"$in": ["$state", [*UNBEGUN_STATES, "running"]]}
OUTDATED: Document = {
    "$not": [
        {
            "$or": [
                {"$in": ["$state", list(UNBEGUN_STATES)]},
                {"$and": [{"$eq": ["$state", "running"]}, {"$ne": ["$key_until", "start"]}]},
                HOLDS_ON,
            ]
        }
    ]
}
"""An expression of what holds a key: it has ended, or was claimed and lets go of the key then, and
its key is free. (Whoever ended it was of an earlier version, or the key was to be held until
now.)"""


def free(queue: str, keys: Sequence[TaskKey]) -> Update:
    """Take these keys from what has ended, unless they are to be held for longer."""
    wanted = {**holding(queue, keys), "$expr": OUTDATED}
    return Update(wanted, [{"$unset": "held_key"}])


PLACED = {"state": 1, "held_key": 1}
"""What a put asks to be told of the job that is there once it was sent."""
_NEW: Document = {"$eq": [{"$type": "$_id"}, "missing"]}
"""An expression of an upsert: there was nothing, and this is the document to be inserted."""
# (What was left to others, for its payload, has another one now.)
_IS_HELD_BACK: Document = {
    "$and": [
        {"$eq": ["$state", "waiting"]},
        *({"$eq": [{"$type": f"$waits_for.{why}"}, "missing"]} for why in ("misfit", "task")),
    ]
}
_OF_EARLIER_PUTS = ("misfit_at", "delay", "errors", "last_error", "progress", "note", "steps")


def put_unique(queue: str, put: Put) -> Update:
    """Put a job unless one holds its key, which is replaced or brought forward if it was to be.

    One upsert, for then nothing can come between the look and the insert. What has begun is left as
    it is. A holder that has ended, and whose key is free, lets go of it by the same command, and
    the put is sent again.
    """
    waits: Document = {"$in": ["$state", list(UNBEGUN_STATES)]}
    how = put.unique.on_conflict
    changed: Document = {"$or": [_NEW, waits]} if how == "replace" else _NEW
    moment = _moment(put)
    is_later: Document = {"$gt": [moment, "$$NOW"]}
    in_time: Document = {"$cond": [is_later, "scheduled", "ready"]}
    values: Document = {
        "payload": {"$literal": RawBSONDocument(put.payload)},
        "priority": put.priority,
        "attempts": 0,
        "state": {"$cond": [_IS_HELD_BACK, "waiting", in_time]},
        "run_at": {"$cond": [is_later, moment, "$$NOW"]},
        "seq": _place(put, is_later),
        "group": _or_none(put.group),
        "max_attempts": _or_none(put.max_attempts),
        "keep": _or_none(put.keep),
        "expires_at": _expires_at(put),
        "key_until": "start" if put.unique.until_start else "$$REMOVE",
        "traceparent": _or_none(put.traceparent),
        "waits_for": {"$cond": [_IS_HELD_BACK, "$waits_for", "$$REMOVE"]},
        **dict.fromkeys(_OF_EARLIER_PUTS, "$$REMOVE"),
    }
    if put.tick is not None:
        values |= {"schedule": {"$literal": put.schedule}, "tick": put.tick, "run_at": put.tick}
    if put.unique.held_for is not None:
        values["unique_until"] = later(put.unique.held_for)
    fields = {name: {"$cond": [changed, value, f"${name}"]} for name, value in values.items()}
    if how == "earlier":
        fields |= _brought_forward(put, moment, waits, fields)
    first: Document = {
        "_id": put.id,
        "v": VERSION,
        "created_at": "$$NOW",
        "key": {"$literal": put.unique.key},
        "task": _or_none(put.task),  # there is a null otherwise, of the filter
    }
    fields |= {name: {"$cond": [_NEW, value, f"${name}"]} for name, value in first.items()}
    outdated: Document = {"$and": [{"$not": [_NEW]}, OUTDATED]}
    fields["held_key"] = {"$cond": [outdated, "$$REMOVE", "$held_key"]}
    if put.awaited:
        fields["awaited"] = {"$cond": [{"$or": [_NEW, _LIVES]}, True, "$awaited"]}
    return Update(holding(queue, [put.task_key]), [{"$set": fields}])


def _moment(put: Put) -> Any:
    """An expression: when the job is to be ready."""
    moment: Any = "$$NOW"
    if put.delay:
        moment = later(put.delay)
    elif put.run_at is not None:
        moment = {"$literal": put.run_at}
    if put.unique.max_delay is None:
        return moment
    since = {"$cond": [is_date("created_at"), near("$created_at"), "$$NOW"]}
    return {"$min": [moment, {"$add": [since, milliseconds(put.unique.max_delay)]}]}


def _place(put: Put, is_later: Document) -> Document:
    """An expression: the place in the order, which is behind those that are ready. A job that is
    ready keeps the one it has, however often it is replaced.

    So does one that stays in its group and has joined that, in whatever state; what is put for
    later joins when it is due, and what still waits, and has no place, when it is let through.
    """
    if put.group is None:
        becomes_ready: Document = {
            "$and": [{"$eq": ["$state", "scheduled"]}, {"$not": [is_later]}],
        }
        return {"$cond": [{"$or": [_NEW, becomes_ready]}, "$$CLUSTER_TIME", "$seq"]}
    stays: Document = {"$and": [{"$eq": ["$group", literal(put.group)]}, HAS_JOINED]}
    waits_for_its_place: Document = {
        "$and": [{"$eq": ["$state", "waiting"]}, {"$not": [is_timestamp("seq")]}],
    }
    now: Document = {"$cond": [waits_for_its_place, "$$REMOVE", "$$CLUSTER_TIME"]}
    return {"$cond": [is_later, "$$REMOVE", {"$cond": [stays, "$seq", now]}]}


def _expires_at(put: Put) -> Any:
    if put.expires is None:
        return "$$REMOVE"
    return later(put.expires) if isinstance(put.expires, float) else {"$literal": put.expires}


def _or_none(value: object) -> Any:
    return "$$REMOVE" if value is None else literal(value)


def _brought_forward(put: Put, moment: Any, waits: Document, first: Document) -> Document:
    """Fields by which what waits has the earlier of two times, and the higher of two priorities."""
    moment = {"$max": [moment, "$$NOW"]}  # as of any put: what is late is due now
    earlier = {"$min": [{"$cond": [is_date("run_at"), "$run_at", moment]}, moment]}
    is_due: Document = {"$and": [{"$eq": ["$state", "scheduled"]}, {"$lte": [earlier, "$$NOW"]}]}
    priority = {"$cond": [{"$isNumber": "$priority"}, "$priority", put.priority]}
    values: Document = {
        "priority": {"$max": [priority, put.priority]},
        "run_at": {"$cond": [is_due, "$$NOW", earlier]},
        "state": {"$cond": [is_due, "ready", "$state"]},
        "seq": {"$cond": [is_due, LAST_IN["seq"], "$seq"]},
    }
    return {name: {"$cond": [waits, value, first[name]]} for name, value in values.items()}


def keys_to_hold(limit: int) -> Find:
    """Live jobs that have a key and do not hold it, in all queues: an earlier version put them.

    Found by the index that such a version made, so all of its are. One that has let go of its key
    says so by ``key_until``.
    """
    wanted = {"queue": {"$gte": ""}, "key": {"$gte": ""}, **_NOT_HELD}
    return Find(wanted, {"_id": 1}, None, limit, bare=True)


def hold_key(job_id: Any) -> Update:
    """Have one of those hold its key. Refused, as a duplicate, where another one does by now."""
    return _hold({"_id": one_of_ids([job_id]), "key": {"$gte": ""}})


def hold_this_key(queue: str, key: str) -> Update:
    """Have the job of an earlier version hold its key that has this one."""
    return _hold({"queue": {"$eq": queue}, "key": {"$eq": key}, "task": {"$eq": None}})


def _hold(wanted: Document) -> Update:
    return Update({**wanted, **_NOT_HELD}, [{"$set": {"held_key": "$key"}}])


_NOT_HELD: Document = {
    "state": LIVE,
    "held_key": {"$exists": False},
    "key_until": {"$exists": False},
}
