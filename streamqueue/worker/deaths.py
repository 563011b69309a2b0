"""Telling the program of jobs that this process has made dead: ``on_dead``.

Each death is told once at most, after it was written, in a task that belongs to nobody's attempt:
its slot is free by then, and nobody waits for what the program does with it.
"""

from __future__ import annotations

import contextvars
import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from anyio import CancelScope

from .. import plain
from ..durations import shown
from ..errors import ConfigurationError, type_name
from ..queue.info import JobInfo
from ..queue.lines import facts
from ..running import Running, running
from ..signals import GRACE
from .execution.tasks import begin
from .execution.threads import Threads

if TYPE_CHECKING:
    from ..protocol.document import JobRecord
    from .execution.tasks import Task
    from .handler import OnDead

logger = plain.logger("streamqueue.execution")

AT_ONCE = 10
MOST_WAITING = 1000
"""Deaths that are still to be told; of more than that, each has its payload."""


class _Death(NamedTuple):
    tell: OnDead
    record: JobRecord
    last_error: str | None
    error: BaseException | None


class Deaths:
    """Calls the functions that are to be told of dead jobs, ten at a time."""

    def __init__(self) -> None:
        self._waiting: deque[_Death] = deque()
        self._running: set[Task[None]] = set()
        self._threads = Threads()
        self._context = contextvars.copy_context()
        self._changed = anyio.Event()

    def open(self) -> None:
        """Tell of deaths from now on, in this context."""
        self._context = contextvars.copy_context()

    def tell(
        self,
        function: OnDead,
        record: JobRecord,
        last_error: str | None,
        error: BaseException | None = None,
    ) -> None:
        """Have a function called with a job that is dead, and what its handler raised."""
        if len(self._waiting) >= MOST_WAITING:
            _log_untold(record, "too many are waiting")
            return
        self._waiting.append(_Death(function, record, last_error, error))
        self._begin_some()

    async def close(self) -> None:
        """Wait for what is still to be told, but not for long."""
        with CancelScope(shield=True):
            with anyio.move_on_after(GRACE):
                while self._running:
                    self._changed = anyio.Event()
                    await self._changed.wait()
            left, self._waiting = self._waiting, deque()
            for death in left:
                _log_untold(death.record, "the worker has stopped")
            for task in self._running:
                task.cancel()
            self._threads.close()

    def _begin_some(self) -> None:
        while self._waiting and len(self._running) < AT_ONCE:
            self._running.add(begin(self._call(self._waiting.popleft()), self._over, self._context))

    def _over(self, task: Task[None]) -> None:
        self._running.discard(task)
        self._changed.set()
        self._begin_some()

    async def _call(self, death: _Death) -> None:
        record = death.record
        running.set(Running(record.queue, record.id, record.attempts))
        info = _info(record, death.last_error)
        try:
            if _is_async(death.tell):
                await death.tell(info, death.error)
            else:
                await self._threads.run(lambda _: death.tell(info, death.error), None)
        except BaseException as error:  # SystemExit too: it is not to end the process for all
            logger.error(
                "on_dead of job %s of queue %s failed: %s",
                record.id,
                record.queue,
                type_name(error),
                extra={"event": "on_dead_failed", **facts(record), "error": type_name(error)},
            )


def check_on_dead(function: Any) -> OnDead | None:
    """Return it, or raise ConfigurationError if it cannot be called with a job and an error."""
    if function is None:
        return None
    takes = "on_dead must be a function that takes the job (a JobInfo) and the error"
    if not callable(function) or inspect.isclass(function):
        raise ConfigurationError(f"{takes}, not {shown(function)}")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        signature = inspect.signature(function)
        raise ConfigurationError(f"{takes}, and {shown(function)} takes {signature}") from None
    except ValueError:  # some of those written in C have no signature
        pass
    told: OnDead = function
    return told


def _is_async(function: object) -> bool:
    call = getattr(function, "__call__", function)  # noqa: B004 (the method is what is inspected)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _info(record: JobRecord, last_error: str | None) -> JobInfo:
    """Return a dead job as far as its holder knows it: without times, and former errors."""
    return JobInfo.from_document(
        {
            "_id": record.id,
            "queue": record.queue,
            "task": record.task,
            "state": "dead",
            "payload": record.data,
            "priority": record.priority,
            "attempts": record.attempts,
            "max_attempts": record.max_attempts,
            "key": record.key,
            "group": record.group,
            "run_at": record.run_at,
            "last_error": last_error,
        }
    )


def _log_untold(record: JobRecord, reason: str) -> None:
    logger.error(
        "on_dead was not called for job %s of queue %s: %s",
        record.id,
        record.queue,
        reason,
        extra={"event": "on_dead_left_out", **facts(record), "reason": reason},
    )
