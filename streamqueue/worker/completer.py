"""The writes that end an attempt, or note its progress: fenced, retried while the lease lasts.

Completes are group-committed by one task: what finishes while one delete is in flight goes in the
next. The rarer ends are written one by one, by whoever asks.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import anyio
import pymongo
from anyio import CancelScope
from anyio.lowlevel import cancel_shielded_checkpoint
from pymongo.errors import PyMongoError

from .. import operations
from ..clock import monotonic
from ..errors import LeaseLost
from ..metrics import AttemptOutcome
from ..outage import LoggedOutage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..async_store import AsyncStore
    from ..metrics import Metrics, Operation
    from .lease import Attempt

logger = logging.getLogger("streamqueue.completer")

MAX_GROUP = 1000
"""Jobs in one delete: enough that its round trip no longer counts."""
CERTAIN_MARGIN = 1.0
"""Seconds a lease must still have for its complete to share a write; see ``_delete``."""
LEAST_TIME = 0.05
"""Seconds a final write is given at the least, however little of its lease is left."""
FIRST_PAUSE = 0.05
PAUSE_CAP = 2.0


class Completer:
    """Ends attempts. Raises LeaseLost for one that is no longer held.

    When the lease has run out over a write that may have been applied, nobody can tell any more: a
    job that is gone may have been completed by its next holder. Then the error of that write is
    raised, as for every write whose outcome is unknown.

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
        self._store = store
        self._timeout = timeout
        self._metrics = metrics
        self._ended = ended
        self._finished: list[Attempt] = []
        self._wake = anyio.Event()
        self._hurry = False
        self._writing = LoggedOutage(logger, "complete", "Writing the ends of jobs")

    # completes

    async def run(self) -> None:
        """Write completes for ever."""
        try:
            while True:
                if not self._finished:
                    self._wake = anyio.Event()
                    await self._wake.wait()
                await self._complete_group()
        finally:
            with CancelScope(shield=True):
                self._hurry = True
                while self._finished:
                    await self._complete_group()

    def hurry(self) -> None:
        """Do not try again what fails from now on: its lease will return the job."""
        self._hurry = True

    def finish(self, attempt: Attempt) -> None:
        """Complete a job whose handler returned; the outcome is told to `ended`."""
        attempt.ending = True
        self._finished.append(attempt)
        self._wake.set()

    async def complete(self, attempt: Attempt, session: AsyncClientSession | None = None) -> None:
        """Complete a job whose handler asks for it; return when it is removed from the queue."""
        self._check(attempt)
        if session is not None:
            # Part of the caller's transaction: its own statement, and not final before the commit.
            wanted = operations.held(attempt.record.id, attempt.record.token)
            if not (await self._store.jobs.delete_one(wanted, session=session)).deleted_count:
                raise LeaseLost(attempt.record.id)
            return
        attempt.settled = anyio.Event()
        self.finish(attempt)
        with CancelScope(shield=True):  # it is on its way: the caller should learn how it ends
            await attempt.settled.wait()
        attempt.settled = None  # a handler that ignores the error is completed as any other
        if attempt.outcome is not AttemptOutcome.COMPLETED:
            raise attempt.unknown or LeaseLost(attempt.record.id)

    async def _complete_group(self) -> None:
        # One turn of the event loop, so that handlers that end in the same turn share the write.
        await cancel_shielded_checkpoint()
        group, self._finished = self._finished[:MAX_GROUP], self._finished[MAX_GROUP:]
        pause = FIRST_PAUSE
        with CancelScope(shield=True):
            while group:
                try:
                    with self._metrics.timed("complete"):
                        lost = await self._delete(group)
                except PyMongoError as error:
                    for attempt in group:
                        attempt.unknown = error
                    self._writing.failed(error, "%d completes could not be written: %s", len(group))
                    group = self._give_up_overdue(group, float("inf") if self._hurry else pause)
                    if group:
                        await anyio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, PAUSE_CAP)
                else:
                    self._writing.succeeded()
                    for attempt in group:
                        self._settle(attempt, lost=attempt in lost)
                    return

    def _give_up_overdue(self, group: Sequence[Attempt], pause: float) -> list[Attempt]:
        """Settle the attempts whose lease does not last that long; return the others."""
        until = monotonic() + pause
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

    async def _delete(self, attempts: Sequence[Attempt]) -> set[Attempt]:
        """Delete the jobs of a group; return the attempts that no longer held theirs.

        Sharing one delete, a job that is gone afterwards was removed by it, or by an operator, as
        long as the lease is certainly ours. So those whose lease may end are asked for one by one,
        where the answer is exact, and no answer is waited for longer than the lease.
        """
        certain_until = monotonic() + min(CERTAIN_MARGIN, self._timeout / 4)
        shared, single, lost = [], [], set()
        for attempt in attempts:
            if attempt.lost:
                lost.add(attempt)
            elif attempt.deadline > certain_until:
                shared.append(attempt)
            else:
                single.append(attempt)
        if len(shared) == 1:
            single.append(shared.pop())
        if shared:
            lost |= await self._delete_shared(shared)
        for attempt in single:
            wanted = operations.held(attempt.record.id, attempt.record.token)
            with pymongo.timeout(_left(attempt)):
                deleted = (await self._store.jobs.delete_one(wanted)).deleted_count
                if not deleted and attempt.deadline > certain_until:
                    lost |= await self._not_ours([attempt])
                elif not deleted:
                    lost.add(attempt)
        return lost

    async def _delete_shared(self, attempts: Sequence[Attempt]) -> set[Attempt]:
        ids = [attempt.record.id for attempt in attempts]
        wanted = operations.held_any(ids, {attempt.record.token for attempt in attempts})
        with pymongo.timeout(_left(*attempts)):
            result = await self._store.jobs.delete_many(wanted)
            if result.deleted_count == len(ids):
                return set()
            return await self._not_ours(attempts)

    async def _not_ours(self, attempts: Sequence[Attempt]) -> set[Attempt]:
        """Return those whose job is somebody else's by now, or was when it went.

        The others are gone by a first try whose reply was lost, which is as good: their lease,
        ours to this moment, kept everybody else away.
        """
        ids = [attempt.record.id for attempt in attempts]
        left = await self._store.find(operations.Find({"_id": {"$in": ids}}, {"_id": 1}))
        still_there = {document["_id"] for document in left}
        now = monotonic()
        lost = set()
        for attempt in attempts:
            if attempt.record.id in still_there:
                attempt.unknown = None  # no try has removed it
                lost.add(attempt)
            elif attempt.deadline <= now:
                lost.add(attempt)
        return lost

    # the other ends

    async def error(self, attempt: Attempt, message: str | None, delay: float | None) -> None:
        """Return the job after a delay (None: the handler's backoff), or bury it."""
        record, handler = attempt.record, attempt.registered.handler
        wait = handler.backoff.delay(record.attempts) if delay is None else delay
        dead = record.attempts >= record.max_attempts
        command = operations.error(record.id, record.token, message, wait, record.max_attempts)
        outcome = AttemptOutcome.DEAD if dead else AttemptOutcome.RETRIED
        await self._end(attempt, outcome, "error", command)
        if dead:
            _log_death(attempt, "its attempts are used up")

    async def discard(self, attempt: Attempt, message: str) -> None:
        """Bury the job."""
        command = operations.discard(attempt.record.id, attempt.record.token, message)
        await self._end(attempt, AttemptOutcome.DEAD, "error", command)
        _log_death(attempt, "discarded by its handler")

    async def release(self, attempt: Attempt, delay: float | None = None) -> None:
        """Give the job back as it was before the claim."""
        command = operations.release(attempt.record.id, attempt.record.token, delay)
        await self._end(attempt, AttemptOutcome.RELEASED, "release", command)

    async def progress(self, attempt: Attempt, count: int | None) -> None:
        """Note progress and renew the lease."""
        self._check(attempt)
        wanted = operations.held(attempt.record.id, attempt.record.token)
        sent = monotonic()
        limit = pymongo.timeout(_left(attempt))
        with self._metrics.timed("renew"), CancelScope(shield=True), limit:
            result = await self._store.jobs.update_one(
                *operations.renew(wanted, self._timeout, count)
            )
        if not result.matched_count:
            raise LeaseLost(attempt.record.id)
        attempt.extend(sent, self._timeout)
        attempt.registered.metrics.leases_renewed.inc()

    def _check(self, attempt: Attempt) -> None:
        if attempt.lost or attempt.ending or attempt.outcome is not None:
            raise LeaseLost(attempt.record.id)

    async def _end(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        operation: Operation,
        command: operations.Update,
    ) -> None:
        """Send a final write until its outcome is known or the lease has run out."""
        self._check(attempt)
        attempt.ending = True
        pause = FIRST_PAUSE
        unknown: PyMongoError | None = None
        try:
            while True:
                limit = pymongo.timeout(_left(attempt))
                try:
                    with self._metrics.timed(operation), CancelScope(shield=True), limit:
                        result = await self._store.jobs.update_one(*command)
                except PyMongoError as error:
                    unknown = error
                    self._writing.failed(
                        error,
                        "The end of job %s could not be written yet: %s",
                        attempt.record.id,
                    )
                    overdue = monotonic() + pause > attempt.deadline
                    if self._hurry or attempt.lost or overdue:
                        raise
                    await anyio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, PAUSE_CAP)
                else:
                    self._writing.succeeded()
                    # Not matched after a try with an unknown outcome, while the lease keeps
                    # everybody else away: that one was applied.
                    applied = unknown is not None and attempt.deadline > monotonic()
                    if not result.matched_count and not applied:
                        raise unknown or LeaseLost(attempt.record.id)
                    attempt.outcome = outcome
                    return
        finally:
            attempt.ending = False


def _log_death(attempt: Attempt, reason: str) -> None:
    record = attempt.record
    logger.error(
        "Job %s of queue %s is dead after attempt %d of %d: %s",
        record.id,
        record.queue,
        record.attempts,
        record.max_attempts,
        reason,
        extra={"event": "job_dead", **attempt.facts(), "reason": reason},
    )


def _left(*attempts: Attempt) -> float:
    """Return the seconds until the first of their leases ends, for a write that needs it."""
    return max(LEAST_TIME, min(attempt.deadline for attempt in attempts) - monotonic())
