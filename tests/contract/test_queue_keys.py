"""A key rests on its index: it is there, and is what it has to be, or nothing is put."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, ConfigurationError, DuplicateJob, MongoQueue, NewJob
from streamqueue.protocol.schema import EARLIER_KEY_INDEX, KEY_INDEX
from tests.contract.shells import Shell
from tests.waiting import wait_until_async
from tests.worker.faults import failing

KEY = str(KEY_INDEX["name"])
JOB = {"queue": "default", "state": "ready", "priority": 0, "payload": {}}


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """The collection of all tests, without indexes; the next test makes them again."""
    jobs.insert_one(dict(JOB))
    jobs.drop_indexes()
    yield jobs
    jobs.drop()


def index_names(jobs: Collection[Any]) -> set[str]:
    return set(jobs.index_information()) - {"_id_"}


@contextmanager
def server_fails(client: MongoClient[Any], *commands: str) -> Iterator[None]:
    """Let nobody have the right to these."""
    with failing(client, *commands, app=None, errorCode=13):
        yield


async def taken(put: Any) -> bool:
    """Whether the put is refused because its key is taken."""
    try:
        await put
    except DuplicateJob:
        return True
    return False


async def test_a_dropped_collection_does_not_make_a_key_free_for_two(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k")
    jobs.drop()

    refused = [await taken(queue.put({}, key="k")) for _ in range(3)]

    assert refused == [False, True, True]
    assert len(index_names(jobs)) == 6


async def test_a_dropped_collection_does_not_make_the_keys_of_many_free(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k")
    jobs.drop()

    with pytest.raises(DuplicateJob):
        await queue.put_many([NewJob({}, key="k"), NewJob({}, key="k")])


@contextmanager
def index_builds_hang(client: MongoClient[Any]) -> Iterator[None]:
    name = "hangAfterStartingIndexBuild"
    client.admin.command("configureFailPoint", name, mode="alwaysOn")
    try:
        yield
    finally:
        client.admin.command("configureFailPoint", name, mode="off")


def looks(client: MongoClient[Any]) -> int:
    """How often anybody has listed indexes."""
    commands = client.admin.command("serverStatus")["metrics"]["commands"]
    return int(commands["listIndexes"]["total"])


def builds(client: MongoClient[Any]) -> int:
    """How many clients wait for the indexes; the server's own work on them has none."""
    operations = client.admin.aggregate(
        [
            {"$currentOp": {}},
            {"$match": {"command.createIndexes": "jobs", "client": {"$exists": True}}},
        ]
    )
    return len(list(operations))


