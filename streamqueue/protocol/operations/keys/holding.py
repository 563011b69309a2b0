"""The key of a job: when it is let go of and taken again, and what holds it when its job is over.

A job holds its key exactly while it has ``held_key``, whatever its state. One that was put for its
key to be unique for a time goes on holding it until then (``unique_until``), also when it has
ended; where nobody keeps it, it stays as a bare holder: a document without a state, which is no job
for anybody, and which the server removes after that time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..expressions import is_date, seconds_of

if TYPE_CHECKING:
    from ..commands import Document

HOLDS_ON: Document = {"$and": [is_date("unique_until"), {"$gt": ["$unique_until", "$$NOW"]}]}
"""An expression; whether the key is held whatever becomes of the job, by the server's clock."""
LET_GO: Document = {"$cond": [HOLDS_ON, "$held_key", "$$REMOVE"]}
"""What is held of a key by a job that has ended."""
_HAS_A_KEY: Document = {"$eq": [{"$type": "$key"}, "string"]}
_UNTIL_START: Document = {"$eq": ["$key_until", "start"]}
LET_GO_AT_START: Document = {"$cond": [_UNTIL_START, LET_GO, "$held_key"]}
"""What is held of a key by a job that has just been claimed."""
HELD_AGAIN: Document = {"$cond": [{"$and": [_UNTIL_START, _HAS_A_KEY]}, "$key", "$held_key"]}
"""What is held of a key by a job that waits again. Where another job has it by now, the server
refuses that, as a duplicate."""
HELD_ANEW: Document = {"$cond": [_HAS_A_KEY, "$key", "$held_key"]}
"""The same for one that had ended."""

_A_DATE: Document = {"$type": "date"}


def removable(wanted: Document) -> Document:
    """The same filter, but for the jobs that stay at their end: somebody waits for that, or their
    key may be held for longer."""
    return {**wanted, "awaited": {"$ne": True}, "unique_until": {"$not": _A_DATE}}


def holding_on(wanted: Document) -> Document:
    """The same filter, for the jobs whose key is held for longer."""
    return {**wanted, "unique_until": _A_DATE, "$and": [{"$expr": HOLDS_ON}]}


def not_holding_on(wanted: Document) -> Document:
    """The same filter, but for those."""
    return {**wanted, "$nor": [{"unique_until": _A_DATE, "$expr": HOLDS_ON}]}


_BARE: Document = {
    **{
        name: f"${name}"
        for name in ("_id", "v", "queue", "task", "key", "unique_until", "created_at")
    },
    "held_key": LET_GO,
    "removed_at": {"$cond": [is_date("unique_until"), "$unique_until", "$$NOW"]},
}
BARE_HOLDER: Document = {"$replaceWith": _BARE}
"""A stage of an update: of the job there is left what holds its key."""
IS_A_JOB: Document = {"state": {"$exists": True}}
"""A condition: it is no bare holder of a key."""
_NOBODY_NEEDS: Document = {
    "$and": [
        {"$in": ["$state", ["done", "cancelled"]]},
        {"$eq": [{"$ifNull": ["$awaited", None]}, None]},
        {"$eq": [seconds_of("keep", 0), 0]},
        HOLDS_ON,
    ]
}
UNNEEDED_AS_BARE_HOLDER: Document = {"$replaceWith": {"$cond": [_NOBODY_NEEDS, _BARE, "$$ROOT"]}}
"""The same stage, after one that ends a job, for one that has ended, that does not say how long it
is kept, and that nobody has waited for."""
