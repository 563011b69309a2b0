"""Settings: frozen, checked when they are made, every duration in float seconds inside."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from .backoff import Backoff
from .durations import seconds, shown
from .errors import ConfigurationError
from .names import is_name

if TYPE_CHECKING:
    from datetime import timedelta

MAX_PRIORITY = 2**31 - 1
MOST_ATTEMPTS = 1_000_000
MOST_WEIGHT = 1000
MAX_BATCH = 10_000
"""Jobs in one claim: ids of this many fit a command with room to spare."""
MAX_NOTE_BYTES = 1024
MAX_KEY_BYTES = 256
MAX_TASK = 64
"""Characters of the name of a task, which is a label of metrics."""
DEFAULT_BACKOFF = Backoff()


def queue_name(value: object) -> str:
    """Return the name of a queue if it is a valid one, or raise ConfigurationError.

    Names are checked because they stand in filters and metric labels: a dict or a pattern in that
    place would match other queues' jobs.
    """
    return _name(value, "queue")


def topic_name(value: object) -> str:
    """Return the name of a topic if it is a valid one, as of a queue; or raise likewise."""
    return _name(value, "topic")


def step_name(value: object) -> str:
    """Return the name of a step if it is a valid one, as of a queue; or raise likewise."""
    return _name(value, "step")


def _name(value: object, what: str) -> str:
    if not is_name(value):
        raise ConfigurationError(
            f"a {what} name is 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter "
            f"or digit, not {shown(value)}"
        )
    return str(value)


def whole_number(value: object, name: str, minimum: int, maximum: int) -> int:
    """Return an int in the range, or raise ConfigurationError naming the argument and the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ConfigurationError(
            f"{name} must be a whole number from {minimum} to {maximum}, not {shown(value)}"
        )
    return int(value)


def max_attempts(value: object) -> int:
    """Return a number of claims from 1 to a million, or raise ConfigurationError."""
    return whole_number(value, "max_attempts", 1, MOST_ATTEMPTS)


def weight(value: object) -> int:
    """Return a queue's weight, from 1 to 1000, or raise ConfigurationError."""
    return whole_number(value, "weight", 1, MOST_WEIGHT)


def keep(value: float | timedelta | None) -> float | None:
    """Return how many seconds a job that has ended stays, or raise ConfigurationError."""
    return None if value is None else seconds(value, "keep")


def priority(value: object) -> int:
    """Return a 32-bit whole number, or raise ConfigurationError."""
    return whole_number(value, "priority", -MAX_PRIORITY, MAX_PRIORITY)


def consumer_name(value: object) -> str:
    """Return the name of a consumer; make one that no other process has or had for None."""
    if value is None:
        return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    return _text(value, "consumer_id", 256)


def key_name(value: object) -> str:
    """Return the key if it is a string of 1 to 256 bytes of UTF-8, or raise ConfigurationError.

    No other type stands for its text: two that differ would be one key.
    """
    try:
        size = len(value.encode()) if isinstance(value, str) else 0
    except UnicodeEncodeError:
        raise ConfigurationError("key must be valid Unicode, to be stored as UTF-8") from None
    if not isinstance(value, str) or not 1 <= size <= MAX_KEY_BYTES:
        raise ConfigurationError(
            f"key must be a string of 1 to {MAX_KEY_BYTES} bytes of UTF-8, not {shown(value)}"
        )
    return str.__str__(value)  # an enum's own would be its name


def group_name(value: object) -> str:
    """Return the group if it is a string of 1 to 512 characters, or raise ConfigurationError."""
    return _text(value, "group", 512)


def task_name(value: object) -> str:
    """Return the name of a task if it is a string of 1 to 64 printable characters, or raise
    ConfigurationError."""
    name = _text(value, "the name of a task", MAX_TASK)
    if not name.isprintable():
        raise ConfigurationError(f"the name of a task must be printable, not {shown(value)}")
    return name


def error_text(value: object) -> str:
    """Return the beginning of an error if it can be looked for, or raise ConfigurationError."""
    text = _text(value, "error", 1000)
    if "\0" in text:
        raise ConfigurationError("error must have no NUL character: none can be looked for")
    return text


def note_text(value: object) -> str:
    """Return the note if it is a text of at most 1 kB, or raise ConfigurationError."""
    try:
        size = len(value.encode()) if isinstance(value, str) else -1
    except UnicodeEncodeError:
        raise ConfigurationError("note must be valid Unicode, to be stored as UTF-8") from None
    if not 0 <= size <= MAX_NOTE_BYTES:
        has = f", and this one has {size:,}" if size > 0 else ""
        raise ConfigurationError(f"note must be a text of at most {MAX_NOTE_BYTES:,} bytes{has}")
    return str(value)


