"""What a program registers: the functions that run jobs."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..durations import shown
from ..errors import ConfigurationError, type_name
from ..queue.holder import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..backoff import Backoff
    from ..metrics.series import ConsumerMetrics
    from ..protocol.fitting.kinds import Reader
    from ..queue.info import JobInfo
    from .failing import Failing
    from .sharing.shares import Share

    OnDead = Callable[[JobInfo, BaseException | None], Any]

RunIn = Literal["loop", "thread", "process"]


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that runs jobs of a queue: all that have no task, or those of one task.

    Attributes:
        queue: the queue's name.
        function: as it was registered; in a process it is called with the payload, and that of a
            task with what is in it, by name.
        called: is called with the job, elsewhere.
        backoff: the wait after a failed attempt.
        max_attempts: for jobs that do not carry their own.
        keep: the same; seconds that they stay when they are done, or None.
        run_in: where it runs.
        time_limit: seconds an attempt may take, or None.
        name: of the task, or None.
        failing: what becomes of its failures, if the error decides that.
        on_dead: told of its jobs that this process has made dead.
        read: makes of a payload what the function is given, or raises Misfit; None hands it over
            as it is.
        batch: how many jobs it takes in one call at the most, in a list; None for a handler that
            takes one job, and no list.
        batch_wait: seconds for which the first of them waits for others.
    """

    queue: str
    function: Any
    called: Callable[[Any], Any]
    backoff: Backoff
    max_attempts: int
    run_in: RunIn
    keep: float | None = None
    time_limit: float | None = None
    name: str | None = None
    failing: Failing | None = None
    on_dead: OnDead | None = None
    read: Reader | None = None
    batch: int | None = None
    batch_wait: float = 0.0

    @property
    def task(self) -> str:
        """The name it has in the metrics."""
        if self.name is not None:
            return self.name
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


def where_to_run(function: Callable[..., Any], run_in: object, *, task: bool = False) -> RunIn:
    """Return where a handler, or a task, runs: as asked, or None for what its kind is made for.

    Raises:
        ConfigurationError: it cannot be one, or cannot run there.
    """
    in_loop = is_async(function)
    if not task:
        _check_takes_a_job(function)
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


def _found_by_name(function: Callable[..., Any]) -> bool:
    """Whether the function, or the one that a task was made of, is what stands in its module under
    its name."""
    module = sys.modules.get(function.__module__)
    if module is None or not (module.__name__ != "__main__" or hasattr(module, "__file__")):
        return False  # typed in, or from python -c: a child has nothing to import
    found: object = module
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function or found is getattr(function, "__wrapped__", function)


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
    """A handler with its metrics and, if its queue may not have all of the slots or is not the only
    one, the share of that; while its worker runs.

    Attributes:
        context: what the worker's lifespan has opened for its jobs.
    """

    handler: Handler
    metrics: ConsumerMetrics
    share: Share | None = None
    context: Mapping[str, Any] = field(default_factory=lambda: NO_CONTEXT)
