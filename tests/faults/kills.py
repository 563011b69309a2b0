"""Drills that kill and freeze processes with real signals."""

from __future__ import annotations

import signal

from tests.faults.drill import Stage, drill, pause
from tests.faults.nursery import Child

CROWD = 5
"""Consumers that live at the same time while they are killed."""
BACKLOG = 200
"""Jobs that wait while consumers are killed: below it, more are put."""


@drill("consumer-kills", kills=(25, 500, 5000))
def consumer_kills(stage: Stage) -> None:
    """kill -9 of consumers at random moments of their lives."""
    crowd: list[Child] = []
    while stage.short_of("kills"):
        _feed(stage)
        crowd = [child for child in crowd if child.alive]
        while len(crowd) < CROWD:
            crowd.append(stage.consumer())
        pause(stage.random.uniform(0, 0.12))
        stage.random.choice(crowd).kill()
        stage.hits["kills"] += 1


def _feed(stage: Stage, **settings: object) -> None:
    """Have a producer put jobs when few are left and nobody is at it."""
    if not any(child.alive for child in stage.others) and stage.live() < BACKLOG:
        stage.producer(jobs=BACKLOG, **settings)


@drill("producer-kills", kills=(10, 100, 1000))
def producer_kills(stage: Stage) -> None:
    """kill -9 of producers amid their puts; the next one repeats what was left unknown."""
    stage.consumer()
    predecessor: str | None = None
    while stage.short_of("kills"):
        # Delayed, because a put can be repeated as long as its job is in the queue, and no longer.
        child = stage.producer(jobs=100_000, delay=3.0, predecessor=predecessor, seconds=0.001)
        path = stage.wait_for(lambda child=child: stage.history_of(child), "a history")
        stage.wait_for(lambda path=path: b'"put"' in path.read_bytes(), "a put")
        pause(stage.random.uniform(0, 0.08))
        child.kill()
        child.wait()
        stage.hits["kills"] += 1
        predecessor = str(path)
    last = stage.producer(jobs=0, predecessor=predecessor)
    last.wait()


@drill("zombies", freezes=(6, 60, 300))
def zombies(stage: Stage) -> None:
    """SIGSTOP of consumers until others have their jobs, then SIGCONT."""
    crowd: list[Child] = []
    while stage.short_of("freezes"):
        _feed(stage)
        crowd = [child for child in crowd if child.alive]
        while len(crowd) < CROWD:
            crowd.append(stage.consumer())
        victim = stage.random.choice(crowd)
        victim.send(signal.SIGSTOP)
        pause(1)
        victim.send(signal.SIGCONT)
        stage.hits["freezes"] += 1


DRILLS = [consumer_kills, producer_kills]
