"""The pytest plugin: a replica set, and a collection of its own for each test.

pytest finds it by itself, in every run where streamqueue is installed: so nothing but pytest is
imported before a fixture is asked for.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo import MongoClient
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.collection import Collection

GIVEN = "STREAMQUEUE_TEST_URI"
"""Names a replica set to use in place of a local one."""


@pytest.fixture(scope="session")
def streamqueue_server() -> Iterator[str]:
    """The URI of a replica set: that of STREAMQUEUE_TEST_URI, or of a local one with one member,
    which is started when the first test asks for it, and stopped at the end of the session."""
    given = os.environ.get(GIVEN)
    if given:
        yield given
        return
    from ..embedded import EmbeddedServer
    from ..errors import EmbeddedServerError

    server = EmbeddedServer()
    try:
        server.start()
    except EmbeddedServerError as error:
        pytest.fail(f"{error}. Or name a replica set in {GIVEN}", pytrace=False)
    with server:
        yield server.uri


@pytest.fixture(scope="session")
def _streamqueue_client(streamqueue_server: str) -> Iterator[MongoClient[dict[str, Any]]]:
    from pymongo import MongoClient

    with MongoClient[dict[str, Any]](streamqueue_server, tz_aware=True) as client:
        yield client


@pytest.fixture
def streamqueue_collection(
    _streamqueue_client: MongoClient[dict[str, Any]],
) -> Iterator[Collection[dict[str, Any]]]:
    """A new blocking ``Collection``, in a database of its own, which is dropped after the test."""
    from pymongo import WriteConcern

    name = f"streamqueue_test_{secrets.token_hex(6)}"
    yield _streamqueue_client[name].jobs
    # Without waiting for the journal, which is a tenth of a second for each test.
    _streamqueue_client.get_database(name, write_concern=WriteConcern(1)).command("dropDatabase")


@pytest.fixture
def streamqueue_jobs(
    streamqueue_server: str, streamqueue_collection: Collection[dict[str, Any]]
) -> Iterator[AsyncCollection[dict[str, Any]]]:
    """The same collection as an ``AsyncCollection``, for the event loop that first uses it.

    Its client is closed in that loop: at the end of the test, or of the loop if that comes first.
    """
    from pymongo import AsyncMongoClient

    from ..driver import ClosedWithItsLoop

    closing = ClosedWithItsLoop()
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
        streamqueue_server, tz_aware=True, event_listeners=[closing]
    )
    closing.client = client
    yield client[streamqueue_collection.database.name][streamqueue_collection.name]
    closing.close()
