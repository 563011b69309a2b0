"""A worker that stops itself with SIGSTOP between reading a schedule that is due and writing.

Takes its settings as JSON: ``uri``, ``database`` and ``collection``.
"""

import json
import os
import signal
import sys
from functools import partial
from typing import Any

import anyio
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient

from streamqueue import AsyncJob, Worker
from streamqueue.worker.schedules.firing import Firing


def say(what: str, **more: Any) -> None:
    os.write(1, json.dumps({"what": what, **more}).encode() + b"\n")


take = Firing.take


async def take_late(*arguments: Any) -> None:
    """What it read is old by the time that it writes."""
    Firing.take = take  # type: ignore[method-assign]
    say("read")
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        await take(*arguments)
    finally:
        say("written")


async def main(uri: str, database: str, collection: str) -> None:
    Firing.take = take_late  # type: ignore[method-assign, assignment]
    async with AsyncMongoClient(uri) as client:
        worker = Worker(client[database][collection], registry=CollectorRegistry(), timeout=5)

        @worker.handler("default")
        async def handler(job: AsyncJob) -> None:
            say("ran")

        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            say("ready")


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    settings.pop("handler")
    settings.pop("max_await")
    anyio.run(partial(main, **settings))
