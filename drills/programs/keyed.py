"""A producer of jobs with keys: some hold theirs until they start, some until their end, and some
for a time. Puts for ever, each once, whatever comes of it; and writes it down.

A put that finds its key taken counts as failed, also where it is content with that.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from drills.history import History, digest_of
from drills.programs.consumer import QUEUE
from streamqueue import AsyncMongoQueue, DuplicateJob

DEEDS: Mapping[str, float] = {
    "complete": 50,
    "return": 20,
    "error": 8,
    "raise": 8,
    "release": 6,
    "snooze": 4,
    "discard": 4,
}
"""What the jobs do, by weight."""


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    collection: str = "jobs",
    queue: str = QUEUE,
    keys: int = 6,
    seconds: float = 0.05,
    tasks: int = 4,
    pause: float = 0.03,
    client: dict[str, Any] | None = None,
) -> None:
    """Put jobs until it is killed.

    Args:
        keys: how many there are.
        seconds: how long a job takes on average.
        tasks: puts at the same time.
        pause: the mean seconds between two puts of a task.
        client: further settings of its MongoClient.
    """
    history = History(directory, "keyed")

    async def main() -> None:
        async with AsyncMongoClient(uri, **(client or {})) as own:
            target = AsyncMongoQueue(own[database][collection], name=queue)

            async def put_some() -> None:
                while True:
                    await put(history, target, str(random.randrange(keys)), seconds)
                    await anyio.sleep(random.uniform(0, 2 * pause))

            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(put_some)

    anyio.run(main)
    history.close()


async def put(history: History, queue: AsyncMongoQueue, key: str, seconds: float) -> None:
    """Put one job with this key."""
    names, weights = zip(*DEEDS.items(), strict=True)
    payload = {
        "does": random.choices(names, weights)[0],
        "seconds": round(min(10 * seconds, random.expovariate(1 / seconds)), 4),
    }
    settings: dict[str, Any] = {
        "key": key,
        "key_until": random.choice(["start", "start", "end"]),
        "unique_for": random.choice([None, None, None, 0.3]),
        "max_attempts": 20,
    }
    on_conflict: Any = random.choice(["raise", "skip"])
    job = ObjectId()
    said = {
        "job": str(job),
        "queue": queue.name,
        "digest": digest_of(payload),
        "payload": payload,
        "priority": 0,
        "delay": None,
        **settings,
    }
    with suppress(PyMongoError, DuplicateJob), history.call("put", **said):
        there = await queue.put(payload, job_id=job, on_conflict=on_conflict, **settings)
        if there != job:
            raise DuplicateJob(key, there)
