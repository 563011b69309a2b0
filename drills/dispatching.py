"""Drills of the processes of one supervisor, whose dispatcher and consumers are killed and frozen.

They have no safety sweep, and what is left when a drill ends they must do themselves, before other
consumers come for the drain: a job that nobody was told of would be found by those.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bson import ObjectId

from drills.connection import STREAM
from drills.drill import Stage, drill, pause
from drills.history import digest_of, read_histories
from drills.nursery import Child
from drills.programs.consumer import LEASE, QUEUE
from drills.servers import CLIENT
from drills.wires import behind_proxies, break_for_a_while
from streamqueue import MongoQueue
from streamqueue.clock import monotonic

PROGRAM = "drills.programs.fleet"
PROCESSES = 3
BACKLOG = 100
"""Jobs that wait while processes are killed: below it, more are put."""
LEFT_SECONDS = 30.0
"""In which a fleet that nobody disturbs any more must have done all there is."""
SILENCE = 3.0
"""Seconds after which consumers no longer wait for a dispatcher."""


class Fleet:
    """A supervisor that runs, its dispatcher and its consumers."""

    def __init__(self, stage: Stage, **settings: Any) -> None:
        self._stage = stage
        self._frozen: set[int] = set()
        settings = {"processes": PROCESSES, **settings}
        self.supervisor: Child = stage._fork(None, PROGRAM, settings)
        stage.consumers.append(self.supervisor)  # it is stopped as one
        stage.wait_for(lambda: stage.is_ready(self.supervisor), "all processes are ready", 60)

    def _children(self) -> Iterator[int]:
        path = Path(f"/proc/{self.supervisor.pid}/task/{self.supervisor.pid}/children")
        yield from map(int, path.read_text().split())

    def _ready(self, what: str) -> list[int]:
        directory = self._stage.directory
        return [
            pid
            for pid in self._children()
            if any(
                b'"is":"ready"' in path.read_bytes()[:4096]
                for path in directory.glob(f"{what}-{pid}-*.jsonl")
            )
        ]

    @property
    def consumers(self) -> list[int]:
        """The process ids of those that are ready."""
        return self._ready("consumer")

    def until_whole(self) -> None:
        """Wait until all consumers and a dispatcher are ready."""
        self._stage.wait_for(
            lambda: len(self.consumers) == PROCESSES and self._ready("dispatcher"),
            "all are back",
            60,
        )

    def dispatcher(self) -> int:
        """Wait until a dispatcher is ready, and return its process id."""
        pid: int = self._stage.wait_for(
            lambda: self._ready("dispatcher"), "a dispatcher is ready", 60
        )[0]
        return pid

    def consumer(self) -> int:
        """Return the process id of one consumer."""
        return self._stage.random.choice(
            self._stage.wait_for(lambda: self.consumers, "a consumer is ready", 60)
        )

    def kill(self, pid: int) -> None:
        self._signal(pid, signal.SIGKILL)

    def freeze(self, pid: int) -> None:
        self._frozen.add(pid)
        self._signal(pid, signal.SIGSTOP)

    def thaw(self, pid: int) -> None:
        self._frozen.discard(pid)
        self._signal(pid, signal.SIGCONT)

    def _signal(self, pid: int, what: signal.Signals) -> None:
        if pid in self._children():  # nobody else reaps it: it is still ours
            os.kill(pid, what)

    def thaw_all(self) -> None:
        for pid in list(self._frozen):
            self.thaw(pid)

    def cut_stream(self) -> int:
        """Take the cursors of all streams away from their readers; return how many there were."""
        jobs = self._stage.jobs
        look: list[dict[str, Any]] = [
            {"$currentOp": {"allUsers": True, "idleCursors": True}},
            {"$match": {"ns": jobs.full_name, "cursor.tailable": True}},
        ]
        streams = list(jobs.database.client.admin.aggregate(look))
        cursors = [stream["cursor"]["cursorId"] for stream in streams]
        if cursors:
            jobs.database.command("killCursors", jobs.name, cursors=cursors)
        return len(cursors)

    def do_what_is_left(self) -> None:
        """Wait until nothing is left to do, with nobody to help."""
        stage = self._stage
        self.thaw_all()
        for child in stage.others:
            child.kill()
        began = monotonic()
        self.until_whole()
        whole = monotonic()
        stage.wait_for(lambda: stage.live() == 0, "nothing is left to the drain", LEFT_SECONDS)
        done = monotonic()
        log = self.supervisor.log.read_text()
        assert "Traceback" not in log, f"there is a traceback in {self.supervisor.log}"
        moves = Counter(re.findall(r"No dispatcher any more|Listening to the dispatcher", log))
        stage.note(
            f"all were back {whole - began:.1f} s after the last fault, and nothing was left "
            f"{done - began:.1f} s after it; processes left their dispatcher "
            f"{moves['No dispatcher any more']} times and joined one "
            f"{moves['Listening to the dispatcher']} times"
        )


@contextmanager
def fleet(stage: Stage, **settings: Any) -> Iterator[Fleet]:
    """Start a fleet; nobody of it stays frozen."""
    fleet = Fleet(stage, **settings)
    try:
        yield fleet
        fleet.do_what_is_left()
    finally:
        fleet.thaw_all()


@drill(
    "dispatcher-kills",
    dispatcher_kills=(2, 40, 400),
    dispatcher_freezes=(1, 20, 200),
    consumer_kills=(1, 20, 200),
    consumer_freezes=(1, 20, 200),
    streams_cut=(1, 20, 200),
)
def dispatcher_kills(stage: Stage) -> None:
    """kill -9 and SIGSTOP of the dispatcher and consumers of one supervisor, at random moments"""
    with fleet(stage) as crew:
        while short := [hit for hit in FAULTS if stage.short_of(hit)]:
            stage.feed(BACKLOG, seconds=0.03)
            pause(stage.random.uniform(0, 0.8))
            for hit in stage.random.sample(short, k=min(len(short), stage.random.choice([1, 2]))):
                stage.hits[hit] += FAULTS[hit](stage, crew)
            if stage.random.random() < 0.5:
                crew.thaw_all()
            if stage.random.random() < 0.3:
                crew.thaw_all()
                crew.until_whole()


def _kill_dispatcher(stage: Stage, crew: Fleet) -> int:
    crew.kill(crew.dispatcher())
    return 1


def _freeze_dispatcher(stage: Stage, crew: Fleet) -> int:
    pid = crew.dispatcher()
    crew.freeze(pid)
    pause(stage.random.choice([0.1, 1.0, SILENCE, SILENCE + 2]) * stage.random.uniform(0.5, 1.5))
    crew.thaw(pid)
    return 1


def _kill_consumer(stage: Stage, crew: Fleet) -> int:
    crew.kill(crew.consumer())
    return 1


def _freeze_consumer(stage: Stage, crew: Fleet) -> int:
    pid = crew.consumer()
    crew.freeze(pid)
    pause(stage.random.choice([0.05, 0.5, 2 * LEASE]) * stage.random.uniform(0.5, 1.5))
    if stage.random.random() < 0.3:
        crew.kill(pid)
    elif stage.random.random() < 0.5:
        crew.thaw(pid)
    return 1  # else it stays so for a while longer


def _cut_stream(stage: Stage, crew: Fleet) -> int:
    return crew.cut_stream()


FAULTS: dict[str, Callable[[Stage, Fleet], int]] = {
    "dispatcher kills": _kill_dispatcher,
    "dispatcher freezes": _freeze_dispatcher,
    "consumer kills": _kill_consumer,
    "consumer freezes": _freeze_consumer,
    "streams cut": _cut_stream,
}


@drill(
    "dispatcher-cuts",
    connections_cut=(5, 200, 3000),
    streams_cut=(1, 20, 300),
    connections_wedged=(0, 20, 200),
    dispatcher_kills=(0, 10, 100),
)
def dispatcher_cuts(stage: Stage) -> None:
    """Connections of a dispatcher and its members are cut, its stream wedged, it is killed too"""
    proxies = behind_proxies(stage).proxies
    with fleet(stage, client={**CLIENT, "appname": "fleet"}) as crew:
        for _ in range(2):
            stage.producer(jobs=1_000_000, pause=0.08, client=CLIENT)
        while any(stage.short_of(hit) for hit in dispatcher_cuts.hits):
            break_for_a_while(stage, proxies, "put", "claim", "complete")
            stage.hits["streams cut"] += proxies.cut(app=STREAM)
            if stage.random.random() < 0.2:
                stage.hits["streams wedged"] += proxies.wedge(app=STREAM)
            if stage.random.random() < 0.2:
                # What the dispatcher reads what waits with, too.
                stage.hits["connections wedged"] += proxies.wedge(app="fleet")
            if stage.random.random() < 0.3:
                stage.hits["dispatcher kills"] += _kill_dispatcher(stage, crew)
            stage.hits["connections cut"] = proxies.counts.cuts.total()
        proxies.heal()


SOON = 2.0
"""Seconds a lone job may wait, on a machine on which interpreters are started all the time; it
would wait for ever if nobody were told of it."""
LIMITS = {
    "undisturbed": SOON,
    "dispatcher killed": SOON,
    "dispatcher starting": SOON,
    "dispatcher frozen": SOON + SILENCE,
    "dispatcher thawed": SOON + SILENCE,
    "stream cut": SOON,
    "consumer frozen": SOON + LEASE,
    "consumer killed": SOON + LEASE,
    "due": SOON,
    "due, dispatcher killed": SOON,
    "due, dispatcher frozen": SOON + SILENCE,
}
PATIENCE = 20.0
"""Seconds until one that was missed is given up."""
DELAY = 0.3


@drill("dispatched-lone-jobs", lone_jobs=(11, 330, 3300))
def dispatched_lone_jobs(stage: Stage) -> None:
    """one job at a time to processes with a dispatcher, around the ends of both; no safety sweep"""
    put: dict[str, tuple[str, float]] = {}
    queue = MongoQueue(stage.client[stage.database].jobs, name=QUEUE)
    with fleet(stage, concurrency=2) as crew:
        while stage.short_of("lone jobs"):
            kind = list(LIMITS)[stage.hits["lone jobs"] % len(LIMITS)]
            crew.until_whole()
            # From before the consumers have joined the dispatcher to long after.
            pause(stage.random.choice([0, 0.1, 1]) * stage.random.random())
            name, claimable = _put_lone(stage, crew, queue, kind)
            put[name] = (kind, claimable)
            crew.thaw_all()
            stage.hits["lone jobs"] += 1
    _judge(stage, put)


def _put_lone(stage: Stage, crew: Fleet, queue: MongoQueue, kind: str) -> tuple[str, float]:
    """Put a job at such a moment and wait for its end; return its name, and from when on it could
    be claimed."""
    delay = DELAY if "due" in kind else None
    dispatcher, consumer = crew.dispatcher(), crew.consumer()
    if kind == "dispatcher frozen":
        crew.freeze(dispatcher)
    elif kind == "dispatcher thawed":
        crew.freeze(dispatcher)
        pause(stage.random.uniform(0.5, 2) * SILENCE)
        crew.thaw(dispatcher)
        pause(stage.random.choice([0, 0.2]) * stage.random.random())
    elif kind == "consumer frozen":
        crew.freeze(consumer)
    elif kind == "stream cut":
        crew.cut_stream()
    elif kind in ("dispatcher killed", "dispatcher starting"):
        crew.kill(dispatcher)
        if kind == "dispatcher starting":
            stage.wait_for(lambda: crew.dispatcher() != dispatcher, "another dispatcher", 60)
    job_id, payload = ObjectId(), {"does": "complete", "seconds": 0}
    said = {"job": str(job_id), "digest": digest_of(payload), "delay": delay, "queue": queue.name}
    claimable = monotonic() + (delay or 0)
    with stage.history.call("put", **said):
        queue.put(payload, job_id=job_id, delay=delay)
    pause(stage.random.choice([0, 0.003]) * stage.random.random())
    if kind == "consumer killed":
        crew.kill(consumer)
    elif kind == "due, dispatcher killed":
        crew.kill(dispatcher)
    elif kind == "due, dispatcher frozen":
        crew.freeze(dispatcher)
    over = monotonic() + PATIENCE
    while stage.jobs.find_one({"_id": job_id}) is not None and monotonic() < over:
        pause(0.01)
    return str(job_id), claimable


def _judge(stage: Stage, put: dict[str, tuple[str, float]]) -> None:
    started: dict[str, float] = {}
    for line in read_histories(stage.directory):
        if line.said["what"] == "attempt" and line.said["is"] == "started":
            started.setdefault(line.said["job"], line.at)
    missed = 0
    for kind, limit in LIMITS.items():
        waits = sorted(
            started.get(name, claimable + PATIENCE) - claimable
            for name, (its, claimable) in put.items()
            if its == kind
        )
        late = sum(wait > limit for wait in waits)
        missed += late
        if waits:
            stage.note(
                f"{kind}: {len(waits)} jobs, {late} missed, waited "
                f"{1000 * waits[len(waits) // 2]:.0f} ms (p50) to {1000 * waits[-1]:.0f} ms "
                "(longest)"
            )
    assert not missed, f"{missed} jobs were not started in time"


DRILLS = [dispatcher_kills, dispatcher_cuts, dispatched_lone_jobs]
