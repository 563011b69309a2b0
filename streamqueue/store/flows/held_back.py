"""Jobs held back by another one: parked, let through, and looked for; and what takes their place.

Whoever parks a job looks afterwards whether the other one still runs, and whoever ends the other
one lets through afterwards who waits for it: one of the two comes second. What is left is what
somebody did not come to do who was killed in between; so whoever opens a stream looks, and whoever
knows of one that waits, once in the time of a lease.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo.errors import PyMongoError

from ...protocol import operations
from ...protocol.document import id_key
from ..lines import log_left_waiting, log_superseded
from .changes import change, change_each, remove_cancelled
from .dependencies import look_for_forgotten, look_for_orphans, release, tell_dependents
from .settings import say_room
from .steps import Read, Shielded, UpdateAndGet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...protocol.operations import JobKey
    from ..state import StoreState
    from .steps import Flow

BATCH = 1000
"""Jobs that wait and are looked at together."""
MOST = 100_000
"""Those of a look: the first of them may all wait for long, and must hide none. Of one reply no
more than 16 MB is read."""


def park(store: StoreState, ids: Sequence[Any]) -> Flow[set[object]]:
    """Park those of some ready jobs whose key a running job has, when a claim has met one; return
    what the ids of those can be looked up by that are not to be claimed now.

    Of several that have the same key, in a collection that somebody has mended by hand, the first
    goes before the others.
    """
    found = yield Read(operations.ready_with_keys(ids))
    keys = {id_key(job["_id"]): key for job in found if (key := operations.job_key(job))}
    if not keys:
        return set()
    running = yield from _running(keys.values())
    first: dict[JobKey, Any] = {}
    parked: dict[object, tuple[Any, Any]] = {}
    for job_id in ids:
        name = id_key(job_id)
        if name in keys:
            holder = running.get(keys[name], first.setdefault(keys[name], job_id))
            if holder is not job_id:
                parked[name] = (job_id, holder)
    if not parked:
        return set()
    command = partial(_park, holders={name: holder for name, (_, holder) in parked.items()})
    waiting = [job_id for job_id, _ in parked.values()]
    store.parked()  # before: they may be parked though there is no answer
    yield from change_each(store, waiting, command, store.unclaimable)
    # Whoever has ended a holder in between had nobody to let through.
    behind = {keys[name] for name in parked if keys[name] in running}
    if behind:
        still = yield from _running(behind)
        late = [job_id for name, (job_id, _) in parked.items() if keys[name] in behind - set(still)]
        yield from change_each(store, late, operations.let_these_through, store.unclaimable)
    return set(parked)


def _park(ids: Sequence[Any], holders: dict[object, Any]) -> operations.Update:
    return operations.park(ids, [holders[id_key(job_id)] for job_id in ids])


def _running(keys: Iterable[JobKey]) -> Flow[dict[JobKey, Any]]:
    """Return the ids of the running jobs that have these keys."""
    wanted = set(keys)
    found = yield Read(operations.running_with(wanted))
    by_key = {operations.job_key(job): job["_id"] for job in found}
    return {key: job_id for key, job_id in by_key.items() if key is not None and key in wanted}


def let_through(store: StoreState, keys: Iterable[JobKey]) -> Flow[None]:
    """Let those be claimed that wait for jobs with these keys, which have ended. Never raises: who
    is left waiting is looked for."""
    try:
        for key in set(keys):
            yield Shielded(change(store, operations.let_through(key)))
    except PyMongoError as error:
        store.parked()
        log_left_waiting(error)


class Look(NamedTuple):
    """What a look for jobs that are held back has found.

    Attributes:
        let_through: how many waited for nobody any more.
        waiting: how many others there are.
        dependents: how many of these wait for their parents: there may be many, and for long, and
            who ends their parents tells them.
    """

    let_through: int
    waiting: int
    dependents: int = 0


def look_for_held_back(store: StoreState, queues: Sequence[str]) -> Flow[Look]:
    """Let those jobs of the queues through that wait for no running one any more."""
    let = waiting = dependents = 0
    for part in operations.merged_parts(queues):
        yield from look_for_forgotten(store, part)
        found = yield Read(operations.held_back(part, BATCH))
        if len(found) == BATCH:
            found = yield Read(operations.held_back(part, MOST))
        for start in range(0, len(found), BATCH):
            some = found[start : start + BATCH]
            done = yield from _let_through_of(store, some)
            orphans = yield from look_for_orphans(store, some)
            let, waiting = let + done + orphans, waiting + len(some) - done - orphans
            dependents += sum(operations.witness_of(job) is not None for job in some) - orphans
    return Look(let, waiting, dependents)


def _let_through_of(store: StoreState, found: Sequence[dict[str, Any]]) -> Flow[int]:
    """Let those of some jobs that wait through that wait for no running one; return how many."""
    keys = {id_key(job["_id"]): operations.job_key(job) for job in found}
    wanted = [key for key in keys.values() if key is not None]
    running = (yield from _running(wanted)) if wanted else {}
    ids = [
        job["_id"]
        for job in found
        if operations.waits_for_key(job) and keys[id_key(job["_id"])] not in running
    ]
    return (yield from change_each(store, ids, operations.let_these_through, store.unclaimable))


def supersede(store: StoreState, wanted: operations.Document) -> Flow[bool]:
    """End the job of an attempt that is over, since another one has its key by now; remove it
    unless somebody keeps it or waits for it. Return whether there was still such a job."""
    command = operations.superseded(wanted)
    ended = yield UpdateAndGet(command, store.write_limit.seconds)
    if ended is None:
        return False
    log_superseded(ended)
    if (key := operations.job_key(ended)) is not None:
        yield from let_through(store, [key])
    if ended.get("needed") is not None:
        yield from tell_dependents(store, [ended["_id"]], needed=True)
    if store.makes_room(ended.get("queue"), ended.get("slots", ())):
        yield from say_room(store)
    yield from remove_cancelled(store, [ended["_id"]])
    if ended.get("after"):
        yield from release(store, ended["after"])
    return True
