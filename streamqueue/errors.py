"""Every error of the queue, and the four outcomes a handler may raise.

::

    StreamQueueError
    ├── ConfigurationError (ValueError)     a setting or argument outside its range
    │   └── ReplicaSetRequired              the server has no change streams
    ├── PayloadError (ValueError)           payload or result: not BSON, too deep, too large
    ├── DuplicateJob                        the key is taken   .key .job_id .ids .existing
    ├── JobNotFound (LookupError)           no such job in that state      .job_id
    ├── ScheduleNotFound (LookupError)      no schedule of that name       .name
    ├── JobFailed                           a job that was waited for is dead   .info .job_id
    ├── JobCancelled                        somebody has cancelled it      .job_id
    ├── LeaseLost                           the job is no longer ours      .job_id
    ├── ForeignLoop (RuntimeError)          made in one event loop, used in another
    ├── ForkedProcess (RuntimeError)        made before a fork, used in the child
    └── EmbeddedServerError                 the local mongod cannot start

    Outcome                                 raised by handlers; not errors
    ├── Retry(delay=None, reason=None)      again later; counts as an attempt
    ├── Snooze(delay, reason=None)          again later; does not count
    ├── Discard(reason)                     never again: dead at once
    └── Cancel(reason=None)                 never again, and no failure: cancelled

``pymongo.errors.PyMongoError`` passes through untouched, with its labels. One that reports a
timeout or a lost connection means the outcome is *unknown*: the write may have been applied.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from bson import ObjectId


class StreamQueueError(Exception):
    """The root of everything this package raises by itself. Can be pickled, as errors should."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    # Not by calling it: some take data and make the message of it.
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(StreamQueueError, ValueError):
    """A setting or argument is outside its range; the message names the range."""


class ReplicaSetRequired(ConfigurationError):
    """The server is not a replica set, so it has no change streams to wake consumers with."""

    def __init__(self, detail: str = "the server is a standalone mongod") -> None:
        super().__init__(
            f"streamqueue needs a replica set, but {detail}. A single node is enough: start it "
            "with `mongod --replSet rs0`, then run `rs.initiate()` once in mongosh "
            "(or try `streamqueue server`)."
        )


class PayloadError(StreamQueueError, ValueError):
    """The payload cannot be stored and read back as it is; raised before anything is sent.

    Or the result of a job that is kept cannot: then the job is dead.
    """


class DuplicateJob(StreamQueueError):
    """The key of a job is taken. Of many jobs, the rest has been put.

    By one that is scheduled, ready, waiting or running, or by one that has ended and was put with
    ``unique_for``.

    Raised within a transaction, it says that the server has ended that: nothing of it is stored.

    Attributes:
        key: the key that was asked for; of many, the first that was taken.
        job_id: the job that has it, or None when it ended in between or the user may only write.
        ids: of ``put_many``, what it would have returned: the ids in order, and where a key was
            taken, that of the job that has it, or None.
        existing: of ``put_many``, the positions of those that were not put, because a job with
            their id, or one that has their key, was there.
    """

    def __init__(
        self,
        key: str,
        job_id: ObjectId | None,
        *,
        ids: Sequence[ObjectId | None] = (),
        existing: Sequence[int] = (),
        ended_transaction: bool = False,
    ) -> None:
        which = "" if job_id is None else f" by job {job_id}"
        end = "; that ended the transaction, and nothing of it is stored"
        super().__init__(f"the key {key!r} is taken{which}{end if ended_transaction else ''}")
        self.key = key
        self.job_id = job_id
        self.ids = list(ids)
        self.existing = list(existing)


class JobNotFound(StreamQueueError, LookupError):
    """No job with this id is in the state the call needs.

    Args:
        where: where it was looked for.
        hint: what may have become of it, and what to do.
    """

    def __init__(
        self, job_id: ObjectId, wanted: str = "", *, where: str = "in this queue", hint: str = ""
    ) -> None:
        which = f"{wanted} job" if wanted else "job"
        super().__init__(f"no {which} {job_id} {where}{hint and ': '}{hint}")
        self.job_id = job_id


