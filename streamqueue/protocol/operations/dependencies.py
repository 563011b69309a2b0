"""The job that comes after others: it waits for one of them at a time, its witness.

A parent that has not ended is named in the dependent (``waits_for.parents``), and only who ends
that one need look how the others stand; the look finds the next one, or that there is none. Parents
say that they are needed (``needed``, the time at which that was last said), so that they stay, with
their results, until their dependents have ended, and so that whoever ends one knows that somebody
waits. Everything is computed from the documents: anybody may look again, as often as wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...durations import milliseconds
from ..document import AWAITED_SECONDS, ENDED_STATES, State, bare_id
from ..schema import NEEDED_INDEX
from .commands import Document, Find, Pipeline, Update
from .expressions import is_date, literal, near, one_of, one_of_ids, seconds_of
from .held_back import WAITS_FOR
from .keys.holding import IS_A_JOB, UNNEEDED_AS_BARE_HOLDER
from .queues import of_queue
from .transitions import NO_PROGRESS, UNLISTED, cancelled_fields, noted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NEEDED: Document = {"needed": {"$type": "date"}}
"""A condition: the job is the parent of others, which may not have ended."""
NOT_NEEDED: Document = {"needed": {"$not": {"$type": "date"}}}
"""The opposite."""
PARENT_FAILED = "a parent has failed, or is gone"
"""The last error of a dependent that was cancelled for that."""
_FOR_PARENTS: Document = {"state": str(State.WAITING), f"{WAITS_FOR}.parents": {"$exists": True}}
_LIVES: Document = {"$gte": "ready"}
FOUND_AT_ONCE = 10_000
"""Dependents that are read together, by their ids."""


def _among(ids: Sequence[Any]) -> Any:
    # What is read of anybody's documents is decoded as far as it must be, and asked for likewise.
    return one_of_ids(list(map(bare_id, ids)))


def if_unneeded(end: Update) -> Update:
    """The same end of a job, unless that is needed: whoever ends such a one has to know, so as to
    look for its dependents."""
    return Update({**end.filter, **NOT_NEEDED}, end.update)


def if_needed(wanted: Document) -> Document:
    """The same filter, for a job that is needed."""
    return {**wanted, **NEEDED}


def is_waiting_for_parents(wanted: Document) -> Document:
    """The same filter, for jobs that wait for their parents."""
    return {**wanted, **_FOR_PARENTS}


# parents


def mark_needed(ids: Sequence[Any]) -> Update:
    """Mark jobs as parents. One that lives says that somebody waits for its end; one that has ended
    is not removed for as long as it is needed."""
    lives = {"$not": [{"$in": ["$state", sorted(ENDED_STATES)]}]}
    kept = {"$cond": [is_date("removed_at"), "$removed_at", "$kept_until"]}
    fields = {
        "needed": "$$NOW",
        "awaited": {"$cond": [lives, True, "$awaited"]},
        "kept_until": kept,
        "removed_at": "$$REMOVE",
    }
    return Update({"_id": _among(ids), **IS_A_JOB}, [{"$set": fields}])


def count_jobs(ids: Sequence[Any]) -> Pipeline:
    """How many of these jobs there are, and the last of those that live."""
    lives = {"$in": ["$state", sorted(ENDED_STATES)]}
    last = {"$max": {"$cond": [lives, None, "$_id"]}}
    return [
        {"$match": {"_id": _among(ids), **IS_A_JOB}},
        {"$group": {"_id": None, "count": {"$sum": 1}, "last": last}},
    ]


def ids_of_jobs(ids: Sequence[Any]) -> Pipeline:
    """Which of these jobs there are."""
    return [{"$match": {"_id": _among(ids), **IS_A_JOB}}, {"$project": {"_id": 1}}]


def count_live_parents(ids: Sequence[Any]) -> Pipeline:
    """How many of these jobs have not ended, and say that they are needed."""
    return [{"$match": {"_id": _among(ids), "state": _LIVES, **NEEDED}}, {"$count": "count"}]


def which_jobs(ids: Sequence[Any]) -> Find:
    """Which of these jobs there are, in whatever queue, and how they stand."""
    shown = {"state": 1, "needed": 1}
    return Find({"_id": _among(ids), **IS_A_JOB}, shown, bare=True)


def dependents_of_many(ids: Sequence[Any]) -> Find:
    """Live jobs that come after one of these, and after which of them."""
    which = {"$setIntersection": [_list_of("$after"), {"$literal": list(map(bare_id, ids))}]}
    wanted = {"after": _among(ids), "state": _LIVES}
    return Find(wanted, {"_id": 1, "parents": which}, None, -20, bare=True)


def release_parents(ids: Sequence[Any], marked_by: Any) -> Update:
    """Let jobs go whose dependents have ended: they stay for as long as they are kept, and for a
    while after their end, and after they were last said to be needed. Not those that were said so
    since a look.

    Args:
        marked_by: when that was last said of one of them, as they were read.
    """
    while_needed = milliseconds(AWAITED_SECONDS)
    moments = [
        "$$NOW",
        {"$cond": [is_date("kept_until"), "$kept_until", "$$NOW"]},
        *(
            {"$cond": [is_date(field), {"$add": [near(f"${field}"), while_needed]}, "$$NOW"]}
            for field in ("finished_at", "needed")
        ),
    ]
    removed = {"$in": ["$state", ["done", "cancelled"]]}
    fields = {
        "removed_at": {"$cond": [removed, {"$max": moments}, "$removed_at"]},
        "needed": "$$REMOVE",
        "kept_until": "$$REMOVE",
    }
    wanted = {"_id": _among(ids), "needed": {"$type": "date", "$lte": marked_by}}
    return Update(wanted, [{"$set": fields}])


def forgotten_parents(queues: Sequence[str], after: Any, limit: int) -> Find:
    """Jobs of these queues that have been needed for a while, to see whether they still are; those
    behind a moment. An error (2) where nobody has used dependencies."""
    since: Document = {"$lt": ["$needed", {"$subtract": ["$$NOW", _A_WHILE]}]}
    wanted: Document = {"queue": one_of(queues), "needed": {"$type": "date"}, "$expr": since}
    if after is not None:
        wanted["needed"]["$gt"] = after
    hint = list(NEEDED_INDEX["key"].items())
    return Find(wanted, {"needed": 1}, [("needed", 1)], -limit, bare=True, hint=hint)


_A_WHILE = milliseconds(AWAITED_SECONDS)


def needed_of_queue(queue: str, *states: str) -> Find:
    """The jobs of a queue that are needed. An error (2) as with those that were forgotten."""
    wanted = {**of_queue(queue, *states), **NEEDED}
    return Find(wanted, {"_id": 1}, bare=True, hint=list(NEEDED_INDEX["key"].items()))


# dependents


_SIZE: Document = {"size": {"$size": {"$cond": [{"$isArray": "$after"}, "$after", []]}}}


def _list_of(field: str) -> Document:
    return {"$cond": [{"$isArray": field}, field, [field]]}


def waiting_for(ids: Sequence[Any], behind: Any = None) -> Find:
    """The dependents that wait for one of these parents in particular, by their ids."""
    wanted = {f"{WAITS_FOR}.parents": _among(ids), "state": str(State.WAITING)}
    return _by_id(wanted, behind)


def coming_after(ids: Sequence[Any], behind: Any = None) -> Find:
    """The dependents that wait, and have one of these parents, by their ids."""
    return _by_id({"after": _among(ids), **_FOR_PARENTS}, behind)


def live_dependents(ids: Sequence[Any], behind: Any = None) -> Find:
    """The dependents that have one of these parents and have not ended, by their ids."""
    return _by_id({"after": _among(ids), "state": _LIVES}, behind)


def _by_id(wanted: Document, behind: Any) -> Find:
    if behind is not None:
        wanted = {**wanted, "_id": {"$gt": behind}}
    return Find(wanted, {"_id": 1, **_SIZE}, [("_id", 1)], -FOUND_AT_ONCE, bare=True)


def parents_of(ids: Sequence[Any]) -> Find:
    """The parents of these jobs, as far as they have any."""
    return Find({"_id": _among(ids), "after": {"$exists": True}}, {"after": 1}, bare=True)


def look_at_parents(collection: str, ids: Sequence[Any]) -> Pipeline:
    """How the parents of these dependents stand that wait for them: for each state, how many they
    are, the last of them, and how many do not say that they are needed."""
    by_state: Document = {
        "_id": "$state",
        "count": {"$sum": 1},
        "last": {"$max": "$_id"},
        "unmarked": {"$sum": {"$cond": [is_date("needed"), 0, 1]}},
    }
    parents = {
        "from": collection,
        "localField": "after",
        "foreignField": "_id",
        "as": "parents",
        "pipeline": [{"$match": IS_A_JOB}, {"$group": by_state}],
    }
    shown = {
        "if_parent_fails": 1,
        WAITS_FOR: 1,
        "parents": 1,
        "count": {"$size": {"$setUnion": [_list_of("$after"), []]}},
        "needed": is_date("needed"),
    }
    return [
        {"$match": {"_id": _among(ids), **_FOR_PARENTS}},
        {"$lookup": parents},
        {"$project": shown},
    ]


def wait_for(job_id: Any, before: Any, witness: Any, *, failed: bool) -> Update:
    """Have a dependent wait for this parent, unless it waits for another one than before."""
    wanted = {
        "_id": _among([job_id]),
        "state": str(State.WAITING),
        f"{WAITS_FOR}.parents": {"$eq": before},
    }
    fields: Document = {"parents": literal(witness)}
    if failed:
        fields["failed"] = True
    # As a whole: what it said before must not be merged with.
    return Update(wanted, [{"$unset": WAITS_FOR}, {"$set": {WAITS_FOR: fields}}])


_DELAY: Document = seconds_of("delay", 0)
_DELAYED: Document = {"$gt": [_DELAY, 0]}
_IS_EARLY: Document = {"$and": [is_date("run_at"), {"$gt": ["$run_at", "$$NOW"]}]}


def let_run(ids: Sequence[Any]) -> Update:
    """Let dependents run whose parents have ended: they take their place among the others now, and
    their delay begins."""
    later = {"$add": ["$$NOW", {"$multiply": [_DELAY, 1000]}]}
    is_later = {"$or": [_DELAYED, _IS_EARLY]}
    fields = {
        **UNLISTED,
        "state": {"$cond": [is_later, "scheduled", "ready"]},
        "run_at": {"$cond": [_DELAYED, later, {"$cond": [_IS_EARLY, "$run_at", "$$NOW"]}]},
        "seq": {"$cond": [is_later, "$$REMOVE", "$$CLUSTER_TIME"]},
        WAITS_FOR: "$$REMOVE",
        "delay": "$$REMOVE",
    }
    return Update(is_waiting_for_parents({"_id": _among(ids)}), [{"$set": fields}])


def cancel_dependents(ids: Sequence[Any], *, needed: bool, as_jobs: bool = False) -> Update:
    """Cancel dependents one of whose parents has failed.

    Args:
        needed: they are parents themselves; others only.
        as_jobs: what holds a key for longer stays a job.
    """
    fields = {**cancelled_fields(), **noted({"$literal": PARENT_FAILED}), **NO_PROGRESS}
    condition = NEEDED if needed else NOT_NEEDED
    wanted = is_waiting_for_parents({"_id": _among(ids), **condition})
    return Update(wanted, [{"$set": fields}, *([] if as_jobs else [UNNEEDED_AS_BARE_HOLDER])])


def living_parents(ids: Sequence[Any]) -> Find:
    """Those of these parents for which somebody may wait: they live, or are dead."""
    wanted = {"_id": _among(ids), "state": {"$in": _MAY_BE_DONE}}
    return Find(wanted, {"state": 1}, bare=True)


_MAY_BE_DONE = ["dead", *sorted(str(state) for state in State if state not in ENDED_STATES)]


def cancel_tree(ids: Sequence[Any]) -> Update:
    """Cancel these jobs: end those that wait, and ask whoever runs the others."""
    runs = {"$eq": ["$state", "running"]}
    fields = {
        name: {"$cond": [runs, f"${name}", value]} for name, value in cancelled_fields().items()
    }
    asked = {"$ifNull": ["$cancel_requested_at", "$$NOW"]}
    fields["cancel_requested_at"] = {"$cond": [runs, asked, "$cancel_requested_at"]}
    return Update(
        {"_id": _among(ids), "state": _LIVES}, [{"$set": fields}, UNNEEDED_AS_BARE_HOLDER]
    )


def living(ids: Sequence[Any]) -> Find:
    """Those of these jobs that have not ended."""
    return Find({"_id": _among(ids), "state": _LIVES}, {"_id": 1}, bare=True)


def witness_of(job: Mapping[str, Any]) -> Any:
    """Return the parent that a job waits for; None if it waits for something else."""
    waits_for = job.get(WAITS_FOR)
    return waits_for.get("parents") if isinstance(waits_for, dict) else None


def waiting_or_needed(ids: Sequence[Any]) -> Find:
    """Those of some jobs that wait for their parents, or that others come after."""
    wanted = {"_id": _among(ids), "$or": [_FOR_PARENTS, NEEDED]}
    return Find(wanted, {"needed": 1, **_SIZE}, bare=True)


def waits_for_dead(job: Mapping[str, Any]) -> bool:
    """Whether a job says that the parent it waits for is dead."""
    waits_for = job.get(WAITS_FOR)
    return isinstance(waits_for, dict) and waits_for.get("failed") is True


def results_of(ids: Sequence[Any], *, whole: bool) -> Find:
    """The results of these jobs, or all that there is to see of them."""
    shown: Document = {"lease": 0, "steps.result": 0} if whole else {"state": 1, "result": 1}
    return Find({"_id": _among(ids), **IS_A_JOB}, shown)
