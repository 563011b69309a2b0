"""``streamqueue init``: the indexes and the validator of a collection, ahead of time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ..errors import StreamQueueError
from ..plain import printable
from ..protocol import operations
from ..protocol.document import INDEXES, SUPERSEDED_INDEXES, VALIDATOR
from ..store.collection import WRITE_TIMEOUT_MS, check_hello
from ..store.indexes import check_kind, conflict
from .command import Options, command, setting
from .connection import open_database
from .options import WHERE

if TYPE_CHECKING:
    from pymongo.synchronous.database import Database


@command(
    *WHERE,
    setting(
        "--validator",
        "also make the server refuse documents that are not jobs",
        is_flag=True,
    ),
    example="streamqueue init --validator",
)
def init(options: Options) -> None:
    """Create the indexes and check the server."""
    with open_database(options) as database:
        check_hello(database.client.admin.command("hello"))
        check_kind(f"{database.name}.{options.collection}", _description(options, database), None)
        new = _create_indexes(options, database)
        print(printable(f"{database.name}.{options.collection}: {len(INDEXES)} indexes, {new} new"))
        for name in _superseded(options, database):
            print(f"{name} is of an earlier version: drop it when no such version runs any more")
        if options.validator:
            # Moderate: what is no job and is there already can still be buried or given back.
            database.command(
                "collMod", options.collection, validator=VALIDATOR, validationLevel="moderate"
            )
            print("validator installed: the server refuses documents that are not jobs")


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


def _create_indexes(options: Options, database: Database[Any]) -> int:
    """Create the indexes, in the time that it takes; return how many are new. Nothing is replaced.

    Raises:
        StreamQueueError: others are in the way of some; the rest has been made.
    """
    concern = {"w": "majority", "wtimeout": WRITE_TIMEOUT_MS}
    command = partial(operations.create_indexes, options.collection, concern)
    try:
        return _new(database.command(command()))
    except OperationFailure as error:
        if error.code not in operations.INDEX_ERRORS:
            raise
    new, blocked = 0, []
    for index in INDEXES:
        try:
            new += _new(database.command(command([index.document])))
        except OperationFailure as error:
            if error.code not in operations.INDEX_ERRORS:
                raise
            blocked.append((index.document, error))
    there = _indexes_there(options, database)
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
    names = [index["name"] for index in _indexes_there(options, database) or ()]
    return [name for name in names if name in SUPERSEDED_INDEXES]


def _indexes_there(options: Options, database: Database[Any]) -> list[dict[str, Any]] | None:
    """Return the indexes of the collection, or None if the user may not look."""
    try:
        listed = database.command(operations.list_indexes(options.collection, WRITE_TIMEOUT_MS))
    except OperationFailure as error:
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
