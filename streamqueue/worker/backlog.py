"""What waits, read from its head in chunks.

The head of a queue index is the dear part of it: the server walks over the keys of all that was
claimed in the last minutes. So it is read rarely and in large chunks, and claims take from those.

A chunk has ids and their order, and nothing else of the jobs: what runs is what a claim returns.

Alone, a process takes them in order. Once it has lost claims to others it keeps to those whose turn
is its own (``partition``), but for more urgent ones, for which everybody goes. When nothing in a
chunk is its own, it waits for its turn at the others', and takes them as well when it reads the
next.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from ..protocol.document import PLACE_CODEC
from ..protocol.operations import MERGED_QUEUES
from ..store.turns import BY_CHANCE
from .sharing.fairness import Fairness
from .sharing.lanes import Lanes, priority_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from bson import ObjectId
    from bson.codec_options import CodecOptions

    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from ..store.turns import Turns
    from .partition import Partition
    from .rules.queues import RuledQueues
    from .sharing.lanes import Plan
    from .sharing.shares import Shares
    from .source import Source

CHUNK = 64
CHUNK_PER_SLOT = 4
MAX_CHUNK = 1000
FEW_LANES = 2
"""So few lanes are read one by one, and more of them together."""
LEAST_OF_LANE = 4
"""Jobs that a lane counts as wanted for at least, where several are read together."""
LANE_ROUNDS = 3
"""Times that lanes are read before a claim: one in which nothing is found leaves its slots to
others, of which more must be known then; and in what is read together one may hide the others. The
last time they are read one by one."""
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
        lanes: what waits in each queue, if it is not all in one chunk.
        holder: the process that claims from them, if it is always the same.
        dispatched: returns the ids of jobs that a chunk must not have: a process was given them.
        ruled: chooses jobs of queues with rules; None leaves those to the processes.
        codec: decode what is read with this.

    Attributes:
        settings, partition, lanes, holder, ruled: as given.
        deep: whether more was waiting than the last chunk held.
        left: whether the last chunk left jobs to those whose turn they are.
        lanes_left: whether jobs that were found in the lanes were left to others.
    """

    def __init__(
        self,
        store: AsyncStore,
        settings: PresentSettings,
        partition: Partition,
        *,
        source: Source | None = None,
        lanes: Lanes | None = None,
        holder: Shares | None = None,
        dispatched: Callable[[], Collection[ObjectId]] = tuple,
        ruled: RuledQueues | None = None,
        codec: CodecOptions[Any] = PLACE_CODEC,
    ) -> None:
        self._source = source
        self._dispatched = dispatched
        self.ruled = ruled
        if ruled is not None:
            store.turns = self.turns
        self._codec = codec
        self._store = store
        self.settings = settings
        self.partition = partition
        self.holder = holder
        self.lanes = lanes or Lanes({}, settings, Fairness(0, {}))
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
        if not (loaded or self._looking) or self.lanes.count > MERGED_QUEUES:
            return False  # (A look at so many queues costs more than their events.)
        gap = self._read_at - self._read_before_at
        return max(gap, monotonic() - self._read_at) < OFTEN

    def yields_to(self, job: Job) -> bool:
        """Whether a job is more urgent than all of the chunk that it would be in."""
        return bool(self._chunk) and priority_of(job) > priority_of(self._chunk[0])

    def drop(self) -> None:
        """Forget the chunk; the documents are still there."""
        self._chunk.clear()
        self.lanes.drop()

    def add(self, jobs: Iterable[Job]) -> None:
        """Add jobs to the chunk, behind all others, or to their lanes."""
        self._chunk.extend(self.lanes.sort(jobs))

    def take(self, count: int, plan: Plan | None = None) -> list[Job]:
        """Return the next jobs, and forget them: of the chunk, and of the lanes by this plan."""
        jobs = [self._chunk.popleft() for _ in range(min(count, len(self._chunk)))]
        if plan is not None:
            jobs += self.lanes.take(plan, count - len(jobs))
            if self.holder is not None:
                self.holder.due = plan.shares
        return jobs

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
        """Return the queues whose jobs could be taken now, as they come."""
        closed = set(self.lanes.without_room()) if self.lanes else ()
        return [queue for queue in self.settings.plain_queues() if queue not in closed]

    def to_be_placed(self, dispatched: bool) -> list[str]:
        """Return the queues whose jobs are given their places in the order here: where somebody
        hands out jobs, `dispatched`, those that have rules, for of those it reads none."""
        queues = self.settings.open_queues()
        return self.ruled.among(queues) if dispatched and self.ruled is not None else queues

    async def read(self, wanted: int) -> None:
        """Read what waits in the queues that are not paused, for claims of so many jobs: the next
        chunk, or which of the lanes more should be known of."""
        if not self.settings.plain_queues():
            self.deep = self.left = False
            self.lanes.empty()
        self._look_at_ruled()
        if not self.settings.plain_queues():
            return
        if await self._asked(wanted):
            return
        self.left = False
        if self.lanes:
            await self._look(wanted)
        else:
            await self._read_chunk(self.settings.plain_queues(), wanted)
            self._others_too = False
        self._note_read()

    def _look_at_ruled(self) -> None:
        if self.ruled and self.lanes:
            self.lanes.look(self.ruled.among(self.settings.open_queues()))

    async def fill(self, plan: Plan) -> None:
        """Read the lanes of which more must be known for a plan."""
        together: set[str] = set()
        for left in reversed(range(LANE_ROUNDS)):
            short = self.lanes.short(plan)
            if self.ruled:
                for queue in self.ruled.among(short):
                    await self._choose(self.ruled, queue, short.pop(queue))
            if not short or await self._asked(plan.wanted):
                return
            if len(short) <= FEW_LANES:
                for queue, planned in short.items():
                    await self._read_lane(queue, planned)
            elif left:
                together.update(await self._read_together(plan))
            else:
                for queue in together.intersection(short):  # others hid it twice
                    await self._read_lane(queue, short[queue])
            self._others_too = False
            self._note_read()
            if left:
                plan = self.lanes.plan(plan.wanted, plan.holder)

    async def _asked(self, wanted: int) -> bool:
        """Take what somebody hands out; return whether there is somebody."""
        if self._source is None:
            return False
        answer = await self._source.ask(wanted, self._store.unclaimable.news(), self.holder)
        if answer is None:
            return False
        jobs, self.deep = answer
        self.left = False
        self._chunk.extend(self.lanes.handed(jobs) if self.lanes else jobs)
        self._note_read()
        return True

    async def _read_chunk(self, queues: Sequence[str], wanted: int) -> None:
        read, self.deep, left = await self._read_head(queues, self._chunk_for(wanted))
        self.left = bool(left)
        self._chunk.extend(read)

    def _chunk_for(self, wanted: int) -> int:
        sharers = self._sharers()
        if sharers > 1:
            return min(MAX_SHARED_CHUNK, max(CHUNK, sharers * wanted))
        if self.deep:
            return MAX_CHUNK
        return min(MAX_CHUNK, max(CHUNK, CHUNK_PER_SLOT * wanted))

    async def _look(self, wanted: int) -> None:
        """Find out which of the lanes in which nothing is known to wait have work.

        While that is so of all of them, what comes first in all queues may well be all there is.
        The others, and those that have no room, are read when it is their turn.
        """
        lanes = self.lanes
        queues = self.open_queues()
        quiet = lanes.quiet(queues)
        lanes.look(set(self.settings.plain_queues()).difference(quiet))
        if len(quiet) == len(queues) > 1:
            self.deep = False
            read, deep, left = await self._read_head(quiet, self._chunk_for(wanted))
            self._chunk.extend(lanes.sort(read))
            self.left = bool(left and read)
            self.lanes_left = self.lanes_left or bool(left and not read)
            if read:  # else there is nothing that could be given the slots of these
                lanes.look(left.difference(queues_of(read)))
            if not deep:
                self._others_too = False
                return
            quiet, asked = lanes.quiet(quiet), quiet
            lanes.look(set(asked).difference(quiet))  # of those there may be more behind
        if len(quiet) > FEW_LANES:
            lanes.look(await self._store.with_work(quiet))
        else:
            lanes.look(quiet)

    async def _read_together(self, plan: Plan) -> Collection[str]:
        """Read lanes in one read, those of the plan and, if they are few, those whose turn is next;
        return which. Where some have more than all others, or older jobs, there may be nothing of
        those in it."""
        lanes = self.lanes
        further = lanes.plan(plan.wanted + MERGED_QUEUES, plan.holder)
        unknown = lanes.short(further)
        for queue in self.ruled.among(unknown) if self.ruled else ():
            del unknown[queue]
        short = dict(islice(unknown.items(), MERGED_QUEUES))
        lanes.begin_read(short)
        limit = self._chunk_for(max(sum(short.values()), LEAST_OF_LANE * len(short)))
        read, deep, left = await self._read_head(list(short), limit)
        self._chunk.extend(lanes.were_read(short, read))
        found = queues_of(read)
        if deep:
            lanes.look(short)
        elif left:
            lanes.look((found | left if found else found).intersection(short))
        self.lanes_left = self.lanes_left or bool(left and len(found) < len(short))
        return short

    async def _choose(self, ruled: RuledQueues, queue: str, planned: int) -> None:
        lane = self.lanes.get(queue)
        if lane is not None:
            lane.begin_read(planned)
            jobs = await ruled.choose(queue, planned)
            lane.was_read(jobs or (), more=jobs is None or bool(jobs))

    def give_up_chosen(self) -> None:
        """Forget jobs that were chosen of queues with rules and are not to be claimed now."""
        for queue in self.ruled.among(list(self.lanes.chosen())) if self.ruled else ():
            lane = self.lanes.get(queue)
            if lane is not None and lane.drop() and self.ruled:
                self.ruled.give_up(queue)

    async def _read_lane(self, queue: str, planned: int) -> None:
        lane = self.lanes.get(queue)
        if lane is None:
            return
        limit = min(MAX_SHARED_CHUNK, self._sharers() * lane.begin_read(planned))
        # With nothing but others' jobs in it, those are for us: were it taken for empty, its slots
        # would be lent, for as long as the jobs of another queue last.
        read, deep, left = await self._read_head([queue], limit, rather_others=True)
        lane.was_read(read, more=bool(read) and (deep or bool(left)))

    def turns(self) -> Turns | None:
        """Return whose turn it is at the jobs of queues with rules, while claims are lost."""
        if not self._contended():
            return None
        return self.partition if self.partition.count() > 1 else BY_CHANCE

    def _contended(self) -> bool:
        return monotonic() < self._contended_until

    def _sharers(self) -> int:
        """Return how many claim from the same head, as far as that matters now."""
        return self.partition.count() if self._contended() else 1

    async def _read_head(
        self, queues: Sequence[str], limit: int, *, rather_others: bool = False
    ) -> tuple[list[Job], bool, set[str]]:
        """Return the first jobs of these queues that are for us, whether there may be more behind
        them, and the queues of those that are left to others; with `rather_others` those are for us
        if there are no others."""
        elsewhere = self._dispatched()
        limit += len(elsewhere)
        found = await self._store.candidates(queues, limit, codec=self._codec)
        elsewhere = {*elsewhere, *self._dispatched()}  # before too: it may have been claimed since
        read: list[Job] = list(found)
        if elsewhere:
            read = [job for job in found if job["_id"] not in elsewhere]
        deep = len(found) == limit
        if self._sharers() > 1 and not self._others_too:
            own, others = self._ours(read)
            if own or not rather_others:
                return own, deep, queues_of(others)
        if self._contended():
            # With others that are not on the list, or whose turn has come too, the order of each
            # priority would mean to lose every race.
            random.shuffle(read)
            read.sort(key=priority_of, reverse=True)
        return read, deep, set()

    def _note_read(self) -> None:
        self._read_before_at, self._read_at = self._read_at, monotonic()

    def _ours(self, jobs: Iterable[Job]) -> tuple[list[Job], list[Job]]:
        """Return the jobs whose turn is ours, in claim order, plus every job more urgent than the
        least urgent of them, whosever turn that is: its consumer may be busy. And the others."""
        own, others = self.partition.divide(jobs)
        if not own or not others:
            return own, others
        lowest = priority_of(own[-1])
        urgent = list(takewhile(lambda job: priority_of(job) > lowest, others))
        if urgent:
            own += urgent
            own.sort(key=priority_of, reverse=True)  # stable: our own first in each priority
        return own, others[len(urgent) :]


def queues_of(jobs: Iterable[Job]) -> set[str]:
    """Return the queues of some jobs, whatever else stands there."""
    return {queue for job in jobs if isinstance(queue := job.get("queue"), str)}
