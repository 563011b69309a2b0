"""A producer process: puts jobs with ids of its own making, and writes it down.

A put whose outcome it does not learn is repeated with the same id until it is acknowledged; what a
predecessor was killed over is read from its history and repeated first.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pymongo
from anyio import to_thread
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from drills.history import History, digest_of, read_history
from drills.programs.consumer import QUEUE
from drills.programs.effects import Effects, answered
from streamqueue import AsyncMongoQueue, MongoQueue

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
    group: str | None = None

    def settings(self) -> dict[str, Any]:
        """Return what the put is given besides."""
        return {
            "priority": self.priority,
            "delay": self.delay,
            "max_attempts": self.max_attempts,
            "group": self.group,
        }

    def said(self, queue: str) -> dict[str, Any]:
        """Return what the history says of its put."""
        return {
            "job": str(self.job),
            "queue": queue,
            "digest": digest_of(self.payload),
            "payload": self.payload,
            **self.settings(),
        }


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
    groups: int = 0,
    predecessor: str | None = None,
    by: str = "async",
    transacts: float = 0.0,
    patience: float | None = None,
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
        groups: how many there are, in turns; with 0 the jobs have none.
        predecessor: the history of a producer that was killed.
        by: ``async`` or ``blocking``, the shell that puts.
        transacts: the share of puts that are made in a transaction, once, whatever comes of it.
        patience: seconds a put is waited for; None leaves it to the client.
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
                group=f"group {number % groups}" if groups else None,
            )

    async def main() -> None:
        left = orders()
        blocking = by == "blocking"
        own: Any = (MongoClient if blocking else AsyncMongoClient)(uri, **(client or {}))
        jobs = own[database][collection]
        target = (MongoQueue if blocking else AsyncMongoQueue)(jobs, name=queue)
        effects = Effects(history, own[database])

        async def put_some() -> None:
            for order in left:
                if random.random() < transacts:
                    await put_in_transaction(history, target, order, effects)
                else:
                    await put(history, target, order, patience)
                await anyio.sleep(random.uniform(0, 2 * pause))

        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(put_some)
        await answered(own.close())

    anyio.run(main)
    history.close()


async def put(
    history: History,
    queue: AsyncMongoQueue | MongoQueue,
    order: Order,
    patience: float | None = None,
) -> None:
    """Put a job until it is acknowledged."""
    put_it: Any = partial(queue.put, order.payload, job_id=order.job, **order.settings())
    call: Callable[[], Awaitable[Any]] = put_it
    if isinstance(queue, MongoQueue):
        call = partial(to_thread.run_sync, put_it)
    while True:
        limit = nullcontext() if patience is None else pymongo.timeout(patience)
        try:
            with limit, history.call("put", **order.said(queue.name)):
                await call()
            return
        except PyMongoError:
            await anyio.sleep(PAUSE)


async def put_in_transaction(
    history: History, queue: AsyncMongoQueue | MongoQueue, order: Order, effects: Effects
) -> None:
    """Put a job with the work that asks for it: both are there, or neither."""
    try:
        async with effects.work("put", order.job) as work:
            with history.call("put", transaction=work.number, **order.said(queue.name)):
                put: Any = queue.put(
                    order.payload, job_id=order.job, session=work.session, **order.settings()
                )
                await answered(put)
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
            group=said.get("group"),
        )
        for said in pending.values()
    }
    return list(orders.values())
