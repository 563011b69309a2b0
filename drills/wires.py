"""Drills that break connections, not servers: cut, held up, wedged, with the server being well."""

from __future__ import annotations

from typing import Any

from drills.cluster import ReplicaSet
from drills.commands import KINDS, Kind
from drills.connection import STREAM
from drills.drill import Stage, drill, pause
from drills.proxy import Proxies
from drills.servers import CLIENT, crew

LOUD: tuple[Kind, ...] = ("put", "claim", "complete", "read")
"""What goes over the wires all the time; of the rest a larger share is cut."""


def behind_proxies(stage: Stage, members: int = 1, **settings: Any) -> ReplicaSet:
    """Start members behind proxies, and play on them."""
    servers = stage.keep(ReplicaSet(members, proxied=True, **settings))
    stage.play_on(f"{servers.uri}&heartbeatFrequencyMS=1000&connectTimeoutMS=2000")
    return servers


@drill(
    "cuts",
    connections_cut=(5, 200, 3000),
    ambiguous_puts=(1, 50, 500),
    ambiguous_claims=(1, 50, 500),
    ambiguous_completes=(1, 50, 500),
)
def cuts(stage: Stage) -> None:
    """Connections are cut: any, and at puts, claims and completes that nobody learns were done"""
    proxies = behind_proxies(stage).proxies
    # Many, because a client that lost a connection takes up to half a second to come back.
    crew(stage, consumers=4, producers=4)
    kinds: tuple[tuple[Kind, str], ...] = (
        ("put", "ambiguous puts"),
        ("claim", "ambiguous claims"),
        ("complete", "ambiguous completes"),
    )
    while True:
        short: list[Kind] = [kind for kind, hit in kinds if stage.short_of(hit)]
        if not short and not stage.short_of("connections cut"):
            return
        every: list[Kind] = [kind for kind, _ in kinds]
        break_for_a_while(stage, proxies, *(short or every))
        # Only what the driver could not repair by its second try: there the queue has to know.
        for kind, hit in kinds:
            stage.hits[hit] = proxies.counts.told[kind]
        stage.hits["connections cut"] = proxies.counts.cuts.total()
    stage.note(f"cuts: {proxies.counts}")


def break_for_a_while(stage: Stage, proxies: Proxies, *kinds: Kind) -> None:
    """Cut at some of these commands, after or before they were done, and then anything."""
    for kind in kinds:
        proxies.cut_commands(kind, share=0.3, again=True)
    quiet: list[Kind] = [kind for kind in KINDS if kind not in LOUD]
    proxies.cut_commands(*quiet, share=0.1)
    proxies.cut_commands(share=0.02, reply=False)
    pause(stage.random.uniform(0.5, 1.5))
    proxies.heal()
    pause(stage.random.uniform(0.2, 0.5))
    if stage.random.random() < 0.3:
        proxies.cut()


@drill("slow-wires", slow_times=(1, 4, 40))
def slow_wires(stage: Stage) -> None:
    """Every message is held up for a while, up to half the lease"""
    proxies = behind_proxies(stage).proxies
    crew(stage)
    while stage.short_of("slow times"):
        proxies.delay = stage.random.choice([0.03, 0.1, 0.3])
        pause(stage.random.uniform(3, 6))
        proxies.heal()
        stage.hits["slow times"] += 1
        pause(1)


@drill("wedged-streams", streams_wedged=(1, 12, 200))
def wedged_streams(stage: Stage) -> None:
    """The connection of a change stream stays open and passes nothing; its monitors are well"""
    proxies = behind_proxies(stage).proxies
    crew(stage, consumers=2)
    while stage.short_of("streams wedged"):
        pause(stage.random.uniform(1, 2))
        stage.hits["streams wedged"] += proxies.wedge(app=STREAM)
        pause(3)
    # Not healed: they must have been given up.


@drill("wedged-workers", connections_wedged=(1, 60, 600))
def wedged_workers(stage: Stage) -> None:
    """The connections over which consumers claim, renew and complete stay open and pass nothing"""
    proxies = behind_proxies(stage).proxies
    crew(stage, consumers=2, client={**CLIENT, "appname": "consumer"})
    while stage.short_of("connections wedged"):
        pause(stage.random.uniform(1, 2))
        stage.hits["connections wedged"] += proxies.wedge(app="consumer")
        pause(3)
    # Not healed: they must have been given up.


@drill("black-holes", black_holes=(1, 5, 60))
def black_holes(stage: Stage) -> None:
    """All connections are swallowed for seconds, longer than a lease; then they are cut"""
    proxies = behind_proxies(stage).proxies
    crew(stage)
    while stage.short_of("black holes"):
        pause(stage.random.uniform(0.5, 1))
        proxies.black_hole()
        stage.hits["black holes"] += 1
        pause(stage.random.uniform(0.5, 4))
        proxies.heal()
        pause(2)


DRILLS = [cuts, slow_wires, wedged_streams, wedged_workers, black_holes]
