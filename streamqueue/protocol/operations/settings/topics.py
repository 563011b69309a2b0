"""Topics: who subscribes, read and changed. All in the collection that has the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...topics import KIND, MAX_SUBSCRIBERS, PREFIX, topic_id
from ..commands import Find, Update
from ..expressions import later

if TYPE_CHECKING:
    from datetime import datetime

    from ..commands import Document, Pipeline


def subscribe(topic: str, queue: str, expires: float | datetime | None) -> Update:
    """Let a queue subscribe: from now on, if it did not, and until then; None for without an end.

    An upsert. Whose time is over goes by the way. A topic that has as many as it may have stays as
    it is, which the answer shows. What is no list, or no subscriber, is none.
    """
    mine = {"$filter": {"input": _LIVE, "cond": {"$eq": ["$$this.queue", {"$literal": queue}]}}}
    since = {"$let": {"vars": {"one": {"$first": mine}}, "in": "$$one.subscribed_at"}}
    new: Document = {"queue": {"$literal": queue}, "subscribed_at": {"$ifNull": [since, "$$NOW"]}}
    if expires is not None:
        new["expires_at"] = later(expires) if isinstance(expires, float) else {"$literal": expires}
    changed = {"$concatArrays": [_without(queue), [new]]}
    has_room = {"$lt": [{"$size": _without(queue)}, MAX_SUBSCRIBERS]}
    subscribers = {"$cond": [has_room, changed, _LIVE]}
    return Update(_the(topic), [{"$set": {"kind": KIND, "subscribers": subscribers}}])


def unsubscribe(topic: str, queue: str) -> Update:
    """Let a queue subscribe no more."""
    return Update(_the(topic), [{"$set": {"subscribers": _without(queue)}}])


def subscribers_of(topic: str) -> Find:
    """Who subscribes to a topic now, by the server's time."""
    return Find(_the(topic), {"subscribers": _LIVE}, None, 1)


def all_topics(limit: int) -> Find:
    """The topics with their subscribers, by their names, but no more than so many."""
    return Find(_ALL, {"subscribers": _LIVE}, [("_id", 1)], limit)


def subscriptions(limit: int) -> Pipeline:
    """Count by queue to how many topics it subscribes, of no more queues than so many.

    Rows ``{_id: <queue>, count}``.
    """
    return [
        {"$match": _ALL},
        {"$project": {"subscribers": {"$setUnion": [{"$map": {"input": _LIVE, "in": _QUEUE}}]}}},
        {"$unwind": "$subscribers"},
        {"$group": {"_id": "$subscribers", "count": {"$sum": 1}}},
        {"$sort": {"_id": 1}},
        {"$limit": limit},
    ]


_ALL: Document = {"_id": {"$gte": PREFIX, "$lt": f"{PREFIX[:-1]};"}}  # what follows the colon
_QUEUE = "$$this.queue"


def _the(topic: str) -> Document:
    return {"_id": {"$eq": topic_id(topic)}}


_LIVE: Document = {
    "$filter": {
        "input": {"$cond": [{"$isArray": "$subscribers"}, "$subscribers", []]},
        "cond": {
            "$and": [
                {"$eq": [{"$type": "$$this.queue"}, "string"]},
                {
                    "$or": [
                        {"$ne": [{"$type": "$$this.expires_at"}, "date"]},
                        {"$gt": ["$$this.expires_at", "$$NOW"]},
                    ]
                },
            ]
        },
    }
}
"""An expression: those whose time is not over."""


def _without(queue: str) -> Document:
    """An expression: the others of them."""
    return {"$filter": {"input": _LIVE, "cond": {"$ne": ["$$this.queue", {"$literal": queue}]}}}
