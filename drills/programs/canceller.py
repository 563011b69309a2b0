"""A process whose calls are cancelled at one await after another, by anyio and by asyncio.

Each round makes one call of the queue, or runs a worker for a moment, and cancels it when it waits
for the n-th time. What was cancelled is put in order as an application would: a put is repeated
with its id, a job whose end is unknown is released. So nothing may be left held afterwards, and
once all is closed no cursor and no connection.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - applications cancel with asyncio's own means too
import random
import signal
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import CancelScope, get_cancelled_exc_class
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient

from drills.history import History, Wire, digest_of
from drills.programs.consumer import QUEUE, QUICK, Handler
from streamqueue import AsyncJob, AsyncMongoQueue, LeaseLost, Worker

APP = "drill-canceller"
LEASE = 60.0
"""Longer than the drill: a lease that is left over is there to be seen."""
FIRST_WAITS = 3
"""At which wait a call of a kind is cancelled at the latest, until it is known how many it has."""
MOST_WAITS = 30
"""The same when it waits for a job, which may be long."""
LONGEST = 0.08
"""Seconds a worker may run at most before it is cancelled."""

Value = TypeVar("Value")


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    rounds: int,
    what: str = "calls",
    collection: str = "jobs",
    queue: str = QUEUE,
) -> None:
    """Cancel so many ``calls`` or ``workers``, close everything, say so, and wait for SIGTERM."""
    history = History(directory, "canceller")

    async def main() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as stop:
            wire = Wire(history, LEASE)
            async with AsyncMongoClient(uri, appname=APP, event_listeners=[wire]) as client:
                target = AsyncMongoQueue(client[database][collection], name=queue, timeout=LEASE)
                canceller = Canceller(history, target, client[database][collection])
                await canceller.work(rounds, ROUNDS[what])
                await target.close()
            history.note("process", state="closed")
            async for _ in stop:
                break

    anyio.run(main)
    history.close()


class Canceller:
    """Makes calls and has them cancelled.

    Attributes:
        struck: the calls that were cancelled before they had returned.
    """

    def __init__(self, history: History, queue: AsyncMongoQueue, jobs: Any) -> None:
        self._history = history
        self._queue = queue
        self._jobs = jobs
        self._handler = Handler(history, LEASE)
        self._held: list[AsyncJob] = []
        self._waits: dict[str, int] = {}
        self._cancel: Callable[[AtWait], Awaitable[Any]] = cancelled_by_anyio
        self.struck = 0

    async def work(self, rounds: int, kinds: Sequence[Round]) -> None:
        """Cancel until so many calls were struck; then give back what is held."""
        while self.struck < rounds:
            self._cancel = random.choice([cancelled_by_anyio, cancelled_by_asyncio])
            struck = self.struck
            await random.choice(kinds)(self)
            if self.struck > struck:
                self._history.note("process", state="cancelled a call")
            while len(self._held) > 5:
                await self._settle(self._held.pop())
        for job in self._held:
            await self._settle(job)

    async def _struck(self, kind: str, call: Callable[[], Awaitable[Value]]) -> Value | None:
        """Make a call and cancel it at one of its waits; return what it returned before that."""
        waits = self._waits.get(kind, FIRST_WAITS)
        strike = AtWait(call, random.randint(1, waits))
        try:
            answer: Value = await self._cancel(strike)
        except Cancelled:
            self.struck += 1
            if strike.waits >= waits:  # there may be more
                self._waits[kind] = min(MOST_WAITS, waits + 1)
            return None
        self._waits[kind] = max(1, strike.waits)
        return answer

    async def _settle(self, job: AsyncJob) -> None:
        """Give a job back, whatever a call that was cancelled has done to it."""
        with suppress(LeaseLost), self._history.call("release", **self._handler.attempt(job)):
            await job.release()

    # rounds

    async def put(self, seconds: float = 0.0) -> None:
        job_id, payload = ObjectId(), {"n": self.struck, "seconds": seconds}
        said = {
            "job": str(job_id),
            "digest": digest_of(payload),
            "delay": None,
            "queue": self._queue.name,
        }

        async def put() -> ObjectId:
            with self._history.call("put", **said):
                return await self._queue.put(payload, job_id=job_id)

        if await self._struck("put", put) is None:
            await put()

    async def claim(self) -> None:
        self._hold(await self._struck("claim", lambda: self._queue.claim(3)))

    async def wait(self) -> None:
        async def soon() -> None:
            await anyio.sleep(random.uniform(0, 0.02))
            await self.put()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(soon)
            self._hold(await self._struck("wait", lambda: self._queue.claim(3, wait=1)))

    async def iterate(self) -> None:
        async def first() -> list[AsyncJob]:
            async for job in self._queue:
                return [job]
            return []

        await self.put()
        self._hold(await self._struck("iterate", first))

    def _hold(self, jobs: list[AsyncJob] | None) -> None:
        for job in jobs or ():
            self._handler.note_start(job)
            self._held.append(job)

    async def end(self) -> None:
        if not self._held:
            return
        job = self._held.pop(random.randrange(len(self._held)))
        what = random.choice(["complete", "error", "release", "progress"])

        async def call() -> bool:
            with suppress(LeaseLost), self._history.call(what, **self._handler.attempt(job)):
                await getattr(job, what)()
            return True

        if await self._struck(what, call) is None or what == "progress":
            await self._settle(job)

    async def look(self) -> None:
        what = random.choice(["stats", "size", "repair"])
        await self._struck(what, getattr(self._queue, what))

    async def block(self) -> None:
        if not self._held:
            return
        job = self._held.pop()
        attempt = self._handler.attempt(job)

        async def work() -> bool:
            async with job:
                await anyio.sleep(0.001)
                self._history.left_to_the_worker("complete", **attempt)
            return True

        if await self._struck("block", work) is None:
            self._history.note("attempt", state="cancelled", **attempt)
            await self._settle(job)

    async def work_a_moment(self) -> None:
        settings: dict[str, Any] = {**QUICK, "max_await": 0.05}
        worker = Worker(
            self._jobs,
            concurrency=3,
            timeout=LEASE,
            registry=CollectorRegistry(),
            sweep_interval=None,
            **settings,
        )
        worker.handler(self._queue.name)(self._handler.handle)
        for _ in range(2):
            await self.put(seconds=random.uniform(0, LONGEST / 2))
        with anyio.move_on_after(random.uniform(0, LONGEST)) as scope:
            await worker.run(handle_signals=False)
        self.struck += scope.cancelled_caught


Round = Callable[[Canceller], Awaitable[None]]
ROUNDS: dict[str, Sequence[Round]] = {
    "calls": [
        *(Canceller.put, Canceller.put, Canceller.claim, Canceller.wait, Canceller.iterate),
        *(Canceller.end, Canceller.end, Canceller.look, Canceller.block),
    ],
    "workers": [Canceller.work_a_moment],
}


class Cancelled(Exception):
    """The call was cancelled before it had returned."""


class AtWait:
    """A call that is cancelled when it waits for the n-th time.

    Attributes:
        cancel: what cancels it; set before it is awaited.
        waits: how often it waited.
    """

    def __init__(self, call: Callable[[], Awaitable[Any]], wait: int) -> None:
        self._call = call
        self._wait = wait
        self.cancel: Callable[[], object] = lambda: None
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._call().__await__()
        try:
            waiting = next(steps)
            while True:
                self.waits += 1
                if self.waits == self._wait:
                    self.cancel()
                try:
                    answer = yield waiting
                except BaseException as error:
                    waiting = steps.throw(error)
                else:
                    waiting = steps.send(answer)
        except StopIteration as end:
            return end.value


async def cancelled_by_anyio(call: AtWait) -> Any:
    with CancelScope() as scope:
        call.cancel = scope.cancel
        return await call
    raise Cancelled


async def cancelled_by_asyncio(call: AtWait) -> Any:
    async def strike() -> Any:
        task = asyncio.current_task()
        assert task is not None
        call.cancel = task.cancel
        return await call

    task = asyncio.ensure_future(strike())
    try:
        return await task
    except get_cancelled_exc_class():
        if not task.cancelled():
            raise
        raise Cancelled from None
