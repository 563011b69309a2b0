"""What a scrape costs the jobs: idle pick-up while nobody looks, and while somebody looks often.

One consumer of two queues serves its metrics, with those of the process, as the ``worker`` command
does. Lone jobs come in short stretches, by turns with ten scrapes a second and with none, so that a
busy machine is busy for both. Rendering holds the interpreter: a job that comes meanwhile waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..queue.blocking import MongoQueue
from . import floor
from .fleet import Fleet
from .latency import QUANTILES, lone_jobs, quantiles
from .process import Team
from .report import Row, Table
from .scraper import PER_SECOND

if TYPE_CHECKING:
    from .ground import Ground
    from .scale import Scale

GOAL = 1.1
STRETCHES = 10
"""Of each kind, in a round."""
STRETCHED = 5
"""A p99 needs more jobs than `latency` takes for a round: so many times as many."""


def steps(scale: Scale) -> int:
    return scale.rounds


def measure(ground: Ground) -> Table:
    """Return p50 and p99 in milliseconds, without scrapes and with them."""
    quiet: list[dict[str, float]] = []
    scraped: list[dict[str, float]] = []
    scrapes = 0
    for _ in range(ground.scale.rounds):
        ground.progress.step(f"{STRETCHES} stretches without scrapes, {STRETCHES} with")
        without, having, answered = _round(ground)
        quiet.append(quantiles(without))
        scraped.append(quantiles(having))
        scrapes += answered
    table = Table()
    for quantile in QUANTILES:
        base = [waits[quantile] for waits in quiet]
        mine = [waits[quantile] for waits in scraped]
        table.rows.append(Row.alone(f"idle pick-up, not scraped, {quantile}", "ms", base))
        table.rows.append(
            Row.against(
                f"idle pick-up, {PER_SECOND} scrapes/s, {quantile}", "ms", mine, base, "not scraped"
            )
        )
    jobs = STRETCHES * _stretch(ground.scale)
    table.notes.append(
        f"{jobs} lone jobs of each kind a round, {scrapes} scrapes answered; "
        f"the goal is a ratio of at most {GOAL} at p99"
    )
    return table


def _stretch(scale: Scale) -> int:
    return max(1, STRETCHED * scale.lone_jobs // STRETCHES)


def _round(ground: Ground) -> tuple[list[float], list[float], int]:
    waits: dict[bool, list[float]] = {False: [], True: []}
    with (
        ground.jobs() as jobs,
        ground.consumers(Fleet(1), jobs, handler="announces", serve=True) as team,
    ):
        (ready,) = team.go()
        with Team("scraper", Fleet(1), ground.uri, {"address": ready["address"]}) as scraper:
            scraper.go()
            queue = MongoQueue(jobs, name=floor.QUEUE)

            def put(number: int) -> None:
                queue.put({"number": number})

            for stretch in range(2 * STRETCHES):
                scrapes = stretch % 2 == 1
                lines = lone_jobs(team, put, _stretch(ground.scale))
                waits[scrapes] += [line["at"] - line["put_at"] for line in lines]
                (answer,) = scraper.ask()
    return waits[False], waits[True], answer["scrapes"]
