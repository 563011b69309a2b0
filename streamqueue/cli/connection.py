"""The database that a command is for, and the event loop of those that need one."""

from __future__ import annotations

import importlib
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pymongo.errors
from pymongo import AsyncMongoClient, MongoClient

from ..errors import ConfigurationError
from ..queue.blocking import MongoQueue
from .loading import NO_DATABASE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.database import Database

    from .command import Options


@contextmanager
def open_database(options: Options) -> Iterator[Database[Any]]:
    if not options.uri:
        raise ConfigurationError(
            "which MongoDB? give --uri mongodb://host/database?replicaSet=name, or set "
            "STREAMQUEUE_URI or STREAMQUEUE_URI_FILE (for a local one, run `streamqueue server`)"
        )
    settings = _client_settings(options, "streamqueue-cli")
    with MongoClient[dict[str, Any]](options.uri, **settings) as client:
        try:
            database = client.get_default_database()
        except pymongo.errors.ConfigurationError:
            raise ConfigurationError(NO_DATABASE) from None
        yield database


def _client_settings(options: Options, app_name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"appname": app_name, "tz_aware": True}
    if "serverselectiontimeoutms" not in options.uri.lower():
        settings["serverSelectionTimeoutMS"] = 5000  # a person waits; pymongo's default is 30 s
    return settings


@asynccontextmanager
async def open_async_jobs(options: Options, app_name: str) -> AsyncIterator[AsyncCollection[Any]]:
    """The same with the async client, for what is written for the worker."""
    with open_database(options) as database:  # checks the address; nothing is sent yet
        settings = _client_settings(options, app_name)
        async with AsyncMongoClient[dict[str, Any]](options.uri, **settings) as client:
            yield client[database.name][options.collection]


@contextmanager
def open_queue(options: Options) -> Iterator[MongoQueue]:
    with open_database(options) as database:
        yield MongoQueue(database[options.collection], name=options.queue)


def run_in_loop(function: Callable[[], Awaitable[None]]) -> None:
    """Run it in an event loop, that of uvloop where it is installed."""
    try:
        importlib.import_module("uvloop")
    except ImportError:
        has_uvloop = False
    else:
        has_uvloop = True
    anyio.run(function, backend_options={"use_uvloop": has_uvloop})
