"""What is sent, as data: updates, reads, and commands that pymongo's calls have no place for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ...durations import milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


Item = TypeVar("Item")
Document = dict[str, Any]
Pipeline = list[dict[str, Any]]


class Update(NamedTuple):
    filter: Document
    update: Pipeline


class Find(NamedTuple):
    """A read. One with a `limit` below zero gets what fits into one reply of 16 MB: what anybody
    may have stored (ids of megabytes) must not fill the memory of who looks at it."""

    filter: Document
    projection: Document | None = None
    sort: Sequence[tuple[str, int]] | None = None
    limit: int = 0
    bare: bool = False  # anybody's documents: read so that none can fail it (``foreign.read``)
    hint: Sequence[tuple[str, int]] | None = None  # the keys of the index to use


def as_pipeline(command: Find) -> Pipeline:
    """The same read as an aggregation."""
    pipeline: Pipeline = [{"$match": command.filter}]
    if command.sort:
        pipeline.append({"$sort": dict(command.sort)})
    if command.limit:
        pipeline.append({"$limit": abs(command.limit)})
    if command.projection:
        pipeline.append({"$project": command.projection})
    return pipeline


def union(collection: str, looks: Iterable[Pipeline]) -> Pipeline:
    """Return what several aggregations of a collection find, one after the other."""
    first, *others = looks
    return first + [{"$unionWith": {"coll": collection, "pipeline": look}} for look in others]


def find_once(collection: str, command: Find) -> Document:
    """The same read as a command with one reply, and no cursor after it."""
    return {
        "find": collection,
        "filter": command.filter,
        "projection": command.projection or {},
        "limit": abs(command.limit),
        "batchSize": abs(command.limit),
        "singleBatch": True,
    }


def update_within(
    collection: str, command: Update, limit: float, write_concern: Document
) -> Document:
    """Update many, as a command: pymongo's own call has no place for ``maxTimeMS``."""
    statement = {"q": command.filter, "u": command.update, "multi": True}
    return {
        "update": collection,
        "updates": [statement],
        "maxTimeMS": max(1, milliseconds(limit)),
        "writeConcern": write_concern,
    }


def update_each_within(
    collection: str, updates: Sequence[Update], limit: float, write_concern: Document
) -> Document:
    """Update a document each, whichever of them fail, in the same way."""
    return {
        "update": collection,
        "updates": [{"q": each.filter, "u": each.update, "multi": False} for each in updates],
        "ordered": False,
        "maxTimeMS": max(1, milliseconds(limit)),
        "writeConcern": write_concern,
    }


def delete_within(
    collection: str, wanted: Document, limit: float, write_concern: Document
) -> Document:
    """Delete many, in the same way."""
    return {
        "delete": collection,
        "deletes": [{"q": wanted, "limit": 0}],
        "maxTimeMS": max(1, milliseconds(limit)),
        "writeConcern": write_concern,
    }


def still_meant(update: Update, limit: int) -> Find:
    """The documents that an update would change if it were sent now, by their ids."""
    return Find(update.filter, {"_id": 1}, None, limit, bare=True)


def parts(jobs: Sequence[Item]) -> list[Sequence[Item]]:
    """Parts to send again when one document spoiled an update for all.

    Eight: where the document blocks instead, each level of parts costs the time until that is
    noticed, and of a thousand jobs it is found after four.
    """
    size = max(1, math.ceil(len(jobs) / 8))
    return [jobs[at : at + size] for at in range(0, len(jobs), size)]
