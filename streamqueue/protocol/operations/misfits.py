"""The job that is left to others: its payload does not fit here, or its task is not known here.

It is parked by whoever found that, without an attempt, and let through by whoever can run it. A
misfit for which nobody has come within the grace is dead; a job of an unknown task waits on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...durations import milliseconds
from ..document import State, cut_error
from .attempts import held
from .commands import Document, Find, Update
from .expressions import count_of, is_date, milliseconds_since, one_of, one_of_ids
from .held_back import LET_THROUGH, WAITS_FOR
from .keys.holding import HELD_AGAIN, LET_GO
from .transitions import NO_PROGRESS, answered, noted, over, unless_asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import ObjectId

MISFIT_AT = "misfit_at"
"""The field of such a job that says since when it is left to others. One that was let through keeps
it: whether it fits is not known before it runs."""
MISFIT = "misfit"
TASK = "task"
MISFIT_ERROR = "misfit: "
"""What the last error of a job begins with that is dead because nobody's types fit it."""

_SINCE: Document = {"$cond": [is_date(MISFIT_AT), f"${MISFIT_AT}", "$$NOW"]}


def park_misfit(job_id: ObjectId, token: bytes, why: str) -> Update:
    """Leave a held job to others whose payload does not fit, as it was before its claim; `why`
    says which of its fields, and no value."""
    fields: Document = {
        "state": str(State.WAITING),
        WAITS_FOR: {MISFIT: {"$literal": cut_error(why)}},
        MISFIT_AT: _SINCE,
        "attempts": {"$max": [0, {"$subtract": [count_of("attempts", 1), 1]}]},
        "held_key": HELD_AGAIN,
        **over(),
    }
    return Update(held(job_id, token), [{"$set": unless_asked(fields)}])


def park_unknown(ids: Sequence[Any], tasks: Sequence[str | None]) -> Update:
    """Leave those of some ready jobs to others that are of one of these tasks."""
    named: Document = {"$ifNull": ["$task", ""]}
    fields = {"state": str(State.WAITING), WAITS_FOR: {TASK: named}, MISFIT_AT: "$$NOW"}
    wanted = {"_id": one_of_ids(ids), "state": "ready", "task": {"$in": list(tasks)}}
    return Update(wanted, [{"$set": fields}])


def _left(queues: Sequence[str]) -> Document:
    return {
        "queue": one_of(queues),
        "state": str(State.WAITING),
        MISFIT_AT: {"$exists": True},
    }


_AGE = "age"


def misfits(queues: Sequence[str], limit: int) -> Find:
    """The jobs of these queues that are left to others because of their payloads, the first of them
    first, and how many milliseconds ago that was."""
    wanted = {**_left(queues), f"{WAITS_FOR}.{MISFIT}": {"$exists": True}}
    fields = {"queue": 1, TASK: 1, _AGE: milliseconds_since(MISFIT_AT, no_date=0)}
    return Find(wanted, fields, [(MISFIT_AT, 1)], -limit, bare=True)


def of_unknown_tasks(queues: Sequence[str], tasks: Sequence[str] | None, limit: int) -> Find:
    """Those because of their tasks: these, or any."""
    which: Document = {"$exists": True} if tasks is None else {"$in": list(tasks)}
    wanted = {**_left(queues), f"{WAITS_FOR}.{TASK}": which}
    return Find(wanted, {"queue": 1, TASK: 1}, None, -limit, bare=True)


def payloads_of(ids: Sequence[Any]) -> Find:
    """The payloads of those of some jobs that wait: of as many as fit into one reply."""
    wanted = {"_id": one_of_ids(ids), "state": str(State.WAITING)}
    return Find(wanted, {"payload": 1}, None, -len(ids))


def let_left_through(ids: Sequence[Any]) -> Update:
    """Let those of some jobs be claimed that are left to others. The time of a misfit stays."""
    fields = {**LET_THROUGH, MISFIT_AT: {"$cond": [_FOR_TASK, "$$REMOVE", f"${MISFIT_AT}"]}}
    return Update({"_id": one_of_ids(ids), **_IS_LEFT}, [{"$set": fields}])


_IS_LEFT: Document = {
    "state": str(State.WAITING),
    "$or": [{f"{WAITS_FOR}.{name}": {"$exists": True}} for name in (MISFIT, TASK)],
}
_FOR_TASK: Document = {"$ne": [{"$type": f"${WAITS_FOR}.{TASK}"}, "missing"]}


def bury_misfits(ids: Sequence[Any], grace: float) -> Update:
    """Make those of some misfits dead that have been left to others for `grace` seconds."""
    since = {"$subtract": ["$$NOW", milliseconds(grace)]}
    is_over = {"$and": [is_date(MISFIT_AT), {"$lte": [f"${MISFIT_AT}", since]}]}
    wanted = {
        "_id": one_of_ids(ids),
        "state": str(State.WAITING),
        f"{WAITS_FOR}.{MISFIT}": {"$type": "string"},
        "$expr": is_over,
    }
    fields = {
        "state": "dead",
        "finished_at": "$$NOW",
        **noted({"$concat": [MISFIT_ERROR, f"${WAITS_FOR}.{MISFIT}"]}),
        **NO_PROGRESS,
        **answered(),
        WAITS_FOR: "$$REMOVE",
        MISFIT_AT: "$$REMOVE",
        "held_key": LET_GO,
    }
    return Update(wanted, [{"$set": fields}])


def quarantine_misfits(ids: Sequence[Any]) -> Update:
    """The same for those that take no such change, with a write that does not make them larger."""
    wanted = {"_id": one_of_ids(ids), **_IS_LEFT}
    fields = {"state": "dead", WAITS_FOR: "$$REMOVE", **answered(), "held_key": LET_GO}
    return Update(wanted, [{"$set": fields}])


def left_for(job: Document) -> float:
    """Return for how many seconds a job has been left to others, as :func:`misfits` found it."""
    age = job.get(_AGE)
    return max(0.0, age / 1000) if isinstance(age, (int, float)) else 0.0
