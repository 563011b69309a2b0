"""Lanes: what waits in queues that may have only some of the slots, apart from all others.

A queue whose share of the slots is used up must not stand before the others: its jobs are neither
claimed nor read again, however many there are, until one of its slots comes free. So each such
queue has a short chunk of its own, and claims take from the chunks in the order of claims.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from ..clock import monotonic
from ..protocol import operations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..store.present_settings import PresentSettings

    Job = Mapping[str, Any]

LEAST_CHUNK = 16
CHUNK_PER_SLOT = 4
LANE_SECONDS = 1.0
"""How long a chunk is worth trying, as of ``backlog``."""


class HasRoom(Protocol):
    """The slots of a queue, or whoever else could take its jobs."""

    @property
    def room(self) -> int:
        """How many jobs of the queue could be taken now."""


class WhileOpen:
    """The same of a queue that may be paused, and has no room then."""

    def __init__(self, share: HasRoom, queue: str, settings: PresentSettings) -> None:
        self._share, self._queue, self._settings = share, queue, settings

    @property
    def room(self) -> int:
        """How many jobs of the queue could be taken now."""
        return 0 if self._queue in self._settings.paused else self._share.room


class Lane:
    """What is known to wait in one queue.

    Attributes:
        chunk: waiting jobs, in the order of claims.
        unread: whether more may be waiting than the chunk has.
    """

    def __init__(self, share: HasRoom) -> None:
        self._share = share
        self.chunk: deque[Job] = deque()
        self.unread = True
        self._read_at = -math.inf

    @property
    def room(self) -> int:
        """How many of its jobs could be taken now."""
        return self._share.room

    @property
    def waits(self) -> bool:
        """Whether something waits in it, as far as is known."""
        return self.unread or bool(self.chunk)

    @property
    def size(self) -> int:
        """How many jobs to read."""
        return max(LEAST_CHUNK, CHUNK_PER_SLOT * self.room)

    def was_read(self, jobs: Iterable[Job], *, more: bool) -> None:
        """Take what was read of it for all there is; `more`: there may be others."""
        self.chunk = deque(jobs)
        self.unread = more
        self._read_at = monotonic()

    @property
    def stale(self) -> bool:
        """Whether the chunk was read too long ago."""
        return monotonic() - self._read_at > LANE_SECONDS


class Lanes:
    """The lanes of a backlog, by their queues; false if there are none."""

    def __init__(self, shares: Mapping[str, HasRoom]) -> None:
        self._lanes = {queue: Lane(share) for queue, share in shares.items()}
        self._dropped = False

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __len__(self) -> int:
        """How many jobs are in them."""
        return sum(len(lane.chunk) for lane in self._lanes.values())

    def get(self, queue: object) -> Lane | None:
        """Return the lane of a queue that has one."""
        return self._lanes.get(queue) if isinstance(queue, str) else None

    def items(self) -> Iterable[tuple[str, Lane]]:
        """Return the lanes with their queues."""
        return self._lanes.items()

    def room(self) -> dict[str, int]:
        """Return how many jobs of each queue could be taken now."""
        return {queue: lane.room for queue, lane in self._lanes.items()}

    @property
    def waits(self) -> bool:
        """Whether something waits in one of them that could be taken now."""
        return any(lane.waits and lane.room > 0 for lane in self._lanes.values())

    def to_read(self) -> list[tuple[str, Lane]]:
        """Return those of which more should be known, because it could be taken."""
        return [
            (queue, lane)
            for queue, lane in self._lanes.items()
            if lane.unread and lane.room > len(lane.chunk)
        ]

    def look(self) -> None:
        """Something may have come to any of them."""
        for lane in self._lanes.values():
            lane.unread = True

    def drop(self, *, stale: bool = False) -> None:
        """Forget all chunks, or those that are stale; the documents are still there."""
        for lane in self._lanes.values():
            if lane.chunk and (lane.stale or not stale):
                lane.chunk.clear()
                lane.unread = self._dropped = True

    def sort(self, jobs: Iterable[Job]) -> list[Job]:
        """Add the jobs of these queues to their lanes, and return the others."""
        others = []
        for job in jobs:
            lane = self.get(job.get("queue"))
            if lane is None:
                others.append(job)
            else:
                lane.chunk.append(job)
        return others

    def handed(self, jobs: Iterable[Job]) -> list[Job]:
        """Take what somebody hands out for all there is to be had; return the jobs of others."""
        self.drop()
        self.empty()
        return self.sort(jobs)

    def empty(self) -> None:
        """Nothing waits in any of them that could be taken."""
        for lane in self._lanes.values():
            lane.was_read((), more=False)

    def give_up(self) -> bool:
        """Forget what waits and cannot be taken, for others to know of; return whether that was
        anything, or something was dropped."""
        held = [lane for lane in self._lanes.values() if lane.waits and lane.room < 1]
        for lane in held:
            lane.was_read((), more=False)
        dropped, self._dropped = self._dropped, False
        return bool(held) or dropped

    def fit(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs that could be taken, all together; the others wait."""
        room = self.room()
        fit = []
        for job in jobs:
            queue = job["queue"]
            if queue not in room:
                fit.append(job)
            elif room[queue] > 0:
                room[queue] -= 1
                fit.append(job)
            else:
                self._lanes[queue].unread = True
        return fit

    def take(self, others: deque[Job], count: int, room: Mapping[str, int]) -> list[Job]:
        """Take jobs from the lanes and from the others, in the order of claims.

        Args:
            room: how many jobs of each queue may be taken; of one that it does not name, any.
        """
        left = dict(room)
        taken: list[Job] = []
        open_lanes = [
            (queue, lane.chunk)
            for queue, lane in self._lanes.items()
            if lane.chunk and left.get(queue, count) > 0
        ]
        while open_lanes and len(taken) < count:
            queue, chunk = min(open_lanes, key=lambda each: operations.claim_order_of(each[1][0]))
            first = operations.claim_order_of
            if others and first(others[0]) < first(chunk[0]):
                taken.append(others.popleft())
                continue
            taken.append(chunk.popleft())
            left[queue] = left.get(queue, count) - 1
            if not chunk or left[queue] < 1:
                open_lanes.remove((queue, chunk))
        taken += [others.popleft() for _ in range(min(count - len(taken), len(others)))]
        return taken
