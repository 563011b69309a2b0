"""What a program registers: one handler per queue."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..durations import shown
from ..errors import ConfigurationError, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..backoff import Backoff
    from ..metrics.series import ConsumerMetrics


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs the jobs of a queue.

    Attributes:
        queue: the queue's name.
        function: takes the job; ``async def`` runs in the event loop, ``def`` in a thread.
        backoff: the wait after a failed attempt.
        max_attempts: for jobs that do not carry their own.
        keep: the same; seconds that they stay when they are done, or None.
    """

    queue: str
    function: Callable[[Any], Any]
    backoff: Backoff
    max_attempts: int
    is_async: bool
    keep: float | None = None

    @property
    def task(self) -> str:
        """The name it has in the metrics."""
        try:
            name = getattr(self.function, "__name__", None)
        except Exception:  # an object with a __getattr__ of its own
            name = None
        return name if isinstance(name, str) else type_name(self.function)


def is_async(function: Callable[[Any], Any]) -> bool:
    """Whether calling it gives a coroutine, or ConfigurationError if it cannot be a handler."""
    if not callable(function):
        raise ConfigurationError(f"a handler must be a function, not {shown(function)}")
    if inspect.isclass(_innermost(function)):
        raise ConfigurationError(
            f"a handler must be a function, not the class {shown(function)}: to make one of those "
            "does no work; register a method, or an object that can be called"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError("a handler must not be a generator: it has no one to yield to")
    _check_takes_a_job(function)
    call = getattr(function, "__call__", function)  # noqa: B004 (the method is what is inspected)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _innermost(function: object) -> object:
    while isinstance(function, partial):
        function = function.func
    return function


def _check_takes_a_job(function: Callable[[Any], Any]) -> None:
    """Raise if it cannot be called with one argument, as far as Python can tell.

    What a decorator says it stands for is not asked: it may well fill in what that needs.
    """
    if hasattr(function, "__signature__"):
        return
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some of those written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as problem:
        raise ConfigurationError(
            f"a handler is called with the job alone, but {shown(function)} takes {signature}: "
            f"{problem}"
        ) from None


@dataclass(frozen=True, slots=True)
class RegisteredHandler:
    """A handler with its metrics, while its worker runs."""

    handler: Handler
    metrics: ConsumerMetrics


def limit_of(handlers: Mapping[str, RegisteredHandler], default: int) -> Callable[[str], int]:
    """Return what says, for a queue, how many attempts a job has that does not say so itself."""
    limits = {queue: registered.handler.max_attempts for queue, registered in handlers.items()}
    return lambda queue: limits.get(queue, default)


def keep_of(handlers: Mapping[str, RegisteredHandler]) -> Callable[[str], float | None]:
    """Return what says, for a queue, how long a job stays that does not say so itself."""
    kept = {queue: registered.handler.keep for queue, registered in handlers.items()}
    return kept.get
