"""The results of steps, written until it is certain that they are stored, or the lease is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from ...backoff import Backoff
from ...protocol import operations
from ..write_limit import LONGEST_WRITE
from .steps import Pause, Read, UpdateAndGet

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..state import StoreState
    from .steps import Flow

AGAIN = Backoff(initial=0.05, maximum=2, jitter=0.5)
"""The pause between two tries; the last one is when the lease ends."""
LEAST_TIME = 0.05
"""Seconds a try is given at the least, however little of the lease is left."""
_ASKED = {"_id": 0, operations.ASKED_AT: 1}


def store_step(
    _store: StoreState,
    command: operations.Update,
    time_left: Callable[[], float],
    failed: Callable[[PyMongoError], None],
) -> Flow[bool | None]:
    """Store the result of a step; return whether somebody has asked to cancel the job, or None if
    it is not held any more.

    Sent again while it is not known whether it was done: what is stored then is left as it is.

    Args:
        time_left: returns for how many seconds that has a point.
        failed: is told of each try whose outcome is not known.

    Raises:
        PyMongoError: what the last try has come to, or a refusal, for which there is no other.
    """
    tries = 0
    while True:
        limit = min(LONGEST_WRITE, max(LEAST_TIME, time_left()))
        try:
            return _asked((yield UpdateAndGet(command, limit, _ASKED)))
        except PyMongoError as error:
            if operations.is_refusal(error):
                raise
            failed(error)
            tries += 1
            left = time_left()
            if left <= 0:
                raise
            yield Pause(min(AGAIN.delay(tries), left))


def store_step_in(
    _store: StoreState, command: operations.Update, session: Any
) -> Flow[bool | None]:
    """The same as a statement of a transaction, once; what it raises ends that."""
    return _asked((yield UpdateAndGet(command, LONGEST_WRITE, _ASKED, session)))


def is_step_stored(_store: StoreState, command: operations.Find, session: Any) -> Flow[bool]:
    """Return whether a step is stored, as the session's transaction sees it."""
    return bool((yield Read(command, session=session)))


def _asked(document: dict[str, Any] | None) -> bool | None:
    # The reply that is repeated to a driver that has sent it twice has all fields (6.0.5).
    return None if document is None else document.get(operations.ASKED_AT) is not None
