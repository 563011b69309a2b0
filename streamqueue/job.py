"""What a job shows of itself, in both shells."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from .errors import Discard, Outcome, Retry, Snooze

if TYPE_CHECKING:
    from datetime import datetime

    from bson import ObjectId

    from .document import JobRecord


class JobView:
    """A held job as it was when it was claimed. Reading it sends nothing."""

    __slots__ = ("_ended", "_record", "_session")

    def __init__(self, record: JobRecord) -> None:
        self._record = record
        # Written by the shell's own calls only.
        self._ended = False
        self._session: Any = None  # of the transaction it was completed in

    def _was_aborted(self, error: BaseException | None) -> bool:
        """Whether an exception has ended the transaction that would have completed the job.

        While the transaction is open its write must be left alone: another would wait for it.
        """
        return error is not None and self._session is not None and not self._session.in_transaction

    @property
    def id(self) -> ObjectId:
        """The job's id, as ``put`` returned it."""
        return self._record.id

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return self._record.queue

    @property
    def data(self) -> dict[str, Any]:
        """The payload."""
        return self._record.data

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, by mongoqueue's name for it."""
        return self._record.data

    @property
    def priority(self) -> int:
        """Higher runs first."""
        return self._record.priority

    @property
    def attempts(self) -> int:
        """Claims so far, this one included."""
        return self._record.attempts

    @property
    def max_attempts(self) -> int:
        """Claims it may use up before it is dead."""
        return self._record.max_attempts

    @property
    def locked_by(self) -> str | None:
        """The name of the consumer that holds it. For people: it proves nothing."""
        return self._record.locked_by

    @property
    def locked_at(self) -> datetime | None:
        """When it was claimed, by the server's clock (aware, UTC)."""
        return self._record.locked_at

    @property
    def last_error(self) -> str | None:
        """What the last failed attempt left behind."""
        return self._record.last_error

    @property
    def key(self) -> str | None:
        """The key it was put with: no other live job of the queue has it."""
        return self._record.key

    @property
    def traceparent(self) -> str | None:
        """The trace it was put in, as the W3C writes it: hand it on as ``traceparent``."""
        return self._record.traceparent

    def __repr__(self) -> str:
        # No payload: reprs end up in logs.
        record = self._record
        attempt = f"attempt {record.attempts} of {record.max_attempts}"
        return f"<{type(self).__name__} {record.id} of queue {record.queue!r}, {attempt}>"


def facts(record: JobRecord) -> dict[str, object]:
    """Return what a line of the log says of a job: which one, and whose; never what is in it."""
    return {
        "queue": record.queue,
        "job_id": str(record.id),
        "attempt": record.attempts,
        "max_attempts": record.max_attempts,
        "consumer": record.locked_by,
    }


def describe(error: BaseException) -> str:
    """Return what is stored of an exception: its traceback."""
    return "".join(traceback.format_exception(error))


def last_line(stored: object) -> str:
    """Return the line of a stored error that says most: of a traceback, the exception itself."""
    lines = str(stored or "no error stored").strip().splitlines()
    return lines[-1] if lines else ""


def outcome_of(error: BaseException) -> Outcome | None:
    """Return the outcome an exception stands for, or None for an ordinary failure.

    What is not an ``Exception`` (Ctrl-C, cancellation, the interpreter going down) says nothing
    about the job: it is given back without blame.
    """
    if isinstance(error, (Retry, Snooze, Discard)):
        return error
    return None if isinstance(error, Exception) else Snooze(0)
