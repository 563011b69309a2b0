"""The schedules that a program declares above its handlers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError
from ...protocol.schedules import check_schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...protocol.schedules import Schedule
    from ...protocol.ticks import Rule
    from ..handler import Handler


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


def schedules_of(declared: list[Declared], handlers: Mapping[str, Handler]) -> list[Schedule]:
    """Return the schedules of a worker's handlers.

    Raises:
        ConfigurationError: one stands above no handler, or above that of two queues; or two have
            the same name.
    """
    found: dict[str, Schedule] = {}
    for one in declared:
        # (By equality: a method is another object each time it is asked for.)
        queues = [queue for queue, each in handlers.items() if each.function == one.function]
        shown = getattr(one.function, "__qualname__", repr(one.function))
        if not queues:
            raise ConfigurationError(
                f"a schedule stands above {shown}, which is no handler: put @worker.handler(queue) "
                "above or below it"
            )
        if len(queues) > 1:
            raise ConfigurationError(
                f"a schedule stands above {shown}, which is the handler of {' and '.join(queues)}: "
                "give each queue a function of its own"
            )
        name = one.name or queues[0]
        if name in found:
            raise ConfigurationError(
                f"two schedules are called {name}: give each but one of them a name="
            )
        found[name] = check_schedule(name, queues[0], one.rule, **one.settings)
    return list(found.values())
