"""A worker among newer ones: their jobs, and what they note of themselves beside the jobs."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, Retry
from streamqueue.store.asynchronous import AsyncStore
from streamqueue.worker.partition import Partition
from tests.worker.started import WorkerStarter

NEWER: dict[str, Any] = {"v": 2, "group": "tenant-7", "trace": {"id": [1, {"$a": "b.c"}]}}
"""Fields that this version does not know."""


def newer_job(number: int, **fields: Any) -> dict[str, Any]:
    job = {"queue": "default", "state": "ready", "payload": {"n": number}}
    return {**job, **NEWER, **fields}


async def retries_once(job: AsyncJob) -> None:
    if job.attempts == 1:
        raise Retry(delay=0)


async def postpones(job: AsyncJob) -> None:
    raise Retry(delay=600)


async def test_jobs_of_a_newer_version_are_run_from_events_and_from_a_backlog(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    jobs.insert_many([newer_job(n) for n in range(50)])
    worker = await start(retries_once)
    await worker.until_outcomes(completed=50, retried=50)

    await worker.until_idle()
    jobs.insert_one(newer_job(50))

    await worker.until_outcomes(completed=51, retried=51)
    assert jobs.count_documents({}) == 0


async def test_unknown_fields_survive_a_failed_attempt_in_a_worker(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    jobs.insert_one(newer_job(1))

    worker = await start(postpones)
    await worker.until_outcomes(retried=1)

    stored = jobs.find_one({"state": "scheduled"})
    assert stored is not None
    assert {name: stored[name] for name in NEWER} == NEWER


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"version": "2.0", "host": {"name": "a"}, "leader_until": None}, id="more"),
        pytest.param({"started_at": None, "concurrency": "many"}, id="others of other types"),
    ],
)
async def test_a_consumer_of_a_newer_version_has_its_turn(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], entry: dict[str, Any]
) -> None:
    listed = jobs.database[f"{jobs.name}.consumers"]
    known = {"queues": ["default"], "seen_at": "$$NOW"}
    new = {name: {"$literal": value} for name, value in entry.items()}
    listed.update_one({"_id": "newer"}, [{"$set": known | new}], upsert=True)
    partition = Partition(AsyncStore(async_jobs), "older", ["default"], 1)

    await partition.join()

    assert partition.count() == 2
    stored = listed.find_one({"_id": "newer"})
    assert stored is not None
    assert {name: stored[name] for name in entry} == entry


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"seen_at": "$$NOW"}, id="without queues"),
        pytest.param({"seen_at": "$$NOW", "queues": "default"}, id="queues in another form"),
        pytest.param({"queues": ["default"]}, id="never seen"),
    ],
)
async def test_an_entry_that_says_too_little_gets_no_turn_and_disturbs_nobody(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], entry: dict[str, Any]
) -> None:
    jobs.database[f"{jobs.name}.consumers"].update_one(
        {"_id": "odd"}, [{"$set": {"kind": "of another program", **entry}}], upsert=True
    )
    partition = Partition(AsyncStore(async_jobs), "ada", ["default"], 1)

    await partition.join()

    assert partition.count() == 1
    assert partition.turn({"_id": ObjectId(), "queue": "default"}) == 0
