"""The job that is too late: no attempt at it begins after its ``expires_at``.

It ends as cancelled, with ``expired`` as its last error. While it waits anybody may end it; whoever
has claimed it does so with the token. A job that runs by then may go on to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..schema import EXPIRES_INDEX
from .attempts import held_any
from .commands import Document, Find, Update
from .expressions import count_of, milliseconds_until, one_of, one_of_ids
from .keys.holding import UNNEEDED_AS_BARE_HOLDER, removable
from .transitions import NO_PROGRESS, UNLOCK, cancelled_fields
from .waiting import WAITING_STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bson import ObjectId

EXPIRED = "expired"
"""The last error of a job that was too late."""

# The first condition is what the index has, the second leaves out what is no moment: for whoever
# inserts null as the time, the job has none.
_HAS_A_TIME: Document = {"expires_at": {"$exists": True, "$type": "date"}}
_IS_PAST: Document = {"$expr": {"$lte": ["$expires_at", "$$NOW"]}}


def next_too_late(queues: Sequence[str], limit: int = 1) -> Find:
    """The jobs that wait and are the first to be too late, with the milliseconds until then as
    ``due_in``. An error (2) where no job can have such a time, for want of the index."""
    wanted = {"queue": one_of(queues), "state": one_of(WAITING_STATES), **_HAS_A_TIME}
    return Find(
        wanted,
        {"_id": 1, "due_in": milliseconds_until("expires_at")},
        [("expires_at", 1)],
        -limit,
        bare=True,
        hint=_HINT,
    )


def too_late(queues: Sequence[str], limit: int) -> Find:
    """Jobs that wait and are too late."""
    states = one_of(WAITING_STATES)
    wanted = {"queue": one_of(queues), "state": states, **_HAS_A_TIME, **_IS_PAST}
    fields: Document = dict.fromkeys(("_id", "queue", "task", "group", "after"), 1)
    return Find(wanted, fields, [("expires_at", 1)], -limit, bare=True, hint=_HINT)


_HINT = list(EXPIRES_INDEX["key"].items())


def expire(ids: Sequence[Any], keep: float | None, *, as_jobs: bool = False) -> Update:
    """End jobs that wait and are too late. `keep` is for how many seconds those stay that do not
    say so themselves, and that nobody has claimed; `as_jobs`: what holds a key for longer stays a
    job."""
    held = [] if keep or as_jobs else [UNNEEDED_AS_BARE_HOLDER]
    return Update(_waits_too_late(ids), [{"$set": _expired(keep or 0)}, *held])


def too_late_unkept(ids: Sequence[Any]) -> Document:
    """The filter for those that nobody keeps or awaits: they are removed."""
    return removable({**_waits_too_late(ids), "keep": {"$not": {"$gt": 0}}})


def expire_held(ids: Sequence[ObjectId], tokens: Iterable[bytes], *, kept: bool = True) -> Update:
    """End claimed jobs that were too late: they were not begun, so the attempt does not count.

    Of those that are not kept, what holds their keys stays, if they are to be held for longer.
    """
    attempts = {"$max": [0, {"$subtract": [count_of("attempts", 1), 1]}]}
    held_on = [] if kept else [UNNEEDED_AS_BARE_HOLDER]
    fields = {**_expired(), "attempts": attempts}
    return Update(held_any(ids, tokens), [{"$set": fields}, *held_on])


def _waits_too_late(ids: Sequence[Any]) -> Document:
    states = one_of(WAITING_STATES)
    return {"_id": one_of_ids(ids), "state": states, **_HAS_A_TIME, **_IS_PAST}


def _expired(keep: float = 0) -> Document:
    return {**cancelled_fields(keep), "last_error": EXPIRED, **UNLOCK, **NO_PROGRESS}
