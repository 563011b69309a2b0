"""An attempt: one claim of one job, and how long the job is ours for certain.

It is until the attempt's deadline: the reading of the clock *before* the claim (or the last
acknowledged renewal) was sent, plus the timeout, less a margin in which to stop the handler. The
server counts from later, so it never gives the job away before that moment.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from anyio.lowlevel import checkpoint

from ...clock import monotonic
from ...errors import JobCancelled, LeaseLost
from ...metrics.series import AttemptOutcome
from ...protocol.progress import QUIET, progress_of
from ...protocol.result import NO_RESULT
from ...queue.job import AsyncJob
from ...queue.lines import facts, log_asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import anyio
    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.errors import PyMongoError

    from ...errors import PayloadError
    from ...protocol.document import JobRecord
    from ...protocol.steps import StepResult
    from ...queue.outcome import End
    from ..handler import RegisteredHandler

RENEWALS_PER_TIMEOUT = 3
MARGIN_SHARE, MARGIN_CAP = 20, 1.0
"""The margin is a twentieth of the timeout, at most a second."""
LEAST_TIME = 0.05
"""Seconds a write of an attempt is given at the least, however little of its lease is left."""


class Ender(Protocol):
    """Whoever writes the ends of attempts, and their progress (``completer``)."""

    async def complete(
        self, attempt: Attempt, result: object, session: AsyncClientSession | None
    ) -> None:
        """Complete the job with a result; in the caller's transaction, if there is one."""

    async def end(self, attempt: Attempt, end: End) -> None:
        """End the attempt in any other way."""

    async def progress(self, attempt: Attempt, *, renews: bool) -> None:
        """Write what was said of progress, or see to it that it is written when it may be; to renew
        the lease, write now."""

    async def parents(self, ids: Sequence[Any], whole: bool) -> Sequence[RawBSONDocument]:
        """Return those of some parents of a job that are there, with their results, or whole."""
        ...

    async def begin_step_in(self, attempt: Attempt, session: AsyncClientSession) -> None:
        """Renew no lease of it while this session's transaction is open."""

    async def is_step_stored(
        self, attempt: Attempt, name: str, session: AsyncClientSession
    ) -> bool:
        """Return whether a step is stored, as the session's transaction sees it."""
        ...

    async def store_step(
        self,
        attempt: Attempt,
        name: str,
        result: RawBSONDocument,
        session: AsyncClientSession | None,
    ) -> None:
        """Store the result of a step, in the caller's transaction, if there is one."""

    def in_thread(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Call a blocking function in a thread that keeps no process alive."""
        ...


class Observer(Protocol):
    """Whoever is told of the attempts of a worker; called in the event loop, so it must not wait
    for anything."""

    def begins(self, attempt: Attempt) -> None:
        """Its handler is about to be called."""

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        """Its handler has raised; the traceback is taken from the exception afterwards."""

    def ended(self, attempt: Attempt) -> None:
        """It had its final write, or never will; ``attempt.result()`` says how it ended."""


class Attempt:
    """One claim of one job, from the claim to its final write.

    Attributes:
        record: the job as claimed; with the token.
        claimed_at: :func:`monotonic` time at which the claim was answered.
        deadline: :func:`monotonic` time until which the job is ours for certain.
        begun: its handler was called.
        scope: cancels the handler, while one runs that can be cancelled.
        abandon: leaves the thread of a blocking handler behind, at the end of the drain time.
        settled: set when a complete that somebody waits for has its outcome.
        lost: somebody else may hold the job. Set once, by :class:`Leases`.
        overdue: its time limit was over before its handler was. Set once, by ``TimeLimits``.
        session: of the handler's transaction that completes the job, from its first use on. Set by
            the completer.
        completed: a statement of such a transaction has removed the job; whether that holds is
            known when the transaction has ended. Set by the completer.
        apart: seconds the next write of this job may take inside the server, once a shared one has
            met its limit there because of it; None for a job that shares writes.
        ending: a final write is under way. Set by the completer.
        outcome: how it ended, once a final write was acknowledged. Set by whoever has written it.
        kept: it is to be ended by an update, since it is kept or somebody waits for its end; it may
            turn out so at its end only. Set by the completer.
        value: what it is completed with. Set by the completer.
        unstorable: why that cannot be stored, or None. Set by the completer, and for a result that
            could not leave its child process.
        returned: what its handler returned.
        unknown: the error of a complete that may have been applied all the same, or None. Set by
            the completer.
    """

    __slots__ = (
        "_ender",
        "abandon",
        "apart",
        "begun",
        "claimed_at",
        "completed",
        "deadline",
        "ending",
        "job",
        "kept",
        "lost",
        "outcome",
        "overdue",
        "record",
        "registered",
        "renew_at",
        "returned",
        "scope",
        "session",
        "settled",
        "unknown",
        "unstorable",
        "value",
    )

    def __init__(
        self,
        record: JobRecord,
        registered: RegisteredHandler,
        ender: Ender,
        *,
        sent: float,
        timeout: float,
    ) -> None:
        self.record = record
        self.registered = registered
        self._ender = ender
        self.job = AsyncJob(record, self)
        self.claimed_at = monotonic()
        self.deadline = -math.inf
        self.extend(sent, timeout)
        self.begun = False
        self.scope: anyio.CancelScope | None = None
        self.abandon: anyio.CancelScope | None = None
        self.settled: anyio.Event | None = None
        self.session: AsyncClientSession | None = None
        self.completed = False
        self.apart: float | None = None
        self.kept = record.stays
        self.value = NO_RESULT
        self.unstorable: PayloadError | None = None
        self.returned: object = None
        self.lost = False
        self.overdue = False
        self.ending = False
        self.outcome: AttemptOutcome | None = None
        self.unknown: PyMongoError | None = None

    def extend(self, sent: float, timeout: float) -> None:
        """Set the deadline: the claim, or a renewal, sent at that time was acknowledged.

        Never to an earlier one: of two renewals the older may be answered last.
        """
        margin = min(timeout / MARGIN_SHARE, MARGIN_CAP)
        self.deadline = max(self.deadline, sent + timeout - margin)
        self.renew_at = self.deadline + margin - timeout + timeout / RENEWALS_PER_TIMEOUT
        self.renew_for_progress()

    def renew_for_progress(self) -> None:
        """Have it renewed as soon as what is new of its progress may be stored."""
        said = self.record.progress
        if said is not None and said.unstored:
            self.renew_at = min(self.renew_at, said.due_at)

    @property
    def context(self) -> Mapping[str, Any]:
        """What the lifespan of the worker has opened for all handlers."""
        return self.registered.context

    @property
    def asked(self) -> bool:
        """Whether somebody has asked to cancel the job: it ends as cancelled, whatever becomes of
        its handler."""
        return self.record.asked

    def ask(self) -> None:
        """Note that, unless an end of the job is on its way; cancel its handler."""
        if self.asked or self.lost or self.ending or self.outcome is not None:
            return
        self.record.asked = True
        log_asked(self.record)
        if self.scope is not None:
            self.scope.cancel()

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction that completes the job is open, or a new try of it is."""
        return self.session is not None and self.session.in_transaction

    def result(self) -> AttemptOutcome:
        """Return how it ended; without an acknowledged final write the lease counts as lost."""
        return AttemptOutcome.LEASE_LOST if self.outcome is None else self.outcome

    def facts(self) -> dict[str, object]:
        """Return what a line of the log says of it."""
        return facts(self.record)

    # what its AsyncJob asks for

    def cancelled(self, _record: JobRecord) -> bool:
        return self.asked

    def _check_not_asked(self) -> None:
        if self.asked:
            raise JobCancelled(self.record.id)

    async def complete(
        self, _record: JobRecord, result: object, session: AsyncClientSession | None
    ) -> None:
        self._check_not_asked()
        await self._ender.complete(self, result, session)

    async def end(self, _record: JobRecord, end: End) -> None:
        if end.kind != "cancelled":
            self._check_not_asked()
        await self._ender.end(self, end)

    async def progress(self, _record: JobRecord, count: int | None, note: str | None) -> None:
        if self.says(count, note):
            await self.write_progress(count, note)
        await checkpoint()  # most of them wait for nothing, and must not keep out all others

    async def parents(
        self, _record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Sequence[RawBSONDocument]:
        return await self._ender.parents(ids, whole)

    def check_held(self) -> None:
        """Raise if it is known that the job is held no longer, or is to be cancelled; in whichever
        thread."""
        self._check_not_asked()
        if self.lost or self.ending or self.outcome is not None:
            raise LeaseLost(self.record.id)

    async def begin_step(self, _record: JobRecord, session: AsyncClientSession | None) -> None:
        self.check_held()
        if session is not None:
            await self._ender.begin_step_in(self, session)

    async def is_step_stored(
        self, _record: JobRecord, name: str, session: AsyncClientSession
    ) -> bool:
        return await self._ender.is_step_stored(self, name, session)

    async def store_step(
        self,
        _record: JobRecord,
        name: str,
        result: RawBSONDocument,
        session: AsyncClientSession | None,
    ) -> None:
        await self._ender.store_step(self, name, result, session)

    def count_step(self, result: StepResult) -> None:
        self.registered.metrics.steps[result].inc()

    def in_thread(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return self._ender.in_thread(function)

    def says(self, count: int | None, note: str | None) -> bool:
        """Keep what its handler says of progress, in whichever thread; return whether
        :meth:`write_progress` is to be called, in the event loop.

        Raises:
            LeaseLost: the job is known to be held no longer.
            JobCancelled: it is known that somebody has asked for that.
        """
        self.check_held()
        return progress_of(self.record, QUIET).say(count, note)

    async def write_progress(self, count: int | None, note: str | None) -> None:
        """Have it written, now or later."""
        await self._ender.progress(self, renews=count is None and note is None)
