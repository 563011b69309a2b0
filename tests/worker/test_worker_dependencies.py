"""Jobs that come after others, in a worker: all of them run, and nobody asks more than need be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Discard, NewJob, Retry
from streamqueue.store.asynchronous import AsyncStore
from tests.waiting import wait_until_async
from tests.worker.started import Sent, WorkerStarter


class Results:
    """A handler that returns a number for each job, and notes what it sees of the parents."""

    def __init__(self) -> None:
        self.seen: dict[Any, list[Any]] = {}
        self.go = anyio.Event()
        self.go.set()

    async def __call__(self, job: AsyncJob) -> int:
        self.seen[job.id] = [result async for result in job.parents]
        await self.go.wait()
        n: int = job.data.get("n", -1)
        if n < -1:
            raise Discard("never")
        return n


async def until_seen(results: Results, *ids: Any) -> None:
    await wait_until_async(lambda: results.seen.keys() >= set(ids), "not all have run")


async def put_pair(queue: AsyncMongoQueue) -> None:
    """A job and one that comes after it, in one call: beside a worker the second is too late."""
    parent = ObjectId()
    await queue.put_many([NewJob({}, job_id=parent), NewJob({}, after=[parent])])


def looks(sent: list[Sent]) -> list[Mapping[str, Any]]:
    """The commands that look for dependents, or for who needs a parent."""
    return [
        one.command
        for one in sent
        if any(word in str(one.command) for word in ("waits_for.parents", "'after'", "'needed': 1"))
    ]


async def test_each_of_many_dependents_runs_with_the_result_of_its_parent(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    results = Results()
    await start(results, concurrency=50)
    parents, dependents = ([ObjectId() for _ in range(300)] for _ in range(2))

    await queue.put_many(
        [
            *(NewJob({"n": n}, job_id=one) for n, one in enumerate(parents)),
            *(
                NewJob({}, job_id=one, after=[parent])
                for one, parent in zip(dependents, parents, strict=True)
            ),
        ]
    )

    await until_seen(results, *dependents)
    assert [results.seen[one] for one in dependents] == [[n] for n in range(300)]


async def test_a_fan_in_runs_once_after_all_of_its_parents(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    results = Results()
    await start(results, concurrency=50)
    parents, last = [ObjectId() for _ in range(300)], ObjectId()

    await queue.put_many(
        [
            NewJob({}, job_id=last, after=parents),
            *(NewJob({"n": n}, job_id=one) for n, one in enumerate(parents)),
        ]
    )

    await until_seen(results, last)
    assert results.seen[last] == list(range(300))


@pytest.mark.parametrize("n", [1, -2], ids=["is done", "is discarded"])
@pytest.mark.parametrize("keep", [None, 60])
async def test_a_parent_that_was_marked_while_it_ran_lets_run(
    start: WorkerStarter, queue: AsyncMongoQueue, keep: float | None, n: int
) -> None:
    results = Results()
    results.go = anyio.Event()
    await start(results, concurrency=10)
    parent = await queue.put({"n": n}, keep=keep)
    await until_seen(results, parent)
    dependent = await queue.put({}, after=[parent], if_parent_fails="run")

    results.go.set()

    await until_seen(results, dependent)
    assert results.seen[dependent] == [n if n > 0 else None]


async def test_parents_that_end_together_are_asked_for_together(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    results = Results()
    results.go = anyio.Event()
    worker = await start(results, concurrency=100)
    parents = [ObjectId() for _ in range(100)]
    dependent = ObjectId()
    await queue.put_many(
        [
            *(NewJob({"n": 1}, job_id=one) for one in parents),
            NewJob({}, job_id=dependent, after=parents),
        ]
    )
    await until_seen(results, *parents)
    before = len(worker.commands.all)

    results.go.set()
    await until_seen(results, dependent)

    assert len(looks(worker.commands.all[before:])) <= 12


async def test_nobody_is_asked_about_what_ends_while_others_are_asked_about(
    start: WorkerStarter, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []
    answer = anyio.Event()
    tell = AsyncStore.tell_dependents

    async def slowly(store: AsyncStore, ids: list[Any], **more: Any) -> None:
        asked.append(ids)
        await answer.wait()
        await tell(store, ids, **more)

    monkeypatch.setattr(AsyncStore, "tell_dependents", slowly)
    results = Results()
    worker = await start(results, concurrency=1)
    parents, dependent = [ObjectId() for _ in range(20)], ObjectId()
    await queue.put_many(
        [
            *(NewJob({"n": 1}, job_id=one) for one in parents),
            NewJob({}, job_id=dependent, after=parents),
        ]
    )
    await worker.until_outcomes(completed=20)
    while_unanswered = len(asked)

    answer.set()
    await until_seen(results, dependent)

    assert (while_unanswered, len(asked)) == (1, 2)


async def test_jobs_that_nobody_comes_after_cost_no_look(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    worker = await start(Results())
    await queue.put_many([{"n": 1}] * 20)
    await worker.until_outcomes(completed=20)
    before = len(worker.commands.all)
    await queue.put_many([{"n": 1}] * 20)
    await worker.until_outcomes(completed=40)

    assert looks(worker.commands.all[before:]) == []


async def test_a_dependent_whose_producer_died_before_it_looked_runs(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    results = Results()
    worker = await start(results, timeout=1)
    parent = await queue.put({"n": 1}, keep=60)
    await worker.until_outcomes(completed=1)
    lost = {"queue": "default", "state": "waiting", "payload": {}, "after": [parent]}

    dependent = jobs.insert_one({**lost, "waits_for": {"parents": parent}}).inserted_id

    await until_seen(results, dependent)


async def test_a_dependent_that_is_retried_sees_its_parents_again(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen: list[Any] = []

    async def handler(job: AsyncJob) -> str | None:
        if not job.parents:
            return "result"
        seen.append([result async for result in job.parents])
        if job.attempts == 1:
            raise Retry(0)
        return None

    worker = await start(handler)
    await put_pair(queue)
    await worker.until_outcomes(completed=2, retried=1)

    assert seen == [["result"], ["result"]]


async def test_a_blocking_handler_reads_the_results_of_its_parents(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen: list[Any] = []

    def handler(job: Any) -> str:
        seen.extend(job.parents)
        return "result"

    worker = await start(handler)
    await put_pair(queue)
    await worker.until_outcomes(completed=2)

    assert seen == ["result"]
