"""Time limits of handlers: what stops one that takes too long, or says that nothing can.

An async handler is cancelled and a child process killed, by the attempt's own scope. A thread
cannot be stopped, and a second attempt beside it would do its work twice at once: so its job stays
ours, and keeps its slot, until it returns. It is named at once and counted, and where such handlers
have all the slots the process is not ready.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ... import plain
from ...clock import monotonic
from .tasks import call_later

if TYPE_CHECKING:
    from contextvars import Context

    from ...health.health import Health
    from .attempt import Attempt
    from .tasks import Timer

logger = plain.logger("streamqueue.execution")

READINESS = "handlers"
MOST_NAMED = 5


class TimeLimits:
    """The handlers that have a time limit, while they run.

    Args:
        concurrency: how many handlers run at a time.
        health: is not ready while that many are over their limits.
    """

    def __init__(self, concurrency: int, health: Health) -> None:
        self._concurrency = concurrency
        self._health = health
        self._timers: dict[Attempt, tuple[float, Timer]] = {}
        self._overdue: set[Attempt] = set()
        self._stuck = False

    def begin(self, attempt: Attempt, context: Context) -> None:
        """Begin to measure the time of a handler that has a limit; it is called now."""
        limit = attempt.registered.handler.time_limit
        if limit is not None:
            timer = call_later(limit, partial(self._pass, attempt), context)
            self._timers[attempt] = monotonic(), timer

    def over(self, attempt: Attempt, error: BaseException | None) -> BaseException | None:
        """Note that a handler has ended; return its error, which the limit is, if that was over.

        Args:
            error: what it raised, or None.
        """
        began, timer = self._timers.pop(attempt, (0.0, None))
        if timer is None:  # its child process could not be started
            return error
        timer.cancel()
        if not attempt.overdue:
            return error
        self._overdue.discard(attempt)
        attempt.registered.metrics.overdue.dec()
        if self._stuck:
            self._clear()
        limit = attempt.registered.handler.time_limit
        passed = TimeoutError(
            f"time limit of {limit:g} s: the handler ended after {monotonic() - began:.3g} s"
        )
        passed.__cause__ = error  # where it was
        return passed

    def look(self) -> None:
        """Be not ready while all slots have handlers that are over their limits.

        Looked at now and then: those that can be stopped are over theirs for a moment only.
        """
        if self._stuck or len(self._overdue) < self._concurrency:
            return
        self._stuck = True
        text = f"all {self._concurrency} handlers are over their time limits"
        self._health.not_ready(READINESS, text)
        names = sorted({attempt.registered.handler.task for attempt in self._overdue})
        logger.error(
            "No slot is left: %s: %s",
            text,
            ", ".join(names[:MOST_NAMED]) + (", …" if names[MOST_NAMED:] else ""),
            extra={"event": "slots_overdue", "count": self._concurrency},
        )

    def close(self) -> None:
        """Say no more of it: the run is over."""
        self._clear()

    def _clear(self) -> None:
        self._stuck = False
        self._health.clear(READINESS)

    def _pass(self, attempt: Attempt) -> None:
        """Stop a handler whose time is over."""
        scope = attempt.scope
        if scope is not None and scope.cancel_called:
            return  # it was stopped for another reason, which comes first
        attempt.overdue = True
        self._overdue.add(attempt)
        attempt.registered.metrics.overdue.inc()
        handler = attempt.registered.handler
        if scope is not None:
            scope.cancel()
        logger.warning(
            "The handler %s of job %s is over its time limit of %g s: %s",
            handler.task,
            attempt.record.id,
            handler.time_limit,
            "its thread cannot be stopped, and keeps its slot"
            if scope is None
            else "it is stopped",
            extra={
                "event": "time_limit",
                **attempt.facts(),
                "task": handler.task,
                "seconds": handler.time_limit,
            },
        )
