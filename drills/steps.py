"""Drills about steps: jobs of several steps, whose processes are killed at every boundary of one,
by themselves, or whose primary steps down."""

from __future__ import annotations

import signal
from typing import Any

from drills import step_laws
from drills.checker import LAWS
from drills.drill import Stage, drill, pause
from drills.programs.stepping import DEATHS
from drills.servers import CLIENT, step_primary_down, three_members
from drills.transactions import STEP_LEDGER

CROWD = 4
BACKLOG = 16
STEPS = 5
SETTLE_SECONDS = 180.0
OPEN_SECONDS = 3
"""For how long a server keeps the transaction of a client that was killed; it would be a minute."""
LIFETIME = "transactionLifetimeLimitSeconds"
ALL_LAWS = (*LAWS, *step_laws.LAWS)


def _crowd(stage: Stage, **settings: Any) -> None:
    by = stage.random.choice(["worker", "worker", "queue", "blocking"])
    stage.keep_crowd(CROWD, by=by, ends=[-signal.SIGKILL], **settings)


def _feed(stage: Stage, deaths: float, **settings: Any) -> None:
    payload = {"steps": STEPS, "deaths": deaths}
    stage.feed(
        BACKLOG, deeds={"steps": 1}, payload=payload, seconds=0, max_attempts=1000, **settings
    )


def _short_of(stage: Stage, *others: str) -> bool:
    """Whether any boundary, or one of these, must be hit more often."""
    histories = [path.read_bytes() for path in stage.directory.glob("consumer-*.jsonl")]
    for death in DEATHS:
        stage.hits[death] = sum(each.count(f'"is":"{death}"'.encode()) for each in histories)
    return any(stage.short_of(name) for name in (*DEATHS, *others))


def _settle(stage: Stage, **settings: Any) -> None:
    """Let all jobs be done while processes go on to kill themselves; tell what is in effect."""
    for child in stage.others:
        child.kill()

    def settled() -> bool:
        _crowd(stage, **settings)
        return stage.live() == 0

    stage.wait_for(settled, "all jobs are done", SETTLE_SECONDS)
    for entry in stage.jobs.database[STEP_LEDGER].find():
        stage.history.note("step", state="effect", job=entry["job"], name=entry["name"])


@drill(
    "steps-kills",
    laws=ALL_LAWS,
    dies_unrun=(2, 60, 600),
    dies_unstored=(2, 60, 600),
    dies_uncommitted=(1, 30, 300),
    dies_stored=(2, 60, 600),
)
def steps_kills(stage: Stage) -> None:
    """kill -9 of consumers before a step is run, before it is stored, and when it is"""
    stage.jobs.database.create_collection(STEP_LEDGER)
    admin = stage.client.admin
    before = admin.command({"setParameter": 1, LIFETIME: OPEN_SECONDS})["was"]
    try:
        while _short_of(stage):
            _feed(stage, deaths=0.04)
            _crowd(stage)
            pause(0.1)
        _settle(stage)
    finally:
        admin.command({"setParameter": 1, LIFETIME: before})


@drill(
    "steps-step-downs",
    laws=ALL_LAWS,
    dies_unrun=(1, 10, 100),
    dies_unstored=(1, 10, 100),
    dies_uncommitted=(0, 5, 50),
    dies_stored=(1, 10, 100),
    step_downs=(1, 8, 80),
)
def steps_step_downs(stage: Stage) -> None:
    """the same, while the primary of three steps down again and again"""
    options = ("--setParameter", f"{LIFETIME}={OPEN_SECONDS}")
    servers = three_members(stage, options=options)
    stage.jobs.database.create_collection(STEP_LEDGER)
    while _short_of(stage, "step downs"):
        _feed(stage, deaths=0.02, client=CLIENT)
        _crowd(stage, client=CLIENT)
        pause(stage.random.uniform(0.5, 1.5))
        if stage.short_of("step downs"):
            step_primary_down(stage, servers)
    _settle(stage, client=CLIENT)


DRILLS = [steps_kills, steps_step_downs]
