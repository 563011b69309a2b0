"""A worker that is cancelled, instead of stopped, holds nothing afterwards."""

from __future__ import annotations

from typing import Any

import anyio
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import WorkerStarter


async def nothing(job: AsyncJob) -> None:
    pass


async def test_a_claim_under_way_when_it_is_cancelled_is_given_back(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    jobs: Collection[Any],
) -> None:
    worker = start.prepare(nothing)
    slow = {"blockConnection": True, "blockTimeMS": 300}

    async with anyio.create_task_group() as tasks:
        await tasks.start(worker.worker.run)
        await worker.until_idle()
        with failing(client, "update", "findAndModify", app=worker.app, **slow) as fault:
            await queue.put({})
            await wait_until_async(fault.hits, "the claim is under way")
            tasks.cancel_scope.cancel()

    stored = jobs.find_one()
    assert stored is not None
    assert (stored["state"], stored["attempts"]) == ("ready", 0)
