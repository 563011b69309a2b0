"""Every error of the queue, and the three outcomes a handler may raise.

::

    StreamQueueError
    ├── ConfigurationError (ValueError)     a setting or argument outside its range
    │   └── ReplicaSetRequired              the server has no change streams
    ├── PayloadError (ValueError)           not a mapping, not BSON, too deep, too large
    ├── DuplicateJob                        a live job has this key        .key .job_id
    ├── JobNotFound (LookupError)           no such job in that state      .job_id
    ├── LeaseLost                           the job is no longer ours      .job_id
    ├── ForeignLoop (RuntimeError)          made in one event loop, used in another
    ├── ForkedProcess (RuntimeError)        made before a fork, used in the child
    └── EmbeddedServerError                 the local mongod cannot start

    Outcome                                 raised by handlers; not errors
    ├── Retry(delay=None)                   again later; counts as an attempt
    ├── Snooze(delay)                       again later; does not count
    └── Discard(reason)                     never again: dead at once

``pymongo.errors.PyMongoError`` passes through untouched, with its labels. One that reports a
timeout or a lost connection means the outcome is *unknown*: the write may have been applied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    """The payload cannot be stored and read back as it is; raised before anything is sent."""


class DuplicateJob(StreamQueueError):
    """A job with this key is already scheduled, ready or running.

    Attributes:
        key: the key that was asked for.
        job_id: the live job that has it, or None when it ended in between or the user may only
            write.
    """

    def __init__(self, key: str, job_id: ObjectId | None) -> None:
        which = "" if job_id is None else f" (job {job_id})"
        super().__init__(f"a live job already has the key {key!r}{which}")
        self.key = key
        self.job_id = job_id


class JobNotFound(StreamQueueError, LookupError):
    """No job with this id is in the state the call needs."""

    def __init__(self, job_id: ObjectId, wanted: str = "") -> None:
        super().__init__(f"no {wanted + ' ' if wanted else ''}job {job_id} in this queue")
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

    Args:
        delay: seconds (or a timedelta) until it is ready again; None leaves it to the backoff.
            With no attempts left the job is dead instead.
    """

    def __init__(self, delay: float | timedelta | None = None) -> None:
        super().__init__(delay)
        self.delay = delay


class Snooze(Outcome):
    """Run the job again later; the attempt does not count.

    Args:
        delay: seconds (or a timedelta) until it is ready again.
    """

    def __init__(self, delay: float | timedelta) -> None:
        super().__init__(delay)
        self.delay = delay


class Discard(Outcome):
    """Never run the job again: it is dead at once, whatever attempts are left.

    Args:
        reason: stored as the job's last error.
    """

    def __init__(self, reason: str = "discarded by the handler") -> None:
        super().__init__(reason)
        self.reason = reason
