"""The claim: jobs taken, read back, left out, and given back in doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
from ...protocol import operations
from ...protocol.document import id_key
from ..given_up import Claim, GivenUp, merged, together
from ..lines import log_claims_left, log_late, log_quarantined
from .changes import change, change_each
from .dependencies import tell_dependents
from .held_back import park, supersede
from .ruled import by_rules, take_ruled
from .setting_up import prepare
from .steps import (
    Command,
    Pause,
    Read,
    Shielded,
    TryEach,
    UpdateAndGet,
    UpdateWithoutLimit,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    from ...protocol.terms import KeepOf, LimitOf
    from ..state import StoreState
    from .steps import Flow

Job = dict[str, Any]


class Terms(NamedTuple):
    """What a claim gives to whoever makes it.

    Attributes:
        consumer: its name.
        timeout: the lease, in seconds.
        limit_of: says, for a queue, how many attempts a job has that does not say.
        keep_of: says, for a queue, how long a job stays that does not say.
    """

    consumer: str
    timeout: float
    limit_of: LimitOf
    keep_of: KeepOf


AFTER_LATE = Backoff(initial=0.1, maximum=0.1, jitter=0.5)
"""The pause after a claim that took longer than its lease."""


# taken


def take(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    consumer: str,
    timeout: float,
    limit_of: LimitOf,
    keep_of: KeepOf = operations.not_kept,
) -> Flow[list[Job]]:
    """Claim those of the jobs that are still ready where they were; return them as they are now,
    each with its token.

    `limit_of` says, for a queue, how many attempts a job has that does not say, and `keep_of` how
    long it stays when it has ended.

    No more of them than ``claim_size``; and none when the lease was over by the time that the claim
    was answered.
    """
    if store.clock.stale:
        yield from prepare(store)
    jobs = jobs[: store.claim_size.most]
    terms = Terms(consumer, timeout, limit_of, keep_of)
    if not store.ruled:
        documents: list[Job] = yield Shielded(_take_in_time(store, jobs, terms))
        return documents
    claims = [_take_in_time(store, part, terms) for part in by_rules(store, jobs)]
    documents = yield Shielded(_all_of(store, claims))
    return documents


def _all_of(
    store: StoreState, claims: Iterable[Flow[list[Job]]], taken: Iterable[Job] = ()
) -> Flow[list[Job]]:
    """Send claims one after the other; return what they took, and what was taken before. If one of
    them fails all of that is given back: nobody would hear of it."""
    documents = list(taken)
    try:
        for claim in claims:
            documents += yield from claim
    except BaseException:
        if documents:
            yield from untake(store, GivenUp.of_documents(documents))
        raise
    return documents


def _take_in_time(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    terms: Terms,
) -> Flow[list[Job]]:
    sent = monotonic()
    if jobs and "slots" in jobs[0]:
        take_them = _take if len(jobs) == 1 else _take_each
        documents = yield from take_ruled(store, jobs, take_them(store, jobs, terms))
    else:
        documents = yield from _take(store, jobs, terms)
    if not documents:
        store.clock.doubt()
    elif monotonic() - sent < terms.timeout:
        store.late = False
    else:
        yield from untake(store, GivenUp.of_documents(documents))
        store.claim_size.late(len(jobs))
        if not store.late:
            log_late(len(documents), terms.timeout)
        store.late = True
        yield Pause(AFTER_LATE.delay(1))
        documents = []
    return documents


def _take(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    terms: Terms,
    tries: int = 3,
) -> Flow[list[Job]]:
    """Claim the jobs together, or, when one of them spoils that, in ever smaller parts; but for
    those that a running one holds back, of which the claims meet one at a time."""
    claim = Claim.of(jobs, terms.timeout, store.clock.now(), terms.limit_of, terms.keep_of)
    try:
        return (yield from claim_once(store, claim, terms.consumer))
    except BaseException as error:
        if len(jobs) > 1 or not operations.is_refusal(error):  # of one: it was not taken
            yield from untake(store, claim.given_up(error))
        if operations.is_slot_taken(error):
            if "slots" in jobs[0]:
                raise  # they are chosen anew
            if tries:  # somebody has written slots into jobs of a queue without rules
                yield from change_each(store, claim.ids, operations.unslot, store.unclaimable)
                return (yield from _take(store, jobs, terms, tries - 1))
        if tries and operations.is_held_back(error):
            parked = yield from park(store, claim.ids)
            jobs = [job for job in jobs if id_key(job["_id"]) not in parked]
            if not jobs:
                return []
            # (With none of them parked, the other one has ended since.)
            return (yield from _take(store, jobs, terms, tries if parked else tries - 1))
        again = store.write_limit.cut_short(error)
        if not (again or operations.is_spoiled(error)):
            store.claim_size.failed(len(jobs), error)
            raise
        if len(jobs) == 1 and not again:
            yield from _leave_out(store, claim.ids[0], error)
            return []
    parts = [jobs] if again else operations.parts(jobs)
    return (yield from _all_of(store, [_take(store, part, terms) for part in parts]))


def _take_each(
    store: StoreState,
    jobs: Sequence[Mapping[str, Any]],
    terms: Terms,
) -> Flow[list[Job]]:
    """Claim jobs that were chosen with slots, in one command, but each by itself: those of which
    somebody has taken a slot meanwhile keep none of the others from being claimed."""
    claim = Claim.of(jobs, terms.timeout, store.clock.now(), terms.limit_of, terms.keep_of)
    sent, seconds = monotonic(), store.write_limit.seconds
    try:
        taken, errors = yield TryEach(claim.each(jobs, terms.consumer), seconds)
    except BaseException as error:
        yield from untake(store, claim.given_up(error))
        if store.write_limit.cut_short(error) or operations.is_spoiled(error):
            return (yield from _take(store, jobs, terms))
        store.claim_size.failed(len(jobs), error)
        raise
    store.write_limit.kept(monotonic() - sent)
    documents: list[Job] = (yield from _claimed_by(store, claim, taken)) if taken else []
    again: list[Mapping[str, Any]] = []
    for job, problem in zip(jobs, errors, strict=True):
        if operations.is_slot_taken(problem):
            store.forget_slots(job["queue"])
        elif problem is not None:
            again.append(job)
    return (yield from _all_of(store, [_take(store, [job], terms) for job in again], documents))


def claim_once(store: StoreState, claim: Claim, consumer: str) -> Flow[list[Job]]:
    """Send one claim and return what it took, in its order."""
    command = claim.update(consumer)
    if len(claim.ids) == 1:
        sent, seconds = monotonic(), store.write_limit.seconds
        document: Job | None = yield UpdateAndGet(command, seconds)
        store.write_limit.kept(monotonic() - sent)
        return [] if document is None else [document]
    taken = yield from change(store, command, again=False)
    return (yield from _claimed_by(store, claim, taken)) if taken else []


def _claimed_by(store: StoreState, claim: Claim, taken: int) -> Flow[list[Job]]:
    """Return the jobs that a claim has taken, in its order, of which there are so many."""
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
    yield from tell_dependents(store, [job_id])
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
            except OperationFailure as error:
                left = error
                if not operations.is_spoiled(error):  # it is not of these, but would meet all
                    break
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
        if len(ids) == 1 and store.is_duplicate_job(error):
            yield from supersede(store, operations.held_any(ids, tokens))
            return
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