def _text(value: object, name: str, longest: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise ConfigurationError(f"{name} must be a string of 1 to {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} must be valid Unicode, to be stored as UTF-8") from None
    return str.__str__(value)  # an enum's own would be its name


@dataclass(frozen=True, slots=True, init=False)
class QueueOptions:
    """The checked settings of one queue object; a duration may be given as a timedelta.

    Attributes:
        name: which queue of the collection.
        consumer_id: the name stored as ``locked_by`` of the jobs it claims, for people to read. It
            proves nothing: an attempt is identified by its token.
        timeout: seconds a job may be held without a renewal. Default 300, as in mongoqueue.
        max_attempts: claims a job may use up before it is dead. Default 3.
        backoff: the wait between attempts.
        keep: seconds that a job stays when it has ended; None: it is removed at once.
    """

    name: str
    consumer_id: str
    timeout: float
    max_attempts: int
    backoff: Backoff
    keep: float | None

    def __init__(
        self,
        name: str = "default",
        consumer_id: str | None = None,
        timeout: float | timedelta = 300.0,
        max_attempts: int = 3,
        backoff: Backoff = DEFAULT_BACKOFF,
        keep: float | timedelta | None = None,
    ) -> None:
        set_ = partial(object.__setattr__, self)
        set_("keep", _keep(keep))
        set_("name", queue_name(name))
        set_("consumer_id", consumer_name(consumer_id))
        set_("timeout", seconds(timeout, "timeout", minimum=0.001))
        set_("max_attempts", whole_number(max_attempts, "max_attempts", 1, MOST_ATTEMPTS))
        set_("backoff", _backoff(backoff))


class RarerSettings(TypedDict, total=False):
    """The settings of a worker that few programs want; see :class:`WorkerOptions`."""

    sweep_interval: float | timedelta | None
    reap_interval: float | timedelta
    max_await: float | timedelta
    consumer_id: str | None
    log_tracebacks: bool


@dataclass(frozen=True, slots=True, init=False)
class WorkerOptions:
    """The checked settings of a worker; a duration may be given as a timedelta.

    Attributes:
        concurrency: handlers that run at the same time in this process. Default 20.
        timeout: the lease in seconds, renewed three times in its length while a handler runs; so
            it bounds how long a dead process keeps its jobs, not how long a handler may take.
            Default 30.
        max_attempts: claims a job may use up that does not carry its own number. Default 3.
        backoff: the wait between attempts.
        drain_timeout: seconds running handlers get after a stop before their jobs are released.
            Default 30.
        sweep_interval: mean seconds between two safety sweeps, jittered by half, or None for none.
            The sweep only counts jobs that the stream failed to announce (and wakes the claimer for
            them). Default 30.
        reap_interval: the longest time in seconds between two looks for the lease that ends next in
            the collection, whoever holds it; its job is returned when it ends. Default 5.
        max_await: seconds one ``getMore`` of the change stream may stay silent; not the latency
            (events return at once). Default 1: a shorter one costs idle requests, a longer one a
            slower shutdown.
        consumer_id: the name stored as ``locked_by``; by default host, process id and a random
            part.
        keep: seconds that a job stays, with its state and result, when it is done or cancelled.
            None, the default, removes it at once.
        log_tracebacks: log failed attempts with their tracebacks, which may quote payloads.
            Default False: they are stored on the job.
        misfit_grace: seconds that a job whose payload does not fit its handler's ``payload=`` is
            left to other workers before it is dead. Default 3600: longer than a rolling deployment
            takes. 0: dead at once, for those who never roll.
    """

    concurrency: int
    timeout: float
    max_attempts: int
    backoff: Backoff
    drain_timeout: float
    sweep_interval: float | None
    reap_interval: float
    max_await: float
    consumer_id: str
    log_tracebacks: bool
    keep: float | None
    misfit_grace: float

    def __init__(
        self,
        concurrency: int = 20,
        timeout: float | timedelta = 30.0,
        max_attempts: int = 3,
        backoff: Backoff = DEFAULT_BACKOFF,
        drain_timeout: float | timedelta = 30.0,
        sweep_interval: float | timedelta | None = 30.0,
        reap_interval: float | timedelta = 5.0,
        max_await: float | timedelta = 1.0,
        consumer_id: str | None = None,
        log_tracebacks: bool = False,
        keep: float | timedelta | None = None,
        misfit_grace: float | timedelta = 3600.0,
    ) -> None:
        set_ = partial(object.__setattr__, self)
        set_("keep", _keep(keep))
        set_("misfit_grace", seconds(misfit_grace, "misfit_grace"))
        set_("concurrency", whole_number(concurrency, "concurrency", 1, MAX_BATCH))
        set_("timeout", seconds(timeout, "timeout", minimum=0.1))
        set_("max_attempts", whole_number(max_attempts, "max_attempts", 1, MOST_ATTEMPTS))
        set_("backoff", _backoff(backoff))
        set_("drain_timeout", seconds(drain_timeout, "drain_timeout"))
        if sweep_interval is not None:
            sweep_interval = seconds(sweep_interval, "sweep_interval", minimum=0.1)
        set_("sweep_interval", sweep_interval)
        set_("reap_interval", seconds(reap_interval, "reap_interval", minimum=0.1))
        set_("max_await", seconds(max_await, "max_await", minimum=0.05))
        set_("consumer_id", consumer_name(consumer_id))
        set_("log_tracebacks", log_tracebacks)


_keep = keep  # where a parameter has that name


def _backoff(value: object) -> Backoff:
    if not isinstance(value, Backoff):
        raise ConfigurationError(f"backoff must be a Backoff, not {value!r}")
    return value
