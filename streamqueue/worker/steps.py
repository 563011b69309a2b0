"""StepEnds: how a worker stores the results of steps, in a transaction or by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from ..clock import monotonic
from ..errors import JobCancelled, LeaseLost
from ..protocol import operations
from .ends import Ends, time_left
from .execution.attempt import LEAST_TIME

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession

    from .execution.attempt import Attempt


DUE_SHARE = 0.5
"""Of the lease: when less is left, it should have been renewed."""
RENEWAL_LIMIT = 0.25
"""Seconds a renewal may wait for the transaction that it is to make room for."""


class StepEnds(Ends):
    """Ends attempts, and stores the results of their steps.

    Attributes:
        run_in_thread: calls a blocking function in a thread; set before the first start.
    """

    run_in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]

    def in_thread(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Call a blocking function in a thread that keeps no process alive."""
        return self.run_in_thread(function)

    async def begin_step_in(self, attempt: Attempt, session: AsyncClientSession) -> None:
        """Renew no lease of it while this session's transaction is open: that would change the job
        behind its snapshot.

        But where one transaction begins as the last one ends, nobody else would ever renew it, so
        that is done here when it is due. If a step of this transaction has changed the job already
        it waits for that, in vain and not for long.
        """
        left = attempt.deadline - monotonic()
        if left < LEAST_TIME:
            raise LeaseLost(attempt.record.id)
        attempt.session = session
        if left < self._timeout * DUE_SHARE:
            await self._renew_beside(attempt, None, min(left, RENEWAL_LIMIT))

    async def is_step_stored(
        self, attempt: Attempt, name: str, session: AsyncClientSession
    ) -> bool:
        """Return whether a step is stored, as the session's transaction sees it."""
        command = operations.stored_step(attempt.record.id, attempt.record.token, name)
        return await self._store.is_step_stored(command, session)

    async def store_step(
        self,
        attempt: Attempt,
        name: str,
        result: RawBSONDocument,
        session: AsyncClientSession | None,
    ) -> None:
        """Store the result of a step until that is certain, or the lease is over, and renew that;
        or do it as a statement of the caller's transaction."""
        self._check(attempt)
        step = (attempt.record.id, attempt.record.token, name, result)
        if session is not None:
            asked = await self._store_in(attempt, operations.store_step(*step, None), session)
        else:
            asked = await self._store_for_certain(
                attempt, operations.store_step(*step, self._timeout)
            )
        if asked is None:
            raise LeaseLost(attempt.record.id)
        if asked:
            attempt.ask()
            raise JobCancelled(attempt.record.id)

    async def _store_for_certain(self, attempt: Attempt, command: operations.Update) -> bool | None:
        sent = monotonic()

        def left() -> float:
            over = self._hurry.is_set() or attempt.lost
            return 0.0 if over else attempt.deadline - monotonic()

        def failed(error: PyMongoError) -> None:
            self._metrics.operation_failed("renew", error)

        try:
            asked = await self._store.store_step(command, left, failed)
        except PyMongoError as error:
            if attempt.lost or attempt.deadline <= monotonic():
                raise LeaseLost(attempt.record.id) from error
            raise
        if asked is not None:
            self._metrics.operation["renew"].observe(monotonic() - sent)
            attempt.extend(sent, self._timeout)
            self._renewals.note(attempt.renew_at)
            attempt.registered.metrics.leases_renewed.inc()
        return asked

    async def _store_in(
        self, attempt: Attempt, command: operations.Update, session: AsyncClientSession
    ) -> bool | None:
        if attempt.deadline - monotonic() < LEAST_TIME:
            raise LeaseLost(attempt.record.id)  # rather than have the commit come too late
        try:
            return await self._store.store_step_in(command, session)
        except PyMongoError as error:
            await self._renew_after(attempt, error)
            raise

    async def _renew_after(self, attempt: Attempt, error: PyMongoError) -> None:
        """Renew the lease if this error lets the transaction be tried again: most likely it was our
        own renewal, behind its snapshot, and the next try should have the whole lease."""
        if error.has_error_label("TransientTransactionError"):
            await self._renew_beside(attempt, error, time_left(attempt))

    async def _renew_beside(
        self, attempt: Attempt, reason: PyMongoError | None, limit: float
    ) -> None:
        wanted = operations.held(attempt.record.id, attempt.record.token)
        sent = monotonic()
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
