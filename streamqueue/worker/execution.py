"""Running attempts: the handlers, and what their end means for the job.

Runners are tasks that take attempts from a list until it is empty. One is woken per batch of claims
and wakes the next before it calls a handler that may wait, so that a thousand quick handlers cost
one task and twenty slow ones have twenty.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, from_thread, get_cancelled_exc_class
from anyio.lowlevel import checkpoint, current_token
from pymongo.errors import PyMongoError

from ..clock import monotonic
from ..durations import seconds
from ..errors import ConfigurationError, Discard, LeaseLost, Retry, Snooze
from ..job import describe
from ..metrics import AttemptOutcome
from ..queue import Job
from ..tracing import trace_id
from .threads import Threads

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from anyio.lowlevel import EventLoopToken

    from ..async_store import AsyncStore
    from ..document import JobRecord
    from .completer import Completer
    from .lease import Attempt, Leases
    from .slots import Slots

logger = logging.getLogger("streamqueue.execution")

FAILURES = (AttemptOutcome.RETRIED, AttemptOutcome.DEAD)
TURN_SECONDS = 0.002
"""How long a runner may go from handler to handler before others get a turn of the event loop."""


class Interrupted(Exception):
    """The handler was stopped from outside: the job is given back without blame."""


class Execution:
    """Runs attempts.

    Attributes:
        completer: where finished attempts go; set before the first start.
    """

    completer: Completer

    def __init__(self, store: AsyncStore, leases: Leases, slots: Slots) -> None:
        self._store = store
        self._leases = leases
        self._slots = slots
        self._threads = Threads()
        self._ready: deque[Attempt] = deque()
        self._idle: list[anyio.Event] = []
        self._waking = False
        self._closed = False
        self._runners: TaskGroup | None = None

    def open(self, runners: TaskGroup) -> None:
        """Run attempts in tasks of this group from now on."""
        self._runners = runners

    def start(self, attempt: Attempt) -> None:
        """Run a claimed job as soon as the event loop gets to it."""
        self._slots.take()
        self._leases.add(attempt)
        self._ready.append(attempt)
        self._wake_one()

    def close(self) -> None:
        """Let the runners end when they have nothing to do."""
        self._closed = True
        self._threads.close()
        for sleeper in self._idle:
            sleeper.set()

    def ended(self, attempt: Attempt) -> None:
        """Note that an attempt had its final write, or never will."""
        if attempt.outcome is None:
            self._leases.lose(attempt)
        attempt.registered.metrics.outcome[attempt.result()].inc()
        self._leases.remove(attempt)
        self._slots.ended()

    def _wake_one(self) -> None:
        """Have one more runner look at the list, unless one is about to."""
        if self._waking:
            return
        self._waking = True
        if self._idle:
            self._idle.pop().set()
        elif self._runners is not None:
            self._runners.start_soon(self._run)

    async def _run(self) -> None:
        turn = monotonic()
        while True:
            self._waking = False
            while self._ready:
                attempt = self._ready.popleft()
                if self._ready:
                    self._wake_one()
                await self._run_one(attempt)
                if monotonic() - turn > TURN_SECONDS:
                    await checkpoint()
                    turn = monotonic()
            if self._closed:
                return
            sleeper = anyio.Event()
            self._idle.append(sleeper)
            await sleeper.wait()
            turn = monotonic()

    async def _run_one(self, attempt: Attempt) -> None:
        metrics, record = attempt.registered.metrics, attempt.record
        self._slots.handler_starts()
        started = monotonic()
        trace = trace_id(record.traceparent)
        exemplar = None if trace is None else {"trace_id": trace}
        if record.run_at is not None:
            waited = (self._store.clock.now() - record.run_at).total_seconds()
            metrics.wait.observe(max(0.0, waited), exemplar)
        metrics.running.inc()
        cancelled: BaseException | None = None
        try:
            error = await self._call(attempt)
        except get_cancelled_exc_class() as exception:
            cancelled, error = exception, Interrupted()
        metrics.running.dec()
        metrics.duration.observe(monotonic() - started, exemplar)
        self._slots.handler_over()
        if error is None and attempt.outcome is None and not attempt.lost:
            self.completer.finish(attempt)
            return
        with CancelScope(shield=True):
            try:
                await self._finish(attempt, error)
            finally:
                self.ended(attempt)
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
                    result = await self._call_in_thread(attempt, scope)
                    if inspect.isawaitable(result):
                        return _never_awaited(result, handler.task)
            except get_cancelled_exc_class() as error:
                if scope.cancel_called or anyio.current_effective_deadline() == -float("inf"):
                    raise
                return error  # the handler's own: it awaited something that was cancelled
            except BaseException as error:
                # Also SystemExit: a handler must not be able to end the process for all others.
                return error
            finally:
                attempt.scope = attempt.abandon = None
            return None
        return Interrupted()  # the scope was cancelled, and took the cancellation in

    async def _call_in_thread(self, attempt: Attempt, scope: CancelScope) -> object:
        # A thread cannot be cancelled. When the lease is lost it keeps its slot until it returns
        # (or the threads would pile up); only the end of the drain time leaves it behind.
        attempt.abandon = scope
        job = Job(attempt.record, _FromThread(attempt, current_token()))
        return await self._threads.run(attempt.registered.handler.function, job)

    async def _finish(self, attempt: Attempt, error: BaseException | None) -> None:
        """Write what the end of the handler means, unless the handler has done so itself."""
        if attempt.outcome is not None or attempt.lost:
            failed = error is not None or attempt.outcome in FAILURES
            if failed and attempt.outcome is not None:
                _log_failure(attempt, error)
            return
        try:
            await self._write(attempt, error)
        except LeaseLost:
            self._leases.lose(attempt)
        except PyMongoError as problem:
            attempt.unknown = problem  # its lease will return it, as is said when it is noted lost

    async def _write(self, attempt: Attempt, error: BaseException | None) -> None:
        completer = self.completer
        try:
            match error:
                case None:
                    await completer.complete(attempt)
                case Interrupted():
                    await completer.release(attempt)
                    logger.info(
                        "Gave job %s of queue %s back: its handler was stopped",
                        attempt.record.id,
                        attempt.record.queue,
                        extra={"event": "claim_given_back", **attempt.facts()},
                    )
                case Snooze(delay=delay):
                    await completer.release(attempt, seconds(delay, "Snooze(delay=)"))
                case Retry(delay=delay):
                    wait = None if delay is None else seconds(delay, "Retry(delay=)")
                    await completer.error(attempt, describe(error), wait)
                case Discard(reason=reason):
                    await completer.discard(attempt, str(reason))
                case _:
                    _log_failure(attempt, error)
                    await completer.error(attempt, describe(error), None)
        except ConfigurationError as problem:  # Retry(delay="soon")
            logger.error(
                "Job %s: %s",
                attempt.record.id,
                problem,
                extra={
                    "event": "attempt_failed",
                    **attempt.facts(),
                    "reason": "its handler asked for an end that is not possible",
                    "error": type(problem).__name__,
                },
            )
            await completer.error(attempt, describe(problem), None)


def _log_failure(attempt: Attempt, error: BaseException | None) -> None:
    """Log that an attempt failed; `error` None means that its handler said so, and returned."""
    if isinstance(error, (Retry, Snooze, Discard, Interrupted)):
        return  # what somebody wants, and no failure
    # The class only: messages tend to quote the payload. The traceback is stored on the job.
    name = None if error is None else type(error).__name__
    record = attempt.record
    logger.warning(
        "Attempt %d of %d of job %s in queue %s failed: %s",
        record.attempts,
        record.max_attempts,
        record.id,
        record.queue,
        name or "said by its handler",
        extra={"event": "attempt_failed", **attempt.facts(), "error": name},
    )


def _never_awaited(result: object, task: str) -> TypeError:
    """A ``def`` that returns a coroutine has done nothing yet: not to be taken for a success."""
    if inspect.iscoroutine(result):
        result.close()
    return TypeError(f"handler {task} returned something to await: make it an async def")


class _FromThread:
    """What a blocking handler's Job asks for: the attempt's calls, made in the event loop."""

    def __init__(self, attempt: Attempt, loop: EventLoopToken) -> None:
        self._attempt = attempt
        self._run = partial(from_thread.run, token=loop)

    def _complete(self, record: JobRecord, session: Any) -> None:
        if session is not None:
            raise ConfigurationError(
                "complete(session=) in a worker needs an async handler: the worker's client is "
                "async, and a session belongs to one client"
            )
        self._run(self._attempt._complete, record, None)

    def _error(self, record: JobRecord, message: str | None, delay: float | None) -> None:
        self._run(self._attempt._error, record, message, delay)

    def _discard(self, record: JobRecord, message: str) -> None:
        self._run(self._attempt._discard, record, message)

    def _progress(self, record: JobRecord, count: int | None) -> None:
        self._run(self._attempt._progress, record, count)

    def _release(self, record: JobRecord, delay: float | None) -> None:
        self._run(self._attempt._release, record, delay)
