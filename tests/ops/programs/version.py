"""A producer or a worker of whichever version of the package stands first on the path.

``version.py producer COUNT`` or ``version.py worker``; uses only what every version has. Says what
it does on its standard output, one JSON object a line.
"""

import json
import os
import sys

import anyio
from pymongo import AsyncMongoClient, MongoClient

import streamqueue
from streamqueue import AsyncJob, MongoQueue, Retry, Worker

URI = os.environ["STREAMQUEUE_URI"]


def say(what: str, job: object = "") -> None:
    os.write(1, json.dumps({"what": what, "job": str(job)}).encode() + b"\n")


def produce(count: int) -> None:
    with MongoClient(URI) as client:
        queue = MongoQueue(client.get_default_database().jobs)
        for start in range(0, count, 10):
            for job_id in (
                queue.put({"n": start}),
                queue.put({"n": start + 1}, delay=0.2, key=f"{os.getpid()}-{start}"),
                queue.put({"n": start + 2, "fails_once": True}, priority=5),
                *queue.put_many([{"n": start + more} for more in range(3, 10)]),
            ):
                say("put", job_id)


async def handle(job: AsyncJob) -> None:
    if job.data.get("fails_once") and job.attempts == 1:
        raise Retry(delay=0.05)
    await anyio.sleep(0.005)
    say("done", job.id)


async def work() -> None:
    async with AsyncMongoClient(URI) as client:
        worker = Worker(client.get_default_database().jobs, concurrency=5)
        worker.handler("default")(handle)
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            say("ready")


say("version", os.path.dirname(streamqueue.__file__))
if sys.argv[1] == "producer":
    produce(int(sys.argv[2]))
else:
    anyio.run(work)
