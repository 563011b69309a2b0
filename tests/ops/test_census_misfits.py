"""Jobs that workers have left to others, counted from outside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.exporter.census import Surveyor
from streamqueue.store.asynchronous import AsyncStore


@pytest.fixture
async def surveyor(async_jobs: AsyncCollection[Any]) -> Surveyor:
    store = AsyncStore(async_jobs)
    store.indexes.want("misfits")
    await store.prepare()
    return Surveyor(store)


def leave(jobs: Collection[Any], count: int, **waits_for: str) -> None:
    """Put jobs that some worker has left to others, for this reason."""
    queue = MongoQueue(jobs, name="emails")
    for _ in range(count):
        job_id = queue.put({})
        fields = {"state": "waiting", "waits_for": waits_for, "misfit_at": datetime.now(UTC)}
        jobs.update_one({"_id": job_id}, {"$set": fields})


async def test_jobs_that_are_left_to_others_are_counted_by_why(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    leave(jobs, 2, misfit="to: missing, expected str")
    leave(jobs, 3, task="resize")

    queue = (await surveyor.take()).queues["emails"]

    assert (queue.misfits, queue.unknown_tasks, queue.waiting) == (2, 3, 5)


async def test_a_job_that_waits_for_its_key_is_none_of_them_though_it_was(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    leave(jobs, 1, key="whose")

    queue = (await surveyor.take()).queues["emails"]

    assert (queue.misfits, queue.unknown_tasks, queue.waiting) == (0, 0, 1)
