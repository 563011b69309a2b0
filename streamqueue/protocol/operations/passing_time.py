"""Time that passes at once, for tests: what is stored is moved back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bson import Int64

from ..document import State
from ..rates import MILLISECOND
from ..schema import FIRST_DATE
from ..settings import BELL
from .commands import Document, Update
from .expressions import is_date, near, one_of
from .misfits import MISFIT_AT
from .settings.schedules import every_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

DATES_OF_JOBS = (
    *("run_at", "expires_at", "created_at", "tick", "unique_until", MISFIT_AT),
    *(
        "locked_at",
        "locked_until",
        "cancel_requested_at",
        "finished_at",
        "removed_at",
        "kept_until",
    ),
)
DATES_OF_SCHEDULES = ("last_tick", "next_tick", "paused_at", "declared_at")


def move_jobs_back(milliseconds: int) -> Update:
    """Move all that is stored of when, of every job, back by so much."""
    return Update({"_id": {"$ne": BELL}}, [{"$set": _moved(DATES_OF_JOBS, milliseconds)}])


def over_by_now() -> Document:
    """The filter for what the server is to remove by itself, which takes it up to a minute."""
    return {
        "removed_at": {"$type": "date"},
        "$expr": {"$lte": ["$removed_at", "$$NOW"]},
    }


def move_schedules_back(milliseconds: int) -> Update:
    """The same of schedules: their ticks are due that much earlier."""
    until = {"$mergeObjects": ["$behind", {"until": _back("$behind.until", milliseconds)}]}
    behind = {"behind": {"$cond": [is_date("behind.until"), until, "$behind"]}}
    moved = {**_moved(DATES_OF_SCHEDULES, milliseconds), **behind}
    return Update(every_schedule(), [{"$set": moved}])


def move_subscriptions_back(milliseconds: int) -> Update:
    """The same of the subscriptions of topics."""
    ends = {"expires_at": _back("$$this.expires_at", milliseconds)}
    has_end = {"$eq": [{"$type": "$$this.expires_at"}, "date"]}
    one = {"$cond": [has_end, {"$mergeObjects": ["$$this", ends]}, "$$this"]}
    moved = {"$map": {"input": "$subscribers", "in": one}}
    return Update({"subscribers": {"$type": "array"}}, [{"$set": {"subscribers": moved}}])


def move_rates_back(milliseconds: int) -> Update:
    """The same of the starts that rates have counted."""
    is_long = {"$eq": [{"$type": "$last"}, "long"]}
    last = {"$subtract": ["$last", Int64(milliseconds * MILLISECOND)]}
    moved: Document = {"last": {"$cond": [is_long, last, "$last"]}}
    return Update({}, [{"$set": {**moved, **_moved(("full_at",), milliseconds)}}])


def make_due(queues: Sequence[str]) -> Update:
    """Have what is to run later in these queues be due now."""
    later = {"$gt": ["$run_at", "$$NOW"]}
    wanted = {"queue": one_of(queues), "state": str(State.SCHEDULED), "$expr": later}
    return Update(wanted, [{"$set": {"run_at": "$$NOW"}}])


def _moved(fields: Sequence[str], milliseconds: int) -> Document:
    return {
        field: {"$cond": [is_date(field), _back(f"${field}", milliseconds), f"${field}"]}
        for field in fields
    }


def _back(date: str, milliseconds: int) -> Document:
    earlier: Any = {"$subtract": [near(date), milliseconds]}
    return {"$max": [FIRST_DATE, earlier]}
