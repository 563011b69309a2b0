"""What a test may leave switched on at the server that all share, and how it is switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue.protocol.schema import FEATURE_INDEXES, INDEXES

FAILPOINTS = ("failCommand", "hangAfterStartingIndexBuild")
"""Every failpoint that a test sets."""

OURS: dict[str, dict[str, Any]] = {"_id_": {"_id": 1}} | {
    index["name"]: dict(index["key"])
    for index in chain((model.document for model in INDEXES), *FEATURE_INDEXES.values())
}
"""The keys of every index that a queue makes, by its name."""


@contextmanager
def failpoints_switched_off(client: MongoClient[Any]) -> Iterator[None]:
    """Switch the failpoints off at the end: one that stays fails whichever test is next."""
    try:
        yield
    finally:
        for name in FAILPOINTS:
            client.admin.command("configureFailPoint", name, mode="off")


@contextmanager
def collection_left_plain(collection: Collection[Any]) -> Iterator[None]:
    """Take the collection's validator, its database's profiling, and the indexes that no queue of
    this version makes, back at the end.

    For a collection that several tests have one after the other; a dropped one has none of these.
    """
    try:
        yield
    finally:
        collection.database.command("profile", 0)
        if collection.options():
            collection.database.command("collMod", collection.name, validator={})
        for index in collection.list_indexes():
            if OURS.get(index["name"]) != dict(index["key"]):
                collection.drop_index(index["name"])
