"""Puts that share a write: what one of them is told or does reaches no other."""

from __future__ import annotations

import asyncio  # noqa: TID251 - applications cancel with asyncio's own means too
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pymongo
import pytest
from anyio.lowlevel import checkpoint
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import Commands

APP = "streamqueue-test-puts"


@pytest.fixture
def heard() -> Commands:
    return Commands()


@pytest.fixture
async def queue(uri: str, jobs: Collection[Any], heard: Commands) -> AsyncIterator[AsyncMongoQueue]:
    """A queue on a client of its own, whose commands are heard."""
    async with (
        AsyncMongoClient[Any](uri, event_listeners=[heard], appname=APP) as client,
        AsyncMongoQueue(client[jobs.database.name].jobs) as queue,
    ):
        await queue.size()
        yield queue


def stored(jobs: Collection[Any]) -> list[str]:
    return sorted(job["payload"]["who"] for job in jobs.find())


async def test_a_time_limit_of_one_putter_is_no_others(
    queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    outcomes: dict[str, object] = {}

    async def put(who: str, limit: float | None) -> None:
        try:
            if limit is None:
                outcomes[who] = await queue.put({"who": who})
            else:
                with pymongo.timeout(limit):
                    outcomes[who] = await queue.put({"who": who})
        except PyMongoError as error:
            outcomes[who] = error

    with failing(client, "insert", app=APP, blockConnection=True, blockTimeMS=300):
        async with anyio.create_task_group() as tasks:
            for who, limit in (("first", None), ("hasty", 0.1), ("patient", None), ("long", 60)):
                tasks.start_soon(put, who, limit)
                await checkpoint()

    assert {who for who, outcome in outcomes.items() if isinstance(outcome, ObjectId)} == {
        "first",
        "patient",
        "long",
    }
    assert isinstance(outcomes["hasty"], PyMongoError)


async def test_puts_at_the_same_time_share_their_writes(
    queue: AsyncMongoQueue, heard: Commands
) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(queue.put, {"who": "me"})

    assert len(heard.named("insert")) == 2  # the first alone, and the rest behind it


@pytest.mark.parametrize("settings", [{"key": "k"}, {"job_id": ObjectId()}])
async def test_what_may_meet_another_job_shares_no_write(
    queue: AsyncMongoQueue, heard: Commands, settings: Any
) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(queue.put, {"who": "first"})
        tasks.start_soon(lambda: queue.put({"who": "me"}, **settings))
        tasks.start_soon(queue.put, {"who": "last"})

    assert sorted(len(sent.command["documents"]) for sent in heard.named("insert")) == [1, 1, 2]


async def test_a_group_whose_leader_is_cancelled_by_asyncio_is_sent_once(
    queue: AsyncMongoQueue, jobs: Collection[Any], heard: Commands, client: MongoClient[Any]
) -> None:
    slow = {"blockConnection": True, "blockTimeMS": 100}
    with failing(client, "insert", app=APP, **slow):
        first = asyncio.ensure_future(queue.put({"who": "first"}))
        await checkpoint()
        leader = asyncio.ensure_future(queue.put({"who": "leader"}))
        await checkpoint()
        other = asyncio.ensure_future(queue.put({"who": "other"}))
        await wait_until_async(lambda: len(heard.named("insert")) == 2, "the group is sent")
        leader.cancel()
        await asyncio.wait([first, leader, other])

    assert leader.cancelled()
    assert len(heard.named("insert")) == 2
    assert stored(jobs) == ["first", "leader", "other"]


async def test_a_put_that_the_server_holds_up_delays_others_for_a_moment(
    queue: AsyncMongoQueue, jobs: Collection[Any], async_client: AsyncMongoClient[Any]
) -> None:
    # By a user's own index, so that nothing tells it from others beforehand.
    index = jobs.create_index("payload.order", unique=True, sparse=True)
    try:
        async with anyio.create_task_group() as tasks, async_client.start_session() as session:
            await session.start_transaction()
            theirs = async_client[jobs.database.name].jobs
            await theirs.insert_one({"payload": {"order": 5}}, session=session)
            tasks.start_soon(queue.put, {"who": "held up", "order": 5})
            await checkpoint()
            with anyio.fail_after(10):
                for n in range(3):
                    await queue.put({"who": str(n)})
            while_held = stored(jobs)
            await session.abort_transaction()
    finally:
        jobs.drop_index(index)

    assert while_held == ["0", "1", "2"]
    assert stored(jobs) == ["0", "1", "2", "held up"]
