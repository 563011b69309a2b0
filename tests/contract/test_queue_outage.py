"""A wait lasts as long as it was told to, whatever the server does meanwhile.

Law: the wake-up path cannot die.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import anyio
import pymongo
import pytest
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import InvalidOperation, OperationFailure, PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue, Backoff, MongoQueue
from tests.contract.waiters import SOON, WAIT, waiting
from tests.waiting import wait_until_async
from tests.worker.faults import Fault, failing

SENT_BY_A_WAIT = ("aggregate", "find", "findAndModify", "getMore", "update")
FAULTS = {
    # (After the error of an election the driver itself waits, for as long as it is set to.)
    "no answer in time": {"errorCode": 50},
    "an unknown error": {"errorCode": 8000},
    "rights that were taken away": {"errorCode": 13},
}
every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@pytest.fixture(scope="module")
def contract_collection(client: MongoClient[Any]) -> Iterator[Collection[Any]]:
    """One of its own: the driver believes that a read which failed has closed the server's cursor,
    but a failpoint has not."""
    name = f"test_{secrets.token_hex(6)}"
    yield client[name].jobs
    client.drop_database(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait half a minute for rights to be given back, nor long for a stream."""
    monkeypatch.setattr("streamqueue.stream.verdict.PATIENT", Backoff(0.2, 0.2, jitter=0))
    monkeypatch.setattr("streamqueue.stream.verdict.REOPEN_EVERY", 0.1)


@contextmanager
def out_of_order(client: MongoClient[Any], fault: dict[str, Any]) -> Iterator[Fault]:
    """Let all that a wait sends fail."""
    with failing(client, *SENT_BY_A_WAIT, app=None, **fault) as failures:
        yield failures


@pytest.mark.few(2)
@every_fault
@pytest.mark.usefixtures("impatient")
async def test_a_wait_outlasts(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any], fault: dict[str, Any]
) -> None:
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        with out_of_order(client, fault) as failures:
            await wait_until_async(lambda: failures.hits() >= 4, "it has tried again")
        await queue.put({"n": 1})
        with anyio.fail_after(2 * SOON):
            await waiter.done.wait()

    assert waiter.result.data == {"n": 1}


@pytest.mark.few(2)
@every_fault
@pytest.mark.usefixtures("impatient")
async def test_an_iteration_outlasts_it_between_two_jobs(
    queue: Any, client: MongoClient[Any], fault: dict[str, Any]
) -> None:
    await queue.put_many([{"n": 1}, {"n": 2}])

    async with aclosing(aiter(queue)) as iterator:
        first = await anext(iterator)
        async with anyio.create_task_group() as tasks:
            found: list[Any] = []

            async def take_the_second() -> None:
                found.append(await anext(iterator))

            with out_of_order(client, fault) as failures:
                tasks.start_soon(take_the_second)
                await wait_until_async(lambda: failures.hits() >= 4, "it has tried again")

    assert (first.data, found[0].data) == ({"n": 1}, {"n": 2})


async def test_a_wait_that_ends_in_an_outage_raises_what_the_server_said_last(
    queue: Any, client: MongoClient[Any]
) -> None:
    await queue.size()

    with (
        out_of_order(client, FAULTS["no answer in time"]),
        anyio.fail_after(2 * SOON),
        pytest.raises(PyMongoError),
    ):
        await queue.next(wait=0.5)


async def test_a_wait_whose_outage_is_over_at_its_end_finds_what_there_is(
    queue: Any, client: MongoClient[Any]
) -> None:
    await queue.next(wait=0.05)
    await queue.put({"n": 1}, delay=0.1)
    queue._doorbell.pace._again_at = float("inf")  # the next try is to be at the end of the wait

    job = await queue.next(wait=0.5)

    assert job.data == {"n": 1}


@pytest.mark.parametrize("refused", ["find", "aggregate"])
async def test_the_first_contact_may_refuse_a_wait(
    queue: Any, client: MongoClient[Any], refused: str
) -> None:
    await queue.size()
    started = anyio.current_time()

    with failing(client, refused, app=None, errorCode=13), pytest.raises(OperationFailure):
        await queue.next(wait=2 * SOON)

    assert anyio.current_time() - started < SOON


async def test_without_a_wait_the_error_is_raised_at_once(
    queue: Any, client: MongoClient[Any]
) -> None:
    await queue.next(wait=0.05)

    with out_of_order(client, FAULTS["no answer in time"]), pytest.raises(PyMongoError):
        await queue.next()


@pytest.mark.few(1)
async def test_an_outage_of_a_wait_is_two_lines(
    queue: Any,
    jobs: Collection[Any],
    client: MongoClient[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "streamqueue")
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        caplog.clear()
        with out_of_order(client, FAULTS["no answer in time"]) as failures:
            await wait_until_async(lambda: failures.hits() >= 4, "it has tried again")
        await queue.put({"n": 1})
        await waiter.soon()

    events = [getattr(line, "event", None) for line in caplog.records]
    assert events == ["stream_broken", "stream_reopened"]


async def test_a_wait_ends_with_the_callers_own_time_limit(queue: Any) -> None:
    await queue.size()

    with anyio.fail_after(SOON), pytest.raises(PyMongoError), pymongo.timeout(0.5):
        await queue.next(wait=WAIT)


def test_a_wait_on_a_closed_client_is_an_error_of_the_program(
    uri: str, jobs: Collection[Any]
) -> None:
    client: MongoClient[Any] = MongoClient(uri)
    with MongoQueue(client[jobs.database.name].jobs) as queue:
        queue.size()
        client.close()

        with pytest.raises(InvalidOperation):
            queue.next(wait=WAIT)


async def test_an_async_wait_on_a_closed_client_is_one_too(uri: str, jobs: Collection[Any]) -> None:
    client: AsyncMongoClient[Any] = AsyncMongoClient(uri)
    async with AsyncMongoQueue(client[jobs.database.name].jobs) as queue:
        await queue.size()
        await client.close()

        with anyio.fail_after(SOON), pytest.raises(InvalidOperation):
            await queue.next(wait=WAIT)


@pytest.mark.few(2)
@pytest.mark.parametrize("how", ["drop", "rename"])
async def test_a_wait_outlives_its_collection_and_makes_its_indexes_again(
    shell: Any, jobs: Collection[Any], how: str
) -> None:
    queue = shell.queue()
    await queue.size()
    before = set(jobs.index_information())

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        jobs.drop() if how == "drop" else jobs.rename("elsewhere", dropTarget=True)
        await wait_until_async(
            lambda: set(jobs.index_information()) == before, "the indexes are there again"
        )
        await queue.put({"n": 1})
        job = await waiter.soon()

    assert job.data == {"n": 1}
