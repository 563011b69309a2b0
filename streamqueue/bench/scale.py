"""How much is measured: every number of the benchmark that the command line can change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..options import whole_number

if TYPE_CHECKING:
    from .capacity.model import Deployment


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a run.

    Attributes:
        rounds: how often everything is repeated.
        few_rounds: the same where a round takes long and has no floor.
        processes: no more consumer processes than this at a time.
        lone_jobs: jobs that come alone, in a round of ``latency``.
        backlog: jobs drained by a worker at concurrency 100.
        puts: jobs put, in a round of ``put``, when many are put at a time.
        lone_puts: the same when each is waited for.
        head: jobs drained from the head of a deep queue, in a round of ``depth``.
        depths: waiting jobs behind the head, in ``depth``; the first one is the base.
        delayed: jobs that are not due, in ``depth``.
        idle_seconds: how long an idle worker is watched.
        load_seconds: how long writes go elsewhere, in ``fanout``.
        soaked: jobs that one worker does, in ``soak``.
        deployment: what ``model`` is asked about.
    """

    rounds: int
    few_rounds: int
    processes: int
    lone_jobs: int
    backlog: int
    puts: int
    lone_puts: int
    head: int
    depths: tuple[int, ...]
    delayed: int
    idle_seconds: float
    load_seconds: float
    soaked: int
    deployment: Deployment | None = None

    @classmethod
    def choose(
        cls,
        *,
        rounds: int | None,
        jobs: int | None,
        big: int | None,
        processes: int,
        full: bool,
        deployment: Deployment | None = None,
    ) -> Scale:
        """Return the quick or the full size, with what was asked for in its place.

        Args:
            rounds: how often everything is repeated; None is 3, with `full` 5.
            jobs: jobs in one measurement; None is each part's own number.
            big: waiting jobs that count as many (``depth``); None is 100,000, with `full`
                1,000,000.
            processes: no more consumer processes than this at a time.
            full: the long version, with a million jobs where that is the question.
            deployment: what the part ``model`` is asked about.

        Raises:
            ConfigurationError: a number outside its range.
        """
        few = 2 if full else 1
        if rounds is not None:
            few = min(few, whole_number(rounds, "rounds", 1, 1000))
        if jobs is not None:
            whole_number(jobs, "jobs", 10, 100_000_000)
        if big is not None:
            whole_number(big, "big", 1, 100_000_000)
        most = big or (1_000_000 if full else 100_000)
        middle = (100_000,) if most > 100_000 else ()
        return cls(
            rounds=rounds or (5 if full else 3),
            few_rounds=few,
            processes=whole_number(processes, "max-processes", 1, 64),
            lone_jobs=min(jobs or 1000, 300 if full else 80),
            backlog=jobs or (50_000 if full else 10_000),
            puts=jobs or (20_000 if full else 5_000),
            lone_puts=min(jobs or 10_000, 2_000 if full else 300),
            head=min(jobs or 2_000, 2_000),
            depths=(min(1_000, most), *middle, most),
            delayed=most,
            idle_seconds=(60.0 if full else 15.0),
            load_seconds=(10.0 if full else 4.0),
            soaked=jobs or (1_000_000 if full else 50_000),
            deployment=deployment,
        )
