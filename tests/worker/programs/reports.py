"""Runs one job with the recipe for Sentry; says what would have been sent.

Takes ``uri``, ``database``, ``collection`` and ``recipe``, the text of it, as JSON. In a process of
its own, because Sentry changes the one that it is in.
"""

import json
import logging
import os
import sys
from functools import partial
from typing import Any

import anyio
import sentry_sdk
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Job, Snooze, Worker


class Kept(Transport):
    """Says each event instead of sending it."""

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            event = item.payload.json
            if item.type == "event" and event is not None:
                os.write(1, json.dumps(event, default=str).encode() + b"\n")


async def run(uri: str, database: str, collection: str, recipe: str) -> None:
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        jobs = client[database][collection]
        names: dict[str, Any] = {
            "dsn": "http://key@127.0.0.1:1/1",
            "jobs": jobs,
            "Worker": partial(
                Worker, registry=CollectorRegistry(), max_await=0.1, backoff=Backoff(initial=0.01)
            ),
        }
        setattr(sentry_sdk, "init", partial(sentry_sdk.init, transport=Kept))  # noqa: B010
        exec(recipe, names)
        worker: Worker = names["worker"]
        left = 3

        def over() -> None:
            nonlocal left
            left -= 1
            if not left:
                worker.stop()

        @worker.handler("async")
        async def handle(job: AsyncJob) -> None:
            card = job.data["card"]
            try:
                logging.getLogger("shop").error("about to charge")
                raise ValueError(f"no such card, of {len(card)} digits")
            finally:
                over()

        @worker.handler("blocking")
        def block(job: Job) -> None:
            try:
                logging.getLogger("shop").error("about to block")
            finally:
                anyio.from_thread.run_sync(over, token=token)

        @worker.handler("snoozed")
        async def put_off(job: AsyncJob) -> None:
            over()
            raise Snooze(3600)

        token = anyio.lowlevel.current_token()
        for name in ("async", "blocking", "snoozed"):
            async with AsyncMongoQueue(jobs, name=name) as queue:
                await queue.put({"card": "4111"}, max_attempts=1)
        await worker.run(handle_signals=False)


if __name__ == "__main__":
    anyio.run(partial(run, **json.loads(sys.argv[1])))
