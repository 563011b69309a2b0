"""A paused queue: who may not claim, what goes on, and who learns of it when.

Laws: the document is the truth; setting up never stands in front of the work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio import create_task_group, fail_after
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError
from streamqueue.protocol.schema import VALIDATOR
from streamqueue.protocol.settings import BELL
from streamqueue.store import known_settings
from tests.contract.looks import document, kill_streams, let_lease_run_out
from tests.contract.shells import Shell
from tests.contract.waiters import SOON, WAIT, waiting
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, failing


@pytest.fixture
def soon_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of the settings counts for less long."""
    monkeypatch.setattr(known_settings, "SURE_FOR", 0.3)


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no settings left behind."""
    yield jobs
    jobs.database[f"{jobs.name}.settings"].delete_many({})


async def test_a_paused_queue_gives_no_job_to_a_queue_object_that_comes_new(
    shell: Shell,
) -> None:
    await shell.queue().put({"n": 1})

    await shell.queue().pause()

    assert await shell.queue().next() is None
    assert await shell.queue().claim(10) == []


@pytest.mark.usefixtures("soon_unsure")
async def test_a_queue_object_that_has_claimed_before_obeys_when_it_reads_again(
    shell: Shell,
) -> None:
    consumer, operator = shell.queue(), shell.queue()
    await consumer.put_many([{"n": n} for n in range(1000)])
    assert await consumer.next() is not None

    await operator.pause()
    paused_at = time.monotonic()
    while await consumer.next() is not None:
        assert time.monotonic() - paused_at < 3

    assert await operator.size() > 500


async def test_a_queue_object_reads_the_settings_once_in_two_seconds(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put_many([{"n": n} for n in range(10)])
    settings = f"{jobs.database.name}.{jobs.name}.settings"

    def reads() -> int:
        totals = jobs.database.client.admin.command("top")["totals"]
        return int(totals.get(settings, {"queries": {"count": 0}})["queries"]["count"])

    before = reads()
    for _ in range(10):
        assert await queue.next() is not None

    assert reads() - before == 1


async def test_the_object_that_has_paused_a_queue_obeys_at_once(queue: Any) -> None:
    await queue.put_many([{"n": n} for n in range(2)])
    assert await queue.next() is not None

    await queue.pause()
    paused = await queue.next()
    await queue.resume()

    assert paused is None
    assert await queue.next() is not None


@pytest.mark.usefixtures("soon_unsure")
async def test_a_queue_goes_on_after_resume(shell: Shell) -> None:
    consumer, operator = shell.queue(), shell.queue()
    await consumer.put({"n": 1})
    await operator.pause()
    assert await consumer.next() is None

    await operator.resume()

    job = await wait_until_async(consumer.next, "it goes on")
    assert job.data == {"n": 1}


async def test_it_is_said_whether_a_queue_is_paused(queue: Any) -> None:
    said = [await queue.is_paused()]
    for change in (queue.pause, queue.pause, queue.resume, queue.resume):
        await change()
        said.append(await queue.is_paused())

    assert said == [False, True, True, False, False]


async def test_a_pause_is_of_one_queue_alone(shell: Shell) -> None:
    emails, reports = shell.queue(name="emails"), shell.queue(name="reports")
    await reports.put({"n": 1})

    await emails.pause()

    assert await reports.next() is not None
    assert not await reports.is_paused()


async def test_a_repeated_pause_keeps_since_when(queue: Any, jobs: Collection[Any]) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]
    await queue.pause()
    before = settings.find_one({"_id": "default"})

    await queue.pause()

    assert settings.find_one({"_id": "default"}) == before
    assert before is not None
    assert before["paused"] is True


async def test_what_else_is_set_outlasts_a_resume(queue: Any, jobs: Collection[Any]) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.insert_one({"_id": "default", "of_a_later_version": 1})

    await queue.pause()
    await queue.resume()

    assert settings.find_one() == {"_id": "default", "of_a_later_version": 1}


@pytest.mark.parametrize("stored", [1, "yes", [True], None, {"paused": True}], ids=str)
async def test_what_is_not_understood_is_no_pause(
    stored: Any, queue: Any, jobs: Collection[Any]
) -> None:
    jobs.database[f"{jobs.name}.settings"].insert_one({"_id": "default", "paused": stored})
    await queue.put({"n": 1})

    assert await queue.next() is not None
    assert not await queue.is_paused()


async def test_jobs_are_put_into_a_paused_queue_and_wait(queue: Any) -> None:
    await queue.pause()

    await queue.put({"n": 1})
    await queue.put({"n": 2}, delay=60)

    counted = {name: count for name, count in (await queue.stats()).items() if count}
    assert counted == {"available": 1, "scheduled": 1, "total": 2}


async def test_a_job_that_falls_due_in_a_paused_queue_becomes_ready_and_waits(
    queue: Any,
) -> None:
    await queue.pause()
    await queue.put({"n": 1}, delay=0.05)

    async with create_task_group() as tasks:
        tasks.start_soon(queue.next, 0.5)

        async def due() -> Any:
            return (await queue.stats())["available"]

        await wait_until_async(due, "it is ready")

    assert (await queue.stats())["available"] == 1


async def test_a_job_that_is_held_is_completed_in_a_paused_queue(queue: Any) -> None:
    await queue.put({"n": 1})
    held = await queue.next()

    await queue.pause()
    await held.progress(1)
    await held.complete()

    assert await queue.size() == 0


async def test_what_a_dead_consumer_held_is_returned_in_a_paused_queue(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1})
    held = await queue.next()
    await queue.pause()
    let_lease_run_out(jobs, held.id)

    async def returned() -> Any:
        assert await queue.next() is None
        return document(jobs, held.id)["state"] == "ready"

    await wait_until_async(returned, "it is returned")


async def test_a_wait_goes_on_through_a_pause(shell: Shell, jobs: Collection[Any]) -> None:
    consumer, operator = shell.queue(), shell.queue()

    async with waiting(jobs, lambda: consumer.next(wait=WAIT)) as [waiter]:
        await operator.pause()
        await operator.put({"n": 1})
        await anyio.sleep(0.5)
        early = waiter.done.is_set()
        await operator.resume()
        job = await waiter.soon()

    assert not early
    assert job.data == {"n": 1}


async def test_a_wait_in_a_paused_queue_ends_in_time(queue: Any) -> None:
    await queue.pause()
    await queue.put({"n": 1})

    with fail_after(SOON):
        assert await queue.next(wait=0.3) is None


async def test_every_wait_for_a_resumed_queue_is_woken_at_once(
    shell: Shell, jobs: Collection[Any]
) -> None:
    consumers, operator = [shell.queue() for _ in range(3)], shell.queue()
    await operator.pause()
    await operator.put_many([{"n": n} for n in range(3)])

    calls = [lambda consumer=consumer: consumer.next(wait=WAIT) for consumer in consumers]
    async with waiting(jobs, *calls) as waiters:
        await operator.resume()
        got = [(await waiter.soon()).data["n"] for waiter in waiters]

    assert sorted(got) == [0, 1, 2]


async def test_an_iteration_waits_while_the_queue_is_paused(
    shell: Shell, jobs: Collection[Any]
) -> None:
    consumer, operator = shell.queue(), shell.queue()
    await operator.pause()
    await operator.put({"n": 1})

    async def first() -> Any:
        async for job in consumer:
            return job
        return None

    async with waiting(jobs, first) as [waiter]:
        early = waiter.done.is_set()
        await operator.resume()
        job = await waiter.soon()

    assert not early
    assert job.data == {"n": 1}


async def test_a_pause_is_heard_also_when_the_stream_broke_meanwhile(
    shell: Shell, jobs: Collection[Any]
) -> None:
    """Its bell rang while nobody listened."""
    consumer, operator = shell.queue(), shell.queue()

    async with waiting(jobs, lambda: consumer.next(wait=1.5)) as [waiter]:
        jobs.database[f"{jobs.name}.settings"].insert_one({"_id": "default", "paused": True})
        kill_streams(jobs)
        await anyio.sleep(0.5)  # it is opened again
        await operator.put({"n": 1})
        job = await waiter.soon()

    assert job is None


async def test_nothing_is_claimed_while_the_settings_cannot_be_read(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await queue.put({"n": 1})

    with (
        failing(client, "find", app=None, errorCode=96, namespace=f"{jobs.full_name}.settings"),
        pytest.raises(OperationFailure),
    ):
        await queue.next()

    assert (await queue.stats())["available"] == 1


async def test_a_wait_goes_on_until_the_settings_can_be_read(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await queue.put({"n": 1})
    await queue.size()

    with failing(
        client,
        "find",
        app=None,
        times=2,  # the driver itself tries again once
        namespace=f"{jobs.full_name}.settings",
        **CONNECTION_CUT,
    ) as reads:
        job = await queue.next(wait=WAIT)

    assert job.data == {"n": 1}
    assert reads.hits() == 2


# the bell


async def test_nothing_counts_or_clears_the_bell(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({"n": 1})
    await queue.pause()
    before = await queue.size(), (await queue.stats())["total"]

    cleared = await queue.clear()

    assert before == (1, 1)
    assert cleared == 1
    assert [found["_id"] for found in jobs.find()] == [BELL]


async def test_the_bell_is_no_job_to_anybody(queue: Any, jobs: Collection[Any]) -> None:
    await queue.pause()
    await queue.resume()

    assert await queue.claim(10) == []
    assert await queue.repair() == 0
    assert await queue.requeue() == 0
    assert set(document(jobs, BELL)) == {"_id", "rung_at"}


async def test_the_validator_lets_the_bell_ring(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({"n": 1})
    jobs.database.command("collMod", jobs.name, validator=VALIDATOR)

    await queue.pause()
    await queue.resume()

    assert not await queue.is_paused()


async def test_the_validator_lets_nothing_else_pass_as_the_bell(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1})
    await queue.pause()
    jobs.database.command("collMod", jobs.name, validator=VALIDATOR)
    rung_at = document(jobs, BELL)["rung_at"]

    for other in (
        {"_id": "another", "rung_at": rung_at},
        {"_id": BELL, "rung_at": "yesterday"},
        {"_id": BELL, "rung_at": rung_at, "state": "ready"},
    ):
        with pytest.raises(OperationFailure, match="failed validation"):
            jobs.replace_one({"_id": other["_id"]}, other, upsert=True)


async def test_who_cannot_ring_the_bell_is_told_what_to_do(
    queue: Any, jobs: Collection[Any]
) -> None:
    """As under the validator of an earlier version."""
    await queue.put({"n": 1})
    jobs.database.command("collMod", jobs.name, validator={"queue": {"$exists": True}})

    with pytest.raises(ConfigurationError, match="init --validator"):
        await queue.pause()
