"""What waits, read from its head in bites.

The head of a queue index is the dear part of it: the server walks over the keys of all that was
claimed in the last minutes. So it is read rarely and in large bites, and claims take from the bite.

Alone, a process reads jobs whole and takes them in order. Once it has lost claims to others it
reads ids only and keeps to those whose turn is its own (``peers``), but for more urgent ones, for
which everybody goes. When nothing in a bite is its own, it waits for its turn at the others' and
then takes them as well, for as long as it loses few.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

from anyio import CancelScope
from bson import ObjectId
from pymongo.errors import OperationFailure

from .. import operations
from ..clock import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from bson.codec_options import CodecOptions

    from ..async_store import AsyncStore
    from .peers import Peers

logger = logging.getLogger("streamqueue.claimer")

BITE = 64
BITE_PER_SLOT = 4
MAX_BITE = 1000
MAX_SHARED_BITE = 2000
"""A shared bite must have one share for each consumer in it."""
BITE_SECONDS = 1.0
"""How long a bite is worth trying: other processes claim from the same head."""
COLLISION_SHARE = 0.1
"""The share of a claim lost to others from which on the head counts as contended."""
CONTENDED_SECONDS = 30.0
"""How long it counts as that: while everybody keeps to their own, nobody loses a claim."""

Job = Mapping[str, Any]


class Dealing(Protocol):
    """Where a process gets its bites while somebody reads for several of them (``hand``)."""

    async def ask(
        self, count: int, stuck: Collection[Any]
    ) -> tuple[Sequence[dict[str, Any]], bool] | None:
        """Return jobs, and whether more are waiting; None when nobody deals."""

    def lost(self, wanted: int, won: int) -> None:
        """Note a claim that lost some of its jobs to somebody else."""


class Backlog:
    """A bite of the waiting jobs of these queues.

    Args:
        dealing: whoever deals out bites, if somebody does.
        dealt: returns the ids of jobs that a bite must not have: they were dealt to a process.
        raw: read the jobs with this codec instead, whole or not.

    Attributes:
        deep: whether more was waiting than the last bite held.
        left: whether the last bite left jobs to those whose turn they are.
        stealing: take the others' jobs too.
    """

    def __init__(
        self,
        store: AsyncStore,
        queues: Sequence[str],
        peers: Peers,
        *,
        dealing: Dealing | None = None,
        dealt: Callable[[], Collection[ObjectId]] = tuple,
        raw: CodecOptions[Any] | None = None,
    ) -> None:
        self._dealing = dealing
        self._dealt = dealt
        self._raw = raw
        self._store = store
        self._queues = list(queues)
        self._peers = peers
        self._bite: deque[Job] = deque()
        self._read_at = -math.inf
        self._contended_until = -math.inf
        self.deep = False
        self.left = False
        self.stealing = False

    def __len__(self) -> int:
        return len(self._bite)

    @property
    def stale(self) -> bool:
        """Whether the bite has lain too long."""
        return bool(self._bite) and monotonic() - self._read_at > BITE_SECONDS

    def yields_to(self, job: Job) -> bool:
        """Whether a job is more urgent than all of the bite."""
        return bool(self._bite) and priority_of(job) > priority_of(self._bite[0])

    def drop(self) -> None:
        """Forget the bite; the documents are still there."""
        self._bite.clear()

    def take(self, count: int) -> list[Job]:
        """Return the next jobs of the bite, and forget them."""
        return [self._bite.popleft() for _ in range(min(count, len(self._bite)))]

    def contend(self) -> None:
        """Keep to our own jobs for a while: others claim from the same head."""
        self._contended_until = monotonic() + CONTENDED_SECONDS
        self.stealing = False

    def claimed(self, wanted: int, won: int) -> bool:
        """Note how a claim went; return whether so much was lost that the bite is not worth it."""
        if self._dealing is not None and won < wanted:
            self._dealing.lost(wanted, won)
        if wanted - won <= COLLISION_SHARE * wanted:
            return False
        self.contend()
        self.drop()
        return True

    async def read(self, free: int) -> None:
        """Read the next bite, for this many free slots."""
        if self._dealing is not None:
            answer = await self._dealing.ask(free, self._store.unclaimable.news())
            if answer is not None:
                dealt, self.deep = answer
                self.left = False
                self._bite.extend(dealt)
                self._read_at = monotonic()
                return
        contended = monotonic() < self._contended_until
        sharers = self._peers.count() if contended else 1
        if sharers > 1:
            limit = min(MAX_SHARED_BITE, max(BITE, sharers * free))
        elif self.deep:
            limit = MAX_BITE
        else:
            limit = min(MAX_BITE, max(BITE, BITE_PER_SLOT * free))
        elsewhere = self._dealt()
        limit += len(elsewhere)
        found = await self._store.candidates(
            self._queues, limit, carry=sharers == 1, codec=self._raw
        )
        self.deep = len(found) == limit
        elsewhere = {*elsewhere, *self._dealt()}  # before too: it may have been claimed since
        jobs: list[Job] = [
            job  # almost always all of them, and thousands at a time
            for job in found
            if type(job["_id"]) is ObjectId and type(job.get("queue")) is str
        ]
        if len(jobs) < len(found):
            jobs = [job for job in found if not await self._bury_if_odd(job)]
        if elsewhere:
            jobs = [job for job in jobs if job["_id"] not in elsewhere]
        self.left = False
        if sharers > 1:
            jobs = self._ours(jobs)
        elif contended:
            # With others that are not on the list, order would mean to lose every race.
            random.shuffle(jobs)
        self._bite.extend(jobs)
        self._read_at = monotonic()

    def _ours(self, jobs: Iterable[Job]) -> list[Job]:
        """Return what is our turn, in order; of priorities above the lowest of it, all there is.

        A less urgent job of ours must not come before a more urgent one whose consumer may be busy.
        """
        own, others = self._peers.deal(jobs)
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

    async def _bury_if_odd(self, job: Job) -> bool:
        oddness = oddness_of(job)
        if oddness is None:
            return False
        try:
            with CancelScope(shield=True), self._store.limit():
                await self._store.jobs.update_one(*operations.bury(job["_id"], oddness))
        except OperationFailure as refusal:
            if refusal.code not in operations.DOCUMENT_ERRORS:
                raise
            self._store.unclaimable.refused(job["_id"], refusal)
        else:
            # One of our names, or a list with one in it.
            queue = job["queue"] if isinstance(job.get("queue"), str) else "unknown"
            logger.error(
                "Buried a job of queue %s: %s",
                queue,
                oddness,
                extra={"event": "job_dead", "reason": oddness},
            )
        return True


def oddness_of(job: Job) -> str | None:
    """Say what makes a document impossible to run here, whatever else is in it."""
    if isinstance(job["_id"], (Mapping, list)):
        return "its _id is not a plain value"
    if not isinstance(job.get("queue"), str):  # a list with the name in it matches the name
        return "its queue is not a name"
    return None


def priority_of(job: Job) -> float:
    """Return the priority a job is claimed by."""
    priority = job.get("priority")
    return priority if isinstance(priority, (int, float)) else 0
