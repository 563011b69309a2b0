"""What a handler returns is the result of its job, which stays for as long as it is kept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Job, PayloadError
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, REPLICATION_TIMED_OUT, WRITE_FAULTS, failing
from tests.worker.started import WorkerStarter


async def doubles(job: AsyncJob) -> Any:
    return job.data["n"] * 2


def doubles_in_a_thread(job: Job) -> Any:
    return job.data["n"] * 2


async def completes(job: AsyncJob) -> Any:
    await job.complete(job.data["n"] * 2)
    return "not this"


def completes_in_a_thread(job: Job) -> Any:
    job.complete(job.data["n"] * 2)
    return "not this"


@pytest.mark.parametrize(
    "handler", [doubles, doubles_in_a_thread, completes, completes_in_a_thread]
)
async def test_what_a_handler_returns_or_completes_with_is_the_result(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], handler: Any
) -> None:
    worker = await start(handler, keep=60)
    await queue.put({"n": 4})

    await worker.until_outcomes(completed=1)

    [document] = jobs.find()
    assert (document["state"], document["result"]) == ("done", 8)
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)
    assert {"lease", "locked_by", "kept", "allowed"}.isdisjoint(document)


async def test_jobs_that_nobody_keeps_are_removed_whatever_their_handlers_return(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def handler(job: AsyncJob) -> object:
        return object()

    worker = await start(handler)
    await queue.put({})

    await worker.until_outcomes(completed=1)

    assert jobs.count_documents({}) == 0
    assert len(worker.commands.named("delete")) == 1 + 1  # that of the check of its rights


@pytest.mark.parametrize(
    ("put", "of_handler", "of_worker", "kept"),
    [
        (None, None, 5, 5),
        (None, 6, 5, 6),
        (7, 6, 5, 7),
        (None, 0, 5, None),
        (0, 6, None, None),
        (7, None, None, 7),
    ],
)
async def test_the_job_decides_how_long_it_stays_before_its_handler_and_that_before_the_worker(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    put: float | None,
    of_handler: float | None,
    of_worker: float | None,
    kept: float | None,
) -> None:
    worker = start.prepare(keep=of_worker)

    @worker.worker.handler("default", keep=of_handler)
    async def handler(job: AsyncJob) -> None:
        pass

    await start.begin(worker)
    await queue.put({}, keep=put)

    await worker.until_outcomes(completed=1)

    stays = [document["removed_at"] - document["finished_at"] for document in jobs.find()]
    assert stays == ([] if kept is None else [timedelta(seconds=kept)])


async def test_a_claim_of_two_queues_tells_each_job_how_long_it_stays(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], async_jobs: Any
) -> None:
    worker = start.prepare()
    go = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        await go.wait()

    worker.worker.handler("default", keep=5)(handler)
    worker.worker.handler("other")(handler)
    async with AsyncMongoQueue(async_jobs, name="other") as other:
        await other.put_many([{}, {}])
        await queue.put_many([{}, {}])
        await start.begin(worker)
        await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 4, "all run")
        told = {(document["queue"], document.get("kept")) for document in jobs.find()}
        go.set()
        await worker.until_outcomes(completed=4)

    assert told == {("default", 5), ("other", None)}
    assert {document["queue"] for document in jobs.find()} == {"default"}


async def test_a_worker_that_keeps_makes_the_index_by_which_jobs_are_removed(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    await start(doubles, keep=60)

    assert "streamqueue_removed" in jobs.index_information()


async def test_kept_jobs_that_finish_together_share_their_updates(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    running, go = 0, anyio.Event()

    async def handler(job: AsyncJob) -> int:
        nonlocal running
        running += 1
        await go.wait()
        return int(job.data["n"])

    worker = await start(handler, concurrency=100, keep=60)
    await queue.put_many([{"n": n} for n in range(100)])
    await wait_until_async(lambda: running == 100, "all run")
    worker.commands.forget()

    go.set()
    await worker.until_outcomes(completed=100)

    writes = [sent for sent in worker.commands.named("update") if "'done'" in str(sent.command)]
    assert 1 <= len(writes) <= 10
    assert all(document["result"] == document["payload"]["n"] for document in jobs.find())


async def test_results_that_are_too_large_for_one_write_share_as_many_as_they_need(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    running, go = 0, anyio.Event()

    async def handler(job: AsyncJob) -> str:
        nonlocal running
        running += 1
        await go.wait()
        return "x" * 1_000_000

    worker = await start(handler, concurrency=60, keep=60)
    await queue.put_many([{} for _ in range(60)])  # a message may have 48 MB
    await wait_until_async(lambda: running == 60, "all run")

    go.set()
    await worker.until_outcomes(completed=60)

    assert jobs.count_documents({"state": "done"}) == 60


@pytest.mark.few(3)
@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("fault", WRITE_FAULTS.values(), ids=WRITE_FAULTS)
async def test_kept_jobs_whose_first_completes_fail_are_done_once(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    fault: dict[str, Any],
    count: int,
) -> None:
    running, go = 0, anyio.Event()

    async def handler(job: AsyncJob) -> int:
        nonlocal running
        running += 1
        await go.wait()
        return 5

    worker = await start(handler, keep=60)
    await queue.put_many([{} for _ in range(count)])
    await wait_until_async(lambda: running == count, "all run")

    with failing(client, "update", app=worker.app, times=3, **fault) as hits:
        go.set()
        await worker.until_outcomes(completed=count)
        assert hits.hits() > 0

    assert [document["result"] for document in jobs.find({"state": "done"})] == [5] * count
    assert running == count


async def test_a_kept_job_that_was_lost_is_not_done_with_the_others_of_its_group(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    running, go = 0, anyio.Event()

    async def handler(job: AsyncJob) -> None:
        nonlocal running
        running += 1
        await go.wait()

    worker = await start(handler, keep=60)
    ids = await queue.put_many([{} for _ in range(10)])
    await wait_until_async(lambda: running == 10, "all run")
    jobs.update_one({"_id": ids[3]}, {"$set": {"lease": b"an operator's"}})

    go.set()
    await worker.until_outcomes(completed=9, lease_lost=1)

    assert [document["_id"] for document in jobs.find({"state": "running"})] == [ids[3]]


UNSTORABLE: dict[str, tuple[Callable[[], object], str]] = {
    "a type": (lambda: {"at": [date(2026, 1, 1)]}, "datetime.date, at result['at'][0]"),
    "a size": (lambda: "x" * 2**21, "2,097,1"),
}


@pytest.mark.parametrize("awaited", ["at its claim", "later", None])
@pytest.mark.parametrize(("make", "message"), UNSTORABLE.values(), ids=UNSTORABLE)
async def test_a_result_that_cannot_be_stored_makes_the_job_dead_at_once(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    make: Callable[[], object],
    message: str,
    awaited: str | None,
) -> None:
    go = anyio.Event()

    async def handler(job: AsyncJob) -> object:
        await go.wait()
        return make()

    worker = start.prepare(handler)
    job_id = await queue.put({}, keep=None if awaited else 60)
    if awaited == "at its claim":
        jobs.update_one({"_id": job_id}, {"$set": {"awaited": True}})
    await start.begin(worker)
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")
    if awaited == "later":
        jobs.update_one({"_id": job_id}, {"$set": {"awaited": True}})
    go.set()

    await worker.until_outcomes(dead=1)

    [document] = jobs.find()
    assert (document["state"], document["attempts"]) == ("dead", 1)
    assert message in document["last_error"]
    assert document.get("awaited") is (False if awaited else None)


async def test_a_handler_that_completes_with_what_cannot_be_stored_is_told(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    told: list[Exception] = []

    async def handler(job: AsyncJob) -> None:
        try:
            await job.complete(object())
        except PayloadError as error:
            told.append(error)

    worker = await start(handler, keep=60)
    await queue.put({})

    await worker.until_outcomes(dead=1)

    assert "at result" in str(told[0])
    assert jobs.count_documents({"state": "dead"}) == 1


@pytest.mark.parametrize("count", [1, 3])
async def test_a_job_that_the_server_refuses_with_its_result_is_dead_at_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], count: int
) -> None:
    worker = await start(doubles, keep=60)
    jobs.database.command("collMod", jobs.name, validator={"result": {"$ne": 8}})

    await queue.put_many([{"n": 4 + n} for n in range(count)])

    await worker.until_outcomes(dead=1, **({"completed": count - 1} if count > 1 else {}))
    [document] = jobs.find({"state": "dead"})
    assert document["attempts"] == 1
    assert "with this result of" in document["last_error"]


@pytest.mark.parametrize("count", [1, 10])
async def test_jobs_that_are_awaited_only_while_they_run_stay_with_their_results(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], count: int
) -> None:
    running, go = 0, anyio.Event()

    async def handler(job: AsyncJob) -> int:
        nonlocal running
        running += 1
        await go.wait()
        return int(job.data["n"])

    worker = await start(handler)
    ids = await queue.put_many([{"n": n} for n in range(count)])
    await wait_until_async(lambda: running == count, "all run")
    jobs.update_one({"_id": ids[0]}, {"$set": {"awaited": True}})

    go.set()
    await worker.until_outcomes(completed=count)

    [document] = jobs.find()
    assert (document["_id"], document["state"]) == (ids[0], "done")
    assert (document["result"], document["awaited"]) == (0, False)
    assert document["removed_at"] - document["finished_at"] == timedelta(seconds=60)


@pytest.mark.parametrize("fault", [CONNECTION_CUT, REPLICATION_TIMED_OUT])
async def test_an_awaited_job_stays_though_the_delete_that_leaves_it_fails_at_first(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    fault: dict[str, Any],
) -> None:
    go = anyio.Event()

    async def handler(job: AsyncJob) -> int:
        await go.wait()
        return 7

    worker = await start(handler)
    await queue.put({})
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 1, "it runs")
    jobs.update_one({}, {"$set": {"awaited": True}})

    with failing(client, "delete", app=worker.app, times=2, **fault):
        go.set()
        await worker.until_outcomes(completed=1)

    assert [document["result"] for document in jobs.find({"state": "done"})] == [7]


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_job_that_is_done_by_a_transaction_is_known_to_be(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], awaited: bool
) -> None:
    async def handler(job: AsyncJob) -> None:
        sessions = settings_of(worker.worker).store.jobs.database.client
        session: AsyncClientSession
        async with sessions.start_session() as session, await session.start_transaction():
            await job.complete(3, session=session)
        await wait_until_async(lambda: over, "it may end")

    over = False
    worker = start.prepare(handler, keep=None if awaited else 60, timeout=1.5)
    await queue.put({})
    if awaited:
        jobs.update_one({}, {"$set": {"awaited": True}})
    await start.begin(worker)
    await wait_until_async(lambda: jobs.count_documents({"state": "done"}), "it is done")
    await wait_until_async(lambda: worker.commands.renewals(), "a renewal finds out", 3)
    over = True

    await worker.until_outcomes(completed=1)

    assert [document["result"] for document in jobs.find()] == [3]
