"""What rules cost: limits, rates, the order of groups and their turns, on jobs that do nothing.

*Drain*: the same backlog, once without rules, which is the base, and once under each rule that
holds nothing back: as many may run as the worker has slots, a hundred ordered groups, the same by
turns, a rate far above. *Lone jobs* are those of ``latency``, one by one, with an idle worker.

*Behind a blocked group*: the deepest queue of ``depth``, all of it jobs of one ordered group whose
first job runs for ever; how long after its put a job of another group starts. *A free place*: two
processes, a limit of four, and a deep queue: from the last line of a handler, before its job is
completed, until the first line of the one that has its place. As many run as may, so after the
*n*-th end that is start number *n* + 4, in whichever process.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from ..queue.blocking import MongoQueue
from . import floor, latency
from .drain import Drained, length_of, per_job, round_trips
from .fleet import Fleet
from .process import completed_by, pause
from .report import Row, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .ground import Ground
    from .scale import Scale

ONE = Fleet(1)
CONCURRENCY = 20
GROUPS = 100
FAR_ABOVE = 1_000_000
"""Starts in a second."""
PLAIN = "no rules"
RULES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    f"running={CONCURRENCY}": {"running": CONCURRENCY},
    f"{GROUPS} ordered groups": {"ordered": True},
    f"{GROUPS} groups, fair": {"fair": True},
    "a rate far above": {"rate": FAR_ABOVE},
}
LONE: dict[str, dict[str, Any]] = {
    PLAIN: {},
    f"running={CONCURRENCY}": {"running": CONCURRENCY},
    "a rate far above": {"rate": FAR_ABOVE},
}
SHARE = 0.1
"""Of the backlog that is drained elsewhere."""
PLACES = 4
HOLD = 0.02
"""Seconds that each job has one of the places."""
DEEP = 2
"""What waits for the places, in backlogs."""
BEHIND = 20
"""Jobs of other groups that are put behind a blocked one, each held by a slot of its worker."""


def steps(scale: Scale) -> int:
    return scale.few_rounds * (len(RULES) + len(LONE) + 2)


def measure(ground: Ground) -> Table:
    """Return jobs per second, what a job costs, and milliseconds until a job starts."""
    scale = ground.scale
    drained: dict[str, list[Drained]] = {name: [] for name in RULES}
    lone: dict[str, list[dict[str, float]]] = {name: [] for name in LONE}
    behind: list[dict[str, float]] = []
    free: list[dict[str, float]] = []
    for _ in range(scale.few_rounds):
        for name, rules in RULES.items():
            ground.progress.step(f"drain, {name}")
            drained[name].append(_drain(ground, rules))
        for name, rules in LONE.items():
            ground.progress.step(f"lone jobs, {name}")
            lone[name].append(_lone_jobs(ground, rules))
        ground.progress.step(f"{scale.depths[-1]:,} jobs of a blocked group")
        behind.append(latency.quantiles(_behind_a_blocked_group(ground)))
        ground.progress.step(f"{_waiting(scale):,} jobs for {PLACES} places")
        free.append(latency.quantiles(_free_places(ground)))
    table = Table()
    for name, found in drained.items():
        _append_drain(table, name, found, drained[PLAIN])
    for quantile in latency.QUANTILES:
        base = [waits[quantile] for waits in lone[PLAIN]]
        for name, rounds in lone.items():
            mine = [waits[quantile] for waits in rounds]
            title = f"idle pick-up, {name}, {quantile}"
            table.rows.append(_against(title, "ms", mine, base, is_base=name == PLAIN))
    for title, quantiles in (
        (f"behind {scale.depths[-1]:,} of a blocked group", behind),
        (f"a free place of {PLACES}, {_waiting(scale):,} waiting", free),
    ):
        for quantile in latency.QUANTILES:
            waits = [each[quantile] for each in quantiles]
            table.rows.append(Row.alone(f"{title}, {quantile}", "ms", waits))
    table.notes.append(
        f"a backlog of {_backlog(scale):,}, 1 worker at concurrency {CONCURRENCY}; "
        f"{scale.lone_jobs} lone jobs a round"
    )
    return table


def _append_drain(table: Table, name: str, found: list[Drained], base: list[Drained]) -> None:
    is_base = name == PLAIN
    rates = [one.rate for one in found]
    table.rows.append(
        _against(f"drain, {name}", "jobs/s", rates, [one.rate for one in base], is_base=is_base)
    )
    trips = [one.round_trips for one in found]
    table.rows.append(Row.alone("  round trips per job", "", trips))
    server, plain = (
        [one.server for one in some if one.server is not None] for some in (found, base)
    )
    if len(server) == len(plain) == len(found):
        title = "  server, processor time per job"
        table.rows.append(_against(title, "us", server, plain, is_base=is_base))


def _against(
    title: str, unit: str, mine: Sequence[float], base: Sequence[float], *, is_base: bool
) -> Row:
    if is_base:
        return Row.alone(title, unit, mine)
    return Row.against(title, unit, mine, base, PLAIN)


def _backlog(scale: Scale) -> int:
    return max(10, int(scale.backlog * SHARE))


def _waiting(scale: Scale) -> int:
    return max(DEEP * scale.backlog, _ended(scale) + 2 * PLACES)


def _ended(scale: Scale) -> int:
    """Return how many jobs have a place and leave it again."""
    return latency.WARM_UP + scale.lone_jobs


def _drain(ground: Ground, rules: dict[str, Any]) -> Drained:
    count = _backlog(ground.scale)
    groups = GROUPS if rules.keys() & {"ordered", "fair"} else 0
    with (
        ground.jobs(count, groups=groups) as jobs,
        ground.consumers(ONE, jobs, concurrency=CONCURRENCY, rules=rules) as team,
    ):
        before = ground.server_seconds()
        team.go()
        reports = team.wait_until_completed(count)
        after = ground.server_seconds()
    return Drained(
        rate=count / length_of(reports),
        round_trips=round_trips(reports) / completed_by(reports),
        server=per_job(before, after, count),
    )


def _lone_jobs(ground: Ground, rules: dict[str, Any]) -> dict[str, float]:
    with (
        ground.jobs() as jobs,
        ground.consumers(ONE, jobs, handler="announces", rules=rules) as team,
        MongoQueue(jobs, name=floor.QUEUE) as queue,
    ):
        team.go()

        def put(number: int) -> None:
            queue.put({"number": number})

        lines = latency.lone_jobs(team, put, ground.scale.lone_jobs)
        return latency.quantiles([line["at"] - line["put_at"] for line in lines])


def _behind_a_blocked_group(ground: Ground) -> list[float]:
    depth, waits = ground.scale.depths[-1], []
    rules = {"ordered": True}
    with (
        ground.jobs(depth, groups=1) as jobs,
        ground.consumers(
            ONE, jobs, concurrency=BEHIND + latency.WARM_UP + 1, handler="waits", rules=rules
        ) as team,
        MongoQueue(jobs, name=floor.QUEUE) as queue,
    ):
        team.go()
        team.wait_for_start(0)
        for number in range(depth, depth + latency.WARM_UP + BEHIND):
            pause(random.uniform(0.005, 0.03))
            put_at = time.monotonic()
            queue.put({"number": number}, group=f"other-{number}")
            line = team.wait_for_start(number)
            if number >= depth + latency.WARM_UP:
                waits.append(line["at"] - put_at)
    return waits


def _free_places(ground: Ground) -> list[float]:
    ended = _ended(ground.scale)
    with (
        ground.jobs(_waiting(ground.scale)) as jobs,
        ground.consumers(
            Fleet(min(2, ground.scale.processes)),
            jobs,
            handler="holds",
            hold=HOLD,
            rules={"running": PLACES},
        ) as team,
    ):
        team.go()
        # Some more: what two processes say does not come quite in the order in which it was said.
        lines = team.next_lines(2 * (ended + PLACES))
    starts = sorted(line["at"] for line in lines if line["what"] == "started")
    ends = sorted(line["at"] for line in lines if line["what"] == "ended")
    waits = [start - end for end, start in zip(ends[:ended], starts[PLACES:], strict=False)]
    return waits[latency.WARM_UP :]
