"""Drills about topics: a message comes to every subscriber while things break, once."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

from pymongo.errors import PyMongoError

from drills.drill import Stage, drill, pause
from drills.programs.consumer import QUEUE
from drills.programs.publisher import TOPIC
from drills.servers import CLIENT, step_primary_down, three_members
from streamqueue import Topic

QUEUES = [QUEUE, *(f"{QUEUE}-{number}" for number in range(2, 6))]
"""Those that subscribe. A consumer of one reads of no other, but for those that drain."""
BACKLOG = 200
"""Copies that nobody has read yet, with which those who publish stand still."""
ACKNOWLEDGED = '"is":"acknowledged"'


@drill("topics", messages=(40, 2000, 20_000), kills=(3, 40, 400), step_downs=(1, 3, 30))
def topics(stage: Stage) -> None:
    """kill -9 of those who publish and read, and step-downs of the primary; five subscribers"""
    servers = three_members(stage)
    stage.of_drainers = {"others": QUEUES[1:]}
    for queue in QUEUES:
        Topic(stage.client[stage.database].jobs, TOPIC).subscribe(queue)
    members: dict[tuple[str, str], Any] = {}

    def fill() -> None:
        """Start whoever is missing: a consumer for each queue, a publisher by each shell."""
        for queue in QUEUES:
            if (child := members.get(("consumer", queue))) is None or not child.alive:
                members["consumer", queue] = stage.consumer(queue=queue, client=CLIENT)
        for by in ("async", "blocking"):
            if (child := members.get(("publisher", by))) is None or not child.alive:
                about: dict[str, Any] = {"by": by, "queues": QUEUES, "client": CLIENT}
                members["publisher", by] = stage.other("drills.programs.publisher", **about)

    while any(map(stage.short_of, ("messages", "kills", "step downs"))):
        fill()
        pause(stage.random.uniform(0.3, 1.5))
        if stage.short_of("kills"):
            child = stage.random.choice(list(members.values()))
            child.kill()
            stage.hits["kills"] += 1
        if stage.short_of("step downs") and stage.random.random() < 0.1:
            step_primary_down(stage, servers)
        stage.hits["messages"] = published(stage)
        brake(stage)


def brake(stage: Stage) -> None:
    """Let nobody publish more than can be read: a drain is no drill."""
    with suppress(PyMongoError):  # there is no primary
        many = stage.live() > BACKLOG
        for child in stage.others:
            child.send(signal.SIGSTOP if many else signal.SIGCONT)


def published(stage: Stage) -> int:
    """Return how many messages were published, as the histories have it."""
    lines = sum(
        path.read_bytes().count(ACKNOWLEDGED.encode())
        for path in stage.directory.glob("publisher-*.jsonl")
    )
    return lines // len(QUEUES)


DRILLS = [topics]
