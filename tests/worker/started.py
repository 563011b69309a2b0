"""A worker that runs in the test's own event loop, and what a test asks of it."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from pymongo import AsyncMongoClient
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from streamqueue import Worker
from tests.waiting import wait_until_async

STREAM_APP = "streamqueue-stream"
"""What the client of the change stream calls itself, for failpoints and ``currentOp``."""


@dataclass(frozen=True)
class Sent:
    """A command as it was sent."""

    name: str
    command: Mapping[str, Any]
    at: float


class Commands(CommandListener):
    """Every command that the worker's clients send: its own and that of its stream."""

    def __init__(self) -> None:
        self.all: list[Sent] = []
        self._in_flight: set[int] = set()

    def started(self, event: CommandStartedEvent) -> None:
        self._in_flight.add(event.request_id)
        self.all.append(Sent(event.command_name, event.command, time.monotonic()))

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self._in_flight.discard(event.request_id)

    def failed(self, event: CommandFailedEvent) -> None:
        self._in_flight.discard(event.request_id)

    def named(self, *names: str) -> list[Sent]:
        """Return the commands with one of these names."""
        return [sent for sent in self.all if sent.name in names]

    def besides(self, *names: str) -> list[Sent]:
        """Return the commands with any other name."""
        return [sent for sent in self.all if sent.name not in names]

    def claims(self) -> list[Sent]:
        """Return the commands that tried to take jobs."""
        return [
            sent
            for sent in self.named("update", "findAndModify")
            if "'running'" in str(_update_of(sent.command))
        ]

    def renewals(self) -> list[Sent]:
        """Return the updates that extended leases, and did nothing else."""
        return [
            sent
            for sent in self.named("update")
            if list(_update_of(sent.command)[0]["$set"]) == ["locked_until"]
        ]

    def forget(self) -> None:
        """Begin to record anew."""
        self.all = []

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing but ``getMore`` was sent in these last seconds, nor is under way."""
        others = self.besides("getMore")
        return not others or time.monotonic() - others[-1].at > seconds


def _update_of(command: Mapping[str, Any]) -> Any:
    return command["updates"][0]["u"] if "updates" in command else command["update"]


@dataclass
class StartedWorker:
    """A worker under test, with a client, a registry and a record of commands of its own."""

    worker: Worker
    app: str
    registry: CollectorRegistry
    commands: Commands
    ended: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None

    def metric(self, name: str, **labels: str) -> float:
        """Return a series, or the sum of those that have these labels."""
        return sum(
            sample.value
            for sample in self._samples(name)
            if labels.items() <= sample.labels.items()
        )

    def outcomes(self) -> dict[str, int]:
        """Return how many attempts ended in which outcome, of those there were."""
        counted: Counter[str] = Counter()
        for sample in self._samples("streamqueue_attempts_total"):
            counted[sample.labels["outcome"]] += int(sample.value)
        return dict(+counted)

    def _samples(self, name: str) -> list[Sample]:
        # Only what is asked for: this is read every few milliseconds while a test waits.
        families = self.registry.restricted_registry([name]).collect()
        return [sample for family in families for sample in family.samples if sample.name == name]

    async def until_outcomes(self, within: float = 10.0, **wanted: int) -> None:
        """Wait until exactly these attempts have ended in exactly these outcomes."""
        try:
            await wait_until_async(
                lambda: sum(self.outcomes().values()) >= sum(wanted.values()), "", within
            )
        finally:
            assert self.outcomes() == wanted

    async def until_idle(self, seconds: float = 0.25) -> None:
        """Wait until it has sent nothing but its ``getMore`` for a while."""
        await wait_until_async(lambda: self.commands.quiet_for(seconds), "the worker is idle")

    async def until_ended(self, within: float = 10.0) -> None:
        """Wait until ``run`` has returned; raise what it raised."""
        with anyio.fail_after(within):
            await self.ended.wait()
        if self.error is not None:
            raise self.error

    async def stop(self, within: float = 10.0) -> None:
        """Stop it and wait for its end."""
        if not self.ended.is_set():
            self.worker.stop()
        await self.until_ended(within)

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        try:
            await self.worker.run(handle_signals=False, task_status=task_status)
        except Exception as error:
            self.error = error
            if not self._was_started(task_status):
                raise
        finally:
            self.ended.set()

    @staticmethod
    def _was_started(task_status: Any) -> bool:
        return task_status._future.done()


class WorkerStarter:
    """Starts workers on the test's collection; they are stopped at the end of the test."""

    def __init__(self, uri: str, database: str, collection: str, tasks: TaskGroup) -> None:
        self._uri = uri
        self._database = database
        self._collection = collection
        self.tasks = tasks
        self._clients: list[AsyncMongoClient[dict[str, Any]]] = []
        self.started: list[StartedWorker] = []

    def prepare(self, *handlers: Callable[..., Any], **settings: Any) -> StartedWorker:
        """Make a worker; the first handler gets the queue ``default``, others are named after
        their function."""
        commands, app = Commands(), f"test-{secrets.token_hex(4)}"
        own_client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            self._uri, appname=app, event_listeners=[commands], heartbeatFrequencyMS=500
        )
        self._clients.append(own_client)
        registry = CollectorRegistry()
        given: dict[str, Any] = {"drain_timeout": 5, "max_await": 0.05, **settings}
        worker = Worker(
            own_client[self._database][self._collection],
            registry=registry,
            **given,
        )
        for index, handler in enumerate(handlers):
            worker.handler("default" if index == 0 else handler.__name__)(handler)
        return StartedWorker(worker, app, registry, commands)

    async def __call__(self, *handlers: Callable[..., Any], **settings: Any) -> StartedWorker:
        """Start a worker; return once its stream is open."""
        worker = self.prepare(*handlers, **settings)
        await self.begin(worker)
        return worker

    async def begin(self, worker: StartedWorker) -> None:
        """Run a prepared worker; return once its stream is open."""
        self.started.append(worker)
        await self.tasks.start(worker.run)

    async def end(self) -> None:
        """Stop what still runs, in a hurry, and raise what any of them died of."""
        for worker in self.started:
            if not worker.ended.is_set():
                worker.worker.stop()
                worker.worker.stop()
        try:
            for worker in self.started:
                await worker.until_ended()
        finally:
            for client in self._clients:
                await client.close()
