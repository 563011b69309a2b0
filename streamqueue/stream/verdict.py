"""What all readers of change streams share: client settings, what each error means, when to try
again, and what an event says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import pymongo
from bson.errors import BSONError
from pymongo import ReadPreference, _csot
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    InvalidOperation,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.collection import Collection

from ..backoff import Backoff
from ..clock import monotonic
from ..failures import failure_facts, failure_name
from ..protocol import operations
from ..protocol.settings import BELL

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ..outage import Ended

AnyCollection = TypeVar("AnyCollection", Collection[Any], AsyncCollection[Any])

Reason = Literal[
    "network", "election", "not_resumable", "history_lost", "invalidate", "refused", "unknown"
]

WAIT_MARGIN = 2.0
"""Seconds a reply may be late before the connection is taken for wedged and replaced."""
OPEN_SECONDS = 10.0
"""How long the opening of a stream may take."""
AGAIN = Backoff(initial=0.2, maximum=5, jitter=0.5)
"""The pause between two tries, from the second failure in a row on."""
REOPEN_EVERY = 0.7
"""Seconds from one opening to the next at the least. A few good reads prove little: some errors
come back with every second one, and must not make a tight loop."""
PATIENT = Backoff(initial=30, maximum=30, jitter=0.25)
"""The same when rights are missing: somebody has to give them back."""


def client_settings(app_name: str) -> dict[str, Any]:
    """Return the settings of the stream's own client, to be laid over the user's.

    It has its own because an awaiting stream holds a connection (with as many streams as
    connections nothing else ever gets one), and because after a *clean* shutdown of the primary
    pymongo waits the whole server selection timeout before it resumes: 31 s of silence with the
    default of 30, 4 s with 3 (pymongo 4.20). Writes keep the user's longer one, to sit out an
    election.

    Its monitor asks, and is not told: a stream that breaks has it ask at once, and to be told takes
    two connections and twice as many replies, half an operation a second of an idle worker's.
    """
    return {
        "appname": app_name,
        "connectTimeoutMS": 2000,
        "heartbeatFrequencyMS": 2000,
        "serverMonitoringMode": "poll",
        "serverSelectionTimeoutMS": 3000,
        "maxPoolSize": 3,
        "minPoolSize": 0,
        # A timeout on the whole client, or on its sockets, would end every quiet wait.
        "timeoutMS": None,
        "socketTimeoutMS": None,
    }


def watched(client: object, jobs: AnyCollection) -> AnyCollection:
    """Return the collection as a change stream reads it, on the client that the stream has.

    Like every handle that is made here it takes none of the URI's concerns: the server opens no
    stream with most of them, and a stream of a member that lags, or stands still, is late.
    """
    database: Any = client[jobs.database.name]  # type: ignore[index]
    collection: AnyCollection = database.get_collection(
        jobs.name,
        codec_options=jobs.codec_options,
        read_preference=ReadPreference.PRIMARY,
        write_concern=jobs.write_concern,
        read_concern=ReadConcern("majority"),
    )
    return collection


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

    An election counts as one also when the driver, which reopens the stream by itself, ran out of
    time over it: its last error is then of the connection it could not make in what was left.
    """
    if isinstance(error, BSONError):
        return Verdict("unknown", resume=False)
    if isinstance(error, NotPrimaryError):
        return Verdict("election", resume=True)
    if isinstance(error, (ConnectionFailure, ServerSelectionTimeoutError)) or error.timeout:
        elected = any(isinstance(each, NotPrimaryError) for each in _earlier(error))
        return Verdict("election" if elected else "network", resume=True)
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


