"""Lone jobs at awkward moments, to workers that nothing but their stream, slots and timers wake.

Several lanes side by side, each a worker with one slot and a collection of its own. A lane has one
job at a time, and what it measures is how long a claimable job waits for its handler. Moments:

========= ======================================================================================
idle      the worker sleeps on its stream
open      the worker is just starting
reopen    its stream is just being taken away from it
slot      its only slot is about to come free
due       the job was put with a delay
========= ======================================================================================
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from drills.history import History, digest_of
from drills.programs.consumer import QUEUE, Handler
from drills.programs.pulse import Pulse
from streamqueue import AsyncJob, AsyncMongoQueue, Worker
from streamqueue.clock import monotonic

LIMIT = 1.0
"""Seconds a claimable job may wait at most."""
PATIENCE = 15.0
"""Seconds until one that was missed is given up."""
REOPEN_PAUSE = 0.8
"""A stream that has only just been opened is not opened again at once."""
OPEN_SHARE = 0.1
LEASE = 10.0


def run(*, uri: str, database: str, directory: Path, jobs: int, lanes: int = 12) -> None:
    """Run so many lone jobs and write down, for each, how long it waited."""
    history = History(directory, "lone")

    async def main() -> None:
        async with AsyncMongoClient(uri, maxPoolSize=4 * lanes) as client:
            pulse = Pulse()
            left = iter(range(jobs))
            async with anyio.create_task_group() as all_lanes:
                all_lanes.start_soon(pulse.run)
                async with anyio.create_task_group() as tasks:
                    for number in range(lanes):
                        lane = Lane(client[database][f"lane_{number}"], history, pulse)
                        tasks.start_soon(lane.run, left)
                all_lanes.cancel_scope.cancel()

    anyio.run(main)
    history.close()


@dataclass
class Start:
    """A job whose start is awaited."""

    started: anyio.Event = field(default_factory=anyio.Event)
    at: float = 0.0
    over: anyio.Event = field(default_factory=anyio.Event)
    over_at: float = 0.0


class Lane:
    """One worker, and one job at a time for it."""

    def __init__(self, jobs: Any, history: History, pulse: Pulse) -> None:
        self._jobs = jobs
        self._history = history
        self._pulse = pulse
        self._queue = AsyncMongoQueue(jobs, name=QUEUE)
        self._handler = Handler(history, LEASE)
        self._awaited: dict[ObjectId, Start] = {}
        self._worker: Worker | None = None
        self._opened_at = 0.0
        self._ended = anyio.Event()

    async def run(self, left: Any) -> None:
        async with anyio.create_task_group() as tasks:
            await self._open(tasks, anyio.Event())
            for _ in left:
                while not await self._measure(tasks):
                    pass
            await self._close()

    async def _measure(self, tasks: TaskGroup) -> bool:
        """Run one job; return whether its wait can be counted."""
        kind = random.choice(list(MOMENTS))
        if kind == "open" and random.random() > OPEN_SHARE * len(MOMENTS):
            kind = "idle"
        begun = monotonic()
        start, claimable = await MOMENTS[kind](self, tasks)
        with anyio.move_on_after(PATIENCE):
            await start.started.wait()
        waited = (start.at or monotonic()) - claimable
        if waited > LIMIT and start.at and self._pulse.faltered(begun):
            return False
        self._history.note("process", state="waited", kind=kind, seconds=round(max(0.0, waited), 4))
        with anyio.move_on_after(PATIENCE):
            await start.over.wait()
        self._awaited.clear()
        return True

    # the worker

    async def _open(self, tasks: TaskGroup, opened: anyio.Event) -> None:
        worker = Worker(
            self._jobs,
            concurrency=1,
            timeout=LEASE,
            registry=CollectorRegistry(),
            sweep_interval=None,
            max_await=0.2,
        )
        worker.handler(QUEUE)(self._handle)
        self._worker, self._ended = worker, anyio.Event()

        async def work(ended: anyio.Event, *, task_status: Any) -> None:
            try:
                await worker.run(handle_signals=False, task_status=task_status)
            finally:
                ended.set()

        await tasks.start(work, self._ended)
        self._opened_at = monotonic()
        opened.set()

    async def _close(self) -> None:
        assert self._worker is not None
        self._worker.stop()
        await self._ended.wait()

    async def _handle(self, job: AsyncJob) -> None:
        start = self._awaited[job.id]
        start.at = start.at or monotonic()
        start.started.set()
        try:
            await self._handler.handle(job)
        finally:
            start.over_at = monotonic()
            start.over.set()

    # the job

    async def _put(self, seconds: float = 0.0, delay: float | None = None) -> tuple[Start, float]:
        """Put a job; return its start and when the put was acknowledged."""
        job_id = ObjectId()
        payload: dict[str, Any] = {"does": "complete", "seconds": seconds}
        start = self._awaited[job_id] = Start()
        said = {"job": str(job_id), "digest": digest_of(payload), "delay": delay, "queue": QUEUE}
        with self._history.call("put", **said):
            await self._queue.put(payload, job_id=job_id, delay=delay)
        return start, monotonic()

    # moments: each returns the start of a job, and since when it can be claimed

    async def _idle(self, tasks: TaskGroup) -> tuple[Start, float]:
        await anyio.sleep(random.uniform(0, 0.03))
        return await self._put()

    async def _while_opening(self, tasks: TaskGroup) -> tuple[Start, float]:
        await self._close()
        opened = anyio.Event()
        tasks.start_soon(self._open, tasks, opened)
        await anyio.sleep(random.uniform(0, 0.05))
        start, put_at = await self._put()
        await opened.wait()
        return start, max(put_at, self._opened_at)

    async def _while_reopening(self, tasks: TaskGroup) -> tuple[Start, float]:
        await anyio.sleep(max(0.0, self._opened_at + REOPEN_PAUSE - monotonic()))
        cut_at = 0.0

        async def cut() -> None:
            nonlocal cut_at
            await anyio.sleep(random.uniform(0, 0.02))
            await self._take_stream_away(random.choice(["killCursors", "killOp"]))
            cut_at = self._opened_at = monotonic()

        async with anyio.create_task_group() as both:
            both.start_soon(cut)
            await anyio.sleep(random.uniform(0, 0.04))
            start, put_at = await self._put()
        return start, max(put_at, cut_at)

    async def _take_stream_away(self, how: str) -> None:
        """Kill the cursor of the worker's stream, which the driver makes up for by itself, or the
        operation that waits on it, which it does not."""
        look = [
            {"$currentOp": {"allUsers": True, "idleCursors": True}},
            {
                "$match": {
                    "ns": f"{self._jobs.database.name}.{self._jobs.name}",
                    "cursor.tailable": True,
                }
            },
        ]
        async with await self._jobs.database.client.admin.aggregate(look) as found:
            streams = await found.to_list()
        for stream in streams:
            try:
                if how == "killOp" and "opid" in stream:
                    await self._jobs.database.client.admin.command("killOp", op=stream["opid"])
                else:
                    await self._jobs.database.command(
                        "killCursors", self._jobs.name, cursors=[stream["cursor"]["cursorId"]]
                    )
            except OperationFailure:
                continue
            self._history.note("process", state="cut a stream", by=how)

    async def _while_slot_comes_free(self, tasks: TaskGroup) -> tuple[Start, float]:
        busy = random.uniform(0, 0.03)
        before, _ = await self._put(seconds=busy)
        await before.started.wait()
        await anyio.sleep(random.uniform(0, 1.5 * busy))
        start, put_at = await self._put()
        with anyio.move_on_after(PATIENCE):
            await before.over.wait()
        return start, max(put_at, before.over_at)

    async def _when_due(self, tasks: TaskGroup) -> tuple[Start, float]:
        delay = random.uniform(0.001, 0.06)
        start, put_at = await self._put(delay=delay)
        return start, put_at + delay


Moment = Callable[[Lane, TaskGroup], Awaitable[tuple[Start, float]]]
MOMENTS: dict[str, Moment] = {
    "idle": Lane._idle,
    "open": Lane._while_opening,
    "reopen": Lane._while_reopening,
    "slot": Lane._while_slot_comes_free,
    "due": Lane._when_due,
}


def waits(path: Path) -> dict[str, list[float]]:
    """Return the seconds that jobs waited, by the moment they came."""
    found: dict[str, list[float]] = {kind: [] for kind in MOMENTS}
    for line in path.read_bytes().splitlines():
        if b'"is":"waited"' in line:
            said = json.loads(line)
            found[said["kind"]].append(said["seconds"])
    return found
