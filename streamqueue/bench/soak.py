"""Whether memory stays where it was: many jobs through one worker.

The jobs are put as they are worked off, with at most 20,000 waiting. The resident memory of the
worker at 10,000 jobs (or a fifth of them) is compared with that at the end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..queue.blocking import MongoQueue
from . import floor
from .fleet import Fleet
from .report import Row, Table

if TYPE_CHECKING:
    from .ground import Ground
    from .process import Report
    from .scale import Scale

EARLY = 10_000
CONCURRENCY = 100
BATCH = 1000
MOST_WAITING = 20_000
MEGABYTE = 1_000_000
STEPS = 20


def steps(_: Scale) -> int:
    return STEPS + 1


def measure(ground: Ground) -> Table:
    """Return megabytes, early and at the end, and jobs per second."""
    total = ground.scale.soaked
    early_count = min(EARLY, total // 5)
    with ground.jobs() as jobs, ground.consumers(Fleet(1), jobs, concurrency=CONCURRENCY) as team:
        queue = MongoQueue(jobs, name=floor.QUEUE)
        put = shown = 0
        ground.progress.step(f"0 of {total:,} jobs")

        def feed(completed: int) -> None:
            nonlocal put, shown
            while put < total and put - completed < MOST_WAITING:
                count = min(BATCH, total - put)
                queue.put_many([{"number": number} for number in range(put, put + count)])
                put += count
            while shown < STEPS and completed >= (shown + 1) * total // STEPS:
                shown += 1
                ground.progress.step(f"{completed:,} of {total:,} jobs")

        feed(0)
        team.go()
        begun = time.monotonic()
        (early,) = team.wait_until_completed(early_count, feed)
        (end,) = team.wait_until_completed(total, feed)
        elapsed = time.monotonic() - begun
        while shown < STEPS:
            shown += 1
            ground.progress.step(f"{total:,} of {total:,} jobs")
    table = Table()
    if early.rss_bytes is None or end.rss_bytes is None:
        table.notes.append("memory is only known on Linux")
    else:
        table.rows += [
            Row.alone(f"memory at {early.completed:,} jobs", "MB", [_megabytes(early)]),
            Row.alone(f"memory at {end.completed:,} jobs", "MB", [_megabytes(end)]),
            Row.alone("growth", "MB", [_megabytes(end) - _megabytes(early)]),
        ]
    table.rows.append(Row.alone("while put at the same time", "jobs/s", [total / elapsed]))
    return table


def _megabytes(report: Report) -> float:
    return (report.rss_bytes or 0) / MEGABYTE
