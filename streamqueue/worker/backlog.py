"""What waits, read from its head in chunks.

The head of a queue index is the dear part of it: the server walks over the keys of all that was
claimed in the last minutes. So it is read rarely and in large chunks, and claims take from those.

A chunk has ids and their order, and nothing else of the jobs: what runs is what a claim returns.

Alone, a process takes them in order. Once it has lost claims to others it keeps to those whose turn
is its own (``partition``), but for more urgent ones, for
which everybody goes. When nothing in a chunk is its own, it waits for its turn at the others', and
takes them as well when it reads the next.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from ..protocol.document import PLACE_CODEC
from .lanes import Lanes, WhileOpen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from bson import ObjectId
    from bson.codec_options import CodecOptions

    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from .lanes import HasRoom
    from .partition import Partition
    from .source import Source

CHUNK = 64
CHUNK_PER_SLOT = 4
MAX_CHUNK = 1000
MAX_SHARED_CHUNK = 2000
"""A shared chunk must have one share for each consumer in it."""
CHUNK_SECONDS = 1.0
"""How long a chunk is worth trying: other processes claim from the same head."""
OFTEN = 0.3
"""Seconds between two reads of the head from which on an event would come sooner than the next."""
COLLISION_SHARE = 0.1
"""The share of a claim lost to others from which on the head counts as contended."""
CONTENDED_SECONDS = 30.0
"""How long the head counts as that: while everybody keeps to their own, nobody loses a claim."""

Job = Mapping[str, Any]


class Backlog:
    """A chunk of the waiting jobs of some queues.

    Args:
        settings: says which queues those are.
        source: is asked for what waits first, and told of lost claims; None reads the documents.
        shares: queues of which only so many jobs may be taken; of all others, any.
        dispatched: returns the ids of jobs that a chunk must not have: a process was given them.
        codec: decode what is read with this.

    Attributes:
        settings, partition: as given.
        lanes: what waits in the queues that have shares; none of it is in the chunk.
        deep: whether more was waiting than the last chunk held.
        left: whether the last chunk left jobs to those whose turn they are.
        lanes_left: whether all that was found in a lane was left to others.
    """

    def __init__(
        self,
        store: AsyncStore,
        settings: PresentSettings,
        partition: Partition,
        *,
        source: Source | None = None,
        shares: Mapping[str, HasRoom] | None = None,
        dispatched: Callable[[], Collection[ObjectId]] = tuple,
        codec: CodecOptions[Any] = PLACE_CODEC,
    ) -> None:
        self._source = source
        self._dispatched = dispatched
        self._codec = codec
        self._store = store
        self.settings = settings
        self.partition = partition
        self.lanes = Lanes(
            {queue: WhileOpen(share, queue, settings) for queue, share in (shares or {}).items()}
        )
        self._chunk: deque[Job] = deque()
        self._read_at = -math.inf
        self._read_before_at = -math.inf
        self._contended_until = -math.inf
        self._looking = False
        self.deep = False
        self.left = self.lanes_left = False
        self._others_too = False  # in the next read

    def __len__(self) -> int:
        return len(self._chunk)

    @property
    def stale(self) -> bool:
        """Whether the chunk was read too long ago."""
        return bool(self._chunk) and monotonic() - self._read_at > CHUNK_SECONDS

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A look at what waits, from when what was known of it is forgotten until it is read."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def outruns_events(self, loaded: bool) -> bool:
        """Whether the head is read so often that an event would tell nothing sooner; `loaded` says
        that there is something in it, as far as is known."""
        if not (loaded or self._looking):
            return False
        gap = self._read_at - self._read_before_at
        return max(gap, monotonic() - self._read_at) < OFTEN

    def yields_to(self, job: Job) -> bool:
        """Whether a job is more urgent than all of the chunk that it would be in."""
        chunk = self._chunk
        if self.lanes and (lane := self.lanes.get(job.get("queue"))) is not None:
            chunk = lane.chunk
        return bool(chunk) and priority_of(job) > priority_of(chunk[0])

    def drop(self) -> None:
        """Forget the chunk; the documents are still there."""
        self._chunk.clear()
        self.lanes.drop()

    def add(self, jobs: Iterable[Job]) -> None:
        """Add jobs to the chunk, behind all others, or to their lanes."""
        self._chunk.extend(self.lanes.sort(jobs))

    def take(self, count: int, room: Mapping[str, int] | None = None) -> list[Job]:
        """Return the next jobs, and forget them.

        Args:
            room: how many may be of each queue that has a lane; None is what there is room for.
        """
        if self.lanes:
            room = self.lanes.room() if room is None else room
            return self.lanes.take(self._chunk, count, room)
        return [self._chunk.popleft() for _ in range(min(count, len(self._chunk)))]

    def contend(self) -> None:
        """Keep to our own jobs for a while: others claim from the same head."""
        self._contended_until = monotonic() + CONTENDED_SECONDS

    def turn_came(self) -> None:
        """Have the next read find the others' jobs too, which have had their chance at them."""
        self._others_too = True

    def claimed(self, wanted: int, won: int) -> bool:
        """Note how a claim went; return whether so much was lost that the chunk is not worth it."""
        if self._source is not None and won < wanted:
            self._source.lost(wanted, won)
        if wanted - won <= COLLISION_SHARE * wanted:
            return False
        self.contend()
        self.drop()
        return True

    def open_queues(self) -> list[str]:
        """Return the queues whose jobs could be taken now."""
        closed = {queue for queue, lane in self.lanes.items() if lane.room < 1}
        return [queue for queue in self.settings.open_queues() if queue not in closed]

    async def read(self, wanted: int) -> None:
        """Read the next chunk, for claims of so many jobs, and the lanes that should be read; of
        the queues that are not paused."""
        queues = self.settings.open_queues()
        if not queues:
            self.deep = self.left = False
            self.lanes.empty()
            return
        if await self._asked(wanted):
            return
        self.left = False
        others_too, self._others_too = self._others_too, False
        if self.lanes:
            self.lanes.look()  # while the head is read so often no stream may tell of them
            queues = [queue for queue in queues if self.lanes.get(queue) is None]
        if queues:
            await self._read_chunk(queues, wanted, others_too)
        if self.lanes:
            await self._read_lanes(others_too)
        self._note_read()

    async def read_lanes(self, wanted: int) -> None:
        """Read the lanes of which more should be known."""
        if self.lanes.to_read() and not await self._asked(wanted):
            others_too, self._others_too = self._others_too, False
            await self._read_lanes(others_too)

    async def _asked(self, wanted: int) -> bool:
        """Take what somebody hands out; return whether there is somebody."""
        if self._source is None:
            return False
        room = self.lanes.room() if self.lanes else None
        answer = await self._source.ask(wanted, self._store.unclaimable.news(), room)
        if answer is None:
            return False
        jobs, self.deep = answer
        self.left = False
        self._chunk.extend(self.lanes.handed(jobs) if self.lanes else jobs)
        self._note_read()
        return True

    async def _read_chunk(self, queues: Sequence[str], wanted: int, others_too: bool) -> None:
        sharers = self._sharers()
        if sharers > 1:
            limit = min(MAX_SHARED_CHUNK, max(CHUNK, sharers * wanted))
        elif self.deep:
            limit = MAX_CHUNK
        else:
            limit = min(MAX_CHUNK, max(CHUNK, CHUNK_PER_SLOT * wanted))
        read, self.deep, self.left = await self._read_head(queues, limit, others_too)
        self._chunk.extend(read)

    async def _read_lanes(self, others_too: bool) -> None:
        for queue, lane in self.lanes.to_read():
            # Cleared before the read: what is announced while it is under way counts as new.
            lane.unread = False
            limit = self._sharers() * lane.size
            read, deep, left = await self._read_head([queue], limit, others_too)
            lane.was_read(read, more=deep or lane.unread or (left and bool(read)))
            if left and not read:
                self.lanes_left = True

    def _contended(self) -> bool:
        return monotonic() < self._contended_until

    def _sharers(self) -> int:
        """Return how many claim from the same head, as far as that matters now."""
        return self.partition.count() if self._contended() else 1

    async def _read_head(
        self, queues: Sequence[str], limit: int, others_too: bool
    ) -> tuple[list[Job], bool, bool]:
        """Return the first jobs of these queues that are for us, whether there may be more behind
        them, and whether there were some that are left to others."""
        elsewhere = self._dispatched()
        limit += len(elsewhere)
        found = await self._store.candidates(queues, limit, codec=self._codec)
        elsewhere = {*elsewhere, *self._dispatched()}  # before too: it may have been claimed since
        read: list[Job] = list(found)
        if elsewhere:
            read = [job for job in found if job["_id"] not in elsewhere]
        left = False
        if self._sharers() > 1 and not others_too:
            read, left = self._ours(read)
        elif self._contended():
            # With others that are not on the list, or whose turn has come too, the order of each
            # priority would mean to lose every race.
            random.shuffle(read)
            read.sort(key=priority_of, reverse=True)
        return read, len(found) == limit, left

    def _note_read(self) -> None:
        self._read_before_at, self._read_at = self._read_at, monotonic()

    def _ours(self, jobs: Iterable[Job]) -> tuple[list[Job], bool]:
        """Return the jobs whose turn is ours, in claim order, plus every job more urgent than the
        least urgent of them, whosever turn that is: its consumer may be busy. And whether there are
        others."""
        own, others = self.partition.divide(jobs)
        if not own or not others:
            return own, bool(others)
        lowest = priority_of(own[-1])
        urgent = list(takewhile(lambda job: priority_of(job) > lowest, others))
        if urgent:
            own += urgent
            own.sort(key=priority_of, reverse=True)  # stable: our own first in each priority
        return own, len(urgent) < len(others)


def priority_of(job: Job) -> float:
    """Return the priority a job is claimed by."""
    priority = job.get("priority")
    return priority if isinstance(priority, (int, float)) else 0
