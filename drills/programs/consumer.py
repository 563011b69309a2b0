"""A consumer process: it does what the payload of a job says, and writes it down.

By ``worker`` it is a ``Worker``, which renews its leases and cancels a handler that has lost its
own; by ``queue`` it is some tasks that iterate over an ``AsyncMongoQueue``, where nothing but the
token keeps a late call from changing another's job.

``does`` in the payload says what; ``seconds`` how long it takes; ``times`` in how many attempts it
goes wrong before it goes right. See ``DEEDS``.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from drills.history import History, Wire, digest_of
from drills.programs import hells, stepping
from drills.programs.effects import Effects, answered
from drills.programs.pulse import Pulse
from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    Cancel,
    Discard,
    LeaseLost,
    Retry,
    Snooze,
    Worker,
)

QUEUE = "drill"
QUICK: dict[str, Any] = {"drain_timeout": 2, "max_await": 0.2, "reap_interval": 0.2}
"""What is patient by default, for drills that have less time. There is no safety sweep: what the
stream fails to announce stays there, for the checker to find."""
LEASE = 1.5
PAUSE = 0.1
REPAIR_PAUSE = 0.4
CONCURRENCY = 4
MEGABYTE = 2**20


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    by: str = "worker",
    collection: str = "jobs",
    queue: str = QUEUE,
    others: Sequence[str] = (),
    repairs: bool = False,
    lease: float = LEASE,
    concurrency: int = CONCURRENCY,
    client: dict[str, Any] | None = None,
    memory: int | None = None,
    rules: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Work until SIGTERM.

    Args:
        client: further settings of its MongoClient.
        memory: megabytes of address space it may have more than now.
        by: ``worker`` or ``queue``.
        others: queues that a worker serves besides.
        rules: what the handlers of a worker declare.
        repairs: by ``queue``, take stale locks away at random moments, as operators do.
        settings: further ones of the worker or queue.
    """
    if memory is not None:
        limit = _address_space() + memory * MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    history = History(directory, "consumer")
    backoff = Backoff(initial=0.05, maximum=0.2)

    async def main() -> None:
        wire = Wire(history, lease)
        async with AsyncMongoClient(uri, event_listeners=[wire], **(client or {})) as own:
            jobs, effects = own[database][collection], Effects(history, own[database])
            if by == "queue":
                target = AsyncMongoQueue(
                    jobs, timeout=lease, name=queue, backoff=backoff, **settings
                )
                await target.size()
                history.note("process", state="ready")
                handler = Handler(history, lease, renews=False, effects=effects)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(Pulse(history).run)
                    if repairs:
                        tasks.start_soon(repair_now_and_then, target)
                    await iterate(target, handler.of(queue), concurrency)
                    tasks.cancel_scope.cancel()
                return
            given: dict[str, Any] = {"sweep_interval": None, **QUICK, **settings}
            declared: dict[str, Any] = rules or {}
            worker = Worker(
                jobs,
                timeout=lease,
                concurrency=concurrency,
                backoff=backoff,
                registry=CollectorRegistry(),
                **given,
            )
            handler = Handler(history, lease, effects=effects)
            for name in (queue, *others):
                worker.handler(name, **declared)(handler.of(name))
            await work(worker, history)

    anyio.run(main)
    history.close()


async def work(worker: Worker, history: History) -> None:
    """Run a worker until SIGTERM; note when it is ready, and for how long it stood still."""
    async with anyio.create_task_group() as tasks:

        async def until_the_end(*, task_status: TaskStatus[None]) -> None:
            await worker.run(task_status=task_status)
            tasks.cancel_scope.cancel()

        await tasks.start(until_the_end)
        history.note("process", state="ready")
        await Pulse(history).run()


async def repair_now_and_then(queue: AsyncMongoQueue) -> None:
    """Take stale locks away, for ever."""
    while True:
        await anyio.sleep(random.uniform(0, REPAIR_PAUSE))
        with suppress(PyMongoError):
            await queue.repair()


async def iterate(
    queue: AsyncMongoQueue, handle: Callable[[AsyncJob], Awaitable[None]], concurrency: int
) -> None:
    """Run the jobs of a queue, so many at a time, until SIGTERM."""

    async def work() -> None:
        while True:
            with suppress(PyMongoError):  # no server for the moment
                async for job in queue:
                    with suppress(Exception):  # stored by the job's block
                        async with job:
                            await handle(job)
            await anyio.sleep(PAUSE)

    with anyio.open_signal_receiver(signal.SIGTERM) as stop:
        async with anyio.create_task_group() as tasks:
            for _ in range(concurrency):
                tasks.start_soon(work)
            async for _ in stop:
                tasks.cancel_scope.cancel()
                break
    await queue.close()


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


