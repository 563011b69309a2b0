"""Fixtures of the contract: every test that takes a `shell` or a `queue` runs on both shells."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection

from tests.contract.shells import AsyncShell, BlockingShell, Shell
from tests.leftovers import collection_left_plain, failpoints_switched_off


@pytest.fixture(scope="session")
def contract_collection(client: MongoClient[Any]) -> Iterator[Collection[Any]]:
    name = f"test_{secrets.token_hex(6)}"
    yield client[name].jobs
    client.drop_database(name)


@pytest.fixture
def jobs(contract_collection: Collection[Any]) -> Iterator[Collection[Any]]:
    """An empty collection; one for all tests, because making its indexes takes longer than they.

    A validator, a profiler or a failpoint that a test leaves on is off afterwards.
    """
    contract_collection.delete_many({})
    with (
        collection_left_plain(contract_collection),
        failpoints_switched_off(contract_collection.database.client),
    ):
        yield contract_collection


@pytest.fixture(scope="module")
async def async_client(uri: str) -> AsyncIterator[AsyncMongoClient[Any]]:
    async with AsyncMongoClient(uri, tz_aware=True) as client:
        yield client


@pytest.fixture(params=[BlockingShell, AsyncShell], ids=["blocking", "async"])
async def shell(
    request: pytest.FixtureRequest,
    jobs: Collection[Any],
    client: MongoClient[Any],
    async_client: AsyncMongoClient[Any],
) -> AsyncIterator[Shell]:
    """One of the two shells, on the test's collection."""
    shell = request.param(jobs, client, async_client)
    yield shell
    await shell.close()


@pytest.fixture
def queue(shell: Shell) -> Any:
    """The queue ``default`` as anybody would make it."""
    return shell.queue()
