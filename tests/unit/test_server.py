"""What is checked of a server and of its client before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, ConfigurationError, MongoQueue, ReplicaSetRequired
from streamqueue.protocol.document import CODEC, object_id
from streamqueue.store.collection import check_hello, jobs_collection

URI = "mongodb://nowhere.invalid/?replicaSet=rs0"


@pytest.fixture
def blocking() -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient(URI, connect=False) as client:
        yield client


# The server.


@pytest.mark.parametrize(
    "hello", [{"setName": "rs0", "isWritablePrimary": False}, {"msg": "isdbgrid"}]
)
def test_a_replica_set_and_a_mongos_will_do(hello: dict[str, Any]) -> None:
    check_hello(hello)


@pytest.mark.parametrize(
    ("hello", "cause"),
    [
        ({"isWritablePrimary": True}, "standalone"),
        ({"isreplicaset": True, "isWritablePrimary": False}, "never initiated"),
    ],
)
def test_a_server_without_change_streams_is_refused_with_the_cause(
    hello: dict[str, Any], cause: str
) -> None:
    with pytest.raises(ReplicaSetRequired, match=cause):
        check_hello(hello)


# The collection.


@pytest.mark.parametrize(
    "settings", ["w=0", "w=1", "journal=false", "readPreference=secondary", "tz_aware=false"]
)
def test_the_users_concerns_are_not_inherited(settings: str) -> None:
    with MongoClient(f"{URI}&{settings}", connect=False) as client:
        jobs = jobs_collection(client.db.jobs, Collection)

    assert jobs.write_concern == WriteConcern("majority", wtimeout=10_000)
    assert jobs.read_concern == ReadConcern("local")
    assert jobs.read_preference == ReadPreference.PRIMARY
    assert jobs.codec_options == CODEC


def test_the_users_collection_is_not_changed(blocking: MongoClient[Any]) -> None:
    collection = blocking.db.get_collection("jobs", write_concern=WriteConcern(1))

    jobs_collection(collection, Collection)

    assert collection.write_concern == WriteConcern(1)


def test_a_database_stands_for_its_jobs_collection(blocking: MongoClient[Any]) -> None:
    assert jobs_collection(blocking.db, Collection).full_name == "db.jobs"


@pytest.mark.parametrize("settings", ["retryWrites=false", "retryWrites=false&w=majority"])
def test_a_client_that_does_not_repeat_writes_is_refused(settings: str) -> None:
    with (
        MongoClient(f"{URI}&{settings}", connect=False) as client,
        pytest.raises(ConfigurationError, match="remove retryWrites=false"),
    ):
        MongoQueue(client.db.jobs)


async def test_an_async_collection_is_refused_by_the_blocking_queue() -> None:
    async with AsyncMongoClient(URI, connect=False) as client:
        with pytest.raises(ConfigurationError, match="for an AsyncCollection use AsyncMongoQueue"):
            MongoQueue(client.db.jobs)  # type: ignore[arg-type]


async def test_an_async_database_is_refused_by_the_blocking_queue() -> None:
    async with AsyncMongoClient(URI, connect=False) as client:
        with pytest.raises(ConfigurationError, match="for an AsyncCollection use AsyncMongoQueue"):
            MongoQueue(client.db)  # type: ignore[arg-type]


def test_a_blocking_collection_is_refused_by_the_async_queue(blocking: MongoClient[Any]) -> None:
    with pytest.raises(ConfigurationError, match="for a blocking Collection use MongoQueue"):
        AsyncMongoQueue(blocking.db.jobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, "jobs", {"jobs": 1}, 5, object()])
@pytest.mark.parametrize("kind", [Collection, AsyncCollection])
def test_what_is_no_collection_is_refused(given: object, kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"the queue needs a pymongo {kind.__name__}"):
        jobs_collection(given, kind)


def test_a_client_is_no_collection(blocking: MongoClient[Any]) -> None:
    with pytest.raises(ConfigurationError, match="not MongoClient"):
        MongoQueue(blocking)  # type: ignore[arg-type]


# Ids.


def test_a_job_id_may_be_given_as_text() -> None:
    id_ = ObjectId()

    assert object_id(str(id_)) == object_id(id_) == id_


@pytest.mark.parametrize(
    "value",
    [None, 5, "", "x", "0" * 23, b"0" * 12, {"$ne": None}, {"$gt": ObjectId()}, [ObjectId()]],
)
def test_what_is_no_job_id_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="a job id is an ObjectId"):
        object_id(value)


# Nothing is sent early.


def test_a_queue_sends_nothing_when_it_is_made(blocking: MongoClient[Any]) -> None:
    queue = MongoQueue(blocking.db.jobs)  # whose server does not exist

    assert queue.name == "default"
