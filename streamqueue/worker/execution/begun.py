"""Telling a handler that has done its work from one that has only returned it.

A coroutine, a generator or a lazy iterator that somebody returns has not begun to run, and nobody
will run it: the job would count as completed, and nothing was done.
"""

from __future__ import annotations

import inspect
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from ...errors import type_name
from .tasks import cancel_future

LAZY = (GeneratorType, AsyncGeneratorType, map, filter)


def not_begun(result: object, task: str) -> TypeError | None:
    """Return what is wrong with a handler that returned this, or None for an ordinary value."""
    kind = type_name(result)
    if inspect.isawaitable(result):
        _close(result)
        return TypeError(
            f"handler {task} returned a {kind}, something to await that nobody has awaited: await "
            "it in an async def"
        )
    if issubclass(type(result), LAZY):
        _close(result)
        return TypeError(
            f"handler {task} returned a {kind}, which has done nothing yet and has no one to yield "
            "to: run it to its end"
        )
    return None


def _close(result: Any) -> None:
    """End what was not begun, or Python warns of it; a task, or the next attempt runs beside it."""
    if issubclass(type(result), (CoroutineType, GeneratorType)):
        try:
            result.close()
        except BaseException:  # it had begun, and does not want to end
            return
    else:
        cancel_future(result)
