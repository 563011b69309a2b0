"""What idle processes cost the server while others write: every open stream reads the whole oplog.

300 writes a second (w:1) go to another collection while 0, 1, 4 and 16 idle workers exist, separate
or with a dispatcher. The processor time of mongod is read from ``/proc``, so only for the local
replica set on Linux.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pymongo import WriteConcern

from . import fleet
from .fleet import Fleet
from .process import pause
from .report import Row, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .ground import Ground
    from .scale import Scale

FLEETS = (Fleet(0), *fleet.of(1, 4, 16))
WRITES_PER_SECOND = 300
SETTLE_SECONDS = 0.5


def steps(scale: Scale) -> int:
    return scale.few_rounds * len(fleet.allowed(FLEETS, scale))


def measure(ground: Ground) -> Table:
    """Return per cent of one processor: mongod's, and a consumer's."""
    table = Table()
    if ground.server_seconds() is None:
        ground.progress.step("skipped")
        table.notes.append("skipped: mongod's processor time is read from /proc of a local server")
        return table
    fleets = fleet.allowed(FLEETS, ground.scale)
    used: dict[Fleet, list[Mapping[str, float]]] = {consumers: [] for consumers in fleets}
    for _ in range(ground.scale.few_rounds):
        for consumers in fleets:
            ground.progress.step(f"{consumers}, idle")
            used[consumers].append(_measure(ground, consumers))
    base = [figures["mongod"] for figures in used[FLEETS[0]]]
    for consumers in fleets:
        mongod = [figures["mongod"] for figures in used[consumers]]
        if consumers.size:
            name = f"mongod, {consumers}, idle"
            table.rows.append(Row.against(name, "% of one", mongod, base, "none"))
            each = [figures["consumer"] for figures in used[consumers]]
            table.rows.append(Row.alone("  each process", "% of one", each))
        else:
            table.rows.append(Row.alone("mongod, no workers", "% of one", mongod))
    rates = [figures["writes"] for rounds in used.values() for figures in rounds]
    table.rows.append(Row.alone("writes to another collection", "1/s", rates))
    return table


def _measure(ground: Ground, consumers: Fleet) -> dict[str, float]:
    with ground.jobs() as jobs, ground.consumers(consumers, jobs) as team:
        team.go()
        pause(SETTLE_SECONDS)
        before, server_before, begun = (
            team.reports(),
            ground.known_server_seconds(),
            time.monotonic(),
        )
        written = _write(ground, ground.scale.load_seconds)
        elapsed = time.monotonic() - begun
        server, after = ground.known_server_seconds() - server_before, team.reports()
    clients = sum(
        last.cpu_seconds - first.cpu_seconds for first, last in zip(before, after, strict=True)
    )
    return {
        "mongod": 100 * server / elapsed,
        "consumer": 100 * clients / elapsed / max(1, len(after)),
        "writes": written / elapsed,
    }


def _write(ground: Ground, length: float) -> int:
    """Write at a steady pace for this many seconds; return how often."""
    other: Any = ground.database.get_collection("other", write_concern=WriteConcern(1))
    begun = time.monotonic()
    written = 0
    while (now := time.monotonic() - begun) < length:
        if written < now * WRITES_PER_SECOND:
            other.insert_one({"number": written, "text": "x" * 200})
            written += 1
        else:
            pause(1 / WRITES_PER_SECOND)
    return written
