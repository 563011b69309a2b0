"""``streamqueue init``: the indexes and the validator of a collection, ahead of time."""

from __future__ import annotations

from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from pymongo import UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, OperationFailure

from ..errors import StreamQueueError
from ..plain import printable
from ..protocol import operations
from ..protocol.document import BARE_CODEC
from ..protocol.schema import (
    BUCKETS_INDEX,
    EARLIER_KEY_INDEX,
    FEATURE_INDEXES,
    INDEXES,
    SUPERSEDED_INDEXES,
    VALIDATOR,
)
from ..store.blocking import Store
from ..store.collection import WRITE_TIMEOUT_MS, check_hello, rates_beside
from ..store.indexes import check_kind, conflict
from .command import Options, command, setting
from .connection import open_database
from .options import WHERE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pymongo.synchronous.database import Database

GONE = {27: "IndexNotFound"}
"""Errors of dropping an index that say that somebody else has done so."""
PLACES_AT_ONCE = 1000
"""Jobs of an earlier version that one command brings up to date."""


@command(
    *WHERE,
    setting(
        "--validator",
        "also make the server refuse documents that are not jobs",
        is_flag=True,
    ),
    setting(
        "--features",
        "also create the indexes that keep=, limits, and put with key=, group= or expires= need, "
        "which their first use creates otherwise",
        is_flag=True,
    ),
    setting(
        "--keep-earlier",
        "leave the indexes of earlier versions, for as long as consumers of such a version run",
        is_flag=True,
    ),
    example="streamqueue init --validator --features",
)
def init(options: Options) -> None:
    """Create the indexes, check the server, and bring up to date what earlier versions stored."""
    with open_database(options) as database:
        check_hello(database.client.admin.command("hello"))
        check_kind(f"{database.name}.{options.collection}", _description(options, database), None)
        wanted: list[Mapping[str, Any]] = [index.document for index in INDEXES]
        superseded = _superseded(options, database)
        if EARLIER_KEY_INDEX in superseded:
            options.features = True  # keys are in use
            if not _keys_held(options, database):
                superseded.remove(EARLIER_KEY_INDEX)
        if options.features:
            wanted += chain.from_iterable(FEATURE_INDEXES.values())
        new = _create_indexes(options.collection, database, wanted)
        print(printable(f"{database.name}.{options.collection}: {len(wanted)} indexes, {new} new"))
        if superseded:
            _give_places(options, database)
        for name in superseded:
            if not options.keep_earlier and _dropped(options, database, name):
                print(f"{name}, of an earlier version, dropped")
            else:
                print(
                    f"{name} is of an earlier version: drop it when no such version runs any more"
                )
        if options.validator:
            # Moderate: what is no job and is there already can still be buried or given back.
            database.command(
                "collMod", options.collection, validator=VALIDATOR, validationLevel="moderate"
            )
            print("validator installed: the server refuses documents that are not jobs")
        if options.features:
            _prepare_rates(rates_beside(options.collection), database)


def _description(options: Options, database: Database[Any]) -> list[dict[str, Any]] | None:
    """Return the collection as the server describes it; None if the user may not look."""
    try:
        command = operations.describe_collection(options.collection, WRITE_TIMEOUT_MS)
        found: list[dict[str, Any]] = database.command(command)["cursor"]["firstBatch"]
    except OperationFailure as error:
        if error.code not in operations.NOT_ALLOWED:
            raise
        return None
    return found


def _prepare_rates(buckets: str, database: Database[Any]) -> None:
    """Have the server remove what rates leave in this collection, where the user may say so.

    Nothing rests on it, and whoever starts jobs at a rate makes it where it is missing: so a role
    of before there were rates does not fail the rest.
    """
    try:
        new = _create_indexes(buckets, database, [BUCKETS_INDEX])
    except OperationFailure as error:
        if error.code not in operations.NOT_ALLOWED:
            raise
        print(
            f"{BUCKETS_INDEX['name']} of {buckets} is left to the first worker that starts jobs at "
            "a rate: this user has no right to createIndex on it"
        )
    else:
        print(printable(f"{database.name}.{buckets}: 1 index, {new} new"))


