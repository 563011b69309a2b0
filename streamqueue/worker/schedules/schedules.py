"""The schedules that a worker fires, and when: a heap of next ticks in memory, and one timer.

What is stored is read when the settings of the queues are, in the same round trip: at the start, at
the bell, whenever the stream was opened, and with the safety sweep. In between nothing is asked:
the next tick of a schedule is known. Whoever finds one due reads that schedule again and takes the
tick, which only one can (``firing``). The consumers come in an order that is another one for each
schedule; the later ones wait a little, look, and find the tick taken.
"""

from __future__ import annotations

import heapq
import zlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, CapacityLimiter
from anyio.lowlevel import checkpoint
from pymongo.errors import OperationFailure

from ... import plain
from ...backoff import Backoff
from ...clock import LONGEST_SLEEP
from ...outage import LoggedOutage
from ...protocol import operations
from ...protocol.schedules import StoredSchedule, next_step
from ...store.collection import UNAUTHORIZED, settings_of
from ...stream.verdict import READ_ERRORS
from .declaration import Declaration
from .firing import Firing, TakenAlready

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...metrics.series import Metrics
    from ...protocol.schedules import Schedule
    from ...store.asynchronous import AsyncStore
    from ..partition import Partition
    from .firing import Seen

logger = plain.logger("streamqueue.schedules")

AT_ONCE = 10
"""Schedules that fire side by side: one whose write hangs holds up no other."""
LOOKED_AT = 100
"""Schedules that are read at a time when many are due: each may have a payload of megabytes."""
IN_A_ROW = 20
"""Missed ticks of one schedule that are put before others have a turn."""
TURN = timedelta(milliseconds=100)
"""How long a consumer leaves a tick to each that comes before it: a transaction takes a tenth of
that, and more under load. So late is a tick whose first consumer has died without a word."""
MOST_TURNS = 5
EARLY = timedelta(milliseconds=2)
"""After a tick, because the server's time is known to a millisecond or so, and it decides."""
NO_TIME = timedelta(0)
AGAIN = Backoff(initial=0.05, maximum=5, jitter=0.5)
"""The pause after a tick that could not be taken."""
MANY = 50
"""Schedules whose ticks are computed before the event loop has a turn: 50 us each."""


