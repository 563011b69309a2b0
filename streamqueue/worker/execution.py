"""Running one attempt: the handler, and what its end means for the job."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, from_thread, get_cancelled_exc_class, to_thread
from pymongo.errors import PyMongoError

from ..clock import monotonic
from ..durations import seconds
from ..errors import ConfigurationError, Discard, LeaseLost, Retry, Snooze
from ..job import describe
from ..metrics import AttemptOutcome
from ..queue import Job

if TYPE_CHECKING:
    from ..async_store import AsyncStore
    from ..document import JobRecord
    from .completer import Completer
    from .lease import Attempt, Leases
    from .slots import Slots

logger = logging.getLogger("streamqueue.execution")


class Interrupted(Exception):
    """The handler was stopped from outside: the job is given back without blame."""


class Execution:
    """Runs attempts, each in a task of its own."""

    def __init__(
        self, store: AsyncStore, leases: Leases, completer: Completer, slots: Slots
    ) -> None:
        self._store = store
        self._leases = leases
        self._completer = completer
        self._slots = slots
        self._threads = anyio.CapacityLimiter(slots.concurrency)

    async def run(self, attempt: Attempt) -> None:
        """Run the handler and write the outcome. Raises nothing but cancellation."""
        metrics = attempt.registered.metrics
        record = attempt.record
        cancelled: BaseException | None = None
        started = monotonic()
        if record.run_at is not None:
            waited = (self._store.clock.now() - record.run_at).total_seconds()
            metrics.wait.observe(max(0.0, waited))
        metrics.running.inc()
        try:
            try:
                error = await self._call(attempt)
            except get_cancelled_exc_class() as exception:
                cancelled, error = exception, Interrupted()
            metrics.running.dec()
            metrics.duration.observe(monotonic() - started)
            self._slots.handler_over()
            with CancelScope(shield=True):
                outcome = await self._finish(attempt, error)
            metrics.outcome[outcome].inc()
        finally:
            self._leases.remove(attempt)
            self._slots.ended()
        if cancelled is not None:
            raise cancelled

    async def _call(self, attempt: Attempt) -> BaseException | None:
        """Run the handler; return what it raised, or Interrupted if it was stopped."""
        if attempt.lost or monotonic() >= attempt.deadline:
            self._leases.lose(attempt)
            return Interrupted()
        handler = attempt.registered.handler
        with CancelScope() as scope:
            try:
                if handler.is_async:
                    attempt.scope = scope
                    await handler.function(attempt.job)
                else:
                    await self._call_in_thread(attempt, scope)
            except get_cancelled_exc_class() as error:
                if scope.cancel_called or anyio.current_effective_deadline() == -float("inf"):
                    raise
                return error  # the handler's own: it awaited something that was cancelled
            except BaseException as error:
                # Also SystemExit: a handler must not be able to end the process for all others.
                return error
            return None
        return Interrupted()  # the scope was cancelled, and took the cancellation in

    async def _call_in_thread(self, attempt: Attempt, scope: CancelScope) -> None:
        # A thread cannot be cancelled. When the lease is lost it keeps its slot until it returns
        # (or the threads would pile up); only the end of the drain time leaves it behind.
        attempt.abandon = scope
        job = Job(attempt.record, _FromThread(attempt))
        await to_thread.run_sync(
            attempt.registered.handler.function,
            job,
            abandon_on_cancel=True,
            limiter=self._threads,
        )

    async def _finish(self, attempt: Attempt, error: BaseException | None) -> AttemptOutcome:
        if attempt.outcome is not None:  # the handler ended it by itself
            if error is not None:
                _log_failure(attempt, error)
            return attempt.outcome
        if attempt.lost:
            return AttemptOutcome.LEASE_LOST
        try:
            await self._write(attempt, error)
        except LeaseLost:
            self._leases.lose(attempt)
        except ConfigurationError as problem:  # Retry(delay="soon")
            logger.error("Job %s: %s", attempt.record.id, problem)
            await self._write_quietly(attempt, problem)
        except PyMongoError as problem:
            logger.error(
                "The end of job %s could not be written, its lease will return it: %s",
                attempt.record.id,
                type(problem).__name__,
            )
        return attempt.result()

    async def _write_quietly(self, attempt: Attempt, error: BaseException) -> None:
        try:
            await self._completer.error(attempt, describe(error), None)
        except (LeaseLost, PyMongoError):
            self._leases.lose(attempt)

    async def _write(self, attempt: Attempt, error: BaseException | None) -> None:
        match error:
            case None:
                await self._completer.complete(attempt)
            case Interrupted():
                await self._completer.release(attempt)
            case Snooze(delay=delay):
                await self._completer.release(attempt, seconds(delay, "Snooze(delay=)"))
            case Retry(delay=delay):
                wait = None if delay is None else seconds(delay, "Retry(delay=)")
                await self._completer.error(attempt, describe(error), wait)
            case Discard(reason=reason):
                await self._completer.discard(attempt, reason)
            case _:
                _log_failure(attempt, error)
                await self._completer.error(attempt, describe(error), None)


def _log_failure(attempt: Attempt, error: BaseException) -> None:
    # The class only: messages tend to quote the payload. The traceback is stored on the job.
    record = attempt.record
    logger.warning(
        "Attempt %d of %d of job %s in queue %s failed: %s",
        record.attempts,
        record.max_attempts,
        record.id,
        record.queue,
        type(error).__name__,
    )


class _FromThread:
    """What a blocking handler's Job asks for: the attempt's calls, made in the event loop."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def _complete(self, record: JobRecord, session: Any) -> None:
        if session is not None:
            raise ConfigurationError(
                "complete(session=) in a worker needs an async handler: the worker's client is "
                "async, and a session belongs to one client"
            )
        from_thread.run(self._attempt._complete, record, None)

    def _error(self, record: JobRecord, message: str | None, delay: float | None) -> None:
        from_thread.run(self._attempt._error, record, message, delay)

    def _discard(self, record: JobRecord, message: str) -> None:
        from_thread.run(self._attempt._discard, record, message)

    def _progress(self, record: JobRecord, count: int | None) -> None:
        from_thread.run(self._attempt._progress, record, count)

    def _release(self, record: JobRecord, delay: float | None) -> None:
        from_thread.run(self._attempt._release, record, delay)
