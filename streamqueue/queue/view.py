"""What a held job shows of itself, for both shells, and when its calls may be made."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic

from .. import plain
from ..errors import ConfigurationError, JobCancelled, LeaseLost, PayloadError
from ..failures import failure_facts, failure_name
from ..options import note_text, whole_number
from ..protocol.operations import is_refusal
from .lines import facts, log_refused
from .outcome import end_of, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from bson import ObjectId
    from pymongo.errors import PyMongoError
    from typing_extensions import TypeVar  # type checkers have it without its being installed

    from ..protocol.document import JobRecord
    from .flow import Flow

    Data = TypeVar("Data", covariant=True, default=dict[str, Any])
else:
    from typing import TypeVar

    Data = TypeVar("Data", covariant=True)  # Python has defaults from 3.13 on

block_logger = plain.logger("streamqueue.queue")


class JobView(Generic[Data]):
    """A held job as it was when it was claimed. Reading it sends nothing, but for `cancelled`."""

    __slots__ = ("_ended", "_holder", "_record", "_session", "_step_session")

    def __init__(self, record: JobRecord, holder: Any) -> None:
        self._record = record
        self._holder = holder
        self._ended = False
        self._session: Any = None  # of the transaction it was completed in
        self._step_session: Any = None  # of the transaction that a step of it is part of

    def _is_over(self, error: BaseException | None) -> bool:
        """Return whether a block that ends, with this exception or none, has ended its job.

        While the transaction that completes the job is open, another write would wait for that.
        But an exception may have aborted the transaction.
        """
        if self._session is None or self._session.in_transaction:
            return self._ended
        return self._ended and error is None

    def _begin_complete(self, session: Any) -> None:
        """Note in which transaction the job is completed, or raise if it may not be now."""
        if session is None:
            self._check_beside_transaction(ends=True)
        else:
            self._check_beside_step(session)
        self._session = session if session is not None and session.in_transaction else None

    def _begin_progress(self, count: int | None, note: str | None) -> tuple[int | None, str | None]:
        """Return both as they are stored, or raise if they may not be, or not now."""
        if count is not None:
            count = whole_number(count, "count", -(2**63), 2**63 - 1)
        if note is not None:
            note = note_text(note)
        self._check_beside_transaction(ends=False)
        return count, note

    def _check_beside_transaction(self, *, ends: bool) -> None:
        """Raise if a write of the job beside its open transaction would wait for that, or spoil it.

        One that `ends` the attempt waits only for a transaction that has completed the job.
        """
        self._check_beside_step(None)
        if self._session is None or not self._session.in_transaction:
            return
        if self._ended or not ends:
            raise ConfigurationError(
                "the transaction that this job is completed in is open: any other call of the job "
                "would wait for it, or change the job behind its snapshot; make it before or after"
            )

    def _check_beside_step(self, session: Any) -> None:
        """Raise if a step of the job is part of an open transaction, and not of this session's."""
        theirs = self._step_session
        if theirs is not None and theirs is not session and theirs.in_transaction:
            raise ConfigurationError(
                "a transaction is open that a step of this job is part of: any other call of the "
                "job would wait for it, or change the job behind its snapshot; make it before or "
                "after, or with the same session"
            )

    @property
    def id(self) -> ObjectId:
        """The job's id, as ``put`` returned it."""
        return self._record.id

    @property
    def queue(self) -> str:
        """The name of the job's queue."""
        return self._record.queue

    @property
    def task(self) -> str | None:
        """The name of the task that the job is a call of, or None."""
        return self._record.task

    @property
    def data(self) -> Data:
        """The payload: a dict, or what the handler's ``payload=`` has made of it."""
        return self._record.data  # type: ignore[return-value]

    @property
    def payload(self) -> Data:
        """The payload: mongoqueue's name for ``data``."""
        return self.data

    @property
    def priority(self) -> int:
        """The priority of the job; a higher one runs first."""
        return self._record.priority

    @property
    def attempts(self) -> int:
        """How often the job was claimed, this claim included."""
        return self._record.attempts

    @property
    def max_attempts(self) -> int:
        """How often the job may be claimed before it is dead."""
        return self._record.max_attempts

    @property
    def locked_by(self) -> str | None:
        """The name of the consumer that holds the job. For people: it proves nothing."""
        return self._record.locked_by

    @property
    def locked_at(self) -> datetime | None:
        """When the job was claimed, by the server's clock (aware, UTC)."""
        return self._record.locked_at

    @property
    def run_at(self) -> datetime | None:
        """When the job was due, by the server's clock (aware, UTC): the tick, in every attempt, of
        one that a schedule has put; else when it was last ready, so of a retry its own time."""
        return self._record.tick or self._record.run_at

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked to cancel the job; then its next call raises JobCancelled.

        In a worker this is known within milliseconds. Of a job that ``next`` returned, reading it
        looks, at most once a second; the async shell looks in the background, and shows what it
        found the next time. Its ``progress`` learns it too. An outage reads as no.
        """
        return self._record.asked if self._ended else self._holder.cancelled(self._record)

    @property
    def last_error(self) -> str | None:
        """The message or traceback of the last failed attempt, or None."""
        return self._record.last_error

    @property
    def key(self) -> str | None:
        """The key of the job, or None; while it holds it, no other job does so."""
        return self._record.key

    @property
    def group(self) -> str | None:
        """What the job belongs to, or None; order and limits can be per group."""
        return self._record.group

    @property
    def traceparent(self) -> str | None:
        """The trace that the job was put in, as a W3C ``traceparent`` to hand on, or None."""
        return self._record.traceparent

    @property
    def context(self) -> Mapping[str, Any]:
        """What the worker's ``lifespan`` has yielded, the same for all handlers of the process;
        empty without one, and for a job that no worker runs."""
        context: Mapping[str, Any] = self._holder.context
        return context

    @contextmanager
    def _noting_end(self) -> Iterator[None]:
        """Note that the job has ended if a call of it says so: cancelled, or dead because of what
        it was completed with."""
        try:
            yield
        except (JobCancelled, PayloadError):
            self._session = None
            self._ended = True
            raise

    def _fail(self, error: BaseException) -> Flow[None]:
        """Write what the exception of a block means for the job."""
        yield self._holder.end(self._record, end_of(error, outcome_of))
        self._ended = True

    def _is_left(self, problem: LeaseLost | PyMongoError, error: BaseException | None) -> bool:
        """Log that the end of a block could not be written; return False if that is to be raised.

        Args:
            problem: what the write raised.
            error: the exception that ended the block; it matters more. The lease returns the job.
        """
        if isinstance(problem, LeaseLost):
            block_logger.warning(
                "Job %s was no longer held at the end of its block",
                self.id,
                extra={"event": "lease_lost", **facts(self._record), "reason": "taken"},
            )
        elif error is None:
            return False
        elif is_refusal(problem):
            log_refused(self._record, problem, "the end")
        else:
            # Without a traceback: it would show the block's exception too, which may quote the
            # payload.
            block_logger.error(
                "The error of job %s could not be stored: %s",
                self.id,
                failure_name(problem),
                extra={"event": "claim_left", **facts(self._record), **failure_facts(problem)},
            )
        return True

    def __repr__(self) -> str:
        # No payload: reprs end up in logs.
        record = self._record
        attempt = f"attempt {record.attempts} of {record.max_attempts}"
        return f"<{type(self).__name__} {record.id} of queue {record.queue!r}, {attempt}>"
