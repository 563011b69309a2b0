"""The costs that the model of a deployment is made of, measured; and the model, checked.

Puts of many producers, each one after the other, without a stream and beside several; a drain by
one worker, and by several with a dispatcher; what it leaves in the oplog. Then the model says how
fast 1, 4 and 16 processes drain a backlog here, where consumers and server share the processors,
and they do.
"""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bson.timestamp import Timestamp

from ...queue.blocking import MongoQueue
from .. import floor
from ..drain import length_of
from ..environment import processors
from ..fleet import Fleet, allowed
from ..process import completed_by
from ..report import Row, Table
from .model import MICROSECONDS, Costs, drained_here, oplog_hours, parts_of

if TYPE_CHECKING:
    from pymongo.synchronous.collection import Collection

    from ..ground import Ground
    from ..scale import Scale
    from .model import Deployment

ONE, SEVERAL = Fleet(1), Fleet(4, dispatched=True)
CHECKED = (ONE, SEVERAL, Fleet(16, dispatched=True))
CONCURRENCY = 100
PRODUCERS = 16
STREAMS = 8
"""Enough that what one of them costs is not lost in the ten milliseconds that processor time is
counted in."""


def steps(scale: Scale) -> int:
    return scale.rounds * (2 + len(allowed(CHECKED, scale)))


def measure(ground: Ground) -> Table:
    """Return the costs, the model beside what was measured, and what it says of a deployment."""
    table = Table()
    if ground.server_seconds() is None:
        for _ in range(steps(ground.scale)):
            ground.progress.step("skipped")
        table.notes.append("skipped: the server's processor time is read from /proc of a local one")
        return table
    fleets = allowed(CHECKED, ground.scale)
    rates: dict[Fleet, list[float]] = {fleet: [] for fleet in fleets}
    rounds: list[Costs] = []
    for _ in range(ground.scale.rounds):
        ground.progress.step(f"puts by {PRODUCERS} producers")
        put = _puts(ground, 0)
        ground.progress.step(f"puts beside {STREAMS} streams")
        stream = max(0.0, (_puts(ground, STREAMS) - put) / STREAMS)
        drains = {}
        for fleet in fleets:
            ground.progress.step(f"a drain by {fleet}")
            drains[fleet] = _Drain(ground, fleet)
            rates[fleet].append(drains[fleet].rate)
        alone, several = drains[ONE], drains.get(SEVERAL)
        rounds.append(
            Costs(
                put=put,
                drain=alone.server,
                stream=stream,
                worker=alone.consumers,
                dispatcher=several.dispatcher if several else 0.0,
                oplog_bytes=alone.oplog_bytes,
            )
        )
    _append_costs(table, rounds)
    costs = Costs(*(statistics.median(getattr(one, name) for one in rounds) for name in NAMES))
    for fleet, found in rates.items():
        said = drained_here(costs, fleet.size, processors())
        name = f"drain, {fleet}, to what the model says"
        table.rows.append(Row.against(name, "jobs/s", found, [said] * len(found), f"{said:,.0f}"))
    if ground.scale.deployment is not None:
        _append_deployment(table, costs, ground.scale.deployment)
    return table


NAMES = {
    "put": ("server, a put, one of several at a time", "us"),
    "drain": ("server, the claim and complete of a job, many at a time", "us"),
    "stream": ("server, an open stream, for each put that it tells of", "us"),
    "worker": ("consumer process, a job", "us"),
    "dispatcher": ("dispatcher, a job", "us"),
    "oplog_bytes": ("oplog, a job, claimed and completed among many", "bytes"),
}


def _append_costs(table: Table, rounds: list[Costs]) -> None:
    for name, (text, unit) in NAMES.items():
        table.rows.append(Row.alone(text, unit, [getattr(one, name) for one in rounds]))


def _append_deployment(table: Table, costs: Costs, deployment: Deployment) -> None:
    found = parts_of(costs, deployment)
    for part in found:
        table.rows.append(Row.alone(f"{part.name}: used", "%", [100 * part.used]))
        table.rows.append(Row.alone("  enough for", "jobs/s", [part.most]))
    hours = oplog_hours(costs, deployment, 1)
    table.rows.append(Row.alone("a gigabyte of oplog", "hours", [hours]))
    which = "a dispatcher each" if deployment.dispatched else "no dispatcher"
    table.notes.append(
        f"{deployment.jobs_per_second:,.0f} jobs/s by {deployment.hosts} hosts with "
        f"{deployment.processes} processes, {which}: {deployment.streams} streams"
    )
    first = found[0]
    table.notes.append(f"first to give, at {first.most:,.0f} jobs/s: {first.name}")
    table.notes.append(f"then: {first.next_step}")


def _puts(ground: Ground, streams: int) -> float:
    """Return the server's microseconds for a put, beside so many streams."""
    each = ground.scale.lone_puts // 2
    with ground.jobs() as jobs, ExitStack() as stack:
        for _ in range(streams):
            stack.enter_context(floor.listening(ground.uri, jobs))
        queue = stack.enter_context(MongoQueue(jobs, name=floor.QUEUE))
        queue.put({"number": 0})

        def produce() -> None:
            for number in range(each):
                queue.put({"number": number})

        threads = [threading.Thread(target=produce) for _ in range(PRODUCERS)]
        before = ground.known_server_seconds()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return MICROSECONDS * (ground.known_server_seconds() - before) / (each * PRODUCERS)


class _Drain:
    """One drain: jobs per second, and for a job microseconds of the server, of all consumers
    together and of the dispatcher, and bytes in the oplog."""

    def __init__(self, ground: Ground, fleet: Fleet) -> None:
        count = ground.scale.backlog
        since = Timestamp(int(time.time()), 0)
        with (
            ground.jobs(count) as jobs,
            ground.consumers(fleet, jobs, concurrency=CONCURRENCY) as team,
        ):
            before = ground.known_server_seconds()
            team.go()
            reports = team.wait_until_completed(count)
            server = ground.known_server_seconds() - before
            dispatcher = 0.0
            if fleet.dispatched:
                report = team.ask()[0]
                dispatcher = report["cpu_seconds"] - report["cpu_before"]
            self.oplog_bytes = _oplog_bytes(ground, jobs, since) / count
        done = completed_by(reports)
        self.rate = done / length_of(reports)
        self.server = MICROSECONDS * server / done
        used = sum(report.cpu_seconds - report.cpu_before for report in reports)
        self.consumers = MICROSECONDS * used / done
        self.dispatcher = MICROSECONDS * dispatcher / done


def _oplog_bytes(ground: Ground, jobs: Collection[dict[str, Any]], since: Timestamp) -> int:
    """Return what was written of these jobs."""
    oplog = ground.client.get_database("local").get_collection("oplog.rs")
    rows = oplog.aggregate(
        [
            {"$match": {"ts": {"$gte": since}, "ns": jobs.full_name}},
            {"$group": {"_id": None, "bytes": {"$sum": {"$bsonSize": "$$ROOT"}}}},
        ]
    )
    return sum(row["bytes"] for row in rows)
