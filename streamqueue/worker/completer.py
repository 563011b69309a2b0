"""The writes that end an attempt, or note its progress: fenced, retried while the lease lasts.

Completes are group-committed: those that gather while one delete is in flight go in the next. The
rarer ends are written one by one.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import anyio
from pymongo.errors import ConnectionFailure, PyMongoError, WTimeoutError

from .. import operations
from ..clock import monotonic
from ..errors import LeaseLost
from ..group_commit import GroupCommit
from ..metrics import AttemptOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..async_store import AsyncStore
    from ..metrics import Metrics, Operation
    from .lease import Attempt

logger = logging.getLogger("streamqueue.completer")

CERTAIN_MARGIN = 1.0
"""Seconds a lease must still have for its complete to share a write; see ``_delete``."""


class Completer:
    """Ends attempts. Raises LeaseLost for one that is no longer held."""

    def __init__(self, store: AsyncStore, timeout: float, metrics: Metrics) -> None:
        self._store = store
        self._timeout = timeout
        self._metrics = metrics
        self._completes: GroupCommit[Attempt] = GroupCommit(self._delete)

    async def complete(self, attempt: Attempt, session: AsyncClientSession | None = None) -> None:
        """Remove the job from the queue."""
        if session is not None:
            # Part of the caller's transaction: its own statement, and not final before the commit.
            wanted = operations.held(attempt.record.id, attempt.record.token)
            if not (await self._store.jobs.delete_one(wanted, session=session)).deleted_count:
                raise LeaseLost(attempt.record.id)
            return

        async def send() -> None:
            await self._completes.submit(attempt)

        await self._end(attempt, AttemptOutcome.COMPLETED, send)

    async def error(self, attempt: Attempt, message: str | None, delay: float | None) -> None:
        """Return the job after a delay (None: the handler's backoff), or bury it."""
        record, handler = attempt.record, attempt.registered.handler
        wait = handler.backoff.delay(record.attempts) if delay is None else delay
        dead = record.attempts >= record.max_attempts
        command = operations.error(record.id, record.token, message, wait, record.max_attempts)
        outcome = AttemptOutcome.DEAD if dead else AttemptOutcome.RETRIED
        await self._update(attempt, outcome, "error", command)

    async def discard(self, attempt: Attempt, message: str) -> None:
        """Bury the job."""
        command = operations.discard(attempt.record.id, attempt.record.token, message)
        await self._update(attempt, AttemptOutcome.DEAD, "error", command)

    async def release(self, attempt: Attempt, delay: float | None = None) -> None:
        """Give the job back as it was before the claim."""
        command = operations.release(attempt.record.id, attempt.record.token, delay)
        await self._update(attempt, AttemptOutcome.RELEASED, "release", command)

    async def progress(self, attempt: Attempt, count: int | None) -> None:
        """Note progress and renew the lease."""
        self._check(attempt)
        wanted = operations.held(attempt.record.id, attempt.record.token)
        sent = monotonic()
        with self._metrics.timed("renew"), anyio.CancelScope(shield=True):
            result = await self._store.jobs.update_one(
                *operations.renew(wanted, self._timeout, count)
            )
        if not result.matched_count:
            raise LeaseLost(attempt.record.id)
        attempt.extend(sent, self._timeout)

    def _check(self, attempt: Attempt) -> None:
        if attempt.lost or attempt.outcome is not None:
            raise LeaseLost(attempt.record.id)

    async def _update(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        operation: Operation,
        command: operations.Update,
    ) -> None:
        unknown = False

        async def send() -> None:
            nonlocal unknown
            try:
                with self._metrics.timed(operation), anyio.CancelScope(shield=True):
                    result = await self._store.jobs.update_one(*command)
            except PyMongoError:
                unknown = True
                raise
            # Not matched after a try with an unknown outcome: that one was applied.
            if not result.matched_count and not unknown:
                raise LeaseLost(attempt.record.id)

        await self._end(attempt, outcome, send)

    async def _end(
        self, attempt: Attempt, outcome: AttemptOutcome, send: Callable[[], Awaitable[None]]
    ) -> None:
        """Send a final write until its outcome is known or the lease has run out."""
        self._check(attempt)
        attempt.ending = True
        pause = 0.05
        try:
            while True:
                try:
                    await send()
                except (ConnectionFailure, WTimeoutError) as error:
                    if attempt.lost or monotonic() + pause > attempt.deadline:
                        raise
                    logger.warning(
                        "The end of job %s could not be written yet: %s",
                        attempt.record.id,
                        type(error).__name__,
                    )
                    await anyio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, 2.0)
                else:
                    attempt.outcome = outcome
                    return
        finally:
            attempt.ending = False

    async def _delete(self, attempts: Sequence[Attempt]) -> list[BaseException | None]:
        """Complete a group; return None or LeaseLost for each.

        Sharing one delete, a job that is gone afterwards was removed by it, or by an operator: the
        lease was certainly ours. So those whose lease may have ended are asked for one by one,
        where the answer is exact.
        """
        lost = [LeaseLost(attempt.record.id) if attempt.lost else None for attempt in attempts]
        certain_until = monotonic() + min(CERTAIN_MARGIN, self._timeout / 4)
        shared = [a for a in attempts if not a.lost and a.deadline > certain_until]
        gone_elsewhere: set[Attempt] = set()
        with self._metrics.timed("complete"):
            if shared:
                gone_elsewhere |= await self._delete_shared(shared)
            for attempt in attempts:
                if not attempt.lost and attempt.deadline <= certain_until:
                    wanted = operations.held(attempt.record.id, attempt.record.token)
                    if not (await self._store.jobs.delete_one(wanted)).deleted_count:
                        gone_elsewhere.add(attempt)
        return [
            LeaseLost(attempt.record.id) if attempt in gone_elsewhere else error
            for attempt, error in zip(attempts, lost, strict=True)
        ]

    async def _delete_shared(self, attempts: Sequence[Attempt]) -> set[Attempt]:
        """Delete in one command; return those that are somebody else's by now."""
        ids = [attempt.record.id for attempt in attempts]
        if len(ids) == 1:
            wanted = operations.held(ids[0], attempts[0].record.token)
            deleted = (await self._store.jobs.delete_one(wanted)).deleted_count
        else:
            wanted = operations.held_any(ids, {attempt.record.token for attempt in attempts})
            deleted = (await self._store.jobs.delete_many(wanted)).deleted_count
        if deleted == len(ids):
            return set()
        # Fewer: after a retry they may be gone by the first try, and that is as good.
        left = await self._store.find(operations.Find({"_id": {"$in": ids}}, {"_id": 1}))
        still_there = {document["_id"] for document in left}
        return {attempt for attempt in attempts if attempt.record.id in still_there}
