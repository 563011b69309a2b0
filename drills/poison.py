"""Jobs that end their consumer, again and again: they must end themselves, and stop nobody else."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Mapping

from drills.drill import Stage, drill
from drills.programs.consumer import EXIT_CODE

ATTEMPTS = 3
LEASE = 0.6
MEMORY = 256
"""Megabytes a consumer may take."""
CROWD = 3
OTHERS = 20
"""Ordinary jobs for each poisonous one of a kind."""


@drill("poison", kills=(1, 10, 100), exits=(1, 10, 100), memory_hogs=(1, 10, 100))
def poison(stage: Stage) -> None:
    """jobs that kill -9 their process, exit from it, or take all its memory, in every attempt"""
    kinds = {"kill": "kills", "exit": "exits", "memory": "memory hogs"}
    _poison(stage, kinds, [-signal.SIGKILL, EXIT_CODE])


@drill("leaks", leaks=(1, 10, 100))
def leaks(stage: Stage) -> None:
    """jobs that leave their process without memory: it may end as it likes, but must not stay"""
    _poison(stage, {"leak": "leaks"}, range(1, 256))


def _poison(stage: Stage, kinds: Mapping[str, str], ends: Iterable[int]) -> None:
    each = stage.wanted(next(iter(kinds.values())))
    producers = [
        stage.producer(
            jobs=each,
            deeds={kind: 1},
            payload={"times": ATTEMPTS + 1},
            max_attempts=ATTEMPTS,
            pause=0.2,
            tasks=1,
        )
        for kind in kinds
    ]
    producers.append(stage.producer(jobs=OTHERS * each, max_attempts=100, tasks=1, pause=0.02))

    def over() -> bool:
        stage.keep_crowd(CROWD, ends=ends, lease=LEASE, memory=MEMORY)
        return not any(child.alive for child in producers) and stage.live() == 0

    stage.wait_for(over, "an end of all poison", 30 + 6 * each)
    buried = Counter(
        job["payload"]["does"] for job in stage.jobs.find({"state": "dead"}, {"payload.does": 1})
    )
    for kind, hit in kinds.items():
        stage.hits[hit] = buried[kind]
    unharmed = {"payload.does": {"$nin": list(kinds)}, "state": "dead"}
    assert not stage.jobs.count_documents(unharmed), "poison took other jobs with it"


DRILLS = [poison, leaks]
