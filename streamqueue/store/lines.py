"""The lines of the log about what a store found and did."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .. import plain
from ..failures import failure_facts, failure_name
from ..protocol.document import id_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..errors import ConfigurationError

logger = plain.logger("streamqueue.store")
reaper_logger = plain.logger("streamqueue.reaper")


def log_late(count: int, timeout: float) -> None:
    """Log that jobs could not be handed out, because their lease was over by then."""
    logger.warning(
        "A claim took longer than its lease of %.3g s, so its jobs were given back: the server is "
        "slow, or timeout= is too short",
        timeout,
        extra={"event": "claim_late", "count": count, "seconds": timeout},
    )


def log_reaped(reaped: Mapping[tuple[str, str], int], holders: Iterable[str]) -> None:
    """Log what was taken from dead consumers, by queue and result."""
    names = sorted(holders)
    for (queue, result), count in reaped.items():
        if count:
            reaper_logger.log(
                logging.ERROR if result == "dead" else logging.WARNING,
                "Reaped %d jobs of queue %s: %s (held by %s)",
                count,
                queue,
                result,
                ", ".join(names) or "nobody by name",
                extra={
                    "event": "jobs_reaped",
                    "queue": queue,
                    "result": result,
                    "count": count,
                    "consumers": names,
                },
            )


def log_expired(expired: Mapping[str, int]) -> None:
    """Log that jobs were not begun in time, by queue."""
    for queue, count in expired.items():
        if count:
            logger.info(
                "Ended %d jobs of queue %s as expired",
                count,
                queue,
                extra={"event": "jobs_expired", "queue": queue, "count": count},
            )


def why_it_stays_dead(error: Exception, *, key_taken: bool) -> str:
    """Return why a dead job was not requeued, in a few words."""
    if key_taken:
        return "a live job has its key"
    return f"the server refuses it: {failure_name(error)}"


def log_buried(count: int, reason: str) -> None:
    """Log that ready jobs were buried that nobody could run."""
    logger.error(
        "Buried %d jobs: %s",
        count,
        reason,
        extra={"event": "job_dead", "count": count, "reason": reason},
    )


def log_stays_dead(queue: str, job_id: Any, error: Exception, *, key_taken: bool) -> None:
    """Log that a job cannot be requeued with the others, and why."""
    reason = why_it_stays_dead(error, key_taken=key_taken)
    logger.warning(
        "Job %s stays dead: %s",
        id_text(job_id),
        reason,
        extra={
            "event": "job_stays_dead",
            "queue": queue,
            "job_id": id_text(job_id),
            "reason": reason,
        },
    )


def log_quarantined(job_id: Any, reason: str) -> None:
    """Log that a ready job was buried because no claim can change it."""
    logger.error(
        "Buried job %s, which cannot be claimed: %s",
        job_id,
        reason,
        extra={"event": "job_dead", "job_id": str(job_id), "reason": reason},
    )


def log_left_waiting(error: Exception) -> None:
    """Log that a job may wait a while longer than the one that it waits for."""
    logger.warning(
        "A job that waits for its key could not be let through, and is looked for later: %s",
        failure_name(error),
        extra={"event": "left_waiting", **failure_facts(error)},
    )


def log_room_unsaid(error: Exception) -> None:
    """Log that jobs which may start now may wait until somebody looks."""
    logger.warning(
        "Nobody could be told that held-back jobs may start, which are looked for later: %s",
        failure_name(error),
        extra={"event": "room_unsaid", **failure_facts(error)},
    )


def log_rules_refused(queue: str, error: ConfigurationError) -> None:
    """Log that nothing is claimed of a queue whose rules could not be kept."""
    logger.error(
        "No job of queue %s is claimed: %s",
        queue,
        error,
        extra={"event": "rules_refused", "queue": queue},
    )


def log_dependents_left(error: Exception) -> None:
    """Log that jobs that come after others may wait a while longer than these take."""
    logger.warning(
        "Dependents could not be looked at, and are looked for later: %s",
        failure_name(error),
        extra={"event": "left_waiting", **failure_facts(error)},
    )


def log_dependents_cancelled(count: int) -> None:
    """Log that jobs were cancelled because of those that they come after."""
    logger.warning(
        "%d dependents are cancelled: a parent has failed, or is gone",
        count,
        extra={"event": "dependents_cancelled", "count": count},
    )


def log_superseded(job: Mapping[str, Any]) -> None:
    """Log that a job was ended instead of waiting again."""
    name = id_text(job["_id"])
    logger.info(
        "Job %s of queue %s is cancelled: a newer job has its key",
        name,
        job.get("queue"),
        extra={
            "event": "job_cancelled",
            "queue": job.get("queue"),
            "job_id": name,
            "reason": "a newer job has its key",
        },
    )


def log_claims_left(count: int, error: Exception) -> None:
    """Log that claims which were given up are still to be undone."""
    logger.warning(
        "Claims with an unknown outcome could not be given back yet: %s",
        failure_name(error),
        extra={"event": "claim_left", "count": count, **failure_facts(error)},
    )


def log_rates_refused(collection: str) -> None:
    """Log that no job can be started whose starts have a rate."""
    logger.error(
        "No right to write to %s: jobs whose starts have a rate are not started; give the user "
        "find, insert and update on it, as the role streamqueueConsumer does",
        collection,
        extra={"event": "rates_refused", "reason": collection},
    )


def log_buckets_stay(collection: str, error: Exception) -> None:
    """Log that what is known of rates is kept for longer than it is of use."""
    logger.warning(
        "The index streamqueue_buckets of %s cannot be made for now (%s), so what is known of the "
        "rates of quiet groups stays there: it is made when a user with the right createIndex on "
        "it starts jobs at a rate, and by `streamqueue init --features`",
        collection,
        failure_name(error),
        extra={"event": "buckets_stay", **failure_facts(error)},
    )


def log_settings_refused(collection: str) -> None:
    """Log that nobody can be obeyed who pauses or limits a queue."""
    logger.warning(
        "No right to read %s: queues that are paused are worked on all the same, and no limit or "
        "order is kept; give the user find on it (deploy/mongodb has the roles)",
        collection,
        extra={"event": "settings_refused", "reason": collection},
    )
