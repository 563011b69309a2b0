"""Drills that break the servers themselves, three members, while jobs flow."""

from __future__ import annotations

import itertools
from typing import Any

from pymongo import WriteConcern

from drills.cluster import Member, ReplicaSet
from drills.drill import Stage, drill, pause

ELECTION = 1.0
"""Seconds; the server's default of 10 is what ``gaps.py`` measures with."""
QUICK_SHUTDOWN = ("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=500")
"""A member that is told to end waits 15 s by default, for clients to notice."""

CLIENT: dict[str, Any] = {"heartbeatFrequencyMS": 1000, "connectTimeoutMS": 2000}
"""Of consumers and producers. With its defaults a driver takes half a minute to give up a primary
that is frozen: long drills, in which nothing happens."""


def three_members(stage: Stage, **settings: Any) -> ReplicaSet:
    """Start three members, and play on them."""
    stage.say("starting servers")
    options = (*QUICK_SHUTDOWN, *settings.pop("options", ()))
    servers = stage.keep(ReplicaSet(3, election_timeout=ELECTION, options=options, **settings))
    stage.play_on(f"{servers.uri}&heartbeatFrequencyMS=1000&connectTimeoutMS=2000")
    return servers


def crew(stage: Stage, consumers: int = 3, producers: int = 2, **of_consumers: Any) -> None:
    """Start consumers, and producers that put a hundred jobs a second until they are killed.

    Returns once the consumers are ready: to start is the one thing they may fail at (see
    ``Worker.run``).
    """
    kinds = itertools.cycle(["worker", "worker", "queue"])
    started = [
        stage.consumer(**{"client": CLIENT, "by": next(kinds), **of_consumers})
        for _ in range(consumers)
    ]
    for child in started:
        stage.wait_for(lambda child=child: stage.is_ready(child), "a consumer is ready")
    for _ in range(producers):
        stage.producer(jobs=1_000_000, pause=0.08, client=CLIENT)


def _amid_work(stage: Stage) -> None:
    pause(stage.random.uniform(0.2, 1.0))


@drill("primary-kills", primary_kills=(1, 30, 300))
def primary_kills(stage: Stage) -> None:
    """kill -9 of the primary, back once another was elected"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("primary kills"):
        _amid_work(stage)
        kill_primary(stage, servers)


def kill_primary(stage: Stage, servers: ReplicaSet) -> None:
    old = servers.primary()
    old.kill()
    stage.hits["primary kills"] += 1
    servers.wait_for_primary(besides=old)
    old.start()
    servers.wait_until_healthy()


@drill("primary-shutdowns", clean_shutdowns=(1, 10, 100))
def primary_shutdowns(stage: Stage) -> None:
    """Shutdown in order of the primary, as in a rolling upgrade"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("clean shutdowns"):
        _amid_work(stage)
        shut_primary_down(stage, servers)


def shut_primary_down(stage: Stage, servers: ReplicaSet) -> None:
    old = servers.primary()
    old.shut_down()
    stage.hits["clean shutdowns"] += 1
    servers.wait_for_primary(besides=old)
    old.start()
    servers.wait_until_healthy()


@drill("step-downs", step_downs=(1, 10, 100))
def step_downs(stage: Stage) -> None:
    """Step-down of the primary, which stays"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("step downs"):
        _amid_work(stage)
        step_primary_down(stage, servers)


def step_primary_down(stage: Stage, servers: ReplicaSet) -> None:
    old = servers.step_down(seconds=5)
    stage.hits["step downs"] += 1
    servers.wait_for_primary(besides=old)
    servers.wait_until_healthy()


@drill("primary-freezes", primary_freezes=(1, 8, 60))
def primary_freezes(stage: Stage) -> None:
    """SIGSTOP of the primary until another was elected, and SIGCONT: two believe they are it"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("primary freezes"):
        _amid_work(stage)
        freeze_primary(stage, servers)


def freeze_primary(stage: Stage, servers: ReplicaSet) -> None:
    old = servers.primary()
    old.freeze()
    stage.hits["primary freezes"] += 1
    servers.wait_for_primary(besides=old)
    pause(stage.random.uniform(0, 3))
    old.thaw()
    servers.wait_until_healthy()


@drill("rollbacks", rollbacks=(1, 6, 60))
def rollbacks(stage: Stage) -> None:
    """A primary takes writes that nobody replicates; another is elected; what it took is undone"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("rollbacks"):
        _amid_work(stage)
        roll_back(stage, servers)


def roll_back(stage: Stage, servers: ReplicaSet) -> None:
    with servers.isolated_primary() as old:
        before = old.rollback_id()
        _mark(old)
        # What the crew writes now is applied, and not acknowledged.
        pause(stage.random.uniform(0.3, 0.8))
        frozen = stage.random.random() < 0.5
        if frozen:
            old.freeze()
        else:
            old.kill()
    new = servers.wait_for_primary(besides=old)
    _mark(new)
    if frozen:
        old.thaw()
    else:
        old.start()
    servers.wait_until_healthy()
    if old.rollback_id() != before:
        stage.hits["rollbacks"] += 1
        for command, count in old.last_rollback().items():
            stage.hits[f"{command}s undone"] += count


def _mark(member: Member) -> None:
    """Write what only this member has, so that there is something to undo for certain."""
    here = WriteConcern(1, j=True)
    member.client.get_database("drill", write_concern=here).marks.insert_one({"by": member.host})


@drill("failovers", step_downs=(1, 5, 50), primary_kills=(1, 5, 50))
def failovers(stage: Stage) -> None:
    """A step-down, and kill -9 of the one elected after it: one fault before the last is over"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("primary kills"):
        _amid_work(stage)
        old = servers.step_down(seconds=5)
        stage.hits["step downs"] += 1
        servers.wait_for_primary(besides=old)
        kill_primary(stage, servers)


@drill("no-majority", times_without_majority=(1, 3, 30))
def no_majority(stage: Stage) -> None:
    """Two of three members down for a while, or all of them; puts must not succeed falsely"""
    servers = three_members(stage)
    crew(stage)
    while stage.short_of("times without majority"):
        _amid_work(stage)
        lose_majority(stage, servers)


def lose_majority(stage: Stage, servers: ReplicaSet) -> None:
    down = servers.secondaries()
    if stage.random.random() < 0.3:
        down = [*down, servers.primary()]
        stage.hits["times all were killed"] += 1
    for member in down:
        member.kill()
    stage.hits["times without majority"] += 1
    pause(stage.random.uniform(2, 8))
    for member in down:
        member.start()
    servers.wait_for_primary()
    servers.wait_until_healthy()


DRILLS = [
    primary_kills,
    primary_shutdowns,
    step_downs,
    primary_freezes,
    rollbacks,
    failovers,
    no_majority,
]
