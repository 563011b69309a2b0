"""A schedule whose workers and servers are broken: each tick is one job all the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from drills.account import Account, Finding
from drills.checker import completed_twice, overlapping, stale_write, stuck
from drills.drill import Stage, drill, pause
from drills.programs.consumer import QUEUE
from drills.servers import CLIENT, step_primary_down, three_members
from streamqueue import Schedules

PERIOD = timedelta(seconds=1)
SCHEDULE = "drilled"
CROWD = 4
FROZEN_FOR = 8.0
KEPT = 3600.0


def tick_doubled(account: Account) -> Iterator[Finding]:
    """Two jobs are of one tick."""
    seen: dict[tuple[Any, Any], str] = {}
    for job in account.jobs.values():
        document = job.document or {}
        if (tick := document.get("tick")) is not None:
            first = seen.setdefault((document.get("schedule"), tick), job.id)
            if first != job.id:
                yield job, f"job {first} is of the same tick, {tick}"


def tick_missing(account: Account) -> Iterator[Finding]:
    """Between the first and the last tick, one has no job."""
    by_tick: dict[datetime, Any] = {}
    for job in account.jobs.values():
        document = job.document or {}
        if document.get("schedule") == SCHEDULE and "tick" in document:
            by_tick[document["tick"]] = job
    for tick, job in by_tick.items():
        if tick + PERIOD <= max(by_tick) and tick + PERIOD not in by_tick:
            yield job, f"the tick after it, {tick + PERIOD}, has no job"


LAWS = (tick_doubled, tick_missing, completed_twice, overlapping, stale_write, stuck)


@drill(
    "ticks",
    laws=LAWS,
    ticks=(6, 60, 600),
    frozen=(1, 1, 10),
    killed=(1, 1, 10),
)
def ticks(stage: Stage) -> None:
    """a tick a second, by four workers of which one is frozen and one killed, on and on"""
    for child in stage.keep_crowd(CROWD):
        stage.wait_for(lambda child=child: stage.is_ready(child), "a worker")
    schedules = _scheduled(stage)
    each = stage.wanted("ticks") / max(stage.wanted("frozen"), stage.wanted("killed"))
    rounds = 0
    while stage.short_of("ticks"):
        begun = stage.hits["ticks"] >= each * rounds + each / 3
        if begun and stage.short_of("killed"):
            rounds += 1
            frozen, killed = stage.random.sample(stage.keep_crowd(CROWD), 2)
            frozen.send(signal.SIGSTOP)
            stage.hits["frozen"] += 1
            pause(stage.random.uniform(0.2, 1.2))
            killed.kill()
            stage.hits["killed"] += 1
            pause(min(FROZEN_FOR, each / 3))
            frozen.send(signal.SIGCONT)
            stage.keep_crowd(CROWD)
        pause(0.1)
        stage.hits["ticks"] = stage.jobs.count_documents({"schedule": SCHEDULE})
    schedules.pause(SCHEDULE)
    _note_delays(stage)


def _scheduled(stage: Stage) -> Schedules:
    schedules = Schedules(stage.client[stage.database].jobs)
    schedules.add(
        SCHEDULE,
        every=PERIOD,
        queue=QUEUE,
        payload={"does": "complete", "seconds": 0.01},
        catch_up="all",
        keep=KEPT,
    )
    return schedules


def _note_delays(stage: Stage) -> None:
    delays = [
        (job["finished_at"] - job["tick"]).total_seconds()
        for job in stage.jobs.find({"schedule": SCHEDULE, "finished_at": {"$exists": True}})
    ]
    if delays:
        stage.note(f"{len(delays)} ticks, the latest was done {max(delays):.1f} s after its time")


@drill("ticks-step-downs", laws=LAWS, ticks=(10, 60, 600), step_downs=(1, 5, 50))
def ticks_step_downs(stage: Stage) -> None:
    """a tick a second, while the primary of three steps down again and again"""
    servers = three_members(stage)
    for child in [stage.consumer(client=CLIENT) for _ in range(CROWD)]:
        stage.wait_for(lambda child=child: stage.is_ready(child), "a worker")
    schedules = _scheduled(stage)
    while stage.short_of("step downs") or stage.short_of("ticks"):
        pause(stage.random.uniform(1, 4))
        if stage.short_of("step downs"):
            step_primary_down(stage, servers)
        stage.hits["ticks"] = stage.wait_for(
            lambda: stage.jobs.count_documents({"schedule": SCHEDULE}), "ticks"
        )
    schedules.pause(SCHEDULE)
    _note_delays(stage)


DRILLS = [ticks, ticks_step_downs]