def _earlier(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors during whose handling an error was raised, the latest first."""
    while earlier := error.__cause__ or error.__context__:
        yield earlier
        error = earlier


def log_broken(logger: logging.Logger, verdict: Verdict, error: Exception | None) -> None:
    """Log the end of a stream; `error` None means that it just ended."""
    logger.warning(
        "Change stream broke (%s), reopening it: %s",
        verdict.reason,
        "it ended" if error is None else _brief(error),
        extra={
            "event": "stream_broken",
            "reason": verdict.reason,
            **({} if error is None else failure_facts(error)),
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
        return failure_name(error)
    if not isinstance(error, PyMongoError):
        return type(error).__name__
    return str(error).split(", full error:")[0].split(", Topology Description:")[0]


class Pace:
    """When to try again: at once after one failure, and ever later after several in a row."""

    def __init__(self) -> None:
        self._failures = 0
        self._opened_at = self._again_at = self._reopen_at = -math.inf

    @property
    def again_at(self) -> float:
        """When to try again, by :func:`monotonic`."""
        return max(self._again_at, self._reopen_at)

    def opened(self) -> None:
        """Note that the stream is open."""
        self._opened_at = monotonic()
        self.worked()

    def worked(self) -> None:
        """Note a success: the next failure is the first again."""
        self._failures = 0
        self._again_at = -math.inf

    def failed(self, verdict: Verdict) -> float:
        """Note a failure; return how many seconds to pause."""
        pause = AGAIN.delay(self._failures) if self._failures else 0.0
        if verdict.patient:
            pause = PATIENT.delay(1)
        self._failures += 1
        now = monotonic()
        self._again_at = now + pause
        self._reopen_at = self._opened_at + REOPEN_EVERY
        return self.again_at - now


def passes(error: Exception) -> bool:
    """Whether an error is one of those that pass by themselves: a server is away, or elections are
    held. To meet another one at the first contact is to be refused."""
    return isinstance(error, READ_ERRORS) and classify(error).reason in ("network", "election")


def within(left: float) -> AbstractContextManager[object]:
    """Return a context in which no command outlasts by much a wait that ends in `left` seconds,
    though the server be frozen. For what may be tried again; a claim has other limits."""
    return pymongo.timeout(min(OPEN_SECONDS, max(0.0, left) + WAIT_MARGIN))


def is_final(error: Exception) -> bool:
    """Whether to try again is pointless: what is wrong is in the program (its client is closed), or
    the caller's own ``pymongo.timeout`` is over, under which nothing can be sent any more."""
    return isinstance(error, PROGRAM_ERRORS) or limit_is_over()


PROGRAM_ERRORS = (ConfigurationError, InvalidOperation)
"""What is wrong in the program itself: its client is closed, say."""


def limit_is_over() -> bool:
    """Whether the caller stands inside of a ``pymongo.timeout`` that is over."""
    left = _csot.remaining()
    return left is not None and left <= 0


def limit_left(seconds: float) -> float:
    """Return so many seconds, or what is left of the ``pymongo.timeout`` that the caller stands
    inside of, if that is less."""
    left = _csot.remaining()
    return seconds if left is None else max(0.0, min(seconds, left))


class Change(NamedTuple):
    """What an event says of a job, as far as it concerns those who look for work.

    Attributes:
        job: the head of the document; None after a plain update, which does not say whose it was.
        ready: it is claimable, or may be, or comes in another place.
        scheduled: it is scheduled, or may be.
        run_at: for when; None when that is not known.
        expired: its lease was ended, or ends in a moment.
        asked: whoever runs it is to cancel it.
        expires_at: when it is too late to begin it, where the event says so.
        bell: it is of no job, but of the bell: the settings of a queue may have been changed.
        waits: it was put to come after others.
        left: it is left to others: who parked it cannot run it.
        anew: whoever left it to others is to try it again: it was given another payload since.
    """

    job: Mapping[str, Any] | None = None
    ready: bool = False
    scheduled: bool = False
    run_at: datetime | None = None
    expired: bool = False
    asked: bool = False
    expires_at: datetime | None = None
    bell: bool = False
    waits: bool = False
    left: bool = False
    anew: bool = False


def is_bell(event: Mapping[str, Any]) -> bool:
    """Whether an event says that the settings of a queue may have been changed."""
    return bool((event.get("documentKey") or {}).get("_id") == BELL)


def change_of(event: Mapping[str, Any]) -> Change:
    """Return what an event says that ``operations.stream_pipeline`` has let through."""
    if is_bell(event):
        return Change(bell=True)
    update = event.get("updateDescription") or {}
    fields = job = event.get("fullDocument")
    if fields is None:
        fields = update.get("updatedFields") or {}
    # (Other programs may have stored anything.)
    run_at, expires_at = (
        moment if isinstance(moment := fields.get(name), datetime) else None
        for name in ("run_at", "expires_at")
    )
    asked = fields.get(operations.ASKED_AT) is not None
    if job is not None or "state" in fields:
        state = fields.get("state")
        ready, scheduled, runs = (state == each for each in ("ready", "scheduled", "running"))
        waits = state == "waiting"
        left = waits and event["operationType"] != "insert"
        return Change(
            *(job, ready, scheduled, run_at, runs, asked and runs, expires_at),
            waits=waits and not left,
            left=left,
            anew=ready and _is_no_misfit(job, update.get("removedFields") or ()),
        )
    touched = {*fields, *(update.get("removedFields") or ())}
    if "queue" in touched:
        ends = "locked_until" in touched
        return Change(ready=True, scheduled=True, expired=ends, asked=asked)
    return Change(
        ready="priority" in touched or "seq" in touched,
        scheduled="run_at" in touched,
        run_at=run_at,
        expired="locked_until" in touched,
        asked=asked,
        expires_at=expires_at,
    )


def _is_no_misfit(job: Mapping[str, Any] | None, removed: Sequence[str]) -> bool:
    """Whether an event says that a job is left to others no more. (One that was let through keeps
    the time since when it was.)"""
    return operations.MISFIT_AT in removed or (
        job is not None and job.get(operations.MISFIT_AT) is None
    )


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
