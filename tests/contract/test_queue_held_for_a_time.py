"""A key that is held for a time: what holds it when its job is over, and for how long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob, JobNotFound
from streamqueue.protocol.schema import VALIDATOR
from tests.contract.looks import document
from tests.contract.shells import Shell

PAST = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
def queue(shell: Shell) -> Any:
    return shell.queue(max_attempts=2)


async def claim(queue: Any) -> Any:
    job = await queue.next()
    assert job is not None
    return job


async def is_free(queue: Any, **more: Any) -> bool:
    try:
        await queue.put({}, key="k", **more)
    except DuplicateJob:
        return False
    return True


async def _complete_next(queue: Any) -> None:
    await (await claim(queue)).complete()


async def _bury_next(queue: Any) -> None:
    await (await claim(queue)).error("no")


async def _cancel_it(queue: Any) -> None:
    [info] = await queue.list()
    await queue.cancel(info.id)


async def _cancel_running(queue: Any) -> None:
    job = await claim(queue)
    await queue.cancel(job.id)
    await job.release()


async def _clear(queue: Any) -> None:
    await queue.clear()


OVER = [_complete_next, _bury_next, _cancel_it, _cancel_running, _clear]


@pytest.mark.few(1)
async def test_a_key_is_free_when_its_time_is_over_and_not_before(shell: Shell) -> None:
    """Whatever has become of its job."""
    begun: dict[Any, float] = {}
    held_for: dict[str, float] = {}
    for end, keep in product(OVER, [None, 60]):
        queue = shell.queue(name=f"{end.__name__.strip('_')}-{keep}")
        sent = time.monotonic()
        await queue.put({}, key="k", unique_for=1, keep=keep, max_attempts=1)
        begun[queue] = sent
        await end(queue)

    with anyio.fail_after(10):
        while len(held_for) < len(begun):
            for queue, sent in begun.items():
                if queue.name not in held_for and await is_free(queue):
                    held_for[queue.name] = time.monotonic() - sent
            await anyio.sleep(0.01)

    assert {name: held for name, held in held_for.items() if not 1 <= held < 3} == {}


@pytest.mark.parametrize("end", [_complete_next, _cancel_it, _cancel_running, _clear])
async def test_what_only_holds_a_key_is_counted_nowhere_and_no_job(
    queue: Any, jobs: Collection[Any], end: Callable[[Any], Awaitable[None]]
) -> None:
    job_id = await queue.put({"secret": 1}, key="k", unique_for=timedelta(hours=1))

    await end(queue)

    assert await queue.size() == 0
    assert set((await queue.stats()).values()) == {0}
    assert await queue.counts() == {}
    assert await queue.list() == []
    with pytest.raises(JobNotFound):
        await queue.get(job_id)
    with pytest.raises(JobNotFound):
        await queue.wait(job_id, timeout=5)
    with pytest.raises(JobNotFound):
        await queue.cancel(job_id)
    left = document(jobs, job_id)
    assert left.keys() == {
        *("_id", "v", "queue", "key", "held_key"),
        *("unique_until", "created_at", "removed_at"),
    }
    assert left["removed_at"] == left["unique_until"]
    assert "streamqueue_removed" in jobs.index_information()


@pytest.mark.parametrize("end", [_complete_next, _cancel_it, _cancel_running, _clear])
@pytest.mark.parametrize("on_conflict", ["raise", "replace"])
async def test_the_validator_lets_a_key_go_when_its_time_is_over(
    queue: Any,
    jobs: Collection[Any],
    end: Callable[[Any], Awaitable[None]],
    on_conflict: str,
) -> None:
    await queue.put({}, key="k", unique_for=3600)
    jobs.database.command("collMod", jobs.name, validator=VALIDATOR)
    await end(queue)
    jobs.update_many({"key": "k"}, {"$set": {"unique_until": PAST}})

    second = await queue.put({}, key="k", on_conflict=on_conflict)

    assert (await claim(queue)).id == second


async def test_the_validator_lets_a_job_end_whose_key_was_held_for_a_time(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k", unique_for=3600)
    jobs.database.command("collMod", jobs.name, validator=VALIDATOR)
    jobs.update_many({"key": "k"}, {"$set": {"unique_until": PAST}})

    await (await claim(queue)).complete()

    assert jobs.count_documents({}) == 0
    assert await is_free(queue)


async def _expire(queue: Any) -> None:
    assert await queue.next() is None


@pytest.mark.parametrize("end", [_complete_next, _cancel_it, _cancel_running, _expire])
async def test_where_a_validator_wants_all_that_a_job_has_it_stays_one(
    queue: Any, jobs: Collection[Any], end: Callable[[Any], Awaitable[None]]
) -> None:
    """As one of an earlier version does."""
    job_id = await queue.put({}, key="k", unique_for=3600, expires=3600)
    jobs.database.command("collMod", jobs.name, validator={"payload": {"$exists": True}})
    if end is _expire:
        jobs.update_one({"_id": job_id}, {"$set": {"expires_at": PAST}})

    await end(queue)

    info = await queue.get(job_id)
    assert info.ended
    assert document(jobs, job_id)["removed_at"] == document(jobs, job_id)["unique_until"]
    assert not await is_free(queue)


async def test_clear_counts_such_jobs_once_and_leaves_what_holds_their_keys(queue: Any) -> None:
    await queue.put({}, key="k", unique_for=3600)
    await queue.put_many([{}] * 2)

    assert await queue.clear() == 3
    assert await queue.clear() == 0
    assert not await is_free(queue)


async def test_a_kept_job_stays_with_its_result_and_holds_its_key(queue: Any) -> None:
    job_id = await queue.put({}, key="k", unique_for=3600, keep=60)
    await (await claim(queue)).complete({"answer": 42})

    assert await queue.result(job_id) == {"answer": 42}
    assert not await is_free(queue)


async def test_one_that_somebody_awaits_stays_with_its_result(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, key="k", unique_for=3600)
    job = await claim(queue)
    jobs.update_one({"_id": job_id}, {"$set": {"awaited": True}})

    await job.complete(42)

    assert await queue.result(job_id) == 42


async def test_a_key_that_is_held_for_a_time_is_held_while_the_job_runs(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, key="k", unique_for=3600, key_until="start")
    await claim(queue)
    assert not await is_free(queue)

    jobs.update_one({"_id": job_id}, {"$set": {"unique_until": PAST}})

    assert await is_free(queue)
