"""What waits at the head of the queues, read in the order of claims; and what stands in its way."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bson import ObjectId
from bson.errors import BSONError
from pymongo.errors import ExecutionTimeout, OperationFailure

from ...protocol import foreign, operations
from ...protocol.document import id_key
from ...protocol.stored import text_in
from ..collection import UNAUTHORIZED
from ..lines import log_buried
from . import timers
from .changes import change_each
from .dependencies import tell_dependents
from .steps import Command, Read

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from bson.codec_options import CodecOptions

    from ..state import StoreState
    from .steps import Flow

Job = dict[str, Any]

ROUNDS = 4
"""Times that jobs without a place are given one before a read returns."""


def candidates(
    store: StoreState,
    queues: Sequence[str],
    limit: int,
    *,
    codec: CodecOptions[Any] | None = None,
    ruled: bool = False,
) -> Flow[list[Job]]:
    """Return what waits at the head of the queues, past the jobs that cannot be claimed.

    Ids and order only, and what rules go by for a queue that is `ruled`; `codec` as in ``find()``.
    One that nobody could run is buried; one that
    other programs gave no place in the order, and that would so come before all others, is given
    one first. Where there are so many of those that new ones keep coming, as from producers of an
    earlier version, they are returned all the same: a claim needs no place.
    """
    seen_to: set[object] = set()
    many = limit
    for _ in range(ROUNDS):
        found, foreigners = yield from _head(store, queues, many, codec, ruled)
        odd = [job for job in found if store.oddness_of(job)] if foreigners else []
        unplaced = [job for job in found if not operations.is_placed(job)]
        if not (odd or unplaced):
            return found[:limit]
        if odd:
            unplaced = [job for job in unplaced if store.oddness_of(job) is None]
        for job in (*odd, *unplaced):
            if id_key(job["_id"]) in seen_to:  # and there it is again
                store.unclaimable.hold(job["_id"])
        seen_to.update(id_key(job["_id"]) for job in (*odd, *unplaced))
        for reason, ids in foreign.by_oddness(odd, any_id=store.any_id).items():
            yield from _bury_odd(store, ids, reason)
        unplaced_ids = [job["_id"] for job in unplaced]
        yield from change_each(store, unplaced_ids, operations.adopt, store.unclaimable)
        if store.unclaimable.full:
            fit = [job for job in found if store.oddness_of(job) is None]
            return [job for job in fit if operations.is_placed(job)][:limit]
        many = max(limit, timers.BATCH)  # many at a time, if there are many
    fit = [
        job
        for job in store.left.sift(store.unclaimable.sift(found))
        if store.oddness_of(job) is None
    ]
    return fit[:limit]


def with_work(store: StoreState, queues: Sequence[str]) -> Flow[Sequence[str]]:
    """Return those of many queues that have ready jobs; all of them, if that is not to be had."""
    try:
        reply = yield Command(operations.queues_with_work(store.jobs.name, queues))
    except BSONError:  # a list in the place of a queue, with anything in it
        return queues
    except OperationFailure as error:
        if error.code == UNAUTHORIZED or isinstance(error, ExecutionTimeout):
            raise
        return queues  # the index is not there, or there are two, or lists in it
    names = [document["_id"] for document in reply["cursor"]["firstBatch"]]
    # (A list with the name in it matches the name.)
    return names if all(type(name) is str for name in names) else queues


def _head(
    store: StoreState,
    queues: Sequence[str],
    limit: int,
    codec: CodecOptions[Any] | None,
    ruled: bool,
) -> Flow[tuple[list[Job], bool]]:
    """Return them as they are, and whether one of them is such as no program of ours puts."""
    stuck, left = store.unclaimable, store.left
    many = limit + len(stuck) + len(left)
    if len(queues) > operations.MERGED_QUEUES:
        queues = yield from with_work(store, queues)
        if not queues:
            return stuck.sift([]), False
    which = _Which(queues, many, ruled, left.tasks)
    try:
        found = yield from _first(which, partial(Read, codec=codec))
        others = [  # almost always none, and of thousands
            job
            for job in found
            if type(job["_id"]) is not ObjectId or type(job.get("queue")) is not str
        ]
        foreigners = any(map(foreign.oddness_of, others))
    except BSONError:
        foreigners = True  # one cannot be decoded; its claim finds out which
    if foreigners:
        found = yield from _first(which, Read, bare=True)
    taken = left.sift(stuck.sift(found))
    if left.tasks and len(found) == many and len(taken) < limit:
        # Jobs of tasks that nobody here knows fill what is read: those behind them are read now,
        # and they are parked, these ones.
        behind = which._replace(known=True)
        some = yield from _first(behind, partial(Read, codec=codec), bare=foreigners)
        yield from _park_unknown(store, [job for job in found if not left.knows(job)])
        taken = left.sift(stuck.sift(some))
    return taken[:limit], foreigners


class _Which(NamedTuple):
    """Which jobs are read at the head: of these queues, so many; with what rules go by if those
    have some, and their tasks, where only some `tasks` are `known`, or only those."""

    queues: Sequence[str]
    limit: int
    ruled: bool
    tasks: Mapping[str, Collection[str | None]]
    known: bool = False

    def of(self, queues: Sequence[str], limit: int, *, bare: bool) -> operations.Find:
        """Return what reads the first of some of the queues."""
        return operations.candidates(
            queues, limit, bare=bare, ruled=self.ruled, tasks=self.tasks, known=self.known
        )


def _park_unknown(store: StoreState, jobs: Sequence[Job]) -> Flow[None]:
    """Leave jobs to others whose tasks nobody here knows, so that nobody here reads them again."""
    store.indexes.want("misfits")
    ids = [job["_id"] for job in jobs]
    tasks = sorted({text_in(job.get("task")) for job in jobs}, key=str)
    command = partial(operations.park_unknown, tasks=tasks)
    yield from change_each(store, ids, command, store.unclaimable)


def _first(
    which: _Which, read: Callable[[operations.Find], Read], *, bare: bool = False
) -> Flow[list[Job]]:
    """Read what comes first in many queues, for as many at a time as the server merges.

    It walks along the index of each queue in turn, which costs what is read, for 200 queues: of
    more it sorts all that waits. So each part of the queues is asked for twice its share; a part
    that may have more of what comes first is asked again for as much as there may be.
    """
    queues, limit = which.queues, which.limit
    if len(queues) <= operations.MERGED_QUEUES:
        found: list[Job] = yield read(which.of(queues, limit, bare=bare))
        return found
    parts = operations.merged_parts(queues)
    share = min(limit, 2 * limit // len(parts) + 1)
    place = operations.claim_order_of
    read_of: list[list[Job]] = []
    for part in parts:
        read_of.append((yield read(which.of(part, share, bare=bare))))
    first = _merged(read_of, limit)
    for number, part in enumerate(parts):
        cut = len(read_of[number]) == share < limit
        if cut and (len(first) < limit or place(read_of[number][-1]) < place(first[-1])):
            read_of[number] = yield read(which.of(part, limit, bare=bare))
    return _merged(read_of, limit)


def _merged(read_of: Sequence[Sequence[Job]], limit: int) -> list[Job]:
    merged = [job for found in read_of for job in found]
    return sorted(merged, key=operations.claim_order_of)[:limit]


def _bury_odd(store: StoreState, ids: Sequence[Any], reason: foreign.BuryReason) -> Flow[None]:
    """Bury ready jobs that nobody could run, whatever else is in them."""
    text = foreign.ODDITIES[reason]
    bury = partial(operations.bury, message=text)
    count = yield from change_each(store, ids, bury, store.unclaimable, operations.quarantine)
    if count:
        yield from tell_dependents(store, ids)
        log_buried(count, text)
        store.buried(reason, count)


def adopt(store: StoreState, queues: Sequence[str]) -> Flow[bool]:
    """Give ready jobs inserted without a priority their place in the claim order.

    Some at a time; returns whether there may be more.
    """
    stuck = store.unclaimable  # what cannot be given a place cannot be claimed either
    limit = timers.BATCH + len(stuck)
    found = yield Read(operations.unplaced(queues, limit))
    ids = [job["_id"] for job in stuck.sift(found)]
    placed = yield from change_each(store, ids, operations.adopt, stuck)
    return len(found) == limit and not (stuck.full and not placed)
