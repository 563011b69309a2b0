"""Failures in a row, logged as one: the first, and their end.

A lost server fails everything that is tried again every second, in every part of every process.
What people need of that are two lines: since when, and for how long.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from .clock import monotonic
from .failures import failure_facts, failure_name

STEADY = 10.0
"""Seconds without a failure after which an outage is over that began this soon after another. Some
errors come with every second try, and each of them alone would be two lines."""


class Ended(NamedTuple):
    """An outage that is over: how many seconds it lasted, and how many failures there were."""

    seconds: float
    failures: int


class Outage:
    """Whether something fails, since when and how often."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._failures = 0
        self._last_failure = self._ended_at = -math.inf
        self._unsteady = False

    def failed(self) -> bool:
        """Count a failure; return whether an outage begins with it, which is worth a line."""
        now = self._last_failure = monotonic()
        self._failures += 1
        if self._since is not None:
            return False
        self._since = now
        self._failures = 1
        self._unsteady = now - self._ended_at < STEADY
        return True

    def succeeded(self) -> Ended | None:
        """Note a success; return what the outage was if it is over with it, which is worth a line.

        Nearly free while there is none.
        """
        if self._since is None:
            return None
        now = monotonic()
        if self._unsteady and now - self._last_failure < STEADY:
            return None
        seconds = (self._last_failure if self._unsteady else now) - self._since
        self._since, self._ended_at = None, now
        return Ended(seconds, self._failures)


class LoggedOutage:
    """The same for an operation that a worker repeats until it succeeds, with its two lines.

    Args:
        logger: of the part that repeats it.
        operation: for the logs, in one word, as in the metrics where there is one.
        what: the same as the subject of a sentence.
        level: of the first line.
    """

    def __init__(
        self, logger: logging.Logger, operation: str, what: str, level: int = logging.WARNING
    ) -> None:
        self._logger = logger
        self._operation = operation
        self._what = what
        self._level = level
        self._outage = Outage()

    def failed(self, error: BaseException, sentence: str, *arguments: object) -> None:
        """Log a failure unless it goes on; `sentence` has a place for what it was, last."""
        if self._outage.failed():
            self._logger.log(
                self._level,
                sentence,
                *arguments,
                failure_name(error),
                extra={
                    "event": "operation_failing",
                    "operation": self._operation,
                    **failure_facts(error),
                },
            )

    def succeeded(self) -> None:
        """Log that it works again, if it did not."""
        ended = self._outage.succeeded()
        if ended is not None:
            self._logger.info(
                "%s works again after %.1f s and %d failures",
                self._what,
                *ended,
                extra={
                    "event": "operation_recovered",
                    "operation": self._operation,
                    "seconds": round(ended.seconds, 3),
                    "count": ended.failures,
                },
            )
