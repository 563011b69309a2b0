"""A call of a task, as it is put: its arguments are encoded, and come back equal or are refused.

A payload that somebody writes as a dict is looked at as BSON: a tuple comes back as a list. Of a
call the function is to see what the caller gave it, so what would come back as something else is an
error where the call is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import bson
from bson import ObjectId

from ..errors import ConfigurationError, PayloadError, type_name
from .document import CODEC, ENCODING_ERRORS
from .payload import Place, culprit, encode_payload, steps_to


class Call(Mapping[str, Any]):
    """A call of a task: a payload that says which task it is for. Made by :meth:`Task.call`.

    ``put``, ``put_many``, ``NewJob``, ``request``, ``Topic.publish`` and schedules take it in place
    of a payload. As a mapping it has the arguments by the names of the parameters; they are encoded
    when it is made, so that later changes of them do not matter.

    Attributes:
        task: the name of the task.
        queue: the name of the queue that the task is in.
        encoded: the arguments, as they are stored.
    """

    __slots__ = ("_arguments", "encoded", "queue", "task")

    def __init__(self, task: str, queue: str, arguments: Mapping[str, Any]) -> None:
        self.task = task
        self.queue = queue
        self.encoded = encode_arguments(task, arguments)
        self._arguments: dict[str, Any] | None = None

    def check_queue(self, queue: str) -> None:
        """Raise ConfigurationError unless the task is in this queue."""
        if queue != self.queue:
            raise ConfigurationError(
                f"task {self.task!r} is in queue {self.queue!r}, and this call of it was put into "
                f"{queue!r}: nobody would run it there. Put it into a queue object with "
                f"name={self.queue!r}, or register the task with queue={queue!r}"
            )

    def __getitem__(self, name: str) -> Any:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def _decoded(self) -> dict[str, Any]:
        if self._arguments is None:
            self._arguments = bson.decode(self.encoded, CODEC)
        return self._arguments

    def __repr__(self) -> str:
        # No arguments: reprs end up in logs.
        return f"<Call of task {self.task!r} in queue {self.queue!r}>"


def encode_arguments(task: str, arguments: Mapping[str, Any]) -> bytes:
    """Return the arguments of a call as they are stored.

    Raises:
        PayloadError: one has no BSON form, or would come back as something else; it says which.
    """
    try:
        encoded = encode_payload(arguments)
    except PayloadError as problem:
        if not isinstance(problem.__cause__, ENCODING_ERRORS):
            raise PayloadError(f"a call of task {task!r}: {problem}") from None
        what, place = culprit(arguments)
        value: Any = arguments
        for step in place:
            value = value[step]
        hint = ""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            hint = " (dataclasses.asdict() makes a dict of it)"
        raise PayloadError(
            f"a call of task {task!r} cannot be stored as BSON: {what}, at {_shown(place)}{hint}"
        ) from problem.__cause__
    _check_unchanged(task, arguments)
    return encoded


def _check_unchanged(task: str, arguments: Mapping[str, Any]) -> None:
    pending: list[tuple[object, Place]] = [(value, (name,)) for name, value in arguments.items()]
    while pending:
        value, place = pending.pop()
        kind = type(value)
        if kind in _SAME:
            continue
        if isinstance(value, dict):
            pending += ((child, (*place, key)) for key, child in value.items())
        elif isinstance(value, list):
            pending += ((child, (*place, at)) for at, child in enumerate(value))
        elif (what := _change_of(value)) is not None:
            raise PayloadError(f"a call of task {task!r}: {_shown(place)} {what}")


_SAME = frozenset({str, int, float, bool, type(None), bytes, ObjectId})


def _change_of(value: object) -> str | None:
    """Say as what a value would come back if that is not equal to it."""
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            return "is a datetime without a time zone, which would come back as UTC: give it one"
        if value.microsecond % 1000:
            return (
                "has microseconds, and milliseconds are stored: cut them off, as "
                "value.replace(microsecond=value.microsecond // 1000 * 1000) does"
            )
        return None
    if isinstance(value, tuple):
        return f"is a {type_name(value)}, which would come back as a list: give a list"
    back = bson.decode(bson.encode({"v": value}, codec_options=CODEC), CODEC)["v"]
    if back == value:
        return None
    return f"is a {type_name(value)}, which would come back as a {type_name(back)}"


def _shown(place: Place) -> str:
    return str(place[0]) + steps_to(place[1:]) if place else "its arguments"
