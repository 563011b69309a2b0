"""Workers in the test's event loop, and a queue to connection them from outside."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from pymongo import MongoClient, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from tests.leftovers import failpoints_switched_off
from tests.worker.members import Members
from tests.worker.processes import WorkerProcess
from tests.worker.started import WorkerStarter


@pytest.fixture
def jobs(client: MongoClient[dict[str, Any]]) -> Iterator[Collection[dict[str, Any]]]:
    """As everywhere, but dropped without waiting for the journal: a tenth of a second per test."""
    name = f"test_{secrets.token_hex(6)}"
    with failpoints_switched_off(client):
        yield client[name].jobs
    client.get_database(name, write_concern=WriteConcern(1)).command("dropDatabase")


@pytest.fixture
async def queue(async_jobs: AsyncCollection[dict[str, Any]]) -> AsyncIterator[AsyncMongoQueue]:
    """The queue ``default``, on a client of its own."""
    async with AsyncMongoQueue(async_jobs) as queue:
        yield queue


@pytest.fixture
async def start(uri: str, jobs: Collection[dict[str, Any]]) -> AsyncIterator[WorkerStarter]:
    """Starts workers: ``worker = await start(handler, concurrency=2)``."""
    async with anyio.create_task_group() as tasks:
        starter = WorkerStarter(uri, jobs.database.name, jobs.name, tasks)
        yield starter
        await starter.end()


@pytest.fixture
async def members(start: WorkerStarter) -> AsyncIterator[Members]:
    """Starts dispatchers and members: ``await members.open()``, ``await members.start(…)``."""
    members = Members(start)
    yield members
    await members.end()


@pytest.fixture
def spawn(uri: str, jobs: Collection[dict[str, Any]]) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts worker processes on the test's collection; returns one once its stream is open."""
    processes: list[WorkerProcess] = []

    def spawn(**settings: Any) -> WorkerProcess:
        process = WorkerProcess(
            uri, jobs.database.name, jobs.name, **{"max_await": 0.1, **settings}
        )
        processes.append(process)
        process.until_said("ready")
        return process

    yield spawn
    for process in processes:
        process.end()
