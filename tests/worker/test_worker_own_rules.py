"""A user's own unique index: what it refuses now waits in a worker, and keeps no other from it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import WorkerStarter

READY = {"queue": "default", "state": "ready", "priority": 0}


class Customers:
    """A handler that notes the customers, and lets them wait until told otherwise."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go_on = anyio.Event()

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append(job.data["customer"])
        if job.data["customer"] == "ada":
            await self.go_on.wait()


def one_at_a_time(jobs: Collection[Any]) -> None:
    jobs.create_index("payload.customer", unique=True, partialFilterExpression={"state": "running"})


async def put_all(queue: AsyncMongoQueue) -> None:
    await queue.put_many([{"customer": name} for name in ("ada", "ada", "ben", "eve")])


async def until_all_ran(customers: Customers, jobs: Collection[Any]) -> None:
    await wait_until_async(lambda: len(customers.seen) >= 3, "the others ran", 5)
    assert sorted(customers.seen) == ["ada", "ben", "eve"]
    customers.go_on.set()
    await wait_until_async(lambda: not jobs.count_documents({}), "all jobs are done", 10)
    assert sorted(customers.seen) == ["ada", "ada", "ben", "eve"]


@pytest.mark.parametrize("waiting", [True, False], ids=["found by a look", "announced"])
async def test_a_forbidden_claim_starves_no_other_job_of_a_worker(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], waiting: bool
) -> None:
    customers = Customers()
    one_at_a_time(jobs)
    if waiting:
        await put_all(queue)
    worker = await start(customers)
    await worker.until_idle(0.02)
    if not waiting:
        await put_all(queue)

    await until_all_ran(customers, jobs)


async def test_a_forbidden_claim_starves_no_other_job_at_a_dispatchers_members(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    customers = Customers()
    one_at_a_time(jobs)
    await members.open()
    await members.start_many(2, customers)

    await put_all(queue)

    await until_all_ran(customers, jobs)


@pytest.mark.parametrize(
    "odd",
    [READY | {"queue": ["default"], "payload": {}}, READY | {"payload": "damaged"}],
    ids=["odd", "damaged"],
)
async def test_a_document_that_may_not_be_buried_starves_no_other_job(
    start: WorkerStarter, jobs: Collection[Any], odd: dict[str, Any]
) -> None:
    jobs.create_index("priority", unique=True, partialFilterExpression={"state": "dead"})
    jobs.insert_one({"state": "dead", "priority": 0})
    jobs.insert_one({**odd, "run_at": datetime(2020, 1, 1, tzinfo=UTC)})
    jobs.insert_one(READY | {"run_at": datetime.now(UTC), "payload": {"customer": "ben"}})
    customers = Customers()

    worker = await start(customers)

    await worker.until_outcomes(completed=1)
    assert customers.seen == ["ben"]
    assert worker.error is None


async def test_what_may_not_be_given_back_at_the_end_keeps_no_other_from_it(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def waits(job: AsyncJob) -> None:
        await anyio.sleep_forever()

    jobs.create_index("payload.customer", unique=True, partialFilterExpression={"state": "ready"})
    await queue.put_many([{"customer": name} for name in ("ada", "ben", "eve")])
    worker = await start(waits, drain_timeout=0)
    await wait_until_async(lambda: jobs.count_documents({"state": "running"}) == 3, "all run")
    jobs.insert_one({"queue": "other", "state": "ready", "payload": {"customer": "ada"}})

    worker.worker.stop()

    await wait_until_async(worker.ended.is_set, "it has stopped", 10)
    assert jobs.count_documents({"state": "ready"}) == 3
    assert jobs.count_documents({"state": "running", "payload.customer": "ada"}) == 1
