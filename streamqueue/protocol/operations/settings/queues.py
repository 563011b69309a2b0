"""The settings of queues, read and changed; and the bell, which says that they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...settings import BELL
from ..commands import Find, Update
from ..expressions import one_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def settings_of(queues: Sequence[str]) -> Find:
    """What is stored of these queues. In the collection of settings, as all here but the bell."""
    return Find({"_id": one_of(queues)}, dict.fromkeys(("paused", "declared", "limits"), 1))


def paused_queues(limit: int) -> Find:
    """Which queues are paused, by name, but no more than so many."""
    return Find({"_id": {"$type": "string"}, "paused": True}, {"_id": 1}, [("_id", 1)], limit)


def pause(queue: str) -> Update:
    """Pause a queue; one that is paused stays so since then. An upsert."""
    since = {"$cond": [{"$eq": ["$paused", True]}, "$paused_at", "$$NOW"]}
    return Update({"_id": {"$eq": queue}}, [{"$set": {"paused": True, "paused_at": since}}])


def resume(queue: str) -> Update:
    """Let a queue go on. An upsert, which like that of a pause leaves what else is set."""
    return Update({"_id": {"$eq": queue}}, [{"$unset": ["paused", "paused_at"]}])


def ring() -> Update:
    """Say that settings were changed. An upsert, among the jobs."""
    return Update({"_id": {"$eq": BELL}}, [{"$set": {"rung_at": "$$NOW"}}])
