"""Topics in transactions: what is repeated until it is certain, and a transaction of the caller.

Laws: an unknown outcome is not a failure; nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import pymongo
import pytest
from anyio import create_task_group, fail_after
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.monitoring import CommandListener
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, PayloadError, Topic
from streamqueue.protocol.schema import FEATURE_INDEXES
from streamqueue.queue import transactions
from tests.contract.shells import Shell
from tests.contract.waiters import SOON
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, REPLICATION_TIMED_OUT, failing

TRANSIENT: dict[str, Any] = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}
"""As when another transaction has changed what this one is to change."""
UNKNOWN = "UnknownTransactionCommitResult"


class RolledBack(Exception):
    pass


@pytest.fixture
def settings(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """The collection that has the subscriptions, empty afterwards."""
    found = jobs.database[f"{jobs.name}.settings"]
    yield found
    found.delete_many({})


@pytest.fixture
async def topic(shell: Shell, settings: Collection[Any]) -> Any:
    """The topic ``orders``, to which ``billing`` and ``mails`` subscribe."""
    topic = shell.topic("orders")
    for name in ("billing", "mails"):
        await topic.subscribe(name)
    return topic


def queues(jobs: Collection[Any]) -> list[str]:
    return sorted(job["queue"] for job in jobs.find())


@pytest.mark.few(3)
@pytest.mark.parametrize("command", ["find", "insert"])
@pytest.mark.parametrize("fault", [TRANSIENT, CONNECTION_CUT], ids=["conflict", "cut"])
async def test_a_publish_that_is_aborted_is_begun_anew(
    fault: Any, command: str, topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    with failing(client, command, app=None, times=2, **fault) as struck:
        ids = await topic.publish({"n": 1})

    assert struck.hits() == 2
    assert sorted(ids) == sorted(job["_id"] for job in jobs.find())
    assert queues(jobs) == ["billing", "mails"]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "fault", [CONNECTION_CUT, REPLICATION_TIMED_OUT], ids=["not heard", "not known to be safe"]
)
async def test_a_commit_is_asked_for_again_until_it_is_certain(
    fault: Any, topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    with failing(client, "commitTransaction", app=None, times=3, **fault) as struck:
        ids = await topic.publish({"n": 1})

    assert struck.hits() == 3
    assert sorted(ids) == sorted(job["_id"] for job in jobs.find())
    assert queues(jobs) == ["billing", "mails"]


async def test_a_commit_that_comes_too_late_is_a_publish_begun_anew(
    topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    gone: dict[str, Any] = {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}
    with failing(client, "commitTransaction", app=None, times=2, **gone):
        await topic.publish({"n": 1})

    assert queues(jobs) == ["billing", "mails"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent again for long."""
    monkeypatch.setattr(transactions, "PATIENCE", 0.3)


