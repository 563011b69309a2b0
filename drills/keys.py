"""Drills about keys: jobs put with keys by several processes, while those who run them are killed
or the primary steps down."""

from __future__ import annotations

from typing import Any

from drills.drill import Stage, drill, pause
from drills.servers import CLIENT, crew, kill_primary, step_primary_down, three_members

KEYED = "drills.programs.keyed"
CROWD = 4
PRODUCERS = 3


def _open(stage: Stage, **settings: Any) -> None:
    for _ in range(PRODUCERS):
        stage.other(KEYED, **settings)


def _short_of(stage: Stage, *hits: str) -> bool:
    """Whether any of these, or of what becomes of puts with a key, must be hit more often."""
    histories = [path.read_bytes() for path in stage.directory.glob("keyed-*.jsonl")]
    stage.hits["keys taken"] = sum(each.count(b'"is":"failed"') for each in histories)
    stage.hits["keys free"] = sum(each.count(b'"is":"acknowledged"') for each in histories)
    stage.hits["keys held back"] += stage.jobs.count_documents({"state": "waiting"})
    return any(stage.short_of(name) for name in (*hits, "keys taken", "keys free"))


@drill(
    "keys-kills",
    kills=(8, 120, 1500),
    keys_taken=(30, 1000, 10_000),
    keys_free=(10, 200, 2000),
    keys_held_back=(1, 10, 100),
)
def keys_kills(stage: Stage) -> None:
    """kill -9 of consumers whose jobs have keys, and of those that wait for them"""
    _open(stage)
    while _short_of(stage, "kills", "keys held back"):
        crowd = stage.keep_crowd(CROWD, by=stage.random.choice(["worker", "queue"]))
        pause(stage.random.uniform(0.1, 0.5))
        stage.random.choice(crowd).kill()
        stage.hits["kills"] += 1
    stage.keep_crowd(CROWD)


@drill(
    "keys-step-downs",
    step_downs=(1, 8, 80),
    primary_kills=(1, 3, 30),
    keys_taken=(10, 300, 3000),
    keys_free=(10, 200, 2000),
)
def keys_step_downs(stage: Stage) -> None:
    """The primary steps down or is killed while jobs with keys are put and run"""
    servers = three_members(stage)
    crew(stage, producers=0)
    _open(stage, client=CLIENT)
    while _short_of(stage, "step downs", "primary kills"):
        pause(stage.random.uniform(1, 3))
        step_primary_down(stage, servers)
        if stage.short_of("primary kills"):
            pause(stage.random.uniform(0.5, 2))
            kill_primary(stage, servers)


DRILLS = [keys_kills, keys_step_downs]