class Schedules:
    """Fires the stored schedules of a collection, and those that this worker declares.

    Args:
        declared: those.
        changed: called when something was stored that all workers should read.

    Attributes:
        declared: set once those are stored, or cannot be.
    """

    def __init__(
        self,
        store: AsyncStore,
        consumer: str,
        declared: Sequence[Schedule],
        partition: Partition,
        metrics: Metrics,
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._consumer = consumer
        self._declared = {schedule.name: schedule for schedule in declared}
        self._partition = partition
        self._metrics = metrics
        self._firing = Firing(store, metrics)
        self._declaration = Declaration(store, consumer, declared, changed)
        self._settings = settings_of(store.jobs)
        self.declared = anyio.Event()
        self._read: list[dict[str, Any]] | None = None
        self._moved = anyio.Event()
        self._scope = CancelScope()
        self._heap: list[tuple[datetime, str]] = []
        self._due: dict[str, datetime] = {}
        self._known: dict[str, StoredSchedule] = {}
        self._busy: set[str] = set()
        self._read_meanwhile: set[str] = set()
        self._waited: set[str] = set()
        self._failures: dict[str, int] = {}
        self._told: set[tuple[str, str]] = set()
        self._shown: set[str] = set()
        self._refused = False
        self._limiter = CapacityLimiter(AT_ONCE)
        self._outage = LoggedOutage(logger, "schedules", "Firing schedules")

    def read(self, documents: list[dict[str, Any]]) -> None:
        """Go by this from now on, which was just read: when each schedule fires."""
        self._read = documents
        self._refused = False
        self._moved.set()

    def stop(self) -> None:
        """Fire no more: whoever goes on takes the ticks from now on, and catches them up if there
        is nobody. A transaction under way is done to its end."""
        self._scope.cancel()

    async def run(self) -> None:
        """Store what is declared, and fire until stopped."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._declare)
            while True:
                await self._until_due()
                if self._read is not None:
                    documents, self._read = self._read, None
                    await self._note(documents)
                due = self._pop_due()
                for at in range(0, len(due), LOOKED_AT):
                    tasks.start_soon(self._serve, due[at : at + LOOKED_AT])

    # what is declared

    async def _declare(self) -> None:
        if self._declared:
            await self._store_declared()
        self.declared.set()

    async def _store_declared(self) -> None:
        failures = 0
        while True:
            try:
                await self._declaration.store(again=failures > 0)
            except READ_ERRORS as error:
                if isinstance(error, OperationFailure) and error.code == UNAUTHORIZED:
                    self._refuse()
                    return
                self._outage.failed(error, "The schedules of this worker could not be stored: %s")
                failures += 1
                await anyio.sleep(AGAIN.delay(failures))
            else:
                self._outage.succeeded()
                return

    # when

    async def _until_due(self) -> None:
        """Return when a schedule is due, or they were read anew."""
        while self._read is None:
            left = LONGEST_SLEEP
            if self._heap:
                left = (self._heap[0][0] - self._store.clock.now()).total_seconds()
            if left <= 0:
                return
            self._moved = anyio.Event()
            with anyio.move_on_after(min(left, LONGEST_SLEEP)):
                await self._moved.wait()

    async def _note(self, documents: list[dict[str, Any]]) -> None:
        known: dict[str, StoredSchedule] = {}
        for number, document in enumerate(documents, 1):
            schedule = StoredSchedule.from_document(document)
            if schedule is None:
                continue
            name = schedule.name
            known[name] = schedule
            self._show(schedule)
            before = self._known.get(name)
            unchanged = before == schedule and name in self._due
            if name in self._busy:
                self._read_meanwhile.add(name)
            elif not unchanged:
                self._arm(schedule)
            if number % MANY == 0:
                await checkpoint()
        for name in self._due.keys() - known.keys():
            self._due.pop(name)
            self._waited.discard(name)
        self._known = known

    def _show(self, schedule: StoredSchedule) -> None:
        """Have the series of its queue begin at 0, so that its first tick is seen to be counted."""
        ours = schedule.source == "stored" or schedule.name in self._declared
        if ours and schedule.queue and schedule.queue not in self._shown:
            self._shown.add(schedule.queue)
            self._metrics.ticks(schedule.queue, "fired", 0)

    def _arm(self, schedule: StoredSchedule, ahead: timedelta = NO_TIME) -> None:
        """Be there when the schedule is due, if it is ours to fire.

        Args:
            ahead: how much later it is by our estimate of the server's time than by its own word.
        """
        due = schedule.due() if self._is_ours(schedule) else None
        if due is None:
            self._due.pop(schedule.name, None)
            return
        try:
            self._arm_at(schedule.name, due + max(ahead, NO_TIME) + EARLY)
        except OverflowError:  # the year 9999
            self._due.pop(schedule.name, None)

    def _arm_at(self, name: str, moment: datetime) -> None:
        self._due[name] = moment
        heapq.heappush(self._heap, (moment, name))
        if len(self._heap) > 2 * len(self._due) + MANY:  # of those that were armed anew
            self._heap = [(at, each) for each, at in self._due.items()]
            heapq.heapify(self._heap)
        if self._heap[0][1] == name:
            self._moved.set()

    def _turns(self, name: str) -> int:
        rank = self._partition.rank(name)
        if rank is None:  # a member of a dispatcher knows nobody: each has a place of its own
            rank = zlib.crc32(f"{self._consumer}\0{name}".encode("utf-8", "replace"))
            rank %= MOST_TURNS
        return min(rank, MOST_TURNS)

    def _is_ours(self, schedule: StoredSchedule) -> bool:
        if schedule.rule is None and not schedule.paused:
            self._tell_once(schedule, "unreadable", "its rule cannot be read here")
        if schedule.source == "stored":
            return True
        own = self._declared.get(schedule.name)
        if own is None:
            return False
        if own.rule == schedule.rule and own.queue == schedule.queue:
            return True
        self._tell_once(
            schedule,
            schedule.digest or "",
            "another version of the code has declared another rule",
        )
        return False

    def _tell_once(self, schedule: StoredSchedule, what: str, reason: str) -> None:
        if (schedule.name, what) not in self._told and len(self._told) < operations.MOST_SCHEDULES:
            self._told.add((schedule.name, what))
            logger.warning(
                "Schedule %s is not fired from here: %s",
                schedule.name,
                reason,
                extra={"event": "schedule_not_fired", "schedule": schedule.name},
            )

    def _pop_due(self) -> list[str]:
        now = self._store.clock.now()
        due = []
        while self._heap and self._heap[0][0] <= now:
            moment, name = heapq.heappop(self._heap)
            if self._due.get(name) != moment:
                continue  # it was armed anew since
            del self._due[name]
            # Not before: who there is may have changed since it was armed.
            turns = self._turns(name)
            if turns and name not in self._waited:
                self._waited.add(name)
                self._arm_at(name, moment + turns * TURN)
                continue
            self._waited.discard(name)
            if not self._refused:
                due.append(name)
                self._busy.add(name)
        return due

    # firing

    async def _serve(self, names: list[str]) -> None:
        """Look at schedules that are due, and take their ticks side by side."""
        try:
            await self._store.prepare()
            found = await self._firing.look(names)
        except READ_ERRORS as error:
            for name in names:
                self._failed(name, error)
            return
        async with anyio.create_task_group() as tasks:
            for name in names:
                if name in found:
                    tasks.start_soon(self._fire, found[name])
                else:
                    self._busy.discard(name)  # it was removed

    async def _fire(self, seen: Seen) -> None:
        """Take what there is to take of a schedule, and be there for the next."""
        schedule = seen.schedule
        name = schedule.name
        try:
            async with self._limiter:
                schedule, done = await self._take(seen)
        except TakenAlready:
            self._partition.look()  # perhaps there is somebody who comes before us
            self._again(name)
        except Exception as error:  # whatever is stored of one, the others go on
            self._metrics.ticks(schedule.queue, "error", 1)
            if isinstance(error, OperationFailure) and error.code == UNAUTHORIZED:
                self._refuse()
            self._failed(name, error)
        else:
            self._failures.pop(name, None)
            self._outage.succeeded()
            self._busy.discard(name)
            now = self._store.clock.now()
            if name in self._read_meanwhile:  # what was read may be newer than what was fired
                self._read_meanwhile.discard(name)
                self._arm_at(name, now)
            elif done:
                self._arm(schedule, now - seen.now())
            else:  # after the others
                self._arm_at(name, now)

    async def _take(self, seen: Seen) -> tuple[StoredSchedule, bool]:
        """Take ticks that are due; return what is stored then, and whether none is left."""
        schedule = seen.schedule
        name = schedule.name
        known = self._known.get(name)
        self._known[name] = schedule
        if not self._is_ours(schedule):
            return schedule, True
        if schedule.last_tick is None and schedule.due() is not None:
            await self._firing.begin_anew(schedule)
            return schedule, False
        step = next_step(schedule, seen.now())
        moved = known is not None and known.last_tick != schedule.last_tick
        if step is not None and moved and self._turns(name):
            return schedule, False  # somebody is at it
        for _ in range(IN_A_ROW):
            if step is None:
                return schedule, True
            await self._firing.take(schedule, step)
            schedule = self._known[name] = schedule.after(step)
            step = next_step(schedule, seen.now())
        return schedule, False

    def _again(self, name: str) -> None:
        """Look at it again soon: what was known of it is not so any more."""
        self._busy.discard(name)
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        pause = timedelta(seconds=AGAIN.delay(failures))
        self._arm_at(name, self._store.clock.now() + pause)

    def _failed(self, name: str, error: Exception) -> None:
        self._outage.failed(error, "A schedule could not be fired: %s")
        self._again(name)

    def _refuse(self) -> None:
        """Leave schedules to others until the settings are read again."""
        self._refused = True
        if ("", "refused") not in self._told:
            self._told.add(("", "refused"))
            logger.error(
                "No schedule is fired from here: this user has no right to put jobs and to change "
                "%s (give it the roles streamqueueProducer and streamqueueScheduler)",
                self._settings.name,
                extra={"event": "schedules_refused", "consumer": self._consumer},
            )