class Handler:
    """Does what a job says.

    The token is not part of the public job, but tells one attempt from another: two processes that
    hold one job at one time have the same job id, and may have the same attempt number.

    Args:
        renews: whether whoever runs it renews its leases, and cancels it when it has lost one.
        effects: does its work in transactions.
    """

    def __init__(
        self,
        history: History,
        lease: float,
        *,
        renews: bool = True,
        effects: Effects | None = None,
    ) -> None:
        self._history = history
        self._lease = lease
        self._renews = renews
        self._effects = effects

    def attempt(self, job: AsyncJob) -> dict[str, str]:
        """Return what the lines of an attempt name it by."""
        return {"job": str(job.id), "token": job._record.token.hex()}

    def of(self, queue: str) -> Callable[[AsyncJob], Awaitable[Any]]:
        """Return the handler of a queue: jobs of another are none of its business."""

        async def handle(job: AsyncJob) -> Any:
            return await self.handle(job, queue)

        return handle

    def note_start(self, job: AsyncJob, queue: str | None = None) -> None:
        """Note that an attempt starts."""
        self._history.note(
            "attempt",
            state="started",
            number=job.attempts,
            limit=job.max_attempts,
            digest=digest_of(job.data),
            queue=queue,
            kept=self._renews,
            locked=None if job.locked_at is None else round(job.locked_at.timestamp() * 1000),
            **self.attempt(job),
        )

    async def handle(self, job: AsyncJob, queue: str | None = None) -> Any:
        """Run a job, as the handler of a queue."""
        self.note_start(job, queue)
        deed = DEEDS[job.data.get("does", "complete")]
        try:
            return await deed(self, job, float(job.data.get("seconds", 0)))
        except anyio.get_cancelled_exc_class():
            self._history.note("attempt", state="cancelled", **self.attempt(job))
            raise
        except (PyMongoError, LeaseLost):
            # A call whose outcome is unknown, or work that must be undone: whoever runs the
            # handler ends the attempt as failed.
            self._leave("error", job)
            raise

    async def _call(
        self, what: str, job: AsyncJob, call: Callable[[], Awaitable[None]], **more: Any
    ) -> None:
        """Make a call of the attempt and note how it went. Losing the lease is no error here."""
        try:
            with self._history.call(what, **self.attempt(job), **more):
                await answered(call())
        except LeaseLost:
            pass

    def _leave(self, what: str, job: AsyncJob, **more: Any) -> None:
        self._history.left_to_the_worker(what, **self.attempt(job), **more)

    def _result(self, job: AsyncJob) -> str | None:
        """Return the result of a job that has one: which attempt completed it."""
        return self.attempt(job)["token"] if job.data.get("answers") else None

    async def _complete(self, job: AsyncJob) -> None:
        await self._call("complete", job, partial(job.complete, self._result(job)))

    async def _return(self, job: AsyncJob) -> str | None:
        """Leave the complete to whoever runs the handler; the end of a block has no result."""
        result = self._result(job)
        if result is not None and not self._renews:
            await self._complete(job)
            return None
        self._leave("complete", job)
        return result

    def _right_now(self, job: AsyncJob) -> bool:
        return job.attempts > int(job.data.get("times", 1))

    # deeds

    async def complete(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        await self._complete(job)

    async def returns(self, job: AsyncJob, seconds: float) -> Any:
        await anyio.sleep(seconds)
        return await self._return(job)

    async def transacts(self, job: AsyncJob, seconds: float) -> None:
        """Complete in the transaction of the work, first or last.

        What keeps it from being committed fails the attempt: a handler that returned would complete
        the job without its work.
        """
        assert self._effects is not None
        before = random.choice([0.0, seconds])
        async with self._effects.work("complete", job.id, self.attempt(job)["token"]) as work:
            await anyio.sleep(before)
            with self._history.call("complete", transaction=work.number, **self.attempt(job)):
                await answered(job.complete(session=work.session))
            await anyio.sleep(seconds - before)

    async def long(self, job: AsyncJob, seconds: float) -> None:
        """Take longer than the lease. Where nobody else renews it, noting progress does."""
        for _ in range(6):
            await anyio.sleep(self._lease / 3)
            if not self._renews:
                await self._call("progress", job, job.progress)
        await anyio.sleep(seconds)
        await self._call("complete", job, job.complete)

    async def progress(self, job: AsyncJob, seconds: float) -> None:
        for count in range(3):
            await anyio.sleep(seconds / 3)
            await self._call("progress", job, partial(job.progress, count), count=count)
        await self._complete(job)

    async def error(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        if self._right_now(job):
            await self._call("complete", job, job.complete)
        else:
            await self._call("error", job, partial(job.error, "as asked for", delay=0))

    async def raises(self, job: AsyncJob, seconds: float) -> Any:
        await anyio.sleep(seconds)
        if not self._right_now(job):
            self._leave("error", job)
            raise ValueError("as asked for")
        return await self._return(job)

    async def retries(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        if not self._right_now(job):
            self._leave("error", job)
            raise Retry(delay=0.05)
        self._leave("complete", job)

    async def snoozes(self, job: AsyncJob, seconds: float) -> Any:
        await anyio.sleep(seconds)
        if random.random() < 0.5:
            self._leave("release", job)
            raise Snooze(0.05)
        return await self._return(job)

    async def releases(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        if random.random() < 0.5:
            await self._call("release", job, job.release)
        else:
            await self._call("complete", job, job.complete)

    async def discards(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        self._leave("error", job, discard=True)
        raise Discard("as asked for")

    async def falters(self, job: AsyncJob, seconds: float) -> Any:
        """Fail now and then, also for good: after a requeue it may go well."""
        await anyio.sleep(seconds)
        chance = random.random()
        if chance < 0.3:
            self._leave("error", job, discard=True)
            raise Discard("as it happens")
        if chance < 0.6:
            self._leave("error", job)
            raise ValueError("as it happens")
        return await self._return(job)

    async def gathers(self, job: AsyncJob, seconds: float) -> Any:
        """Look at the parents first, and then do what else is said."""
        seen = Counter([info.state if info else "gone" async for info in job.parents.infos()])
        self._history.note("attempt", state="saw", parents=dict(seen), **self.attempt(job))
        return await DEEDS[job.data["then"]](self, job, seconds)

    async def cancels(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        self._leave("cancel", job)
        raise Cancel("as asked for")

    async def stubborn(self, job: AsyncJob, seconds: float) -> None:
        """Go on to the end although the lease was lost, and complete all the same."""
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
            await self._call("complete", job, job.complete)

    async def blocks(self, job: AsyncJob, seconds: float) -> None:
        """Block the event loop in the first attempts, so that nothing is renewed."""
        if not self._right_now(job):
            threading.Event().wait(seconds)
        await self._call("complete", job, job.complete)

    async def kills(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        if not self._right_now(job):
            os.kill(os.getpid(), signal.SIGKILL)
        await self._call("complete", job, job.complete)

    async def exits(self, job: AsyncJob, seconds: float) -> None:
        await anyio.sleep(seconds)
        if not self._right_now(job):
            os._exit(EXIT_CODE)
        await self._call("complete", job, job.complete)

    async def memory(self, job: AsyncJob, seconds: float) -> None:
        """Take all the memory there is, and give it back when there is no more."""
        await anyio.sleep(seconds)
        if not self._right_now(job):
            self._leave("error", job)
            _take_all_memory([])
        await self._call("complete", job, job.complete)

    async def hell(self, job: AsyncJob, seconds: float) -> Any:
        """Do something terrible in the first attempt; see ``hells``."""
        hells.check_surroundings()
        if self._right_now(job):
            self._leave("complete", job)
            return None
        self._history.note("deed", state="hell")
        if random.random() < 0.4:
            name = random.choice(list(hells.HARMLESS))
            await hells.HARMLESS[name](job)
            self._leave("complete", job)
            return None
        name = random.choice(list(hells.FAILING))
        self._leave("error", job)
        return await hells.FAILING[name](job)

    async def innocent(self, job: AsyncJob, seconds: float) -> None:
        hells.check_surroundings()
        await anyio.sleep(seconds)
        self._leave("complete", job)

    async def leak(self, job: AsyncJob, seconds: float) -> None:
        """Take all the memory there is, and keep it."""
        await anyio.sleep(seconds)
        if not self._right_now(job):
            self._leave("error", job)
            _take_all_memory(LEAKED)
        await self._call("complete", job, job.complete)


EXIT_CODE = 23
PIECE = MEGABYTE // 16
LEAKED: list[bytearray] = []


def _take_all_memory(hoard: list[bytearray]) -> None:
    while True:
        hoard.append(bytearray(PIECE))


DEEDS: dict[str, Callable[[Handler, AsyncJob, float], Awaitable[Any]]] = {
    "complete": Handler.complete,
    "return": Handler.returns,
    "transact": Handler.transacts,
    "long": Handler.long,
    "progress": Handler.progress,
    "error": Handler.error,
    "raise": Handler.raises,
    "retry": Handler.retries,
    "snooze": Handler.snoozes,
    "release": Handler.releases,
    "discard": Handler.discards,
    "falter": Handler.falters,
    "gather": Handler.gathers,
    "cancel": Handler.cancels,
    "stubborn": Handler.stubborn,
    "block": Handler.blocks,
    "kill": Handler.kills,
    "exit": Handler.exits,
    "memory": Handler.memory,
    "leak": Handler.leak,
    "hell": Handler.hell,
    "innocent": Handler.innocent,
    "steps": stepping.steps,
}
