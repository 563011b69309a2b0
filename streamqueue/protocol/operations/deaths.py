"""The dead jobs: found, counted, requeued and purged."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ...durations import milliseconds
from .commands import Document, Find, Pipeline, Update
from .expressions import one_of_ids
from .keys.holding import BARE_HOLDER, HELD_ANEW, holding_on, not_holding_on
from .queues import of_queue
from .transitions import IN_A_GROUP, IS_NEEDED, LAST_IN, over

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


def requeue(
    queue: str,
    job_id: Any,
    died: Document | None = None,
    run_at: datetime | None = None,
    *,
    fresh: bool = False,
) -> Update:
    """Make a dead job ready again, with all its attempts; or a cancelled one that was kept. It has
    no time any more after which it is too late.

    Whatever lease it has goes: one that was made dead by hand may still be held, and its holder
    must not end what is another's by now.

    Args:
        died: the death that is meant, as :func:`dead_by_now` found it; None is whichever it died.
        run_at: when it is to be ready; until then it is scheduled.
        fresh: without its steps, which are all run again.
    """
    wanted = {**of_queue(queue, "dead", "cancelled"), "_id": one_of_ids([job_id])}
    if died is not None:
        wanted |= {"state": "dead", "finished_at": {"$eq": died.get("finished_at")}}
    again = "ready" if run_at is None else "scheduled"
    moment = "$$NOW" if run_at is None else {"$literal": run_at}
    fields = {
        "state": {"$cond": [_WAITED_FOR_PARENTS, "waiting", again]},
        "attempts": 0,
        "run_at": moment,
        "held_key": HELD_ANEW,
        **NOT_ENDED,
        **LAST_IN,
        **over(),
        "waits_for": {"$cond": [_WAITED_FOR_PARENTS, "$waits_for", "$$REMOVE"]},
        "if_parent_fails": {"$cond": [_WAITED_FOR_PARENTS, "run", "$if_parent_fails"]},
    }
    if fresh:
        fields["steps"] = "$$REMOVE"
    if run_at is not None:
        # One that has not joined its group does so when it is due.
        fields["seq"] = {"$cond": [IN_A_GROUP, "$seq", LAST_IN["seq"]]}
    fields["seq"] = {"$cond": [_WAITED_FOR_PARENTS, "$$REMOVE", fields["seq"]]}
    return Update(wanted, [{"$set": fields}])


# It was cancelled before they had ended. Who puts it back knows how they stand, and wants it to run
# when none is left to wait for.
_WAITED_FOR_PARENTS: Document = {"$ne": [{"$type": "$waits_for.parents"}, "missing"]}


NOT_ENDED: Document = dict.fromkeys(
    (
        *("finished_at", "removed_at", "kept_until", "result", "cancel_requested_at"),
        *("expires_at", "misfit_at"),
    ),
    "$$REMOVE",
)
NOT_ENDED["awaited"] = {"$cond": [IS_NEEDED, True, "$$REMOVE"]}
"""Fields of an update that makes a job live again which had ended."""


_A_DAY = milliseconds(86_400)


class Deaths(NamedTuple):
    """Which of the dead jobs of a queue are meant.

    Attributes:
        queue: its name.
        until: those that were dead by then; None is the moment that this is sent. (``$$NOW`` is
            the same for all of an answer, also for what dies while it is being read. What other
            programs say died more than a day later did not: it counts as dead by then.)
        since: those that died then or later.
        match: those whose last error has this text in it.
        error: those whose last error begins with this, or has a line that does.
        group: those of this group.
        age: those that died so many seconds ago, or earlier.
    """

    queue: str
    until: datetime | None = None
    since: datetime | None = None
    match: str | None = None
    error: str | None = None
    group: str | None = None
    age: float | None = None

    def filter(self) -> Document:
        """The filter for them."""
        until: Any = "$$NOW" if self.until is None else {"$literal": self.until}
        after = {"$add": [until, _A_DAY]}
        by_then = [{"$lte": ["$finished_at", until]}, {"$gt": ["$finished_at", after]}]
        wanted: Document = {**of_queue(self.queue, "dead"), "$expr": {"$or": by_then}}
        if self.age is not None:
            latest = {"$subtract": [until, milliseconds(self.age)]}
            wanted["$expr"] = {"$lte": ["$finished_at", latest]}
        if self.since is not None:
            wanted["finished_at"] = {"$gte": self.since}
        if self.match is not None:
            wanted["last_error"] = {"$regex": re.escape(self.match)}
        if self.error is not None:
            wanted["last_error"] = {"$regex": f"^{re.escape(self.error)}", "$options": "m"}
        if self.group is not None:
            wanted["group"] = {"$eq": self.group}
        return wanted


def dead_by_now(deaths: Deaths, limit: int = 0) -> Find:
    """The deaths of these jobs, the first of them first; 0 is all of them."""
    fields = {"_id": 1, "finished_at": 1, "needed": 1}
    return Find(deaths.filter(), fields, [("finished_at", 1)], limit)


def count_dead(deaths: Deaths, limit: int = 0) -> Pipeline:
    """How many they are, up to the limit."""
    most = [{"$limit": limit}] if limit else []
    return [{"$match": deaths.filter()}, *most, {"$count": "count"}]


def purge(deaths: Deaths, died: Sequence[Document]) -> Document:
    """The filter for these jobs, as far as they are still dead of what was meant; but for those
    whose key is held for longer."""
    return not_holding_on(_still_dead(deaths, died))


def purge_to_holders(deaths: Deaths, died: Sequence[Document]) -> Update:
    """Leave of those what holds their keys."""
    return Update(holding_on(_still_dead(deaths, died)), [BARE_HOLDER])


def _still_dead(deaths: Deaths, died: Sequence[Document]) -> Document:
    return {**deaths.filter(), "_id": one_of_ids([one["_id"] for one in died])}


def dead(deaths: Deaths, limit: int) -> Find:
    """The dead jobs of a queue, latest first, without their payloads."""
    of_each = ("queue", "task", "key", "group", "created_at", "attempts", "finished_at")
    fields: Document = dict.fromkeys((*of_each, "last_error"), 1)
    return Find(deaths.filter(), fields, [("finished_at", -1)], limit, bare=True)
