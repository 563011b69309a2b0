"""What a handler says that it takes, a kind of job or a list of such: the annotation of its
parameter."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from ..durations import shown
from ..errors import ConfigurationError
from ..queue.job import AsyncJob, Job
from .handler import innermost

if TYPE_CHECKING:
    from collections.abc import Callable

    from .handler import RunIn


LISTS = (list, Sequence, Collection, Iterable)
LIST = re.compile(r"(?:\w+\.)*(?:list|List|Sequence|Collection|Iterable)\[(.+)\]")


class Said(NamedTuple):
    """What a parameter is annotated with: a class, or a list of its instances."""

    kind: object
    listed: bool


def check_kind_of_job(
    function: Callable[[Any], Any], run_in: RunIn, *, batch: bool = False
) -> None:
    """Raise ConfigurationError if a handler says that it takes a kind of job that it does not get,
    or one job where it gets a list, or the reverse.

    Its calls would do nothing: those of an AsyncJob are not awaited in a def, and an async def that
    takes its job for a Job does not await them either.
    """
    said, listed = _annotation(function)
    if said is not Job and said is not AsyncJob:
        return
    if batch and not listed:
        raise ConfigurationError(
            f"handler {shown(function)} says that it takes {_a(said)}, but with batch= it gets a "
            f"list: annotate its parameter as list[{said.__name__}]"
        )
    if listed and not batch:
        raise ConfigurationError(
            f"handler {shown(function)} says that it takes a list of jobs, but it gets one job: "
            "with batch=100 it gets up to 100 of them in a list"
        )
    if run_in == "process":
        raise ConfigurationError(
            f"handler {shown(function)} says that it takes {_a(said)}, but with run_in='process' "
            "it gets the payload alone: annotate its parameter with the payload's type"
        )
    if run_in == "loop" and said is Job:
        raise ConfigurationError(
            f"handler {shown(function)} is an async def that says that it takes a Job, but it gets "
            "an AsyncJob: annotate it so, and await the calls of the job; or make it a def"
        )
    if run_in == "thread" and said is AsyncJob:
        raise ConfigurationError(
            f"handler {shown(function)} is a def that says that it takes an AsyncJob, but it gets "
            "a Job: annotate it so, and do not await the calls of the job; or make it an async def"
        )


def _a(kind: type) -> str:
    return "an AsyncJob" if kind is AsyncJob else "a Job"


def _annotation(function: Callable[[Any], Any]) -> Said:
    """Return what the first parameter is annotated with, or None if that is not certain.

    Of a text what it names where the function stands, so that a Job of the program's own is not
    taken for ours. A decorator may copy annotations to a function that takes something else.
    """
    try:
        if hasattr(function, "__signature__") or hasattr(function, "__wrapped__"):
            return UNSAID
        signature = inspect.signature(function, follow_wrapped=False)
        annotation = next(iter(signature.parameters.values())).annotation
        listed = False
        if isinstance(annotation, str):
            found = LIST.fullmatch(annotation.strip("\"' "))
            listed = found is not None
            annotation = _named(annotation if found is None else found[1], function)
        elif get_origin(annotation) in LISTS:
            listed = True
            [annotation] = get_args(annotation)
        return Said(get_origin(annotation) or annotation, listed)
    except Exception:  # an annotation, or an object that can be called, may do anything
        return UNSAID


UNSAID = Said(None, listed=False)


def _named(text: str, function: Callable[[Any], Any]) -> object:
    name, *parts = text.partition("[")[0].strip("\"' ").split(".")
    inner: Any = innermost(function)
    code: Any = inner if inspect.isroutine(inner) else type(inner).__call__
    found: object = code.__globals__[name]
    for part in parts:
        found = getattr(found, part)
    return found
