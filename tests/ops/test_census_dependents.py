"""Jobs that wait for a dead parent, counted from outside."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.exporter import queries
from streamqueue.exporter.census import Surveyor
from streamqueue.store.asynchronous import AsyncStore
from tests.ops.profiled import looks_of


@pytest.fixture
async def surveyor(async_jobs: AsyncCollection[Any]) -> Surveyor:
    store = AsyncStore(async_jobs)
    await store.prepare()
    return Surveyor(store)


def dies(queue: MongoQueue, *, dependents: int, waiting: int = 0) -> Any:
    """Put a job with dependents, and some with one that lives; have it fail for good. Return its
    id."""
    lives = queue.put({}, delay=600)
    parent = queue.put({}, max_attempts=1)
    for _ in range(dependents):
        queue.put({}, after=[parent])
    for _ in range(waiting):
        queue.put({}, after=[lives])
    job = queue.next()
    assert job is not None
    job.error("no")
    return parent


async def held(surveyor: Surveyor) -> dict[str, int]:
    queues = (await surveyor.take()).queues
    return {name: queue.held_dependents for name, queue in queues.items()}


async def test_dependents_of_a_dead_parent_are_counted_until_it_is_requeued(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    queue = MongoQueue(jobs, name="reports")
    MongoQueue(jobs, name="emails").put({})
    parent = dies(queue, dependents=3, waiting=2)
    before = await held(surveyor)
    queue.requeue(parent)

    job = queue.next()
    assert job is not None
    job.complete()

    assert before == {"emails": 0, "reports": 3}
    assert await held(surveyor) == {"emails": 0, "reports": 0}


async def test_those_whose_parents_are_in_another_queue_count_where_they_wait(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    parent = dies(MongoQueue(jobs, name="exports"), dependents=0)
    MongoQueue(jobs, name="reports").put({}, after=[parent])

    assert await held(surveyor) == {"exports": 0, "reports": 1}


async def test_no_more_are_counted_than_it_is_said(
    surveyor: Surveyor, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MOST_DEPENDENTS", 3)
    dies(MongoQueue(jobs, name="reports"), dependents=5)

    assert await held(surveyor) == {"reports": 3}


async def test_they_are_counted_from_an_index_alone(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    dies(MongoQueue(jobs, name="reports"), dependents=5, waiting=20)

    looks = await looks_of(jobs, surveyor)

    (look,) = [look for look in looks if "waits_for.failed" in look["planSummary"]]
    assert (look["keysExamined"], look.get("docsExamined", 0)) == (5, 0)


async def test_where_no_job_waits_nothing_more_is_asked(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    dies(MongoQueue(jobs, name="reports"), dependents=1)
    jobs.delete_many({"state": "waiting"})

    looks = await looks_of(jobs, surveyor)

    assert not [look for look in looks if "waits_for.failed" in str(look["command"])]


async def test_where_no_job_has_parents_those_that_wait_for_their_key_are_not_asked_for_each_time(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    jobs.insert_one({"queue": "emails", "state": "waiting", "payload": {}})
    first = await held(surveyor)

    looks = await looks_of(jobs, surveyor)

    assert first == {"emails": 0}
    assert not [look for look in looks if "waits_for.failed" in str(look["command"])]
