"""What a claim costs when many jobs wait behind it, or many that are not due.

A worker (concurrency 100) drains jobs from the head of a deep queue and is stopped again. The cost
of a claim is the time of all its reads and updates (those the driver reports for ``find``,
``update`` and ``findAndModify``), per job won; the base is the shallowest queue of the same round.
Depths are topped up between rounds, so the head moves on as it does in life.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .fleet import Fleet
from .ground import fill
from .report import Row, Table

if TYPE_CHECKING:
    from pymongo.synchronous.collection import Collection

    from .ground import Ground
    from .process import Team
    from .scale import Scale

CLAIMING = ("find", "update", "findAndModify")
CONCURRENCY = 100
A_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Head:
    """What it took to drain the head: milliseconds of claiming per job, and jobs per second."""

    claim: float
    rate: float


def steps(scale: Scale) -> int:
    return (1 + scale.rounds) * (len(scale.depths) + 1)


def measure(ground: Ground) -> Table:
    """Return the milliseconds of claiming per job, and jobs per second."""
    scale = ground.scale
    found: dict[str, list[Head]] = {}
    with ExitStack() as stack:
        queues: dict[str, tuple[int, Collection[dict[str, Any]]]] = {}
        for depth in scale.depths:
            ground.progress.step(f"putting {depth:,} jobs")
            queues[f"{depth:,} waiting"] = (depth, stack.enter_context(ground.jobs(depth)))
        ground.progress.step(f"putting {scale.delayed:,} delayed jobs")
        delayed = stack.enter_context(ground.jobs(scale.depths[0]))
        fill(delayed, scale.delayed, later=A_DAY)
        queues[f"{scale.delayed:,} delayed"] = (scale.depths[0], delayed)
        for _ in range(scale.rounds):
            for name, (depth, jobs) in queues.items():
                ground.progress.step(name)
                found.setdefault(name, []).append(_drain_head(ground, jobs, depth))
    table = Table()
    base_name = next(iter(queues))
    base = found[base_name]
    for name, heads in found.items():
        for what, unit, ours, bases in (
            ("claim", "ms/job", [h.claim for h in heads], [h.claim for h in base]),
            ("drain from the head", "jobs/s", [h.rate for h in heads], [h.rate for h in base]),
        ):
            line = f"{what}, {name}"
            table.rows.append(
                Row.alone(line, unit, ours)
                if heads is base
                else Row.against(line, unit, ours, bases, base_name)
            )
    table.notes.append(f"{scale.head:,} jobs from the head a round, at concurrency {CONCURRENCY}")
    return table


def _drain_head(ground: Ground, jobs: Collection[dict[str, Any]], depth: int) -> Head:
    head = ground.scale.head
    waiting = jobs.count_documents({"state": "ready"})
    # Twice the head: there must be something left while the last report is on its way.
    total = max(waiting, depth + 2 * head)
    fill(jobs, total - waiting)
    with ground.consumers(Fleet(1), jobs, concurrency=CONCURRENCY) as team:
        team.go()
        return _watch(team, head, total)


def _watch(team: Team, head: int, total: int) -> Head:
    """Measure from the first quarter on: a worker's first commands are about other things."""
    (first,) = team.wait_until_completed(head // 4)
    (last,) = team.wait_until_completed(min(total, first.completed + head))
    if first.completed == total:  # done before the first report, so that is all there is
        seconds = (last.last_write_at or last.at) - (last.first_started_at or 0.0)
        spent = sum(last.command_seconds.get(name, 0) for name in CLAIMING)
        return Head(claim=1000 * spent / max(1, last.won), rate=total / seconds)
    spent = sum(
        last.command_seconds.get(name, 0) - first.command_seconds.get(name, 0) for name in CLAIMING
    )
    return Head(
        claim=1000 * spent / max(1, last.won - first.won),
        rate=(last.completed - first.completed) / (last.at - first.at),
    )
