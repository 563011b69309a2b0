"""Jobs that are left to others: let through by whoever can run them, or buried in the end."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bson.errors import BSONError

from ...protocol import operations
from ...protocol.document import id_key
from ...protocol.fitting.kinds import Misfit
from ...protocol.stored import text_in
from .changes import change_each
from .dependencies import tell_dependents
from .settings import say_room_in
from .steps import Read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...protocol.fitting.kinds import Reader, ReaderOf
    from ..state import StoreState
    from .steps import Flow

BATCH = 1000
"""Jobs that are let through, or buried, together."""
MOST = 100_000
"""Those of a look, whose payloads are not read."""
PAYLOADS = 1000
"""Payloads that are read in a look. Of more the look takes some by chance, so that none is hidden
for ever by others that do not fit."""
PAYLOADS_AT_ONCE = 100


class LeftLook(NamedTuple):
    """What a look for jobs that are left to others has found.

    Attributes:
        let_through: how many can be run here.
        buried: how many were left for longer than their grace.
        left: how many others there are.
        next_in: seconds until the next of those is to be buried; infinity for none.
    """

    let_through: int
    buried: int
    left: int
    next_in: float


def look_for_left(
    store: StoreState, queues: Sequence[str], readers: Mapping[str, ReaderOf], grace: float
) -> Flow[LeftLook]:
    """Let those jobs through that can be run here, and bury misfits for which nobody has come.

    Args:
        readers: of each queue, what says for a task what reads the payloads of its jobs.
        grace: seconds for which a misfit is left to others.
    """
    let = buried = left = 0
    next_in = math.inf
    for part in operations.merged_parts(queues):
        known = store.left.known_of(part)
        tasks = yield Read(operations.of_unknown_tasks(part, known, MOST))
        fit = [job for job in tasks if store.left.knows(job)]
        found = yield Read(operations.misfits(part, MOST))
        some = yield from _fitting(store, found, readers)
        fit += some
        let += yield from _let_through(store, fit)
        names = {id_key(job["_id"]) for job in some}
        others = [job for job in found if id_key(job["_id"]) not in names]
        overdue = [job for job in others if operations.left_for(job) >= grace]
        buried += yield from _bury(store, overdue, grace)
        left += len(tasks) + len(found) - len(fit)
        if len(overdue) < len(others):
            longest = max(age for job in others if (age := operations.left_for(job)) < grace)
            next_in = min(next_in, grace - longest)
    return LeftLook(let, buried, left, next_in)


def _fitting(
    store: StoreState, found: Sequence[dict[str, Any]], readers: Mapping[str, ReaderOf]
) -> Flow[list[dict[str, Any]]]:
    """Return those of some misfits that fit here, and that were not let through lately."""
    mine = [
        job
        for job in found
        if job["_id"] not in store.left
        and not store.left.let_lately(job["_id"])
        and job.get("queue") in readers
        and store.left.knows(job)
    ]
    fit: list[dict[str, Any]] = []
    to_read: list[tuple[dict[str, Any], Reader]] = []
    for job in mine:
        reads = readers[job["queue"]](text_in(job.get("task")))
        if reads is None:
            fit.append(job)
        else:
            to_read.append((job, reads))
    if len(to_read) > PAYLOADS:
        to_read = random.sample(to_read, PAYLOADS)
    while to_read:
        some = to_read[:PAYLOADS_AT_ONCE]
        payloads = yield from _payloads([job for job, _reader in some])
        for job, reader in some:
            name = id_key(job["_id"])
            if name in payloads and _fits(reader, payloads[name]):
                fit.append(job)
        # Of what one reply had no room for the next look reads.
        to_read = to_read[PAYLOADS_AT_ONCE:]
    return fit


def _payloads(jobs: Sequence[dict[str, Any]]) -> Flow[dict[object, Any]]:
    """Read the payloads of some jobs; one that cannot be decoded fits nobody, and spoils no
    other."""
    ids = [job["_id"] for job in jobs]
    try:
        found = yield Read(operations.payloads_of(ids))
    except BSONError:
        found = []
        if len(jobs) > 1:
            parts: dict[object, Any] = {}
            for job in jobs:
                parts |= yield from _payloads([job])
            return parts
    return {id_key(job["_id"]): job.get("payload") for job in found}


def _fits(reader: Reader, payload: Any) -> bool:
    try:
        reader(payload)
    except Misfit:
        return False
    except Exception:  # somebody's own code: an attempt says of it what is to be said
        return True
    return True


def _let_through(store: StoreState, jobs: Sequence[dict[str, Any]]) -> Flow[int]:
    let = 0
    for start in range(0, len(jobs), BATCH):
        ids = [job["_id"] for job in jobs[start : start + BATCH]]
        store.left.let_through(ids)
        command = operations.let_left_through
        let += yield from change_each(store, ids, command, store.unclaimable)
    return let


def _bury(store: StoreState, jobs: Sequence[dict[str, Any]], grace: float) -> Flow[int]:
    buried = 0
    for start in range(0, len(jobs), BATCH):
        some = jobs[start : start + BATCH]
        ids = [job["_id"] for job in some]
        command = partial(operations.bury_misfits, grace=grace)
        count = yield from change_each(
            store, ids, command, store.unclaimable, operations.quarantine_misfits
        )
        if count:
            yield from tell_dependents(store, ids)
            for queue in sorted({job["queue"] for job in some if isinstance(job["queue"], str)}):
                if queue in store.ruled:  # a dead job lets its group pass
                    yield from say_room_in(store, queue)
            store.buried("misfit", count)
        buried += count
    return buried
