"""A drill about dependencies: diamonds, and one job after thousands, while parents fail, those who
run them are killed, members are cancelled, and streams are cut."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import pymongo
from pymongo.errors import PyMongoError

from drills.connection import STREAM
from drills.drill import Stage, drill, pause
from drills.programs.consumer import QUEUE
from drills.servers import CLIENT
from drills.wires import behind_proxies
from streamqueue import MongoQueue, StreamQueueError

FAMILIES = "drills.programs.families"
MANY = ((100,), (800, 200), (10_000, 10_000))
"""Parents of a job that comes after many, at each scale."""
CROWD = 4
BACKLOG = 300
"""Jobs that have not ended, besides those of the large families, with which nothing is put."""
PATIENCE = 5.0
"""Seconds for a requeue, whatever becomes of its connection."""
SETTLE_SECONDS = 90.0


@drill(
    "dependencies",
    families=(15, 100, 3000),
    kills=(4, 25, 500),
    streams_cut=(3, 25, 500),
    cancels=(1, 20, 500),
    requeues=(0, 5, 100),
)
def dependencies(stage: Stage) -> None:
    """kill -9 of consumers, cancels and cut streams while jobs run that come after others"""
    proxies = behind_proxies(stage).proxies
    stage.say("starting")
    many = MANY[stage.scale]
    large = sum(many)
    puts = stage.other(FAMILIES, many=many, client=CLIENT)
    queue = MongoQueue(stage.jobs, name=QUEUE)
    while any(map(stage.short_of, ("families", "kills", "streams cut", "cancels", "requeues"))):
        crowd = stage.keep_crowd(CROWD, by=_by(stage), client=CLIENT)
        pause(stage.random.uniform(0.2, 0.8))
        if stage.short_of("kills"):
            stage.random.choice(crowd).kill()
            stage.hits["kills"] += 1
        if stage.short_of("streams cut"):
            stage.hits["streams cut"] += proxies.cut(app=STREAM)
        _requeue(stage, queue, at_most=5)
        _count(stage, large)
        with suppress(PyMongoError):
            busy = stage.live() > BACKLOG + large
            puts.send(signal.SIGSTOP if busy else signal.SIGCONT)
    puts.kill()
    stage.keep_crowd(CROWD, client=CLIENT)

    def settled() -> bool:
        """Whether all has ended; what is held by a dead parent is let go by a requeue."""
        _requeue(stage, queue, at_most=1000)
        stage.keep_crowd(CROWD, client=CLIENT)
        return stage.live() == 0

    stage.wait_for(settled, "what comes after others has ended", SETTLE_SECONDS)
    _count(stage, large)
    queue.close()


def _by(stage: Stage) -> str:
    return stage.random.choice(["worker", "worker", "queue"])


def _requeue(stage: Stage, queue: MongoQueue, at_most: int) -> None:
    """Make dead parents ready again that hold a dependent, as an operator would."""
    with suppress(PyMongoError):
        held: dict[str, Any] = {"state": "waiting", "waits_for.failed": True}
        found = stage.jobs.distinct("waits_for.parents", held)
        for job in found[:at_most]:
            # As any dead one it may be another's by now: a witness that was requeued.
            with suppress(StreamQueueError), pymongo.timeout(PATIENCE):
                with stage.history.call("requeue", job=str(job)):
                    queue.requeue(job)
                stage.hits["requeues"] += 1


def _count(stage: Stage, large: int) -> None:
    """Count what the histories tell: families by their members, of which each has about five."""
    lines = [path.read_bytes() for path in stage.directory.glob("families-*.jsonl")]
    invoked = sum(each.count(b'{"what":"put","is":"invoked"') for each in lines)
    stage.hits["families"] = max(0, invoked - large) // 5
    stage.hits["cancels"] = sum(each.count(b'"told":"') for each in lines)


DRILLS = [dependencies]
