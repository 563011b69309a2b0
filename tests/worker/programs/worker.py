"""A worker in a process of its own, to be stopped and killed.

Takes its settings as JSON: ``uri``, ``database``, ``collection``, and what ``Worker`` takes. What a
job does is in its payload: ``seconds`` it takes, ``late`` to finish whatever happens. Says on its
standard output, one JSON object per line, what happens.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient

from streamqueue import AsyncJob, Job, LeaseLost, Worker

registry = CollectorRegistry()


def say(what: str, **more: Any) -> None:
    # One write: threads say things too.
    os.write(1, json.dumps({"what": what, **more}).encode() + b"\n")


def outcomes() -> dict[str, int]:
    """Return how many attempts ended in which outcome, of those there were."""
    return {
        sample.labels["outcome"]: int(sample.value)
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "streamqueue_attempts_total" and sample.value
    }


async def waits(job: AsyncJob) -> None:
    say("started", job=str(job.id), attempt=job.attempts)
    seconds = job.data.get("seconds", 0)
    try:
        with anyio.CancelScope(shield=bool(job.data.get("late"))):
            await anyio.sleep(seconds)
            if job.data.get("late"):
                with contextlib.suppress(LeaseLost):
                    await job.complete()
                    say("completed late", job=str(job.id))
                    return
                say("refused", job=str(job.id))
                return
    except anyio.get_cancelled_exc_class():
        say("cancelled", job=str(job.id))
        raise
    say("finished", job=str(job.id))


def blocks(job: Job) -> None:
    say("started", job=str(job.id), attempt=job.attempts)
    threading.Event().wait(job.data.get("seconds", 0))
    say("finished", job=str(job.id))


def computes(job: Job) -> None:
    say("started", job=str(job.id), attempt=job.attempts)
    end = time.monotonic() + job.data["seconds"]
    while time.monotonic() < end:
        sum(number * number for number in range(1000))
    say("finished", job=str(job.id))


@contextlib.asynccontextmanager
async def says(worker: Worker) -> AsyncIterator[None]:
    say("opened")
    try:
        yield
    finally:
        await anyio.sleep(0.05)
        say("closed")


async def main(uri: str, database: str, collection: str, handler: str, **settings: Any) -> None:
    if "lifespan" in settings:
        settings["lifespan"] = globals()[settings["lifespan"]]
    async with AsyncMongoClient(uri) as client:
        worker = Worker(client[database][collection], registry=registry, **settings)
        worker.handler("default")(globals()[handler])
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            say("ready")
    say("stopped", outcomes=outcomes())


if __name__ == "__main__":
    anyio.run(partial(main, **json.loads(sys.argv[1])))
