"""The indexes of a collection: asked for, looked at, told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..schema import KEY_INDEX
from ..unique import TaskKey
from .keys.unique import holders
from .replies import DUPLICATE_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .commands import Document


INDEX_ERRORS = {
    67: "CannotCreateIndex",
    68: "IndexAlreadyExists",
    85: "IndexOptionsConflict",
    86: "IndexKeySpecsConflict",
    197: "InvalidIndexSpecificationOption",
    DUPLICATE_KEY: "DuplicateKey",
}
"""Errors that stand in the way of one index, until somebody removes what does: another index, or
two live jobs with one key. They are no reason to do without the others, nor to stop the work."""


def create_indexes(
    collection: str,
    write_concern: Document,
    indexes: Sequence[Mapping[str, Any]],
    *,
    limit_ms: int | None = None,
) -> Document:
    """Make sure of these indexes. As a command, because pymongo's own call keeps the
    reply to itself, which alone says how many there were before.

    A majority of the members is asked to be ready, as for any write: by default the server waits
    for all of them, for ever when one is down. Without a limit it also waits for ever for whoever
    has the collection, as a transaction of the caller's, and everybody else behind it.
    """
    return {
        "createIndexes": collection,
        "indexes": list(indexes),
        "commitQuorum": "majority",
        "writeConcern": write_concern,
        **({} if limit_ms is None else {"maxTimeMS": limit_ms}),
    }


def describe_collection(collection: str, limit_ms: int) -> Document:
    """Ask what kind of collection it is."""
    return {
        "listCollections": 1,
        "cursor": {},
        "filter": {"name": {"$eq": collection}},
        "maxTimeMS": limit_ms,
    }


def serves_as(index: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether this index, as the server lists it, does what the wanted one would, by what it is."""
    return (
        list(index.get("key", {}).items()) == list(wanted["key"].items())
        and index.get("partialFilterExpression") == wanted.get("partialFilterExpression")
        and bool(index.get("unique")) is bool(wanted.get("unique"))
        and index.get("expireAfterSeconds") == wanted.get("expireAfterSeconds")
        and not _OF_ANOTHER_KIND & index.keys()
    )


_OF_ANOTHER_KIND = {"sparse", "hidden", "collation"}


def in_the_way(index: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the wanted one cannot be made because this one is there."""
    return bool(index.get("name") == wanted["name"] or index.get("key") == wanted["key"])


def list_indexes(collection: str, limit_ms: int) -> Document:
    """List the indexes; those that are being built, which refuse nothing yet, can be told apart.

    There are at most 64 to a collection, so the first batch has them all. Limited, because it waits
    behind whoever waits to lock the collection, who may wait for a transaction of the caller's.
    """
    return {
        "listIndexes": collection,
        "cursor": {},
        "includeBuildUUIDs": True,
        "maxTimeMS": limit_ms,
    }


def explain_key(collection: str, queue: str) -> Document:
    """Ask how the holder of a key would be found with the index that keeps keys unique: for a user
    who may find jobs and not list indexes. An error (2) when there is no such index."""
    find = {
        "find": collection,
        "filter": holders(queue, TaskKey("")).filter,
        "hint": KEY_INDEX["name"],
        "limit": 1,
    }
    return {"explain": find, "verbosity": "queryPlanner"}


NOT_THERE = {26: "NamespaceNotFound", 2: "BadValue"}
"""Errors of the two that say that there is no such index: the second, that a hint names none."""


NOT_ALLOWED = {
    13: "Unauthorized",
    72: "InvalidOptions",
    323: "APIStrictError",
    40415: "unknown field",
}
"""Errors of a look that is not for this user, for this client, or for this server."""


def keeps_keys_unique(index: Mapping[str, Any]) -> bool:
    """Whether this index, as the server lists it, is the one that keys rest on, by what it is.

    One that is being built is listed inside of another document, so it is not.
    """
    return (
        index.get("unique") is True
        and list(index.get("key", {}).items()) == list(KEY_INDEX["key"].items())
        and index.get("partialFilterExpression") == KEY_INDEX["partialFilterExpression"]
    )


def plan_keeps_keys_unique(plan: object) -> bool:
    """The same of the answer to :func:`explain_key`, whose shape differs between versions.

    The server uses no index that leaves out some of the live jobs.
    """
    if isinstance(plan, list):
        return any(map(plan_keeps_keys_unique, plan))
    if not isinstance(plan, dict):
        return False
    found = plan.get("indexName") == KEY_INDEX["name"] and plan.get("isUnique") is True
    if found and list(plan["keyPattern"].items()) == list(KEY_INDEX["key"].items()):
        return True
    return any(map(plan_keeps_keys_unique, plan.values()))
