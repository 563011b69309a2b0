"""What is stored of a topic: which queues subscribe to it, and until when.

One document for each topic, in the collection that has the settings of queues::

    _id              "topic:" and its name; no queue's name has a colon
    kind             "topic"
    subscribers      a list, of {queue, subscribed_at, expires_at (if it has an end)}

A message is no document: publishing it puts a job into each of these queues. Their ids are computed
from that of the message and the queue's name, so a repetition has the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from ..names import is_name
from .stored import date_of, text_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

PREFIX = "topic:"
KIND = "topic"

MAX_SUBSCRIBERS = 1000
"""Queues that may subscribe to one topic: each publish puts a job into each of them."""

MAX_PUBLISHED_BYTES = 128 * 1024 * 1024
"""All copies of one message: the server keeps what a transaction writes in its memory."""


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A queue that subscribes to a topic.

    Attributes:
        expires_at: when it ceases to; None for never.
    """

    queue: str
    expires_at: datetime | None = None


def topic_id(name: str) -> str:
    """Return the ``_id`` of a topic."""
    return PREFIX + name


def topic_name(document: Mapping[str, Any]) -> str | None:
    """Return the name of the topic that a document is of; None if it is of none."""
    name = (text_in(document.get("_id")) or "").partition(PREFIX)[2]
    return name if is_name(name) else None


def subscribers_in(document: Mapping[str, Any] | None) -> list[Subscriber]:
    """Return the subscribers that anybody may have stored, by their names, each once.

    What is not understood is none, and an end that is no date is no end.
    """
    stored = None if document is None else document.get("subscribers")
    found: dict[str, Subscriber] = {}
    for one in stored if isinstance(stored, list) else ():
        queue = text_in(one.get("queue")) if isinstance(one, dict) else None
        if queue is not None and is_name(queue):
            found.setdefault(queue, Subscriber(queue, date_of(one.get("expires_at"))))
    return [found[queue] for queue in sorted(found)]


def copy_id(message: ObjectId, queue: str) -> ObjectId:
    """Return the id of the job that a message is in one queue.

    Its first bytes are the message's, which say when that was made; the others are a hash.
    """
    start = message.binary[:4]
    return ObjectId(start + sha256(message.binary + queue.encode()).digest()[: 12 - len(start)])
