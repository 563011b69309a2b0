"""A producer process: puts jobs with ids of its own making, and writes it down.

A put whose outcome it does not learn is repeated with the same id until it is acknowledged; what a
predecessor was killed over is read from its history and repeated first.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from streamqueue import AsyncMongoQueue
from tests.faults.history import History, digest_of, read_history
from tests.faults.programs.consumer import QUEUE

MIXED: Mapping[str, float] = {
    "complete": 60,
    "return": 10,
    "progress": 8,
    "error": 6,
    "raise": 6,
    "release": 4,
    "retry": 3,
    "snooze": 3,
}
"""What jobs do, by weight, when nothing else is asked for."""
PAUSE = 0.1
"""Seconds between two tries of a put."""


@dataclass(frozen=True)
class Order:
    """A job that is to be put."""

    job: ObjectId
    payload: dict[str, Any]
    priority: int
    delay: float | None
    max_attempts: int


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    jobs: int,
    collection: str = "jobs",
    queue: str = QUEUE,
    deeds: Mapping[str, float] | None = None,
    payload: Mapping[str, Any] | None = None,
    seconds: float = 0.02,
    priorities: Sequence[int] = (0,),
    delay: float | None = None,
    max_attempts: int = 20,
    tasks: int = 4,
    pause: float = 0.0,
    predecessor: str | None = None,
    client: dict[str, Any] | None = None,
) -> None:
    """Put so many jobs and end.

    Args:
        deeds: what the jobs do, with weights.
        payload: what is in every job besides.
        seconds: how long a job takes on average.
        delay: seconds until a job is ready.
        tasks: puts at the same time.
        pause: the mean seconds between two puts of a task.
        predecessor: the history of a producer that was killed.
        client: further settings of its MongoClient.
    """
    history = History(directory, "producer")

    def orders() -> Iterator[Order]:
        if predecessor is not None:
            yield from unfinished(Path(predecessor))
        names, weights = zip(*(deeds or MIXED).items(), strict=True)
        for number in range(jobs):
            # Keys and texts that would be operators, paths and variables in another place.
            odd = {"$set": "$$ROOT", "a.b": {"": "$a"}, "text": "ä\0"}
            yield Order(
                job=ObjectId(),
                payload={
                    "n": number,
                    "does": random.choices(names, weights)[0],
                    "seconds": round(min(10 * seconds, random.expovariate(1 / seconds)), 4)
                    if seconds
                    else 0,
                    **(odd if number % 10 == 0 else {}),
                    **(payload or {}),
                },
                priority=random.choice(priorities),
                delay=delay,
                max_attempts=max_attempts,
            )

    async def main() -> None:
        left = orders()
        async with AsyncMongoClient(uri, **(client or {})) as own:
            target = AsyncMongoQueue(own[database][collection], name=queue)

            async def put_some() -> None:
                for order in left:
                    await put(history, target, order)
                    await anyio.sleep(random.uniform(0, 2 * pause))

            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(put_some)

    anyio.run(main)
    history.close()


async def put(history: History, queue: AsyncMongoQueue, order: Order) -> None:
    """Put a job until it is acknowledged."""
    settings = {
        "priority": order.priority,
        "delay": order.delay,
        "max_attempts": order.max_attempts,
    }
    said = {
        "job": str(order.job),
        "queue": queue.name,
        "digest": digest_of(order.payload),
        "payload": order.payload,
        **settings,
    }
    while True:
        try:
            with history.call("put", **said):
                await queue.put(order.payload, job_id=order.job, **settings)
            return
        except PyMongoError:
            await anyio.sleep(PAUSE)


def unfinished(path: Path) -> list[Order]:
    """Return the puts of a history whose outcome is unknown."""
    pending: dict[int, Mapping[str, Any]] = {}
    for line in read_history(path):
        if line.said["what"] == "put" and line.said["is"] == "invoked":
            pending[line.said["call"]] = line.said
        elif line.said["what"] == "put" and line.said["is"] in ("acknowledged", "failed"):
            del pending[line.said["call"]]
    orders = {
        said["job"]: Order(
            job=ObjectId(said["job"]),
            payload=said["payload"],
            priority=said["priority"],
            delay=said["delay"],
            max_attempts=said["max_attempts"],
        )
        for said in pending.values()
    }
    return list(orders.values())