async def test_while_the_indexes_are_made_puts_with_a_key_wait_and_others_do_not(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    refused: list[bool] = []

    async def put() -> None:
        refused.append(await taken(queue.put({}, key="k")))

    async with anyio.create_task_group() as tasks:
        with index_builds_hang(client):
            for _ in range(3):
                tasks.start_soon(put)
            await wait_until_async(lambda: builds(client), "the indexes are being made")
            await queue.put({"n": 1})
            with_key = jobs.count_documents({"key": "k"})

    assert with_key == 0
    assert sorted(refused) == [False, True, True]


async def test_with_an_index_that_others_are_making_a_put_with_a_key_waits_too(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    refused: list[bool] = []

    async def put(queue: Any) -> None:
        refused.append(await taken(queue.put({}, key="k")))

    other, queue = shell.queue(), shell.queue()
    for one in (other, queue):
        await one.size()
    jobs.drop_indexes()
    async with anyio.create_task_group() as tasks:
        with index_builds_hang(client):
            tasks.start_soon(put, other)
            # The server lists it from now on, unless it is asked which are being built.
            await wait_until_async(lambda: KEY in index_names(jobs), "another makes the indexes")
            tasks.start_soon(put, queue)
            await wait_until_async(lambda: builds(client) == 2 or refused, "it waits, or is done")
            with_key = jobs.count_documents({"key": "k"})

    assert with_key == 0
    assert sorted(refused) == [False, True]


async def test_another_feature_that_is_used_meanwhile_has_its_index_made_next(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await queue.size()
    jobs.drop_indexes()
    before = looks(client)

    async with anyio.create_task_group() as tasks:
        with index_builds_hang(client):
            tasks.start_soon(partial(queue.put, {}, keep=60))
            await wait_until_async(lambda: builds(client) == 1, "the first one is made")
            tasks.start_soon(partial(queue.put, {}, expires=60))
            await wait_until_async(lambda: looks(client) >= before + 2, "the other one has looked")

    assert jobs.count_documents({"keep": 60}) == 1
    assert jobs.count_documents({"expires_at": {"$exists": True}}) == 1


async def test_without_the_index_and_the_right_to_make_it_a_key_is_refused_in_a_sentence(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    with server_fails(client, "createIndexes"):
        with pytest.raises(
            ConfigurationError, match=r"`streamqueue init` with --features.* right createIndex$"
        ):
            await queue.put({}, key="k")
        await queue.put({"n": 1})

    assert jobs.count_documents({"key": "k"}) == 0
    assert jobs.count_documents({"payload.n": 1}) == 1


async def test_who_may_not_create_indexes_uses_keys_once_the_index_is_there(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await shell.queue().put({}, key="other")

    with server_fails(client, "createIndexes"):
        refused = [await taken(shell.queue().put({}, key="k")) for _ in range(2)]

    assert refused == [False, True]


async def test_who_may_find_and_not_list_indexes_is_not_refused(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await shell.queue().put({}, key="other")

    with server_fails(client, "createIndexes", "listIndexes"):
        refused = [await taken(shell.queue().put({}, key="k")) for _ in range(2)]

    assert refused == [False, True]


@pytest.mark.parametrize("other", [None, {"unique": False}], ids=["missing", "not unique"])
async def test_who_may_find_and_not_list_indexes_is_told_of_the_one_that_is_not_there(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any], other: Any
) -> None:
    if other is not None:
        jobs.database.command("createIndexes", "jobs", indexes=[{**KEY_INDEX, **other}])

    with (
        server_fails(client, "createIndexes", "listIndexes"),
        pytest.raises(ConfigurationError, match="one of which is missing"),
    ):
        await queue.put({}, key="k")


async def test_who_may_create_and_not_look_uses_keys(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    with server_fails(client, "explain", "listIndexes"):
        refused = [await taken(queue.put({}, key="k")) for _ in range(2)]

    assert refused == [False, True]


async def test_who_may_neither_look_nor_create_is_told_so(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await shell.queue().put({}, key="other")  # it is there, and who is to know?

    with (
        server_fails(client, "createIndexes", "explain", "listIndexes"),
        pytest.raises(ConfigurationError, match="give this one listIndexes"),
    ):
        await shell.queue().put({}, key="k")


@pytest.mark.parametrize(
    "other",
    [
        {"unique": False},
        {"key": {"queue": 1, "task": 1, "held_key": 1, "state": 1}},
        {"partialFilterExpression": {"held_key": {"$gte": ""}, "state": "ready"}},
    ],
    ids=["not unique", "other keys", "other jobs"],
)
async def test_an_index_that_only_has_its_name_is_not_taken_for_it_and_stops_nothing_else(
    queue: Any, jobs: Collection[Any], caplog: pytest.LogCaptureFixture, other: Any
) -> None:
    jobs.database.command("createIndexes", "jobs", indexes=[{**KEY_INDEX, **other}])

    await queue.put({"n": 1})
    with pytest.raises(ConfigurationError, match="another index is in its way"):
        await queue.put({}, key="k")

    assert len(index_names(jobs)) == 6  # the others were made
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "keys cannot be used" in caplog.text


async def test_two_jobs_that_hold_a_key_stop_the_index_and_not_the_work(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_many([{**JOB, "held_key": "secret"}, {**JOB, "held_key": "secret"}])

    await queue.put({"n": 1})
    with pytest.raises(ConfigurationError, match="two jobs have one key") as caught:
        await queue.put({}, key="k")

    assert "secret" not in str(caught.value)
    assert index_names(jobs) & {KEY} == set()
    assert len(index_names(jobs)) == 5


def put_earlier(jobs: Collection[Any], key: object) -> Any:
    """A job as an earlier version put it, with the index that such a version made."""
    jobs.create_index(
        [("queue", 1), ("key", 1)],
        name=EARLIER_KEY_INDEX,
        unique=True,
        partialFilterExpression={"key": {"$exists": True}, "state": {"$gte": "ready"}},
    )
    return jobs.insert_one({**JOB, "key": key}).inserted_id


async def test_a_job_of_an_earlier_version_holds_its_key(queue: Any, jobs: Collection[Any]) -> None:
    earlier = put_earlier(jobs, "k")

    with pytest.raises(DuplicateJob) as refused:
        await queue.put({}, key="k")

    assert refused.value.job_id == earlier


@pytest.fixture(params=["put", "put_many", "in a transaction", "many in a transaction"])
def put(request: pytest.FixtureRequest, shell: Shell, queue: Any) -> Any:
    """One of the ways to put a job; returns the id of the one that has the key."""

    async def put_one(key: str, **settings: Any) -> Any:
        if "many" in request.param:
            return (await queue.put_many([{}], keys=[key], **settings))[0]
        return await queue.put({}, key=key, **settings)

    async def put_or_meet(key: str, **settings: Any) -> Any:
        try:
            if "transaction" not in request.param:
                return await put_one(key, **settings)
            async with shell.transaction() as session:
                return await put_one(key, session=session, **settings)
        except DuplicateJob as error:
            return error.job_id

    return put_or_meet


@pytest.mark.few(4)
@pytest.mark.parametrize("on_conflict", ["raise", "replace"])
async def test_a_process_of_an_earlier_version_beside_this_one_puts_jobs_that_hold_their_keys(
    queue: Any, jobs: Collection[Any], put: Any, on_conflict: str
) -> None:
    put_earlier(jobs, "before")
    await queue.put({}, key="other")  # the keys of those before are held
    earlier = put_earlier(jobs, "k")

    assert await put("k", on_conflict=on_conflict) == earlier
    assert jobs.count_documents({"key": "k"}) == 1


async def test_while_the_index_of_an_earlier_version_stands_no_job_has_the_key_of_one_that_runs(
    queue: Any, jobs: Collection[Any]
) -> None:
    put_earlier(jobs, "before")
    await queue.put({"n": 1}, key="k", on_conflict="replace", priority=1)
    job = await queue.next()

    for put in (
        queue.put({"n": 2}, key="k", on_conflict="replace"),
        queue.put_many([{"n": 2}], keys=["k"], on_conflict="replace"),
    ):
        with pytest.raises(ConfigurationError, match="run `streamqueue init`, which drops it"):
            await put

    assert job.data == {"n": 1}


async def test_a_job_of_an_earlier_version_that_has_let_go_of_its_key_stays_without(
    queue: Any, jobs: Collection[Any]
) -> None:
    earlier = put_earlier(jobs, "k")
    jobs.update_one({"_id": earlier}, {"$set": {"key_until": "start", "state": "running"}})

    await queue.put({}, key="other")

    assert "held_key" not in (jobs.find_one({"_id": earlier}) or {})


async def test_in_a_transaction_no_index_is_made(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue()

    with anyio.fail_after(20):  # the server would wait for the transaction that waits for it
        async with shell.transaction() as session:
            await queue.put({"n": 1}, session=session)
            await queue.put_many([{"n": 2}], session=session)
            with pytest.raises(ConfigurationError, match="nothing is created inside a transaction"):
                await queue.put({}, key="k", session=session)

    assert index_names(jobs) == set()
    assert jobs.count_documents({"payload.n": {"$gt": 0}}) == 2


async def test_with_the_index_a_key_is_put_in_a_transaction(
    shell: Shell, jobs: Collection[Any]
) -> None:
    await shell.queue().put({}, key="other")

    async with shell.transaction() as session:
        await shell.queue().put({}, key="k", session=session)

    assert await taken(shell.queue().put({}, key="k"))


async def test_told_that_the_collection_may_be_new_a_queue_looks_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k")
    jobs.drop()

    queue._store.recheck_indexes()
    await queue.put({"n": 1})

    assert len(index_names(jobs)) == 6


async def test_the_index_of_the_keys_is_made_for_the_first_job_that_has_one(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({})
    assert KEY not in index_names(jobs)

    await queue.put({}, key="k")

    assert KEY in index_names(jobs)


@pytest.mark.parametrize(
    ("on_conflict", "sent"),
    [
        ("raise", ["listIndexes", "insert", "find"]),
        ("skip", ["listIndexes", "findAndModify"]),
    ],
)
def test_a_put_whose_key_is_taken_costs_one_look_at_who_has_it(
    jobs: Collection[Any], uri: str, on_conflict: Any, sent: list[str]
) -> None:
    commands = Sent()
    with MongoClient(uri, event_listeners=[commands]) as client:
        queue = MongoQueue(client[jobs.database.name].jobs)
        queue.put({}, key="k")
        commands.names.clear()

        with suppress(DuplicateJob):
            queue.put({}, key="k", on_conflict=on_conflict)

        assert commands.names == sent


class Sent(CommandListener):
    """The names of the commands of a client."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None: ...

    def failed(self, event: CommandFailedEvent) -> None: ...


async def test_the_index_of_a_user_who_wants_a_field_unique_is_left_alone(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.delete_many({})
    jobs.create_index("payload.order", unique=True)

    await queue.put({"order": 5}, key="a")
    with pytest.raises(DuplicateKeyError):
        await queue.put({"order": 5}, key="b")


async def test_a_put_with_a_key_that_a_transaction_holds_delays_no_other(
    jobs: Collection[Any], async_client: Any
) -> None:
    queue = AsyncMongoQueue(async_client[jobs.database.name].jobs)
    await queue.put({}, key="other")
    refused: list[bool] = []

    async def put() -> None:
        refused.append(await taken(queue.put({}, key="k")))

    async with (
        anyio.create_task_group() as tasks,
        async_client.start_session() as session,
        await session.start_transaction(),
    ):
        await queue.put({}, key="k", session=session)
        tasks.start_soon(put)
        await wait_until_async(lambda: conflicts(jobs), "the server holds up the same key")
        with anyio.fail_after(10):
            await queue.put({"n": 1})
            await queue.put({}, key="another")
        in_time = list(refused)

    assert in_time == []
    assert refused == [True]


def conflicts(jobs: Collection[Any]) -> int:
    """Inserts that wait for another's transaction, which they try for again and again."""
    return len(
        list(
            jobs.database.client.admin.aggregate(
                [
                    {"$currentOp": {}},
                    {
                        "$match": {
                            "op": "insert",
                            "ns": jobs.full_name,
                            "writeConflicts": {"$gt": 0},
                        }
                    },
                ]
            )
        )
    )
