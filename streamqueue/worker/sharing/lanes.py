"""Lanes: what waits in each queue, where several share the slots or one may not have all of them.

Jobs of one queue must not stand before those of another, whatever their age and priority: of which
queue the next job is, is for their shares to say (``fairness``). So each queue has a chunk of its
own, in the order of claims. Queues in which nothing is known to wait cost nothing.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...store.present_settings import PresentSettings
    from .fairness import Fairness, Holder

    Job = Mapping[str, Any]

LEAST_CHUNK = 16
CHUNK_PER_SLOT = 4
MOST_CHUNK = 1000
LANE_SECONDS = 1.0
"""How long a chunk is worth trying, as of ``backlog``."""


class HasRoom(Protocol):
    """The slots of a queue, or whoever else could take its jobs."""

    @property
    def room(self) -> float:
        """How many jobs of the queue could be taken now."""
        ...


class Plan(NamedTuple):
    """Of which queues the next jobs of a process are to be, one for each job, in this order.

    Attributes:
        wanted: how many jobs it was asked for.
        holder: the process.
        shares: the slots that each queue is due, if several have work.
    """

    wanted: int
    holder: Holder
    queues: Sequence[str]
    shares: Mapping[str, float]


class Lane:
    """What is known to wait in one queue.

    Args:
        share: has room for its jobs, unless it is paused.
        waiting: the lanes in which something waits; this one joins and leaves them.

    Attributes:
        chunk: waiting jobs, in the order of claims.
        unread: whether more may be waiting than the chunk has.
    """

    def __init__(
        self, queue: str, share: HasRoom, settings: PresentSettings, waiting: dict[str, Lane]
    ) -> None:
        self._queue, self._share, self._settings, self._waiting = queue, share, settings, waiting
        self.chunk: deque[Job] = deque()
        self.unread = False
        self._told = False  # others, that something waits in it, since it was read last
        self._read_at = -math.inf
        self._size = 0

    @property
    def room(self) -> float:
        """How many of its jobs could be taken now."""
        return 0 if self._queue in self._settings.paused else self._share.room

    @property
    def ruled(self) -> bool:
        """Whether the queue has rules: what may be taken of it is for each process to find out."""
        return self._settings.has_rules(self._queue)

    @property
    def waits(self) -> bool:
        """Whether something waits in it, as far as is known."""
        return self.unread or bool(self.chunk)

    def look(self) -> None:
        """Something may have come."""
        self.unread = True
        self._waiting[self._queue] = self

    def heard(self, job: Job) -> None:
        """A job has come that is not in the chunk."""
        if self.chunk and priority_of(job) > priority_of(self.chunk[0]):
            self.drop()  # it comes first: read it again
        self.look()

    def came(self, job: Job) -> None:
        """A job has come, behind all that are known."""
        if not self.chunk:
            self._read_at = monotonic()
        self.chunk.append(job)
        self._waiting[self._queue] = self

    def begin_read(self, planned: int) -> int:
        """Return how many jobs to read for a claim of so many; what comes from now on is new.

        What was read last was not enough: with a deep backlog, it takes fewer and larger reads."""
        self.unread = self._told = False
        size = max(LEAST_CHUNK, CHUNK_PER_SLOT * planned, CHUNK_PER_SLOT * self._size)
        self._size = min(MOST_CHUNK, size)
        return self._size

    def was_read(self, jobs: Iterable[Job], *, more: bool) -> None:
        """Take what was read of it for all there is; `more`: there may be others."""
        self.chunk = deque(jobs)
        self._read_at = monotonic()
        self.unread = self.unread or more
        self.settle()

    def take(self) -> Job:
        """Return the next job, and forget it."""
        job = self.chunk.popleft()
        if not self.chunk:
            self.settle()
        return job

    def drop(self, *, read_before: float = math.inf) -> bool:
        """Forget the chunk, whose jobs are still there, if it was read before this moment; return
        whether there was one."""
        if not self.chunk or self._read_at >= read_before:
            return False
        self.chunk.clear()
        self._size = 0
        self.unread = True
        return True

    def tell(self) -> bool:
        """Return whether others are to be told that something waits in it: once, until it is read
        again."""
        told, self._told = self._told, True
        return not told

    def empty(self) -> None:
        """Nothing waits in it that could be taken here."""
        self.chunk.clear()
        self.unread = False
        self.settle()

    def settle(self) -> None:
        """Join those in which something waits, or leave them."""
        if self.waits:
            self._waiting[self._queue] = self
        else:
            self._waiting.pop(self._queue, None)


class Lanes:
    """The lanes of a backlog, by their queues; false if there are none.

    Args:
        rooms: for how many jobs of each queue there is room.
        fairness: says which queue the next job is taken from.
    """

    def __init__(
        self, rooms: Mapping[str, HasRoom], settings: PresentSettings, fairness: Fairness
    ) -> None:
        self._waiting: dict[str, Lane] = {}
        self._lanes = {
            queue: Lane(queue, room, settings, self._waiting) for queue, room in rooms.items()
        }
        self._settings = settings
        self._fairness = fairness
        self._dropped = False

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __len__(self) -> int:
        """How many jobs are in them."""
        return sum(len(lane.chunk) for lane in self._waiting.values())

    @property
    def count(self) -> int:
        """How many lanes there are."""
        return len(self._lanes)

    def get(self, queue: object) -> Lane | None:
        """Return the lane of a queue that has one."""
        return self._lanes.get(queue) if isinstance(queue, str) else None

    def waiting(self) -> list[tuple[str, Lane]]:
        """Return those in which something waits, as far as is known, with their queues."""
        return list(self._waiting.items())

    def chosen(self) -> Iterable[str]:
        """Return the queues of which jobs are known."""
        return [queue for queue, lane in self._waiting.items() if lane.chunk]

    def quiet(self, queues: Iterable[str]) -> list[str]:
        """Return those of the queues in which nothing is known to wait."""
        return [queue for queue in queues if queue not in self._waiting]

    def begin_read(self, queues: Iterable[str]) -> None:
        """Forget what is known of these queues, which are about to be read; what comes from now on
        is new."""
        for queue in queues:
            self._lanes[queue].chunk.clear()
            self._lanes[queue].unread = False

    def were_read(self, queues: Iterable[str], jobs: Iterable[Job]) -> list[Job]:
        """Take what was read of them for all there is, but for what came; return what is not
        theirs. (Until now all had their places among those that wait: the next plan is of them.)"""
        others = self.sort(jobs)
        for queue in queues:
            self._lanes[queue].settle()
        return others

    def without_room(self) -> list[str]:
        """Return the queues of which no job could be taken now."""
        return [queue for queue, lane in self._lanes.items() if lane.room < 1]

    @property
    def waits(self) -> bool:
        """Whether something waits in one of them that could be taken now."""
        return any(lane.room > 0 for lane in self._waiting.values())

    def look(self, queues: Iterable[str]) -> None:
        """Something may have come to these queues."""
        for queue in queues:
            self._lanes[queue].look()

    def drop(self, *, stale: bool = False) -> None:
        """Forget all chunks, or those that are stale; the documents are still there."""
        before = monotonic() - LANE_SECONDS if stale else math.inf
        for lane in self._waiting.values():
            if lane.chunk and lane.drop(read_before=before):
                self._dropped = True

    def sort(self, jobs: Iterable[Job]) -> list[Job]:
        """Add jobs that were read, or of which events told, to their lanes; return the others."""
        others = []
        known: dict[str, set[Any]] = {}  # an event may tell of what was just read
        for job in jobs:
            lane = self.get(job.get("queue"))
            if lane is None:
                others.append(job)
                continue
            queue = job["queue"]
            if queue not in known:
                known[queue] = {each["_id"] for each in lane.chunk}
            if job["_id"] not in known[queue]:
                lane.came(job)
        return others

    def handed(self, jobs: Iterable[Job]) -> list[Job]:
        """Take what somebody hands out for all there is to be had, but of queues with rules; return
        the jobs of others."""
        self._dropped = self._dropped or any(lane.chunk for lane in self._plain())
        self.empty()
        return self.sort(jobs)

    def empty(self) -> None:
        """Nothing waits in any of them that could be taken, but for those of queues with rules."""
        for lane in self._plain():
            lane.empty()

    def _plain(self) -> list[Lane]:
        return [lane for _, lane in self.waiting() if not lane.ruled]

    def give_up(self) -> bool:
        """Forget what waits and cannot be taken, for others to know of; return whether that was
        anything, or something was dropped."""
        held = [lane for lane in self._plain() if lane.room < 1]
        for lane in held:
            lane.empty()
        told = [lane.tell() for _, lane in self.waiting() if lane.ruled and lane.room < 1]
        dropped, self._dropped = self._dropped, False
        return bool(held) or dropped or any(told)

    def plan(self, count: int, holder: Holder, *, known: bool = False) -> Plan:
        """Plan how a process takes up to so many jobs, as its queues share its slots; `known`: of
        the jobs in the lanes alone, not of those that may be waiting besides."""
        waiting = self._to_be_had(holder)
        there = None
        if known:
            lanes = self._lanes
            there = {q: int(min(most, len(lanes[q].chunk))) for q, most in waiting.items()}
        queues = self._fairness.plan(count, holder, waiting, there)
        return Plan(count, holder, queues, self._fairness.shares)

    def short(self, plan: Plan) -> dict[str, int]:
        """Return the queues of which more must be known for a plan, with how many jobs it takes of
        each."""
        lanes = self._lanes
        planned = Counter(plan.queues)
        return {queue: n for queue, n in planned.items() if n > len(lanes[queue].chunk)}

    def take(self, plan: Plan, most: int) -> list[Job]:
        """Take the jobs of a plan all of whose jobs are known, so many at the most."""
        queues = plan.queues[:most]
        self._fairness.given(queues)
        return [self._lanes[queue].take() for queue in queues]

    def _to_be_had(self, holder: Holder) -> dict[str, float]:
        """Return how many jobs of each queue a process could be given."""
        waiting = {
            queue: math.inf if lane.unread else len(lane.chunk)
            for queue, lane in self._waiting.items()
        }
        rooms = {**holder.room, **dict.fromkeys(self._settings.paused, 0)}
        for queue, room in rooms.items():
            if queue in waiting:
                waiting[queue] = min(waiting[queue], room)
                if waiting[queue] <= 0:
                    del waiting[queue]
        return waiting


def priority_of(job: Job) -> float:
    """Return the priority a job is claimed by."""
    priority = job.get("priority")
    return priority if isinstance(priority, (int, float)) else 0


def urgency_of(job: Job) -> float:
    """Return what sorts jobs by priority, the highest first."""
    return -priority_of(job)
