"""The change stream breaks in every way it can, and no wake-up is lost.

Laws: the document is the truth; the wake-up path cannot die.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import STREAM_APP, StartedWorker, WorkerStarter

RESUMABLE = ["ResumableChangeStreamError"]


async def nothing(job: AsyncJob) -> None:
    pass


def open_cursors(client: MongoClient[Any]) -> int:
    return int(client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"])


async def until_restarted(worker: StartedWorker, reason: str, times: int = 1) -> None:
    name = "streamqueue_stream_restarts_total"
    await wait_until_async(
        lambda: worker.metric(name, reason=reason) >= times, f"{times} restarts: {reason}"
    )


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("reasons", "fault"),
    [
        ("not_resumable", {"errorCode": 280}),
        ("history_lost", {"errorCode": 286, "errorLabels": ["NonResumableChangeStreamError"]}),
        ("history_lost", {"errorCode": 136}),
        ("network", {"closeConnection": True}),
        # After this the driver looks for a new primary first, and may find none in time.
        ("election or network", {"errorCode": 11600, "errorLabels": RESUMABLE}),
        ("refused", {"errorCode": 13}),
        ("unknown", {"errorCode": 8000}),
    ],
    ids=lambda value: str(value.get("errorCode", "cut")) if isinstance(value, dict) else value,
)
async def test_a_broken_stream_is_reopened_and_what_was_put_meanwhile_is_run(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
    reasons: str,
    fault: dict[str, Any],
) -> None:
    def restarts(**labels: str) -> float:
        return worker.metric("streamqueue_stream_restarts_total", **labels)

    monkeypatch.setattr("streamqueue.stream.verdict.PATIENT", Backoff(0.5, 0.5, jitter=0))
    worker = await start(nothing, sweep_interval=None)
    await worker.until_idle()

    # The driver resumes once by itself; both must fail for the error to come out.
    with failing(client, "getMore", "aggregate", app=STREAM_APP, **fault):
        await wait_until_async(restarts, "it broke")
        assert worker.metric("streamqueue_stream_connected") == 0
        assert "stream" in worker.worker.health.reasons()
        await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    await wait_until_async(
        lambda: worker.metric("streamqueue_stream_connected") == 1, "it is open again"
    )
    assert worker.worker.health.reasons() == {}
    assert sum(restarts(reason=reason) for reason in reasons.split(" or ")) == restarts()


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("fault", "resumes"),
    [
        ({"errorCode": 286, "errorLabels": ["NonResumableChangeStreamError"]}, False),
        ({"errorCode": 280}, False),
        ({"errorCode": 8000}, False),
        ({"errorCode": 13}, True),
    ],
    ids=lambda value: str(value["errorCode"]) if isinstance(value, dict) else "",
)
async def test_a_stream_is_resumed_unless_its_place_may_be_lost(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    resumes: bool,
) -> None:
    monkeypatch.setattr("streamqueue.stream.verdict.PATIENT", Backoff(0.5, 0.5, jitter=0))
    worker = await start(nothing)
    await queue.put({"n": 1})
    await worker.until_outcomes(completed=1)
    worker.commands.forget()

    with failing(client, "getMore", app=STREAM_APP, times=1, **fault):
        await wait_until_async(lambda: worker.commands.named("aggregate"), "it is reopened")

    [opening] = worker.commands.named("aggregate")
    assert ("resumeAfter" in opening.command["pipeline"][0]["$changeStream"]) is resumes


@pytest.mark.parametrize(
    "fault",
    [{"closeConnection": True}, {"errorCode": 11600, "errorLabels": RESUMABLE}],
    ids=["the connection is cut", "an election"],
)
async def test_what_the_driver_resumes_by_itself_loses_no_event(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any], fault: dict[str, Any]
) -> None:
    worker = await start(nothing, sweep_interval=None)
    await worker.until_idle()

    with failing(client, "getMore", app=STREAM_APP, times=1, **fault) as hits:
        await wait_until_async(hits.hits, "it broke")
        await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert worker.metric("streamqueue_stream_restarts_total") == 0


async def test_a_wedged_connection_is_replaced(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamqueue.stream.watcher.WAIT_MARGIN", 0.5)
    worker = await start(nothing, sweep_interval=None)
    await worker.until_idle()
    silent = {"blockConnection": True, "blockTimeMS": 2500}

    with failing(client, "getMore", app=STREAM_APP, times=1, **silent) as hits:
        await wait_until_async(hits.hits, "it is wedged")
        await queue.put({"n": 1})
        await worker.until_outcomes(completed=1)

    assert worker.metric("streamqueue_stream_restarts_total", reason="network") == 1


async def test_an_unknown_error_is_met_about_once_a_second(
    start: WorkerStarter, client: MongoClient[Any]
) -> None:
    worker = await start(nothing)

    with failing(client, "getMore", app=STREAM_APP, errorCode=8000):
        await until_restarted(worker, "unknown")
        first = time.monotonic()
        await until_restarted(worker, "unknown", times=4)

    assert time.monotonic() - first > 3 * 0.5


async def test_an_error_that_comes_back_after_good_reads_makes_no_tight_loop(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    """Every second read fails, while events keep coming."""
    worker = await start(nothing)
    seconds = 1.5
    flaky = {"activationProbability": 0.5}

    with failing(client, "getMore", app=STREAM_APP, mode=flaky, errorCode=286):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await queue.put({"n": 1})

    assert worker.metric("streamqueue_stream_restarts_total") <= 5 * seconds


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["drop", "rename", "drop the database"])
async def test_a_worker_outlives_its_collection(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    worker = await start(nothing, sweep_interval=None)
    await queue.put({"n": 1})
    await worker.until_outcomes(completed=1)

    if how == "drop":
        jobs.drop()
    elif how == "rename":
        jobs.rename("elsewhere")
    else:
        jobs.database.client.drop_database(jobs.database.name)
    await queue.put({"n": 2})

    await worker.until_outcomes(completed=2)
    assert worker.metric("streamqueue_stream_restarts_total", reason="invalidate") >= 1
    warnings = [record for record in caplog.records if record.name == "streamqueue.watcher"]
    assert [record.levelno for record in warnings] == [logging.WARNING]


async def test_a_worker_outlives_its_collection_while_its_handlers_run(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    dropped = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        if job.data["n"] < 5:
            await dropped.wait()

    worker = await start(handler, concurrency=5, sweep_interval=None)
    await queue.put_many([{"n": n} for n in range(30)])
    await wait_until_async(lambda: worker.metric("streamqueue_jobs_running") == 5, "five run")

    jobs.drop()
    dropped.set()
    await wait_until_async(lambda: sum(worker.outcomes().values()) >= 5, "the five have ended")
    ended = sum(worker.outcomes().values())
    await queue.put_many([{"n": 100}, {"n": 101}])

    await wait_until_async(
        lambda: sum(worker.outcomes().values()) == ended + 2, "the new jobs are run"
    )


async def test_a_collection_that_was_made_anew_has_its_indexes_again(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    worker = await start(nothing)
    await worker.until_idle()
    before = set(jobs.index_information())

    jobs.drop()

    await wait_until_async(
        lambda: set(jobs.index_information()) == before, "the indexes are there again"
    )


async def test_no_cursor_is_left_by_streams_that_broke(
    start: WorkerStarter, queue: AsyncMongoQueue, client: MongoClient[Any], jobs: Collection[Any]
) -> None:
    await queue.size()
    before = open_cursors(client)
    worker = await start(nothing)

    # (Not 136: the driver knows that the server has closed the cursor, which a failpoint has not.)
    for code, reason in ((280, "not_resumable"), (286, "history_lost"), (280, "not_resumable")):
        count = worker.metric("streamqueue_stream_restarts_total", reason=reason)
        with failing(client, "getMore", app=STREAM_APP, times=1, errorCode=code):
            await until_restarted(worker, reason, times=int(count) + 1)
        await wait_until_async(
            lambda: worker.metric("streamqueue_stream_connected") == 1, "it is open again"
        )
    jobs.drop()
    await until_restarted(worker, "invalidate")
    await worker.stop()

    await wait_until_async(lambda: open_cursors(client) <= before, "no cursor is left", 3)
