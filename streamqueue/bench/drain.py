"""A backlog of jobs that do nothing, drained by some consumers.

Ours: from the first handler's start in any process to the last acknowledged complete; the
processes are loaded but open their streams only after the backlog is there. Floor: one process
that reads 100 (or 1,000) whole jobs in the claim order, takes them with one ``update_many`` and
removes them with one ``delete_many``.

Round trips are all commands of the consumers, and of their dispatcher, but the change stream's
``getMore``, per job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import StreamQueueError
from . import floor
from .fleet import Fleet
from .fleet import of as fleets
from .process import completed_by
from .report import Row, Table

if TYPE_CHECKING:
    from .ground import Ground
    from .process import Report
    from .scale import Scale

FLOOR_BATCHES = (100, 1000)
NOT_ROUND_TRIPS = {"getMore", "heartbeat"}


@dataclass(frozen=True, slots=True)
class Case:
    """Some consumers, and how many handlers each runs at a time."""

    fleet: Fleet
    concurrency: int
    share: float = 1.0
    """Of the whole backlog: the slower cases get less."""

    @property
    def name(self) -> str:
        return f"{self.fleet}, concurrency {self.concurrency}"


CASES = (
    *(Case(fleet, 100) for fleet in fleets(1, 2, 4, 8)),
    *(Case(Fleet(1), 10, share=0.3), Case(Fleet(1), 1, share=0.05)),
)


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain: jobs per second, per cent of the claims that lost, commands per job."""

    rate: float
    lost: float
    round_trips: float


def steps(scale: Scale) -> int:
    return scale.rounds * (len(FLOOR_BATCHES) + len(_cases(scale)))


def _cases(scale: Scale) -> list[Case]:
    return [case for case in CASES if case.fleet.size <= scale.processes]


def measure(ground: Ground) -> Table:
    """Return jobs per second, lost claims and round trips."""
    cases = _cases(ground.scale)
    floors: dict[int, list[float]] = {batch: [] for batch in FLOOR_BATCHES}
    ours: dict[Case, list[Drained]] = {case: [] for case in cases}
    for _ in range(ground.scale.rounds):
        for batch in FLOOR_BATCHES:
            ground.progress.step(f"the floor in batches of {batch}")
            with ground.jobs(ground.scale.backlog) as jobs:
                floors[batch].append(floor.drain(jobs, batch))
        for case in cases:
            ground.progress.step(case.name)
            ours[case].append(_drain(ground, case))
    table = Table()
    base = [drained.rate for drained in ours[cases[0]]]
    for case in cases:
        rates = [drained.rate for drained in ours[case]]
        table.rows.append(Row.against(f"drain, {case.name}", "jobs/s", rates, floors[100]))
        if case.fleet.size > 1:
            table.rows.append(
                Row.against("  the same", "jobs/s", rates, base, "1 worker, concurrency 100")
            )
        lost = [drained.lost for drained in ours[case]]
        table.rows.append(Row.alone("  lost claims", "%", lost))
        trips = [drained.round_trips for drained in ours[case]]
        table.rows.append(Row.alone("  round trips per job", "", trips))
    name = f"drain, {cases[0].name}, floor in batches of 1,000"
    table.rows.append(Row.against(name, "jobs/s", base, floors[1000]))
    table.notes.append(f"a backlog of {ground.scale.backlog:,} at concurrency 100")
    return table


def _drain(ground: Ground, case: Case) -> Drained:
    count = max(10, int(ground.scale.backlog * case.share))
    with (
        ground.jobs(count) as jobs,
        ground.consumers(case.fleet, jobs, concurrency=case.concurrency) as team,
    ):
        team.go()
        reports = team.wait_until_completed(count)
    return Drained(
        rate=count / _length(reports),
        lost=100 * _share_lost(reports),
        round_trips=_round_trips(reports) / completed_by(reports),
    )


def _length(reports: list[Report]) -> float:
    starts = [report.first_started_at for report in reports if report.first_started_at is not None]
    ends = [report.last_write_at for report in reports if report.last_write_at is not None]
    if not starts or not ends or max(ends) <= min(starts):
        raise StreamQueueError("the consumers completed jobs without having started any")
    return max(ends) - min(starts)


def _share_lost(reports: list[Report]) -> float:
    won = sum(report.won for report in reports)
    lost = sum(report.lost for report in reports)
    return lost / (won + lost)


def _round_trips(reports: list[Report]) -> int:
    return sum(
        count
        for report in reports
        for name, count in report.commands.items()
        if name not in NOT_ROUND_TRIPS
    )
