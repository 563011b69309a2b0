"""A reply that says two things: that something is there, and that the majority may not have it."""

from __future__ import annotations

from typing import Any

import pymongo
import pytest
from bson import ObjectId
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteConcernError, WTimeoutError
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, DuplicateJob, MongoQueue, NewJob
from tests.contract.looks import document
from tests.contract.shells import Shell
from tests.worker.faults import failing
from tests.worker.started import Commands

LATE = {"code": 64, "errmsg": "waiting for replication timed out", "errInfo": {"wtimeout": True}}


async def test_a_repeated_put_whose_majority_is_in_doubt_has_not_succeeded(
    queue: Any, client: MongoClient[Any]
) -> None:
    job_id = await queue.put({"n": 1}, job_id=ObjectId())

    with failing(client, "insert", app=None, writeConcernError=LATE), pytest.raises(WTimeoutError):
        await queue.put({"n": 1}, job_id=job_id)


async def test_the_key_of_a_job_that_the_majority_may_not_have_is_not_taken(
    queue: Any, client: MongoClient[Any]
) -> None:
    await queue.put({}, key="k")

    with failing(client, "insert", app=None, writeConcernError=LATE), pytest.raises(WTimeoutError):
        await queue.put({}, key="k")


async def test_a_doubt_that_is_no_timeout_wins_as_well(
    queue: Any, client: MongoClient[Any]
) -> None:
    await queue.put({}, key="k")
    doubt = {"code": 100, "errmsg": "not enough data-bearing nodes"}

    with (
        failing(client, "insert", app=None, writeConcernError=doubt),
        pytest.raises(WriteConcernError),
    ):
        await queue.put({}, key="k")


async def test_a_clash_with_an_index_of_the_user_in_doubt_is_a_doubt(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await queue.put({"order": 5})
    index = jobs.create_index("payload.order", unique=True)

    try:
        with (
            failing(client, "insert", app=None, writeConcernError=LATE),
            pytest.raises(WTimeoutError),
        ):
            await queue.put({"order": 5})
    finally:
        jobs.drop_index(index)


async def test_a_dead_job_is_not_refused_for_a_key_that_may_not_be_taken(
    queue: Any, client: MongoClient[Any]
) -> None:
    dead = await queue.put({}, key="k", max_attempts=1)
    await (await queue.next()).error("oops")
    await queue.put({}, key="k")

    with failing(client, "update", app=None, writeConcernError=LATE), pytest.raises(WTimeoutError):
        await queue.requeue(dead)
    with pytest.raises(DuplicateJob):
        await queue.requeue(dead)


async def test_many_repeated_puts_in_doubt_have_not_succeeded(
    shell: Shell, client: MongoClient[Any]
) -> None:
    registry = CollectorRegistry()
    queue = shell.queue(registry=registry)
    many = [NewJob({"n": n}, job_id=ObjectId()) for n in range(3)]
    await queue.put_many(many[:2])

    with failing(client, "insert", app=None, writeConcernError=LATE), pytest.raises(BulkWriteError):
        await queue.put_many(many)

    results = {"queue": "default", "result": "inserted"}
    assert registry.get_sample_value("streamqueue_jobs_put_total", results) == 2


async def test_what_a_refused_put_says_does_not_quote_its_payload(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"order": 5}, job_id=ObjectId())
    index = jobs.create_index("payload.order", unique=True)

    try:
        with pytest.raises(DuplicateKeyError) as caught:
            await queue.put({"order": 5, "card": "4111-1111"}, job_id=ObjectId())
    finally:
        jobs.drop_index(index)

    assert "4111" not in str(caught.value)


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
async def test_a_repeated_put_rests_on_nothing_that_an_election_could_undo(
    uri: str, jobs: Collection[Any], is_async: bool
) -> None:
    heard, job_id = Commands(), ObjectId()
    if is_async:
        async with AsyncMongoClient[Any](uri, event_listeners=[heard]) as client:
            queue = AsyncMongoQueue(client[jobs.database.name].jobs)
            for _ in range(2):
                await queue.put({}, job_id=job_id)
    else:
        with MongoClient[Any](uri, event_listeners=[heard]) as client:
            for _ in range(2):
                MongoQueue(client[jobs.database.name].jobs).put({}, job_id=job_id)

    assert [sent.command["writeConcern"]["w"] for sent in heard.named("insert")] == ["majority"] * 2
    assert [sent.command["readConcern"]["level"] for sent in heard.named("find")] == ["majority"]


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "async"])
async def test_a_put_that_nothing_can_be_in_the_way_of_is_one_command(
    uri: str, jobs: Collection[Any], is_async: bool
) -> None:
    heard = Commands()
    if is_async:
        async with AsyncMongoClient[Any](uri, event_listeners=[heard]) as client:
            queue = AsyncMongoQueue(client[jobs.database.name].jobs)
            await queue.size()
            before = len(heard.all)
            await queue.put({})
            sent = heard.all[before:]
    else:
        with MongoClient[Any](uri, event_listeners=[heard]) as client:
            blocking = MongoQueue(client[jobs.database.name].jobs)
            blocking.size()
            before = len(heard.all)
            blocking.put({})
            sent = heard.all[before:]

    assert [command.name for command in sent] == ["insert"]


async def test_a_put_under_a_limit_of_the_callers_own_is_repeated_under_it_too(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = ObjectId()

    with pymongo.timeout(60):
        for _ in range(2):
            await queue.put({"n": 1}, job_id=job_id)

    assert document(jobs, job_id)["payload"] == {"n": 1}
