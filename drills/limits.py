"""Drills of limits, ordered groups and rates: processes of all kinds share a queue with rules, and
are killed, or the rules change, or the primary steps down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from drills.dispatching import Fleet
from drills.drill import Scale, Stage, drill, pause
from drills.history import read_histories
from drills.nursery import Child
from drills.programs.consumer import LEASE, QUEUE, QUICK
from drills.reading import account_of
from drills.servers import CLIENT, step_primary_down, three_members
from streamqueue import MongoQueue, Rate
from streamqueue.clock import monotonic
from streamqueue.protocol.slots import scope_and_number

KINDS = ("worker", "worker", "worker", "queue", "queue", "blocking")
MEMBERS = 2
"""Processes of a supervisor, which are eight with those."""
READY_SECONDS = 60.0
LEFT_SECONDS = 240.0
"""In which all is done at the end of a drill that puts so many jobs and no more."""
REAPED = LEASE + QUICK["reap_interval"] + 1.0
"""Seconds after a kill by which others have what it held; with the time for a slow machine."""
STEADY = {"complete": 50, "return": 10, "error": 10, "raise": 10, "release": 5, "snooze": 5}
"""What jobs do, by weight, that all complete in the end."""


class Crowd:
    """Eight processes that share a queue: workers, some of them with a dispatcher, and queue
    objects of both shells.

    Args:
        rules: what the handlers declare.
        settings: of all of them.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        kinds: tuple[str, ...] = KINDS,
        members: int = MEMBERS,
        rules: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._stage = stage
        self._kinds = kinds
        self._settings = settings
        self._rules: dict[str, Any] = {} if rules is None else {"rules": dict(rules)}
        stage.of_drainers = dict(self._rules)
        self._children: dict[int, Child] = {}
        self.fill()  # the first one is a worker, so that its rules hold before others claim
        self._fleet = None
        if members:
            self._fleet = Fleet(stage, processes=members, **self._rules, **settings)
        self.until_ready()

    def fill(self) -> None:
        """Start whoever is missing. (A supervisor does so by itself.)"""
        for number, kind in enumerate(self._kinds):
            child = self._children.get(number)
            if child is None or not child.alive:
                rules: dict[str, Any] = self._rules if kind == "worker" else {}
                child = self._stage.consumer(by=kind, **rules, **self._settings)
                self._children[number] = child
                if not number:
                    self._until_ready(child)

    def until_ready(self) -> None:
        """Wait until all are."""
        for child in self._children.values():
            self._until_ready(child)

    def _until_ready(self, child: Child) -> None:
        self._stage.wait_for(partial(self._stage.is_ready, child), "a consumer", READY_SECONDS)

    def kill_one(self) -> None:
        """``kill -9`` of any of them, and count it."""
        stage = self._stage
        if self._fleet is not None and stage.random.random() < 0.25:
            self._fleet.kill(self._fleet.consumer())
        else:
            stage.random.choice(list(self._children.values())).kill()
        stage.hits["kills"] += 1


def set_limit(
    stage: Stage,
    *,
    running: Any = ...,
    rate: Rate | None = None,
    per: Any = "queue",
    first: bool = False,
) -> None:
    """Set a limit of the queue, and note it; `first`: nobody is there yet."""
    queue = MongoQueue(stage.client[stage.database].jobs, name=QUEUE)
    said: dict[str, Any] = {"queue": QUEUE, "per": per, "first": first}
    given: dict[str, Any] = {}
    if running is not ...:
        given["running"] = said["running"] = running
    if rate is not None:
        given["rate"] = rate
        said["rate"] = {"count": rate.count, "seconds": rate.seconds, "burst": rate.burst}
    with stage.history.call("limit", **said):
        queue.limit(per=per, **given)


def declare_order(stage: Stage) -> None:
    """Note that the groups of the queue are ordered, as all handlers declare."""
    stage.history.note("order", state="declared", queue=QUEUE)


def slots_taken(stage: Stage) -> set[int]:
    """Return the numbers of the slots of the queue that running jobs have."""
    running = stage.jobs.find({"queue": QUEUE, "state": "running"}, {"slots": 1})
    found = (scope_and_number(slot) for job in running for slot in job.get("slots", ()))
    return {slot[1] for slot in found if slot is not None and slot[0].kind == "q"}


def busy(stage: Stage, since: float, until: float) -> float:
    """Return how many handlers ran on average between two times."""
    account = account_of(read_histories(stage.directory), [])
    spans = [
        min(attempt.over, attempt.certain_until(), until) - max(attempt.started, since)
        for job in account.jobs.values()
        for attempt in job.attempts
    ]
    return sum(span for span in spans if span > 0) / (until - since)


LIMIT = 3
BACKLOG = 40
SECONDS = 0.25
"""How long a job takes where a limit is measured."""
UNDISTURBED = (1.0, 8.0, 20.0)
"""Seconds for which nothing is broken, at each scale."""


def _keep_busy(stage: Stage, backlog: int = BACKLOG, **settings: Any) -> None:
    stage.feed(backlog, payload={"seconds": SECONDS}, deeds=STEADY, **settings)


def _note_use(stage: Stage, running: int, keep_busy: Callable[[], None]) -> None:
    """Measure how much of a limit is used while nothing is broken."""

    def runs() -> bool:
        keep_busy()
        return bool(slots_taken(stage))

    stage.wait_for(runs, "a job runs")
    began, until = monotonic(), monotonic() + UNDISTURBED[stage.scale]
    while monotonic() < until:
        keep_busy()
        pause(0.1)
    share = busy(stage, began, until) / running
    stage.note(f"undisturbed, {share:.0%} of {running} places were used by jobs of {SECONDS} s")


