"""Tracebacks as text, as jobs store them, whatever an exception does when it is looked at."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from .errors import text_of, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def describe(error: BaseException) -> str:
    """Return an exception's traceback as text, or as much of it as the exception lets be had."""
    text = _made(_whole_traceback, error) or _made(_frames_and_name, error)
    return text or type_name(error)


def _made(make: Callable[[BaseException], str], error: BaseException) -> str | None:
    try:
        return make(error)
    except BaseException:  # its __str__, __notes__ or __cause__ may raise anything
        return None


def _whole_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _frames_and_name(error: BaseException) -> str:
    trace = BaseException.__dict__["__traceback__"].__get__(error)
    frames = "".join(traceback.format_tb(trace))
    return f"Traceback (most recent call last):\n{frames}{type_name(error)}: {text_of(error)}\n"


def forget(error: BaseException) -> None:
    """Take the tracebacks from an exception, its causes and its contexts.

    A frame that has a name for the exception it raised is in a circle with it, and holds the job
    until the next collection of garbage, which in an idle process does not come.
    """
    for found in _all_of(error):
        BaseException.with_traceback(found, None)


def whole(error: BaseException) -> Callable[[], None]:
    """Return what gives an exception, its causes and its contexts their tracebacks again, after a
    :func:`forget`."""
    traces = [
        (found, BaseException.__dict__["__traceback__"].__get__(found)) for found in _all_of(error)
    ]

    def restore() -> None:
        for found, trace in traces:
            BaseException.with_traceback(found, trace)

    return restore


def _all_of(error: BaseException) -> Iterator[BaseException]:
    """Return an exception, its causes and contexts, and the members of groups among them."""
    left, seen = [error], set[int]()
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        for name in ("__cause__", "__context__"):
            other = BaseException.__dict__[name].__get__(found)
            if other is not None:
                left.append(other)
        if issubclass(type(found), BaseExceptionGroup):
            left.extend(BaseExceptionGroup.__dict__["exceptions"].__get__(found))


def last_line(stored: object) -> str:
    """Return the last line of a stored error: of a traceback, the exception and its message."""
    lines = text_of(stored or "no error stored").strip().splitlines()
    return lines[-1] if lines else ""
