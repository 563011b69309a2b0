"""Every way to wait for jobs, and every way to look at them, in one process whose clock can be made
fast: through an outage, and back at work after it."""

from __future__ import annotations

import gc
import json
import logging
import socket
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient

from drills.fast_clock import FastClock
from streamqueue import AsyncJob, AsyncMongoQueue, MongoQueue, Worker
from streamqueue.cli.monitor.pulse import PulseTaker
from streamqueue.exporter.exporter import Exporter
from streamqueue.processes.dispatcher import dispatcher_for
from streamqueue.processes.subscriber import subscribe
from streamqueue.store.asynchronous import AsyncStore

WAIT = 30 * 86_400.0
"""Seconds that a wait is told to last: longer than any outage here."""
QUEUES = ("worker", "dispatched", "blocking", "waiting", "iterating", "iterating_async")
SETTINGS = "&heartbeatFrequencyMS=1000&serverSelectionTimeoutMS=5000"
LOOK = 0.05


class Lines(logging.Handler):
    """Counts lines of the log, and the most tries in vain that one of them tells of."""

    count = tries = 0

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "loop_blocked":
            return  # on a fast clock every turn of the loop takes seconds
        self.count += 1
        if getattr(record, "event", "") in ("stream_reopened", "operation_recovered"):
            self.tries = max(self.tries, record.__dict__["count"])


class Everybody:
    """All who wait, and what came of it.

    Attributes:
        seen: how many jobs of each queue were handled.
    """

    def __init__(self, uri: str, database: str) -> None:
        self._uri = uri + SETTINGS
        self._database = database
        self.seen: dict[str, int] = dict.fromkeys(QUEUES, 0)
        self.registry = CollectorRegistry()
        self.stream = ""
        self._ended = False

    async def run(self, tasks: TaskGroup, clients: ExitStack) -> None:
        """Start them all; return when they are at work."""
        client: AsyncMongoClient[Any] = AsyncMongoClient(self._uri)
        blocking: MongoClient[Any] = clients.enter_context(MongoClient(self._uri))
        jobs, collection = client[self._database].jobs, blocking[self._database].jobs
        alone = self._worker(jobs, "worker")
        dispatched, host = (
            self._worker(jobs, "dispatched"),
            dispatcher_for(self._worker(jobs, "dispatched")),
        )
        await tasks.start(partial(alone.run, handle_signals=False))
        await tasks.start(partial(host.run, handle_signals=False))
        one, other = socket.socketpair()
        host.join(one)
        subscribe(dispatched)(other)
        await tasks.start(partial(dispatched.run, handle_signals=False))
        for name, work in (("blocking", self._block), ("iterating", self._iterate)):
            queue = clients.enter_context(MongoQueue(collection, name=name))
            threading.Thread(target=work, args=(queue,), daemon=True).start()
        tasks.start_soon(self._wait_for, AsyncMongoQueue(jobs, name="waiting"))
        tasks.start_soon(self._iterate_async, AsyncMongoQueue(jobs, name="iterating_async"))
        exporter = Exporter(AsyncStore(jobs, patience=10), self.registry)
        await tasks.start(exporter.run)
        taker = PulseTaker(jobs)
        await taker.take()
        await tasks.start(taker.read)
        tasks.start_soon(self._show, taker)

    def _worker(self, jobs: Any, name: str) -> Worker:
        worker = Worker(jobs, registry=CollectorRegistry())

        @worker.handler(name)
        async def handle(job: AsyncJob) -> None:
            self.seen[name] += 1

        return worker

    def _block(self, queue: MongoQueue) -> None:
        while job := queue.next(wait=WAIT):
            job.complete()
            self.seen["blocking"] += 1

    def _iterate(self, queue: MongoQueue) -> None:
        for job in queue:
            job.complete()
            self.seen["iterating"] += 1

    async def _wait_for(self, queue: AsyncMongoQueue) -> None:
        while job := await queue.next(wait=WAIT):
            await job.complete()
            self.seen["waiting"] += 1

    async def _iterate_async(self, queue: AsyncMongoQueue) -> None:
        async for job in queue:
            await job.complete()
            self.seen["iterating_async"] += 1

    async def _show(self, taker: PulseTaker) -> None:
        while True:
            await anyio.sleep(1)
            self.stream = (await taker.take()).stream

    def exported(self) -> float:
        """Return when the last census was taken."""
        name = "streamqueue_state_last_success_timestamp_seconds"
        return self.registry.get_sample_value(name) or 0.0


def run(*, uri: str, database: str, directory: Path, speed: float) -> None:
    """Run until killed: fast while the file ``fast`` is in the directory. ``facts.json`` says how
    it goes."""
    clock, lines = FastClock(), Lines()
    logging.getLogger("streamqueue").addHandler(lines)
    logging.getLogger("streamqueue").propagate = False
    logging.getLogger("streamqueue").setLevel(logging.INFO)

    async def main() -> None:
        everybody = Everybody(uri, database)
        with ExitStack() as clients:
            async with anyio.create_task_group() as tasks:
                await everybody.run(tasks, clients)
                tasks.start_soon(report, everybody)

    async def report(everybody: Everybody) -> None:
        fast = False
        while True:
            if (directory / "fast").exists() is not fast:
                fast = not fast
                clock.run_at(speed if fast else 1.0)
            if not fast:
                gc.collect()
            facts = {
                "shown": clock.now(),
                "fast": fast,
                "seen": everybody.seen,
                "exported": everybody.exported(),
                "stream": everybody.stream,
                "lines": lines.count,
                "tries": lines.tries,
                "resident": resident_bytes(),
            }
            partly = directory / "facts.part"
            partly.write_text(json.dumps(facts))
            partly.rename(directory / "facts.json")
            await anyio.sleep(LOOK * (speed if fast else 1.0))

    anyio.run(main)


def resident_bytes() -> int:
    """Return the memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
