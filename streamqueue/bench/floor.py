"""The bare floor: the least that plain pymongo can do for the same promises. Nothing of ours in it.

The same documents in a collection with the same indexes, majority writes, and claims that are a
compare-and-set with a random token.

``python -m streamqueue.bench.floor SETTINGS`` is the process that waits on a raw change stream.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from ..plain import printable
from .channel import obey, say, wait_for_go

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymongo.synchronous.collection import Collection

QUEUE = "bench"
ORDER = [("priority", DESCENDING), ("run_at", ASCENDING), ("_id", ASCENDING)]
MAJORITY = WriteConcern("majority")


def document(payload: Mapping[str, Any], *, later: float = 0) -> dict[str, Any]:
    """Return a job as ours inserts it: ready, or scheduled for `later` seconds from now."""
    now = datetime.now(UTC)
    return {
        "_id": ObjectId(),
        "v": 1,
        "queue": QUEUE,
        "state": "scheduled" if later else "ready",
        "priority": 0,
        "run_at": now + timedelta(seconds=later),
        "created_at": now,
        "attempts": 0,
        "max_attempts": 3,
        "payload": payload,
    }


def claim(token: bytes) -> list[dict[str, Any]]:
    """Return the update that takes a ready job."""
    return [
        {
            "$set": {
                "state": "running",
                "locked_by": "floor",
                "locked_at": "$$NOW",
                "locked_until": {"$add": ["$$NOW", 30_000]},
                "lease": token,
                "attempts": {"$add": ["$attempts", 1]},
            }
        }
    ]


def drain(jobs: Collection[dict[str, Any]], batch: int) -> float:
    """Empty the collection, a batch at a time; return jobs per second."""
    done = 0
    begun = ended = time.monotonic()
    while found := list(jobs.find({"queue": QUEUE, "state": "ready"}, sort=ORDER, limit=batch)):
        ids = [job["_id"] for job in found]
        token = secrets.token_bytes(16)
        jobs.update_many({"_id": {"$in": ids}, "state": "ready"}, claim(token))
        done += jobs.delete_many({"_id": {"$in": ids}, "lease": token}).deleted_count
        ended = time.monotonic()
    return done / (ended - begun)


def listen(uri: str, settings: Mapping[str, str]) -> None:
    """Claim every job that a raw change stream shows, until SIGTERM."""
    database, name = settings["database"], settings["collection"]
    with (
        MongoClient[dict[str, Any]](uri) as streams,
        MongoClient[dict[str, Any]](uri) as writes,
    ):
        jobs = writes[database].get_collection(name, write_concern=MAJORITY)
        jobs.find_one()  # connected before it counts
        with streams[database][name].watch([{"$match": {"operationType": "insert"}}]) as stream:
            say({"what": "ready"})
            for event in stream:
                seen = time.monotonic()
                wanted = {"_id": event["documentKey"]["_id"], "state": "ready"}
                jobs.update_one(wanted, claim(secrets.token_bytes(16)))
                at = time.monotonic()
                number = event["fullDocument"]["payload"]["number"]
                say({"what": "started", "number": number, "at": at, "seen_at": seen})


def main() -> int:
    """Run the listening process; say why in one line if it cannot."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wait_for_go()
    obey(dict)
    try:
        listen(os.environ["STREAMQUEUE_URI"], json.loads(sys.argv[1]))
    except PyMongoError as error:
        sys.stderr.write(printable(f"{type(error).__name__}: {error}") + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
