"""Completes: the deletes of jobs whose handlers returned, committed in groups by one task.

What finishes while one delete is in flight goes in the next. A job that a transaction may have
blocked is completed apart, and delays nobody.
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
from ..errors import LeaseLost
from ..metrics.series import AttemptOutcome
from ..protocol import operations
from ..queue.job import log_refused
from ..store.write_limit import WriteLimit
from .ends import AGAIN, Ends, time_left
from .execution.attempt import LEAST_TIME
from .nearest import Nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import TaskGroup
    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..metrics.series import Metrics
    from ..store.asynchronous import AsyncStore
    from .execution.attempt import Attempt

MAX_GROUP = 1000
"""Jobs in one delete: enough that its round trip no longer counts."""
CERTAIN_MARGIN = 1.0
"""Seconds a lease must still have for its complete to share a write; see ``_complete_group``."""


class Completer(Ends):
    """Ends attempts, and completes together what ends at about the same time.

    Args:
        ended: told of every attempt handed to :meth:`finish`, when its outcome is set.
    """

    def __init__(
        self,
        store: AsyncStore,
        timeout: float,
        metrics: Metrics,
        ended: Callable[[Attempt], None],
    ) -> None:
        super().__init__(store, timeout, metrics)
        self._ended = ended
        self._finished: list[Attempt] = []
        self._wake = anyio.Event()
        self._limit = WriteLimit.of_lease(timeout)
        self._pause = Nearest()

    async def run(self) -> None:
        """Write completes for ever."""
        async with anyio.create_task_group() as apart:
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

    def finish(self, attempt: Attempt) -> None:
        """Complete a job whose handler returned; the outcome is told to `ended`."""
        attempt.ending = True
        self._finished.append(attempt)
        self._wake.set()
        self._pause.note(attempt.deadline)

    async def complete(self, attempt: Attempt, session: AsyncClientSession | None = None) -> None:
        """Complete a job whose handler asks for it; return when it is removed from the queue."""
        self._check(attempt)
        if session is not None:
            await self._complete_in(attempt, session)
            return
        attempt.settled = anyio.Event()
        self.finish(attempt)
        with CancelScope(shield=True):  # it is on its way: the caller should learn how it ends
            await attempt.settled.wait()
        attempt.settled = None  # a handler that ignores the error is completed as any other
        if attempt.outcome is not AttemptOutcome.COMPLETED:
            raise attempt.unknown or LeaseLost(attempt.record.id)

    async def _complete_in(self, attempt: Attempt, session: AsyncClientSession) -> None:
        """Complete a job as a statement of the caller's transaction, final when that commits."""
        in_transaction = session.in_transaction
        if attempt.deadline - monotonic() < LEAST_TIME:
            raise LeaseLost(attempt.record.id)  # rather than have the commit come too late
        attempt.session = session
        wanted = operations.held(attempt.record.id, attempt.record.token)
        try:
            deleted = (await self._store.jobs.delete_one(wanted, session=session)).deleted_count
        except PyMongoError as error:
            if error.has_error_label("TransientTransactionError"):
                # Most likely our own renewal, behind its snapshot. The next try should have the
                # whole lease for itself, so it is renewed before that can begin.
                await self._renew_beside(attempt, error)
            raise
        if not deleted:
            raise LeaseLost(attempt.record.id)
        if in_transaction:
            attempt.completed = True
        else:
            attempt.outcome = AttemptOutcome.COMPLETED

    async def _renew_beside(self, attempt: Attempt, reason: PyMongoError) -> None:
        wanted = operations.held(attempt.record.id, attempt.record.token)
        sent = monotonic()
        limit = min(self._limit.seconds, time_left(attempt))
        try:
            with self._metrics.timed("renew"):
                command = operations.renew(wanted, self._timeout)
                matched, _ = await self._store.update_within(command, limit)
        except PyMongoError:
            return  # as it was, then: the transaction may be tried again with what is left
        if not matched:
            raise LeaseLost(attempt.record.id) from reason
        attempt.extend(sent, self._timeout)
        attempt.registered.metrics.leases_renewed.inc()

    async def _complete_group(self, apart: TaskGroup, pause: float) -> bool:
        """Complete what has gathered; return False when some of it is to be tried again."""
        # One turn of the event loop, so that handlers that end in the same turn share the write.
        await cancel_shielded_checkpoint()
        group, self._finished = self._finished[:MAX_GROUP], self._finished[MAX_GROUP:]
        # Sharing one delete, a job that is gone afterwards was removed by it, or by an operator, as
        # long as the lease is certainly ours. So those whose lease may end are asked for one by
        # one, where the answer is exact, and no answer is waited for longer than the lease.
        certain_until = monotonic() + self._certain_margin()
        shared = []
        for attempt in group:
            if attempt.lost:
                self._settle(attempt, lost=True)
            elif (
                attempt.apart is not None
                or attempt.in_transaction
                or attempt.deadline <= certain_until
            ):
                apart.start_soon(self._complete_apart, attempt)
            else:
                shared.append(attempt)
        return not shared or await self._complete_shared(apart, shared, pause)

    def _certain_margin(self) -> float:
        return min(CERTAIN_MARGIN, self._timeout / 4)

    async def _complete_shared(
        self, apart: TaskGroup, group: Sequence[Attempt], pause: float
    ) -> bool:
        """Delete the jobs of a group, in one write or, when one of them spoils it, in parts."""
        sent = monotonic()
        limit = min(self._limit.seconds, time_left(*group))
        deleted = None
        with CancelScope(shield=True):
            try:
                with self._metrics.timed("complete"):
                    ids = [attempt.record.id for attempt in group]
                    tokens = {attempt.record.token for attempt in group}
                    wanted = operations.held_any(ids, tokens)
                    deleted = await self._store.delete_within(wanted, limit)
                    lost = set() if deleted == len(ids) else await self._not_ours(group)
            except PyMongoError as error:
                for attempt in group:
                    attempt.unknown = error
                if deleted is not None or not operations.is_spoiled(error):
                    self._limit.met()
                    self._tried_in_vain(error, len(group))
                    left = self._give_up_overdue(group, pause)
                    self._finished[:0] = left
                    self._wake.set()
                    return not left
                if len(group) > 1:
                    for part in operations.parts(group):
                        apart.start_soon(self._complete_shared, apart, part, pause)
                else:
                    group[0].apart = 2 * limit
                    apart.start_soon(self._complete_apart, group[0])
                return True
        self._writing.succeeded()
        self._limit.kept(monotonic() - sent)
        for attempt in group:
            self._settle(attempt, lost=attempt in lost)
        return True

    async def _complete_apart(self, attempt: Attempt) -> None:
        """Complete a job by itself until its outcome is known or its lease has run out."""
        tries = 0
        with CancelScope(shield=True):
            while True:
                sent = monotonic()
                limit = min(time_left(attempt), attempt.apart or self._limit.seconds)
                try:
                    with self._metrics.timed("complete"):
                        lost = await self._delete(attempt, limit)
                except PyMongoError as error:
                    attempt.unknown = error
                    if operations.is_refusal(error):
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
                    self._settle(attempt, lost=lost)
                    return

    async def _delete(self, attempt: Attempt, limit: float) -> bool:
        """Delete the job of one attempt; return whether it no longer held it."""
        wanted = operations.held(attempt.record.id, attempt.record.token)
        certain = attempt.deadline > monotonic() + self._certain_margin()
        if certain:
            deleted = await self._store.delete_within(wanted, limit)
        else:
            with pymongo.timeout(time_left(attempt)):
                deleted = (await self._store.jobs.delete_one(wanted)).deleted_count
        if deleted or not (certain or attempt.completed):
            return not deleted
        return bool(await self._not_ours([attempt]))

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

    def _settle(self, attempt: Attempt, *, lost: bool) -> None:
        attempt.ending = False
        if not lost:
            attempt.outcome = AttemptOutcome.COMPLETED
        if attempt.settled is not None:
            attempt.settled.set()
        else:
            self._ended(attempt)
