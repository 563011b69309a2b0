"""What the log says of a held job: which one it is, and what became of its writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import plain
from ..failures import failure_facts, failure_name

if TYPE_CHECKING:
    from pymongo.errors import PyMongoError

    from ..protocol.document import JobRecord

logger = plain.logger("streamqueue.job")


def facts(record: JobRecord) -> dict[str, object]:
    """Return what a line of the log says of a job: which one, and whose; never its payload."""
    return {
        "queue": record.queue,
        "job_id": str(record.id),
        "attempt": record.attempts,
        "max_attempts": record.max_attempts,
        "consumer": record.locked_by,
    }


def log_asked(record: JobRecord) -> None:
    """Log that the handler of a job is stopped, because somebody has asked for that."""
    logger.info(
        "Cancelling job %s of queue %s (attempt %d): somebody has asked for that",
        record.id,
        record.queue,
        record.attempts,
        extra={"event": "cancel_asked", **facts(record)},
    )


def log_cancelled(record: JobRecord, reason: str) -> None:
    """Log that a job has ended as cancelled."""
    logger.info(
        "Job %s of queue %s is cancelled: %s",
        record.id,
        record.queue,
        reason,
        extra={"event": "job_cancelled", **facts(record), "reason": reason},
    )


def log_shortened(record: JobRecord, error: PyMongoError) -> None:
    """Log that the server took the end of an attempt only without a part of what it says."""
    logger.warning(
        "The end of job %s was written without its message, which was refused: %s",
        record.id,
        failure_name(error),
        extra={"event": "end_shortened", **facts(record), **failure_facts(error)},
    )


def log_refused(record: JobRecord, error: PyMongoError, what: str) -> None:
    """Log that the server will never take a write of an attempt, nor a smaller one."""
    logger.error(
        "The server refuses %s of job %s: %s",
        what,
        record.id,
        failure_name(error),
        extra={
            "event": "end_refused",
            **facts(record),
            "reason": f"the server refuses {what}",
            **failure_facts(error),
        },
    )
