"""Jobs as other programs store them, and edits by hand that make them runnable."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId, Timestamp

LATER = timedelta(hours=1)


def job(state: str = "ready", **fields: Any) -> dict[str, Any]:
    """A job as a put would store it, in any state."""
    now = datetime.now(UTC)
    fields_of: dict[str, dict[str, object]] = {
        "scheduled": {"run_at": now + LATER},
        "running": {"locked_until": now + LATER, "lease": b"a ghost's", "locked_by": "ghost"},
    }
    return {
        "_id": ObjectId(),
        "queue": "default",
        "state": state,
        "priority": 0,
        "seq": Timestamp(0, 0),
        "run_at": now,
        "attempts": 0,
        "max_attempts": 3,
        "payload": {"n": 1},
        **fields_of.get(state, {}),
        **fields,
    }


def now() -> dict[str, Any]:
    return {"run_at": datetime.now(UTC)}


Edit = Callable[[], Any]
EDITS: dict[str, tuple[dict[str, Any], Edit]] = {
    "an earlier time": (job("scheduled"), lambda: {"$set": now()}),
    "an earlier time, as a pipeline": (
        job("scheduled"),
        lambda: [{"$set": {"run_at": "$$NOW"}}],
    ),
    "no time": (job("scheduled"), lambda: {"$unset": {"run_at": 1}}),
    "a ready one to this queue": (job(queue="other"), lambda: {"$set": {"queue": "default"}}),
    "a due one to this queue": (
        job("scheduled", queue="other", **now()),
        lambda: {"$set": {"queue": "default"}},
    ),
    "a dead one is ready": (job("dead"), lambda: {"$set": {"state": "ready"}}),
    "a dead one is due": (job("dead", **now()), lambda: {"$set": {"state": "scheduled"}}),
    "an odd one is ready": (job("later maybe"), lambda: {"$set": {"state": "ready"}}),
    "one without a place is ready": (
        {"_id": ObjectId(), "queue": "default", "state": "draft", "payload": {"n": 1}},
        lambda: {"$set": {"state": "ready"}},
    ),
    "a lease that ends now": (
        job("running"),
        lambda: {"$set": {"locked_until": datetime.now(UTC)}},
    ),
    "a lease that ends now, as a pipeline": (
        job("running"),
        lambda: [{"$set": {"locked_until": "$$NOW"}}],
    ),
    "a lease without an end": (job("running"), lambda: {"$unset": {"locked_until": 1}}),
    "a lease that ends at no date": (job("running"), lambda: {"$set": {"locked_until": None}}),
}
