"""One worker of more queues than the server merges in one read: the order holds over all of them,
and what a read costs depends on the queues that have work, not on how much waits.

Law: the race is shaped.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from bson import Binary, Decimal128, Timestamp
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue.store.asynchronous import AsyncStore
from tests.contract.looks import server_time
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

QUEUES = [f"queue-{number:03}" for number in range(450)]
JOB: dict[str, Any] = {"state": "ready", "priority": 0, "seq": Timestamp(0, 0), "payload": {}}


@pytest.fixture
async def store(async_jobs: AsyncCollection[Any]) -> AsyncStore:
    store = AsyncStore(async_jobs)
    await store.prepare()
    return store


@pytest.fixture
def sorted_reads(jobs: Collection[Any]) -> Iterator[Any]:
    """A function that returns the reads of the jobs that the server has sorted."""
    profile = jobs.database["system.profile"]

    def sorted_reads() -> list[Any]:
        jobs.database.command("profile", 0)
        return list(profile.find({"ns": jobs.full_name, "hasSortStage": True}))

    jobs.database.command("profile", 2)
    yield sorted_reads
    jobs.database.command("profile", 0)


def fill(jobs: Collection[Any], count: int, queues: list[str], **fields: Any) -> list[Any]:
    """Insert so many jobs into random ones of these queues; return their ids."""
    made = [{**JOB, "queue": random.choice(queues), **fields} for _ in range(count)]
    return jobs.insert_many(made).inserted_ids


@pytest.mark.parametrize(
    "queues", [QUEUES, QUEUES[:2], QUEUES[:210]], ids=["of all", "of two", "most in one part"]
)
async def test_what_waits_in_many_queues_is_read_in_order(
    store: AsyncStore, jobs: Collection[Any], queues: list[str]
) -> None:
    first = fill(jobs, 300, queues)
    urgent = fill(jobs, 20, queues, priority=Decimal128("3"))
    fill(jobs, 20, queues, priority=-1)

    found = await store.candidates(QUEUES, 200)

    assert [job["_id"] for job in found] == [*urgent, *first[:180]]


async def test_all_that_waits_is_read_where_the_parts_have_unequal_shares(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    fill(jobs, 1, QUEUES[:1])
    for queue in QUEUES:
        fill(jobs, 1, [queue])
    fill(jobs, 900, QUEUES[-1:])

    assert len(await store.candidates(QUEUES, 1300)) == 1300


async def test_with_no_work_in_many_queues_nothing_is_found(store: AsyncStore) -> None:
    assert await store.candidates(QUEUES, 200) == []


async def test_jobs_without_a_place_get_one_in_many_queues_too(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    placed = fill(jobs, 250, QUEUES)
    jobs.insert_many({**JOB, "queue": queue, "seq": None, "n": 1} for queue in QUEUES[:230])
    jobs.insert_one({**JOB, "queue": [QUEUES[0], "x"]})

    found = await store.candidates(QUEUES, 480)

    assert [job["_id"] for job in found[:250]] == placed
    assert len(found) == 480
    assert jobs.count_documents({"state": "dead"}) == 1


async def test_without_the_index_many_queues_are_read_as_well(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    first = fill(jobs, 300, QUEUES)
    jobs.drop_indexes()

    assert [job["_id"] for job in await store.candidates(QUEUES, 200)] == first[:200]


async def test_the_server_sorts_nothing_for_the_head_of_many_queues(
    store: AsyncStore, jobs: Collection[Any], sorted_reads: Any
) -> None:
    fill(jobs, 3000, QUEUES)

    await store.candidates(QUEUES, 500)

    assert sorted_reads() == []


async def test_the_server_sorts_nothing_for_what_is_due_in_many_queues(
    store: AsyncStore, jobs: Collection[Any], sorted_reads: Any
) -> None:
    now = server_time(jobs)
    fill(jobs, 500, QUEUES, state="scheduled", run_at=now - timedelta(seconds=5))
    fill(jobs, 500, QUEUES, state="scheduled", run_at=now + timedelta(seconds=500))

    promoted = await store.promote(QUEUES)
    left = await store.seconds_to_due(QUEUES)

    assert promoted == 500
    assert 400 < left < 501
    assert sorted_reads() == []


async def test_a_worker_of_many_queues_runs_each_job_once(
    start: WorkerStarter, jobs: Collection[Any], store: AsyncStore
) -> None:
    seen: list[Any] = []

    async def note(job: Any) -> None:
        seen.append(job.id)

    ids = fill(jobs, 600, QUEUES)

    worker = start.prepare(concurrency=1)
    for queue in QUEUES:
        worker.worker.handler(queue)(note)
    await start.begin(worker)
    await wait_until_async(lambda: len(seen) >= 600, "all have run", 30)

    assert sorted(seen) == ids  # (one that waited for a slot for long was given back meanwhile)


async def test_what_is_urgent_in_one_part_of_the_queues_comes_before_all_others(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    fill(jobs, 900, QUEUES)
    urgent = fill(jobs, 300, QUEUES[:210], priority=9)

    found = await store.candidates(QUEUES, 300)

    assert [job["_id"] for job in found] == urgent


async def test_a_queue_of_a_job_that_cannot_be_decoded_hides_no_other(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    jobs.insert_one({**JOB, "queue": [QUEUES[0], Binary(b"x", 4)]})
    jobs.insert_one({**JOB, "priority": Decimal128("sNaN"), "queue": QUEUES[1]})
    placed = [fill(jobs, 1, [queue])[0] for queue in QUEUES[2:302]]

    found = await store.candidates(QUEUES, 100)

    assert {job["_id"] for job in found} <= set(placed)
    assert len(found) == 100


async def test_a_held_job_that_is_gone_leaves_a_worker_of_many_queues_calm(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    [job] = fill(jobs, 1, QUEUES)
    store.unclaimable.hold(job)
    jobs.delete_one({"_id": job})
    store.unclaimable._again_at = 0.0

    await store.candidates(QUEUES, 100)

    assert store.unclaimable.wait() > 0
