"""Time passing: jobs that fall due or are too late, leases that end, and when the next one does."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ...clock import monotonic
from ...protocol import operations
from ...protocol.document import JobRecord
from ...protocol.terms import said_of
from .changes import change_each, remove_cancelled
from .dependencies import release_of, tell_dependents
from .held_back import let_through, supersede
from .settings import say_room, say_room_in
from .steps import DeleteMany, Read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...protocol.terms import KeepOf, LimitOf
    from ..refused import StuckJobs
    from ..state import StoreState
    from .steps import Flow

BATCH = 1000
"""Jobs promoted or reaped in one update: a million due together take turns with other work."""


def promote(store: StoreState, queues: Sequence[str]) -> Flow[int]:
    """Make due jobs ready, some at a time; return how many. (None is none for now.)"""
    stuck = store.unpromotable
    most = BATCH + len(stuck)
    found: list[dict[str, Any]] = []
    for part in operations.merged_parts(queues):
        found += yield Read(operations.due(part, most))
        if len(found) >= most:  # the others have their turn after these
            break
    total = 0
    for jobs in stuck.divide(found):
        ids = [document["_id"] for document in jobs]
        total += yield from change_each(store, ids, operations.promote, stuck)
    stuck.settle()
    return total


def reap(
    store: StoreState,
    queues: Sequence[str] | None,
    limit_of: LimitOf,
    holders: set[str] | None = None,
) -> Flow[Counter[tuple[str, str]]]:
    """Return or bury jobs whose lease ran out, some at a time; count them by queue and result.

    `queues` None means all of the collection; `limit_of` says, for a queue, how many attempts a job
    has that does not say; `holders` is given the names of the consumers that held them.
    """
    reaped: Counter[tuple[str, str]] = Counter()
    stuck = store.unreapable
    found = yield Read(operations.expired(queues, BATCH + len(stuck)))
    for jobs in stuck.divide(found):
        if holders is not None:
            names = (document.get("locked_by") for document in jobs)
            holders.update(name for name in names if type(name) is str)  # Code has no hash
        for group, ids in operations.group_expired(jobs, limit_of).items():
            command = partial(operations.reap, max_attempts=said_of(limit_of(group[0]), None))
            smaller = partial(command, note=False)
            superseded = partial(_supersede, store, reaped, group[0])
            reaped[group] += yield from change_each(store, ids, command, stuck, smaller, superseded)
            if group[1] != "requeued":
                yield from tell_dependents(store, ids)
            if group[1] == "cancelled":
                yield from remove_cancelled(store, ids)
                unkept = operations.unkept_holders(jobs)
                yield from change_each(store, unkept, operations.cancelled_to_holders, stuck)
        records = [JobRecord.from_document(job, max_attempts=0) for job in jobs]
        yield from let_through(store, operations.keys_let_go(records))
        if any("slots" in job for job in jobs):  # (Of those that are dead no event tells.)
            yield from say_room(store)
        yield from release_of(store, records)
    stuck.settle()
    return reaped


def _supersede(
    store: StoreState, reaped: Counter[tuple[str, str]], queue: str, job_id: Any
) -> Flow[int]:
    reaped[queue, "cancelled"] += yield from supersede(store, operations.lost([job_id]))
    return 0


def expire(store: StoreState, queues: Sequence[str], keep_of: KeepOf) -> Flow[Counter[str]]:
    """End jobs that wait and are too late, some at a time; count them by queue.

    `keep_of` says, for a queue, how long a job stays that does not say.
    """
    expired: Counter[str] = Counter()
    stuck = store.unexpirable
    most = BATCH + len(stuck)
    found: list[dict[str, Any]] = []
    try:
        for part in operations.merged_parts(queues):
            found += yield Read(operations.too_late(part, most))
            if len(found) >= most:
                break
    except OperationFailure as error:
        if error.code not in operations.NOT_THERE:
            raise
        store.expiring = False  # without that index whoever claims a job looks at its time
    for jobs in stuck.divide(found):
        by_keep: dict[tuple[str, float | None], list[Any]] = {}
        for document in jobs:
            queue = document["queue"]
            keep = said_of(keep_of(queue), document.get("task"))
            by_keep.setdefault((queue, keep), []).append(document["_id"])
        for (queue, keep), ids in by_keep.items():
            expired[queue] += yield from _expire(store, ids, keep)
        for queue in {document["queue"] for document in jobs if "group" in document}:
            yield from say_room_in(store, queue)
        records = [JobRecord.from_document(job, max_attempts=0) for job in jobs]
        yield from release_of(store, records)
    stuck.settle()
    return expired


def _expire(store: StoreState, ids: Sequence[Any], keep: float | None) -> Flow[int]:
    removed = 0
    if not keep:
        removed = yield from _remove(store, operations.too_late_unkept(ids))
    if removed == len(ids):
        return removed
    command = partial(operations.expire, keep=keep)
    as_jobs = partial(command, as_jobs=True)
    ended = yield from change_each(store, ids, command, store.unexpirable, as_jobs)
    if ended:
        yield from tell_dependents(store, ids)
    if ended and not keep:  # somebody stood in the way of the delete, maybe
        yield from remove_cancelled(store, ids)
    return removed + ended


def expire_held(
    store: StoreState, held: Sequence[tuple[Any, bytes]], *, kept: bool = True
) -> Flow[int]:
    """End claimed jobs that were too late, by their ids and tokens; return how many. `kept`: there
    may be some that stay for a time of which their documents do not say."""
    ids = [job_id for job_id, _ in held]
    tokens = {token for _, token in held}
    command = partial(operations.expire_held, tokens=tokens, kept=kept)
    as_jobs = partial(operations.expire_held, tokens=tokens)
    ended = yield from change_each(store, ids, command, store.unexpirable, as_jobs)
    if ended:
        yield from tell_dependents(store, ids)
        yield from remove_cancelled(store, ids)
    return ended


def _remove(store: StoreState, wanted: operations.Document) -> Flow[int]:
    """Delete many; none, when one of them spoils that: they are changed one by one then, and what
    has ended is removed by the server."""
    sent = monotonic()
    try:
        removed: int = yield DeleteMany(wanted, store.write_limit.seconds)
    except OperationFailure as error:
        if not operations.is_spoiled(error):
            raise
        store.indexes.want("keep")
        return 0
    store.write_limit.kept(monotonic() - sent)
    return removed


def seconds_to_next(store: StoreState, queues: Sequence[str]) -> Flow[float]:
    """Return the time until there is something to do: a job is due or too late, a lease ends, or
    one that could not be changed is to be tried again; infinity for nothing."""
    due = yield from seconds_to_due(store, queues)
    expiry = yield from seconds_to_expiry(store, queues)
    too_late = (yield from seconds_to_too_late(store, queues)) if store.expiring else math.inf
    return min(due, expiry, too_late, store.unclaimable.wait(), store.given_up.wait())


def seconds_to_too_late(store: StoreState, queues: Sequence[str]) -> Flow[float]:
    """Return the time until the next job that waits is too late, or is to be tried again; infinity
    where no job can have such a time."""
    waits = []
    try:
        for part in operations.merged_parts(queues):
            look = partial(operations.next_too_late, part)
            waits.append((yield from _seconds_to(look, store.unexpirable)))
    except OperationFailure as error:
        if error.code not in operations.NOT_THERE:
            raise
        store.expiring = False
        return math.inf
    store.expiring = True
    return min(waits)


def seconds_to_due(store: StoreState, queues: Sequence[str]) -> Flow[float]:
    """Return the time until the next job is due, or one is to be tried again."""
    waits = []
    for part in operations.merged_parts(queues):
        look = partial(operations.next_due, part)
        waits.append((yield from _seconds_to(look, store.unpromotable)))
    return min(waits)


def seconds_to_expiry(store: StoreState, queues: Sequence[str] | None) -> Flow[float]:
    """Return the time until the next lease ends, or a job is to be tried again."""
    return (yield from _seconds_to(partial(operations.next_expiry, queues), store.unreapable))


def _seconds_to(look: Callable[[int], operations.Find], stuck: StuckJobs) -> Flow[float]:
    wait = stuck.wait()
    if not stuck.full:  # else what comes next may be one of them, for ever
        for document in (yield Read(look(1 + len(stuck)))):
            if document["_id"] not in stuck:
                if document["due_in"] is not None:
                    wait = min(wait, max(0, document["due_in"]) / 1000)
                break
    return wait + 0.001  # the server compares whole milliseconds
