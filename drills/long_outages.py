"""Drills of what lasts: a day without MongoDB, and a member that stands still for good."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import anyio
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient

from drills.cluster import ReplicaSet
from drills.drill import Scale, Stage, drill
from drills.servers import three_members
from streamqueue import AsyncJob, AsyncMongoQueue, MongoQueue, Worker
from tests.waiting import wait_until_async

PROGRAM = "drills.programs.outlasts"
SPEEDS = {Scale.SHORT: 2000.0}
SPEED = 1000.0
"""How fast the clock is: the faster, the fewer tries fit into an hour of it."""
HEARD_WITHIN = 1.0
RECONNECT = 15.0
"""Seconds in which all must be at work again: a pause between two tries, and a server selection."""
MOST_LINES = 60
"""Lines of the log for one outage: of each part one at its beginning and one at its end."""
MOST_GROWTH = 40 * 2**20
"""Bytes by which the memory may grow after the first hour; what a try leaves behind would be more
than that after ten thousand."""
HOUR = 3600.0


@drill("a-days-outage", hours_without_a_server=(3, 24, 72), tries=(100, 1100, 3300))
def a_days_outage(stage: Stage) -> None:
    """A day without MongoDB, on a fast clock, for all who wait and look; then they go on"""
    stage.say("starting a server")
    servers = stage.keep(ReplicaSet(1, election_timeout=1))
    stage.play_on(servers.uri)
    [member] = servers.members
    child = stage.other(PROGRAM, speed=SPEEDS.get(stage.scale, SPEED))

    def facts() -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((stage.directory / "facts.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    stage.wait_for(lambda: facts().get("stream") == "open", "all are at work", 60)
    put_to_everybody(stage, facts()["seen"])
    stage.wait_for(lambda: min(facts()["seen"].values()) == 1, "all have handled a job")

    lines = facts()["lines"]
    member.kill()
    (stage.directory / "fast").touch()
    began = stage.wait_for(lambda: facts()["fast"] and facts(), "time runs fast")["shown"]
    stage.wait_for(lambda: facts()["shown"] > began + HOUR, "an hour has passed", 60)
    resident = facts()["resident"]
    wanted = stage.wanted("hours without a server")

    def over() -> bool:
        stage.hits["hours without a server"] = int((facts()["shown"] - began) / HOUR)
        stage.short_of("hours without a server")
        return stage.hits["hours without a server"] >= wanted or not child.alive

    stage.wait_for(over, f"{wanted} hours have passed", 60 + 10 * wanted)
    assert child.alive, "it did not outlast the outage"
    growth = facts()["resident"] - resident
    (stage.directory / "fast").unlink()
    stage.wait_for(lambda: not facts()["fast"], "time runs as it does")
    back_at = time.time()
    member.start()
    servers.wait_for_primary()
    put_to_everybody(stage, facts()["seen"])
    started = time.monotonic()
    stage.wait_for(
        lambda: (
            min(facts()["seen"].values()) == 2
            and facts()["stream"] == "open"
            and facts()["exported"] > back_at
        ),
        "all are at work again",
        RECONNECT,
    )
    said = facts()["lines"] - lines
    stage.hits["tries"] = facts()["tries"]
    stage.note(
        f"at work again after {time.monotonic() - started:.1f} s; {said} lines of the log; "
        f"{growth / 2**20:+.1f} MB"
    )
    assert said <= MOST_LINES, f"{said} lines of the log for one outage"
    assert growth <= MOST_GROWTH, f"the memory grew by {growth / 2**20:.0f} MB"


def put_to_everybody(stage: Stage, names: Any) -> None:
    with MongoClient[Any](stage.uri) as client:
        for name in names:
            MongoQueue(client[stage.database].jobs, name=name).put({"queue": name})


@drill("frozen-secondary", puts_heard=(5, 50, 500))
def frozen_secondary(stage: Stage) -> None:
    """A secondary stands still, and the URI prefers secondaries: every put is heard at once"""
    servers = three_members(stage)
    uri = f"{servers.uri}&heartbeatFrequencyMS=1000&readPreference=secondaryPreferred"
    frozen = servers.secondaries()[0]
    frozen.freeze()
    try:
        waits = anyio.run(hear, uri, stage.database, stage.wanted("puts heard"))
    finally:
        frozen.thaw()
    stage.hits["puts heard"] = sum(wait < HEARD_WITHIN for wait in waits)
    stage.note(f"heard after {1000 * sorted(waits)[len(waits) // 2]:.0f} ms (p50)")


async def hear(uri: str, database: str, count: int) -> list[float]:
    """Put lone jobs to a worker; return how long each took from its put to its handler."""
    handled: dict[int, float] = {}
    waits = []
    async with AsyncMongoClient[Any](uri) as client:
        worker = Worker(client[database].jobs, registry=CollectorRegistry())

        @worker.handler("default")
        async def handle(job: AsyncJob) -> None:
            handled[job.data["n"]] = time.monotonic()

        queue = AsyncMongoQueue(client[database].jobs)
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(30):
                await tasks.start(partial(worker.run, handle_signals=False))
            for n in range(count):
                began = time.monotonic()
                await queue.put({"n": n})
                await wait_until_async(lambda n=n: n in handled, f"put {n} is heard", 30)
                waits.append(handled[n] - began)
            worker.stop()
    return waits


DRILLS = [a_days_outage, frozen_secondary]
