"""The waiting jobs that a dispatcher hands out: each to one member that can claim it.

A job that is announced goes to a member with a free slot; what waited before is read from the head
of the queues, for those that ask. Nobody asks unless told that there is something: a member that
could take a job is told to, whenever something waits or may have come.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from .. import plain
from ..clock import monotonic
from ..outage import LoggedOutage
from ..protocol.document import CODEC
from ..protocol.foreign import is_unplaced
from ..worker.backlog import Backlog
from ..worker.intake import AFTER_FAILURE, Intake
from ..worker.sharing.lanes import Lanes
from .members import RoomOfMembers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson.codec_options import CodecOptions

    from ..store.asynchronous import AsyncStore
    from ..store.present_settings import PresentSettings
    from ..worker.partition import Partition
    from ..worker.sharing.fairness import Fairness
    from .members import Member, Members

logger = plain.logger("streamqueue.dispatcher")

READ_EVERY = 0.02
"""After an empty read, further requests are answered with nothing for this many seconds, instead of
reading again."""
RAW: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)
"""What is passed on is not taken apart."""


class WaitingJobs:
    """Hands the jobs of some queues to the members of a dispatcher.

    Args:
        settings: says which queues those are, and which are paused.
        fairness: shares the slots of a member among the queues, if that is to be done.
    """

    def __init__(
        self,
        store: AsyncStore,
        settings: PresentSettings,
        partition: Partition,
        members: Members,
        fairness: Fairness | None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._partition = partition
        self._members = members
        lanes = None
        if fairness is not None:
            rooms = {queue: RoomOfMembers(members, queue) for queue in fairness.queues}
            lanes = Lanes(rooms, settings, fairness)
        self._backlog = Backlog(
            store, settings, partition, lanes=lanes, dispatched=members.dispatched, codec=RAW
        )
        self._lanes = self._backlog.lanes
        self._intake = Intake(store, partition, self._backlog)
        self._more = self._adopt = True
        self._ruled_wait: set[str] = set()  # queues with rules in which something may wait
        self._read_at = -math.inf
        self._reading = LoggedOutage(logger, "dispatch", "Reading what waits")

    @property
    def loaded(self) -> bool:
        """Whether something waits that could be handed out, as far as is known."""
        known = self._more or bool(self._backlog)
        if not known and self._lanes:
            known = any(map(self._members.have_room, self._waiting_lanes()))
        return known and bool(self._settings.plain_queues())

    @property
    def looks_often(self) -> bool:
        """Whether the head is read so often that an event would tell nothing sooner."""
        return self._backlog.outruns_events(self.loaded)

    async def until_unloaded(self) -> None:
        """Return when an event is of use again."""
        await self._intake.until_unloaded()

    # what the dispatcher hears

    def opened(self) -> None:
        """Read anew: of what has come meanwhile no event was read."""
        self.note_more()
        self._adopt = True
        self._backlog.drop()  # something more urgent may have

    def unheard(self) -> None:
        """See to jobs without a place in the order at the next read, and to queues in which nothing
        was known to wait: their events are not read."""
        self._adopt = True
        self._more = self._more or bool(self._lanes)
        self._ruled_wait.update(self._store.ruled)

    def settings_changed(self, *, resumed: bool) -> None:
        """Read anew, as some queues are paused by now, or have rules or none; or, `resumed`, are
        paused no more."""
        self._backlog.drop()  # it may have jobs of a queue that is paused now
        self.look_for_more(adopt=resumed)

    def ready(self, event: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        """Hand out the job of an event, or have it read together with what waits before it."""
        if job["queue"] in self._settings.paused:
            return  # it is looked for when the queue goes on
        if not self._store.left.knows(job):
            return
        unplaced = is_unplaced(job)
        if job["queue"] in self._store.ruled:  # each process looks for itself what may start
            self._adopt = self._adopt or unplaced
            self._ruled_wait.add(job["queue"])
            self._have_ruled_fetched()
            return
        lane = self._lanes.get(job["queue"])
        if lane is not None and (lane.waits or not self._members.have_room(job["queue"])):
            lane.heard(job)
            self._adopt = self._adopt or unplaced
            self.have_known_fetched()
            return
        turn = self._intake.turn(job)
        if self._backlog.yields_to(job):
            self._backlog.drop()  # it comes first: read the head again
            self._more = True
        if self._more or self._backlog:
            self.look_for_more(adopt=unplaced)
        elif turn:
            self._adopt = self._adopt or unplaced
            self._intake.wait_for_turn(turn)
        else:
            member = self._members.free(first=self._partition.first(job), queue=job["queue"])
            if member is not None:
                member.announce(event, job["queue"])
            elif lane is None:
                self.look_for_more(adopt=unplaced)
            else:
                lane.look()
                self._adopt = self._adopt or unplaced

    # what the members say

    def asked(self) -> None:
        """Answer a member that has asked for jobs."""
        self._intake.wake()

    def lost(self, wanted: int, won: int) -> None:
        """Note that a member claimed fewer jobs than it wanted."""
        self._partition.look()
        if self._backlog.claimed(wanted, won):
            self.look_for_more()  # what was read is forgotten

    def leave_out(self, refused: Sequence[Any]) -> None:
        """Hand out nothing of these, which a member found that the server refuses to change."""
        stuck = self._store.unclaimable
        for job_id in refused:
            stuck.hold(job_id)
        if refused and stuck.full:
            # More than can be left out: what is read next would be of them as well. It is time when
            # they are tried again; what is announced until then does not wait.
            self._backlog.drop()
            self._more = False

    # who is to ask

    def look_for_more(self, *, adopt: bool = False) -> None:
        """Read what waits, once a member with a free slot has asked for it."""
        self.note_more()
        self._adopt = self._adopt or adopt
        self._have_ruled_fetched()
        self._have_one_fetch()

    def note_more(self) -> None:
        """Read what waits the next time that a member asks."""
        self._more = True
        self._ruled_wait.update(self._store.ruled)

    def have_known_fetched(self) -> None:
        """Have members that can take jobs ask, if any are known to wait."""
        self._have_ruled_fetched()
        if self._more or self._backlog:
            self._have_one_fetch()
        asked: set[Member] = set()
        free = sum(member.free > 0 for member in self._members)
        for queue in self._waiting_lanes():  # of thousands, maybe
            if len(asked) == free:
                return
            member = self._members.free(queue=queue)
            if member is not None and member not in asked:
                member.ask_to_fetch()
                asked.add(member)

    def _waiting_lanes(self) -> Iterable[str]:
        return (queue for queue, _ in self._lanes.waiting() if queue not in self._settings.paused)

    def _have_one_fetch(self) -> None:
        # Not itself a reason to read: each answer would be the reason for the next question. Nor of
        # use while all queues are paused, or have rules, when a member that is asked to fetch has
        # nothing to ask: it would say so, and be asked to again, without end.
        member = self._members.free() if self._settings.plain_queues() else None
        if member is not None:
            member.ask_to_fetch()

    def _have_ruled_fetched(self) -> None:
        """Have members look that can claim of the queues with rules in which something may wait. A
        member that cannot take all of it says that there is more."""
        for queue in list(self._ruled_wait):
            if queue not in self._store.ruled:
                self._ruled_wait.discard(queue)
            elif queue not in self._settings.paused:
                member = self._members.free(queue=queue)
                if member is not None:
                    self._ruled_wait.discard(queue)
                    # Where nobody asks for jobs, nobody has them given their places here.
                    member.ask_to_fetch(everything=self._adopt)
                    if not self._settings.plain_queues():
                        self._adopt = False

    # reading

    async def run(self) -> None:
        """Answer the members that ask, for ever."""
        failures = 0
        while True:
            asking = self._members.asking()
            if asking:
                try:
                    await self._answer(asking)
                    failures = 0
                    self._reading.succeeded()
                except (PyMongoError, BSONError) as error:
                    self._reading.failed(error, "Reading what waits failed, trying again: %s")
                    self.note_more()
                    self._adopt = True
                    failures += 1
                    await anyio.sleep(AFTER_FAILURE.delay(failures))
                    if not self._members.asking():  # who asked has left
                        self._have_one_fetch()
            else:
                if not self.loaded:
                    self._intake.unloaded()
                if await self._intake.wait(refused_too=not self._more):
                    self.look_for_more()

    def share(self) -> None:
        """Leave jobs to others from the first read on, if there are any on the list."""
        if self._partition.count() > 1:
            self._backlog.contend()

    def stop(self) -> None:
        """Let events come: nothing is handed out any more."""
        self._intake.unloaded()

    async def _answer(self, asking: Iterable[Member]) -> None:
        if self._backlog.stale:
            self._backlog.drop()
            self._more = True
        self._lanes.drop(stale=True)
        lately = self._store.unclaimable.full or monotonic() - self._read_at < READ_EVERY
        known = bool(self._backlog) or self._lanes.waits
        if not (self._backlog or (known and lately)) and (self._more or not (known or lately)):
            await self._read(sum(member.requested for member in asking))
        if self._lanes:
            for member in asking:
                await self._backlog.fill(self._lanes.plan(member.requested, member))
        self._intake.wait_for_lanes()
        asking = self._members.asking()
        for index, member in enumerate(asking):
            share = math.ceil((len(self._backlog) + len(self._lanes)) / (len(asking) - index))
            count = min(member.requested, share)
            plan = self._lanes.plan(count, member, known=True)
            jobs = self._backlog.take(count, plan)
            more = bool(self._backlog) or self._more or (bool(jobs) and self._lanes.waits)
            member.reply(jobs, more=more)
        if self._lanes and not self.loaded:
            self._intake.unloaded()
        self.have_known_fetched()

    async def _read(self, wanted: int) -> None:
        # Cleared before the read: what is announced while it is under way counts as new.
        self._more = False
        self._read_at = monotonic()
        with self._backlog.looking():
            if self._adopt:
                self._adopt = False
                await self._store.prepare()
                self._adopt = await self._store.adopt(self._settings.open_queues()) or self._adopt
            await self._backlog.read(wanted)
        if self._backlog.left and not (self._backlog or self._lanes):
            self._intake.wait_for_turn(1)
        elif self._backlog.deep or self._backlog.left:
            self._more = True
