"""Settings: frozen, checked when they are made, every duration in float seconds inside."""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .backoff import Backoff
from .durations import seconds, shown
from .errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta

_QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", re.ASCII)

MAX_PRIORITY = 2**31 - 1
MAX_BATCH = 10_000
"""Jobs in one claim: ids of this many fit a command with room to spare."""


def queue_name(value: object) -> str:
    """Return the name if it is one, or raise ConfigurationError.

    Names are checked because they stand in filters and metric labels: a dict or a pattern in that
    place would match other queues' jobs.
    """
    if not isinstance(value, str) or not _QUEUE_NAME.fullmatch(value):
        raise ConfigurationError(
            f"a queue name is 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or "
            f"digit, not {shown(value)}"
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
    return whole_number(value, "max_attempts", 1, 1_000_000)


def priority(value: object) -> int:
    return whole_number(value, "priority", -MAX_PRIORITY, MAX_PRIORITY)


def consumer_name(value: object) -> str:
    """Return a consumer's name; None makes one that no other process has, restarts included."""
    if value is None:
        return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    return _text(value, "consumer_id", 256)


def key_name(value: object) -> str:
    return _text(value, "key", 512)


def _text(value: object, name: str, longest: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest:
        raise ConfigurationError(f"{name} must be a string of 1 to {longest} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} must be valid Unicode, to be stored as UTF-8") from None
    return str(value)


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """What one queue object was told, checked.

    Attributes:
        name: which queue of the collection.
        consumer_id: stored as ``locked_by`` of what it claims, for people to read. Not proof of
            anything: an attempt is identified by its token.
        timeout: seconds a job may be held without a renewal. Default 300, as in mongoqueue.
        max_attempts: claims a job may use up before it is dead. Default 3.
        backoff: the wait between attempts.
    """

    name: str = "default"
    consumer_id: str | None = None
    timeout: float | timedelta = 300.0
    max_attempts: int = 3
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "name", queue_name(self.name))
        set_(self, "consumer_id", consumer_name(self.consumer_id))
        set_(self, "timeout", seconds(self.timeout, "timeout", minimum=0.001))
        set_(self, "max_attempts", max_attempts(self.max_attempts))
        if not isinstance(self.backoff, Backoff):
            raise ConfigurationError(f"backoff must be a Backoff, not {self.backoff!r}")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker was told, checked.

    Attributes:
        concurrency: handlers that run at the same time in this process. Default 20.
        timeout: the lease in seconds, renewed three times in its length while a handler runs; so
            it bounds how long a dead process keeps its jobs, not how long a handler may take.
            Default 30.
        max_attempts: for jobs that do not carry their own. Default 3.
        backoff: the wait between attempts.
        drain_timeout: seconds running handlers get after a stop before their jobs are released.
            Default 30.
        sweep_interval: mean seconds between two safety sweeps, jittered by half, or None for none.
            The sweep only counts jobs that the stream failed to announce (and wakes the claimer for
            them). Default 30.
        reap_interval: seconds until this process looks for expired leases after it has seen
            activity; when it knows of a lease it looks when that one runs out. Default 5.
        max_await: seconds one ``getMore`` of the change stream may stay silent; not the latency
            (events return at once). Default 1: a shorter one costs idle requests, a longer one a
            slower shutdown.
        consumer_id: stored as ``locked_by``; by default host, process id and a random part.
    """

    concurrency: int = 20
    timeout: float | timedelta = 30.0
    max_attempts: int = 3
    backoff: Backoff = field(default_factory=Backoff)
    drain_timeout: float | timedelta = 30.0
    sweep_interval: float | timedelta | None = 30.0
    reap_interval: float | timedelta = 5.0
    max_await: float | timedelta = 1.0
    consumer_id: str | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "concurrency", whole_number(self.concurrency, "concurrency", 1, MAX_BATCH))
        set_(self, "timeout", seconds(self.timeout, "timeout", minimum=0.1))
        set_(self, "max_attempts", max_attempts(self.max_attempts))
        set_(self, "drain_timeout", seconds(self.drain_timeout, "drain_timeout"))
        if self.sweep_interval is not None:
            interval = seconds(self.sweep_interval, "sweep_interval", minimum=0.1)
            set_(self, "sweep_interval", interval)
        set_(self, "reap_interval", seconds(self.reap_interval, "reap_interval", minimum=0.1))
        set_(self, "max_await", seconds(self.max_await, "max_await", minimum=0.05))
        set_(self, "consumer_id", consumer_name(self.consumer_id))
        if not isinstance(self.backoff, Backoff):
            raise ConfigurationError(f"backoff must be a Backoff, not {self.backoff!r}")
