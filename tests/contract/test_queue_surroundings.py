"""Surroundings in which a queue cannot keep its promises: it says so before anything is lost."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import NotPrimaryError, PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, ForeignLoop, MongoQueue, ReplicaSetRequired
from streamqueue.embedded import find_mongod
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.store.blocking import Store
from tests.waiting import wait_until

ENDS_WITH_US = '"$@" & read -r _; kill -9 $!; wait'
"""Shell: run a program until standard input ends, which it does when this process is gone."""


@contextmanager
def plain_mongod(*arguments: str) -> Iterator[str]:
    """A mongod nobody made a replica set of, on a Unix socket; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "mongod.sock")
        mongod: list[Any] = [find_mongod(), "--dbpath", folder, "--bind_ip", socket, *arguments]
        process = subprocess.Popen(
            ["sh", "-c", ENDS_WITH_US, "sh", *mongod, "--wiredTigerCacheSizeGB", "0.25"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"mongodb://{quote_plus(str(socket))}/?directConnection=true"
            with MongoClient(address, serverSelectionTimeoutMS=200) as client:
                wait_until(lambda: answers(client), "mongod answers", within=30)
            yield address
        finally:
            process.communicate()


def answers(client: MongoClient[Any]) -> bool:
    try:
        client.admin.command("hello")
    except PyMongoError:
        return False
    return True


@pytest.fixture(scope="module")
def standalone() -> Iterator[str]:
    with plain_mongod() as address:
        yield address


USES: dict[str, Callable[[Any], Any]] = {
    "put": lambda queue: queue.put({}),
    "put_many": lambda queue: queue.put_many([{}]),
    "next": lambda queue: queue.next(),
    "wait": lambda queue: queue.next(wait=60),
    "stats": lambda queue: queue.stats(),
    "repair": lambda queue: queue.repair(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_standalone_server_is_refused_by_the_first_call(
    standalone: str, use: Callable[[MongoQueue], object]
) -> None:
    with (
        MongoClient(standalone) as client,
        MongoQueue(client.db.jobs) as queue,
        pytest.raises(ReplicaSetRequired, match="standalone"),
    ):
        use(queue)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_standalone_server_is_refused_by_the_first_async_call(
    standalone: str, use: Callable[[AsyncMongoQueue], Any]
) -> None:
    async with AsyncMongoClient(standalone) as client, AsyncMongoQueue(client.db.jobs) as queue:
        with pytest.raises(ReplicaSetRequired, match="standalone"):
            await use(queue)


def test_a_standalone_server_goes_on_being_refused(standalone: str) -> None:
    with MongoClient(standalone) as client, MongoQueue(client.db.jobs) as queue:
        with pytest.raises(ReplicaSetRequired):
            queue.put({})

        with pytest.raises(ReplicaSetRequired):
            queue.put({})


def test_the_refusal_says_how_to_start_a_replica_set(standalone: str) -> None:
    with (
        MongoClient(standalone) as client,
        MongoQueue(client.db.jobs) as queue,
        pytest.raises(ReplicaSetRequired) as caught,
    ):
        queue.put({})

    assert "mongod --replSet rs0" in str(caught.value)
    assert "rs.initiate()" in str(caught.value)


def test_nothing_is_stored_on_a_standalone_server(standalone: str) -> None:
    with MongoClient(standalone) as client, MongoQueue(client.untouched.jobs) as queue:
        with pytest.raises(ReplicaSetRequired):
            queue.put({})

        assert client.untouched.list_collection_names() == []


def test_a_member_that_was_never_initiated_is_refused_with_the_cause() -> None:
    with (
        plain_mongod("--replSet", "rs0") as address,
        MongoClient(address) as client,
        MongoQueue(client.db.jobs) as queue,
        pytest.raises(ReplicaSetRequired, match="never initiated"),
    ):
        queue.put({})


def test_a_member_that_is_not_initiated_again_is_an_outage_to_who_has_used_it_before() -> None:
    """As after a start with an empty disk: it is asked for its time by all that runs on."""
    with plain_mongod("--replSet", "rs0") as address, MongoClient(address) as client:
        store = Store(client.db.jobs)
        store.clock.observe(datetime.now(UTC), 0, 0)
        assert store.clock.stale

        with pytest.raises(NotPrimaryError):  # of what is sent next: the indexes
            store.prepare()

        assert not store.clock.stale  # nobody asks again at once


async def test_nor_is_it_refused_by_the_async_store() -> None:
    with plain_mongod("--replSet", "rs0") as address:
        async with AsyncMongoClient(address) as client:
            store = AsyncStore(client.db.jobs)
            store.clock.observe(datetime.now(UTC), 0, 0)

            with pytest.raises(NotPrimaryError):
                await store.prepare()


def test_a_second_event_loop_is_refused(uri: str, jobs: Collection[Any]) -> None:
    with start_blocking_portal() as first_loop:
        client: AsyncMongoClient[Any] = first_loop.call(AsyncMongoClient, uri)
        queue = AsyncMongoQueue(client[jobs.database.name].jobs)
        first_loop.call(queue.put, {})

        try:
            with pytest.raises(ForeignLoop, match="inside this loop"):
                anyio.run(queue.put, {})
        finally:
            first_loop.call(client.close)


def test_a_refused_loop_does_not_disturb_the_first(uri: str, jobs: Collection[Any]) -> None:
    with start_blocking_portal() as first_loop:
        client: AsyncMongoClient[Any] = first_loop.call(AsyncMongoClient, uri)
        queue = AsyncMongoQueue(client[jobs.database.name].jobs)
        first_loop.call(queue.put, {})
        with pytest.raises(ForeignLoop):
            anyio.run(queue.put, {})

        size = first_loop.call(queue.size)
        first_loop.call(client.close)

    assert size == 1


FORKS = """
import os, sys
from pymongo import MongoClient
from streamqueue import ForkedProcess, MongoQueue

queue = MongoQueue(MongoClient(sys.argv[1])[sys.argv[2]].jobs)
queue.put({"by": "the parent"})
held = queue.next()
queue.put({"by": "the parent"})

child = os.fork()
if child == 0:
    try:
        %s
    except ForkedProcess as error:
        print(error, flush=True)
        os._exit(0)
    os._exit(1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, "the child was let through"
assert queue.next().data == {"by": "the parent"}
held.complete()
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        'queue.put({"by": "the child"})',
        "queue.next(wait=60)",
        "next(iter(queue))",
        "queue.stats()",
        "held.complete()",
    ],
)
def test_a_queue_made_before_a_fork_is_refused_in_the_child(
    uri: str, jobs: Collection[Any], use: str
) -> None:
    program = [sys.executable, "-W", "error", "-c", FORKS % use, uri, jobs.database.name]

    finished = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)

    assert (finished.returncode, finished.stderr) == (0, "")
    assert "make the MongoClient and the queue in the child" in finished.stdout
    assert jobs.count_documents({}) == 1
