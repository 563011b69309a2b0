"""The one task of a process that claims: wake → claim as many as there are free slots → hand over.

Two sources, and never a sorted find-and-modify:

* *Announced* jobs: the change event carried the whole job, so with a slot free it is claimed by
  ``_id`` with no read before or after. With other consumers about, only those whose turn is ours
  (``peers``); the rest is looked for after a moment, in case nobody has come for it.
* *Waiting* jobs: a backlog is read in bites (``backlog``), and claims take from the bite until it
  is used up, old, or something more urgent is announced.

An event is kept only while there is a free slot to claim it into. Otherwise it is enough to know
that there is something to scan for once a slot is free.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope
from anyio.lowlevel import checkpoint
from bson.errors import BSONError
from pymongo.errors import OperationFailure, PyMongoError

from .. import operations
from ..clock import monotonic
from ..document import JobRecord
from ..job import facts
from ..metrics import AttemptOutcome, ClaimTrigger
from ..options import MAX_BATCH
from ..outage import LoggedOutage
from .backlog import Backlog, oddness_of, priority_of
from .lease import Attempt
from .peers import MOST_TRUST, turn_over

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from bson import ObjectId

    from ..async_store import AsyncStore
    from ..metrics import Metrics
    from ..options import WorkerOptions
    from .completer import Completer
    from .hand import Hand
    from .handler import RegisteredHandler
    from .peers import Peers
    from .slots import Slots

logger = logging.getLogger("streamqueue.claimer")

MAX_ANNOUNCED = 1000
"""Events kept; with more than that waiting, a scan is the better way to find them."""
RECENT = 10_000
"""Claimed ids remembered, so that an insert event that comes after its job was found by a scan is
not claimed again in vain."""
FIRST_CLAIM = 16
"""Jobs in the first claim of a backlog: consumers that are started together all go for its head,
and learn of one another by what they lose."""
LOADED_LEISURE = 0.25
"""Seconds events may wait while a backlog is known: a more urgent one is noticed by then."""
FAILURE_PAUSE_CAP = 5.0


class Claimer:
    """Claims jobs into free slots.

    Args:
        start: what runs a claimed attempt; must not wait for it.
        hand: where to ask for what waits, while somebody deals it out.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredHandler],
        completer: Completer,
        slots: Slots,
        peers: Peers,
        options: WorkerOptions,
        metrics: Metrics,
        start: Callable[[Attempt], None],
        hand: Hand,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._queues = list(handlers)
        self._completer = completer
        self._slots = slots
        self._peers = peers
        self._consumer = str(options.consumer_id)
        self._timeout = float(options.timeout)  # type: ignore[arg-type]
        self._metrics = metrics
        self._batch = metrics.worker.claim_batch
        self._start = start
        self._wake = anyio.Event()
        self._unloaded = anyio.Event()
        self._stopping = False
        self.stopped = anyio.Event()
        # What is known to be claimable. Only `run` claims; events and timers only add.
        self._announced: dict[ObjectId, Mapping[str, Any]] = {}
        self._hand = hand
        self._backlog = Backlog(store, self._queues, peers, dealing=hand)
        self._scan_for: ClaimTrigger | None = "scan"
        self._turn_at = math.inf  # when to look for what was left to others
        self._trust = 1.0
        self._left_last = False
        self._claim_size = FIRST_CLAIM
        self._adopt = True
        self._recent: dict[ObjectId, datetime] = {}
        self._failures = 0
        self._claiming = LoggedOutage(logger, "claim", "Claiming")

    @property
    def idle(self) -> bool:
        """Whether it has a free slot and knows of nothing to claim into it."""
        waits = math.isfinite(self._turn_at)
        return not (self._knows or waits or self._stopping) and self._slots.free > 0

    @property
    def loaded(self) -> bool:
        """Whether it knows of waiting jobs, so that an event would tell it nothing new."""
        return bool(self._backlog or self._scan_for) and not self._stopping

    @property
    def _knows(self) -> bool:
        return bool(self._announced or self._backlog or self._scan_for)

    @property
    def leisure(self) -> float:
        """How many seconds the next event may wait.

        Whoever has just left a job to another keeps out of the way of that one's claim: with many
        processes on a machine their next reads would cost as much as the claim, all at once.
        """
        if self.loaded:
            return LOADED_LEISURE
        return self._peers.courtesy() if self._left_last else 0.0

    async def until_unloaded(self) -> None:
        """Return when an event would be of use again; with no backlog known, not at all."""
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
        if oddness_of(job) is not None:
            self.scan("stream")
            return
        if inserted and job_id in self._recent and self._recent[job_id] == job.get("run_at"):
            self._wake.set()  # a dealer waits for word that it was dealt with
            return
        unplaced = job.get("priority") is None
        self._peers.job_came()
        turn = self._peers.turn(job)
        self._left_last = turn > 0
        if self._backlog.yields_to(job):
            self._backlog.drop()  # it comes first: read the head again
            self._scan_for = self._scan_for or "stream"
        if self._scan_for is not None or self._slots.free < 1:
            self._scan_for = self._scan_for or "stream"
            self._adopt = self._adopt or unplaced
        elif turn:
            self._adopt = self._adopt or unplaced
            self._wait_for_turn(turn)
            return
        elif len(self._announced) >= MAX_ANNOUNCED:
            self._forget_announced()
            self._adopt = self._adopt or unplaced
        else:
            self._announced[job_id] = job
        self._wake.set()

    def _wait_for_turn(self, turn: int) -> None:
        """Look for what was left to others when so many of them have had their chance."""
        at = turn_over(turn, self._trust)
        if at < self._turn_at:
            self._turn_at = at
            self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; :attr:`stopped` is set when nothing is under way."""
        self._stopping = True
        self._unloaded.set()
        self._wake.set()
        self._slots.nudge()

    async def run(self) -> None:
        """Claim until stopped."""
        if self._peers.count() > 1:
            self._backlog.contend()
        try:
            while not self._stopping:
                free = self._slots.free
                if free < 1:
                    self._forget_announced()
                    self._settle(0)
                    await self._slots.wait_for_change()
                elif self._slots.unstarted:
                    # Handlers that return at once leave more slots in a moment: one claim for all.
                    await checkpoint()
                elif self._knows:
                    await self._claim(free)
                else:
                    self._unloaded.set()
                    self._settle(free)
                    await self._wait()
        finally:
            self._unloaded.set()
            self.stopped.set()

    def _settle(self, free: int) -> None:
        self._hand.settled(free, self._knows, self._store.unclaimable.news())

    async def _wait(self) -> None:
        """Wait until there is something to claim, or our turn at what was left to others, or time
        to try again what could not be claimed."""
        # (A dealer tries those again itself.)
        stuck_for = math.inf if self._hand.deals else self._store.unclaimable.wait()
        left = min(self._turn_at - monotonic(), stuck_for)
        with anyio.move_on_after(left if math.isfinite(left) else None):
            await self._wake.wait()
            self._wake = anyio.Event()
        if self._turn_at <= monotonic():
            self._turn_at = math.inf
            self._backlog.stealing = True
            self._scan_for = self._scan_for or "stream"
        if not (self._hand.deals or self._store.unclaimable.wait()):
            self._scan_for = self._scan_for or "scan"

    def _forget_announced(self) -> None:
        """Events that wait for a slot grow stale; the documents do not."""
        if self._announced:
            if any(job.get("priority") is None for job in self._announced.values()):
                self._adopt = True
            self._announced.clear()
            self._scan_for = self._scan_for or "stream"

    async def _claim(self, free: int) -> None:
        try:
            if self._backlog.stale:
                self._backlog.drop()
                self._scan_for = self._scan_for or "scan"
            if self._announced and not self._backlog:
                # (With a bite, what was announced is newer and not more urgent: it waits.)
                await self._claim_announced(free)
            else:
                await self._claim_waiting(free)
            self._failures = 0
            self._claiming.succeeded()
        except (PyMongoError, BSONError) as error:
            self._scan_for = self._scan_for or "scan"
            self._failures += 1
            self._claiming.failed(error, "Claiming failed, trying again: %s")
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
        await self._take("stream", jobs)

    async def _claim_waiting(self, free: int) -> None:
        trigger = self._scan_for or "scan"
        if len(self._backlog) < free and self._scan_for is not None:
            self._backlog.drop()  # its rest would make a small claim; the next bite has it too
        if not self._backlog:
            # Cleared before the read: what is announced while it is under way counts as new.
            self._scan_for = None
            with self._metrics.timed("scan"):
                await self._place_unplaced()
                await self._backlog.read(free)
            self._trust = 1.0 if self._backlog else min(MOST_TRUST, 1.5 * self._trust)
            if not self._backlog:
                if self._backlog.left:
                    self._wait_for_turn(1)
                for registered in self._handlers.values():
                    registered.metrics.claims[trigger, "empty"].inc()
                return
            if self._backlog.deep or self._backlog.left:
                self._scan_for = trigger  # there may be more behind
        jobs = self._backlog.take(min(free, self._claim_size))
        for job in jobs:
            self._announced.pop(job["_id"], None)
        await self._take(trigger, jobs)

    async def _place_unplaced(self) -> None:
        if self._adopt and not self._hand.deals:
            self._adopt = False
            await self._store.prepare()
            await self._store.adopt(self._queues)

    async def _take(self, trigger: ClaimTrigger, jobs: Sequence[Mapping[str, Any]]) -> None:
        # Only an untouched job is still as it was carried, and a large one was not carried.
        fresh = [job for job in jobs if "payload" in job and not job.get("attempts")]
        if fresh:
            await self._take_carried(trigger, fresh)
        if len(fresh) < len(jobs):
            others = [job["_id"] for job in jobs if "payload" not in job or job.get("attempts")]
            await self._take_by_id(trigger, others)

    async def _take_carried(self, trigger: ClaimTrigger, jobs: Sequence[Mapping[str, Any]]) -> None:
        """Claim jobs whose content is here already: one round trip if nobody was faster."""
        ids = [job["_id"] for job in jobs]
        self._batch.observe(len(ids))
        token = operations.new_token()
        command = operations.claim(ids, self._consumer, token, self._timeout, fresh=True)
        sent = monotonic()
        with CancelScope(shield=True):
            try:
                with self._metrics.timed("claim"), self._store.limit():
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
            except BaseException as error:
                await self._store.untake(ids, token)
                code = error.code if isinstance(error, OperationFailure) else None
                if code not in operations.DOCUMENT_ERRORS:
                    raise
                spoiled = True
            else:
                spoiled = False
        if spoiled:
            await self._take_by_id(trigger, ids)  # finds out which document is to blame
            return
        if not won:
            jobs = []
        now = self._store.clock.now()
        ours = {"attempts": 1, "lease": token, "locked_by": self._consumer, "locked_at": now}
        await self._hand_over(trigger, [{**job, **ours} for job in jobs], len(ids), sent, token)

    async def _take_by_id(self, trigger: ClaimTrigger, ids: list[ObjectId]) -> None:
        """Claim jobs and read them as they are then."""
        self._batch.observe(len(ids))
        token = operations.new_token()
        sent = monotonic()
        with self._metrics.timed("claim"):
            documents = await self._store.take(ids, self._consumer, token, self._timeout)
        await self._hand_over(trigger, documents, len(ids), sent, token)

    async def _hand_over(
        self,
        trigger: ClaimTrigger,
        documents: Sequence[Mapping[str, Any]],
        wanted: int,
        sent: float,
        token: bytes,
    ) -> None:
        self._claim_size = MAX_BATCH
        lost = wanted - len(documents)
        if lost:
            # The queue of a lost job is not known; with several queues the first one stands for it.
            self._handlers[self._queues[0]].metrics.claims[trigger, "lost"].inc(lost)
            self._peers.look()
            if self._backlog.claimed(wanted, len(documents)):
                self._scan_for = self._scan_for or trigger
            if not documents and self._store.unclaimable.full:
                # More stuck ones than can be left out: the next bite would be of them as well. Look
                # again when they are tried again; what is announced until then does not wait.
                self._backlog.drop()
                self._scan_for = None
        if self._stopping and documents:
            with CancelScope(shield=True):
                await self._store.untake([document["_id"] for document in documents], token)
            return
        damaged: list[JobRecord] = []
        won: Counter[str] = Counter()
        for document in documents:
            queue = document["queue"]
            registered = self._handlers[queue]
            record = JobRecord.from_document(document, max_attempts=registered.handler.max_attempts)
            won[queue] += 1
            if record.run_at is not None:
                self._remember(record.id, record.run_at)
            if record.damage is None:
                self._start(
                    Attempt(record, registered, self._completer, sent=sent, timeout=self._timeout)
                )
            else:
                damaged.append(record)
        for queue, count in won.items():
            self._handlers[queue].metrics.claims[trigger, "won"].inc(count)
        for record in damaged:  # after the others are running
            await self._discard(record, token)

    async def _discard(self, record: JobRecord, token: bytes) -> None:
        """Bury a claimed job that cannot be run; if that fails, its lease will return it."""
        reason = str(record.damage)
        logger.error(
            "Buried job %s of queue %s: %s",
            record.id,
            record.queue,
            reason,
            extra={"event": "job_dead", **facts(record), "reason": reason},
        )
        try:
            with CancelScope(shield=True), self._store.limit():
                await self._store.jobs.update_one(*operations.discard(record.id, token, reason))
        except PyMongoError as error:
            logger.warning(
                "Job %s could not be buried: %s",
                record.id,
                type(error).__name__,
                extra={"event": "claim_left", **facts(record), "error": type(error).__name__},
            )
        else:
            self._handlers[record.queue].metrics.outcome[AttemptOutcome.DEAD].inc()

    def _remember(self, job_id: ObjectId, run_at: datetime) -> None:
        self._recent[job_id] = run_at  # put again under the same id, it has another
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]


def _urgency(job: Mapping[str, Any]) -> float:
    return -priority_of(job)
