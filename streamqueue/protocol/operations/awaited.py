"""Waiting for the end of jobs: the mark that somebody waits, and the events that tell of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..document import ENDED_STATES
from .commands import Document, Pipeline, Update
from .expressions import one_of_ids
from .keys.holding import IS_A_JOB

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENDED = sorted(ENDED_STATES)


def await_end(queue: str, job_id: Any) -> Update:
    """Mark that somebody waits for the end of a job; one that has ended is left as it is.

    Both are the same command, whose reply has the job: a write that changes nothing waits for the
    majority too, so that no end is told that could yet be undone.
    """
    lives = {"$not": [{"$in": ["$state", _ENDED]}]}
    marked = {"awaited": {"$cond": [lives, True, "$awaited"]}}
    wanted = {"_id": {"$eq": job_id}, "queue": {"$eq": queue}, **IS_A_JOB}
    return Update(wanted, [{"$set": marked}])


NOT_SHOWN = ("lease", "steps.result")
"""Fields of a job that who looks at it is not sent: of its steps the names and times are shown."""


def ends_pipeline(watched: Sequence[Any]) -> Pipeline:
    """What the server filters of the events of all jobs: the ends that somebody waits for, and
    whatever happens to a few jobs that are watched.

    Whoever ends a job that is awaited says so in the same update. A small document surfaces as a
    replacement, and is told whole. For an update the server looks up the document, and does so
    between the two conditions, for what has passed the first one: that must not ask for
    ``fullDocument``, or everything would be looked up (6.0.5).
    """
    updated = "updateDescription.updatedFields"
    own = [{"documentKey._id": one_of_ids(watched)}] if watched else []
    ended: Document = {
        "operationType": "update",
        f"{updated}.awaited": {"$exists": True},
        f"{updated}.state": {"$in": _ENDED},
    }
    replaced: Document = {
        "fullDocument.awaited": {"$exists": True},
        "fullDocument.state": {"$in": _ENDED},
    }
    return [
        {"$match": {"$or": [ended, {"operationType": "replace"}, *own]}},
        {"$match": {"$or": [{"operationType": {"$ne": "replace"}}, replaced, *own]}},
        {"$unset": [f"fullDocument.{field}" for field in NOT_SHOWN]},
        {"$project": dict.fromkeys(("operationType", "documentKey", "clusterTime", *_TOLD), 1)},
    ]


_TOLD = ("fullDocument", "updateDescription.updatedFields.state")
