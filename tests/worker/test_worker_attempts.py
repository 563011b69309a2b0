"""A handler cannot reach its neighbours: what it sets, leaves open or cancels ends with it."""

from __future__ import annotations

import asyncio  # noqa: TID251 - handlers use asyncio's own means too
import contextvars
import decimal
import gc
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Job
from streamqueue.worker.execution.executor import Execution
from tests.hellish import ALSO_HELLISH, TextOfHalfACharacter
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

TENANT = contextvars.ContextVar("tenant", default="nobody")


async def pages() -> AsyncIterator[int]:
    with anyio.fail_after(30):
        yield 1
        yield 2


async def pages_by_tasks(children: list[str]) -> AsyncIterator[int]:
    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            children.append("ended")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)
        await anyio.lowlevel.checkpoint()
        yield 1


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_what_a_handler_sets_in_its_context_is_not_there_in_the_next(
    start: WorkerStarter, queue: AsyncMongoQueue, kind: str
) -> None:
    seen: list[tuple[str, str]] = []
    decimal.getcontext()  # as any import may have done: then copies of a context share it

    def work() -> None:
        seen.append((TENANT.get(), str(Decimal("12345.67") + Decimal("0.01"))))
        TENANT.set("ada")
        decimal.getcontext().prec = 4

    async def waits(job: AsyncJob) -> None:
        work()

    def blocks(job: Job) -> None:
        work()

    worker = await start(waits if kind == "async" else blocks, concurrency=1)
    await queue.put_many([{}, {}, {}])

    await worker.until_outcomes(completed=3)
    assert seen == [("nobody", "12345.68")] * 3


async def test_a_cancel_scope_that_is_left_open_is_the_end_of_nothing_but_the_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    left = []

    async def handler(job: AsyncJob) -> None:
        if job.data.get("leaves"):
            left.append(pages())
            async for _ in left[-1]:
                break

    worker = await start(handler, concurrency=2)
    await queue.put_many([{"leaves": True}, {}, {"leaves": True}, {}])

    await worker.until_outcomes(completed=4)
    assert worker.error is None


async def test_tasks_in_a_group_that_is_left_open_end_with_the_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    children: list[str] = []
    left = []

    async def handler(job: AsyncJob) -> None:
        left.append(pages_by_tasks(children))
        await anext(left[-1])

    worker = await start(handler)
    await queue.put({})

    await worker.until_outcomes(completed=1)
    await wait_until_async(lambda: children == ["ended"], "the end of the child")


async def test_a_task_of_an_attempt_may_be_cancelled_when_that_is_over(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    tasks: list[Any] = []

    async def handler(job: AsyncJob) -> None:
        for task in tasks:
            task.cancel()
        tasks.append(asyncio.current_task())

    worker = await start(handler, concurrency=1)
    for count in (1, 2, 3):
        await queue.put({})
        await worker.until_outcomes(completed=count)


async def test_a_task_that_is_cancelled_while_its_attempt_ends_harms_neither(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    spawned = []

    async def cancel(task: Any) -> None:
        while not task.done():
            task.cancel()
            await anyio.lowlevel.checkpoint()

    async def handler(job: AsyncJob) -> None:
        if job.data.get("cancelled"):
            spawned.append(asyncio.create_task(cancel(asyncio.current_task())))
            await anyio.sleep_forever()

    worker = await start(handler, backoff=Backoff(initial=60))
    await queue.put_many([{"cancelled": True}, {}], max_attempts=1)

    await worker.until_outcomes(dead=1, completed=1)


async def test_an_attempt_that_its_own_task_cancels_fails(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.lowlevel.checkpoint()

    worker = await start(handler)
    await queue.put({}, max_attempts=1)

    await worker.until_outcomes(dead=1)
    assert worker.error is None


async def test_a_job_completed_by_another_task_when_its_handler_returns_ends_once(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    spawned = []

    async def handler(job: AsyncJob) -> None:
        spawned.append(asyncio.create_task(job.complete()))
        await anyio.lowlevel.checkpoint()

    worker = await start(handler, concurrency=1)
    await queue.put_many([{}, {}, {}])

    await worker.until_outcomes(completed=3)


async def test_what_ran_when_its_run_ended_by_an_error_has_used_an_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    began = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        began.set()
        await anyio.sleep_forever()

    worker = start.prepare(handler)

    async def fail() -> None:
        raise RuntimeError("a part of the worker")

    await start.begin(worker)
    await queue.put({})
    await began.wait()
    [part] = [part for part in gc.get_objects() if type(part) is Execution and part._under_way]
    part._ends.start_soon(fail)  # type: ignore[union-attr]

    with pytest.raises(RuntimeError):
        await worker.until_ended()
    worker.error = None
    stored = jobs.find_one() or {}
    assert (stored["state"], stored["attempts"]) == ("running", 1)


# what is raised


@pytest.mark.few(5)
@pytest.mark.parametrize("kind", ["async", "blocking"])
@pytest.mark.parametrize("raised", ALSO_HELLISH, ids=lambda raised: type.__repr__(raised)[-30:-2])
async def test_an_exception_that_cannot_be_shown_fails_its_attempt_and_no_other(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    kind: str,
    raised: type[BaseException],
) -> None:
    async def waits(job: AsyncJob) -> None:
        if job.data.get("raises"):
            raise raised()

    def blocks(job: Job) -> None:
        if job.data.get("raises"):
            raise raised()

    # (pytest's processes cannot tell each other of a logged text that has no encoding.)
    shown = raised is not TextOfHalfACharacter
    worker = await start(waits if kind == "async" else blocks, log_tracebacks=shown)
    await queue.put_many([{"raises": True}, {}], max_attempts=1)

    await worker.until_outcomes(dead=1, completed=1)
    assert jobs.find_one({}, {"_id": 0, "last_error": 1})
