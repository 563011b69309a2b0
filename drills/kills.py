"""Drills that kill, freeze and block processes."""

from __future__ import annotations

import itertools
import signal
from functools import partial

from drills.drill import Stage, drill, pause
from drills.nursery import Child

CROWD = 5
"""Consumers that live at the same time while they are killed."""
BACKLOG = 200
"""Jobs that wait while consumers are killed: below it, more are put."""


@drill("consumer-kills", kills=(25, 500, 5000), attempts_cut_short=(1, 250, 2500))
def consumer_kills(stage: Stage) -> None:
    """kill -9 of consumers at random moments of their lives, and of every second one at work"""
    while stage.short_of("kills"):
        stage.feed(BACKLOG, seconds=0.04)
        crowd = stage.keep_crowd(CROWD, by=stage.random.choice(["worker", "queue"]))
        pause(stage.random.uniform(0, 0.12))
        if stage.hits["kills"] % 2:  # on a slow machine all others die before their first job
            crowd = stage.wait_for(partial(_at_work, stage, crowd), "a consumer at work")
        stage.random.choice(crowd).kill()
        stage.hits["kills"] += 1


def _at_work(stage: Stage, crowd: list[Child]) -> list[Child]:
    held = stage.jobs.find({"state": "running"}, {"locked_by": 1})
    holders = {job["locked_by"].split(":")[1] for job in held}  # host:pid:random
    return [consumer for consumer in crowd if str(consumer.pid) in holders]


@drill("producer-kills", kills=(10, 100, 1000), puts_of_unknown_outcome=(5, 100, 1000))
def producer_kills(stage: Stage) -> None:
    """kill -9 of producers amid their puts; the next one repeats what was left unknown"""
    stage.consumer()
    predecessor: str | None = None
    while stage.short_of("kills"):
        # Delayed, because a put can be repeated as long as its job is in the queue, and no longer.
        child = stage.producer(jobs=100_000, delay=2.5, predecessor=predecessor, seconds=0.001)
        path = stage.wait_for(lambda child=child: stage.history_of(child), "a history")
        stage.wait_for(lambda path=path: b'"put"' in path.read_bytes(), "a put")
        pause(stage.random.uniform(0, 0.08))
        child.kill()
        child.wait()
        stage.hits["kills"] += 1
        predecessor = str(path)
    last = stage.producer(jobs=0, predecessor=predecessor)
    last.wait()


FREEZERS = 3
"""Consumers that are frozen at the same time."""
ZOMBIE_LEASE = 0.6


@drill("zombies", zombies=(3, 60, 600), complete_refused=(1, 20, 200))
def zombies(stage: Stage) -> None:
    """SIGSTOP of consumers until others have taken their jobs, then SIGCONT"""
    names = itertools.count()
    deeds = {"stubborn": 8, "complete": 4, "progress": 4, "return": 4, "long": 1}
    named: dict[Child, str] = {}
    while stage.short_of("zombies"):
        stage.feed(BACKLOG // 2, deeds=deeds, seconds=0.15)
        for child in [child for child in named if not child.alive]:
            del named[child]
        while len(named) < FREEZERS + 2:
            name = f"consumer {next(names)}"
            by = stage.random.choice(["worker", "queue"])
            named[stage.consumer(by=by, lease=ZOMBIE_LEASE, consumer_id=name)] = name
        victims = stage.random.sample(list(named), FREEZERS)
        holding = {child: _held_by(stage, named[child]) for child in victims}
        for child in victims:
            child.send(signal.SIGSTOP)
        pause(ZOMBIE_LEASE)
        for child in victims:
            stage.wait_for(lambda child=child: not _held_by(stage, named[child]), "the reaper")
            child.send(signal.SIGCONT)
            stage.hits["zombies"] += holding[child] > 0
        pause(stage.random.uniform(0, 0.3))


def _held_by(stage: Stage, name: str) -> int:
    return stage.jobs.count_documents({"state": "running", "locked_by": name})


BLOCKED_LEASE = 0.4


@drill("blocked-loops", complete_refused=(1, 30, 300))
def blocked_loops(stage: Stage) -> None:
    """handlers that block the event loop past the lease, so that nothing is renewed"""
    share = 12  # of all jobs, one in so many blocks, in its first attempt
    jobs = 2 * share * stage.wanted("complete refused")
    producer = stage.producer(
        jobs=jobs,
        deeds={"complete": share - 1},
        seconds=0.002,
    )
    blockers = stage.producer(
        jobs=jobs // share, deeds={"block": 1}, payload={"seconds": 3 * BLOCKED_LEASE}
    )
    stage.keep_crowd(4, lease=BLOCKED_LEASE, concurrency=2)
    stage.wait_for(
        lambda: not producer.alive and not blockers.alive and stage.live() == 0, "the end", 120
    )


DRILLS = [consumer_kills, producer_kills, zombies, blocked_loops]
