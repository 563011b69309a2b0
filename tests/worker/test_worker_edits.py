"""What other programs write into a job wakes workers, alone and dispatched to.

Laws: nothing is stuck; the document is the truth; nobody polls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob
from tests.edits import EDITS, job
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import StartedWorker, WorkerStarter

Begin = Callable[..., Awaitable[StartedWorker]]
"""Starts a worker that looks at nothing but what it is told."""


@pytest.fixture(params=["alone", "dispatched"])
async def begin(request: pytest.FixtureRequest, start: WorkerStarter, members: Members) -> Begin:
    async def begin_one(handler: Callable[..., Any], **settings: Any) -> StartedWorker:
        settings = {"sweep_interval": None, "reap_interval": 60, **settings}
        if request.param == "alone":
            return await start(handler, **settings)
        await members.open()
        return await members.start(handler, **settings)

    return begin_one


async def test_every_edit_by_hand_that_makes_a_job_runnable_has_it_run(
    begin: Begin, jobs: Collection[Any]
) -> None:
    ran: set[Any] = set()

    async def handler(job: AsyncJob) -> None:
        ran.add(job.id)

    jobs.insert_many([stored for stored, _ in EDITS.values()])
    worker = await begin(handler)
    await worker.until_idle()

    for stored, edit in EDITS.values():
        assert jobs.update_one({"_id": stored["_id"]}, edit()).matched_count

    wanted = {stored["_id"]: name for name, (stored, _) in EDITS.items()}
    with anyio.move_on_after(5):
        await wait_until_async(lambda: ran >= set(wanted), "all have run", 6)
    assert [name for job_id, name in wanted.items() if job_id not in ran] == []


@pytest.mark.slow
async def test_a_job_without_a_place_that_is_made_ready_does_not_stand_behind_all_that_comes(
    begin: Begin, jobs: Collection[Any]
) -> None:
    """An absent priority sorts behind every number; a plain update does not show that it is."""
    order: list[Any] = []
    started, go_on = anyio.Event(), anyio.Event()

    async def handler(job: AsyncJob) -> None:
        order.append(job.data["n"])
        started.set()
        await go_on.wait()

    old = datetime.now(UTC) - timedelta(hours=1)
    unplaced = {"_id": ObjectId(), "queue": "default", "payload": {"n": "unplaced"}}
    jobs.insert_one({**unplaced, "state": "draft", "run_at": old})
    jobs.insert_many([job(payload={"n": n}) for n in range(50)])
    await begin(handler, concurrency=1)
    await started.wait()

    jobs.update_one({"_id": unplaced["_id"]}, {"$set": {"state": "ready"}})
    go_on.set()
    for n in range(50, 3000):  # one after the other, so that some come when it has been seen
        jobs.insert_one(job(payload={"n": n}))
        await anyio.lowlevel.checkpoint()
        if "unplaced" in order:
            break

    await wait_until_async(lambda: "unplaced" in order, "it has run", 20)
    assert len(order) < 2900
