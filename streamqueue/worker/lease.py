"""What this process holds: attempts, their local deadlines, and the renewal of their leases.

An attempt is ours for certain until its deadline: the reading of the clock *before* the claim (or
the last acknowledged renewal) was sent, plus the timeout, less a margin in which to stop the
handler. The server counts from later, so it never gives the job away before that moment.

There is at most one live attempt per job in a process: when a job is claimed again that an old
attempt still believes in, the old one is lost. So one update may match many jobs and many tokens.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import anyio
import pymongo
from pymongo.errors import PyMongoError

from .. import operations
from ..async_queue import AsyncJob
from ..clock import monotonic
from ..job import facts
from ..metrics import AttemptOutcome
from ..outage import LoggedOutage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bson import ObjectId
    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..async_store import AsyncStore
    from ..document import JobRecord
    from ..metrics import Metrics
    from .completer import Completer
    from .handler import RegisteredHandler

logger = logging.getLogger("streamqueue.lease")

RENEWALS_PER_TIMEOUT = 3
MARGIN_SHARE, MARGIN_CAP = 20, 1.0
"""The margin is a twentieth of the timeout, at most a second."""
RETRY_SHARE = 10
"""A failed renewal is tried again after a tenth of the timeout, at most a second."""


class Attempt:
    """One claim of one job, from the claim to its final write.

    Attributes:
        record: the job as claimed; with the token.
        deadline: :func:`monotonic` time until which the job is ours for certain.
        scope: cancels the handler, while one runs that can be cancelled.
        abandon: leaves the thread of a blocking handler behind, at the end of the drain time.
        settled: set when a complete that somebody waits for has its outcome.
        lost: somebody else may hold the job. Set once, by :class:`Leases`.
        ending: a final write is under way. Set by the completer.
        outcome: how it ended, once a final write was acknowledged. Set by the completer.
        unknown: the error of a complete that may have been applied all the same, or None. Set by
            the completer.
    """

    __slots__ = (
        "_completer",
        "abandon",
        "deadline",
        "ending",
        "job",
        "lost",
        "outcome",
        "record",
        "registered",
        "renew_at",
        "scope",
        "settled",
        "unknown",
    )

    def __init__(
        self,
        record: JobRecord,
        registered: RegisteredHandler,
        completer: Completer,
        *,
        sent: float,
        timeout: float,
    ) -> None:
        self.record = record
        self.registered = registered
        self._completer = completer
        self.job = AsyncJob(record, self)
        self.extend(sent, timeout)
        self.scope: anyio.CancelScope | None = None
        self.abandon: anyio.CancelScope | None = None
        self.settled: anyio.Event | None = None
        self.lost = False
        self.ending = False
        self.outcome: AttemptOutcome | None = None
        self.unknown: PyMongoError | None = None

    def extend(self, sent: float, timeout: float) -> None:
        """Set the deadline: the claim, or a renewal, sent at that time was acknowledged."""
        self.deadline = sent + timeout - min(timeout / MARGIN_SHARE, MARGIN_CAP)
        self.renew_at = sent + timeout / RENEWALS_PER_TIMEOUT

    def result(self) -> AttemptOutcome:
        """Return how it ended; without an acknowledged final write the lease counts as lost."""
        return AttemptOutcome.LEASE_LOST if self.outcome is None else self.outcome

    def facts(self) -> dict[str, object]:
        """Return what a line of the log says of it."""
        return facts(self.record)

    # what its AsyncJob asks for

    async def _complete(self, _record: JobRecord, session: AsyncClientSession | None) -> None:
        await self._completer.complete(self, session)

    async def _error(self, _record: JobRecord, message: str | None, delay: float | None) -> None:
        await self._completer.error(self, message, delay)

    async def _discard(self, _record: JobRecord, message: str) -> None:
        await self._completer.discard(self, message)

    async def _progress(self, _record: JobRecord, count: int | None) -> None:
        await self._completer.progress(self, count)

    async def _release(self, _record: JobRecord, delay: float | None) -> None:
        await self._completer.release(self, delay)


class Leases:
    """The attempts this process holds; keeps them and says which were lost."""

    def __init__(self, store: AsyncStore, timeout: float, metrics: Metrics) -> None:
        self._store = store
        self._timeout = timeout
        self._metrics = metrics
        self._held: dict[ObjectId, Attempt] = {}
        self._changed = anyio.Event()
        self._renewing = LoggedOutage(logger, "renew", "Renewing leases")

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> list[Attempt]:
        """Return the attempts under way."""
        return list(self._held.values())

    def add(self, attempt: Attempt) -> None:
        """Hold a claimed job; an older attempt at the same job is lost by that."""
        old = self._held.get(attempt.record.id)
        if old is not None:
            self.lose(old)
        if not self._held:
            self._changed.set()
        self._held[attempt.record.id] = attempt

    def remove(self, attempt: Attempt) -> None:
        """Forget an attempt that has ended."""
        if self._held.get(attempt.record.id) is attempt:
            del self._held[attempt.record.id]

    async def give_back(self) -> int:
        """Release what was claimed and never came to its end: a run that was cancelled. Returns
        how many jobs that were."""
        left = [attempt for attempt in self.held() if attempt.outcome is None]
        if not left:
            return 0
        ids = [attempt.record.id for attempt in left]
        command = operations.release_many(ids, {attempt.record.token for attempt in left})
        try:
            with anyio.CancelScope(shield=True), self._store.limit():
                await self._store.jobs.update_many(*command)
        except PyMongoError as error:
            logger.warning(
                "Leases are left to run out: %s",
                type(error).__name__,
                extra={
                    "event": "claim_left",
                    "count": len(left),
                    "error": type(error).__name__,
                },
            )
            return 0
        return len(left)

    def lose(self, attempt: Attempt) -> None:
        """Note that the job may be somebody else's: cancel its handler, void its final write."""
        if attempt.lost or attempt.outcome is not None:
            return
        attempt.lost = True
        self.remove(attempt)
        attempt.registered.metrics.leases_lost.inc()
        reason = "taken"  # or removed: it is another's now, or nobody's
        if attempt.unknown is not None:
            reason = "its end could not be written for certain"
        elif attempt.deadline <= monotonic():
            reason = "not renewed in time"
        logger.warning(
            "Lost the lease of job %s (attempt %d): %s",
            attempt.record.id,
            attempt.record.attempts,
            reason,
            extra={
                "event": "lease_lost",
                **attempt.facts(),
                "reason": reason,
                "error": None if attempt.unknown is None else type(attempt.unknown).__name__,
            },
        )
        if attempt.scope is not None:
            attempt.scope.cancel()

    async def run(self) -> None:
        """Renew what runs long, for ever. Sends nothing while nothing does."""
        async with anyio.create_task_group() as both:
            # Apart, because a renewal that gets no answer must not hold up the deadline.
            both.start_soon(self._keep_deadlines)
            both.start_soon(self._keep_renewing)

    async def _keep_deadlines(self) -> None:
        while True:
            now = monotonic()
            for attempt in self.held():
                if attempt.deadline <= now:
                    self.lose(attempt)
            await self._wait_until(attempt.deadline for attempt in self._held.values())

    async def _keep_renewing(self) -> None:
        while True:
            await self._wait_until(attempt.renew_at for attempt in self._held.values())
            await self._renew()

    async def _wait_until(self, times: Iterable[float]) -> None:
        """Return at the first of these times; with none, when a job is held."""
        left = min(times, default=math.inf) - monotonic()
        if math.isfinite(left):
            await anyio.sleep(max(0.0, left))
        else:
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()

    async def _renew(self) -> None:
        """Extend, in one update, every lease that is due or nearly so."""
        sent = monotonic()
        soon = sent + self._timeout / (4 * RENEWALS_PER_TIMEOUT)
        due = [attempt for attempt in self._held.values() if attempt.renew_at <= soon]
        if not due:
            return
        wanted = operations.held_any(
            [attempt.record.id for attempt in due], {attempt.record.token for attempt in due}
        )
        left = max(0.05, min(attempt.deadline for attempt in due) - sent)
        try:
            with (
                self._metrics.timed("renew"),
                anyio.CancelScope(shield=True),
                pymongo.timeout(left),
            ):
                result = await self._store.jobs.update_many(
                    *operations.renew(wanted, self._timeout)
                )
                kept = due
                if result.matched_count < len(due):
                    kept = await self._still_ours(due, wanted)
        except PyMongoError as error:
            # Unknown, so the deadlines stay where they are.
            self._renewing.failed(error, "Leases could not be renewed: %s")
            again = monotonic() + min(1.0, self._timeout / RETRY_SHARE)
            for attempt in due:
                attempt.renew_at = again
            return
        self._renewing.succeeded()
        for attempt in kept:
            attempt.extend(sent, self._timeout)
            attempt.registered.metrics.leases_renewed.inc()
        for attempt in set(due).difference(kept):
            # One whose final write is under way may have ended by it: that write will tell.
            if self._held.get(attempt.record.id) is attempt and not attempt.ending:
                self.lose(attempt)

    async def _still_ours(self, due: Sequence[Attempt], wanted: dict[str, Any]) -> list[Attempt]:
        command = operations.Find(wanted, {"_id": 1, "lease": 1})
        tokens = {found["_id"]: found["lease"] for found in await self._store.find(command)}
        return [a for a in due if tokens.get(a.record.id) == a.record.token]
