"""Drills in which single messages come late: one at a time, and many at once amid all the rest.

A connection that is cut tells its client that something is wrong. A message that is merely late
does not: a claim's reply arrives when its lease is over, a request is carried out when its sender
has given it up and somebody else has the job.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from drills import operators
from drills.cast import APPS, LIFETIME, PATIENT, PATIENT_LEASE, ROLES, SHELLS, Cast
from drills.checker import LAWS, held_by_two, ran_on, started_late
from drills.cluster import ReplicaSet
from drills.commands import Kind
from drills.drill import Scale, Stage, drill, pause
from drills.plans import Direction
from drills.proxy import Proxies
from drills.servers import (
    kill_primary,
    shut_primary_down,
    step_primary_down,
    three_members,
)
from drills.wires import behind_proxies
from streamqueue.clock import monotonic

KINDS: tuple[Kind, ...] = (
    *("put", "claim", "untake", "renew", "complete", "error", "promote", "reap"),
)
DIRECTIONS: tuple[Direction, ...] = ("request", "reply")
BESIDES: tuple[Kind, ...] = (
    *("read", "release", "adopt", "commit", "put in a transaction", "complete in a transaction"),
)
"""What is held back at random too, without a promise of how often."""
OF_LATE_MESSAGES = (*LAWS, held_by_two, ran_on, started_late)

Wanted = tuple[int, int, int]


def _hit(kind: Kind, way: Direction) -> str:
    return f"{kind} {'requests' if way == 'request' else 'replies'} held"


def _hits(wanted: Mapping[Kind, Wanted]) -> dict[str, Wanted]:
    """Return how often each kind must be held back, on each way."""
    return {
        _hit(kind, way).replace(" ", "_"): n for kind, n in wanted.items() for way in DIRECTIONS
    }


# one at a time


LEASE = 1.0
PATIENCE = 1.5
LONGEST = 1.5 * PATIENCE
CELL_SECONDS = 30.0
"""Until a command of some kind by somebody must have come, to be held back."""
CAUSES: Mapping[Kind, str] = {"reap": "leases ended", "promote": "times edited"}
"""What an operator does besides so that there is more of some kind: all race to do it, and one
does."""


@drill(
    "held-one-at-a-time",
    laws=OF_LATE_MESSAGES,
    **_hits(
        {
            **dict.fromkeys(KINDS, (1, len(ROLES), 10 * len(ROLES))),
            "put": (1, len(SHELLS), 10 * len(SHELLS)),
        }
    ),
)
def held_one_at_a_time(stage: Stage) -> None:
    """One request or reply is late at a time, of each kind and everybody: longer than a lease"""
    servers = behind_proxies(stage, options=LIFETIME)
    cast = Cast(stage, servers.proxies, lease=LEASE, patience=PATIENCE, held=LONGEST)
    for _ in range(10 if stage.scale is Scale.LONG else 1):
        cells: list[tuple[str, Kind, Direction]] = [
            (role, kind, way)
            for kind, way in itertools.product(KINDS, DIRECTIONS)
            for role in _roles(stage, kind)
        ]
        missed = [cell for cell in cells if not _hold_one(stage, cast, *cell)]
        for cell in missed:  # others were faster all the time
            _hold_one(stage, cast, *cell)
    cast.end()


def _roles(stage: Stage, kind: Kind) -> list[str]:
    roles = list(SHELLS if kind == "put" else ROLES)
    return [stage.random.choice(roles)] if stage.scale is Scale.SHORT else roles


def _hold_one(stage: Stage, cast: Cast, role: str, kind: Kind, way: Direction) -> bool:
    """Hold one message of a role back, for longer than a lease, and perhaps for longer than its
    sender waits; return whether one came."""
    stage.short_of(_hit(kind, way))
    proxies, apps = cast.proxies, ROLES[role]
    before = proxies.counts.held_back(kind, way, apps)
    seconds = (1.1 * LEASE, stage.random.choice([PATIENCE, LONGEST]))
    plan = proxies.hold_commands(kind, seconds=seconds, reply=way == "reply", times=1, apps=apps)
    # A claim is undone when nobody knows what became of it.
    lost = [proxies.cut_commands("claim", again=True, apps=apps)] if kind == "untake" else []
    over = monotonic() + CELL_SECONDS
    while proxies.holding or (
        proxies.counts.held_back(kind, way, apps) == before and monotonic() < over
    ):
        if proxies.holding:
            while lost:
                proxies.withdraw(lost.pop())
        if kind in CAUSES:
            cast.operator.do(CAUSES[kind])
        cast.meddle()
        pause(0.05)
    for leftover in (plan, *lost):
        proxies.withdraw(leftover)
    came = proxies.counts.held_back(kind, way, apps) > before
    stage.hits[_hit(kind, way)] += came
    return came


# at random


MIXED_LEASE = 2.0
MIXED_PATIENCE = 2.6
SHORTEST, LONGEST_OF_LEASE = 0.02, 1.6
"""For how long messages are held back at random: seconds, and leases."""
COMMITTED = "transactions committed"
"""A hit that only the histories can tell."""


@drill(
    "held-at-random",
    laws=OF_LATE_MESSAGES,
    **_hits(dict.fromkeys(KINDS, (1, 10, 100))),
    **{name.replace(" ", "_"): (1, 10, 100) for name in operators.DEEDS},
    transactions_on_ready_jobs=(1, 10, 100),
    transactions_on_running_jobs=(1, 10, 100),
    transactions_committed=(1, 40, 400),
    nearly_late_claims=(0, 8, 80),
    elections=(0, 6, 60),
)
def held_at_random(stage: Stage) -> None:
    """Many messages are late amid elections, edits by hand and transactions that stay open"""
    if stage.scale is Scale.SHORT:
        servers = behind_proxies(stage, options=LIFETIME)
        lease, patience = LEASE, PATIENCE
    else:
        servers = three_members(stage, proxied=True, options=LIFETIME)
        lease, patience = MIXED_LEASE, MIXED_PATIENCE
    proxies = servers.proxies
    cast = Cast(stage, proxies, lease=lease, patience=patience, held=PATIENT_LEASE)
    _hold_at_random(proxies, (SHORTEST, LONGEST_OF_LEASE * lease))
    if stage.wanted("nearly late claims"):
        cast.add_patient_workers()
    election = monotonic()
    while any(stage.short_of(hit) for hit in held_at_random.hits if hit != COMMITTED):
        cast.meddle()
        if stage.short_of(_hit("reap", "reply")):
            cast.operator.do(CAUSES["reap"])
        pause(stage.random.uniform(0, 0.1))
        for kind, way in itertools.product(KINDS, DIRECTIONS):
            stage.hits[_hit(kind, way)] = proxies.counts.held_back(kind, way, APPS)
        nearly = proxies.counts.held_back("claim", "reply", {PATIENT})
        stage.hits["nearly late claims"] = nearly
        if stage.short_of("elections") and monotonic() > election:
            _elect(stage, servers)
            election = monotonic() + stage.random.uniform(2, 4)
    cast.end()


def _hold_at_random(proxies: Proxies, seconds: tuple[float, float]) -> None:
    shares: Mapping[tuple[Kind, ...], tuple[float, float]] = {
        ("put", "claim", "complete", *BESIDES): (0.07, 0.07),
        ("renew", "promote"): (0.15, 0.15),
        ("error",): (0.3, 0.4),
        # Of all that would reap a job only one does it, and it is told so.
        ("reap",): (0.15, 0.5),
        # There are few: of claims that a lost connection left unknown, and of those that were late.
        ("untake",): (0.5, 1.0),
    }
    for kinds, share in shares.items():
        for way, part in zip(DIRECTIONS, share, strict=True):
            reply = way == "reply"
            proxies.hold_commands(*kinds, share=part, seconds=seconds, reply=reply, apps=APPS)
    proxies.cut_commands("claim", share=0.05, again=True, apps=APPS)
    # What they bring is ours for a moment yet, and the first to be lost of all that is held.
    nearly = (0.86 * PATIENT_LEASE, 0.94 * PATIENT_LEASE)
    proxies.hold_commands("claim", share=0.5, seconds=nearly, reply=True, apps={PATIENT})


def _elect(stage: Stage, servers: ReplicaSet) -> None:
    ways = (step_primary_down, step_primary_down, kill_primary, shut_primary_down)
    stage.random.choice(ways)(stage, servers)
    stage.hits["elections"] += 1


DRILLS = [held_one_at_a_time, held_at_random]