@pytest.mark.usefixtures("impatient")
async def test_what_stays_unknown_is_said_to_be_and_is_there_once_when_repeated(
    topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    message = ObjectId()
    with (
        failing(client, "commitTransaction", app=None, **REPLICATION_TIMED_OUT),
        pytest.raises(PyMongoError) as caught,
    ):
        await topic.publish({"n": 1}, job_id=message)

    await topic.publish({"n": 1}, job_id=message)

    assert caught.value.has_error_label(UNKNOWN)
    assert queues(jobs) == ["billing", "mails"]


@pytest.mark.usefixtures("impatient")
async def test_what_never_succeeds_is_an_error_and_nobody_gets_it(
    topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    with (
        failing(client, "insert", app=None, **TRANSIENT),
        pytest.raises(OperationFailure),
    ):
        await topic.publish({"n": 1})

    assert jobs.count_documents({}) == 0
    assert len(await topic.publish({"n": 2})) == 2


async def test_what_the_server_refuses_for_one_nobody_gets(
    topic: Any, jobs: Collection[Any]
) -> None:
    jobs.database.command("collMod", jobs.name, validator={"queue": {"$ne": "mails"}})

    with pytest.raises(OperationFailure) as caught:
        await topic.publish({"secret": 1})

    assert jobs.count_documents({}) == 0
    assert "secret" not in str(caught.value)


async def test_a_limit_of_the_caller_ends_it_and_nothing_is_left_in_the_way_of_another_try(
    topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    message = ObjectId()

    async def publish() -> None:
        with pymongo.timeout(0.3):
            await topic.publish({"n": 1}, job_id=message)

    with (
        failing(client, "insert", app=None, blockConnection=True, blockTimeMS=900, times=1),
        pytest.raises(PyMongoError) as caught,
    ):
        await publish()

    async def none_is_open() -> Any:
        transactions = client.admin.command("serverStatus")["transactions"]
        return transactions["currentOpen"] == 0

    await wait_until_async(none_is_open, "no transaction is open")
    with fail_after(SOON):
        await topic.publish({"n": 1}, job_id=message)

    assert caught.value.timeout
    assert queues(jobs) == ["billing", "mails"]


async def test_a_publish_that_is_cancelled_is_done_or_was_not_begun(
    shell: Shell, topic: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    held_up: dict[str, Any] = {"blockConnection": True, "blockTimeMS": 300}
    with failing(client, "commitTransaction", app=None, times=1, **held_up) as struck:
        async with create_task_group() as tasks:
            tasks.start_soon(topic.publish, {"n": 1})
            while not struck.hits():
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    assert queues(jobs) == ["billing", "mails"]


async def test_two_that_publish_a_message_at_once_do_so_once(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    message = ObjectId()

    async def publish() -> None:
        assert len(await shell.topic("orders").publish({}, job_id=message)) == 2

    async with create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(publish)

    assert queues(jobs) == ["billing", "mails"]


# a transaction of the caller


async def test_in_a_transaction_it_is_published_when_that_is_committed(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    async with shell.transaction() as session:
        ids = await topic.publish({"n": 1}, session=session)
        before = jobs.count_documents({})

    assert before == 0
    assert sorted(ids) == sorted(job["_id"] for job in jobs.find())
    assert queues(jobs) == ["billing", "mails"]


async def test_in_a_transaction_that_is_aborted_nobody_gets_it(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    with suppress(RolledBack):
        async with shell.transaction() as session:
            await topic.publish({"n": 1}, session=session)
            raise RolledBack

    assert jobs.count_documents({}) == 0


async def test_who_subscribes_after_a_transaction_began_gets_what_is_published_in_it_then(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    queue = shell.queue(name="log")
    await queue.size()

    async with shell.transaction() as session:
        await queue.put({}, session=session)  # from now on it sees no change of others
        await shell.topic("orders").subscribe("audit")
        await topic.publish({"n": 1}, session=session)

    assert queues(jobs) == ["audit", "billing", "log", "mails"]


async def test_in_a_session_without_a_transaction_it_has_one_of_its_own(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    session = shell.session()
    for n in range(2):
        await topic.publish({"n": n}, session=session)

    assert not session.in_transaction
    assert jobs.count_documents({}) == 4


async def test_a_message_repeated_in_a_transaction_raises_because_that_has_ended(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    message = ObjectId()
    await topic.publish({"n": 1}, job_id=message)

    with pytest.raises(DuplicateKeyError) as caught:
        async with shell.transaction() as session:
            await topic.publish({"n": 1}, job_id=message, session=session)

    assert not caught.value.has_error_label("TransientTransactionError")
    assert jobs.count_documents({}) == 2


async def test_a_key_that_is_taken_ends_the_transaction_and_says_so(
    shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    await shell.queue(name="mails").put({"n": 1}, key="k")

    with pytest.raises(DuplicateJob, match="that ended the transaction"):
        async with shell.transaction() as session:
            await topic.publish({"n": 2}, key="k", session=session)

    assert queues(jobs) == ["mails"]


@pytest.mark.parametrize(
    ("feature", "given"),
    [("keep", {"keep": 60}), ("expires", {"expires": 60}), ("key", {"key": "k"})],
    ids=["keep", "expires", "key"],
)
async def test_an_index_is_made_before_the_transaction_or_not_at_all(
    feature: str, given: dict[str, Any], shell: Shell, topic: Any, jobs: Collection[Any]
) -> None:
    index = FEATURE_INDEXES[feature][0]["name"]
    if index in jobs.index_information():
        jobs.drop_index(index)

    with pytest.raises(ConfigurationError, match=index):
        async with shell.transaction() as session:
            await topic.publish({}, session=session, **given)
    refused = jobs.count_documents({})
    ids = await topic.publish({}, **given)

    assert (refused, len(ids)) == (0, 2)
    assert index in jobs.index_information()


# what is sent


class Sent(CommandListener):
    def __init__(self) -> None:
        self.commands: list[str] = []

    def started(self, event: Any) -> None:
        self.commands.append(event.command_name)

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass


def test_a_publish_is_three_commands_whoever_subscribes(
    uri: str, jobs: Collection[Any], settings: Collection[Any]
) -> None:
    sent = Sent()
    with MongoClient[Any](uri, event_listeners=[sent]) as own:
        topic = Topic(own[jobs.database.name][jobs.name], "orders")
        topic.publish({})
        for name in ("mails", "billing", "audit"):
            topic.subscribe(name)
        sent.commands.clear()

        topic.publish({"n": 1})

    assert sent.commands[:3] == ["find", "insert", "commitTransaction"]
    assert sent.commands[3:] in ([], ["endSessions"])


def test_a_payload_is_checked_before_anything_is_sent() -> None:
    with MongoClient[Any]("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=10) as nobody:
        topic = Topic(nobody.shop.jobs, "orders")

        with pytest.raises(PayloadError):
            topic.publish({"a": object()})
