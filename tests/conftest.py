"""A real replica set for every test that asks for one, and a database of its own for each test.

``STREAMQUEUE_TEST_URI`` names a replica set to use; otherwise a local one is started.
"""

from __future__ import annotations

import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue.embedded import EmbeddedServer
from tests.leftovers import failpoints_switched_off

GOLDEN_RATIO = (5**0.5 - 1) / 2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the cases of a test that has more than it is to run each time.

    Those that are left are spread unevenly, so that each parameter has some: by the golden ratio.
    """
    cases: dict[tuple[Any, str], list[pytest.Item]] = defaultdict(list)
    shares: dict[tuple[Any, str], int] = {}
    for item in items:
        if few := item.get_closest_marker("few"):
            test = item.parent, getattr(item, "originalname", item.name)
            cases[test].append(item)
            (shares[test],) = few.args
    for test, every in cases.items():
        order = sorted(range(len(every)), key=lambda number: number * GOLDEN_RATIO % 1)
        for number in order[shares[test] :]:
            every[number].add_marker("slow")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"  # pymongo's async client runs on nothing else


@pytest.fixture(scope="session")
def uri() -> Iterator[str]:
    """The address of a one-node replica set whose failpoints work."""
    given = os.environ.get("STREAMQUEUE_TEST_URI")
    if given:
        yield given
        return
    with EmbeddedServer(test_commands=True) as server:
        yield server.uri


@pytest.fixture(scope="session")
def client(uri: str) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient(uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def jobs(client: MongoClient[dict[str, Any]]) -> Iterator[Collection[dict[str, Any]]]:
    """A new collection on a blocking client, for queues and for looking at documents.

    A failpoint that a test leaves on is off afterwards.
    """
    name = f"test_{secrets.token_hex(6)}"
    with failpoints_switched_off(client):
        yield client[name].jobs
    client.drop_database(name)


@pytest.fixture
async def async_jobs(
    uri: str, jobs: Collection[dict[str, Any]]
) -> AsyncIterator[AsyncCollection[dict[str, Any]]]:
    """The same collection on an async client of this test's event loop."""
    async with AsyncMongoClient(uri, tz_aware=True) as client:
        yield client[jobs.database.name].jobs
