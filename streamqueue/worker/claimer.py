"""The one task of a process that claims: wake → claim as many as there are free slots → hand over.

Two sources, and never a sorted find-and-modify:

* *Announced* jobs: the change event carried the whole job, so with a slot free it is claimed by
  ``_id`` with no read before or after.
* *Waiting* jobs: a backlog is read in large bites, ids only, from the index; claims take from the
  bite until it is used up, old, or something more urgent is announced.

An event is kept only while there is a free slot to claim it into. Otherwise it is enough to know
that there is something to scan for once a slot is free.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope
from bson.errors import BSONError
from pymongo.errors import PyMongoError

from .. import operations
from ..clock import monotonic
from ..document import JobRecord
from ..metrics import AttemptOutcome, ClaimTrigger
from .lease import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from bson import ObjectId

    from ..async_store import AsyncStore
    from ..metrics import Metrics
    from ..options import WorkerOptions
    from .completer import Completer
    from .handler import RegisteredHandler
    from .slots import Slots

logger = logging.getLogger("streamqueue.claimer")

MAX_ANNOUNCED = 1000
"""Events kept; with more than that waiting, a scan is the better way to find them."""
RECENT = 10_000
"""Claimed ids remembered, so that an insert event that comes after its job was found by a scan is
not claimed again in vain."""
BITE = 64
BITE_PER_SLOT = 4
MAX_BITE = 1000
BITE_SECONDS = 1.0
"""How long the ids of a scan are worth trying: other processes claim from the same head."""
COLLISION_SHARE = 0.1
"""The share of a claim lost to others from which on the order is left to chance."""
FAILURE_PAUSE_CAP = 5.0


class Claimer:
    """Claims jobs into free slots.

    Args:
        start: what runs a claimed attempt; must not wait for it.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredHandler],
        completer: Completer,
        slots: Slots,
        options: WorkerOptions,
        metrics: Metrics,
        start: Callable[[Attempt], None],
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._queues = list(handlers)
        self._completer = completer
        self._slots = slots
        self._consumer = str(options.consumer_id)
        self._timeout = float(options.timeout)  # type: ignore[arg-type]
        self._metrics = metrics
        self._start = start
        self._wake = anyio.Event()
        self._unloaded = anyio.Event()
        self._stopping = False
        self.stopped = anyio.Event()
        # What is known to be claimable. Only `run` claims; events and timers only add.
        self._announced: dict[ObjectId, Mapping[str, Any]] = {}
        self._bite: deque[Mapping[str, Any]] = deque()
        self._bite_read_at = 0.0
        self._backlog = False
        self._scan_for: ClaimTrigger | None = "scan"
        self._adopt = True
        self._recent: dict[ObjectId, datetime] = {}
        self._contended = False
        self._failures = 0

    @property
    def idle(self) -> bool:
        """Whether it has a free slot and knows of nothing to claim into it."""
        known = self._announced or self._bite or self._scan_for
        return not known and self._slots.free > 0 and not self._stopping

    @property
    def loaded(self) -> bool:
        """Whether it knows of waiting jobs, so that an event would tell it nothing new."""
        return bool(self._bite or self._scan_for) and not self._stopping

    async def until_unloaded(self) -> None:
        """Return when an event would be of use again."""
        if self.loaded:
            self._unloaded = anyio.Event()
            await self._unloaded.wait()

    def scan(self, trigger: ClaimTrigger = "scan", *, adopt: bool = False) -> None:
        """Look at the documents once there is a free slot.

        With `adopt`, jobs inserted without a priority are given their place first.
        """
        if self._scan_for is None or trigger == "sweep":
            self._scan_for = trigger
        self._adopt = self._adopt or adopt
        self._wake.set()

    def announce(self, job: Mapping[str, Any], *, inserted: bool) -> None:
        """Note a ready job as its change event carried it."""
        job_id = job["_id"]
        if self._oddness(job) is not None:
            self.scan("stream")
            return
        if inserted and job_id in self._recent and self._recent[job_id] == job.get("run_at"):
            return
        unplaced = job.get("priority") is None
        if self._bite and _priority(job) > _priority(self._bite[0]):
            self._bite.clear()  # it comes first: read the head again
            self._scan_for = self._scan_for or "stream"
        if self._scan_for is not None or self._slots.free < 1:
            self._scan_for = self._scan_for or "stream"
            self._adopt = self._adopt or unplaced
        elif len(self._announced) >= MAX_ANNOUNCED:
            self._forget_announced()
            self._adopt = self._adopt or unplaced
        else:
            self._announced[job_id] = job
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; :attr:`stopped` is set when nothing is under way."""
        self._stopping = True
        self._unloaded.set()
        self._wake.set()
        self._slots.nudge()

    async def run(self) -> None:
        """Claim until stopped."""
        try:
            while not self._stopping:
                free = self._slots.free
                if free < 1:
                    self._forget_announced()
                    await self._slots.wait_for_change()
                elif self._announced or self._bite or self._scan_for:
                    await self._claim(free)
                else:
                    self._unloaded.set()
                    await self._wake.wait()
                    self._wake = anyio.Event()
        finally:
            self._unloaded.set()
            self.stopped.set()

    def _forget_announced(self) -> None:
        """Events that wait for a slot grow stale; the documents do not."""
        if self._announced:
            if any(job.get("priority") is None for job in self._announced.values()):
                self._adopt = True
            self._announced.clear()
            self._scan_for = self._scan_for or "stream"

    async def _claim(self, free: int) -> None:
        try:
            if self._bite and monotonic() - self._bite_read_at > BITE_SECONDS:
                self._bite.clear()
                self._scan_for = self._scan_for or "scan"
            if self._announced and not self._bite:
                # (With a bite, what was announced is newer and not more urgent: it waits.)
                await self._claim_announced(free)
            else:
                await self._claim_waiting(free)
            self._failures = 0
        except (PyMongoError, BSONError) as error:
            self._scan_for = self._scan_for or "scan"
            self._failures += 1
            logger.warning("Claiming failed, trying again: %s", type(error).__name__)
            pause = min(FAILURE_PAUSE_CAP, 0.1 * 2**self._failures)
            with anyio.move_on_after(pause * random.uniform(0.5, 1.0)):
                while not self._stopping:
                    await self._wake.wait()
                    self._wake = anyio.Event()

    async def _claim_announced(self, free: int) -> None:
        jobs = list(self._announced.values())
        if len(jobs) > free:
            jobs.sort(key=_urgency)  # stable: first announced, first out
            jobs = jobs[:free]
        for job in jobs:
            del self._announced[job["_id"]]
        # Only an untouched job is still as its event carried it, and a large one was not carried.
        fresh = [job for job in jobs if "payload" in job and not job.get("attempts")]
        others = [job["_id"] for job in jobs if "payload" not in job or job.get("attempts")]
        if fresh:
            await self._take_carried(fresh)
        if others:
            await self._take("stream", others)

    async def _take_carried(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Claim jobs whose content is here already: one round trip if nobody was faster."""
        ids = [job["_id"] for job in jobs]
        token = operations.new_token()
        command = operations.claim(ids, self._consumer, token, self._timeout, fresh=True)
        sent = monotonic()
        with CancelScope(shield=True):
            try:
                with self._metrics.timed("claim"):
                    if len(ids) == 1:
                        won = (await self._store.jobs.update_one(*command)).modified_count
                    else:
                        won = (await self._store.jobs.update_many(*command)).modified_count
                if won not in (0, len(ids)):
                    mine = await self._store.find(
                        operations.Find({"_id": {"$in": ids}, "lease": token}, {"_id": 1})
                    )
                    mine_ids = {document["_id"] for document in mine}
                    jobs = [job for job in jobs if job["_id"] in mine_ids]
            except BaseException:
                await self._store.untake(ids, token)
                raise
        if not won:
            jobs = []
        now = self._store.clock.now()
        claimed = [
            {**job, "attempts": 1, "lease": token, "locked_by": self._consumer, "locked_at": now}
            for job in jobs
        ]
        await self._hand_over("stream", claimed, ids, sent, token)

    async def _claim_waiting(self, free: int) -> None:
        trigger = self._scan_for or "scan"
        if len(self._bite) < free and self._scan_for is not None:
            self._bite.clear()  # its rest would make a small claim; the next bite has it too
        if not self._bite:
            # Cleared before the read: what is announced while it is under way counts as new.
            self._scan_for = None
            await self._read_bite(trigger, free)
            if not self._bite:
                return
        count = min(free, len(self._bite))
        ids = [self._bite.popleft()["_id"] for _ in range(count)]
        for job_id in ids:
            self._announced.pop(job_id, None)
        await self._take(trigger, ids)

    async def _read_bite(self, trigger: ClaimTrigger, free: int) -> None:
        limit = MAX_BITE if self._backlog else min(MAX_BITE, max(BITE, BITE_PER_SLOT * free))
        with self._metrics.timed("scan"):
            if self._adopt:
                self._adopt = False
                await self._store.prepare()
                with CancelScope(shield=True):
                    await self._store.jobs.update_many(*operations.adopt(self._queues))
            found = await self._store.find(operations.candidates(self._queues, limit))
        self._backlog = len(found) == limit
        if self._backlog:
            self._scan_for = trigger  # there may be more behind
        found = [job for job in found if not await self._bury_if_odd(job)]
        if self._contended:
            # Others read the same head: whoever keeps to the order would lose every race.
            random.shuffle(found)
        self._bite.extend(found)
        self._bite_read_at = monotonic()
        if not found:
            for registered in self._handlers.values():
                registered.metrics.claims[trigger, "empty"].inc()

    def _oddness(self, job: Mapping[str, Any]) -> str | None:
        """Say what makes a document impossible to run here, whatever else is in it."""
        if isinstance(job["_id"], (Mapping, list)):
            return "its _id is not a plain value"
        if not isinstance(job.get("queue"), str):  # a list with the name in it matches the name
            return "its queue is not a name"
        return None

    async def _bury_if_odd(self, job: Mapping[str, Any]) -> bool:
        oddness = self._oddness(job)
        if oddness is not None:
            logger.error("Buried a job: %s", oddness)
            with CancelScope(shield=True):
                await self._store.jobs.update_one(*operations.bury(job["_id"], oddness))
        return oddness is not None

    async def _take(self, trigger: ClaimTrigger, ids: list[ObjectId]) -> None:
        token = operations.new_token()
        sent = monotonic()
        with self._metrics.timed("claim"):
            documents = await self._store.take(ids, self._consumer, token, self._timeout)
        self._contended = len(ids) - len(documents) > COLLISION_SHARE * len(ids)
        if self._contended and self._bite:
            # Others claim from the same head, so what is left of the bite is mostly theirs by now.
            self._bite.clear()
            self._scan_for = self._scan_for or trigger
        await self._hand_over(trigger, documents, ids, sent, token)

    async def _hand_over(
        self,
        trigger: ClaimTrigger,
        documents: Sequence[Mapping[str, Any]],
        ids: Sequence[ObjectId],
        sent: float,
        token: bytes,
    ) -> None:
        lost = len(ids) - len(documents)
        if lost:
            # The queue of a lost job is not known; with several queues the first one stands for it.
            self._handlers[self._queues[0]].metrics.claims[trigger, "lost"].inc(lost)
        if self._stopping and documents:
            with CancelScope(shield=True):
                await self._store.untake([document["_id"] for document in documents], token)
            return
        damaged: list[JobRecord] = []
        for document in documents:
            registered = self._handlers[document["queue"]]
            record = JobRecord.from_document(document, max_attempts=registered.handler.max_attempts)
            registered.metrics.claims[trigger, "won"].inc()
            if record.run_at is not None:
                self._remember(record.id, record.run_at)
            if record.damage is None:
                self._start(
                    Attempt(record, registered, self._completer, sent=sent, timeout=self._timeout)
                )
            else:
                damaged.append(record)
        for record in damaged:  # after the others are running
            await self._discard(record, token)

    async def _discard(self, record: JobRecord, token: bytes) -> None:
        """Bury a claimed job that cannot be run; if that fails, its lease will return it."""
        reason = str(record.damage)
        logger.error("Buried job %s: %s", record.id, reason)
        try:
            with CancelScope(shield=True):
                await self._store.jobs.update_one(*operations.discard(record.id, token, reason))
        except PyMongoError as error:
            logger.warning("Job %s could not be buried: %s", record.id, type(error).__name__)
        else:
            self._handlers[record.queue].metrics.outcome[AttemptOutcome.DEAD].inc()

    def _remember(self, job_id: ObjectId, run_at: datetime) -> None:
        self._recent[job_id] = run_at  # put again under the same id, it has another
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]


def _priority(job: Mapping[str, Any]) -> float:
    priority = job.get("priority")
    return priority if isinstance(priority, (int, float)) else 0


def _urgency(job: Mapping[str, Any]) -> float:
    return -_priority(job)
