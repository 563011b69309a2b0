"""``worker.run(until="empty")``: it ends when there is nothing left to do, and not before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    ConfigurationError,
    Limit,
    Rate,
    Remaining,
    Retry,
    Schedules,
)
from tests.edits import job as document
from tests.waiting import wait_until_async
from tests.worker.started import StartedWorker, WorkerStarter

NOTHING = Remaining(scheduled=0, waiting=0, paused=0)


async def run(worker: StartedWorker, within: float = 10.0) -> Remaining | None:
    with anyio.fail_after(within):
        return await worker.worker.run(until="empty", handle_signals=False)


class Seen:
    """A handler that notes which jobs it ran."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.numbers: list[int] = []

    async def __call__(self, job: AsyncJob) -> None:
        await anyio.sleep(self.seconds)
        self.numbers.append(job.data["n"])


def handler(seen: Seen) -> Callable[..., Any]:
    async def seen_job(job: AsyncJob) -> None:
        await seen(job)

    return seen_job


async def test_a_worker_with_nothing_to_do_ends(start: WorkerStarter) -> None:
    worker = start.prepare(handler(Seen()))

    assert await run(worker) == NOTHING


async def test_every_job_that_was_ready_is_done_before_the_end(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen = Seen()
    await queue.put_many([{"n": n} for n in range(2000)])

    assert await run(start.prepare(handler(seen)), within=30) == NOTHING

    assert sorted(seen.numbers) == list(range(2000))
    assert jobs.count_documents({"state": {"$exists": True}}) == 0


async def test_a_job_that_is_put_by_the_last_one_is_done_too(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    numbers: list[int] = []

    async def chain(job: AsyncJob) -> None:
        numbers.append(job.data["n"])
        if job.data["n"] < 5:
            await queue.put({"n": job.data["n"] + 1})

    await queue.put({"n": 1})

    await run(start.prepare(chain))

    assert numbers == [1, 2, 3, 4, 5]


async def test_what_waits_for_later_or_is_paused_is_named_and_left(
    start: WorkerStarter, queue: AsyncMongoQueue, async_jobs: AsyncCollection[Any]
) -> None:
    async def paused(job: AsyncJob) -> None:
        raise AssertionError

    worker = start.prepare(handler(Seen()), paused)
    other = AsyncMongoQueue(async_jobs, name="paused")
    await other.put_many([{"n": 1}, {"n": 2}])
    await other.pause()
    later = await queue.put({"n": 3}, delay=3600)
    await queue.put({"n": 4}, after=[later])

    assert await run(worker) == Remaining(scheduled=1, waiting=1, paused=2)

    await other.close()


async def test_a_retry_is_left_for_later(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    async def fails(job: AsyncJob) -> None:
        raise Retry(60)

    await queue.put({"n": 1})

    assert await run(start.prepare(fails)) == Remaining(scheduled=1, waiting=0, paused=0)


async def test_what_is_due_is_to_be_done_though_nobody_has_promoted_it(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    seen = Seen()
    a_moment_ago = datetime.now(UTC) - timedelta(seconds=1)
    jobs.insert_many(
        [document("scheduled", run_at=a_moment_ago, payload={"n": n}) for n in range(50)]
    )

    assert await run(start.prepare(handler(seen))) == NOTHING

    assert len(seen.numbers) == 50


async def test_what_comes_after_the_last_job_is_done_too(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen = Seen()
    first = await queue.put({"n": 1})
    second = await queue.put({"n": 2}, after=[first])
    await queue.put({"n": 3}, after=[second])

    assert await run(start.prepare(handler(seen))) == NOTHING

    assert seen.numbers == [1, 2, 3]


async def test_a_tick_that_is_due_is_waited_for(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    seen = Seen()
    Schedules(jobs).add("often", every=3600, queue="default", payload={"n": 1})
    an_hour = {"$set": {"last_tick": datetime.now(UTC) - timedelta(hours=2)}}
    an_hour["$set"]["next_tick"] = datetime.now(UTC) - timedelta(hours=1)
    jobs.database[f"{jobs.name}.settings"].update_one({"_id": {"$regex": "often"}}, an_hour)

    await run(start.prepare(handler(seen)))

    assert seen.numbers == [1]


async def test_what_a_limit_holds_back_is_waited_for(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen = Seen(seconds=0.05)
    worker = start.prepare()
    worker.worker.handler("default", limits=Limit(running=1))(handler(seen))
    await queue.put_many([{"n": n} for n in range(6)])

    assert await run(worker) == NOTHING

    assert len(seen.numbers) == 6


async def test_what_a_rate_holds_back_is_waited_for(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen = Seen()
    worker = start.prepare()
    worker.worker.handler("default", limits=Limit(rate=Rate(1, 0.2)))(handler(seen))
    await queue.put_many([{"n": n} for n in range(5)])

    assert await run(worker) == NOTHING

    assert len(seen.numbers) == 5


async def test_what_runs_in_another_process_is_waited_for_without_asking_again_and_again(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    await queue.put({"n": 1})
    held = await queue.next()
    assert held is not None
    worker = start.prepare(handler(Seen()), sweep_interval=None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, worker)
        await wait_until_async(
            lambda: any("$unionWith" in str(sent.command) for sent in worker.commands.all), "looks"
        )
        await anyio.sleep(1)  # long enough for ten looks
        looks = [sent for sent in worker.commands.all if "$unionWith" in str(sent.command)]
        assert len(looks) <= 3
        await held.complete()


async def test_a_job_that_another_process_gives_back_is_done(
    start: WorkerStarter, queue: AsyncMongoQueue, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    await queue.put({"n": 1})
    held = await queue.next()
    assert held is not None

    with caplog.at_level(logging.INFO, "streamqueue"):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, start.prepare(handler(seen)))
            await wait_until_async(
                lambda: "Waiting for 1 jobs that are held back or run elsewhere" in caplog.text,
                "it waits",
            )
            await held.release()

    assert seen.numbers == [1]


async def test_a_job_whose_holder_is_silent_is_done_once_its_lease_has_ended(
    start: WorkerStarter, queue: AsyncMongoQueue, async_jobs: AsyncCollection[Any]
) -> None:
    seen = Seen()
    await queue.put({"n": 1})
    async with AsyncMongoQueue(async_jobs, timeout=1) as other:
        assert await other.next() is not None

    await run(start.prepare(handler(seen), reap_interval=0.2))

    assert seen.numbers == [1]


async def test_a_worker_that_is_stopped_before_says_nothing_of_what_is_left(
    start: WorkerStarter, async_jobs: AsyncCollection[Any]
) -> None:
    worker = start.prepare(handler(Seen()))

    async def stops(job: AsyncJob) -> None:
        worker.worker.stop()

    worker.worker.handler("stops")(stops)
    async with AsyncMongoQueue(async_jobs, name="stops") as queue:
        await queue.put({})

    assert await run(worker) is None


async def test_what_is_left_is_a_line_of_the_log(
    start: WorkerStarter, queue: AsyncMongoQueue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put({"n": 1}, delay=60)

    with caplog.at_level(logging.INFO, "streamqueue"):
        await run(start.prepare(handler(Seen())))

    [line] = [record for record in caplog.records if getattr(record, "event", "") == "worker_empty"]
    assert line.getMessage() == (
        "Nothing is left to do: 1 jobs are scheduled, 0 wait for others, 0 are in paused queues"
    )


async def test_until_another_word_is_refused(start: WorkerStarter) -> None:
    worker = start.prepare(handler(Seen())).worker

    with pytest.raises(ConfigurationError, match="until must be 'empty' or None, not 'idle'"):
        await worker.run(until="idle")  # type: ignore[arg-type]
