"""The claim: what waits at the head of the queues, taken, read back, and given back in doubt."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bson import ObjectId
from bson.errors import BSONError
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
)

from ...backoff import Backoff
from ...clock import monotonic
from ...failures import failure_name
from ...protocol import foreign, operations
from ...protocol.document import id_key
from ..given_up import Claim, GivenUp, merged, together
from ..lines import log_buried, log_claims_left, log_late, log_quarantined
from . import timers
from .changes import change, change_each
from .setting_up import prepare
from .steps import Command, Pause, Read, Shielded, UpdateAndGet, UpdateWithoutLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set

    from bson.codec_options import CodecOptions

    from ..state import StoreState
    from .steps import Flow

Job = dict[str, Any]

AFTER_LATE = Backoff(initial=0.1, maximum=0.1, jitter=0.5)
"""The pause after a claim that took longer than its lease."""


# what waits


def candidates(
    store: StoreState,
    queues: Sequence[str],
    limit: int,
    *,
    codec: CodecOptions[Any] | None = None,
) -> Flow[list[Job]]:
    """Return what waits at the head of the queues, past the jobs that cannot be claimed.

    Ids and order only; `codec` as in ``find()``. One that nobody could run is buried; one that
    other programs gave no place in the order, and that would so come before all others, is given
    one first.
    """
    seen_to: set[object] = set()
    while True:
        found, foreigners = yield from _head(store, queues, limit, codec)
        odd = [job for job in found if store.oddness_of(job)] if foreigners else []
        unplaced = [job for job in found if not operations.is_placed(job)]
        if not (odd or unplaced):
            return found
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
            return [job for job in fit if operations.is_placed(job)]


def _head(
    store: StoreState, queues: Sequence[str], limit: int, codec: CodecOptions[Any] | None
) -> Flow[tuple[list[Job], bool]]:
    """Return them as they are, and whether one of them is such as no program of ours puts."""
    stuck = store.unclaimable
    many = limit + len(stuck)
    try:
        found: list[Job] = yield Read(operations.candidates(queues, many), codec)
        others = [  # almost always none, and of thousands
            job
            for job in found
            if type(job["_id"]) is not ObjectId or type(job.get("queue")) is not str
        ]
        foreigners = any(map(foreign.oddness_of, others))
    except BSONError:
        foreigners = True  # one cannot be decoded; its claim finds out which
    if foreigners:
        found = yield Read(operations.candidates(queues, many, bare=True))
    return stuck.sift(found)[:limit], foreigners


def _bury_odd(store: StoreState, ids: Sequence[Any], reason: foreign.BuryReason) -> Flow[None]:
    """Bury ready jobs that nobody could run, whatever else is in them."""
    text = foreign.ODDITIES[reason]
    bury = partial(operations.bury, message=text)
    count = yield from change_each(store, ids, bury, store.unclaimable, operations.quarantine)
    if count:
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


# taken


def take(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    consumer: str,
    timeout: float,
    limit_of: Callable[[str], int],
) -> Flow[list[Job]]:
    """Claim those of the jobs that are still ready where they were; return them as they are now,
    each with its token.

    `limit_of` says, for a queue, how many attempts a job has that does not say.

    No more of them than ``claim_size``; and none when the lease was over by the time that the claim
    was answered.
    """
    if store.clock.stale:
        yield from prepare(store)
    jobs = jobs[: store.claim_size.most]
    documents: list[Job] = yield Shielded(_take_in_time(store, jobs, consumer, timeout, limit_of))
    return documents


def _take_in_time(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    consumer: str,
    timeout: float,
    limit_of: Callable[[str], int],
) -> Flow[list[Job]]:
    sent = monotonic()
    documents = yield from _take(store, jobs, consumer, timeout, limit_of)
    if not documents:
        store.clock.doubt()
    elif monotonic() - sent < timeout:
        store.late = False
    else:
        yield from untake(store, GivenUp.of_documents(documents))
        store.claim_size.late(len(jobs))
        if not store.late:
            log_late(len(documents), timeout)
        store.late = True
        yield Pause(AFTER_LATE.delay(1))
        documents = []
    return documents


def _take(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    consumer: str,
    timeout: float,
    limit_of: Callable[[str], int],
) -> Flow[list[Job]]:
    """Claim the jobs together, or, when one of them spoils that, in ever smaller parts."""
    claim = Claim.of(jobs, timeout, store.clock.now(), limit_of)
    try:
        return (yield from claim_once(store, claim, consumer))
    except BaseException as error:
        if len(jobs) > 1 or not operations.is_refusal(error):  # of one: it was not taken
            yield from untake(store, claim.given_up(error))
        again = store.write_limit.cut_short(error)
        if not (again or operations.is_spoiled(error)):
            store.claim_size.failed(len(jobs), error)
            raise
        if len(jobs) == 1 and not again:
            yield from _leave_out(store, claim.ids[0], error)
            return []
    documents: list[Job] = []
    try:
        for part in [jobs] if again else operations.parts(jobs):
            documents += yield from _take(store, part, consumer, timeout, limit_of)
    except BaseException:
        if documents:
            yield from untake(store, GivenUp.of_documents(documents))
        raise
    return documents


def claim_once(store: StoreState, claim: Claim, consumer: str) -> Flow[list[Job]]:
    """Send one claim and return what it took, in its order."""
    command = claim.update(consumer)
    if len(claim.ids) == 1:
        sent, seconds = monotonic(), store.write_limit.seconds
        document: Job | None = yield UpdateAndGet(command, seconds)
        store.write_limit.kept(monotonic() - sent)
        return [] if document is None else [document]
    taken = yield from change(store, command, again=False)
    if not taken:
        return []
    documents = yield from _read_back(store, operations.claimed(claim.ids, claim.token))
    if len(documents) < taken:
        # More than fits into a reply. Who read on would hold the first of them all the while.
        yield from untake(store, GivenUp(claim.without(documents), {claim.token}))
    store.claim_size.fitted(len(claim.ids), len(documents), taken)
    return claim.in_order(documents)


def _read_back(store: StoreState, command: operations.Find) -> Flow[list[Job]]:
    """Read in one reply, as a command of its own: that takes the driver two thirds of what a cursor
    takes, which is tried when the connection breaks, because it is repeated then."""
    try:
        reply = yield Command(operations.find_once(store.jobs.name, command))
    except ConnectionFailure:
        found: list[Job] = yield Read(command)
        return found
    documents: list[Job] = reply["cursor"]["firstBatch"]
    return documents


# left out


def _leave_out(store: StoreState, job_id: Any, error: BaseException) -> Flow[None]:
    """Do without a job whose claim fails by its own fault."""
    if isinstance(error, ExecutionTimeout):  # somebody's open transaction has changed it
        store.write_limit.met()
        store.unclaimable.refused(job_id, error)
    elif isinstance(error, DuplicateKeyError):  # a user's own rule, which may allow it later
        store.unclaimable.refused(job_id, error)
    else:
        yield from _quarantine(store, job_id, error)


def _quarantine(store: StoreState, job_id: Any, error: BaseException) -> Flow[None]:
    """Bury a ready job whose claim fails like that, so that it stops nobody else."""
    reason = failure_name(error)
    try:
        yield UpdateWithoutLimit(operations.bury([job_id], f"cannot be claimed: {reason}"))
    except OperationFailure:
        try:
            yield UpdateWithoutLimit(operations.quarantine([job_id]))
        except OperationFailure as refusal:  # a validator that takes nothing
            store.unclaimable.refused(job_id, refusal)
            return
    log_quarantined(job_id, reason)
    store.buried("undecodable" if isinstance(error, BSONError) else "refused", 1)


# given back


def untake(store: StoreState, claim: GivenUp) -> Flow[None]:
    """Give back what a claim took, or may have taken; its token finds it. Never raises: what is not
    certain is remembered, and tried again by ``untake_again()``."""
    store.given_up.add(claim)
    store.claim_given_up()
    yield from untake_again(store)


def untake_again(store: StoreState) -> Flow[None]:
    """Give back what the claims that were given up may have taken, if it is time to. Never
    raises."""
    claims = store.given_up.due()
    if not claims:
        return
    sent = monotonic()
    answered: list[GivenUp] = []
    left: PyMongoError | None = None
    try:
        for group in together(claims):
            try:
                yield Shielded(_unclaim(store, *merged(group)))
            except OperationFailure as error:  # of these, and of no others
                left = error
            else:
                answered += group
    except PyMongoError as error:
        left = error
    finally:
        store.given_up.tried(claims, sent, answered)
    if left is None:
        store.untaking.succeeded()
    elif store.untaking.failed():
        log_claims_left(len(claims) - len(answered), left)


def _unclaim(store: StoreState, ids: Sequence[Any], tokens: Set[bytes]) -> Flow[None]:
    """Give them back together, or, when one of them spoils that, in ever smaller parts; raises what
    the last of those said that are left."""
    try:
        yield from change(store, operations.unclaim(ids, tokens))
    except OperationFailure as error:
        if len(ids) == 1 or not operations.is_spoiled(error):
            raise
    else:
        return
    left: OperationFailure | None = None
    for part in operations.parts(ids):
        try:
            yield from _unclaim(store, part, tokens)
        except OperationFailure as error:
            left = error
    if left is not None:
        raise left
