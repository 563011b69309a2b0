"""What a program registers: one handler per queue."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..durations import shown
from ..errors import ConfigurationError, type_name
from ..protocol.limits import UNRULED
from .sharing.fairness import Fairness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..backoff import Backoff
    from ..metrics.series import ConsumerMetrics
    from ..protocol.limits import Rules
    from .sharing.shares import Share

RunIn = Literal["loop", "thread", "process"]


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs the jobs of a queue.

    Attributes:
        queue: the queue's name.
        function: takes the job; in a process, its payload.
        backoff: the wait after a failed attempt.
        max_attempts: for jobs that do not carry their own.
        keep: the same; seconds that they stay when they are done, or None.
        run_in: where it runs.
        time_limit: seconds an attempt may take, or None.
        concurrency: how many of its jobs may run at a time in this process, or None for as many as
            the worker runs.
        weight: its share of the slots, beside other queues that have work.
        rules: how many of its jobs may run, or start, and in which order, over all processes.
    """

    queue: str
    function: Callable[[Any], Any]
    backoff: Backoff
    max_attempts: int
    run_in: RunIn
    keep: float | None = None
    time_limit: float | None = None
    concurrency: int | None = None
    weight: int = 1
    rules: Rules = UNRULED

    @property
    def task(self) -> str:
        """The name it has in the metrics."""
        try:
            name = getattr(self.function, "__name__", None)
        except Exception:  # an object with a __getattr__ of its own
            name = None
        return name if isinstance(name, str) else type_name(self.function)

    def check(self) -> None:
        """Raise ConfigurationError if a child process could not import its function.

        Not when it is registered: while a module is executed, its functions have no names yet.
        """
        if self.run_in == "process" and not _found_by_name(self.function):
            raise ConfigurationError(_not_importable(self.function))


def where_to_run(function: Callable[[Any], Any], run_in: object) -> RunIn:
    """Return where a handler runs: as asked, or None for what its kind is made for.

    Raises:
        ConfigurationError: it cannot be a handler, or cannot run there.
    """
    in_loop = is_async(function)
    match run_in:
        case None:
            return "loop" if in_loop else "thread"
        case "loop" if in_loop:
            return "loop"
        case "loop":
            raise ConfigurationError(
                f"handler {shown(function)} is a def, which would block the event loop and with it "
                "all other jobs: run_in='loop' is for an async def"
            )
        case "thread" | "process" if in_loop:
            raise ConfigurationError(
                f"handler {shown(function)} is an async def, which runs in the event loop: "
                f"run_in={run_in!r} is for a def"
            )
        case "thread":
            return "thread"
        case "process":
            if not _has_a_name(function):
                raise ConfigurationError(_not_importable(function))
            return "process"
    raise ConfigurationError(
        f"run_in must be one of {', '.join(map(repr, get_args(RunIn)))}, not {shown(run_in)}"
    )


def _has_a_name(function: Callable[[Any], Any]) -> bool:
    """Whether a function is such as another process can find by its name."""
    name = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    if not (inspect.isroutine(function) and isinstance(name, str) and isinstance(module, str)):
        return False  # a partial, an object that can be called, or [].append
    return not (inspect.ismethod(function) or "<" in name)  # <lambda>, <locals>


def _found_by_name(function: Callable[[Any], Any]) -> bool:
    """Whether the function is what stands in its module under its name."""
    module = sys.modules.get(function.__module__)
    if module is None or not (module.__name__ != "__main__" or hasattr(module, "__file__")):
        return False  # typed in, or from python -c: a child has nothing to import
    found: object = module
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _not_importable(function: object) -> str:
    return (
        "run_in='process' needs a function that stands at the top level of a module, where the "
        f"child process imports it by its name; {shown(function)} does not"
    )


def is_async(function: Callable[[Any], Any]) -> bool:
    """Whether calling it gives a coroutine, or ConfigurationError if it cannot be a handler."""
    if not callable(function):
        raise ConfigurationError(f"a handler must be a function, not {shown(function)}")
    if inspect.isclass(innermost(function)):
        raise ConfigurationError(
            f"a handler must be a function, not the class {shown(function)}: to make one of those "
            "does no work; register a method, or an object that can be called"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError("a handler must not be a generator: it has no one to yield to")
    _check_takes_a_job(function)
    call = getattr(function, "__call__", function)  # noqa: B004 (the method is what is inspected)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def innermost(function: object) -> object:
    """Return what a partial calls, or the function itself."""
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
    """A handler with its metrics and, if it may not have all of the slots or is not the only one,
    its share of them; while its worker runs."""

    handler: Handler
    metrics: ConsumerMetrics
    share: Share | None = None


def limited(handlers: Mapping[str, Handler], concurrency: int) -> dict[str, int]:
    """Return how many slots each queue may have, of those that may not have all."""
    return {
        queue: handler.concurrency
        for queue, handler in handlers.items()
        if handler.concurrency is not None and handler.concurrency < concurrency
    }


def share_slots(handlers: Mapping[str, Handler], concurrency: int) -> bool:
    """Whether it matters how many slots each queue has: there are several, or one that may not have
    all."""
    return len(handlers) > 1 or bool(limited(handlers, concurrency))


def fairness_of(handlers: Mapping[str, Handler], concurrency: int) -> Fairness:
    """Return what shares so many slots among the queues."""
    return Fairness(concurrency, {queue: handler.weight for queue, handler in handlers.items()})


def limit_of(handlers: Mapping[str, RegisteredHandler], default: int) -> Callable[[str], int]:
    """Return what says, for a queue, how many attempts a job has that does not say so itself."""
    limits = {queue: registered.handler.max_attempts for queue, registered in handlers.items()}
    return lambda queue: limits.get(queue, default)


def keep_of(handlers: Mapping[str, RegisteredHandler]) -> Callable[[str], float | None]:
    """Return what says, for a queue, how long a job stays that does not say so itself."""
    kept = {queue: registered.handler.keep for queue, registered in handlers.items()}
    return kept.get
