"""Completes: the ends of jobs whose handlers returned, committed in groups by one task.

Jobs that nobody keeps or awaits are deleted, and the others updated to done, with their results.
What finishes while one write is in flight goes in the next. A job that a transaction may have
blocked is completed apart, and delays nobody.

That somebody waits for a job may come to be known at its end only: the delete leaves those out, and
what it has left is looked at.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio
import pymongo
from anyio import CancelScope
from anyio.lowlevel import cancel_shielded_checkpoint
from pymongo.errors import PyMongoError

from ..clock import monotonic
from ..errors import LeaseLost, PayloadError
from ..metrics.series import AttemptOutcome
from ..protocol import operations
from ..protocol.result import NO_RESULT, Result
from ..queue.ends import cannot_store
from ..queue.lines import log_refused
from ..queue.outcome import End
from ..store.write_limit import WriteLimit
from .ends import AGAIN, NONE_LEFT, Left, done, is_storable, time_left
from .execution.attempt import LEAST_TIME
from .nearest import Nearest
from .steps import StepEnds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import TaskGroup
    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..metrics.series import Metrics
    from ..options import WorkerOptions
    from ..store.asynchronous import AsyncStore
    from .deaths import Deaths
    from .execution.attempt import Attempt

MAX_GROUP = 1000
"""Jobs in one write: enough that its round trip no longer counts."""
MAX_GROUP_BYTES = 8 * 1024 * 1024
"""Bytes of results in one write; a message may have 48 MB."""
CERTAIN_MARGIN = 1.0
"""Seconds a lease must still have for its complete to share a write; see ``_complete_group``."""


class Completer(StepEnds):
    """Ends attempts, and completes together what ends at about the same time.

    Args:
        ended: told of every attempt handed to :meth:`finish`, when its outcome is set.

    Attributes:
        on_all_through: called when the jobs are let through that waited for those that have ended,
            if somebody waits for that.
    """

    def __init__(
        self,
        store: AsyncStore,
        options: WorkerOptions,
        metrics: Metrics,
        renewals: Nearest,
        ended: Callable[[Attempt], None],
        deaths: Deaths,
    ) -> None:
        super().__init__(store, options, metrics, renewals, deaths)
        self._ended = ended
        self._finished: list[Attempt] = []
        self._wake = anyio.Event()
        self._limit = WriteLimit.of_lease(options.timeout)
        self._pause = Nearest()
        self._apart: TaskGroup | None = None
        self._over: list[Attempt] = []  # for whose ends others may wait
        self._letting = False  # a task lets those through
        self.on_all_through: Callable[[], None] | None = None

    @property
    def lets_through(self) -> bool:
        """Whether jobs have ended for which others may wait that are not let through yet."""
        return self._letting

    async def run(self) -> None:
        """Write completes for ever."""
        async with anyio.create_task_group() as self._apart:
            apart = self._apart
            try:
                tries = 1
                while True:
                    if not self._finished:
                        self._wake = anyio.Event()
                        await self._wake.wait()
                    pause = AGAIN.delay(tries)
                    if await self._complete_group(apart, pause):
                        tries = 1
                        continue
                    # Unless one comes whose lease does not last that long.
                    await self._pause.wait([monotonic() + pause])
                    tries += 1
            finally:
                with CancelScope(shield=True):
                    self.hurry()
                    while self._finished:
                        await self._complete_group(apart, AGAIN.delay(1))

    def hurry(self) -> None:
        """Do not try again what fails from now on: its lease will return the job."""
        super().hurry()
        self._pause.note(-math.inf)

    def finish(self, attempt: Attempt, result: object) -> None:
        """Complete a job whose handler returned; the outcome is told to `ended`."""
        attempt.ending = True
        attempt.value = NO_RESULT if result is None else Result(result)
        self._finished.append(attempt)
        self._wake.set()
        self._pause.note(attempt.deadline)

    async def complete(
        self, attempt: Attempt, result: object, session: AsyncClientSession | None = None
    ) -> None:
        """Complete a job whose handler asks for it; return when that is written.

        Raises:
            PayloadError: the result cannot be stored; the job is dead.
        """
        self._check(attempt)
        if session is not None:
            await self._complete_in(attempt, result, session)
            return
        attempt.settled = anyio.Event()
        self.finish(attempt, result)
        with CancelScope(shield=True):  # it is on its way: the caller should learn how it ends
            await attempt.settled.wait()
        attempt.settled = None  # a handler that ignores the error is completed as any other
        if attempt.outcome is not AttemptOutcome.COMPLETED:
            raise attempt.unstorable or attempt.unknown or LeaseLost(attempt.record.id)

    async def _complete_in(
        self, attempt: Attempt, result: object, session: AsyncClientSession
    ) -> None:
        """Complete a job as a statement of the caller's transaction, final when that commits."""
        in_transaction = session.in_transaction
        if attempt.deadline - monotonic() < LEAST_TIME:
            raise LeaseLost(attempt.record.id)  # rather than have the commit come too late
        attempt.session = session
        try:
            ended = await self._end_in(attempt, result, session)
        except PayloadError as problem:
            await self._bury(attempt, problem)  # beside the transaction, which that error ends
            raise
        except PyMongoError as error:
            await self._renew_after(attempt, error)
            raise
        if not ended:
            raise LeaseLost(attempt.record.id)
        if in_transaction:
            attempt.completed = True
        else:
            attempt.outcome = AttemptOutcome.COMPLETED
            await self._let_through(attempt)

    async def _complete_group(self, apart: TaskGroup, pause: float) -> bool:
        """Complete what has gathered; return False when some of it is to be tried again."""
        # One turn of the event loop, so that handlers that end in the same turn share the write.
        await cancel_shielded_checkpoint()
        group, self._finished = self._finished[:MAX_GROUP], self._finished[MAX_GROUP:]
        # Sharing one delete, a job that is gone afterwards was removed by it, or by an operator, as
        # long as the lease is certainly ours. So those whose lease may end are asked for one by
        # one, where the answer is exact, and no answer is waited for longer than the lease.
        certain_until = monotonic() + self._certain_margin()
        removed: list[Attempt] = []
        holders: list[Attempt] = []
        kept: list[Attempt] = []
        for attempt in group:
            if attempt.lost:
                self._settle(attempt, lost=True)
            elif attempt.kept and not is_storable(attempt):
                apart.start_soon(self._bury_finished, attempt)
            elif (
                attempt.apart is not None
                or attempt.in_transaction
                or attempt.deadline <= certain_until
            ):
                apart.start_soon(self._complete_apart, attempt)
            else:
                some = kept if attempt.kept else holders if attempt.record.holds_on else removed
                some.append(attempt)
        written = True
        for some in (removed, holders, self._not_too_large(kept)):
            if some and not await self._complete_shared(apart, some, pause):
                written = False
        return written

    def _not_too_large(self, kept: list[Attempt]) -> list[Attempt]:
        """Return as many of some jobs as can be in one write; the rest goes in the next."""
        total = 0
        for count, attempt in enumerate(kept):
            total += attempt.value.size
            if total > MAX_GROUP_BYTES and count:
                self._finished[:0] = kept[count:]
                return kept[:count]
        return kept

    def _certain_margin(self) -> float:
        return min(CERTAIN_MARGIN, self._timeout / 4)

    async def _complete_shared(
        self, apart: TaskGroup, group: Sequence[Attempt], pause: float
    ) -> bool:
        """End the jobs of a group, all or none of which stay, in one write or, when one of them
        spoils it, in parts."""
        sent = monotonic()
        limit = min(self._limit.seconds, time_left(*group))
        ended = None
        with CancelScope(shield=True):
            try:
                with self._metrics.timed("complete"):
                    ended = await self._end_together(group, limit)
                    left = NONE_LEFT if ended == len(group) else await self._left_of(group)
            except PyMongoError as error:
                for attempt in group:
                    attempt.unknown = error
                if ended is not None or not operations.is_spoiled(error):
                    self._limit.met()
                    self._tried_in_vain(error, len(group))
                    again = self._give_up_overdue(group, pause)
                    self._finished[:0] = again
                    self._wake.set()
                    return not again
                if len(group) > 1:
                    for part in operations.parts(group):
                        apart.start_soon(self._complete_shared, apart, part, pause)
                else:
                    group[0].apart = 2 * limit
                    apart.start_soon(self._complete_apart, group[0])
                return True
        self._writing.succeeded()
        self._limit.kept(monotonic() - sent)
        if left.awaited:
            self._keep(left.awaited)
            self._finished[:0] = left.awaited
            self._wake.set()
        held = set(left.awaited)
        for attempt in group:
            if attempt not in held:
                self._settle(attempt, lost=attempt in left.lost)
        return True

    async def _end_together(self, group: Sequence[Attempt], limit: float) -> int:
        if group[0].kept:
            return await self._store.update_each_within(list(map(done, group)), limit)
        ids = [attempt.record.id for attempt in group]
        wanted = operations.held_any(ids, {attempt.record.token for attempt in group})
        if not group[0].record.holds_on:
            return await self._store.delete_within(operations.removable(wanted), limit)
        held = ((attempt.record.id, attempt.record.token) for attempt in group)
        updates = [operations.done_but_for_its_key(*each) for each in held]
        ended = await self._store.update_each_within(updates, limit)
        if ended < len(group):
            wanted = operations.held_for_long_enough(wanted)
            ended += await self._store.delete_within(wanted, limit)
        return ended

    async def _complete_apart(self, attempt: Attempt) -> None:
        """Complete a job by itself until its outcome is known or its lease has run out."""
        tries = 0
        with CancelScope(shield=True):
            while True:
                sent = monotonic()
                limit = min(time_left(attempt), attempt.apart or self._limit.seconds)
                try:
                    with self._metrics.timed("complete"):
                        left = await self._end_alone(attempt, limit)
                except PyMongoError as error:
                    attempt.unknown = error
                    if operations.is_refusal(error):
                        if attempt.record.holds_on and not attempt.kept:
                            self._keep([attempt])  # a validator wants all that a job has
                            if not is_storable(attempt):
                                attempt.value = NO_RESULT
                            continue
                        if attempt.kept and attempt.value.size:
                            attempt.unstorable = cannot_store(attempt.value.size, error)
                            await self._bury_finished(attempt)
                        else:
                            log_refused(attempt.record, error, "the end")
                            self._settle(attempt, lost=True)
                        return
                    attempt.apart = 2 * limit
                    self._tried_in_vain(error, 1)
                    tries += 1
                    pause = AGAIN.delay(tries)
                    if not self._give_up_overdue([attempt], pause):
                        return
                    # A try that has waited inside the server needs no pause.
                    with anyio.move_on_after(min(pause, max(sent + limit - monotonic(), 0.0))):
                        await self._hurry.wait()
                else:
                    self._writing.succeeded()
                    if left.awaited:
                        self._keep(left.awaited)
                        if not is_storable(attempt):
                            await self._bury_finished(attempt)
                            return
                        continue
                    self._settle(attempt, lost=bool(left.lost))
                    return

    async def _end_alone(self, attempt: Attempt, limit: float) -> Left:
        """End the job of one attempt; return it if that did not."""
        certain = attempt.deadline > monotonic() + self._certain_margin()
        if certain:
            ended = await self._end_together([attempt], limit)
        else:
            with pymongo.timeout(time_left(attempt)):
                ended = await self._end_exactly(attempt)
        if ended:
            return NONE_LEFT
        left = await self._left_of([attempt])
        return left if certain or attempt.completed or left.awaited else Left({attempt}, [])

    async def _end_exactly(self, attempt: Attempt) -> int:
        """The same by a write that the driver tries again, which has one answer however often."""
        if attempt.kept:
            return (await self._store.jobs.update_one(*done(attempt))).matched_count
        return await self._remove(attempt, None)

    async def _bury_finished(self, attempt: Attempt) -> None:
        """End a job as dead that was completed with what cannot be stored."""
        attempt.ending = False
        try:
            if attempt.unstorable is not None:
                await self._bury(attempt, attempt.unstorable)
        except LeaseLost:
            pass
        except PyMongoError as error:
            attempt.unknown = error
        self._settle(attempt, lost=attempt.outcome is None)

    async def _bury(self, attempt: Attempt, problem: PayloadError) -> None:
        end = End("discarded", str(problem), error=problem)
        await self.end(attempt, end, "its result cannot be stored")

    def _tried_in_vain(self, error: PyMongoError, count: int) -> None:
        self._writing.failed(error, "%d completes could not be written: %s", count)

    def _give_up_overdue(self, group: Sequence[Attempt], pause: float) -> list[Attempt]:
        """Settle the attempts whose lease does not last that long; return the others."""
        until = math.inf if self._hurry.is_set() else monotonic() + pause
        left = []
        for attempt in group:
            if attempt.lost or attempt.deadline < until:
                self._settle(attempt, lost=True)
            else:
                left.append(attempt)
        return left

    async def _let_all_through(self) -> None:
        """Do so for those that were ended together, and then for what has ended meanwhile: however
        many they are, it is asked once for whoever comes after them. One such task at a time, since
        what several write to the same indexes only keeps all of them, and the completes, waiting.
        """
        await cancel_shielded_checkpoint()
        while self._over:
            ended, self._over = self._over[:MAX_GROUP], self._over[MAX_GROUP:]
            await self._let_through(*ended)
        self._letting = False
        if self.on_all_through is not None:
            self.on_all_through()

    def _settle(self, attempt: Attempt, *, lost: bool) -> None:
        attempt.ending = False
        if not lost and attempt.outcome is None:
            attempt.outcome = AttemptOutcome.COMPLETED
        record = attempt.record
        if not lost and (record.lets_go or record.needed or record.after) and self._apart:
            self._over.append(attempt)
            if not self._letting:
                self._letting = True
                self._apart.start_soon(self._let_all_through)
        attempt.value = NO_RESULT
        if attempt.settled is not None:
            attempt.settled.set()
        else:
            self._ended(attempt)
