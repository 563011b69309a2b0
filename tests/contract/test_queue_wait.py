"""Waiting on the change stream: who wakes, on what, and when not."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest
from anyio import fail_after
from pymongo.synchronous.collection import Collection

import streamqueue.queue.consumer
from tests.contract.looks import kill_streams, open_streams
from tests.contract.shells import Shell
from tests.contract.waiters import SOON, WAIT, waiting
from tests.waiting import wait_until_async


async def test_a_wait_ends_when_a_job_is_put_elsewhere(shell: Shell, jobs: Collection[Any]) -> None:
    consumer, producer = shell.queue(), shell.queue()

    async with waiting(jobs, lambda: consumer.next(wait=WAIT)) as [waiter]:
        await producer.put({"n": 1})
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_a_wait_ends_when_another_program_inserts_a_job(
    queue: Any, jobs: Collection[Any]
) -> None:
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": 1}})
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_a_wait_ends_when_another_program_replaces_a_job_by_a_ready_one(
    queue: Any, jobs: Collection[Any]
) -> None:
    """A replacement, which an update may be as well, has an event of its own kind."""
    ready = {"queue": "default", "state": "ready", "payload": {"n": 1}}
    job_id = jobs.insert_one({**ready, "state": "dead"}).inserted_id

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        jobs.replace_one({"_id": job_id}, ready)
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_a_wait_for_several_ends_with_the_first(queue: Any, jobs: Collection[Any]) -> None:
    async with waiting(jobs, lambda: queue.claim(10, wait=WAIT)) as [waiter]:
        await queue.put({"n": 1})
        claimed = await waiter.soon()

    assert [job.data for job in claimed] == [{"n": 1}]


async def test_a_wait_ends_when_a_job_is_released(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({"n": 1})
    held = await queue.next()

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        await held.release()
        job = await waiter.soon()

    assert job.id == held.id


async def test_a_wait_ends_when_a_failed_job_is_ready_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1})
    held = await queue.next()

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        await held.error("oops", delay=0.05)
        job = await waiter.soon()

    assert job.id == held.id


async def test_a_wait_ends_when_a_delayed_job_put_meanwhile_is_due(
    queue: Any, jobs: Collection[Any]
) -> None:
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        await queue.put({"n": 1}, delay=0.2)
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_a_wait_ends_when_a_dead_job_is_requeued(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, max_attempts=1)
    await (await queue.next()).error("oops")

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        await queue.requeue(job_id)
        job = await waiter.soon()

    assert job.id == job_id


async def test_a_wait_ends_when_a_lease_runs_out(shell: Shell) -> None:
    await shell.queue(timeout=0.3).put({"n": 1})
    lost = await shell.queue(timeout=0.3).next()

    with fail_after(SOON):
        job = await shell.queue().next(wait=WAIT)

    assert (job.id, job.attempts) == (lost.id, 2)


async def test_a_wait_ends_when_a_transaction_is_committed(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue()

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        async with shell.transaction() as session:
            await queue.put({"n": 1}, session=session)
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_a_wait_is_over_when_nothing_comes(queue: Any) -> None:
    started = anyio.current_time()

    job = await queue.next(wait=0.3)

    assert job is None
    assert 0.3 <= anyio.current_time() - started < SOON


async def test_a_wait_for_several_that_is_over_has_none(queue: Any) -> None:
    assert await queue.claim(5, wait=0.05) == []


async def test_a_job_that_is_there_is_not_waited_for(queue: Any) -> None:
    await queue.put({"n": 1})

    with fail_after(SOON):
        job = await queue.next(wait=WAIT)

    assert job.data == {"n": 1}


async def test_jobs_of_another_queue_do_not_end_a_wait(shell: Shell, jobs: Collection[Any]) -> None:
    consumer, other = shell.queue(name="one"), shell.queue(name="other")

    async with waiting(jobs, lambda: consumer.next(wait=0.6)) as [waiter]:
        await other.put({})
        job = await waiter.soon()

    assert job is None


async def test_each_of_many_who_wait_gets_one_job(queue: Any, jobs: Collection[Any]) -> None:
    calls = [lambda: queue.next(wait=WAIT)] * 10

    async with waiting(jobs, *calls) as waiters:
        await queue.put_many([{"n": n} for n in range(10)])
        claimed = [await waiter.soon() for waiter in waiters]

    assert sorted(job.data["n"] for job in claimed) == list(range(10))


async def test_one_stream_serves_all_who_wait_on_a_queue(queue: Any, jobs: Collection[Any]) -> None:
    calls = [lambda: queue.next(wait=WAIT)] * 5

    async with waiting(jobs, *calls) as waiters:
        streams = open_streams(jobs)
        await queue.put_many([{}] * 5)
        for waiter in waiters:
            await waiter.soon()

    assert streams == 1


# Iteration.


async def test_iteration_yields_what_is_there_in_order(queue: Any) -> None:
    await queue.put_many([{"n": n} for n in range(5)])
    found = []

    async with aclosing(aiter(queue)) as iterator:
        async for job in iterator:
            found.append(job.data["n"])
            await job.complete()
            if job.data["n"] == 4:
                break

    assert found == [0, 1, 2, 3, 4]


async def test_iteration_blocks_and_goes_on(queue: Any, jobs: Collection[Any]) -> None:
    async with aclosing(aiter(queue)) as iterator:
        async with waiting(jobs, iterator.__anext__) as [first]:
            await queue.put({"n": 1})
            await first.soon()
        await queue.put({"n": 2})
        with fail_after(SOON):
            second = await anext(iterator)

    assert (first.result.data, second.data) == ({"n": 1}, {"n": 2})


# The end.


async def test_a_stream_that_is_not_needed_is_not_opened(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({})
    await (await queue.next()).complete()
    await queue.next()

    assert open_streams(jobs) == 0


async def test_close_leaves_no_stream_on_the_server(queue: Any, jobs: Collection[Any]) -> None:
    await queue.next(wait=0.05)
    opened = open_streams(jobs)

    await queue.close()

    assert opened == 1
    await wait_until_async(lambda: open_streams(jobs) == 0, "the server closed the stream")


async def test_a_block_closes_the_queue_at_its_end(shell: Shell, jobs: Collection[Any]) -> None:
    async with shell.queue() as queue:
        await queue.next(wait=0.05)

    await wait_until_async(lambda: open_streams(jobs) == 0, "the server closed the stream")


async def test_close_can_be_called_twice_and_before_anything(queue: Any) -> None:
    await queue.close()
    await queue.close()


async def test_a_closed_queue_can_be_used_again(queue: Any) -> None:
    await queue.next(wait=0.05)
    await queue.close()
    await queue.put({"n": 1}, delay=0.05)

    with fail_after(SOON):
        job = await queue.next(wait=WAIT)

    assert job.data == {"n": 1}


async def test_a_stream_that_the_server_killed_is_opened_again(
    queue: Any, jobs: Collection[Any]
) -> None:
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        kill_streams(jobs)
        await queue.put({"n": 1})
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_a_wait_looks_again_after_a_while_whatever_is_stored(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamqueue.queue.consumer, "LONGEST_SLEEP", 0.1)
    await queue.put({"n": 1}, delay=1e6)
    profile = jobs.database["system.profile"]
    looks = {"op": "query", "command.find": jobs.name, "command.filter.state": "scheduled"}

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        jobs.database.command("profile", 2)
        await wait_until_async(lambda: profile.count_documents(looks) >= 3, "three looks", 3)
        await queue.put({"n": 2})
        assert (await waiter.soon()).data == {"n": 2}
