"""One consumer process of the benchmark: a worker like any other, and a clerk who counts.

``python -m streamqueue.bench.consumer SETTINGS``, with the address in ``STREAMQUEUE_URI``.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from pymongo import AsyncMongoClient, monitoring

from ..plain import printable
from ..processes.dispatcher import dispatcher_for
from ..processes.subscriber import subscribe
from ..protocol.limits import Limit
from ..worker import Worker
from .channel import obey, say, wait_for_go
from .environment import has_uvloop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..queue.job import AsyncJob

HandlerKind = Literal["passes", "announces", "waits", "holds"]
"""What the handler of a consumer does: nothing; it says that it has started; it says that, and
waits until it is cancelled, which it says too; and it says both its start and its end, for which it
waits some time."""
QUEUE, OTHER_QUEUE = "bench", "other"  # the first as in floor.py, which a consumer need not load
WRITES = {"insert", "update", "delete", "findAndModify", "bulkWrite"}
DRAIN_SECONDS = 1.0
"""For handlers that wait until they are cancelled; the others are done by then."""
COUNTED = ("streamqueue_attempts_total", "streamqueue_claims_total")


class Clerk(monitoring.CommandListener, monitoring.ServerHeartbeatListener):
    """Counts what the driver sends, by all clients of this process.

    Only the driver's threads and the event loop write here; reports may be a command late.
    """

    def __init__(self) -> None:
        self.commands: Counter[str] = Counter()
        self.microseconds: Counter[str] = Counter()
        self.last_write_at: float | None = None

    def started(self, event: Any) -> None:
        """Count nothing yet: a command or heartbeat has begun."""

    def succeeded(self, event: Any) -> None:
        """Count a command or a heartbeat; note when a write has changed something."""
        if isinstance(event, monitoring.ServerHeartbeatSucceededEvent):
            self.commands["heartbeat"] += 1
            return
        name = event.command_name
        self.commands[name] += 1
        self.microseconds[name] += event.duration_micros
        if name in WRITES and event.reply.get("n", 1):
            self.last_write_at = time.monotonic()

    def failed(self, event: Any) -> None:
        """Count a command that failed under its own name too: it was a round trip."""
        if not isinstance(event, monitoring.ServerHeartbeatFailedEvent):
            self.commands[event.command_name] += 1


class Consumer:
    """A worker with a handler that does nothing, or next to it.

    Args:
        settings: ``database`` and ``collection`` to work on, ``queues``, ``concurrency``, and what
            the ``handler`` does (:data:`HandlerKind`; what is said of each job costs), for how many
            seconds (``hold``), and which ``rules`` it declares: ``running``, ``rate``, ``ordered``,
            ``fair``. With
            ``serve`` it also serves metrics, as many as a worker of two queues has. With
            ``dispatcher``, a descriptor, it is handed its jobs; with ``members``, several, it hands
            them out.
    """

    def __init__(self, uri: str, settings: Mapping[str, Any]) -> None:
        self._clerk = Clerk()
        if settings["handler"] == "passes":
            # Listening costs a command about 30 us, which the floor's latency does not have in it.
            monitoring.register(self._clerk)  # the worker makes a client of its own for its stream
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
        self._registry = CollectorRegistry()
        self._worker = Worker(
            client[settings["database"]][settings["collection"]],
            concurrency=settings["concurrency"],
            drain_timeout=DRAIN_SECONDS,
            registry=self._registry,
            metrics_port=0 if settings.get("serve") else None,
        )
        if settings.get("serve"):
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=self._registry)
            self._worker.handler(OTHER_QUEUE)(self._pass)
        if "dispatcher" in settings:
            subscribe(self._worker)(socket.socket(fileno=settings["dispatcher"]))
        self._members = settings.get("members", ())
        self._first_started_at: float | None = None
        self._cpu_before = 0.0
        self._hold = settings.get("hold", 0.0)
        handlers = {
            "passes": self._pass,
            "announces": self._announce,
            "waits": self._wait,
            "holds": self._hold_for_a_while,
        }
        rules = dict(settings.get("rules", {}))
        limits = {name: rules.pop(name) for name in ("running", "rate") if name in rules}
        if limits:
            rules["limits"] = Limit(**limits)
        for queue in settings.get("queues", [QUEUE]):
            self._worker.handler(queue, **rules)(handlers[settings["handler"]])

    async def _pass(self, _: AsyncJob) -> None:
        if self._first_started_at is None:
            self._first_started_at = time.monotonic()
            self._cpu_before = _cpu_seconds()

    async def _announce(self, job: AsyncJob) -> None:
        at = time.monotonic()
        say({"what": "started", "number": job.data["number"], "at": at})

    async def _wait(self, job: AsyncJob) -> None:
        await self._announce(job)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            at = time.monotonic()
            say({"what": "cancelled", "number": job.data["number"], "at": at})
            raise

    async def _hold_for_a_while(self, job: AsyncJob) -> None:
        await self._announce(job)
        await anyio.sleep(self._hold)
        at = time.monotonic()
        say({"what": "ended", "number": job.data["number"], "at": at})

    def report(self) -> dict[str, Any]:
        """Return the account so far; times are of the monotonic clock, which processes share."""
        sums: Counter[str] = Counter()
        # The named ones only: collecting everything would take a millisecond from the worker.
        for family in self._registry.restricted_registry(list(COUNTED)).collect():
            for sample in family.samples:
                sums[sample.labels.get("outcome") or sample.labels["result"]] += int(sample.value)
        return {
            "at": time.monotonic(),
            "completed": sums["completed"],
            "won": sums["won"],
            "lost": sums["lost"],
            "commands": dict(self._clerk.commands),
            "command_seconds": {
                name: total / 1e6 for name, total in self._clerk.microseconds.items()
            },
            "first_started_at": self._first_started_at,
            "last_write_at": self._clerk.last_write_at,
            "cpu_seconds": _cpu_seconds(),
            "cpu_before": self._cpu_before,
            "rss_bytes": _resident_bytes(),
        }

    async def run(self) -> None:
        """Work until SIGTERM."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._worker.run)
            server = self._worker.server
            say({"what": "ready", "address": server and server.address})

    async def dispatch(self) -> None:
        """Hand out jobs to others, until SIGTERM."""
        dispatcher = dispatcher_for(self._worker)
        async with anyio.create_task_group() as tasks:
            await tasks.start(dispatcher.run)
            for descriptor in self._members:
                dispatcher.join(socket.socket(fileno=descriptor))
            say({"what": "ready"})


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> int | None:
    """Return the memory in use now; None where the system does not say (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * resource.getpagesize()


def main() -> int:
    """Run one consumer; say why in one line if it cannot."""
    logging.basicConfig(level=logging.ERROR)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as the worker command does
    settings = json.loads(sys.argv[1])
    consumer = Consumer(os.environ["STREAMQUEUE_URI"], settings)
    wait_for_go()
    obey(consumer.report)
    try:
        run = consumer.dispatch if settings.get("members") else consumer.run
        anyio.run(run, backend_options={"use_uvloop": has_uvloop()})
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        sys.stderr.write(printable(f"{type(cause).__name__}: {cause}") + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
