"""Changes of many jobs together, though one of them spoils that; and what is done with it then."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne
from pymongo.errors import (
    BulkWriteError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from ...clock import monotonic
from ...protocol import operations
from ...protocol.document import id_key
from .steps import DeleteMany, Read, Shielded, UpdateEach, UpdateMany

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ..refused import StuckJobs
    from ..state import StoreState
    from .steps import Flow


def change(store: StoreState, command: operations.Update, *, again: bool = True) -> Flow[int]:
    """Update many documents under the limit for shared writes; return how many changed.

    `again`: whether it does no harm to do it twice, as it may be when the majority is slow.

    Raises:
        ExecutionTimeout: the limit was met; some may have changed.
        PyMongoError: any other trouble.
    """
    while True:
        sent, seconds = monotonic(), store.write_limit.seconds
        try:
            _, changed = yield UpdateMany(command, seconds)
        except WriteConcernError as error:
            if not (again and store.write_limit.cut_short(error)):
                raise
        else:
            store.write_limit.kept(monotonic() - sent)
            return int(changed)


def change_each(
    store: StoreState,
    ids: Sequence[Any],
    command: Callable[[Sequence[Any]], operations.Update],
    stuck: StuckJobs,
    smaller: Callable[[Sequence[Any]], operations.Update] | None = None,
    instead: Callable[[Any], Flow[int]] | None = None,
) -> Flow[int]:
    """Send one update for all, or, when a document spoils it, for ever smaller parts of those that
    are left; count changes. `smaller` is tried for one that does not take the other, and `instead`
    is done with one whose key another has."""
    if not ids:
        return 0
    try:
        changed: int = yield Shielded(change(store, command(ids)))
        return changed
    except OperationFailure as error:
        if not operations.is_spoiled(error):
            raise
        if len(ids) == 1:
            if instead is not None and store.is_duplicate_job(error):
                return (yield from instead(ids[0]))
            if isinstance(error, ExecutionTimeout):
                store.write_limit.met()
            elif smaller is not None:
                return (yield from change_each(store, ids, smaller, stuck))
            stuck.refused(ids[0], error)
            return 0
    left = yield from _left_of(ids, command(ids))
    total = len(ids) - len(left)
    for part in operations.parts(left):
        total += yield from change_each(store, part, command, stuck, smaller, instead)
    return total


def _left_of(ids: Sequence[Any], command: operations.Update) -> Flow[Sequence[Any]]:
    """Return which of the documents an update has left as they were that one of them has spoiled:
    the server does not say how many it had changed by then."""
    found = yield Read(operations.still_meant(command, len(ids)))
    names = {id_key(document["_id"]) for document in found}
    left = [job_id for job_id in ids if id_key(job_id) in names]
    return left if len(left) == len(found) else ids


def requeue(
    _store: StoreState,
    queue: str,
    died: Sequence[dict[str, Any]],
    times: Sequence[datetime] | None = None,
    fresh: bool = False,
) -> Flow[tuple[int, list[tuple[Any, Exception]]]]:
    """Make the jobs of these deaths ready again, in one command; return how many that was, and
    which stay dead, and why. Whoever died again since, or was requeued, is neither.

    Args:
        times: when each is to be ready; None is now.
        fresh: without their steps.

    Raises:
        PyMongoError: of the server. The outcome of those that it did not answer for is unknown.
    """
    try:
        count: int = yield UpdateEach(
            [
                UpdateOne(*operations.requeue(queue, one["_id"], one, run_at, fresh=fresh))
                for one, run_at in zip(died, times or repeat(None), strict=False)
            ]
        )
    except BulkWriteError as error:
        count = int((error.details or {}).get("nModified", 0))
        return count, operations.refused_of_each(error, died)
    return count, []


def remove_cancelled(store: StoreState, ids: Sequence[Any]) -> Flow[None]:
    """Remove cancelled jobs that nobody keeps or waits for. They have ended, so a failure is no
    matter: the server removes them."""
    try:
        yield DeleteMany(operations.cancelled_and_over(ids), store.write_limit.seconds)
    except PyMongoError:
        store.indexes.want("keep")
