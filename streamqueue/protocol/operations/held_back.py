"""The job that is held back: it waits for another one, by which it could not be claimed.

It is parked by whoever would have claimed it, and let through by whoever ends the other one. That
one's document decides, and never a count: anybody may look again, as often as wanted. So far it is
the running job of the same key that holds one back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..document import State
from .commands import Document, Find, Update
from .expressions import is_date, literal, one_of, one_of_ids
from .transitions import (
    IN_A_GROUP,
    LAST_IN,
    NO_PROGRESS,
    UNLISTED,
    UNLOCK,
    cancelled_fields,
    noted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..document import JobRecord

WAITS_FOR = "waits_for"
"""The field of a parked job that says for what it waits, and for whom: ``{"key": <an id>}``."""
SUPERSEDED = "superseded: a newer job has its key"
"""The last error of a job that was to wait again when another one had taken its key."""
_A_KEY: Document = {"$gte": ""}


class JobKey(NamedTuple):
    """A key, with whose it is."""

    queue: str
    task: str | None
    key: str


def job_key(job: Mapping[str, Any]) -> JobKey | None:
    """Return the key of a job as it was read, None if it has none that could hold another back."""
    queue, task, key = job.get("queue"), job.get("task"), job.get("key")
    if type(queue) is not str or type(key) is not str or type(task) not in (str, type(None)):
        return None
    return JobKey(queue, task, key)


def keys_let_go(ended: Iterable[JobRecord]) -> list[JobKey]:
    """Return the keys that some jobs let go of when they were claimed: for the end of those another
    job may wait."""
    return [JobKey(job.queue, job.task, job.key or "") for job in ended if job.lets_go]


_PLACE: Document = dict.fromkeys(("_id", "queue", "task", "key"), 1)


def ready_with_keys(ids: Sequence[Any]) -> Find:
    """Those of some ready jobs that have a key."""
    wanted = {"_id": one_of_ids(ids), "state": "ready", "key": _A_KEY}
    return Find(wanted, _PLACE, None, -len(ids), bare=True)


def running_with(keys: Iterable[JobKey]) -> Find:
    """The jobs that run and have one of these keys. (Of what an index finds by each of the three,
    whoever asked takes what has all of one key.)"""
    queues, tasks, texts = (sorted(set(each), key=str) for each in zip(*keys, strict=True))
    wanted = {
        "queue": one_of(queues),
        "task": one_of(tasks),
        "key": one_of(texts),
        "state": "running",
    }
    return Find(wanted, _PLACE, bare=True)


def park(ids: Sequence[Any], holders: Sequence[Any]) -> Update:
    """Have ready jobs wait for those with the ids in the same places, which have their keys and
    run. They keep their places in the order, their keys and their attempts."""
    place = {"$indexOfArray": [list(map(literal, ids)), "$_id"]}
    holder = {"$arrayElemAt": [list(map(literal, holders)), place]}
    fields = {"state": str(State.WAITING), WAITS_FOR: {"key": holder}}
    return Update({"_id": one_of_ids(ids), "state": "ready"}, [{"$set": fields}])


def let_through(key: JobKey) -> Update:
    """Let the job be claimed that waits for the running one of its key."""
    wanted = {
        "queue": {"$eq": key.queue},
        "task": {"$eq": key.task},
        "held_key": {"$eq": key.key},
        "state": str(State.WAITING),
        **_FOR_ANOTHER,
    }
    return Update(wanted, [{"$set": LET_THROUGH}])


def let_these_through(ids: Sequence[Any]) -> Update:
    """Let these jobs be claimed, if they wait for another one."""
    wanted = {"_id": one_of_ids(ids), "state": str(State.WAITING), **_FOR_ANOTHER}
    return Update(wanted, [{"$set": LET_THROUGH}])


NOT_LEFT: Document = {f"{WAITS_FOR}.{why}": None for why in ("misfit", "task")}
"""A condition: a job that waits is not one that is left to other processes."""
_FOR_ANOTHER: Document = {f"{WAITS_FOR}.parents": {"$exists": False}, **NOT_LEFT}
# One that was given another time meanwhile waits for that.
_IS_EARLY: Document = {"$and": [is_date("run_at"), {"$gt": ["$run_at", "$$NOW"]}]}
# Only one that has a group may have no place: the first that is free, when it joins.
_JOINS: Document = {"$and": [IN_A_GROUP, {"$not": [_IS_EARLY]}]}
LET_THROUGH: Document = {
    "state": {"$cond": [_IS_EARLY, "scheduled", "ready"]},
    WAITS_FOR: "$$REMOVE",
    **UNLISTED,
    "seq": {"$cond": [_JOINS, LAST_IN["seq"], UNLISTED["seq"]]},
}
"""Fields of an update that lets a job be claimed which was parked."""


def held_back(queues: Sequence[str], limit: int) -> Find:
    """Jobs of these queues that wait for another one. (Those that are left to other processes wait
    for none.)"""
    wanted = {"queue": one_of(queues), "state": str(State.WAITING), **NOT_LEFT}
    size = {"$size": {"$cond": [{"$isArray": "$after"}, "$after", []]}}
    fields = {**_PLACE, WAITS_FOR: 1, "size": size}
    return Find(wanted, fields, [("run_at", 1)], -limit, bare=True)


def waits_for_key(job: Mapping[str, Any]) -> bool:
    """Whether a job that waits does so for the running one of its key, as far as it says. (Others
    may wait for what a later version knows of.)"""
    waits_for = job.get(WAITS_FOR)
    if isinstance(waits_for, dict) and waits_for:
        return set(waits_for) == {"key"}
    return job_key(job) is not None


def superseded(wanted: Document) -> Update:
    """End the job of an attempt that is over, because it cannot have its key again."""
    fields = {
        **cancelled_fields(),
        **noted({"$literal": SUPERSEDED}),
        **UNLOCK,
        **NO_PROGRESS,
    }
    return Update(wanted, [{"$set": fields}])
