"""A dispatcher and its members, all in the test's own event loop, and puppets that play either."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import anyio
from anyio import CancelScope
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob
from streamqueue.processes.dispatcher import Dispatcher, dispatcher_for
from streamqueue.processes.frames import Connection
from streamqueue.processes.subscriber import subscribe
from tests.waiting import wait_until_async
from tests.worker.started import Commands, StartedWorker, WorkerStarter

SOON = 2.0
"""Seconds: long before any lease ends, or a sweep (there is none) would find it."""


class Notes:
    """A handler that notes whose jobs ran, how often, and how many at a time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.seen: list[Any] = []
        self.running = self.most_running = 0

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append(job.data.get("n"))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await anyio.sleep(self._seconds)
        self.running -= 1

    async def until_seen(self, count: int, within: float = SOON) -> None:
        await wait_until_async(lambda: len(self.seen) >= count, f"{count} jobs ran", within)


def lost(*workers: StartedWorker) -> float:
    """How many claims they have lost to one another."""
    return sum(w.metric("streamqueue_claims_total", result="lost") for w in workers)


def completed(*workers: StartedWorker) -> int:
    return sum(worker.outcomes().get("completed", 0) for worker in workers)


def streams(client: MongoClient[Any], jobs: Collection[Any]) -> int:
    """How many change streams on the collection are open at the server, idle ones as well."""
    opened = "cursor.originatingCommand.pipeline.0.$changeStream"
    found = client.admin.aggregate(
        [
            {"$currentOp": {"idleCursors": True, "localOps": True}},
            {"$match": {"ns": f"{jobs.database.name}.{jobs.name}", opened: {"$exists": True}}},
        ]
    )
    return len({op["cursor"]["cursorId"] for op in found})


async def until_done(jobs: Collection[Any], within: float = 6 * SOON) -> None:
    await wait_until_async(lambda: not jobs.count_documents({}), "all jobs are done", within)


class StartedDispatcher:
    """A dispatcher under test, with a client and a record of commands of its own."""

    def __init__(self, host: StartedWorker) -> None:
        self._host = host
        self.dispatcher: Dispatcher = dispatcher_for(host.worker)
        self.ended = anyio.Event()
        self._scope = CancelScope()

    @property
    def commands(self) -> Commands:
        """What it and its stream have sent."""
        return self._host.commands

    @property
    def app(self) -> str:
        """What its client calls itself."""
        return self._host.app

    async def run(self, *, task_status: Any) -> None:
        try:
            with self._scope:
                await self.dispatcher.run(task_status=task_status)
        finally:
            self.ended.set()

    def connect(self) -> socket.socket:
        """Return a connection to it."""
        one, other = socket.socketpair()
        self.dispatcher.join(one)
        return other

    async def stop(self) -> None:
        """Tell it to stop and wait for its end."""
        self.dispatcher.stop()
        with anyio.fail_after(5):
            await self.ended.wait()


class Puppet:
    """One end of a connection, played by the test.

    Attributes:
        heard: frames that nobody has waited for yet.
        passed: those before them.
    """

    def __init__(self, channel: socket.socket) -> None:
        self.passed: list[dict[str, Any]] = []
        self._channel = channel
        self._connection = Connection(channel)
        self.heard: list[dict[str, Any]] = []

    def joins(self, *, free: int, consumer: str = "puppet") -> None:
        """Join."""
        self.say({"consumer": consumer, "free": free})

    def say(self, frame: dict[str, Any]) -> None:
        self._connection.send(frame)

    def say_bytes(self, data: bytes) -> None:
        self._channel.send(data)

    def ask(self, count: int) -> None:
        """Ask a dispatcher for so many waiting jobs."""
        self.say({"ask": count, "done": 0, "refused": []})

    async def until_heard(self, name: str, within: float = 5.0) -> dict[str, Any]:
        """Return the next frame with this field."""
        with anyio.fail_after(within):
            while True:
                for index, frame in enumerate(self.heard):
                    if name in frame:
                        self.passed += self.heard[: index + 1]
                        del self.heard[: index + 1]
                        return frame
                frames = await self._connection.receive()
                assert frames, f"closed before {name}"
                self.heard += frames

    async def until_closed(self, within: float = 5.0) -> None:
        with anyio.fail_after(within):
            while await self._connection.receive():
                pass

    def leave(self, says_so: bool) -> None:
        if says_so:
            self.say({"leaving": True})
        self.close()

    def close(self) -> None:
        self._connection.close()


