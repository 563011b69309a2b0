"""What a test may leave switched on at the server that all share, and how it is switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

FAILPOINTS = ("failCommand", "hangAfterStartingIndexBuild")
"""Every failpoint that a test sets."""


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
    """Take the collection's validator and its database's profiling back at the end.

    For a collection that several tests have one after the other; a dropped one has neither.
    """
    try:
        yield
    finally:
        collection.database.command("profile", 0)
        if collection.options():
            collection.database.command("collMod", collection.name, validator={})
