"""Idle pick-up: how long after a put its handler starts, when everybody is asleep.

Lone jobs at random moments, each put after the one before has started. Ours: from before ``put``
(blocking, in another process) to the first line of the handler. Floor: from before a bare
``insert_one`` to the reply to one compare-and-set by ``_id``, made by one process at the event of
a raw change stream. Two unrecorded jobs come first.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from ..queue.blocking import MongoQueue
from . import fleet, floor
from .process import pause
from .report import Row, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .fleet import Fleet
    from .ground import Ground
    from .process import Team
    from .scale import Scale

FLEETS = fleet.of(1, 4, 16)
WARM_UP = 5
QUANTILES = {"p50": 0.50, "p99": 0.99}


def steps(scale: Scale) -> int:
    return scale.rounds * (1 + len(fleet.allowed(FLEETS, scale)))


def measure(ground: Ground) -> Table:
    """Return p50 and p99 in milliseconds."""
    fleets = fleet.allowed(FLEETS, ground.scale)
    floors: list[dict[str, float]] = []
    events: list[dict[str, float]] = []
    ours: dict[Fleet, list[dict[str, float]]] = {consumers: [] for consumers in fleets}
    for _ in range(ground.scale.rounds):
        ground.progress.step("the floor")
        started, seen = of_floor(ground)
        floors.append(started)
        events.append(seen)
        for consumers in fleets:
            ground.progress.step(f"{consumers}, idle")
            ours[consumers].append(_ours(ground, consumers))
    table = Table()
    for consumers in fleets:
        for quantile in QUANTILES:
            mine = [waits[quantile] for waits in ours[consumers]]
            bare = [waits[quantile] for waits in floors]
            table.rows.append(
                Row.against(f"idle pick-up, {consumers}, {quantile}", "ms", mine, bare)
            )
    for quantile in QUANTILES:
        # Not ours, but what the floor is made of.
        bare = [waits[quantile] for waits in events]
        table.rows.append(Row.floor_alone(f"bare insert to its event, {quantile}", "ms", bare))
    table.notes.append(
        f"{ground.scale.lone_jobs} lone jobs a round; the floor is one process in every line"
    )
    return table


def _ours(ground: Ground, consumers: Fleet) -> dict[str, float]:
    with ground.jobs() as jobs, ground.consumers(consumers, jobs, handler="announces") as team:
        team.go()
        queue = MongoQueue(jobs, name=floor.QUEUE)
        lines = lone_jobs(
            team, lambda number: queue.put({"number": number}), ground.scale.lone_jobs
        )
        return quantiles([line["at"] - line["put_at"] for line in lines])


def of_floor(ground: Ground) -> tuple[dict[str, float], dict[str, float]]:
    """Return the floor's two quantiles: until its second write is answered, and until the event."""
    with ground.jobs() as jobs, ground.listener(jobs) as team:
        team.go()

        def put(number: int) -> None:
            jobs.insert_one(floor.document({"number": number}))

        lines = lone_jobs(team, put, ground.scale.lone_jobs)
        return (
            quantiles([line["at"] - line["put_at"] for line in lines]),
            quantiles([line["seen_at"] - line["put_at"] for line in lines]),
        )


def lone_jobs(team: Team, put: Callable[[int], object], count: int) -> list[dict[str, Any]]:
    """Put so many jobs, one by one; return what was said at the start of each, and ``put_at``."""
    lines = []
    for number in range(WARM_UP + count):
        pause(random.uniform(0.005, 0.03))
        put_at = time.monotonic()
        put(number)
        line = team.wait_for_start(number)
        if number >= WARM_UP:
            lines.append({**line, "put_at": put_at})
    return lines


def quantiles(waits: list[float]) -> dict[str, float]:
    """Return p50 and p99 of seconds, in milliseconds."""
    waits.sort()
    last = len(waits) - 1
    return {
        name: 1000 * waits[min(last, int(share * len(waits)))] for name, share in QUANTILES.items()
    }
