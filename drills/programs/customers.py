"""A process of customers: each puts a job, asks what becomes of it, and cancels it, perhaps.

Who asks does so by ``wait``, ``request``, ``watch``, ``get`` or ``result``, with two queue objects:
what one has put, the other may ask about. SIGTERM lets nobody in any more; the process ends when
everybody has an answer.
"""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError

from drills.history import History, digest_of
from drills.programs.consumer import QUEUE
from drills.programs.effects import answered
from streamqueue import (
    AsyncMongoQueue,
    JobCancelled,
    JobFailed,
    JobInfo,
    JobNotFound,
    MongoQueue,
)

DEEDS: Mapping[str, float] = {
    "complete": 40,
    "return": 30,
    "progress": 10,
    "raise": 5,
    "snooze": 5,
    "discard": 5,
    "cancel": 5,
}
"""What the jobs do, by weight."""
KEEP = 86_400.0
"""Seconds: longer than any drill."""
PAUSE = 0.1
"""Seconds between two tries."""
IMPATIENCE = (0.05, 0.5)
"""The mean number of seconds after which somebody cancels a job, and for which many wait at first:
while it waits, and while it runs."""
TIMES = (1, 1, 1, 1, 10)
"""How much longer than others some jobs take."""
THREADS = 100


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    collection: str = "jobs",
    queue: str = QUEUE,
    by: str = "async",
    customers: int = 12,
    seconds: float = 0.05,
    client: dict[str, Any] | None = None,
) -> None:
    """Put jobs and ask about them until SIGTERM.

    Args:
        by: ``async`` or ``blocking``, the shell.
        customers: how many there are at the same time.
        seconds: how long a job takes on average.
        client: further settings of the MongoClient.
    """
    history = History(directory, "customers")

    async def main() -> None:
        blocking = by == "blocking"
        own: Any = (MongoClient if blocking else AsyncMongoClient)(uri, **(client or {}))
        shell = MongoQueue if blocking else AsyncMongoQueue
        jobs = own[database][collection]
        shop = Shop(history, [shell(jobs, name=queue) for _ in range(2)], seconds)
        await serve(shop, customers)
        for each in shop.queues:
            await answered(each.close())
        await answered(own.close())

    anyio.run(main)
    history.close()


async def serve(shop: Shop, customers: int) -> None:
    """Let so many customers in, one after the other, until SIGTERM."""
    open_now = True

    async def one_after_the_other() -> None:
        while open_now:
            await shop.customer()

    with anyio.open_signal_receiver(signal.SIGTERM) as stop:
        async with anyio.create_task_group() as group:
            for _ in range(customers):
                group.start_soon(one_after_the_other)
            async for _ in stop:
                open_now = False
                break


