"""Jobs of a queue with rules, chosen before they are claimed: each with the slots it is to have.

What is held back is not written to. Where groups matter, one that may start nothing must stand
before no other, however much of it waits: then those of other groups are read past it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pymongo.errors import OperationFailure

from ...clock import monotonic
from ...protocol import operations
from ...protocol.document import id_key
from ...protocol.rates import bucket_id
from ...protocol.slots import WHOLE_QUEUE, Limited, limits_of
from ...protocol.stored import text_in
from ..turns import OwnSlots, group_of, group_or_id_of, id_of, ours_first, reach_of
from .head import candidates
from .rates import reserve
from .setting_up import require_index
from .steps import Command, Pause, Read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...protocol.limits import Rate
    from ...protocol.rates import Start
    from ...protocol.slots import Scope, Taken
    from ..ruled import RuledQueue
    from ..state import StoreState
    from .steps import Flow

    Field = Literal["group", "task"]
    Starting = Sequence[tuple[Scope, Rate, Start]]

Job = dict[str, Any]

LEAST_READ = 64
READ_PER_JOB = 4
MOST_READ = 1000
GROUPS_AT_ONCE = 100
"""Groups whose first jobs are read together, at a tenth of a millisecond each."""
MOMENT = 0.01
"""Seconds for which a start that was reserved just now is waited for, so that who does not wait
for jobs gets one which may start at once, but for the clocks."""
LEAST_GROUPS = 16
MOST_PASSED = 2000
"""Groups that are passed over in one read, at the most."""
SNAPSHOT_TRIES = 20
SNAPSHOT_PAUSE = 0.05
"""Seconds between two tries of a read for which the server has no snapshot: it has one as soon as
the majority has the index that was made last."""


class Chosen(NamedTuple):
    """What may be claimed of a queue now.

    Attributes:
        jobs: with their ``slots``, and what else of their claim depends on them.
        held_back: whether jobs wait none of which may be, for a limit or for their group.
        again_at: when more may be, by a rate, as a time of :func:`monotonic`.
    """

    jobs: list[Job]
    held_back: bool
    again_at: float = math.inf


def choose(store: StoreState, queue: str, most: int) -> Flow[Chosen]:
    """Choose up to so many jobs of a queue that has rules, in the order in which they are to be
    claimed, and take slots for them, as far as this process knows of slots.

    Before it is said that others are held back, it is read anew what runs.

    Raises:
        ConfigurationError: an index that its rules need is not there.
    """
    ruled = store.ruled.get(queue)
    if ruled is None:  # its rules were taken away just now
        return Chosen((yield from candidates(store, [queue], most)), False)
    if not ruled.checked:
        yield from require_index(store, "limits", f"a limit of queue {queue}", sure=True)
        if ruled.rules.by_group:
            yield from require_index(store, "group", f"a group of queue {queue}", sure=True)
        if ruled.rules.by_task:
            yield from require_index(store, "task limits", f"a task of queue {queue}", sure=True)
        ruled.checked = True
    starts_at = ruled.starts_at(most)
    if starts_at > monotonic():  # of whichever jobs
        return Chosen([], True, starts_at)
    size = _to_read(most)
    head: list[Job] = yield from candidates(store, [queue], size, ruled=True)
    if not head:
        ruled.late = 0
        return Chosen([], False)
    taken, fresh = ruled.taken, not ruled.rules.by_running
    while True:
        if taken is None:
            asked_at = monotonic()
            running = yield Read(operations.running_jobs([queue]))
            taken, fresh = ruled.were_taken(running, asked_at), True
        choice = _Choice(store, ruled, taken, queue, most)
        yield from choice.choose(head, deep=len(head) == size)
        if choice.late:
            yield from choice.reserve()
            left = choice.again_at() - monotonic()
            if not choice.jobs and 0 < left <= MOMENT:
                yield Pause(left)
                choice.take_late()
        if choice.jobs or choice.late or fresh:
            ruled.late = choice.late_by_queue
            return Chosen(choice.jobs, not choice.jobs, choice.again_at())
        taken = None


def _to_read(most: int) -> int:
    """Return how many of the jobs that wait are read to choose up to so many."""
    return min(MOST_READ, max(LEAST_READ, READ_PER_JOB * most))


def with_room(store: StoreState, queues: Sequence[str]) -> Flow[list[str]]:
    """Return those of some queues, in which something is held back, of which more may start now, as
    far as one read for all of them tells."""
    ruled = {queue: store.ruled[queue] for queue in queues if queue in store.ruled}
    running: dict[str, list[Job]] = {queue: [] for queue in ruled}
    unordered = [queue for queue, each in ruled.items() if not each.rules.ordered]
    if unordered:
        for job in (yield Read(operations.running_jobs(unordered))):
            if job.get("queue") in running:
                running[job["queue"]].append(job)
    return [queue for queue, each in ruled.items() if each.may_start_more(running[queue])]


class _Choice:
    """One choice among what waits, by what is known of what runs."""

    def __init__(
        self, store: StoreState, ruled: RuledQueue, taken: Taken, queue: str, most: int
    ) -> None:
        self._store = store
        self._ruled = ruled
        self._rules = ruled.rules
        self._taken = taken
        self._queue = queue
        self._most = most
        self._turns = turns = store.turns()
        self._among = None if turns is None else OwnSlots(turns, queue).among
        self._seen: set[str] = set()  # groups
        self.jobs: list[Job] = []
        self.late: list[Job] = []  # that only rates hold back
        self._rates: dict[Scope, tuple[Rate, int]] = {}  # by which they do, and how many

    def choose(self, head: Sequence[Job], *, deep: bool) -> Flow[None]:
        """Choose of what comes first in the queue, and of what is behind it if that is not all."""
        if self._is_full():
            return
        waiting = list(head)
        if self._rules.fair and deep:  # a group may hide the others whose turn it is
            waiting += yield from self._others("group", {group_of(job) for job in head})
        yield from self._choose_among(waiting)
        if deep and self._rules.by_group and len(self.jobs) < self._most:
            passed = {group for job in waiting if self._passes(group := group_of(job))}
            yield from self._choose_among((yield from self._others("group", passed)))
        if deep and self._rules.by_task and len(self.jobs) < self._most:
            tasks = {task for job in waiting if self._holds_task(task := text_in(job.get("task")))}
            yield from self._choose_among((yield from self._others("task", tasks)))

    def _is_full(self) -> bool:
        """Whether no job of the queue may start, whatever its task and its group."""
        limits = [
            Limited(WHOLE_QUEUE, rule.running, rule.rate)
            for rule in self._rules.limits
            if rule.for_all
        ]
        return self._taken.is_full(limits)

    def _passes(self, group: str | None) -> bool:
        """Whether a group needs no more looking at: it may start nothing, or its first job was
        looked at."""
        return group is not None and (bool(self._rules.ordered) or self._holds(group))

    def _holds(self, group: str) -> bool:
        """Whether a group may start nothing, whichever of its jobs it is."""
        limits = [each for each in limits_of(self._rules, None, group) if each.scope.of == group]
        return self._may_start_none(limits)

    def _holds_task(self, task: str | None) -> bool:
        """The same of a task, whatever the groups of its jobs."""
        limits = limits_of(self._rules, task, None)
        return self._may_start_none([each for each in limits if each.scope.kind != "q"])

    def _may_start_none(self, limits: Sequence[Limited]) -> bool:
        return self._taken.is_full(limits) or any(each.scope in self._rates for each in limits)

    def _others(self, field: Field, passed: set[str | None]) -> Flow[list[Job]]:
        """Read jobs of other groups, or tasks, than these: of those behind the last that were
        read, by turns."""
        after, names = self._ruled.after, [name for name in passed if name is not None]
        limit = _to_read(self._most)
        found: list[Job] = []
        for begin in dict.fromkeys((after[field], "")):
            command = operations.of_others(field, self._queue, names[:MOST_PASSED], begin, limit)
            found = self._fit((yield Read(command)))
            if found:
                last = text_in(found[-1].get(field)) or ""
                after[field] = last if len(found) == limit else ""
                break
        return sorted(found, key=operations.claim_order_of)

    def _fit(self, found: list[Job]) -> list[Job]:
        store = self._store
        fit = store.left.sift(store.unclaimable.sift(found))
        return [job for job in fit if store.oddness_of(job) is None]

    def _choose_among(self, waiting: Sequence[Job]) -> Flow[None]:
        reach = reach_of(self._rules, self._taken)
        if not self._rules.ordered:
            self._take(self._in_turns(ours_first(self._turns, waiting, reach, id_of)))
            return
        groups: dict[str, Job] = {}
        free: list[Job] = []
        for job in waiting:
            group = group_of(job)
            if group is None:
                free.append(job)
            elif group not in self._seen:
                self._seen.add(group)
                if not self._holds(group):
                    groups[group] = job
        firsts = ours_first(self._turns, list(groups.values()), reach, group_of)
        names = [group for job in firsts if (group := group_of(job)) is not None]
        while names or free:
            many = min(GROUPS_AT_ONCE, max(LEAST_GROUPS, 2 * (self._most - len(self.jobs))))
            part, names = names[:many], names[many:]
            heads = (yield from self._heads(part)) if part else []
            among = sorted([*free, *heads], key=operations.claim_order_of)
            self._take(self._in_turns(ours_first(self._turns, among, reach, group_or_id_of)))
            free = []
            if len(self.jobs) >= self._most:
                return

    def _heads(self, groups: Sequence[str]) -> Flow[list[Job]]:
        """Return the first jobs of these groups, of those that are ready.

        A group whose first job waits, or runs, or whose dead job holds it, has none.
        """
        jobs, strict = self._store.jobs.name, self._rules.ordered == "strict"
        command = operations.heads_of(jobs, self._queue, groups, strict=strict)
        for left in reversed(range(SNAPSHOT_TRIES)):
            try:
                reply = yield Command(command)
                break
            except OperationFailure as error:
                if not left or error.code not in operations.SNAPSHOT_GONE:
                    raise
                yield Pause(SNAPSHOT_PAUSE)
        found = reply["cursor"]["firstBatch"]
        return self._fit([job for job in found if job.get("state") == "ready"])

    def _in_turns(self, waiting: Sequence[Job]) -> Iterable[Job]:
        """Return the jobs as they come or, where that is fair, one of each group by turns."""
        if not self._rules.fair:
            return waiting
        of_group: dict[str | None, deque[Job]] = {}
        for job in waiting:
            of_group.setdefault(group_of(job), deque()).append(job)
        turns = sorted(of_group, key=self._ruled.turn_of)  # stable: else as they come
        ordered: list[Job] = []
        while turns:
            ordered += [of_group[group].popleft() for group in turns]
            turns = [group for group in turns if of_group[group]]
        return ordered

    def _take(self, waiting: Iterable[Job]) -> None:
        chosen = {id_key(job["_id"]) for job in (*self.jobs, *self.late)}
        for job in waiting:
            if len(self.jobs) >= self._most:
                return
            name = id_key(job["_id"])
            if name not in chosen and self._take_one(job):
                chosen.add(name)

    def _take_one(self, job: Job) -> bool:
        """Choose a job if it may start, or would but for a rate; return whether that is so."""
        group = group_of(job)
        limits = limits_of(self._rules, text_in(job.get("task")), group)
        slots = self._taken.take_all(limits, self._among)
        if slots is None:
            return False
        starts = self._starts(limits)
        if starts is None:
            self._taken.give_back(slots)
            self.late.append(job)
            return True
        job["slots"] = slots
        if starts:
            job["starts"] = starts
        self.jobs.append(job)
        if self._rules.fair:
            self._ruled.had_turn(group)
        return True

    def _starts(self, limits: Sequence[Limited]) -> Starting | None:
        """Take a reserved start of each rate; None, and take none, if there is not one of each."""
        starts: list[tuple[Scope, Rate, Start]] = []
        now = monotonic()
        for scope, _, rate in limits:
            if rate is not None:
                start = self._ruled.starts.take(scope.name, rate, now)
                if start is None:
                    _, waiting = self._rates.get(scope, (rate, 0))
                    self._rates[scope] = rate, waiting + 1
                    give_back_starts(self._ruled, starts)
                    return None
                starts.append((scope, rate, start))
        return starts

    def reserve(self) -> Flow[None]:
        """Reserve starts for what only rates hold back, and choose what may start by those that
        are due at once."""
        now, starts = monotonic(), self._ruled.starts
        most = self._most - len(self.jobs)
        wanted: dict[str, tuple[Rate, int]] = {}
        scopes: dict[str, tuple[Scope, Rate]] = {}
        for scope, (rate, waiting) in self._rates.items():
            count = starts.wants(scope.name, rate, min(waiting, most), now) if most > 0 else 0
            if count:
                bucket = bucket_id(self._queue, scope.name)
                wanted[bucket], scopes[bucket] = (rate, count), (scope, rate)
        if not wanted:
            return
        reserved = yield from reserve(self._store, wanted)
        for bucket, reservation in reserved.items():
            scope, rate = scopes[bucket]
            starts.add(scope.name, rate, reservation, monotonic())
        self.take_late()

    def take_late(self) -> None:
        """Choose of what only rates held back what may start by now."""
        late, self.late, self._rates = self.late, [], {}
        self._take(late)

    @property
    def late_by_queue(self) -> int:
        """How many jobs the rate of the whole queue holds back, whatever else does."""
        _, waiting = self._rates.get(WHOLE_QUEUE, (None, 0))
        return waiting

    def again_at(self) -> float:
        """Return when more may start, as far as rates are concerned."""
        now, starts = monotonic(), self._ruled.starts
        return min(
            (
                starts.next_at(scope.name, rate, min(waiting, self._most), now)
                for scope, (rate, waiting) in self._rates.items()
            ),
            default=math.inf,
        )


def give_back_starts(ruled: RuledQueue, starts: Starting) -> None:
    """Hold starts again by which certainly nothing was started."""
    now = monotonic()
    for scope, rate, start in starts:
        ruled.starts.give_back(scope.name, rate, start, now)


def by_rules(
    store: StoreState, jobs: Sequence[Mapping[str, Any]]
) -> Iterable[Sequence[Mapping[str, Any]]]:
    """Return jobs in parts to be claimed apart: those without rules, and those of each queue that
    has some; without jobs of those that nobody has chosen."""
    parts: dict[str | None, list[Mapping[str, Any]]] = {}
    for job in jobs:
        if "slots" in job:
            parts.setdefault(job["queue"], []).append(job)
        elif job["queue"] not in store.ruled:
            parts.setdefault(None, []).append(job)
    return parts.values()


def take_ruled(
    store: StoreState, jobs: Sequence[Mapping[str, Any]], claim: Flow[list[Job]]
) -> Flow[list[Job]]:
    """Claim jobs of one queue that were chosen with slots; none, if somebody has taken one of those
    meanwhile. Slots of jobs that others were faster to take are free again."""
    ruled = store.ruled.get(jobs[0]["queue"])
    if ruled is None:  # they had rules when they were chosen
        return (yield from claim)
    try:
        documents = yield from claim
    except BaseException as error:
        ruled.forget()
        if not operations.is_slot_taken(error):
            raise
        return []
    ruled.room = max(0, ruled.room - len(documents))
    if len(documents) < len(jobs):
        won = {id_key(document["_id"]) for document in documents}
        for job in jobs:
            if id_key(job["_id"]) not in won:
                ruled.give_back(job["slots"])
                give_back_starts(ruled, job.get("starts", ()))
    return documents
