"""What a dead consumer held comes back, whoever is left.

Law: nothing is stuck.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from bson import Code, Timestamp
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import WorkerStarter


class Runs:
    def __init__(self) -> None:
        self.attempts: list[int] = []

    async def __call__(self, job: AsyncJob) -> None:
        self.attempts.append(job.attempts)


def held_by_the_dead(lease_left: float = -1, **fields: Any) -> dict[str, Any]:
    """Return a job as a consumer left it that is gone."""
    return {
        "queue": "default",
        "state": "running",
        "payload": {"n": 1},
        "attempts": 1,
        "max_attempts": 3,
        "locked_by": "ghost-7",
        "lease": b"the ghost's",
        "locked_until": datetime.now(UTC) + timedelta(seconds=lease_left),
        **fields,
    }


async def test_jobs_of_a_dead_consumer_are_run_by_a_worker_that_starts_later(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    runs = Runs()
    jobs.insert_many([held_by_the_dead() for _ in range(20)])

    worker = await start(runs)
    await worker.until_outcomes(completed=20)

    assert runs.attempts == [2] * 20
    assert worker.metric("streamqueue_jobs_reaped_total", result="requeued") == 20


@pytest.mark.parametrize("end", [Timestamp(2**31, 1), Code("x"), Code("x", {})])
async def test_a_lease_that_ends_at_no_date_has_ended(
    start: WorkerStarter, jobs: Collection[Any], end: Any
) -> None:
    runs = Runs()
    worker = await start(runs)
    jobs.insert_one(held_by_the_dead(locked_until=end))

    await worker.until_outcomes(completed=1)

    assert runs.attempts == [2]


async def test_a_job_with_lists_for_its_place_is_returned(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    runs = Runs()
    jobs.insert_one(held_by_the_dead(priority=[1, 2], run_at=[datetime.now(UTC)]))

    worker = await start(runs)
    await worker.until_outcomes(completed=1)

    assert runs.attempts == [2]


async def test_a_lease_that_ends_later_is_waited_for(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    runs = Runs()
    document = held_by_the_dead(lease_left=1)
    jobs.insert_one(document)
    worker = await start(runs)
    await worker.until_outcomes(completed=1, within=2)

    assert datetime.now(UTC) >= document["locked_until"]


async def test_a_lease_in_a_queue_that_nobody_serves_is_returned_by_whoever_is_left(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    """Its own stream shows nothing of that queue; only a look now and then can find it."""
    worker = await start(Runs(), reap_interval=0.5, sweep_interval=None)
    await worker.until_idle(0.2)
    other = jobs.insert_one(held_by_the_dead(queue="other")).inserted_id

    await wait_until_async(
        lambda: jobs.find_one({"_id": other, "state": "ready"}), "the lease is returned", 3
    )


async def test_a_job_whose_attempts_are_used_up_is_dead_and_names_the_lost_consumer(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    jobs.insert_one(held_by_the_dead(attempts=3))

    worker = await start(Runs())
    await wait_until_async(
        lambda: worker.metric("streamqueue_jobs_reaped_total", result="dead") == 1, "it is dead"
    )

    stored = jobs.find_one()
    assert stored is not None
    assert stored["state"] == "dead"
    assert "ghost-7" in stored["last_error"]


async def test_a_job_without_a_limit_of_its_own_dies_by_its_handlers(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    document = held_by_the_dead(attempts=2)
    del document["max_attempts"]
    jobs.insert_one(document)

    worker = start.prepare(max_attempts=9, reap_interval=0.1)
    worker.worker.handler("default", max_attempts=2)(Runs())
    await start.begin(worker)

    await wait_until_async(
        lambda: jobs.find_one({"state": "dead"}) or not jobs.count_documents({}), "it is over"
    )
    assert jobs.count_documents({"state": "dead"}) == 1


async def test_a_reaper_looks_once_in_its_interval_when_nothing_is_running(
    start: WorkerStarter,
) -> None:
    worker = await start(Runs(), reap_interval=0.5, sweep_interval=None)
    await worker.until_idle(0.2)
    worker.commands.forget()

    await anyio.sleep(2)

    looks = worker.commands.besides("getMore")
    assert {look.name for look in looks} == {"find"}
    assert 2 <= len(looks) <= 5


async def test_a_lease_that_another_program_ends_is_returned_at_once(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    runs = Runs()
    held = jobs.insert_one(held_by_the_dead(lease_left=3600)).inserted_id
    worker = await start(runs, reap_interval=60, sweep_interval=None)
    await worker.until_idle()

    jobs.update_one({"_id": held}, {"$set": {"locked_until": datetime.now(UTC)}})

    await worker.until_outcomes(completed=1, within=4)


async def test_reaping_that_failed_is_tried_again(
    start: WorkerStarter, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    runs = Runs()
    worker = await start(runs, reap_interval=0.1)
    await worker.until_idle()

    with failing(client, "update", app=worker.app, times=2, errorCode=262) as hits:
        jobs.insert_one(held_by_the_dead())
        jobs.insert_one({"queue": "other", "state": "ready", "payload": {}})
        jobs.insert_one({"queue": "default", "state": "ready", "payload": {}, "attempts": 7})
        await wait_until_async(lambda: hits.hits() >= 2, "an update failed")

    await wait_until_async(lambda: 2 in runs.attempts, "the job is run", 6)
