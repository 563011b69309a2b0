"""The schedules that a program declares above its handlers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson

from ...errors import ConfigurationError
from ...protocol.calls import Call
from ...protocol.document import CODEC
from ...protocol.fitting.kinds import Misfit
from ...protocol.payload import encode_payload
from ...protocol.schedules import check_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...protocol.fitting.kinds import PayloadLike, Reader
    from ...protocol.schedules import Schedule
    from ...protocol.ticks import Rule
    from ..handler import Handler
    from ..queues import QueueHandlers


@dataclass(frozen=True, slots=True)
class Declared:
    """A schedule that stands above a function, which may be no handler yet.

    Attributes:
        name: its own, or None: that of the handler's queue.
        settings: what :func:`check_schedule` takes besides.
    """

    function: Callable[[Any], Any]
    name: str | None
    rule: Rule
    settings: Mapping[str, Any]


def schedules_of(declared: list[Declared], handlers: Mapping[str, QueueHandlers]) -> list[Schedule]:
    """Return the schedules of a worker's handlers and tasks.

    Raises:
        ConfigurationError: one stands above none, or above that of two queues, or above a task that
            cannot be called with its payload; or two have the same name.
    """
    found: dict[str, Schedule] = {}
    for one in declared:
        runs = [
            each
            for queue in handlers.values()
            for each in queue
            if stands_above(each, one.function)
        ]
        shown = getattr(one.function, "__qualname__", repr(one.function))
        if not runs:
            raise ConfigurationError(
                f"a schedule stands above {shown}, which is no handler: put @worker.handler(queue) "
                "or @worker.task(queue) above or below it"
            )
        if len(runs) > 1:
            queues = " and ".join(each.queue for each in runs)
            raise ConfigurationError(
                f"a schedule stands above {shown}, which is the handler of {queues}: "
                "give each queue a function of its own"
            )
        [handler] = runs
        name = one.name or handler.name or handler.queue
        if name in found:
            raise ConfigurationError(
                f"two schedules are called {name}: give each but one of them a name="
            )
        settings = dict(one.settings)
        if handler.name is not None:
            settings["payload"] = call_at_tick(handler.function, settings["payload"])
        elif handler.read is not None:
            check_fits(shown, handler.read, settings["payload"])
        found[name] = check_schedule(name, handler.queue, one.rule, **settings)
    return list(found.values())


def stands_above(handler: Handler, function: Callable[..., Any]) -> bool:
    """Whether a schedule above this function is one of the handler."""
    # (By equality: a method is another object each time it is asked for. And a schedule that stands
    # below a task stands above the function that this is made of.)
    stands_below = handler.name is not None and handler.function.__wrapped__ == function
    return bool(handler.function == function or stands_below)


def check_fits(shown: str, read: Reader, payload: object) -> None:
    """Raise ConfigurationError if a handler with ``payload=`` does not take what its ticks put."""
    form = bson.decode(encode_payload({} if payload is None else payload), CODEC)
    try:
        read(form)
    except Misfit as misfit:
        raise ConfigurationError(
            f"a schedule stands above {shown}, whose payload= does not take what its ticks put: "
            f"{misfit}; say what that is (payload={{...}})"
        ) from None
    except Exception:  # somebody's own code: an attempt says of it what is to be said
        return


def call_at_tick(task: Any, payload: PayloadLike | None) -> Call:
    """Return the call of a task that a tick puts, with this payload or without arguments.

    Raises:
        ConfigurationError: the task takes other arguments.
        PayloadError: one of them cannot be stored, or would come back as something else.
    """
    if isinstance(payload, Call):
        if (payload.queue, payload.task) != (task.queue, task.name):
            raise ConfigurationError(
                f"a schedule stands above task {task.name!r}, and its payload is a call of task "
                f"{payload.task!r} in queue {payload.queue!r}: let it stand above that"
            )
        return payload
    given: Any = {} if payload is None else payload
    try:
        call: Call = task.call(**given)
    except TypeError as problem:
        raise ConfigurationError(
            f"a schedule stands above task {task.name!r}, which its ticks cannot call: {problem}; "
            "say what they are to call it with (payload={...})"
        ) from None
    return call
