"""Looking at the server behind the queue's back, and changing what lies there."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pymongo.synchronous.collection import Collection

from streamqueue.protocol.document import CODEC


def document(jobs: Collection[Any], job_id: Any) -> dict[str, Any]:
    """The stored job."""
    found = jobs.with_options(codec_options=CODEC).find_one({"_id": job_id})
    assert found is not None, "the job is gone"
    return found


def let_lease_run_out(jobs: Collection[Any], *job_ids: Any) -> None:
    """Make the leases of these jobs end a second ago, or all leases."""
    wanted = {"_id": {"$in": list(job_ids)}} if job_ids else {"state": "running"}
    past = {"$subtract": ["$$NOW", 1000]}
    changed = jobs.update_many(wanted, [{"$set": {"locked_until": past}}])
    assert changed.modified_count


def server_time(jobs: Collection[Any]) -> datetime:
    """What the server's clock shows."""
    hello = jobs.database.client.admin.command("hello", codec_options=CODEC)
    return hello["localTime"]


def open_streams(jobs: Collection[Any]) -> int:
    """How many change streams are open on the collection: waiting, or between two reads."""
    return len(_streams(jobs))


def awaited_streams(jobs: Collection[Any]) -> int:
    """How many of them somebody waits for at this moment."""
    return len([stream for stream in _streams(jobs) if stream.get("op") == "getmore"])


def kill_streams(jobs: Collection[Any]) -> None:
    """Take the cursors of the streams away from their readers."""
    cursors = [stream["cursor"]["cursorId"] for stream in _streams(jobs)]
    jobs.database.command("killCursors", jobs.name, cursors=cursors)


def _streams(jobs: Collection[Any]) -> list[dict[str, Any]]:
    operations = jobs.database.client.admin.aggregate(
        [
            {"$currentOp": {"allUsers": True, "idleCursors": True}},
            {"$match": {"ns": jobs.full_name, "cursor.tailable": True}},
        ]
    )
    return list(operations)