class Shop:
    """Where customers put jobs, and ask about them."""

    def __init__(
        self, history: History, queues: list[AsyncMongoQueue | MongoQueue], seconds: float
    ) -> None:
        self._history = history
        self._seconds = seconds
        self._limiter = CapacityLimiter(THREADS)
        self._deeds, self._weights = zip(*DEEDS.items(), strict=True)
        self.queues = queues

    async def customer(self) -> None:
        """Have one job done, and ask about it in one or two ways."""
        job, settings = ObjectId(), self._settings()
        payload = self._payload()
        ways = [self.wait, self.wait, self.watch, self.look]
        async with anyio.create_task_group() as group:
            if random.random() < 0.3:
                group.start_soon(self.request, job, payload, settings)
            else:
                await self.put(job, payload, settings)
                for asks in random.sample(ways, random.choice([1, 1, 2])):
                    group.start_soon(asks, job)
            if random.random() < 0.4:
                group.start_soon(self.cancel, job)

    def _payload(self) -> dict[str, Any]:
        return {
            "does": random.choices(self._deeds, self._weights)[0],
            "seconds": round(random.expovariate(1 / self._seconds) * random.choice(TIMES), 4),
            "answers": True,
        }

    def _settings(self) -> dict[str, Any]:
        """Return what a job is put with."""
        return {
            "max_attempts": 20,
            "priority": random.choice([0, 0, 1]),
            "delay": random.choice([None, None, None, 0.2]),
            "keep": random.choice([KEEP, KEEP, None]),
            "expires": random.choice([*[None] * 9, 1.0]),
        }

    def _said(
        self, job: ObjectId, payload: dict[str, Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "job": str(job), "queue": self.queues[0].name, "digest": digest_of(payload),
            "payload": payload, **settings,
        }  # fmt: skip

    async def _call(self, name: str, *arguments: Any, **settings: Any) -> Any:
        """Make a call of one of the queue objects, in a thread if it blocks."""
        queue = random.choice(self.queues)
        call = partial(getattr(queue, name), *arguments, **settings)
        if isinstance(queue, MongoQueue):
            return await to_thread.run_sync(call, limiter=self._limiter)
        return await call()

    async def put(self, job: ObjectId, payload: dict[str, Any], settings: dict[str, Any]) -> None:
        """Put a job until it is acknowledged."""
        while True:
            try:
                with self._history.call("put", **self._said(job, payload, settings)):
                    await self._call("put", payload, job_id=job, **settings)
                return
            except PyMongoError:
                await anyio.sleep(PAUSE)

    async def request(
        self, job: ObjectId, payload: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        """Put a job and wait for its result, again if nobody knows whether it was put."""
        said = self._said(job, payload, settings)
        while True:
            try:
                with self._history.call("put", awaited=True, **said):
                    call = partial(self._call, "request", payload, job_id=job, **settings)
                    if await self._ask("request", job, call) == "error":
                        raise PyMongoError
                return
            except PyMongoError:
                await anyio.sleep(PAUSE)

    async def cancel(self, job: ObjectId) -> None:
        """Cancel a job after a while, until that is answered."""
        await anyio.sleep(_while())
        while True:
            try:
                with self._history.call("cancel", job=str(job)) as answer:
                    try:
                        answer["told"] = await self._call("cancel", job) or "ended"
                    except JobNotFound:
                        answer["told"] = "not found"
                return
            except PyMongoError:
                await anyio.sleep(PAUSE)

    async def wait(self, job: ObjectId) -> None:
        """Wait for the end of a job, many not for long at first."""
        patience = random.choice([None, _while()])
        while True:
            told = await self._ask("wait", job, partial(self._call, "wait", job, patience))
            if told not in ("late", "error"):
                return
            patience = None
            await anyio.sleep(PAUSE if told == "error" else 0)

    async def look(self, job: ObjectId) -> None:
        """Look at a job now and then until it has ended, and ask for its result."""
        told = ""
        while told not in ("done", "dead", "cancelled", "not found"):
            await anyio.sleep(_while())
            told = await self._ask("get", job, partial(self._call, "get", job))
        if told != "not found":
            patience = random.choice([None, 1.0])
            await self._ask("result", job, partial(self._call, "result", job, patience))

    async def watch(self, job: ObjectId) -> None:
        """See every change of a job to its end."""
        while True:
            told = "error"
            with suppress(StopAsyncIteration):
                async with aclosing(self._changes(job)) as changes:
                    while told in ("error", "ready", "scheduled", "running"):
                        told = await self._ask("watch", job, changes.__anext__)
                        if told == "error":
                            break
            if told != "error":
                return
            await anyio.sleep(PAUSE)

    async def _changes(self, job: ObjectId) -> AsyncGenerator[JobInfo]:
        queue = random.choice(self.queues)
        changes: Any = queue.watch(job)
        if isinstance(queue, AsyncMongoQueue):
            async with aclosing(changes):
                async for info in changes:
                    yield info
            return
        following: Callable[[], Any] = partial(next, changes, None)
        try:
            while (info := await to_thread.run_sync(following, limiter=self._limiter)) is not None:
                yield info
        finally:
            changes.close()

    async def _ask(self, by: str, job: ObjectId, call: Callable[[], Awaitable[Any]]) -> str:
        """Ask about a job; note the answer and return it."""
        with self._history.call("wait", by=by, job=str(job)) as answer:
            answer["told"] = "done"
            try:
                value = await call()
            except JobNotFound:
                answer["told"] = "not found"
            except JobFailed:
                answer["told"] = "dead"
            except JobCancelled:
                answer["told"] = "cancelled"
            except TimeoutError:
                answer["told"] = "late"
            except PyMongoError as error:
                answer.update(told="error", error=type(error).__name__)
            else:
                if isinstance(value, JobInfo):
                    answer["told"], value = value.state, value.result
                answer["result"] = value
        return str(answer["told"])


def _while() -> float:
    return random.expovariate(1 / random.choice(IMPATIENCE))