class ScheduleNotFound(StreamQueueError, LookupError):
    """No schedule of the collection has this name.

    Attributes:
        name: the name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r}")
        self.name = name


class JobFailed(StreamQueueError):
    """A job that has no result: it is dead.

    Attributes:
        info: the job (:class:`JobInfo`), with its last error and the ones before.
        job_id: its id.
    """

    def __init__(self, info: Any) -> None:
        lines = (info.last_error or "no error stored").strip().splitlines() or [""]
        super().__init__(f"job {info.id} is dead: {lines[-1]}")
        self.info = info
        self.job_id = info.id


class JobCancelled(StreamQueueError):
    """The job was cancelled, or is about to be: somebody has asked for that.

    Raised by every call of a job that runs, from when its holder knows of it: stop working on it.
    Whatever the handler does afterwards, the job ends as cancelled.
    """

    def __init__(self, job_id: ObjectId) -> None:
        super().__init__(f"job {job_id} was cancelled")
        self.job_id = job_id


class LeaseLost(StreamQueueError):
    """The job is no longer held by this attempt, so the call changed nothing.

    It was already completed, errored or released, or its lease ran out and somebody else may be
    running it now. Stop working on it: what you do from here on may be done twice.
    """

    def __init__(self, job_id: ObjectId) -> None:
        super().__init__(
            f"job {job_id} is no longer held by this attempt; nothing was changed "
            "(it ended already, or its lease ran out and it may be running elsewhere)"
        )
        self.job_id = job_id


class ForeignLoop(StreamQueueError, RuntimeError):
    """An async queue or worker was used in a second event loop."""

    def __init__(self) -> None:
        super().__init__(
            "an AsyncMongoClient belongs to the event loop it was first used in: make a new client "
            "and a new queue inside this loop (one asyncio.run per client)"
        )


class ForkedProcess(StreamQueueError, RuntimeError):
    """A queue made before a fork was used in the child process."""

    def __init__(self) -> None:
        super().__init__(
            "this queue was made before a fork and its connections belong to the parent: make the "
            "MongoClient and the queue in the child (in gunicorn: in post_fork, not at import)"
        )


class EmbeddedServerError(StreamQueueError):
    """The local mongod could not be found or started; the message says what to install."""


class Outcome(Exception):
    """What a handler may raise to say how its attempt ended. Not an error."""


class Retry(Outcome):
    """Run the job again later; the attempt counts.

    What is stored of it says the delay, the reason, and the cause (``raise Retry(5) from error``).

    Args:
        delay: seconds (or a timedelta) until it is ready again; None leaves it to the backoff.
            With no attempts left the job is dead instead.
        reason: why, for people.
    """

    def __init__(
        self, delay: float | timedelta | None = None, *, reason: object | None = None
    ) -> None:
        super().__init__(delay)
        self.delay = delay
        self.reason = reason

    def __str__(self) -> str:
        return _sentence(self, self.delay, self.reason)


class Snooze(Outcome):
    """Run the job again later; the attempt does not count.

    Args:
        delay: seconds (or a timedelta) until it is ready again.
        reason: why, for people.
    """

    def __init__(self, delay: float | timedelta, *, reason: object | None = None) -> None:
        super().__init__(delay)
        self.delay = delay
        self.reason = reason

    def __str__(self) -> str:
        return _sentence(self, self.delay, self.reason)


class Discard(Outcome):
    """Never run the job again: it is dead at once, whatever attempts are left.

    Args:
        reason: stored as the job's last error.
    """

    def __init__(self, reason: object = "discarded by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class Cancel(Outcome):
    """Never run the job again, and do not call it a failure: it is cancelled at once.

    Args:
        reason: stored as the job's last error, if there is one.
    """

    def __init__(self, reason: object | None = None) -> None:
        super().__init__(reason)
        self.reason = reason


class AttemptOutcome(StrEnum):
    """How an attempt ended; every attempt ends in exactly one of these."""

    COMPLETED = "completed"
    RETRIED = "retried"
    DEAD = "dead"
    RELEASED = "released"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LEASE_LOST = "lease_lost"


def _sentence(outcome: Outcome, delay: object, reason: object) -> str:
    """Return when a job is to run again, and why."""
    when = "again after the backoff"
    if isinstance(delay, (int, float)):
        when = f"again after {text_of(delay)} s"
    elif delay is not None:
        when = f"again after {text_of(delay)}"
    if reason is not None:
        when += f": {text_of(reason)}"
    cause = outcome.__cause__
    if cause is not None:
        when += f", because of {type_name(cause)}: {text_of(cause)}"
    return when


def type_name(value: object) -> str:
    """Return the name of a value's type; a metaclass of somebody's cannot make this fail."""
    name = type.__dict__["__name__"].__get__(type(value))
    return str.__str__(name)


def text_of(value: object) -> str:
    """Return a value as text; the name of its type where it cannot make one."""
    try:
        return str.__str__(str(value))  # of a subclass of str, a plain one
    except BaseException as problem:  # somebody's __str__ may raise anything, SystemExit too
        return f"<{type_name(value)}, without a text because of {type_name(problem)}>"


def only_one(group: BaseExceptionGroup[Any]) -> BaseException:
    """Return the one exception in a group of one, however deep; else the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return group if isinstance(error, BaseExceptionGroup) else error
