"""What both kinds of change-stream readers share: client settings, and what each error means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bson.errors import BSONError
from pymongo.errors import (
    ConnectionFailure,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    from .outage import Ended

Reason = Literal[
    "network", "election", "not_resumable", "history_lost", "invalidate", "refused", "unknown"
]

WAIT_MARGIN = 2.0
"""Seconds a reply may be late before the connection is taken for wedged and replaced."""


def client_settings(app_name: str) -> dict[str, Any]:
    """Return the settings of the stream's own client, to be laid over the user's.

    It has its own because an awaiting stream holds a connection (with as many streams as
    connections nothing else ever gets one), and because after a *clean* shutdown of the primary
    pymongo waits the whole server selection timeout before it resumes: 31 s of silence with the
    default of 30, 4 s with 3 (pymongo 4.20). Writes keep the user's longer one, to sit out an
    election.
    """
    return {
        "appname": app_name,
        "connectTimeoutMS": 2000,
        "heartbeatFrequencyMS": 2000,
        "serverSelectionTimeoutMS": 3000,
        "maxPoolSize": 3,
        "minPoolSize": 0,
        # A timeout on the whole client, or on its sockets, would end every quiet wait.
        "timeoutMS": None,
        "socketTimeoutMS": None,
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about a broken stream.

    Attributes:
        reason: the metric label.
        resume: whether the resume token is still good; without it the stream opens afresh. Either
            way everything ready is scanned for afterwards.
        patient: whether trying again soon is pointless (rights were revoked).
    """

    reason: Reason
    resume: bool
    patient: bool = False


_HISTORY_LOST = {
    136: "CappedPositionLost",  # an open cursor fell behind the oplog's tail; carries no label
    286: "ChangeStreamHistoryLost",
}
_NOT_RESUMABLE = {
    260: "InvalidResumeToken",
    280: "ChangeStreamFatalError",
    40576: "resume of a change stream was not possible (4.0)",
}
_REFUSED = {13: "Unauthorized", 18: "AuthenticationFailed"}
_ELECTION = {
    91: "ShutdownInProgress",
    189: "PrimarySteppedDown",
    10107: "NotWritablePrimary",
    11600: "InterruptedAtShutdown",
    11602: "InterruptedDueToReplStateChange",
    13435: "NotPrimaryNoSecondaryOk",
    13436: "NotPrimaryOrSecondary",
}
_CURSOR_NOT_FOUND = 43

INVALIDATED = Verdict("invalidate", resume=False)
"""Iteration that just ends: the collection was dropped or renamed, or a read was cancelled."""


READ_ERRORS = (PyMongoError, BSONError)
"""What reading a stream may raise; the latter for a document that cannot be decoded."""


def classify(error: PyMongoError | BSONError) -> Verdict:
    """Say what a stream's error means. An unknown one counts as a lost place: drop the token.

    So does an event that cannot be decoded: with the token it would come again.
    """
    if isinstance(error, BSONError):
        return Verdict("unknown", resume=False)
    if isinstance(error, NotPrimaryError):
        return Verdict("election", resume=True)
    if isinstance(error, (ConnectionFailure, ServerSelectionTimeoutError)) or error.timeout:
        return Verdict("network", resume=True)
    if isinstance(error, OperationFailure):
        code = error.code
        if code in _HISTORY_LOST:
            return Verdict("history_lost", resume=False)
        if code in _NOT_RESUMABLE:
            return Verdict("not_resumable", resume=False)
        if code in _REFUSED:
            return Verdict("refused", resume=True, patient=True)
        if code in _ELECTION:
            return Verdict("election", resume=True)
        if code == _CURSOR_NOT_FOUND or error.has_error_label("ResumableChangeStreamError"):
            return Verdict("network", resume=True)
        if error.has_error_label("NonResumableChangeStreamError"):
            return Verdict("not_resumable", resume=False)
    return Verdict("unknown", resume=False)


def log_broken(logger: logging.Logger, verdict: Verdict, error: Exception | None) -> None:
    """Log the end of a stream; `error` None means that it just ended."""
    logger.warning(
        "Change stream broke (%s), reopening it: %s",
        verdict.reason,
        "it ended" if error is None else _brief(error),
        extra={
            "event": "stream_broken",
            "reason": verdict.reason,
            "error": None if error is None else type(error).__name__,
            "code": getattr(error, "code", None),
        },
    )


def log_reopened(logger: logging.Logger, ended: Ended | None) -> None:
    """Log that a stream is open again; None means that it was not broken."""
    if ended is None:
        return
    logger.info(
        "The change stream is open again after %.1f s",
        ended.seconds,
        extra={
            "event": "stream_reopened",
            "seconds": round(ended.seconds, 3),
            "count": ended.failures,
        },
    )


def _brief(error: Exception) -> str:
    """Return what can be said of an error without quoting a document, which the server's own words
    may do."""
    if isinstance(error, OperationFailure):
        return f"error {error.code} ({(error.details or {}).get('codeName', 'without a name')})"
    if not isinstance(error, PyMongoError):
        return type(error).__name__
    return str(error).split(", full error:")[0].split(", Topology Description:")[0]


def changed_state(event: Mapping[str, Any]) -> str | None:
    """Return the state the event's job is in now."""
    document = event.get("fullDocument")
    if document is None:
        document = event.get("updateDescription", {}).get("updatedFields", {})
    state = document.get("state")
    return state if isinstance(state, str) else None


def set_max_await(stream: Any, length: float) -> None:
    """Change how many seconds the next reads of an open stream may stay silent.

    pymongo fixes it when the stream is opened; the server takes it anew with every ``getMore``.
    """
    stream._cursor._max_await_time_ms = max(1, round(length * 1000))


def buffered(stream: Any) -> int:
    """Return how many events of the last reply are still to be read: those need no round trip.

    pymongo has no public word for it; without one, each of a thousand events that came in one reply
    would wake its reader on its own.
    """
    return len(stream._cursor._data)
