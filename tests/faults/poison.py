"""Jobs that end their consumer, again and again: they must end themselves, and stop nobody else."""

from __future__ import annotations

import signal
from collections import Counter

from tests.faults.drill import Stage, drill
from tests.faults.programs.consumer import EXIT_CODE

ENDS = (-signal.SIGKILL, EXIT_CODE)
ATTEMPTS = 3
LEASE = 0.6
POISONS = {"kill": "kills", "exit": "exits", "memory": "memory hogs"}


@drill("poison", kills=(1, 10, 100), exits=(1, 10, 100), memory_hogs=(1, 10, 100))
def poison(stage: Stage) -> None:
    """jobs that kill -9 their process, exit from it, or take all its memory, in every attempt"""
    producers = [
        stage.producer(
            jobs=stage.wanted(hit),
            deeds={deed: 1},
            payload={"times": ATTEMPTS + 1},
            max_attempts=ATTEMPTS,
            pause=0.2,
            tasks=1,
        )
        for deed, hit in POISONS.items()
    ]
    others = 20 * stage.wanted("kills")
    producers.append(stage.producer(jobs=others, max_attempts=100, tasks=1, pause=0.02))

    def over() -> bool:
        stage.keep_crowd(3, ends=ENDS, lease=LEASE, memory=256)
        return not any(child.alive for child in producers) and stage.live() == 0

    stage.wait_for(over, "an end of all poison", 30 + 6 * stage.wanted("kills"))
    buried = Counter(
        job["payload"]["does"] for job in stage.jobs.find({"state": "dead"}, {"payload.does": 1})
    )
    for deed, hit in POISONS.items():
        stage.hits[hit] = buried[deed]
    unharmed = {"payload.does": {"$nin": list(POISONS)}, "state": "dead"}
    assert not stage.jobs.count_documents(unharmed), "poison took other jobs with it"


DRILLS = [poison]