def _create_indexes(
    collection: str, database: Database[Any], wanted: Sequence[Mapping[str, Any]]
) -> int:
    """Create these indexes, in the time that it takes; return how many are new. Nothing is
    replaced.

    Raises:
        StreamQueueError: others are in the way of some; the rest has been made.
    """
    concern = {"w": "majority", "wtimeout": WRITE_TIMEOUT_MS}
    command = partial(operations.create_indexes, collection, concern)
    try:
        return _new(database.command(command(wanted)))
    except OperationFailure as error:
        if error.code not in operations.INDEX_ERRORS:
            raise
    new, blocked = 0, []
    for index in wanted:
        try:
            new += _new(database.command(command([index])))
        except OperationFailure as error:
            if error.code not in operations.INDEX_ERRORS:
                raise
            blocked.append((index, error))
    there = _indexes_there(collection, database)
    left = [
        conflict(index, error, there)
        for index, error in blocked
        if not any(operations.serves_as(one, index) for one in there or ())
    ]
    if left:
        raise StreamQueueError("; ".join(left))
    return new


def _superseded(options: Options, database: Database[Any]) -> list[str]:
    """Return the names of indexes that are of no use any more; none for a user who may not look."""
    names = [index["name"] for index in _indexes_there(options.collection, database) or ()]
    return [name for name in names if name in SUPERSEDED_INDEXES]


def _dropped(options: Options, database: Database[Any], name: str) -> bool:
    """Drop an index of an earlier version; return whether this user may."""
    try:
        database.command({"dropIndexes": options.collection, "index": name})
    except OperationFailure as error:
        if error.code not in (*operations.NOT_ALLOWED, *operations.NOT_THERE, *GONE):
            raise
        return error.code not in operations.NOT_ALLOWED
    return True


def _keys_held(options: Options, database: Database[Any]) -> bool:
    """Have the jobs of an earlier version hold their keys; return whether this user may."""
    count = Store(database[options.collection]).hold_earlier_keys()
    if count is None:
        print(
            f"{EARLIER_KEY_INDEX}, of an earlier version, stays: it keeps keys unique of jobs that "
            "this user may not change"
        )
    elif count:
        print(f"{count} jobs of an earlier version hold their keys")
    return count is not None


def _give_places(options: Options, database: Database[Any]) -> None:
    """Give the jobs of an earlier version their places in the order of this one, where the user may
    write jobs. (Else consumers give them places, behind what waits.)"""
    concern = WriteConcern("majority", WRITE_TIMEOUT_MS)
    jobs = database.get_collection(options.collection, BARE_CODEC, write_concern=concern)
    wanted, fields, order, *_ = operations.without_place()
    count = 0
    try:
        found = enumerate(jobs.find(wanted, fields, sort=order))
        while part := list(islice(found, PLACES_AT_ONCE)):
            updates = [operations.give_place(job, number) for number, job in part]
            changes = [UpdateOne(*update) for update in updates if update is not None]
            try:
                count += jobs.bulk_write(changes, ordered=False).modified_count if changes else 0
            except BulkWriteError as error:  # those that the server refuses are placed by a claim
                count += (error.details or {}).get("nModified", 0)
    except OperationFailure as error:
        if error.code not in operations.NOT_ALLOWED:
            raise
        print("ready jobs of an earlier version stand behind new ones: this user may not move them")
    if count:
        print(f"{count} ready jobs of an earlier version given their places in the order")


def _indexes_there(collection: str, database: Database[Any]) -> list[dict[str, Any]] | None:
    """Return the indexes of the collection, or None if the user may not look."""
    try:
        listed = database.command(operations.list_indexes(collection, WRITE_TIMEOUT_MS))
    except OperationFailure as error:
        if error.code in operations.NOT_THERE:  # there is no collection yet
            return []
        if error.code not in operations.NOT_ALLOWED:
            raise
        return None
    there: list[dict[str, Any]] = listed["cursor"]["firstBatch"]
    return there


def _new(made: dict[str, Any]) -> int:
    # The reply says how many are new: to list them would take one more right.
    operations.check_reply(made)
    replies = made.get("raw", {"": made}).values()  # mongos hands on those of the shards
    return max(int(reply["numIndexesAfter"] - reply["numIndexesBefore"]) for reply in replies)
