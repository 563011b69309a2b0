"""Starts reserved under rates: for one scope in one round trip, for many in two."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pymongo.errors import AutoReconnect, DuplicateKeyError, OperationFailure, PyMongoError

from ...clock import monotonic
from ...durations import milliseconds
from ...protocol import operations
from ...protocol.rates import pace_of
from ...protocol.schema import BUCKETS_INDEX
from ..collection import UNAUTHORIZED, rates_beside
from ..lines import log_buckets_stay, log_rates_refused
from .steps import Command, Shielded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...protocol.limits import Rate
    from ...protocol.rates import Pace, Reservation
    from ..state import StoreState
    from .steps import Flow

    Wanted = Mapping[str, tuple[Pace, int]]

AT_ONCE = 1000
"""Buckets of one command."""
TRIES = 5
"""How often an upsert is sent whose document somebody else makes at the same moment. It is there
after the first; unless it is removed again, as one that is full."""
INDEX_SECONDS = 2.0
"""How long the first reservation may wait for the index."""
INDEX_AGAIN = 600.0
"""Seconds until it is asked for again, when something else than a right was missing."""


def reserve(
    store: StoreState, wanted: Mapping[str, tuple[Rate, int]]
) -> Flow[dict[str, Reservation]]:
    """Return the next starts of these buckets, as many as are wanted of each and near enough.

    Of one bucket they take a round trip, of up to a thousand two. When they are due, and void, is
    said by :func:`monotonic`; a claim by them is also to change nothing from the earliest ``until``
    on, by the server's clock. Nobody else has them, whatever
    happens: those of a reservation whose outcome is unknown are lost, and are few.

    Args:
        wanted: by the ``_id`` of the bucket (``protocol.rates.bucket_id``).

    Raises:
        OperationFailure: the user has no right to (which is logged, once), or other trouble of the
            server, as a PyMongoError; nothing was reserved that may be used.
    """
    paces = {bucket: (pace_of(rate), count) for bucket, (rate, count) in wanted.items()}
    if wanted and monotonic() >= store.index_of_buckets_at:
        yield from _make_index(store)
    found: dict[str, Reservation] = {}
    buckets = list(paces)
    for at in range(0, len(buckets), AT_ONCE):
        part = {bucket: paces[bucket] for bucket in buckets[at : at + AT_ONCE]}
        try:
            try:
                found |= yield Shielded(_reserve(store, part))
            except AutoReconnect:  # a member that is going down: another one is asked
                found |= yield Shielded(_reserve(store, part))
        except OperationFailure as error:
            if error.code == UNAUTHORIZED and not store.rates_refused:
                store.rates_refused = True
                log_rates_refused(_rates(store))
            raise
    store.rates_refused = False
    return found


def read_buckets(store: StoreState, command: operations.Find) -> Flow[list[dict[str, Any]]]:
    """Return what is stored of buckets."""
    reply = yield Command(operations.find_once(_rates(store), command))
    found: list[dict[str, Any]] = reply["cursor"]["firstBatch"]
    return found


def _rates(store: StoreState) -> str:
    return rates_beside(store.jobs.name)


def _reserve(store: StoreState, wanted: Wanted) -> Flow[dict[str, Reservation]]:
    by, sent = operations.new_token(), monotonic()
    if len(wanted) == 1:
        found = yield from _reserve_one(store, wanted, by)
    else:
        yield from _reserve_each(store, wanted, by)
        found = yield from read_buckets(store, operations.reserved(list(wanted), by))
    # One that is not there was full, and was removed since: what was reserved is lost.
    received = monotonic()
    return {
        bucket["_id"]: operations.reservation_in(bucket, wanted[bucket["_id"]][0], sent, received)
        for bucket in found
    }


def _reserve_one(store: StoreState, wanted: Wanted, by: bytes) -> Flow[Sequence[Mapping[str, Any]]]:
    (update,) = _updates(wanted, by)
    command = operations.reserve_one(_rates(store), update, by, _concern(store))
    for left in reversed(range(TRIES)):
        try:
            reply = yield Command(command)
        except DuplicateKeyError:
            if not left:
                raise
        else:
            break
    operations.check_reply(reply)
    return [reply["value"]]


def _reserve_each(store: StoreState, wanted: Wanted, by: bytes) -> Flow[None]:
    updates = _updates(wanted, by)
    for left in reversed(range(TRIES)):
        reply = yield Command(operations.reserve_each(_rates(store), updates, _concern(store)))
        again = operations.made_by_others(reply)
        if not left or not again:
            operations.check_reply(reply)
            return
        updates = [updates[position] for position in again]


def _updates(wanted: Wanted, by: bytes) -> list[operations.Update]:
    return [operations.reserve(bucket, pace, count, by) for bucket, (pace, count) in wanted.items()]


def _concern(store: StoreState) -> dict[str, Any]:
    concern: dict[str, Any] = store.jobs.write_concern.document
    return concern


def _make_index(store: StoreState) -> Flow[None]:
    """Have full buckets removed by the server, where the user may. Never raises what the server
    says: without it they stay, and nothing else is different."""
    store.index_of_buckets_at = math.inf
    command = operations.create_indexes(
        _rates(store), _concern(store), [BUCKETS_INDEX], limit_ms=milliseconds(INDEX_SECONDS)
    )
    try:
        yield Command(command)
    except PyMongoError as error:
        log_buckets_stay(_rates(store), error)
        if not isinstance(error, OperationFailure) or error.code != UNAUTHORIZED:
            store.index_of_buckets_at = monotonic() + INDEX_AGAIN
