"""How many attempts a job has in a worker: its own number, its handler's, or the worker's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, NewJob
from streamqueue.store.flows import claims
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

Put = Callable[[AsyncMongoQueue, Collection[Any], dict[str, Any]], Awaitable[object]]


async def _put(queue: AsyncMongoQueue, _: Collection[Any], said: dict[str, Any]) -> object:
    return await queue.put({}, **said)


async def _put_many(queue: AsyncMongoQueue, _: Collection[Any], said: dict[str, Any]) -> object:
    return await queue.put_many([{}], **said)


async def _new_job(queue: AsyncMongoQueue, _: Collection[Any], said: dict[str, Any]) -> object:
    return await queue.put_many([NewJob({}, **said)])


async def _foreign(_: AsyncMongoQueue, jobs: Collection[Any], said: dict[str, Any]) -> object:
    return jobs.insert_one({"queue": "default", "state": "ready", "payload": {}, **said})


WAYS = {"put": _put, "put_many": _put_many, "NewJob": _new_job, "foreign": _foreign}


@pytest.mark.few(4)
@pytest.mark.parametrize("put", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("job", "handler", "wins"),
    [(None, None, 8), (None, 10, 10), (2, 10, 2), (2, None, 2)],
    ids=["worker", "handler", "job before handler", "job before worker"],
)
async def test_who_says_how_many_attempts_a_job_has(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    put: Put,
    job: int | None,
    handler: int | None,
    wins: int,
) -> None:
    seen: list[tuple[int, Any]] = []

    async def handle(job: AsyncJob) -> None:
        stored = jobs.find_one({"_id": job.id})
        assert stored is not None
        seen.append((job.max_attempts, stored["allowed"]))

    await put(queue, jobs, {} if job is None else {"max_attempts": job})
    worker = start.prepare(max_attempts=8)
    worker.worker.handler("default", max_attempts=handler)(handle)
    await start.begin(worker)

    await wait_until_async(lambda: seen, "it ran")
    assert seen == [(wins, wins)]


async def test_one_claim_goes_by_the_number_of_each_queue(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    seen: dict[str, tuple[int, Any]] = {}

    async def handle(job: AsyncJob) -> None:
        stored = jobs.find_one({"_id": job.id})
        assert stored is not None
        seen[job.queue] = (job.max_attempts, stored["allowed"])

    limits = {"a": 4, "b": 5, "c": None, "d": 5}
    for name in limits:
        await AsyncMongoQueue(queue._jobs, name=name).put({})
    worker = start.prepare(max_attempts=6)
    for name, limit in limits.items():
        worker.worker.handler(name, max_attempts=limit)(handle)
    await start.begin(worker)

    await wait_until_async(lambda: len(seen) == 4, "all ran")
    assert seen == {"a": (4, 4), "b": (5, 5), "c": (6, 6), "d": (5, 5)}
    assert len(worker.commands.claims()) == 1


async def test_a_job_that_is_moved_while_it_is_claimed_is_given_back(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its claim is answered with a queue that this worker has no handler for."""
    ran: list[object] = []

    async def handle(job: AsyncJob) -> None:
        ran.append(job.id)

    ids = await queue.put_many([{}, {}, {}])
    worker = start.prepare()
    worker.worker.handler("default")(handle)
    claim = claims.claim_once

    def moved(*arguments: Any) -> Any:
        documents = yield from claim(*arguments)
        for document in documents:
            if document["_id"] == ids[1]:
                jobs.update_one({"_id": ids[1]}, {"$set": {"queue": "elsewhere"}})
                document["queue"] = "elsewhere"
        return documents

    monkeypatch.setattr(claims, "claim_once", moved)
    await start.begin(worker)

    await worker.until_outcomes(completed=2)
    moved_job = await wait_until_async(
        lambda: jobs.find_one({"queue": "elsewhere", "state": "ready"}), "it is given back"
    )
    assert moved_job["attempts"] == 0
    assert ran == [ids[0], ids[2]]
