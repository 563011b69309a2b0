"""Who waits for room under a limit hears of it, however the job ended that had it.

Laws: nothing is stuck; nobody polls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue.queue import consumer
from tests.contract.shells import Shell
from tests.contract.test_queue_limits import put_all, rule, taken
from tests.waiting import wait_until_async

SOON = 5.0
PATIENCE = 3 * SOON
"""Seconds that somebody waits, who looks once more in the end."""


@pytest.fixture
def jobs(jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Collection[Any]]:
    """As everywhere, with no settings left behind; whoever waits does not look by itself."""
    monkeypatch.setattr(consumer, "RULED_EVERY", 60.0)
    yield jobs
    jobs.database[f"{jobs.name}.settings"].delete_many({})


ENDS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "completed": lambda held: held.complete(),
    "failed": lambda held: held.error("fails", delay=100),
    "released": lambda held: held.release(delay=100),
    "superseded": lambda held: held.error("fails"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_who_waits_for_a_place_gets_it_when_its_job_has_ended(
    jobs: Collection[Any], shell: Shell, end: str
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    queue, other = shell.queue(), shell.queue()
    await queue.put({}, key="k", key_until="start")
    held = await queue.next()
    put_all(jobs, "-")
    if end == "superseded":
        await queue.put({}, key="k", key_until="start", delay=100)

    async with waiting(other):
        await ENDS[end](held)


@asynccontextmanager
async def waiting(queue: Any) -> AsyncIterator[None]:
    """Have this queue wait for a job that is held back; it gets one soon after the block."""
    got: list[Any] = []
    store, looks = getattr(queue, "_target", queue)._consumer._store, []
    choose = store.choose

    def counted(*args: Any) -> Any:
        looks.append(args)
        return choose(*args)

    store.choose = counted

    async def wait() -> None:
        got.append(await queue.next(wait=PATIENCE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        # The second look is behind the opening of its stream.
        await wait_until_async(lambda: len(looks) >= 2, "it waits", SOON)
        yield
        await wait_until_async(lambda: got, "it has got one", SOON)
    assert got[0] is not None


async def test_the_places_of_jobs_that_a_transaction_ended_are_told_of_at_the_next_claim(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 2}])
    queue, other = shell.queue(), shell.queue()
    put_all(jobs, "----")
    held = await queue.claim(2)

    async with waiting(other):
        async with shell.transaction() as session:
            for job in held:
                await job.complete(session=session)
        assert await queue.next() is not None


async def test_slots_that_another_program_wrote_hold_nobody_up(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, "ruled", limits=[{"per": "queue", "running": 1}])
    ruled, queue = shell.queue(name="ruled"), shell.queue()
    await ruled.next()  # makes the index
    put_all(jobs, "----")
    jobs.update_many({"queue": "default"}, {"$set": {"slots": ["q#1"]}})

    assert await taken(queue) == [0, 1, 2, 3]
