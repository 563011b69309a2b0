"""A backlog of jobs that do nothing, drained by some consumers.

Ours: from the first handler's start in any process to the last acknowledged complete; the
processes are loaded but open their streams only after the backlog is there. Floor: one process
that reads 100 (or 1,000) whole jobs in the claim order, takes them with one ``update_many`` and
removes them with one ``delete_many``; once more while somebody waits on a change stream, as a
worker would that did not let its stream rest meanwhile.

The processor time of the server, for a job, is what its process used from the start to the end,
where it runs on this machine.

Round trips are all commands of the consumers, and of their dispatcher, but the change stream's
``getMore``, per job.
"""

from __future__ import annotations

from contextlib import ExitStack
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
    Case(Fleet(1), 1000),
    *(Case(Fleet(1), 20, share=0.5), Case(Fleet(1), 10, share=0.3), Case(Fleet(1), 1, share=0.05)),
)
SMALL, LARGE = "batches of 100", "batches of 1,000"
LISTENED = "batches of 1,000, with a stream"
FLOORS = {SMALL: 100, LARGE: 1000, LISTENED: 1000}
"""The bare loops, and how many jobs each takes at a time."""


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain: jobs per second, per cent of the claims that lost, commands per job, and
    microseconds of the server's processor time per job."""

    rate: float
    lost: float = 0.0
    round_trips: float = 0.0
    server: float | None = None


def steps(scale: Scale) -> int:
    return scale.rounds * (len(FLOORS) + len(_cases(scale)))


def _cases(scale: Scale) -> list[Case]:
    return [case for case in CASES if case.fleet.size <= scale.processes]


def measure(ground: Ground) -> Table:
    """Return jobs per second, the server's processor time, lost claims and round trips."""
    cases = _cases(ground.scale)
    floors: dict[str, list[Drained]] = {name: [] for name in FLOORS}
    ours: dict[Case, list[Drained]] = {case: [] for case in cases}
    for _ in range(ground.scale.rounds):
        for name in FLOORS:
            ground.progress.step(f"the floor in {name}")
            floors[name].append(_drain_bare(ground, name))
        for case in cases:
            ground.progress.step(case.name)
            ours[case].append(_drain(ground, case))
    table = Table()
    base = [drained.rate for drained in ours[cases[0]]]
    small, large = ([one.rate for one in floors[name]] for name in (SMALL, LARGE))
    for case in cases:
        rates = [drained.rate for drained in ours[case]]
        table.rows.append(Row.against(f"drain, {case.name}", "jobs/s", rates, small))
        if case.fleet.size == 1:
            table.rows.append(Row.against(f"  the same, {LARGE}", "jobs/s", rates, large))
            _append_server(table, ours[case], floors[LARGE])
        else:
            table.rows.append(
                Row.against("  the same", "jobs/s", rates, base, "1 worker, concurrency 100")
            )
        lost = [drained.lost for drained in ours[case]]
        table.rows.append(Row.alone("  lost claims", "%", lost))
        trips = [drained.round_trips for drained in ours[case]]
        table.rows.append(Row.alone("  round trips per job", "", trips))
    listened = [one.rate for one in floors[LISTENED]]
    table.rows.append(Row.floor_alone(f"the floor in {LISTENED}", "jobs/s", listened))
    _append_server(table, [], floors[LISTENED])
    table.notes.append(f"a backlog of {ground.scale.backlog:,} at concurrency 100")
    return table


def _append_server(table: Table, ours: list[Drained], bare: list[Drained]) -> None:
    """Append the server's processor time, where it is known."""
    name, unit = "  server, processor time per job", "us"
    floors = [one.server for one in bare if one.server is not None]
    found = [one.server for one in ours if one.server is not None]
    if len(floors) < len(bare):
        return
    if not ours:
        table.rows.append(Row.floor_alone(name, unit, floors))
    elif len(found) == len(floors):
        table.rows.append(Row.against(name, unit, found, floors))


def _drain_bare(ground: Ground, name: str) -> Drained:
    count = ground.scale.backlog
    with ground.jobs(count) as jobs, ExitStack() as stack:
        if name == LISTENED:
            stack.enter_context(floor.listening(ground.uri, jobs))
        before = ground.server_seconds()
        rate = floor.drain(jobs, FLOORS[name])
        return Drained(rate, server=per_job(before, ground.server_seconds(), count))


def per_job(before: float | None, after: float | None, count: int) -> float | None:
    """Return the server's processor time for a job, in microseconds, where that is known."""
    return None if before is None or after is None else 1e6 * (after - before) / count


def _drain(ground: Ground, case: Case) -> Drained:
    count = max(10, int(ground.scale.backlog * case.share))
    with (
        ground.jobs(count) as jobs,
        ground.consumers(case.fleet, jobs, concurrency=case.concurrency) as team,
    ):
        before = ground.server_seconds()
        team.go()
        reports = team.wait_until_completed(count)
        after = ground.server_seconds()
    return Drained(
        rate=count / length_of(reports),
        lost=100 * _share_lost(reports),
        round_trips=round_trips(reports) / completed_by(reports),
        server=per_job(before, after, count),
    )


def length_of(reports: list[Report]) -> float:
    """Return the seconds from the first handler's start to the last acknowledged complete."""
    starts = [report.first_started_at for report in reports if report.first_started_at is not None]
    ends = [report.last_write_at for report in reports if report.last_write_at is not None]
    if not starts or not ends or max(ends) <= min(starts):
        raise StreamQueueError("the consumers completed jobs without having started any")
    return max(ends) - min(starts)


def _share_lost(reports: list[Report]) -> float:
    won = sum(report.won for report in reports)
    lost = sum(report.lost for report in reports)
    return lost / (won + lost)


def round_trips(reports: list[Report]) -> int:
    """Return how many commands they have sent, but for those of the change stream."""
    return sum(
        count
        for report in reports
        for name, count in report.commands.items()
        if name not in NOT_ROUND_TRIPS
    )
