"""What a program puts around its handlers: coroutines that are called for every attempt.

The first of them is the outermost. What the handler has come to stands, whatever becomes of them
afterwards: its result, and its exception, unless they raise another in place of that.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import plain
from ...durations import shown
from ...errors import ConfigurationError, type_name
from .begun import not_begun
from .tasks import event_loop, running_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ...queue.job import AsyncJob
    from .attempt import Attempt
    from .tasks import Task

    CallNext = Callable[[AsyncJob], Awaitable[Any]]
    Middleware = Callable[[AsyncJob, CallNext], Awaitable[Any]]

logger = plain.logger("streamqueue.execution")


def check_middleware(given: Any) -> tuple[Middleware, ...]:
    """Return them, or raise ConfigurationError if one of them is no middleware."""
    if callable(given) or not hasattr(given, "__iter__"):
        raise ConfigurationError(
            f"middleware must be a list, such as middleware=[around], not {shown(given)}"
        )
    middleware: tuple[Middleware, ...] = tuple(given)
    each: Any
    for each in middleware:
        if not callable(each) or not _is_async(each):
            raise ConfigurationError(
                "a middleware must be an async def (it stands around blocking handlers too, whose "
                f"threads have its context variables): async def around(job, call_next), not "
                f"{shown(each)}"
            )
        try:
            inspect.signature(each).bind(None, None)
        except TypeError:
            raise ConfigurationError(
                "a middleware is called with the job and the next one: async def around(job, "
                f"call_next), but {shown(each)} takes {inspect.signature(each)}"
            ) from None
    return middleware


def _is_async(function: object) -> bool:
    if inspect.isclass(function):
        return False
    call = getattr(function, "__call__", function)  # noqa: B004 (the method is what is inspected)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class Around:
    """The middleware of a worker, outermost first."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        self._middleware = middleware

    async def call(self, attempt: Attempt, handle: Callable[[], Awaitable[Any]]) -> Any:
        """Call the handler of an attempt within all of them; return, or raise, what it came to."""
        handling = _Handling(attempt, handle)
        try:
            return await self._call(0, handling)
        finally:
            handling.close()

    async def _call(self, place: int, handling: _Handling) -> Any:
        """Call the handler within those from this place on."""
        if place == len(self._middleware):
            return await handling.call()
        middleware, attempt = self._middleware[place], handling.attempt
        following = _Next(partial(self._call, place + 1), handling, middleware)
        try:
            await middleware(handling.job, following)
        except BaseException as error:
            if not handling.returned:
                raise
            _note_failure(attempt, middleware, error)
        if handling.returned:
            return handling.result
        if handling.error is not None:
            raise handling.error  # caught on its way, and not raised again
        if following.called:
            raise ConfigurationError(
                f"the middleware {_name(middleware)} returned before call_next did: await it"
            )
        if not (attempt.outcome or handling.job._ended):
            raise ConfigurationError(
                f"the middleware {_name(middleware)} returned without calling call_next, so "
                "nothing was done for the job: raise Cancel, Discard, Retry or Snooze, or end the "
                "job, where a handler is not to be called"
            )
        return None


class _Handling:
    """One call of a handler, and what it came to.

    Attributes:
        returned: whether the handler has returned, in time.
        result: what it returned.
        error: what it raised, or None.
        over: whether all around it has ended.
    """

    def __init__(self, attempt: Attempt, handle: Callable[[], Awaitable[Any]]) -> None:
        self.attempt = attempt
        self.job = attempt.job
        self._handle = handle
        self._task: Task[Any] | None = None
        self.returned = self.over = False
        self.result: Any = None
        self.error: BaseException | None = None

    async def call(self) -> Any:
        """Call the handler."""
        self._task = running_task(event_loop())
        try:
            result = await self._handle()
            problem: Exception | None = None
            if result is not None:
                problem = not_begun(result, self.attempt.registered.handler.task)
            if self.attempt.overdue:
                problem = TimeoutError("the handler returned after its time limit")
            if problem is not None:
                raise problem
            self.result, self.returned = result, True
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._task = None
        return result

    def close(self) -> None:
        """End a call that somebody has left in a task of its own; hold no exception, whose frames
        hold this."""
        self.over = True
        self.error = None
        if self._task is not None:
            self._task.cancel()


class _Next:
    """What a middleware calls: the next one, or the handler."""

    def __init__(
        self,
        call: Callable[[_Handling], Awaitable[Any]],
        handling: _Handling,
        middleware: Middleware,
    ) -> None:
        self._call = call
        self._handling = handling
        self._middleware = middleware
        self.called = False

    async def __call__(self, job: AsyncJob) -> Any:
        name = _name(self._middleware)
        if self._handling.over:
            raise ConfigurationError(
                f"the middleware {name} called call_next after the attempt had ended"
            )
        if self.called:
            raise ConfigurationError(
                f"the middleware {name} called call_next twice: a handler is called once in an "
                "attempt; raise Retry to have another one"
            )
        if job is not self._handling.job:
            raise ConfigurationError(
                f"the middleware {name} called call_next with something else than its job"
            )
        self.called = True
        return await self._call(self._handling)


def _note_failure(attempt: Attempt, middleware: Middleware, error: BaseException) -> None:
    """Log and count what a middleware raised after the handler had returned."""
    for scope in (attempt.scope, attempt.abandon):
        if scope is not None and scope.cancel_called:
            return  # it was stopped, with what it still had to do
    attempt.registered.metrics.middleware_errors.inc()
    logger.error(
        "The middleware %s raised after the handler of job %s had returned, whose result stands: "
        "%s",
        _name(middleware),
        attempt.record.id,
        type_name(error),
        extra={
            "event": "middleware_failed",
            **attempt.facts(),
            "task": _name(middleware),
            "error": type_name(error),
        },
    )


def _name(middleware: object) -> str:
    name = getattr(middleware, "__qualname__", None)
    return name if isinstance(name, str) else type_name(middleware)
