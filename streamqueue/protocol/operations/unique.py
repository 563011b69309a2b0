"""Keys: who holds them, and those of jobs that an earlier version put."""

from __future__ import annotations

from typing import Any

from .commands import Document, Find, Update
from .expressions import one_of, one_of_ids

EARLIER_AT_ONCE = 1000
"""Jobs of an earlier version that one command brings up to date."""
LIVE: Document = {"$gte": "ready"}
"""A condition: the state is one of a job that has not ended."""


def holding(queue: str, keys: Document, task: str | None = None) -> Document:
    """The filter for what holds keys of a queue, whatever its state. (A task that is null is one
    that nobody stored.)"""
    return {"queue": {"$eq": queue}, "task": {"$eq": task}, "held_key": keys}


def holders(queue: str, *keys: str) -> Find:
    """Who holds these keys, one for each at most."""
    return Find(holding(queue, one_of(keys)), {"held_key": 1}, None, len(keys))


def keys_to_hold(limit: int) -> Find:
    """Live jobs that have a key and do not hold it, in all queues: an earlier version put them.

    Found by the index that such a version made, so all of its are. One that has let go of its key
    says so by ``key_until``.
    """
    wanted = {"queue": {"$gte": ""}, "key": {"$gte": ""}, **_NOT_HELD}
    return Find(wanted, {"_id": 1}, None, limit, bare=True)


def hold_key(job_id: Any) -> Update:
    """Have one of those hold its key. Refused, as a duplicate, where another one does by now."""
    wanted = {"_id": one_of_ids([job_id]), "key": {"$gte": ""}, **_NOT_HELD}
    return Update(wanted, [{"$set": {"held_key": "$key"}}])


_NOT_HELD: Document = {
    "state": LIVE,
    "held_key": {"$exists": False},
    "key_until": {"$exists": False},
}
