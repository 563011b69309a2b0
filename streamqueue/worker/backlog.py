"""What waits, read from its head in chunks.

The head of a queue index is the dear part of it: the server walks over the keys of all that was
claimed in the last minutes. So it is read rarely and in large chunks, and claims take from those.

A chunk has ids and their order, and nothing else of the jobs: what runs is what a claim returns.

Alone, a process takes them in order. Once it has lost claims to others it keeps to those whose turn
is its own (``partition``), but for more urgent ones, for
which everybody goes. When nothing in a chunk is its own, it waits for its turn at the others' and
then takes them as well, for as long as it loses few.
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

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from bson import ObjectId
    from bson.codec_options import CodecOptions

    from ..store.asynchronous import AsyncStore
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
    """A chunk of the waiting jobs of these queues.

    Args:
        source: is asked for what waits first, and told of lost claims; None reads the documents.
        dispatched: returns the ids of jobs that a chunk must not have: a process was given them.
        codec: decode what is read with this.

    Attributes:
        deep: whether more was waiting than the last chunk held.
        left: whether the last chunk left jobs to those whose turn they are.
        stealing: take the others' jobs too.
    """

    def __init__(
        self,
        store: AsyncStore,
        queues: Sequence[str],
        partition: Partition,
        *,
        source: Source | None = None,
        dispatched: Callable[[], Collection[ObjectId]] = tuple,
        codec: CodecOptions[Any] = PLACE_CODEC,
    ) -> None:
        self._source = source
        self._dispatched = dispatched
        self._codec = codec
        self._store = store
        self._queues = list(queues)
        self._partition = partition
        self._chunk: deque[Job] = deque()
        self._read_at = -math.inf
        self._read_before_at = -math.inf
        self._contended_until = -math.inf
        self._looking = False
        self.deep = False
        self.left = False
        self.stealing = False

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
        """Whether a job is more urgent than all of the chunk."""
        return bool(self._chunk) and priority_of(job) > priority_of(self._chunk[0])

    def drop(self) -> None:
        """Forget the chunk; the documents are still there."""
        self._chunk.clear()

    def take(self, count: int) -> list[Job]:
        """Return the next jobs of the chunk, and forget them."""
        return [self._chunk.popleft() for _ in range(min(count, len(self._chunk)))]

    def contend(self) -> None:
        """Keep to our own jobs for a while: others claim from the same head."""
        self._contended_until = monotonic() + CONTENDED_SECONDS
        self.stealing = False

    def claimed(self, wanted: int, won: int) -> bool:
        """Note how a claim went; return whether so much was lost that the chunk is not worth it."""
        if self._source is not None and won < wanted:
            self._source.lost(wanted, won)
        if wanted - won <= COLLISION_SHARE * wanted:
            return False
        self.contend()
        self.drop()
        return True

    async def read(self, wanted: int) -> None:
        """Read the next chunk, for claims of so many jobs."""
        if self._source is not None:
            answer = await self._source.ask(wanted, self._store.unclaimable.news())
            if answer is not None:
                jobs, self.deep = answer
                self.left = False
                self._chunk.extend(jobs)
                self._note_read()
                return
        contended = monotonic() < self._contended_until
        sharers = self._partition.count() if contended else 1
        if sharers > 1:
            limit = min(MAX_SHARED_CHUNK, max(CHUNK, sharers * wanted))
        elif self.deep:
            limit = MAX_CHUNK
        else:
            limit = min(MAX_CHUNK, max(CHUNK, CHUNK_PER_SLOT * wanted))
        elsewhere = self._dispatched()
        limit += len(elsewhere)
        found = await self._store.candidates(self._queues, limit, codec=self._codec)
        self.deep = len(found) == limit
        elsewhere = {*elsewhere, *self._dispatched()}  # before too: it may have been claimed since
        read: list[Job] = list(found)
        if elsewhere:
            read = [job for job in found if job["_id"] not in elsewhere]
        self.left = False
        if sharers > 1:
            read = self._ours(read)
        elif contended:
            # With others that are not on the list, order would mean to lose every race.
            random.shuffle(read)
        self._chunk.extend(read)
        self._note_read()

    def _note_read(self) -> None:
        self._read_before_at, self._read_at = self._read_at, monotonic()

    def _ours(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs whose turn is ours, in claim order, plus every job more urgent than the
        least urgent of them, whosever turn that is: its consumer may be busy."""
        own, others = self._partition.divide(jobs)
        if self.stealing:
            random.shuffle(others)
            return sorted(own + others, key=priority_of, reverse=True)
        if not own or not others:
            self.left = bool(others)
            return own
        lowest = priority_of(own[-1])
        urgent = list(takewhile(lambda job: priority_of(job) > lowest, others))
        self.left = len(urgent) < len(others)
        if urgent:
            own += urgent
            own.sort(key=priority_of, reverse=True)  # stable: our own first in each priority
        return own


def priority_of(job: Job) -> float:
    """Return the priority a job is claimed by."""
    priority = job.get("priority")
    return priority if isinstance(priority, (int, float)) else 0
