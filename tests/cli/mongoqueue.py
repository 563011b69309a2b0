"""What the package mongoqueue writes, written as it does."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pymongo.synchronous.collection import Collection

NEW = {"priority": 0, "attempts": 0, "locked_by": None, "locked_at": None, "last_error": None}
"""What mongoqueue stores with each job."""


def put(old: Collection[Any], payload: Any, **fields: Any) -> Any:
    """Put a job as mongoqueue 0.6 and later do."""
    return old.insert_one({**NEW, "payload": payload, **fields}).inserted_id


def put_many(old: Collection[Any], count: int) -> None:
    old.insert_many([{**NEW, "payload": {"n": n}} for n in range(count)])


def lock(old: Collection[Any], consumer: str = "consumer-1") -> Any:
    """Take a job as a consumer of mongoqueue does; return it, or None."""
    return old.find_one_and_update(
        {"locked_by": None, "locked_at": None, "attempts": {"$lt": 3}},
        {"$set": {"locked_by": consumer, "locked_at": datetime.now()}},
        sort=[("priority", -1)],
    )
