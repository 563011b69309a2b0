"""Drills that take away what a change stream stands on: oplog, collection, rights; and disk."""

from __future__ import annotations

import os
import signal
from typing import Any

from pymongo import MongoClient, WriteConcern
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from drills.cluster import SMALL_OPLOG, ReplicaSet
from drills.connection import STREAM
from drills.drill import Stage, drill, pause
from drills.proxy import Proxies
from drills.servers import crew
from drills.wires import behind_proxies
from streamqueue.clock import monotonic

TOKEN_TOO_OLD = 286
CURSOR_FELL_OFF = 136


@drill("oplog", errors_286=(1, 8, 80), errors_136=(1, 8, 80))
def oplog(stage: Stage) -> None:
    """The oplog rolls over: resume tokens are too old (286), open cursors fall off (136)"""
    servers = behind_proxies(stage, options=SMALL_OPLOG)
    crew(stage, consumers=2, producers=1)
    while stage.short_of("errors 286") or stage.short_of("errors 136"):
        roll_past_tokens(stage, servers)
        pause(1)
        roll_past_cursors(stage, servers)
        pause(1)
        count_errors(stage, servers.proxies)


def roll_past_tokens(stage: Stage, servers: ReplicaSet) -> None:
    """Roll the oplog over while no stream gets anything."""
    servers.proxies.black_hole(STREAM)
    servers.roll_oplog()
    servers.proxies.heal()


def roll_past_cursors(stage: Stage, servers: ReplicaSet) -> None:
    """Roll the oplog over while consumers are frozen, their cursors open."""
    consumers = [child for child in stage.consumers if child.alive]
    for child in consumers:
        child.send(signal.SIGSTOP)
    pause(0.5)  # until the reads under way have ended, which move the cursors
    servers.roll_oplog()
    for child in consumers:
        child.send(signal.SIGCONT)


def count_errors(stage: Stage, proxies: Proxies) -> None:
    for code in (TOKEN_TOO_OLD, CURSOR_FELL_OFF):
        stage.hits[f"errors {code}"] = proxies.counts.errors[code]


@drill("drops", drops=(1, 8, 80), renames=(1, 8, 80), databases_dropped=(1, 8, 80))
def drops(stage: Stage) -> None:
    """The collection is dropped, renamed away, and dropped with its database, under load"""
    crew(stage)
    while stage.short_of("databases dropped"):
        for hit in ("drops", "renames", "databases dropped"):
            pause(stage.random.uniform(0.3, 1.5))
            take_collection_away(stage, hit)


def take_collection_away(stage: Stage, how: str) -> None:
    """Remove all jobs with their collection; the next put makes it anew."""
    jobs: Collection[Any] = stage.client[stage.database].jobs
    with stage.history.call("clear"):
        if how == "drops":
            jobs.drop()
        elif how == "renames":
            try:
                jobs.rename("jobs_before", dropTarget=True)
            except OperationFailure:
                return  # nobody has put anything since it was dropped
        else:
            stage.client.drop_database(stage.database)
    stage.hits[how] += 1


@drill("rights", revocations=(0, 2, 10))
def rights(stage: Stage) -> None:
    """The consumers' rights are revoked while they work, and given back"""
    stage.say("starting servers")
    servers = stage.keep(ReplicaSet(1, auth=True))
    stage.play_on(servers.uri)
    admin = stage.client.admin
    mine = {"db": stage.database, "collection": "jobs"}
    admin.command(
        "createRole",
        "consumer",
        privileges=[
            {"resource": mine, "actions": ["find", "update", "remove", "insert", "changeStream"]}
        ],
        roles=[],
    )
    admin.command("createUser", "consumer", pwd="drill", roles=["consumer"])
    stage.jobs.create_index("queue")  # so that there is a collection to have rights on
    address = servers.uri.partition("@")[2]
    crew(stage, consumers=2, uri=f"mongodb://consumer:drill@{address}&authSource=admin")
    while stage.short_of("revocations"):
        pause(stage.random.uniform(1, 2))
        admin.command("revokeRolesFromUser", "consumer", roles=["consumer"])
        pause(stage.random.uniform(1, 4))
        admin.command("grantRolesToUser", "consumer", roles=["consumer"])
        stage.hits["revocations"] += 1
        given_back, starts = monotonic(), _starts(stage)
        stage.wait_for(lambda starts=starts: _starts(stage) > starts + 20, "work goes on", 60)
        stage.note(f"rights: work went on {monotonic() - given_back:.1f} s after they were back")


def _starts(stage: Stage) -> int:
    """Return how many attempts were started so far."""
    paths = stage.directory.glob("consumer-*.jsonl")
    return sum(path.read_bytes().count(b'"is":"started","at"') for path in paths)


@drill("full-disk", full_disks=(0, 3, 20))
def full_disk(stage: Stage) -> None:
    """The disk of the only member is full; the server ends; there is room again, and it is back"""
    stage.say("starting servers")
    servers = stage.keep(ReplicaSet(1, disk=400))
    stage.play_on(f"{servers.uri}&heartbeatFrequencyMS=1000&connectTimeoutMS=2000")
    crew(stage)
    [member] = servers.members
    client: MongoClient[Any] = member.client
    noise = client.get_database("drill", write_concern=WriteConcern(1)).noise

    def ends() -> bool:
        if member.ended_by_itself():
            return True
        noise.insert_one({"piece": bytes(1 << 20)})
        return False

    while stage.short_of("full disks"):
        pause(stage.random.uniform(0.5, 2))
        member.fill_disk()
        stage.hits["full disks"] += 1
        stage.wait_for(ends, "the server ends for want of room", 60)
        pause(stage.random.uniform(0.5, 2))
        member.free_disk()
        member.start()
        servers.wait_for_primary()
        noise.drop()


DRILLS = [oplog, drops, rights]
if os.geteuid() == 0:
    DRILLS.append(full_disk)  # nobody else can mount a disk
