"""Signing up: an application as one would write it with Celery, and its tests beside it.

It shows tasks in one queue (`@worker.task`, `.call()`), retries by the class of the error, a chain
(`after=`), and a result that somebody waits for. Its tests are beside it. To run it:

    $ export STREAMQUEUE_URI='mongodb://localhost/shop?replicaSet=rs0'    # in each terminal
    $ streamqueue worker examples.signup:worker
    $ python -m examples.signup ada@example.org
"""

import os
import sys
from typing import Any

import anyio
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from streamqueue import AsyncJob, AsyncMongoQueue, Job, NewJob, Worker

# Its tests import this module without a server; they run its worker on a collection of theirs.
URI = os.environ.get("STREAMQUEUE_URI", "mongodb://localhost/shop?replicaSet=rs0")
jobs = AsyncMongoClient[dict[str, Any]](URI).get_default_database().jobs
worker = Worker(jobs)
outbox: list[str] = []


class NotAnAddress(ValueError):
    """It will not become one by trying again."""


def deliver(to: str, text: str) -> None:
    """Hand a mail over to the mail server; ConnectionError when that is away."""
    outbox.append(f"{to}: {text}")


@worker.task(discard_on=NotAnAddress)
async def register(email: str) -> str:
    name, at, _ = email.partition("@")
    if not at:
        raise NotAnAddress(email)
    return name.title()


@worker.task()
def draw(job: Job, email: str, size: int = 64) -> int:
    job.progress(note="drawing the initials")
    return size * size


@worker.task(retry_on=ConnectionError, max_attempts=5)
async def welcome(job: AsyncJob, email: str) -> str:
    name, pixels = [result async for result in job.parents]
    deliver(email, f"Welcome, {name}")
    return f"{name}, with a picture of {pixels} pixels"


async def sign_up(jobs: AsyncCollection[dict[str, Any]], email: str) -> ObjectId:
    """Put all there is to do for somebody; return the id of the last job."""
    registered, drawn, welcomed = ObjectId(), ObjectId(), ObjectId()
    steps = [
        NewJob(register.call(email), job_id=registered),
        NewJob(draw.call(email), job_id=drawn, after=[registered]),
        NewJob(welcome.call(email), job_id=welcomed, after=[registered, drawn], keep=3600),
    ]
    await AsyncMongoQueue(jobs).put_many(steps, if_parent_fails="cancel")
    return welcomed


async def main(email: str) -> None:
    async with AsyncMongoQueue(jobs) as queue:
        print("Signed up:", await queue.result(await sign_up(jobs, email), wait=10))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
