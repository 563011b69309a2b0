"""What becomes of a job whose handler has failed, where that depends on the error.

Classes are compared by their names, since an exception of a child process comes without its class.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import plain
from ..backoff import Backoff
from ..durations import seconds, shown
from ..errors import ConfigurationError, type_name
from ..queue.lines import facts
from ..queue.outcome import class_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..protocol.document import JobRecord
    from ..queue.outcome import End

    Wait = Callable[[int, BaseException], Any]
    Classes = type[BaseException] | tuple[Any, ...]

logger = plain.logger("streamqueue.execution")

IN_DISCARD_ON = "its error is one of discard_on"
NOT_IN_RETRY_ON = "its error is none of retry_on"


class Failing(NamedTuple):
    """What a handler was registered with for its failures.

    Attributes:
        discard_on: names of the classes that make the job dead at once.
        retry_on: names of the classes that alone are retried, or None for all.
        wait: what says how long to wait, or None for the backoff.
    """

    discard_on: frozenset[str]
    retry_on: frozenset[str] | None
    wait: Wait | None

    def decide(
        self,
        record: JobRecord,
        end: End,
        error: BaseException,
        names: Sequence[frozenset[str]],
    ) -> End:
        """Return how an attempt ends that has failed.

        Args:
            end: as it would be otherwise; what the handler has asked for is left to it.
            names: of the classes of the error, and of each in it if it is a group; none if it is
                not the handler's.
        """
        if names and not end.asked:
            if any(self.discard_on & one for one in names):
                return end._replace(kind="discarded", death=IN_DISCARD_ON)
            if self.retry_on is not None and not all(self.retry_on & one for one in names):
                return end._replace(kind="discarded", death=NOT_IN_RETRY_ON)
        if self.wait is not None and end.delay is None:
            return end._replace(delay=self._delay(record, error))
        return end

    def _delay(self, record: JobRecord, error: BaseException) -> float | None:
        """Return what the function says, or None for the backoff if that is nothing to go by."""
        try:
            return seconds(self.wait(record.attempts, error), "backoff")  # type: ignore[misc]
        except BaseException as problem:  # a handler's own code, which ends no other's
            logger.error(
                "The backoff function of queue %s gave no seconds to wait for job %s: %s",
                record.queue,
                record.id,
                type_name(problem),
                extra={"event": "backoff_failed", **facts(record), "error": type_name(problem)},
            )
            return None


def failing(retry_on: Classes | None, discard_on: Classes, wait: Wait | None) -> Failing | None:
    """Return what these come to, or None for nothing.

    Raises:
        ConfigurationError: something else than classes of exceptions.
    """
    discarded = _names(discard_on, "discard_on")
    retried = None if retry_on is None else _names(retry_on, "retry_on")
    if not discarded and retried is None and wait is None:
        return None
    return Failing(discarded, retried, wait)


def backoff_of(value: Any, default: Backoff) -> tuple[Backoff, Wait | None]:
    """Return the backoff of a handler and the function that comes before it, if there is one.

    Raises:
        ConfigurationError: it is neither, or cannot be called with an attempt and an error.
    """
    if value is None:
        return default, None
    if isinstance(value, Backoff):
        return value, None
    takes = "backoff must be a Backoff, or a def that takes the attempt's number and its error"
    if not callable(value) or inspect.isclass(value) or inspect.iscoroutinefunction(value):
        raise ConfigurationError(f"{takes}, not {shown(value)}")
    try:
        inspect.signature(value).bind(1, None)
    except TypeError:
        raise ConfigurationError(
            f"{takes}, and {shown(value)} takes {inspect.signature(value)}"
        ) from None
    except ValueError:  # some of those written in C have no signature
        pass
    return default, value


def _names(classes: Any, argument: str) -> frozenset[str]:
    """Return the names of one class, or of those in a tuple, which may hold tuples as `except`
    allows it."""
    left, found = [classes], set[str]()
    while left:
        one = left.pop()
        if isinstance(one, (tuple, list)):
            left.extend(one)
        elif inspect.isclass(one) and issubclass(one, BaseException):
            found.add(class_name(one))
        else:
            raise ConfigurationError(
                f"{argument} must be an exception's class, or a tuple of such, not {shown(one)}"
            )
    return frozenset(found)
