"""Everything at once, for as long as one likes: ``STREAMQUEUE_SOAK_SECONDS=28800``."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from drills.cluster import ReplicaSet
from drills.connection import STREAM
from drills.drill import Scale, Stage, drill, pause
from drills.nursery import Child
from drills.servers import (
    CLIENT,
    crew,
    freeze_primary,
    kill_primary,
    lose_majority,
    roll_back,
    shut_primary_down,
    step_primary_down,
    three_members,
)
from drills.streams import take_collection_away
from drills.wires import break_for_a_while
from streamqueue.clock import monotonic

SECONDS = {Scale.SHORT: 15.0, Scale.DEFAULT: 60.0, Scale.LONG: 3600.0}
CROWD = 3
"""Consumers that may be killed; one besides lives from the beginning to the end."""


@drill("soak", faults=(2, 8, 300))
def soak(stage: Stage) -> None:
    """Servers, connections, consumers and collections broken in random order"""
    servers = three_members(stage, proxied=True)
    witness = stage.consumer(client=CLIENT)
    crew(stage, consumers=CROWD)
    started = monotonic()
    seconds = float(os.environ.get("STREAMQUEUE_SOAK_SECONDS", SECONDS[stage.scale]))
    before = _size(witness)
    while monotonic() < started + seconds:
        pause(stage.random.uniform(0.2, 1.5))
        stage.random.choice(FAULTS)(stage, servers)
        stage.short_of("faults")  # says how far it is
        stage.hits["faults"] += 1
        # Replaced while all is well: to start is the one thing that consumers may fail at.
        crowd = stage.keep_crowd(CROWD + 1, client=CLIENT)
        for child in crowd:
            stage.wait_for(lambda child=child: stage.is_ready(child), "a consumer is ready", 60)
    stage.note(
        f"soak: after {monotonic() - started:.0f} s a consumer that lived throughout had "
        f"{_size(witness)}, at first {before}"
    )


def _size(process: Child) -> str:
    """Return how much of the system a process takes."""
    here = Path(f"/proc/{process.pid}")
    [memory] = [line for line in (here / "status").read_text().splitlines() if "VmRSS" in line]
    files = sum(1 for _ in (here / "fd").iterdir())
    return f"{int(memory.split()[1]) // 1024} MB and {files} open files"


def _kill_consumer(stage: Stage, servers: ReplicaSet) -> None:
    stage.random.choice(_mortal(stage)).kill()
    stage.hits["consumer kills"] += 1


def _freeze_consumers(stage: Stage, servers: ReplicaSet) -> None:
    for child in _mortal(stage):
        child.send(signal.SIGSTOP)
    pause(stage.random.uniform(0.5, 3))
    for child in _mortal(stage):
        child.send(signal.SIGCONT)
    stage.hits["consumer freezes"] += 1


def _mortal(stage: Stage) -> list[Child]:
    return [child for child in stage.consumers[1:] if child.alive]


def _cut(stage: Stage, servers: ReplicaSet) -> None:
    before = servers.proxies.counts.cuts.total()
    break_for_a_while(stage, servers.proxies, "put", "claim", "complete")
    stage.hits["connections cut"] += servers.proxies.counts.cuts.total() - before


def _wedge_streams(stage: Stage, servers: ReplicaSet) -> None:
    stage.hits["streams wedged"] += servers.proxies.wedge(app=STREAM)
    pause(3)


def _black_hole(stage: Stage, servers: ReplicaSet) -> None:
    servers.proxies.black_hole()
    stage.hits["black holes"] += 1
    pause(stage.random.uniform(0.5, 4))
    servers.proxies.heal()
    servers.wait_for_primary()
    servers.wait_until_healthy()


def _slow_down(stage: Stage, servers: ReplicaSet) -> None:
    servers.proxies.delay = stage.random.choice([0.03, 0.1])
    pause(stage.random.uniform(1, 4))
    servers.proxies.heal()
    stage.hits["slow times"] += 1
    servers.wait_until_healthy()


def _drop(stage: Stage, servers: ReplicaSet) -> None:
    take_collection_away(stage, "drops")


FAULTS = [
    kill_primary,
    shut_primary_down,
    step_primary_down,
    freeze_primary,
    roll_back,
    lose_majority,
    _kill_consumer,
    _freeze_consumers,
    _cut,
    _wedge_streams,
    _black_hole,
    _slow_down,
    _drop,
]

DRILLS = [soak]
