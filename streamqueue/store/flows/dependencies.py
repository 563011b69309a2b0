"""Dependents: looked at when a parent has ended, let run or cancelled, and their parents let go.

Who ends a parent looks for dependents afterwards, and who puts a dependent, or has it wait for
another parent, looks afterwards whether that one still lives: both look once what they have written
is safe, so one of the two sees the other. Nothing here is lost with who is killed in between: a
dependent that waits for one that has ended is found by the look for jobs that are held back
(``look_for_orphans``), and a parent that nobody needs any more by another (``look_for_forgotten``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import UpdateOne
from pymongo.errors import OperationFailure, PyMongoError

from ...protocol import operations
from ...protocol.dependencies import key_of, read_look
from ..lines import log_dependents_cancelled, log_dependents_left
from .changes import change, change_each, remove_cancelled
from .steps import Aggregate, Read, Shielded, UpdateEach, UpdateIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ...protocol.dependencies import Looked
    from ...protocol.document import JobRecord
    from ..state import StoreState
    from .steps import Flow

BATCH = 1000
"""Jobs in one command."""
PARENTS_AT_ONCE = 20_000
"""Parents that one look has the server read: about 50 ms."""
Found = dict[str, Any]


class LookedAt(NamedTuple):
    """What looks at dependents have come to.

    Attributes:
        run: how many may run.
        cancelled: the ids of those that were cancelled and are parents themselves, whose dependents
            are to be looked at next.
    """

    run: int
    cancelled: list[Any]


def tell_dependents(
    store: StoreState, ids: Sequence[Any], session: Any = None, *, needed: bool = False
) -> Flow[None]:
    """Look at the dependents of jobs that have ended, as far as they have, and have any. Never
    raises, but in a transaction: what is left is looked for.

    Args:
        session: of a transaction by which they end; what follows is part of it.
        needed: they were needed, also those that are not there any more.
    """
    try:
        yield from _tell_dependents(store, ids, session, needed=needed)
    except PyMongoError as error:
        if session is not None:
            raise
        store.parked()
        log_dependents_left(error)
    if session is not None:
        # Another parent may end in another transaction, and neither sees the other.
        store.parked()


def _tell_dependents(
    store: StoreState, ids: Sequence[Any], session: Any = None, *, needed: bool
) -> Flow[None]:
    left = list(ids)
    while left:
        some, left = left[:BATCH], left[BATCH:]
        there = yield _read(operations.which_jobs(some), session)
        states = {key_of(job["_id"]): job.get("state") for job in there}
        marked = {key_of(job["_id"]) for job in there if job.get("needed") is not None}
        if needed:  # as all are from now on
            marked.update(key_of(one) for one in some if key_of(one) not in states)
        some, needed = [one for one in some if key_of(one) in marked], True
        done = [one for one in some if states.get(key_of(one)) == "done"]
        failed = [one for one in some if states.get(key_of(one)) in (None, "dead", "cancelled")]
        for parents, find in ((done, operations.waiting_for), (failed, operations.coming_after)):
            if parents:
                looked_at = yield from _look_at_all(store, partial(find, parents), session)
                left += looked_at.cancelled
        if failed and session is None:
            yield from _release(store, failed)


def _look_at_all(
    store: StoreState, find: Callable[[Any], operations.Find], session: Any = None
) -> Flow[LookedAt]:
    """Look at all the dependents that are found."""
    run, cancelled = 0, list[Any]()
    behind: Any = None
    while True:
        found = yield _read(find(behind), session)
        looked_at = yield from look(store, found, session)
        run += looked_at.run
        cancelled += looked_at.cancelled
        if len(found) < operations.FOUND_AT_ONCE:
            return LookedAt(run, cancelled)
        behind = found[-1]["_id"]


def look(store: StoreState, found: Sequence[Found], session: Any = None) -> Flow[LookedAt]:
    """Look at dependents that wait: let run those that may, cancel those that cannot, and have the
    others wait for a parent that lives. Who called has to follow what was cancelled.

    Args:
        found: their ids, with the numbers of their parents (``size``).
    """
    run, cancelled = 0, list[Any]()
    left = list(found)
    while left:
        again: list[Found] = []
        for some in _parts(left):
            rows = yield Aggregate(
                operations.look_at_parents(store.jobs.name, [one["_id"] for one in some]), session
            )
            sizes = {key_of(one["_id"]): one for one in some}
            looked = [read_look(row) for row in rows]
            changed, over = yield from _decide(store, looked, session)
            cancelled += over
            run += sum(one.decision == "run" for one in looked)
            again += [sizes[key_of(one)] for one in changed]
        # One that was written to, since it waits for another parent from now on, or since its
        # parents were not marked: who has ended one of them by now need not have seen that.
        left = again
    return LookedAt(run, cancelled)


def _parts(found: Sequence[Found]) -> Iterator[list[Found]]:
    part: list[Found] = []
    size = 0
    for one in found:
        many = int(one.get("size") or 1)
        if part and (len(part) == BATCH or size + many > PARENTS_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(one)
        size += many
    if part:
        yield part


def _decide(
    store: StoreState, looked: Sequence[Looked], session: Any
) -> Flow[tuple[list[Any], list[Any]]]:
    """Write what was decided; return the ids of those to be looked at again, and of those that were
    cancelled and are parents themselves."""
    unmarked = [one.id for one in looked if one.unmarked and one.decision != "cancel"]
    if unmarked:
        yield from _mark_parents_of(store, unmarked, session)
    run = [one.id for one in looked if one.decision == "run"]
    yield from _change(store, run, operations.let_run, session)
    waits = [one for one in looked if one.decision == "wait"]
    moved = [one for one in waits if not one.says_so]
    updates = [
        operations.wait_for(one.id, one.waits_for, one.witness, failed=one.witness_failed)
        for one in moved
    ]
    if session is None and updates:
        yield Shielded(_each(updates))
    elif updates:
        for update in updates:
            yield UpdateIn(update, session)
    again = [one.id for one in waits if one.unmarked or not one.says_so]
    cancel = [one for one in looked if one.decision == "cancel"]
    over = yield from _cancel(store, cancel, session)
    return again, over


def _each(updates: Sequence[operations.Update]) -> Flow[int]:
    changed: int = yield UpdateEach([UpdateOne(*update) for update in updates])
    return changed


def _cancel(store: StoreState, looked: Sequence[Looked], session: Any) -> Flow[list[Any]]:
    if not looked:
        return []
    ids = [one.id for one in looked]
    parents = yield from _parents_of(store, ids, session)
    # Whether somebody needs them is decided with the write. Of those that were said to be needed
    # since the look, what came first stays for the next look.
    for needed in (False, True):
        some = [one.id for one in looked if one.needed is needed]
        command = partial(operations.cancel_dependents, needed=needed)
        as_jobs = partial(command, as_jobs=True)
        yield from _change(store, some, command, session, as_jobs)
    log_dependents_cancelled(len(ids))
    store.indexes.want("keep")
    if session is None:
        yield from remove_cancelled(store, ids)
        yield from _release(store, parents)
    return [one.id for one in looked if one.needed]


def _change(
    store: StoreState,
    ids: Sequence[Any],
    command: Callable[[Sequence[Any]], operations.Update],
    session: Any,
    smaller: Callable[[Sequence[Any]], operations.Update] | None = None,
) -> Flow[None]:
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        if session is None:
            yield from change_each(store, some, command, store.unclaimable, smaller)
        else:
            yield UpdateIn(command(some), session)


def _read(command: operations.Find, session: Any) -> Read | Aggregate:
    if session is None:
        return Read(command)
    return Aggregate(operations.as_pipeline(command), session)


# parents


def mark_parents(store: StoreState, ids: Sequence[Any], session: Any = None) -> Flow[None]:
    """Say of jobs that others come after them.

    Raises:
        PyMongoError: some may be marked.
    """
    for start in range(0, len(ids), BATCH):
        command = operations.mark_needed(ids[start : start + BATCH])
        if session is None:
            yield Shielded(change(store, command))
        else:
            yield UpdateIn(command, session)


def _mark_parents_of(store: StoreState, ids: Sequence[Any], session: Any) -> Flow[None]:
    """Mark the parents of some dependents, one of which was let go, or was put by a program that
    does not know of that."""
    parents = yield from _parents_of(store, ids, session)
    yield from mark_parents(store, parents, session)


def _parents_of(store: StoreState, ids: Sequence[Any], session: Any) -> Flow[list[Any]]:
    found = yield _read(operations.parents_of(ids), session)
    return list({key_of(one): one for job in found for one in _ids_in(job.get("after"))}.values())


def _ids_in(after: object) -> list[Any]:
    return after if isinstance(after, list) else []


def release(store: StoreState, ids: Sequence[Any]) -> Flow[None]:
    """Let those of some parents go that no live dependent has any more. Never raises."""
    try:
        yield from _release(store, ids)
    except PyMongoError as error:
        log_dependents_left(error)


def release_of(store: StoreState, records: Sequence[JobRecord]) -> Flow[None]:
    """Let go of the parents of some dependents, as far as these have ended: they may wait again.
    Never raises."""
    ended = [record for record in records if record.after]
    if not ended:
        return
    try:
        live = yield Read(operations.living([record.id for record in ended]))
        living = {key_of(job["_id"]) for job in live}
        parents = {
            key_of(one): one
            for record in ended
            if key_of(record.id) not in living
            for one in record.after
        }
        yield from _release(store, list(parents.values()))
    except PyMongoError as error:
        log_dependents_left(error)


def _release(store: StoreState, ids: Sequence[Any]) -> Flow[None]:
    for start in range(0, len(ids), BATCH):
        some = ids[start : start + BATCH]
        # How they are marked is read before it is looked for who needs them: who has marked one
        # since then is seen by what is written, and who had done so before has put its job, or
        # looks at it afterwards and marks it again.
        there = yield Read(operations.which_jobs(some))
        marks = {
            key_of(job["_id"]): job["needed"] for job in there if job.get("needed") is not None
        }
        left = [one for one in some if key_of(one) in marks]
        while left:
            found = yield Read(operations.dependents_of_many(left))
            if not found:
                break
            needed = {key_of(one) for job in found for one in _ids_in(job.get("parents"))}
            fewer = [one for one in left if key_of(one) not in needed]
            if len(fewer) == len(left):
                return  # what names them is no list that can be read
            left = fewer
        if left:
            latest = max(marks[key_of(one)] for one in left)
            store.indexes.want("keep")
            command = partial(operations.release_parents, marked_by=latest)
            yield from change_each(store, left, command, store.unclaimable)


def look_at_requeued(store: StoreState, ids: Sequence[Any]) -> Flow[None]:
    """Look at what comes after jobs that live again, and is not held by a dead one any more; and at
    those of them that wait for parents which may have ended. Never raises."""
    try:
        for start in range(0, len(ids), BATCH):
            found = yield Read(operations.waiting_or_needed(ids[start : start + BATCH]))
            parents = [job["_id"] for job in found if job.get("needed") is not None]
            looked_at = yield from look(store, found)
            cancelled = looked_at.cancelled
            if parents:
                all_of = partial(operations.waiting_for, parents)
                looked_at = yield from _look_at_all(store, all_of)
                cancelled += looked_at.cancelled
            yield from _tell_dependents(store, cancelled, needed=True)
    except PyMongoError as error:
        store.parked()
        log_dependents_left(error)


# what was forgotten


def look_for_orphans(store: StoreState, found: Sequence[Found]) -> Flow[int]:
    """Look at those of some dependents that wait for a parent which has ended, because who ended it
    did not come to that; return how many may run.

    Args:
        found: jobs that wait, with what for (``waits_for``), and the numbers of their parents.
    """
    witnesses = {key_of(job["_id"]): operations.witness_of(job) for job in found}
    ids = list({key_of(one): one for one in witnesses.values() if one is not None}.values())
    if not ids:
        return 0
    there = yield Read(operations.living_parents(ids))
    states = {key_of(job["_id"]): job.get("state") for job in there}

    def is_orphan(job: Found) -> bool:
        witness = witnesses[key_of(job["_id"])]
        if witness is None:
            return False
        state = states.get(key_of(witness))
        return state is None or (state == "dead") is not operations.waits_for_dead(job)

    orphans = [job for job in found if is_orphan(job)]
    if not orphans:
        return 0
    looked_at = yield from look(store, orphans)
    yield from _tell_dependents(store, looked_at.cancelled, needed=True)
    return looked_at.run


def look_for_forgotten(store: StoreState, queues: Sequence[str]) -> Flow[None]:
    """Let parents go that nobody needs any more, because who ended the last dependent did not come
    to that: some at a time, the next ones the next time."""
    if store.needless:
        return
    try:
        found = yield Read(operations.forgotten_parents(queues, store.needed_before, BATCH))
    except OperationFailure as error:
        if error.code not in operations.NOT_THERE:
            raise
        store.needless = True  # without that index nobody has used dependencies
        return
    store.needed_before = found[-1]["needed"] if len(found) == BATCH else None
    yield from _release(store, [job["_id"] for job in found])
