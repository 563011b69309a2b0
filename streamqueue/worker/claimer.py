"""The one task of a process that claims: wake → claim as many as ``Slots.wanted`` → hand over.

Two sources, and never a sorted find-and-modify:

* *Announced* jobs: the change event says which, so with a slot free it is claimed by ``_id`` with
  no read before. With other consumers about, only those whose turn is ours
  (``partition``); the rest is looked for after a moment, in case nobody has come for it.
* *Waiting* jobs: a backlog is read in chunks (``backlog``), and claims take from the chunk until it
  is used up, old, or something more urgent is announced.

An event is kept only while there is a free slot to claim it into. Otherwise it is enough to know
that there is something to scan for once a slot is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from bson.errors import BSONError
from pymongo.errors import PyMongoError

from .. import plain
from ..outage import LoggedOutage
from ..protocol.foreign import is_ordinary, is_unplaced, with_plain_id
from .claims import Claims
from .intake import AFTER_FAILURE, Intake
from .sharing.lanes import urgency_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from bson import ObjectId

    from ..metrics.series import ClaimTrigger, Metrics
    from ..options import WorkerOptions
    from ..store.asynchronous import AsyncStore
    from .backlog import Backlog
    from .delivery import Delivery
    from .queues import RegisteredQueue
    from .rules.queues import RuledQueues
    from .sharing.fairness import Holder
    from .slots import Slots
    from .source import Source

logger = plain.logger("streamqueue.claimer")

MAX_ANNOUNCED = 1000
"""Events kept; with more than that waiting, a scan is the better way to find them."""


class Claimer:
    """Claims jobs into free slots.

    Args:
        backlog: what waits.
        source: where to ask for it, while somebody hands it out.
        delivery: takes what was claimed.
        ruled: chooses what to claim of queues that have rules.
    """

    def __init__(
        self,
        store: AsyncStore,
        handlers: Mapping[str, RegisteredQueue],
        slots: Slots,
        backlog: Backlog,
        source: Source,
        delivery: Delivery,
        ruled: RuledQueues,
        options: WorkerOptions,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._slots = slots
        self._settings = backlog.settings
        self._partition = backlog.partition
        self._source = source
        self._delivery = delivery
        parts = (store, handlers, slots, backlog, delivery, options, metrics)
        self._claims = Claims(*parts, lambda: self._stopping)
        self._metrics = metrics
        self._backlog = backlog
        self._lanes = backlog.lanes
        self._ruled = ruled
        ruled.on_room = self.room
        self._intake = Intake(store, backlog.partition, backlog)
        if backlog.holder is not None:
            backlog.holder.on_room = self._intake.wake
        self._stopping = self._under_way = False
        self.stopped = anyio.Event()
        # What is known to be claimable. Only `run` claims; events and timers only add.
        self._announced: dict[ObjectId, Mapping[str, Any]] = {}
        self._scan_for: ClaimTrigger | None = "scan"
        self._adopt = True
        self._failures = 0
        self.on_idle: Callable[[], None] | None = None
        self._claiming = LoggedOutage(logger, "claim", "Claiming")

    @property
    def idle(self) -> bool:
        """Whether it has a free slot and knows of nothing to claim into it."""
        busy = self._knows or self._under_way or self._intake.awaits_turn or self._stopping
        return not busy and self._slots.free > 0

    @property
    def loaded(self) -> bool:
        """Whether it knows of waiting jobs, so that an event would tell it nothing new."""
        known = bool(self._backlog or self._scan_for) or (bool(self._lanes) and self._lanes.waits)
        return known and not self._stopping

    @property
    def looks_often(self) -> bool:
        """Whether it reads what waits so often that an event would tell it nothing sooner."""
        return self._backlog.outruns_events(self.loaded)

    @property
    def _knows(self) -> bool:
        known = bool(self._announced or self._backlog or self._scan_for)
        return known or (bool(self._lanes) and self._lanes.waits)

    def open_queues(self) -> list[str]:
        """Return the queues whose jobs would be claimed at once, with a slot free."""
        return self._backlog.open_queues()

    async def until_unloaded(self) -> None:
        """Return when an event would be of use again; with no backlog known, not at all."""
        await self._intake.until_unloaded()

    def scan(self, trigger: ClaimTrigger = "scan", *, adopt: bool = False) -> None:
        """Look at the documents once there is a free slot.

        With `adopt`, jobs inserted without a priority are given their place first.
        """
        if self._scan_for is None or trigger == "sweep":
            self._scan_for = trigger
        self._adopt = self._adopt or adopt
        self._intake.wake()

    def _scan_too(self, trigger: ClaimTrigger) -> None:
        """Look at the documents, for whichever reason was the first."""
        self._scan_for = self._scan_for or trigger

    def opened(self) -> None:
        """Look at the documents anew: of what has come meanwhile no event was read."""
        self._backlog.drop()  # something more urgent may have
        self.scan(adopt=True)

    def settings_read(self, paused: Collection[str], resumed: Collection[str]) -> None:
        """Go on as the settings say: some queues are paused by now, and some no more."""
        if paused or resumed:
            self._forget_announced()
            self._backlog.drop()
            self.scan("stream", adopt=bool(resumed))
        self.room()  # who made some for others has rung the bell as well
        self._intake.wake()  # it may wait for just this

    def unheard(self) -> None:
        """See to jobs without a place in the order at the next look, and to queues in which nothing
        was known to wait: their events are not read."""
        self._adopt = True
        if self._lanes:
            self._scan_too("scan")

    def announce(self, job: Mapping[str, Any], *, inserted: bool) -> None:
        """Note a ready job as its change event carried it."""
        if not is_ordinary(job):
            self.scan("stream", adopt=True)
            return
        if job["queue"] in self._settings.paused:  # it is looked for when the queue goes on
            self._intake.wake()  # whoever hands out the jobs waits to hear that it was dealt with
            return
        if job["queue"] in self._ruled:
            self.room(job["queue"])
            self._adopt = self._adopt or is_unplaced(job)
            return
        if not self._store.left.sift([dict(job)]):
            self._intake.wake()  # likewise
            return
        job = with_plain_id(job)  # as it is in what a claim returns
        job_id = job["_id"]
        if inserted and job_id in self._delivery.recent:
            # It was found by a look, and claimed, before its event came; or it has ended since, and
            # was inserted again. A look tells.
            self.scan("stream")
            return
        unplaced = is_unplaced(job)
        turn = self._intake.turn(job)
        lane = self._lanes.get(job["queue"]) if self._lanes else None
        if self._backlog.yields_to(job):
            self._backlog.drop()  # it comes first: read the head again
            self._scan_too("stream")
        if lane is not None and (lane.room < 1 or lane.waits or self._slots.free < 1):
            lane.heard(job)  # whoever hands out the jobs may give it to another process
            self._adopt = self._adopt or unplaced
        elif self._scan_for is not None or self._slots.free < 1:
            self._scan_too("stream")
            self._adopt = self._adopt or unplaced
        elif turn:
            self._adopt = self._adopt or unplaced
            self._intake.wait_for_turn(turn)
            return
        elif len(self._announced) >= MAX_ANNOUNCED:
            self._forget_announced()
            self._adopt = self._adopt or unplaced
        else:
            self._announced[job_id] = job
        self._intake.wake()

    def room(self, queue: str | None = None) -> None:
        """Choose again of a queue that has rules: more of its jobs may start, or there are more.
        None is wherever jobs are held back: one that ran may have ended elsewhere."""
        if queue is None:
            self._ruled.look()
        elif self._lanes:
            lane = self._lanes.get(queue)
            if lane is not None:
                lane.look()
        else:
            self._scan_too("stream")
        self._intake.wake()

    def stop(self) -> None:
        """Claim nothing more; :attr:`stopped` is set when nothing is under way."""
        self._stopping = True
        self._intake.unloaded()
        self._intake.wake()
        self._slots.nudge()

    async def run(self) -> None:
        """Claim until stopped."""
        if self._partition.count() > 1:
            self._backlog.contend()
        try:
            while not self._stopping:
                wanted, free = self._slots.wanted, self._slots.free
                if wanted < 1 or (free < 1 and not self._knows):
                    # (Who waits for word of jobs is woken by that, and by no slot.)
                    if free < 1:
                        self._forget_announced()
                        self._report(0)
                    await self._slots.wait_for_change()
                elif not self._knows:
                    self._intake.unloaded()
                    self._slots.idle()
                    self._report(free)
                    if self.on_idle is not None:
                        self.on_idle()
                    await self._wait()
                elif not self._settings.sure:
                    self._settings.want()
                    await self._intake.until_woken()
                else:
                    self._under_way = True  # a claim that is late: its jobs look as if unknown
                    await self._claim(wanted)
                    self._under_way = False
                    if self._lanes and not self.loaded:
                        self._intake.unloaded()
        finally:
            self._intake.unloaded()
            self.stopped.set()

    def _report(self, free: int) -> None:
        holder, more, room = self._backlog.holder, self._knows, None
        if holder is not None and self._source.dispatched:
            more = self._lanes.give_up() or more  # others may have room for those
            room = holder.room
        self._source.report(free, more, self._store.unclaimable.news(), room)

    async def _wait(self) -> None:
        # (A source that hands out jobs tries refused ones again itself.)
        trigger = await self._intake.wait(refused_too=not self._source.dispatched)
        if trigger is not None:
            self._scan_too(trigger)

    def _forget_announced(self) -> None:
        """Events that wait for a slot grow stale; the documents do not."""
        if self._announced:
            self._adopt = self._adopt or any(map(is_unplaced, self._announced.values()))
            self._announced.clear()
            self._scan_too("stream")

    async def _claim(self, wanted: int) -> None:
        try:
            if self._backlog.stale:
                self._backlog.drop()
                self._scan_too("scan")
            if self._backlog.holder is not None:
                await self._claim_shared(wanted, self._backlog.holder)
            elif self._ruled:
                await self._claim_ruled(wanted)
            elif self._announced and not self._backlog:
                # (With a chunk, what was announced is newer and not more urgent: it waits.)
                await self._claim_announced(wanted)
            else:
                await self._claim_waiting(wanted)
            self._failures = 0
            self._claiming.succeeded()
        except (PyMongoError, BSONError) as error:
            self._scan_too("scan")
            self._failures += 1
            self._claiming.failed(error, "Claiming failed, trying again: %s")
            with anyio.move_on_after(AFTER_FAILURE.delay(self._failures)):
                while not self._stopping:
                    await self._intake.until_woken()

    async def _claim_announced(self, wanted: int) -> None:
        jobs = list(self._announced.values())
        size = min(wanted, self._store.claim_size.most)
        if len(jobs) > size:
            jobs.sort(key=urgency_of)  # stable: first announced, first out
            jobs = jobs[:size]
        for job in jobs:
            del self._announced[job["_id"]]
        await self._take("stream", jobs)

    async def _claim_waiting(self, wanted: int) -> None:
        trigger = self._scan_for or "scan"
        size = self._claims.size(wanted)
        if len(self._backlog) < size and self._scan_for is not None:
            self._backlog.drop()  # its rest would make a small claim; the next chunk has it too
        if not self._backlog:
            await self._look(wanted)
            if not self._backlog:
                if self._backlog.left:
                    self._intake.wait_for_turn(1)
                self._claims.note_empty(trigger)
                return
            if self._backlog.deep or self._backlog.left:
                self._scan_for = trigger  # there may be more behind
        jobs = self._backlog.take(size)
        if self._announced:
            for job in jobs:
                self._announced.pop(job["_id"], None)
        if jobs:
            await self._take(trigger, jobs)

    async def _claim_ruled(self, wanted: int) -> None:
        """Claim what may start of the one queue there is, which has rules."""
        if self._slots.free < 1:  # nothing is claimed ahead: it may have to wait for others
            await self._slots.wait_for_change()
            return
        trigger, self._scan_for = self._scan_for or "scan", None
        self._announced.clear()  # it is found as well
        self._backlog.drop()
        jobs: Sequence[Mapping[str, Any]] = ()
        with self._backlog.looking(), self._metrics.timed("scan"):
            await self._place_unplaced()
            for queue in self._settings.open_queues():
                jobs = await self._ruled.choose(queue, self._claims.size(wanted)) or ()
        if jobs:
            self._scan_for = trigger  # there may be more behind
            await self._take(trigger, jobs)
        else:
            self._claims.note_empty(trigger)

    async def _claim_shared(self, wanted: int, holder: Holder) -> None:
        """Claim what waits in the lanes, as the queues share the slots."""
        looks, backlog = self._scan_for, self._backlog
        self._lanes.drop(stale=True)
        if looks is not None:
            self._forget_announced()  # it is found as well
            await self._look(wanted)
        trigger = looks or ("stream" if self._announced else "scan")
        backlog.add(sorted(self._announced.values(), key=urgency_of))
        self._announced.clear()
        plan = self._lanes.plan(self._claims.size(wanted), holder)
        if self._lanes.short(plan):
            with self._metrics.timed("scan"):
                await self._place_unplaced()
                await backlog.fill(plan)
            wanted = self._slots.wanted  # handlers have come to their ends
            plan = self._lanes.plan(self._claims.size(wanted), holder, known=True)
        if backlog.left or (self._source.dispatched and backlog.deep):
            self._scan_too(trigger)  # there may be more behind
        backlog.left = backlog.deep = False
        self._intake.wait_for_lanes()
        jobs = backlog.take(plan.wanted, plan)
        backlog.give_up_chosen()
        if jobs:
            await self._take(trigger, jobs)
        elif not self._lanes.waits:
            self._claims.note_empty(trigger)
        elif self._slots.free < 1:  # what could be claimed ahead is of other queues
            await self._slots.wait_for_change()

    async def _look(self, wanted: int) -> None:
        # Cleared before the read: what is announced while it is under way counts as new.
        self._scan_for = None
        with self._backlog.looking(), self._metrics.timed("scan"):
            await self._place_unplaced()
            await self._backlog.read(wanted)

    async def _place_unplaced(self) -> None:
        queues = self._backlog.to_be_placed(self._source.dispatched)
        if self._adopt and queues:
            self._adopt = False
            await self._store.prepare()
            self._adopt = await self._store.adopt(queues) or self._adopt

    async def _take(self, trigger: ClaimTrigger, jobs: Sequence[Mapping[str, Any]]) -> None:
        lost = await self._claims.take(trigger, jobs)
        if lost == "some":
            self._scan_too(trigger)
        elif lost == "stuck":
            self._scan_for = None
