"""How long a worker is silent after a fault: with its defaults, and those of the server.

A feeder puts a lone job, waits 50 ms, puts the next. While writes are impossible its put waits, so
it returns as soon as one can be written. The silence is the longest time between two starts of the
handler around the fault; of it, `without_writes` is the time in which no put returned.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import anyio
from anyio import to_thread
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from drills.cluster import ReplicaSet
from drills.drill import Stage, drill
from streamqueue import AsyncJob, AsyncMongoQueue, Worker
from tests.waiting import wait_until_async

FEED_EVERY = 0.05
QUIET_BEFORE = 3.0
"""Seconds of undisturbed work before each fault."""

ALLOWED = {"shutdown": 5.0, "step-down": 2.0, "wedge": 5.0, "kill": 13.0}
"""Seconds of silence after each fault; kill: the server's default election timeout, and 3."""


@dataclass
class Gap:
    """What one fault cost.

    Attributes:
        silence: seconds between the two starts.
        without_writes: seconds between two puts that returned.
    """

    fault: str
    silence: float
    without_writes: float

    @property
    def allowed(self) -> float:
        return ALLOWED[self.fault]

    def __str__(self) -> str:
        verdict = "ok" if self.silence <= self.allowed else f"MORE THAN {self.allowed} s"
        return (
            f"{self.fault}: silent for {self.silence:.2f} s, {verdict} "
            f"(writes were impossible for {self.without_writes:.2f} s)"
        )


@dataclass
class _Watched:
    """A worker that is fed lone jobs; times are of the monotonic clock."""

    put_at: dict[int, float] = field(default_factory=dict)
    started_at: dict[int, float] = field(default_factory=dict)

    async def handle(self, job: AsyncJob) -> None:
        self.started_at.setdefault(job.data["number"], time.monotonic())

    async def feed(self, queue: AsyncMongoQueue) -> None:
        number = 0
        while True:
            number += 1
            try:
                await queue.put({"number": number})
            except PyMongoError:
                continue
            self.put_at[number] = time.monotonic()
            await anyio.sleep(FEED_EVERY)

    def gap(self, fault: str, since: float) -> Gap:
        """Return the longest silence since then."""
        return Gap(fault, _longest(self.started_at, since), _longest(self.put_at, since))


def _longest(times: dict[int, float], since: float) -> float:
    recent = sorted(at for at in times.values() if at > since - 1)
    return max(later - earlier for earlier, later in pairwise(recent))


async def measure(
    servers: ReplicaSet,
    fault: str,
    act: Callable[[], Awaitable[None]],
    mend: Callable[[], Awaitable[None]],
    times: int,
    report: Callable[[Gap], None],
) -> list[Gap]:
    """Do it so often to a worker at work, and return what each cost."""
    watched, gaps = _Watched(), []
    async with (
        AsyncMongoClient(servers.uri) as workers_client,
        AsyncMongoClient(servers.uri) as feeders_client,
    ):
        worker = Worker(workers_client.gaps.jobs, registry=CollectorRegistry())
        worker.handler("default")(watched.handle)
        queue = AsyncMongoQueue(feeders_client.gaps.jobs)
        async with anyio.create_task_group() as tasks:
            await tasks.start(partial(worker.run, handle_signals=False))
            tasks.start_soon(watched.feed, queue)
            for _ in range(times):
                await anyio.sleep(QUIET_BEFORE)
                since, before = time.monotonic(), set(watched.started_at)
                await act()
                acted = time.monotonic()
                # Over when a job that was put after it is started, and the next ones in time.
                await wait_until_async(
                    lambda acted=acted: any(
                        at > acted and number in watched.started_at
                        for number, at in list(watched.put_at.items())
                    ),
                    f"a start after {fault}",
                    within=60,
                )
                await anyio.sleep(ALLOWED[fault] if fault == "wedge" else 2.0)
                assert before <= set(watched.started_at)
                gap = watched.gap(fault, since)
                report(gap)
                gaps.append(gap)
                await mend()
            worker.stop()
            tasks.cancel_scope.cancel()
        await queue.close()
    return gaps


def after_primary_faults(faults: Mapping[str, int], report: Callable[[Gap], None]) -> list[Gap]:
    """Measure faults of a primary, each so often, on three members with the server's defaults."""
    gaps = []
    with ReplicaSet(3) as servers:

        async def step_down() -> None:
            await to_thread.run_sync(servers.step_down)

        async def shut_down() -> None:
            await to_thread.run_sync(servers.primary().begin_shutdown)

        async def kill() -> None:
            await to_thread.run_sync(servers.primary().kill)

        async def mend() -> None:
            await to_thread.run_sync(_restart, servers)

        acts = {"step-down": step_down, "shutdown": shut_down, "kill": kill}
        for fault, times in faults.items():
            gaps += anyio.run(measure, servers, fault, acts[fault], mend, times, report)
    return gaps


def _restart(servers: ReplicaSet) -> None:
    for member in servers.members:
        if member.ending:
            member.kill()  # it would wait 15 s for clients to notice, and has been measured
        if not member.running:
            member.start()
    servers.wait_until_healthy()


def after_wedge(times: int, report: Callable[[Gap], None]) -> list[Gap]:
    """Measure a stream connection that stays open and passes nothing, its monitors being well."""
    with ReplicaSet(1, proxied=True) as servers:

        async def wedge() -> None:
            wedged = await to_thread.run_sync(
                partial(servers.proxies.wedge, app="streamqueue-stream")
            )
            assert wedged, "there was no stream"

        async def mend() -> None:
            await to_thread.run_sync(servers.proxies.heal)

        return anyio.run(measure, servers, "wedge", wedge, mend, times, report)


@drill(
    "gaps", wedges=(1, 1, 20), step_downs=(0, 1, 20), clean_shutdowns=(0, 1, 20), kills=(0, 1, 20)
)
def gaps(stage: Stage) -> None:
    """How long a worker with its defaults is silent after a fault; see ``gaps.py``"""

    def report(gap: Gap) -> None:
        hit = {"wedge": "wedges", "kill": "kills", "shutdown": "clean shutdowns"}
        stage.hits[hit.get(gap.fault, "step downs")] += 1
        stage.note(str(gap))
        stage.say(str(gap))
        assert gap.silence <= gap.allowed, f"{gap}"

    after_wedge(stage.wanted("wedges"), report)
    times = {
        "step-down": stage.wanted("step downs"),
        "shutdown": stage.wanted("clean shutdowns"),
        "kill": stage.wanted("kills"),
    }
    if any(times.values()):
        after_primary_faults(times, report)


DRILLS = [gaps]
