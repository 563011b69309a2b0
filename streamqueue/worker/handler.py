"""What a program registers: one handler per queue."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..backoff import Backoff
    from ..metrics import ConsumerMetrics


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs the jobs of a queue.

    Attributes:
        queue: the queue's name.
        function: takes the job; ``async def`` runs in the event loop, ``def`` in a thread.
        backoff: the wait after a failed attempt.
        max_attempts: for jobs that do not carry their own.
    """

    queue: str
    function: Callable[[Any], Any]
    backoff: Backoff
    max_attempts: int
    is_async: bool

    @property
    def task(self) -> str:
        """The name it has in the metrics."""
        return getattr(self.function, "__name__", type(self.function).__name__)


def is_async(function: Callable[[Any], Any]) -> bool:
    """Whether calling it gives a coroutine, or ConfigurationError if it cannot be called."""
    if not callable(function):
        raise ConfigurationError(f"a handler must be a function, not {function!r}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError("a handler must not be a generator: it has no one to yield to")
    call = getattr(function, "__call__", function)  # noqa: B004 (the method is what is inspected)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


@dataclass(frozen=True, slots=True)
class RegisteredHandler:
    """A handler with its metrics, while its worker runs."""

    handler: Handler
    metrics: ConsumerMetrics
