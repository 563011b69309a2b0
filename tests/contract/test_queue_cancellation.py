"""The async shell when its calls are cancelled: nothing stays locked, nothing is lost."""

from __future__ import annotations

import asyncio  # noqa: TID251 - applications cancel with asyncio's own means too
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from tests.contract.looks import awaited_streams, document
from tests.waiting import wait_until_async

ROUNDS = 40
LONGEST = 0.006
"""Seconds: a claim takes a few milliseconds, so this hits every part of it."""

Call = Callable[[], Awaitable[Any]]


@pytest.fixture(autouse=True)
def collect_garbage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let dropped sockets be found while the filter of the test that dropped them is in force."""
    yield
    if request.node.get_closest_marker("filterwarnings"):
        gc.collect()


@pytest.fixture
async def queue(
    jobs: Collection[Any], async_client: AsyncMongoClient[Any]
) -> AsyncIterator[AsyncMongoQueue]:
    async with AsyncMongoQueue(async_client[jobs.database.name][jobs.name]) as queue:
        await queue.size()
        yield queue


async def cancelled_by_anyio(call: Call, after: float) -> Any:
    """What the call returned, or None if it was cancelled before."""
    with anyio.move_on_after(after):
        return await call()
    return None


async def cancelled_by_asyncio(call: Call, after: float) -> Any:
    task = asyncio.ensure_future(call())
    await asyncio.wait([task], timeout=after)
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


BOTH = pytest.mark.parametrize(
    "cancelled",
    [
        pytest.param(cancelled_by_anyio, id="by anyio"),
        pytest.param(
            cancelled_by_asyncio,
            id="by asyncio",
            # It passes anyio's shields, and pymongo then drops its socket.
            marks=pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
        ),
    ],
)
Canceller = Callable[[Call, float], Awaitable[Any]]


@pytest.mark.few(2)
@BOTH
@pytest.mark.parametrize("limit", [1, 3])
async def test_a_claim_cancelled_at_any_moment_leaves_no_job_locked(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller, limit: int
) -> None:
    await queue.put_many([{"n": n} for n in range(ROUNDS * limit)])
    received = 0

    for _ in range(ROUNDS):
        claimed = await cancelled(lambda: queue.claim(limit), random.uniform(0, LONGEST))
        received += len(claimed or [])

    assert jobs.count_documents({"state": "running"}) == received
    assert jobs.count_documents({"state": "ready", "attempts": {"$ne": 0}}) == 0


@BOTH
async def test_a_wait_cancelled_at_any_moment_leaves_no_job_locked(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    received = 0

    for _ in range(8):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.put, {})
            job = await cancelled(lambda: queue.next(wait=60), random.uniform(0, LONGEST))
        received += job is not None

    assert jobs.count_documents({"state": "running"}) == received


@BOTH
async def test_a_wait_that_is_cancelled_ends_soon(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    started = anyio.current_time()

    await cancelled(lambda: queue.next(wait=60), 0.05)

    assert anyio.current_time() - started < 5


@BOTH
async def test_the_next_wait_after_a_cancelled_one_is_woken(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    await cancelled(lambda: queue.next(wait=60), 0.05)

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(10):
            tasks.start_soon(put_when_awaited, queue, jobs)
            job = await queue.next(wait=60)

    assert job is not None


async def put_when_awaited(queue: AsyncMongoQueue, jobs: Collection[Any]) -> None:
    await wait_until_async(lambda: awaited_streams(jobs), "a stream is waited for")
    await queue.put({})


@BOTH
async def test_a_put_cancelled_at_any_moment_can_be_repeated(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    ids = [ObjectId() for _ in range(ROUNDS)]

    for job_id in ids:
        await cancelled(lambda: queue.put({}, job_id=job_id), random.uniform(0, LONGEST))  # noqa: B023
        await queue.put({}, job_id=job_id)

    assert jobs.count_documents({}) == len(ids)


@pytest.mark.few(1)
@BOTH
async def test_a_put_that_is_cancelled_does_not_fail_those_beside_it(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    others = []

    for _ in range(ROUNDS // 2):
        # The first writes alone; the second leads the group of the rest, and is cancelled.
        first = asyncio.ensure_future(queue.put({}))
        await checkpoint()
        victim = asyncio.ensure_future(cancelled(lambda: queue.put({}), random.uniform(0, LONGEST)))
        await checkpoint()
        rest = [asyncio.ensure_future(queue.put({})) for _ in range(2)]
        await asyncio.wait([first, victim, *rest])
        others += [first, *rest]

    assert not [put for put in others if put.cancelled()]


ENDINGS = {"complete": [], "error": ["ready", "scheduled"], "release": ["ready"]}


@pytest.mark.parametrize(("method", "states"), ENDINGS.items())
async def test_what_ends_a_job_is_carried_out_although_its_caller_is_cancelled(
    queue: AsyncMongoQueue, jobs: Collection[Any], method: str, states: list[str]
) -> None:
    await queue.put_many([{"n": n} for n in range(10)])

    for job in await queue.claim(10):
        await cancelled_by_anyio(getattr(job, method), random.uniform(0, LONGEST / 3))

    assert set(jobs.distinct("state")) <= set(states)


@BOTH
async def test_a_block_that_is_cancelled_gives_its_job_back_without_blame(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    await queue.put({})
    job = await queue.next()
    assert job is not None

    async def work() -> None:
        async with job:
            await anyio.sleep_forever()

    await cancelled(work, 0.01)

    stored = document(jobs, job.id)
    assert (stored["state"], stored["attempts"]) == ("ready", 0)


@BOTH
async def test_jobs_are_not_lost_when_an_iteration_is_cancelled(
    queue: AsyncMongoQueue, jobs: Collection[Any], cancelled: Canceller
) -> None:
    await queue.put_many([{"n": n} for n in range(200)])
    received = []

    async def consume() -> None:
        async for job in queue:
            received.append(job.id)

    for _ in range(5):
        await cancelled(consume, random.uniform(0, 10 * LONGEST))

    assert jobs.count_documents({"state": "running"}) == len(received)
