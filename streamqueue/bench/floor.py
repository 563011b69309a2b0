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
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId, Timestamp
from pymongo import MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from ..plain import printable
from ..protocol import operations
from ..protocol.schema import CLAIM_ORDER
from .channel import obey, say, wait_for_go

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pymongo.synchronous.collection import Collection

QUEUE = "bench"
MAJORITY = WriteConcern("majority")
LISTENING_MS = 1000
"""How long the server waits for an event before it answers without one."""
OPENED_SECONDS = 10.0
"""How long anybody waits for the stream to be open."""


def queue_names(count: int) -> list[str]:
    """Return the names of so many queues."""
    return [QUEUE] if count == 1 else [f"{QUEUE}-{number}" for number in range(count)]


def document(
    payload: Mapping[str, Any], *, later: float = 0, queue: str = QUEUE, group: str | None = None
) -> dict[str, Any]:
    """Return a job as ours inserts it: ready, or scheduled for `later` seconds from now."""
    now = datetime.now(UTC)
    return {
        **({} if group is None else {"group": group}),
        "_id": ObjectId(),
        "v": 1,
        "queue": queue,
        "state": "scheduled" if later else "ready",
        "priority": 0,
        "seq": Timestamp(0, 0),
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
    while found := list(
        jobs.find({"queue": QUEUE, "state": "ready"}, sort=CLAIM_ORDER, limit=batch)
    ):
        ids = [job["_id"] for job in found]
        token = secrets.token_bytes(16)
        jobs.update_many({"_id": {"$in": ids}, "state": "ready"}, claim(token))
        done += jobs.delete_many({"_id": {"$in": ids}, "lease": token}).deleted_count
        ended = time.monotonic()
    return done / (ended - begun)


@contextmanager
def listening(uri: str, jobs: Collection[dict[str, Any]]) -> Iterator[None]:
    """Have somebody wait on a change stream of the jobs, with the filter of a worker's."""
    opened, ended = threading.Event(), threading.Event()

    def read() -> None:
        with MongoClient[dict[str, Any]](uri) as client:
            watched = client[jobs.database.name][jobs.name]
            pipeline = operations.stream_pipeline([QUEUE])
            with watched.watch(pipeline, max_await_time_ms=LISTENING_MS) as stream:
                opened.set()
                while not ended.is_set():
                    stream.try_next()

    thread = threading.Thread(target=read)
    thread.start()
    opened.wait(OPENED_SECONDS)
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
