"""What must hold before anything is sent: the server's time, the kind of collection, indexes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo.errors import (
    AutoReconnect,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from ...clock import monotonic
from ...durations import milliseconds
from ...errors import ReplicaSetRequired
from ...protocol import operations
from ...protocol.schema import FEATURE_INDEXES
from ..collection import HELLO_SECONDS, UNAUTHORIZED, WRITE_TIMEOUT_MS, check_hello
from ..indexes import BUILD_SECONDS, check_kind, missing
from .steps import Command, Hello, InTurn, Read
from .unique import hold_earlier_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..state import StoreState
    from .steps import Flow

LOOK_MS = 2000
"""How long a first call waits to see what kind of collection it has."""


def prepare(store: StoreState, *, build: bool = True) -> Flow[None]:
    """Check what must hold before anything is sent; nearly free after the first time.

    Only the first time refuses a server. Later one that does not answer, or that is not (yet, or
    again) part of a replica set, is an outage, which is for what is sent next to meet.

    Also creates the indexes, where somebody has to, unless somebody else here is at it: most calls
    need not wait for that. Not without `build`: inside a transaction, which may hold what the
    server would have to wait for.

    Raises:
        ConfigurationError: a collection that is not for jobs. The first time, like the server.
        ReplicaSetRequired: a standalone server.
        ForkedProcess: made before a fork.
        ForeignLoop: an async store that was used in another event loop before.
    """
    store.check_place()
    if store.clock.stale:
        try:
            try:
                yield from _ask_time(store)
            except ServerSelectionTimeoutError:
                raise
            except AutoReconnect:  # a member that is going down: another one is asked
                yield from _ask_time(store)
        except (PyMongoError, ReplicaSetRequired):
            if not store.clock.known:
                raise
            store.clock.unanswered()
    if not store.kind_known:
        yield from _check_kind(store)
    if build and store.indexes.wanted:
        yield InTurn(_build_wanted(store), wait=False)


def _ask_time(store: StoreState) -> Flow[None]:
    sent = monotonic()
    # The first time it may have to sit out an election.
    hello = yield Hello(HELLO_SECONDS if store.clock.known else None)
    received = monotonic()
    check_hello(hello)
    store.clock.observe(hello["localTime"], sent, received)


def _check_kind(store: StoreState) -> Flow[None]:
    """Refuse a collection that is not for jobs, where the user may see what it is."""
    try:
        reply = yield from _look(operations.describe_collection(store.jobs.name, LOOK_MS))
        indexes = None if reply is not None else (yield from _indexes_there(store))
    except OperationFailure:  # it may be locked by a transaction: the next call looks again
        return
    found = None if reply is None else reply.get("cursor", {}).get("firstBatch", [])
    check_kind(store.jobs.full_name, found, indexes)
    store.kind_known = True


def require_key_index(store: StoreState, queue: str, *, build: bool) -> Flow[None]:
    """Raise unless the index that keeps keys unique is there, made now if need be and `build`.

    To be called before every insert of a job with a key: nobody says so when a collection is
    dropped, and the insert would make it anew, without indexes.

    Raises:
        ConfigurationError: it is not there; nothing was put.
    """
    builds = store.indexes.builds["key"]
    store.indexes.features.add("key")
    outage: PyMongoError | None = None
    there = yield from _key_index_there(store, queue)
    if store.indexes.earlier_keys and build:
        # Before the index is made: until then nobody else can have one of these keys.
        yield from hold_earlier_keys(store)
        store.indexes.earlier_keys = False
    if not there and build:
        outage = yield InTurn(_build_unless_tried(store, "key", builds), wait=True)
        there = yield from _key_index_there(store, queue)
        if there is None and store.indexes.in_the_way is None:
            return  # who may create and not look: the server would not have said that it did
    if not there:
        if outage is not None:
            raise outage
        raise store.indexes.refusal(build=build, seen=there is not None)


def require_index(
    store: StoreState, feature: str, use: str, *, build: bool = True, sure: bool = False
) -> Flow[None]:
    """Raise unless the indexes of a feature are there, made now if need be and `build`.

    Once they were seen nobody looks again: without them jobs are removed late, or end late, and no
    promise is broken. (For those of the keys there is ``require_key_index``.)

    Args:
        use: what was called, for the error: ``put(keep=...)``.
        sure: a promise rests on them. They are looked at anew, and who may not look is refused,
            too.

    Raises:
        ConfigurationError: one is not there; nothing was sent.
    """
    indexes = store.indexes
    if feature in indexes.standing and not sure:
        return
    builds = indexes.builds[feature]
    indexes.features.add(feature)
    there = yield from _indexes_there(store)
    outage: PyMongoError | None = None
    if not _serves(there, feature) and build:
        outage = yield InTurn(_build_unless_tried(store, feature, builds), wait=True)
        there = yield from _indexes_there(store)
    unseen = there is None and sure and (not build or indexes.in_the_way is not None)
    if unseen or (there is not None and not _serves(there, feature)):
        raise missing(feature, use, seen=not unseen) if outage is None else outage
    indexes.standing.add(feature)


def _serves(there: Sequence[Mapping[str, Any]] | None, feature: str) -> bool:
    return all(
        any(operations.serves_as(one, wanted) for one in there or ())
        for wanted in FEATURE_INDEXES[feature]
    )


def _build_wanted(store: StoreState) -> Flow[None]:
    if store.indexes.wanted:
        yield from _build_indexes(store)


def _build_unless_tried(store: StoreState, feature: str, builds: int) -> Flow[PyMongoError | None]:
    """Create the indexes, unless another call has asked for that of this feature since; return why
    there was no answer, if there was none."""
    if store.indexes.builds[feature] == builds and not store.indexes.hopeless:
        yield from _build_indexes(store)
    return store.indexes.outage


def _build_indexes(store: StoreState) -> Flow[None]:
    """Create the indexes, one at a time. They never stand in front of the work: when that fails
    they are tried again later."""
    features = list(store.indexes.features)
    try:
        yield from _create_indexes(store, store.indexes.all)
    except PyMongoError as error:
        store.indexes.failed(error)
    finally:
        store.indexes.builds.update(features)


def _create_indexes(store: StoreState, wanted: Sequence[Mapping[str, Any]]) -> Flow[None]:
    command = partial(
        operations.create_indexes,
        store.jobs.name,
        store.jobs.write_concern.document,
        limit_ms=milliseconds(BUILD_SECONDS),
    )
    try:
        # The reply may say that they are there and not yet safe, as during a step-down: no reason
        # to stop, a majority will follow. A put that needs one waits for the majority.
        store.indexes.made([(yield Command(command(wanted), limited=False))])
        return
    except OperationFailure as error:
        # A consumer's role need not include createIndex: `streamqueue init` is run by somebody
        # whose role does.
        if error.code == UNAUTHORIZED:
            store.indexes.refused((yield from _indexes_there(store)))
            return
        if error.code not in operations.INDEX_ERRORS:
            raise
    replies, blocked = [], []
    for index in wanted:  # one stands in the way of all that are asked for together
        try:
            replies.append((yield Command(command([index]), limited=False)))
        except OperationFailure as error:
            if error.code not in operations.INDEX_ERRORS:
                raise
            blocked.append((index, error))
    store.indexes.made(replies)
    there = yield from _indexes_there(store)
    for document, reason in blocked:
        store.indexes.blocked(document, reason, there)


def _indexes_there(store: StoreState) -> Flow[list[dict[str, Any]] | None]:
    """Return the indexes; None if the user may not look."""
    reply = yield from _look(operations.list_indexes(store.jobs.name, WRITE_TIMEOUT_MS))
    return None if reply is None else reply.get("cursor", {}).get("firstBatch", [])


def _key_index_there(store: StoreState, queue: str) -> Flow[bool | None]:
    """Return whether the index that keeps keys unique is there; None if the user may not look.

    It costs a round trip, and only who puts with a key pays it.
    """
    there = yield from _indexes_there(store)
    if there is not None:
        store.indexes.keys_kept(there)
        return _serves(there, "key")
    reply = yield from _look(operations.explain_key(store.jobs.name, queue))
    return None if reply is None else operations.plan_keeps_keys_unique(reply)


def _look(command: operations.Document) -> Flow[dict[str, Any] | None]:
    """Send a look at the indexes; empty if there are none, None if the user may not look.

    Sent again when the connection broke, as pymongo does with its own reads: an election must not
    fail the put that the look is for.
    """
    try:
        try:
            reply: dict[str, Any] = yield Command(command)
        except AutoReconnect:
            reply = yield Command(command)
        return reply
    except OperationFailure as error:
        if error.code in operations.NOT_THERE:
            return {}
        if error.code in operations.NOT_ALLOWED:
            return None
        raise


def look_up(_store: StoreState, command: operations.Find) -> Flow[list[dict[str, Any]]]:
    """Read what says more of an error: empty for a user who may not, as a producer.

    By majority, so that what it says is never undone, whoever is the primary by now: a put may
    succeed because of it.
    """
    try:
        found: list[dict[str, Any]] = yield Read(command, committed=True)
        return found
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise
        return []
