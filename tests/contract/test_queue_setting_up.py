"""Law: setting up never stands in front of the work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import AutoReconnect
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, ConfigurationError, DuplicateJob
from streamqueue.protocol.schema import INDEXES, KEY_INDEX
from streamqueue.store import indexes
from streamqueue.store.flows import setting_up
from tests.contract.shells import Shell
from tests.waiting import wait_until_async
from tests.worker.faults import failing

SOON = 5.0
"""Seconds; who waits for the transaction waits for 60."""
OURS = {index.document["name"] for index in INDEXES}


@pytest.fixture
def bare(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """The collection without its indexes; the next queue makes them."""
    jobs.insert_one({})
    jobs.drop_indexes()
    jobs.delete_many({})
    yield jobs
    jobs.drop_indexes()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting_up, "BUILD_SECONDS", 0.2)
    monkeypatch.setattr(indexes, "AGAIN", Backoff(initial=0.2, jitter=0))


@pytest.mark.parametrize("passed", [True, False], ids=["in it", "beside it"])
async def test_a_put_with_a_transaction_open_on_the_collection_does_not_wait_for_indexes(
    shell: Shell, bare: Collection[Any], impatient: None, passed: bool
) -> None:
    async with shell.transaction() as session:
        inserted: Any = shell._jobs.insert_one({"other": True}, session=session)
        if shell.is_async:
            await inserted
        with anyio.fail_after(SOON):
            await shell.queue().put({}, **({"session": session} if passed else {}))

    assert bare.count_documents({}) == 2


async def test_indexes_that_could_not_be_made_are_tried_again_later(
    shell: Shell,
    bare: Collection[Any],
    client: MongoClient[Any],
    impatient: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = shell.queue()
    with client.start_session() as session, session.start_transaction():
        bare.insert_one({"other": True}, session=session)
        await queue.put({})
    assert not OURS & bare.index_information().keys()
    [line] = [line for line in caplog.records if getattr(line, "event", "") == "indexes_failed"]
    assert "`streamqueue init`" in line.getMessage()

    async def made() -> Any:
        await queue.put({})
        return bare.index_information().keys() >= OURS

    await wait_until_async(made, "the indexes are made")


@pytest.mark.parametrize("code", [50, 276, 12587])
async def test_whatever_the_server_says_of_indexes_the_work_goes_on(
    shell: Shell, bare: Collection[Any], client: MongoClient[Any], code: int
) -> None:
    queue = shell.queue()

    with failing(client, "createIndexes", app=None, errorCode=code):
        await queue.put({})

    assert (await queue.next()) is not None


@pytest.mark.parametrize("use", [{"keep": 60}, {"expires": 60}, {"key": "k"}], ids=str)
async def test_a_connection_that_breaks_while_an_index_is_made_is_an_outage(
    shell: Shell, bare: Collection[Any], client: MongoClient[Any], use: dict[str, Any]
) -> None:
    queue = shell.queue()
    await queue.size()

    with failing(client, "createIndexes", app=None, times=1, closeConnection=True):
        with pytest.raises(AutoReconnect):
            await queue.put({}, **use)
        await queue.put({}, **use)


@pytest.fixture
def renamed(bare: Collection[Any]) -> Collection[Any]:
    """All our indexes, as somebody has made them under names of his own."""
    for number, index in enumerate([*(index.document for index in INDEXES), KEY_INDEX]):
        options: dict[str, Any] = {**index, "name": f"own{number}"}
        bare.create_index(list(options.pop("key").items()), **options)
    return bare


async def test_indexes_of_other_names_that_do_the_same_are_accepted(
    shell: Shell, renamed: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    queue = shell.queue()

    await queue.put({}, key="k")
    with pytest.raises(DuplicateJob):
        await queue.put({}, key="k")
    assert (await queue.next()) is not None

    assert not OURS & renamed.index_information().keys()
    assert caplog.records == []


async def test_an_index_that_differs_is_named_with_the_way_out_and_stops_nothing(
    shell: Shell, bare: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    bare.create_index([("queue", 1)], name="streamqueue_order")
    queue = shell.queue()

    await queue.put({})

    assert (await queue.next()) is not None
    assert bare.index_information().keys() >= OURS
    assert list(bare.index_information()["streamqueue_order"]["key"]) == [("queue", 1)]
    [line] = caplog.records
    assert "streamqueue_order differs from it; drop that, and run `streamqueue init`" in (
        line.getMessage()
    )


KINDS: dict[str, dict[str, Any]] = {
    "capped": {"capped": True, "size": 100_000},
    "time-series": {"timeseries": {"timeField": "run_at"}},
    "view": {"viewOn": "jobs", "pipeline": []},
    "collation": {"collation": {"locale": "en", "strength": 2}},
}


@pytest.fixture
async def unfit(
    request: pytest.FixtureRequest,
    shell: Shell,
    jobs: Collection[Any],
    client: MongoClient[Any],
    async_client: AsyncMongoClient[Any],
) -> AsyncIterator[Any]:
    """A queue on a collection that is not for jobs."""
    jobs.insert_one({})
    name = "odd"
    jobs.database.create_collection(name, **KINDS[request.param])
    other = type(shell)(jobs.database[name], client, async_client)
    yield other.queue(name="reports")
    await other.close()
    jobs.database.drop_collection(name)


CALLS = {
    "put": lambda queue: queue.put({}),
    "put_many": lambda queue: queue.put_many([{}]),
    "next": lambda queue: queue.next(),
    "wait": lambda queue: queue.next(wait=1),
    "clear": lambda queue: queue.clear(),
}


@pytest.mark.parametrize("unfit", KINDS, indirect=True)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_collection_that_is_not_for_jobs_is_refused_by_the_first_call(
    unfit: Any, request: pytest.FixtureRequest, call: Any
) -> None:
    kind = request.node.callspec.params["unfit"]

    with pytest.raises(ConfigurationError, match=f"the collection .*odd .*{kind}"):
        await call(unfit)


@pytest.mark.parametrize("unfit", ["collation"], indirect=True)
async def test_a_queue_whose_name_a_collation_makes_equal_is_left_alone(
    unfit: Any, jobs: Collection[Any]
) -> None:
    jobs.database.odd.insert_one({"queue": "Reports", "state": "ready", "payload": {}})

    with pytest.raises(ConfigurationError):
        await unfit.clear()

    assert jobs.database.odd.count_documents({}) == 1


@pytest.mark.parametrize("unfit", ["collation"], indirect=True)
async def test_a_collation_is_seen_by_who_may_list_indexes_only(
    unfit: Any, client: MongoClient[Any]
) -> None:
    with (
        failing(client, "listCollections", app=None, errorCode=13),
        pytest.raises(ConfigurationError, match="collation"),
    ):
        await unfit.put({})


async def test_who_may_not_see_what_kind_of_collection_it_is_is_not_refused(
    shell: Shell, client: MongoClient[Any]
) -> None:
    with failing(client, "listCollections", "listIndexes", app=None, errorCode=13):
        await shell.queue().put({})
