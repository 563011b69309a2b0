"""A backlog in one queue, in two, in hundreds and in thousands, drained by one worker of them all.

Queues share the slots of a worker, so what waits is read in each, and a claim takes from many. Each
case has as many jobs, in turns over its queues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .drain import length_of
from .fleet import Fleet
from .report import Row, Table

if TYPE_CHECKING:
    from .ground import Ground
    from .scale import Scale

CASES = (1, 2, 200, 2000)
CONCURRENCY = 100


def steps(scale: Scale) -> int:
    return scale.rounds * len(CASES)


def measure(ground: Ground) -> Table:
    """Return jobs per second."""
    rates: dict[int, list[float]] = {count: [] for count in CASES}
    for _ in range(ground.scale.rounds):
        for count in CASES:
            ground.progress.step(f"{count:,} queues" if count > 1 else "one queue")
            rates[count].append(_drain(ground, count))
    table = Table()
    for count, found in rates.items():
        if count == CASES[0]:
            table.rows.append(Row.alone("drain, one queue", "jobs/s", found))
        else:
            name = f"drain, {count:,} queues"
            table.rows.append(Row.against(name, "jobs/s", found, rates[CASES[0]], "one queue"))
    table.notes.append(f"a backlog of {ground.scale.backlog:,}, concurrency {CONCURRENCY}")
    return table


def _drain(ground: Ground, queues: int) -> float:
    waiting = ground.scale.backlog
    with (
        ground.jobs(waiting, queues=queues) as jobs,
        ground.consumers(Fleet(1), jobs, concurrency=CONCURRENCY, queues=queues) as team,
    ):
        team.go()
        return waiting / length_of(team.wait_until_completed(waiting))
