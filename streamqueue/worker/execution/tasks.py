"""Tasks that belong to nobody's group, for attempts: whatever becomes of one concerns no other.

A task of an anyio group ends the whole group when it ends by a cancellation, whoever asked for
that, and while a handler has left a scope open in it, the group's own is not the innermost. It also
costs nine times as much as a task of the event loop's, for every job. So this is the one place that
asks the event loop for tasks.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - see above
from collections.abc import Coroutine
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

Task = asyncio.Task
Timer = asyncio.TimerHandle
Result = TypeVar("Result")


def loop_library() -> str:
    """Return the name of the library whose event loop this is: asyncio or uvloop."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def call_soon(function: Callable[[], object], context: Context) -> None:
    """Have a function called in the next turn of the event loop."""
    asyncio.get_running_loop().call_soon(function, context=context)


def call_later(seconds: float, function: Callable[[], object], context: Context) -> Timer:
    """Have a function called after so many seconds, unless what is returned is cancelled."""
    return asyncio.get_running_loop().call_later(seconds, function, context=context)


def begin(
    coroutine: Coroutine[Any, Any, Result],
    over: Callable[[Task[Result]], object],
    context: Context,
) -> Task[Result]:
    """Run a coroutine in a task, in a copy of this context; `over` is called in it afterwards.

    Whoever calls this keeps the task: the event loop does not.
    """
    # Made here, and not by the loop, which would ask the factory below and count a name for it: a
    # quarter of what a task costs.
    loop = asyncio.get_running_loop()
    task = Task(coroutine, loop=loop, name="attempt", context=context.copy())
    task.add_done_callback(over, context=context)
    return task


@contextmanager
def contained_exits(in_attempt: Callable[[], bool]) -> Iterator[None]:
    """A context in which no task that an attempt begins can end the event loop.

    ``SystemExit`` and ``KeyboardInterrupt`` do that, in whichever task they are raised: all other
    attempts would end with it. So they are an ordinary error of that task there.

    Args:
        in_attempt: says whether whoever begins a task now is an attempt, or was begun by one.
    """
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **settings: Any) -> Any:
        if in_attempt():
            coroutine = _Contained(coroutine)
        if before is not None:
            return before(loop, coroutine, **settings)
        return Task(coroutine, loop=loop, **settings)

    loop.set_task_factory(make)
    try:
        yield
    finally:
        if loop.get_task_factory() is make:
            loop.set_task_factory(before)


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine that raises RuntimeError where it would have ended the event loop.

    No ``async def`` around it: one that is cancelled before its first step would never have awaited
    it, which is a warning.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # its name and its frame, for whoever shows the task

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        return self._step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._step(self._coroutine.close)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"{error!r} in a task that a handler began") from error


def cancel_future(value: object) -> bool:
    """Cancel something that runs by itself, if it is that; return whether it is."""
    if not isinstance(value, asyncio.Future):
        return False
    value.cancel()
    return True


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop this is called in."""
    return asyncio.get_running_loop()


def running_task(loop: asyncio.AbstractEventLoop) -> Task[Any] | None:
    """Return the task whose turn it is in an event loop; from any thread."""
    return asyncio.current_task(loop)
