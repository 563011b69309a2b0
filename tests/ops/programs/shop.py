"""The worker of the real run: two queues, whose jobs say what is to happen to them, a third with
limits and order, and a schedule that skips what comes while its last job runs.

``streamqueue worker tests.ops.programs.shop:worker``, with the address in ``STREAMQUEUE_URI``.
"""

from __future__ import annotations

import os
import random
from threading import Event

import anyio
from pymongo import AsyncMongoClient

from streamqueue import AsyncJob, Backoff, Discard, Job, Limit, Retry, Snooze, Worker

APP = "real-run-worker"
LEASE_SECONDS = 3.0


def worker() -> Worker:
    """Return the worker of this process."""
    made = Worker(
        AsyncMongoClient(os.environ["STREAMQUEUE_URI"], appname=APP).get_default_database().jobs,
        concurrency=8,
        timeout=LEASE_SECONDS,
        drain_timeout=2,
        backoff=Backoff(initial=0.2, maximum=1),
        reap_interval=0.5,
    )
    made.schedule(every=1, payload={"seconds": 1.5}, key="the newsletter")(send)
    made.handler("emails")(send)
    made.handler("invoices")(bill)
    made.handler("calls", limits=Limit(running=1, rate=10), ordered="strict")(call)
    return made


async def send(job: AsyncJob) -> None:
    """Wait, or block the event loop, as long as the job says; then end as it says."""
    blocked = job.data.get("blocked", 0)
    if blocked:
        Event().wait(blocked)
    await anyio.sleep(job.data.get("seconds", 0))
    if job.data.get("ends") == "retries":
        await job.step("greet", str)
    _end(job)


async def call(job: AsyncJob) -> None:
    """The same, for a schedule has that function."""
    await send(job)


def bill(job: Job) -> None:
    """The same in a thread."""
    Event().wait(job.data.get("seconds", 0))
    _end(job)


def _end(job: Job | AsyncJob) -> None:
    match job.data.get("ends"):
        case "fails":
            raise RuntimeError("this job always fails")
        case "retries" if job.attempts == 1:
            raise Retry(delay=0.5)
        case "snoozes" if random.random() < 0.5:  # or it would come back for ever
            raise Snooze(1)
        case "is discarded":
            raise Discard("nobody wants it")