class Members:
    """Dispatchers, and their members; all are stopped at the end of the test."""

    def __init__(self, start: WorkerStarter) -> None:
        self._start = start
        self._dispatchers: list[StartedDispatcher] = []
        self._puppets: list[Puppet] = []
        self._bringers: dict[str, Callable[[socket.socket], None]] = {}

    @property
    def dispatcher(self) -> StartedDispatcher:
        """The newest dispatcher."""
        return self._dispatchers[-1]

    async def open(self, *queues: str, **settings: Any) -> StartedDispatcher:
        """Start a dispatcher; return once its stream is open."""

        async def never(job: Any) -> None:
            raise AssertionError("a dispatcher runs no job")

        host = self._start.prepare(never, **settings)
        for queue in queues:
            host.worker.handler(queue)(never)
        return await self.open_for(host)

    async def open_for(self, host: StartedWorker) -> StartedDispatcher:
        """Start a dispatcher for processes like this worker; return once its stream is open."""
        dispatcher = StartedDispatcher(host)
        self._dispatchers.append(dispatcher)
        await self._start.tasks.start(dispatcher.run)
        return dispatcher

    def connect(self, worker: StartedWorker, dispatcher: StartedDispatcher | None = None) -> None:
        """Join a worker and a dispatcher, as their supervisor does."""
        self._bring(worker, (dispatcher or self.dispatcher).connect())

    def _bring(self, worker: StartedWorker, channel: socket.socket) -> None:
        if worker.app not in self._bringers:
            self._bringers[worker.app] = subscribe(worker.worker)
        self._bringers[worker.app](channel)

    def prepare(self, *handlers: Callable[..., Any], **settings: Any) -> StartedWorker:
        """Make a worker that is not invited yet."""
        worker = self._start.prepare(*handlers, **{"sweep_interval": None, **settings})
        self._bringers[worker.app] = subscribe(worker.worker)
        return worker

    async def begin(self, worker: StartedWorker) -> None:
        """Run a prepared worker; return once a stream is open, here or at the dispatcher's."""
        await self._start.begin(worker)

    async def start(self, *handlers: Callable[..., Any], **settings: Any) -> StartedWorker:
        """Start a worker that is a member of the newest dispatcher."""
        worker = self.prepare(*handlers, **settings)
        self.connect(worker)
        await self.begin(worker)
        return worker

    async def start_many(
        self, count: int, *handlers: Callable[..., Any], **settings: Any
    ) -> list[StartedWorker]:
        """Start several alike; return once all have looked at what there is, and idle."""
        workers = [await self.start(*handlers, **settings) for _ in range(count)]
        for worker in workers:
            await worker.until_idle()
        return workers

    async def until_idle(self, seconds: float = 0.25) -> None:
        """Wait until no dispatcher and no worker has sent anything but ``getMore`` for long."""
        everybody: list[Any] = [*self._dispatchers, *self._start.started]
        await wait_until_async(
            lambda: all(one.commands.quiet_for(seconds) for one in everybody), "all are idle"
        )

    def puppet(self, *, free: int, consumer: str = "puppet") -> Puppet:
        """Let a puppet join in a worker's place."""
        puppet = self.stranger()
        puppet.joins(free=free, consumer=consumer)
        return puppet

    def stranger(self) -> Puppet:
        """Connect a puppet that has not said who it is."""
        puppet = Puppet(self.dispatcher.connect())
        self._puppets.append(puppet)
        return puppet

    def puppet_dispatcher(self, worker: StartedWorker) -> Puppet:
        """Bring a worker a puppet in a dispatcher's place."""
        one, other = socket.socketpair()
        self._bring(worker, one)
        puppet = Puppet(other)
        self._puppets.append(puppet)
        return puppet

    async def end(self) -> None:
        """Stop the workers first: without a dispatcher each would open a stream."""
        for puppet in self._puppets:
            puppet.close()
        running = [worker for worker in self._start.started if not worker.ended.is_set()]
        for worker in running:
            worker.worker.stop()
            worker.worker.stop()
        for worker in running:
            await worker.until_ended()
        for dispatcher in self._dispatchers:
            if not dispatcher.ended.is_set():
                await dispatcher.stop()
