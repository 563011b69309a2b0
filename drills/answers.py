"""Drills about what becomes of jobs: cancelled, waited for and held back while things break."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from drills.connection import STREAM
from drills.drill import Scale, Stage, drill, pause
from drills.servers import CLIENT, crew, kill_primary, step_primary_down, three_members
from drills.wires import behind_proxies, break_for_a_while

CROWD = 4
ENDS_STREAM = "streamqueue-ends"
"""What the client of the stream calls itself that those who wait are woken by."""
ANSWERED_WITHIN = 40.0
"""Seconds in which everybody has an answer when nothing is broken any more."""
ANSWERS: Mapping[str, str] = {
    "pauses": '^{"what":"pause","is":"acknowledged"',
    "told done": '^{"what":"wait".*"told":"done"',
    "told cancelled": '^{"what":"wait".*"told":"cancelled"',
    "cancels told cancelled": '^{"what":"cancel".*"told":"cancelled"',
    "cancels told asked": '^{"what":"cancel".*"told":"asked"',
}
"""By which lines of the histories a drill sees that it has had enough."""


@contextmanager
def open_shop(stage: Stage, **client: Any) -> Iterator[None]:
    """Let customers of both shells in, and somebody who pauses the queue; wait in the end until
    each of them was answered. Whoever is not hangs."""
    long_ones = 0.0 if stage.scale == Scale.SHORT else 0.2
    programs = [
        stage.other("drills.programs.pauser", long_ones=long_ones, client=client),
        stage.other("drills.programs.customers", by="async", client=client),
        stage.other("drills.programs.customers", by="blocking", client=client),
    ]
    yield
    for name in ANSWERS:
        stage.hits.pop(name, None)  # the account has those to come as well
    stage.say("the last answers")
    stage.keep_crowd(CROWD)
    for child in programs:
        child.send(signal.SIGTERM)
    for child in programs:
        stage.wait_for(lambda child=child: not child.alive, "the last answer", ANSWERED_WITHIN)


def short_of(stage: Stage, *hits: str) -> bool:
    """Whether any of these, or of the answers that are wanted, must be hit more often."""
    for name, line in ANSWERS.items():
        pattern = re.compile(line.encode(), re.MULTILINE)
        stage.hits[name] = sum(
            len(pattern.findall(path.read_bytes()))
            for program in ("customers", "pauser")
            for path in stage.directory.glob(f"{program}-*.jsonl")
        )
    return any(stage.short_of(name) for name in (*hits, *ANSWERS))


@drill(
    "answers-kills",
    kills=(10, 120, 1500),
    pauses=(2, 15, 150),
    told_done=(30, 600, 6000),
    told_cancelled=(10, 200, 2000),
    cancels_told_cancelled=(5, 100, 1000),
    cancels_told_asked=(1, 40, 400),
)
def answers_kills(stage: Stage) -> None:
    """kill -9 of consumers whose jobs are waited for and cancelled, in a queue that is paused"""
    with open_shop(stage):
        while short_of(stage, "kills"):
            crowd = stage.keep_crowd(CROWD, by=stage.random.choice(["worker", "queue"]))
            pause(stage.random.uniform(0.1, 0.4))
            stage.random.choice(crowd).kill()
            stage.hits["kills"] += 1


@drill(
    "answers-step-downs",
    step_downs=(1, 6, 60),
    primary_kills=(1, 3, 30),
    pauses=(1, 15, 150),
    told_done=(20, 500, 5000),
    told_cancelled=(5, 200, 2000),
    cancels_told_cancelled=(2, 50, 500),
    cancels_told_asked=(1, 20, 200),
)
def answers_step_downs(stage: Stage) -> None:
    """The primary steps down or is killed while jobs are waited for, cancelled and held back"""
    servers = three_members(stage)
    crew(stage, producers=0)
    with open_shop(stage, **CLIENT):
        while short_of(stage, "step downs", "primary kills"):
            pause(stage.random.uniform(1, 3))
            step_primary_down(stage, servers)
            if stage.short_of("primary kills"):
                pause(stage.random.uniform(0.5, 2))
                kill_primary(stage, servers)


@drill(
    "answers-cuts",
    streams_cut=(5, 60, 600),
    connections_cut=(5, 200, 2000),
    pauses=(1, 15, 150),
    told_done=(20, 400, 4000),
    told_cancelled=(5, 200, 2000),
    cancels_told_cancelled=(2, 80, 800),
    cancels_told_asked=(1, 25, 250),
)
def answers_cuts(stage: Stage) -> None:
    """Streams are cut and wedged, and connections at every command of those who wait and cancel"""
    proxies = behind_proxies(stage).proxies
    crew(stage, producers=0)
    with open_shop(stage, **CLIENT):
        while short_of(stage, "streams cut", "connections cut"):
            for app in (ENDS_STREAM, STREAM):
                if stage.random.random() < 0.2:
                    stage.hits["streams wedged"] += proxies.wedge(app=app)
                else:
                    stage.hits["streams cut"] += proxies.cut(app=app)
            pause(stage.random.uniform(0.2, 1))
            proxies.cut_commands("change", share=0.3)
            break_for_a_while(stage, proxies, "put", "complete")
            stage.hits["connections cut"] = proxies.counts.cuts.total()


DRILLS = [answers_kills, answers_step_downs, answers_cuts]
