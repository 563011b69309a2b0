"""What the holder of a job says of its progress, and when that is written.

A handler may say it a thousand times a second. The first time, and one after a quiet second, is
written at once; what is said within a second of the last write is kept, and the newest of it goes
with the next one: a later call's, a renewal's, or that of the end of the attempt.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Protocol

QUIET = 1.0
"""Seconds from one write to the next."""
QUIET_SHARE = 10
"""Where nobody renews the lease but these writes: and at most a tenth of its timeout."""


class Progress:
    """What was said of one attempt. Each of its holders may be another thread.

    Times are those of one clock, which whoever calls reads.

    Args:
        quiet: seconds from one write to the next.
    """

    __slots__ = ("_again_at", "_lock", "_newest", "_planned", "_quiet", "_stored", "_writing")

    def __init__(self, quiet: float = QUIET) -> None:
        self._quiet = quiet
        self._newest: dict[str, Any] = {}  # never changed, but replaced: itself its version
        self._stored = self._newest
        self._writing: dict[str, Any] | None = None
        self._planned = False
        self._again_at = -math.inf
        self._lock = threading.Lock()

    def say(self, count: int | None, note: str | None) -> bool:
        """Keep what is said, None for what stays as it was; return whether whoever writes it is to
        be told: not when a write is planned already that will have it."""
        said = {"progress": count, "note": note}
        said = {name: value for name, value in said.items() if value is not None}
        with self._lock:
            self._newest = {**self._newest, **said}
            told, self._planned = self._planned, True
        return not (said and told)

    @property
    def unstored(self) -> dict[str, Any]:
        """The fields that are still to be stored: empty if there is nothing new."""
        newest = self._newest
        return {} if newest is self._stored else newest

    @property
    def due_at(self) -> float:
        """When the next write may begin; infinity while one is under way."""
        return self._again_at if self._writing is None else math.inf

    def begin(self, now: float) -> dict[str, Any]:
        """Return the fields of a write that begins now: none beside another that is under way,
        which might come after it."""
        self._again_at = now + self._quiet
        if self._writing is not None:
            return {}
        self._planned = False
        fields = self.unstored
        if fields:
            self._writing = fields
        return fields

    def end(self, fields: dict[str, Any], *, settled: bool) -> None:
        """Note that this write is over; `settled`: its fields are stored, or never will be."""
        if self._writing is not fields:
            return
        self._writing = None
        if settled:
            self._stored = fields

    def over(self) -> None:
        """Keep nothing from now on: the attempt has ended, as the next write will be told."""
        self._again_at = -math.inf


class Held(Protocol):
    """A held job, with what was said of its progress."""

    progress: Progress | None


def progress_of(record: Held, quiet: float) -> Progress:
    """Return the progress of a held job, made by the first call, to be written that often."""
    if record.progress is None:
        with _first:
            return _made(record, quiet)
    return record.progress


def _made(record: Held, quiet: float) -> Progress:
    if record.progress is None:  # nobody was faster
        record.progress = Progress(quiet)
    return record.progress


_first = threading.Lock()