@drill("limits-kills", kills=(4, 20, 120))
def limits_kills(stage: Stage) -> None:
    """kill -9 of eight processes that have a limit of three jobs at once"""
    set_limit(stage, running=LIMIT, first=True)
    _keep_busy(stage)
    crowd = Crowd(stage)
    _note_use(stage, LIMIT, partial(_keep_busy, stage))
    while stage.short_of("kills"):
        _keep_busy(stage)
        crowd.fill()
        pause(stage.random.uniform(0.2, 1.2))
        crowd.kill_one()
    last = monotonic()
    crowd.fill()
    _keep_busy(stage)
    every = set(range(1, LIMIT + 1))
    used: set[int] = set()

    def all_used() -> bool:
        used.update(slots_taken(stage))
        _keep_busy(stage)
        return used == every and len(slots_taken(stage)) == LIMIT

    stage.wait_for(all_used, f"all {LIMIT} places are used again", REAPED)
    stage.note(f"all places were used {monotonic() - last:.1f} s after the last kill")


GROUPS = 50
PER_GROUP = 2


@drill("limits-groups", kills=(2, 12, 100), jobs=(100, 1500, 15_000))
def limits_groups(stage: Stage) -> None:
    """kill -9 of eight processes that may run two jobs of each of fifty groups"""
    set_limit(stage, running=PER_GROUP, per="group", first=True)
    crowd = Crowd(stage, concurrency=12)
    jobs = stage.wanted("jobs")
    stage.producer(jobs=jobs, groups=GROUPS, deeds=STEADY, seconds=0.1)
    _until_done(stage, crowd)
    stage.hits["jobs"] = jobs


def _until_done(stage: Stage, crowd: Crowd) -> None:
    """Kill one now and then, as often as the drill is to, until all that was put is done."""
    producers = list(stage.others)
    deadline = monotonic() + LEFT_SECONDS * (1 + 4 * (stage.scale == Scale.LONG))
    while any(child.alive for child in producers) or stage.live():
        assert monotonic() < deadline, f"{stage.live()} jobs are left"
        crowd.fill()
        pause(stage.random.uniform(0.2, 1.0))
        if stage.short_of("kills"):
            crowd.kill_one()


@drill("ordered-kills", kills=(2, 10, 100), jobs=(200, 10_000, 50_000))
def ordered_kills(stage: Stage) -> None:
    """kill -9 of four processes that run ordered groups whose jobs fail at random"""
    declare_order(stage)
    crowd = Crowd(stage, kinds=("worker", "worker", "queue"), members=1, rules={"ordered": True})
    jobs = stage.wanted("jobs")
    groups = max(10, min(200, jobs // 50))
    deeds = {**STEADY, "retry": 5, "discard": 2}
    began = monotonic()
    stage.producer(jobs=jobs, groups=groups, deeds=deeds, seconds=0.004, max_attempts=50)
    _until_done(stage, crowd)
    stage.hits["jobs"] = jobs
    stage.note(f"{jobs} jobs of {groups} groups took {monotonic() - began:.1f} s")


RATE = Rate(50, 1.0)


@drill("rates", starts=(75, 1200, 6000))
def rates(stage: Stage) -> None:
    """a rate of fifty starts a second, of eight processes"""
    set_limit(stage, rate=RATE, first=True)
    jobs = stage.wanted("starts")
    Crowd(stage)  # before there are jobs: while it starts, the machine is its own
    stage.producer(jobs=jobs, deeds={"complete": 1}, seconds=0).wait()
    stage.wait_for(lambda: stage.live() == 0, "all have started", LEFT_SECONDS * (1 + stage.scale))
    account = account_of(read_histories(stage.directory), [])
    attempts = (attempt for job in account.jobs.values() for attempt in job.attempts)
    starts = sorted(attempt.locked for attempt in attempts if attempt.locked is not None)
    stage.hits["starts"] = len(starts)
    seconds = (starts[-1] - starts[0]) / 1000
    reached = (len(starts) - 1) / seconds
    stage.note(f"{len(starts)} starts in {seconds:.1f} s: {reached:.1f} a second, of {RATE.count}")
    slow = stage.scale > Scale.SHORT and reached < 0.9 * RATE.count
    assert not slow, f"only {reached:.1f} starts a second, of {RATE.count}"


CHANGES = (None, 10, 3, 10, 1)


@drill("limits-change", changes=(5, 15, 150))
def limits_change(stage: Stage) -> None:
    """a limit that is set on a busy queue, raised, lowered and taken away, for eight processes"""
    _keep_busy(stage, 2 * BACKLOG)
    Crowd(stage)
    while stage.short_of("changes"):
        set_limit(stage, running=CHANGES[stage.hits["changes"] % len(CHANGES)])
        stage.hits["changes"] += 1
        until = monotonic() + stage.random.uniform(0.5, 4.5)
        while monotonic() < until:
            _keep_busy(stage, 2 * BACKLOG)
            pause(0.05)
    set_limit(stage, running=10)  # else the drain takes long


@drill("limits-step-downs", step_downs=(1, 6, 60))
def limits_step_downs(stage: Stage) -> None:
    """the primary of three steps down, while ordered groups run, five of their jobs at once"""
    servers = three_members(stage)
    set_limit(stage, running=5, first=True)
    declare_order(stage)
    rules = {"ordered": True}
    Crowd(stage, kinds=("worker", "worker", "queue"), members=0, rules=rules, client=CLIENT)
    stage.producer(jobs=1_000_000, groups=20, deeds=STEADY, seconds=0.02, pause=0.1, client=CLIENT)
    while stage.short_of("step downs"):
        pause(stage.random.uniform(1, 4))
        step_primary_down(stage, servers)


DRILLS = [
    limits_kills,
    limits_groups,
    ordered_kills,
    rates,
    limits_change,
    limits_step_downs,
]
