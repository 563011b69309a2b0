"""``run_until_empty``: a worker in a test."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    ConfigurationError,
    Discard,
    Job,
    MongoQueue,
    Retry,
    Snooze,
    Worker,
)
from streamqueue.testing import AttemptFailed, run_until_empty
from tests.waiting import free_port

A_MINUTE = Backoff(initial=60)
worker = Worker(AsyncMongoClient[dict[str, Any]]("mongodb://nowhere.invalid/").shop.jobs)
"""As a module makes it, with an address that does not answer."""
ran: list[Any] = []


@worker.handler("default", backoff=A_MINUTE)
async def handle(job: AsyncJob) -> None:
    ran.append(job.data["n"])
    match job.data.get("how"):
        case "fails":
            raise ZeroDivisionError("one of our own")
        case "says so":
            await job.error("it said so")
        case "again":
            raise Retry(3600)
        case "later":
            raise Snooze(3600) if job.attempts == 1 and job.last_error is None else Discard("no")
        case "exits":
            raise SystemExit(3)
        case "fails once" if job.attempts == 1:
            raise ZeroDivisionError


@worker.handler("blocking")
def handle_blocking(job: Job) -> None:
    raise KeyError(job.data["n"])


@pytest.fixture(autouse=True)
def _ran() -> None:
    ran.clear()


@pytest.fixture
def queue(jobs: Collection[Any]) -> MongoQueue:
    return MongoQueue(jobs)


async def test_a_worker_of_a_module_runs_on_the_collection_of_the_test(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put_many([{"n": 1}, {"n": 2}])

    report = await run_until_empty(worker, async_jobs)

    assert sorted(ran) == [1, 2]
    assert (report.done, report.failed, report.ready) == (2, [], 0)
    assert queue.size() == 0


@pytest.mark.parametrize("time", ["first", "second"])
def test_it_may_be_run_in_one_event_loop_after_the_other(
    uri: str, jobs: Collection[Any], queue: MongoQueue, time: str
) -> None:
    async def run() -> None:
        async with AsyncMongoClient[dict[str, Any]](uri) as client:
            await run_until_empty(worker, client[jobs.database.name][jobs.name])

    for n in (1, 2):
        queue.put({"n": n})
        anyio.run(run)

    assert ran == [1, 2]


async def test_the_first_failure_is_raised_as_it_was_with_its_job_and_the_line_of_the_handler(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    job_id = queue.put({"n": 1, "how": "fails"})

    with pytest.raises(ZeroDivisionError, match="one of our own") as caught:
        await run_until_empty(worker, async_jobs)

    assert caught.value.__notes__ == [f"attempt 1 of 3 of job {job_id} in queue default failed"]
    assert "handle" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


async def test_a_failure_ends_the_run(async_jobs: AsyncCollection[Any], queue: MongoQueue) -> None:
    queue.put({"n": 1, "how": "fails"}, priority=1)
    queue.put_many([{"n": n} for n in range(2, 500)])
    one_at_a_time = Worker(async_jobs, concurrency=1)
    one_at_a_time.handler("default")(handle)

    with pytest.raises(ZeroDivisionError):
        await run_until_empty(one_at_a_time)

    assert len(ran) < 400


async def test_the_failure_of_a_blocking_handler_is_raised(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    MongoQueue(jobs, name="blocking").put({"n": "a key"})

    with pytest.raises(KeyError, match="a key"):
        await run_until_empty(worker, async_jobs)


async def test_a_retry_that_a_handler_asks_for_is_a_failure_too(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": 1, "how": "again"})

    with pytest.raises(Retry):
        await run_until_empty(worker, async_jobs)


async def test_a_failure_without_an_exception_is_raised_with_its_message(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": 1, "how": "says so"})

    with pytest.raises(AttemptFailed, match=r"attempt 1 of 3 of job .* failed: it said so"):
        await run_until_empty(worker, async_jobs)


async def test_a_handler_that_ends_the_program_ends_no_test(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": 1, "how": "exits"})

    with pytest.raises(AttemptFailed, match="SystemExit: 3") as caught:
        await run_until_empty(worker, async_jobs)

    assert isinstance(caught.value.__cause__, SystemExit)


async def test_failures_are_collected_if_that_is_asked_for(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    bad = queue.put({"n": 1, "how": "fails"}, max_attempts=1)
    queue.put({"n": 2})
    said = queue.put({"n": 3, "how": "says so"})

    report = await run_until_empty(worker, async_jobs, failures="collect")

    assert report.done == 1
    by_id = {failed.job_id: failed for failed in report.failed}
    assert (by_id[bad].dead, type(by_id[bad].error)) == (True, ZeroDivisionError)
    assert 'raise ZeroDivisionError("one of our own")' in by_id[bad].message
    assert by_id[bad].data == {"n": 1, "how": "fails"}
    assert (by_id[said].dead, by_id[said].error, by_id[said].message) == (False, None, "it said so")
    assert report.scheduled == 1


async def test_what_is_to_run_later_is_left_and_named(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    later = queue.put({"n": 1}, delay=3600)
    queue.put({"n": 2}, after=[later])

    report = await run_until_empty(worker, async_jobs)

    assert (report.done, report.scheduled, report.waiting) == (0, 1, 1)


async def test_with_due_what_is_to_run_later_runs_and_what_comes_after_it(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    later = queue.put({"n": 1}, delay=3600)
    queue.put({"n": 2}, after=[later])

    report = await run_until_empty(worker, async_jobs, due=True)

    assert ran == [1, 2]
    assert (report.done, report.scheduled, report.waiting) == (2, 0, 0)


async def test_with_due_retries_go_on_until_the_job_is_done_or_dead(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": 1, "how": "fails"})
    queue.put({"n": 2, "how": "fails once"})

    report = await run_until_empty(worker, async_jobs, due=True, failures="collect")

    assert sorted(ran) == [1, 1, 1, 2, 2]
    assert [failed.dead for failed in report.failed if failed.data["n"] == 1] == [
        False,
        False,
        True,
    ]
    assert report.done == 1


async def test_with_due_a_group_does_not_wait_for_the_backoff_of_its_head(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    in_order = Worker(async_jobs)
    in_order.handler("default", ordered=True, backoff=A_MINUTE)(handle)
    queue.put({"n": 1, "how": "fails once"}, group="ada")
    queue.put({"n": 2}, group="ada")

    with anyio.fail_after(20):
        await run_until_empty(in_order, due=True, failures="collect")

    assert ran == [1, 1, 2]


async def test_a_paused_queue_is_left_also_with_due(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    queue.put({"n": 1})
    queue.put({"n": 2}, delay=60)
    queue.pause()

    report = await run_until_empty(worker, async_jobs, due=True)

    assert ran == []
    assert (report.paused, report.scheduled) == (1, 1)


async def test_a_job_that_puts_itself_ends_at_the_limit(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    times = 0

    async def puts_itself(job: AsyncJob) -> None:
        nonlocal times
        times += 1
        async with AsyncMongoQueue(async_jobs) as again:
            await again.put({})

    endless = Worker(async_jobs)
    endless.handler("default")(puts_itself)
    queue.put({})

    with anyio.fail_after(10):
        report = await run_until_empty(endless, limit=5)

    assert times == report.done == 5
    assert report.ready == 1


async def test_it_runs_though_the_port_of_the_metrics_is_taken(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    serving = Worker(async_jobs, metrics_port=free_port())
    serving.handler("default")(handle)
    queue.put({"n": 1})

    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: serving.run(task_status=task_status))
        await run_until_empty(serving, async_jobs)
        serving.stop()

    assert ran == [1]


async def test_what_is_kept_by_a_handler_is_kept(
    async_jobs: AsyncCollection[Any], queue: MongoQueue
) -> None:
    keeping = Worker(async_jobs)

    async def returns(job: AsyncJob) -> int:
        return 42

    keeping.handler("default", keep=60)(returns)
    job_id = queue.put({})

    await run_until_empty(keeping)

    assert queue.result(job_id) == 42


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"failures": "ignore"}, "failures must be 'raise' or 'collect', not 'ignore'"),
        ({"limit": 0}, "limit must be"),
    ],
    ids=["failures", "limit"],
)
async def test_a_wrong_argument_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        await run_until_empty(worker, **arguments)


async def test_a_patched_clock_is_a_line_of_the_log(
    async_jobs: AsyncCollection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)

    with caplog.at_level(logging.WARNING, "streamqueue.testing"):
        await run_until_empty(worker, async_jobs)

    lines = [record for record in caplog.records if record.name == "streamqueue.testing"]
    assert [getattr(line, "event", None) for line in lines] == ["time_patched"]
