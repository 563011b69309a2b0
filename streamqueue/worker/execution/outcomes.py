"""What the end of a handler means for its job: said in the log, and written.

A handler that returned has completed its job, and one that raised has failed, unless the exception
says otherwise (``Retry``, ``Cancel``, ...). Whatever goes wrong with that, an attempt always ends:
as failed where its end cannot be said, and without a word where the server does not answer, when
its lease returns the job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import BrokenWorkerProcess
from pymongo.errors import PyMongoError

from ... import plain
from ...errors import AttemptOutcome, LeaseLost, type_name
from ...queue.outcome import End, asked_outcome, end_of, names_of
from .processes import ChildNotReady, FailedInChild

if TYPE_CHECKING:
    from ..completer import Completer
    from ..leases import Leases
    from .attempt import Attempt

logger = plain.logger("streamqueue.execution")

FAILURES = (AttemptOutcome.RETRIED, AttemptOutcome.DEAD)

OF_THE_CHILD = (BrokenWorkerProcess, ChildNotReady)

CANCELLED = End("cancelled", asked=True)
"""Somebody has asked for that: whatever the handler did, the job has ended."""
TOO_LATE = End("released")
"""The handler was not called any more: the job ends as expired."""
INTERRUPTED = End("released")
"""The handler was stopped from outside: the job is given back without blame."""


class Outcomes:
    """Makes outcomes of the ends of handlers.

    Args:
        leases: are told of attempts that turn out to have lost theirs.
        log_tracebacks: log failures with their tracebacks, which may quote payloads.
    """

    def __init__(self, leases: Leases, log_tracebacks: bool) -> None:
        self._leases = leases
        self._log_tracebacks = log_tracebacks

    def of(self, attempt: Attempt, error: BaseException) -> End:
        """Return text and numbers for what a handler raised, so that nothing holds on to it; log
        it if the attempt has failed."""
        if type(error) is FailedInChild:  # not isinstance, which asks the error for its class
            end, name = error.end, error.name
        else:
            end, name = end_of(error, asked_outcome), type_name(error)
        handler = attempt.registered.handler
        if handler.failing is not None and end.kind == "failed":
            end = handler.failing.decide(attempt.record, end, error, _names_of(error))
        if handler.on_dead is not None:
            end = end._replace(error=error)
        try:
            self._log_end(attempt, end, name, error)
        except Exception:  # the program's own filters and handlers of logs may raise
            return end
        return end

    async def write(self, attempt: Attempt, end: End | None, completer: Completer) -> None:
        """Write what the end of a handler means, unless the handler has done so itself."""
        if attempt.outcome is not None or attempt.lost:
            if end is None and attempt.outcome in FAILURES:
                self._log_failure(attempt, None)
            return
        try:
            await _write(attempt, end, completer)
        except LeaseLost:
            self._leases.lose(attempt)
        except PyMongoError as problem:
            attempt.unknown = problem  # its lease will return it, as is said when it is noted lost
        except Exception as problem:
            # Its end cannot be said, whatever is wrong with it; that it has failed can be.
            logger.error(
                "The end of job %s could not be written: %s",
                attempt.record.id,
                type_name(problem),
                extra={"event": "claim_left", **attempt.facts(), "error": type_name(problem)},
            )
            await self._write_shortest(attempt, type_name(problem), completer)

    async def _write_shortest(self, attempt: Attempt, message: str, completer: Completer) -> None:
        try:
            await completer.end(attempt, End("failed", message))
        except LeaseLost:
            self._leases.lose(attempt)
        except PyMongoError as problem:
            attempt.unknown = problem

    def _log_end(self, attempt: Attempt, end: End, name: str, error: BaseException) -> None:
        if end.mistake is not None:
            logger.error(
                "Job %s: its handler asked for an end that is not possible: %s",
                attempt.record.id,
                end.mistake,
                extra={
                    "event": "attempt_failed",
                    **attempt.facts(),
                    "reason": "its handler asked for an end that is not possible",
                    "error": end.mistake,
                },
            )
        elif not (end.asked or attempt.lost or attempt.asked):
            self._log_failure(attempt, name, error)

    def _log_failure(
        self, attempt: Attempt, name: str | None, error: BaseException | None = None
    ) -> None:
        """Log that an attempt failed; without a name its handler said so, and returned."""
        # The class only: messages tend to quote the payload. The traceback is stored on the job.
        record = attempt.record
        logger.warning(
            "Attempt %d of %d of job %s in queue %s failed: %s",
            record.attempts,
            record.max_attempts,
            record.id,
            record.queue,
            name or "said by its handler",
            exc_info=error if self._log_tracebacks else None,
            extra={"event": "attempt_failed", **attempt.facts(), "error": name},
        )


def _names_of(error: BaseException) -> tuple[frozenset[str], ...]:
    """Return the names of what a handler raised; none of what happened to its child process."""
    if type(error) is FailedInChild:
        return error.names
    return () if issubclass(type(error), OF_THE_CHILD) else names_of(error)


async def _write(attempt: Attempt, end: End | None, completer: Completer) -> None:
    if attempt.asked:  # maybe only by now
        end = CANCELLED
    if end is None:
        await completer.complete(attempt, attempt.returned)
    elif end is TOO_LATE:
        await completer.expire(attempt)
    elif end is INTERRUPTED:
        await completer.end(attempt, end)
        logger.info(
            "Gave job %s of queue %s back: its handler was stopped",
            attempt.record.id,
            attempt.record.queue,
            extra={"event": "claim_given_back", **attempt.facts()},
        )
    else:
        await completer.end(attempt, end)
