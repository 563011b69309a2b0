"""The job that waits, given another time or another place by somebody who does not hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .expressions import later, one_of, one_of_ids
from .transitions import LAST_IN, LEFT

if TYPE_CHECKING:
    from datetime import datetime

    from .commands import Document, Pipeline

WAITING_STATES = ("ready", "scheduled", "waiting")
"""States of jobs that nobody holds, and that somebody will claim."""


_FOR_PARENTS: Document = {"$ne": [{"$type": "$waits_for.parents"}, "missing"]}


def that_waits(queue: str, job_id: Any) -> Document:
    """The filter for a job of a queue, if it waits."""
    return {
        "queue": {"$eq": queue},
        "state": one_of(WAITING_STATES),
        "_id": one_of_ids([job_id]),
    }


def rescheduled(
    *, delay: float | None = None, run_at: datetime | None = None, priority: int | None = None
) -> Pipeline:
    """It waits until another time, `delay` from now or `run_at`, or in another place. A time that
    has come makes it ready, behind those that are; with a later one it is in the order of its group
    no more, until that has come."""
    fields: Document = {}
    if priority is not None:
        fields["priority"] = priority
    if delay is not None or run_at is not None:
        moment = {"$literal": run_at} if delay is None else later(delay)
        is_later = {"$gt": [moment, "$$NOW"]}
        in_time: Document = {"$cond": [is_later, "scheduled", "ready"]}
        at_once = {"$cond": [is_later, LEFT, LAST_IN["seq"]]}
        # What comes after others does so whatever its time.
        fields |= {
            "state": {"$cond": [_FOR_PARENTS, "$state", in_time]},
            "run_at": {"$cond": [is_later, moment, "$$NOW"]},
            "seq": {"$cond": [_FOR_PARENTS, "$seq", at_once]},
            "waits_for": {"$cond": [_FOR_PARENTS, "$waits_for", "$$REMOVE"]},
            "delay": "$$REMOVE",
        }
    return [{"$set": fields}]
