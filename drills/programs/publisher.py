"""A process that publishes messages to a topic until SIGTERM, and writes down what becomes of each.

A publish whose outcome it does not learn is repeated with the same id until it is acknowledged.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from drills.history import History, digest_of
from drills.programs.effects import answered
from drills.programs.producer import MIXED, PAUSE
from streamqueue import AsyncTopic, Topic
from streamqueue.protocol.topics import copy_id

TOPIC = "drill"
KEEP = 86_400.0
"""Seconds: longer than any drill. A copy that was read is still there when the message is repeated,
so that none is read twice."""


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    queues: Sequence[str],
    collection: str = "jobs",
    by: str = "async",
    tasks: int = 3,
    pause: float = 0.02,
    client: dict[str, Any] | None = None,
) -> None:
    """Publish until SIGTERM.

    Args:
        queues: those that subscribe, all the time.
        by: ``async`` or ``blocking``, the shell.
        tasks: publishes at the same time.
        pause: the mean seconds between two of a task.
        client: further settings of the MongoClient.
    """
    history = History(directory, "publisher")
    open_now = True

    async def main() -> None:
        blocking = by == "blocking"
        own: Any = (MongoClient if blocking else AsyncMongoClient)(uri, **(client or {}))
        jobs = own[database][collection]
        topic: Any = (Topic if blocking else AsyncTopic)(jobs, TOPIC)

        async def publish_some() -> None:
            while open_now:
                await publish(topic, queues, history, blocking=blocking)
                await anyio.sleep(random.expovariate(1 / pause))

        with anyio.open_signal_receiver(signal.SIGTERM) as stop:
            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(publish_some)
                async for _ in stop:
                    nonlocal open_now
                    open_now = False
                    break
        await answered(own.close())

    anyio.run(main)
    history.close()


async def publish(topic: Any, queues: Sequence[str], history: History, *, blocking: bool) -> None:
    """Publish a message until that is acknowledged."""
    message = ObjectId()
    payload = {
        "does": random.choices(list(MIXED), list(MIXED.values()))[0],
        "seconds": round(random.expovariate(100), 4),
    }
    settings: dict[str, Any] = {"max_attempts": 20, "priority": 0, "delay": None, "keep": KEEP}
    call = partial(topic.publish, payload, job_id=message, **settings)
    said = {"message": str(message), "digest": digest_of(payload), "payload": payload, **settings}
    while True:
        try:
            with ExitStack() as copies:
                for queue in queues:
                    job = str(copy_id(message, queue))
                    copies.enter_context(history.call("put", job=job, queue=queue, **said))
                ids = await (to_thread.run_sync(call) if blocking else call())
            if ids != [copy_id(message, queue) for queue in sorted(queues)]:
                raise AssertionError(f"message {message} came to {len(ids)} queues")
            return
        except PyMongoError:
            await anyio.sleep(PAUSE)
