"""Telling the program of jobs that are dead: once, afterwards, and beside all else."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    ConfigurationError,
    Discard,
    Job,
    JobInfo,
    PayloadError,
    Worker,
)
from streamqueue.running import running
from streamqueue.worker import deaths
from tests.waiting import wait_until_async
from tests.worker.programs import in_child
from tests.worker.started import WorkerStarter

AT_ONCE = Backoff(initial=0.01)


class Told:
    """What is told of dead jobs."""

    def __init__(self) -> None:
        self.jobs: list[JobInfo] = []
        self.errors: list[BaseException | None] = []

    async def __call__(self, info: JobInfo, error: BaseException | None) -> None:
        self.jobs.append(info)
        self.errors.append(error)

    async def once(self) -> tuple[JobInfo, BaseException | None]:
        """Wait for it; return what was told."""
        await wait_until_async(lambda: self.jobs, "a death was told")
        [info], [error] = self.jobs, self.errors
        return info, error


async def fails(job: AsyncJob) -> None:
    raise OSError("no answer")


async def test_a_job_whose_attempts_are_used_up_is_told_once(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    told = Told()
    worker = await start(fails, on_dead=told, max_attempts=2, backoff=AT_ONCE)
    job_id = await queue.put({"to": "ada"}, key="a", group="g")

    await worker.until_outcomes(retried=1, dead=1)
    info, error = await told.once()
    assert (info.id, info.queue, info.state, info.data) == (
        *(job_id, "default", "dead", {"to": "ada"}),
    )
    assert (info.attempts, info.max_attempts, info.key, info.group) == (2, 2, "a", "g")
    assert "OSError: no answer" in str(info.last_error)
    assert isinstance(error, OSError)


async def test_the_job_is_dead_by_then(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    states = []

    async def told(info: JobInfo, error: BaseException | None) -> None:
        states.append((await queue.get(info.id)).state)

    await start(fails, on_dead=told, max_attempts=1)
    await queue.put({})

    await wait_until_async(lambda: states, "the death was told")
    assert states == ["dead"]


async def discards(job: AsyncJob) -> None:
    raise Discard("of no use")


async def returns_nonsense(job: AsyncJob) -> object:
    return object()


async def says_so(job: AsyncJob) -> None:
    await job.error("it says")


def says_so_in_a_thread(job: Job) -> None:
    job.error("it says")


@pytest.mark.parametrize(
    ("handler", "kind", "text"),
    [
        (discards, Discard, "of no use"),
        (returns_nonsense, PayloadError, "object"),
        (says_so, type(None), "it says"),
        (says_so_in_a_thread, type(None), "it says"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_every_death_of_a_handler_is_told(
    start: WorkerStarter, queue: AsyncMongoQueue, handler: Any, kind: type, text: str
) -> None:
    told = Told()
    worker = await start(handler, on_dead=told, max_attempts=1)
    await queue.put({}, keep=60)

    await worker.until_outcomes(dead=1)
    info, error = await told.once()
    assert type(error) is kind
    assert text in str(info.last_error)


async def test_a_death_in_a_child_process_is_told(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    told = Told()
    worker = start.prepare(on_dead=told, max_attempts=1)
    worker.worker.handler("default", run_in="process")(in_child.raises)
    await start.begin(worker)
    await queue.put({})

    await worker.until_outcomes(within=30, dead=1)
    info, error = await told.once()
    assert "KeyError: 'no such thing'" in str(info.last_error)
    assert "KeyError: 'no such thing'" in str(error)


async def test_a_damaged_job_is_told(start: WorkerStarter, jobs: Collection[Any]) -> None:
    told = Told()
    worker = await start(fails, on_dead=told)
    jobs.insert_one({"queue": "default", "state": "ready", "payload": "no mapping"})

    await worker.until_outcomes(dead=1)
    info, error = await told.once()
    assert (info.data, error) == ({}, None)
    assert info.last_error == "its payload is not a mapping"


async def test_a_job_that_is_retried_or_done_is_not_told(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    told = Told()

    async def fails_once(job: AsyncJob) -> None:
        if job.attempts == 1:
            raise OSError

    worker = await start(fails_once, on_dead=told, backoff=AT_ONCE)
    await queue.put({})

    await worker.until_outcomes(retried=1, completed=1)
    await worker.stop()
    assert told.jobs == []


async def test_a_handlers_own_comes_before_the_workers(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    of_the_worker, own = Told(), Told()
    worker = start.prepare(on_dead=of_the_worker, max_attempts=1)
    worker.worker.handler("default", on_dead=own)(fails)
    await start.begin(worker)
    await queue.put({})

    await own.once()
    assert of_the_worker.jobs == []


async def test_a_def_is_called_in_a_thread(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    threads = []

    def told(info: JobInfo, error: BaseException | None) -> None:
        threads.append(threading.current_thread())

    await start(fails, on_dead=told, max_attempts=1)
    await queue.put({})

    await wait_until_async(lambda: threads, "the death was told")
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize("error", [OSError("no"), SystemExit(3)], ids=["error", "exit"])
async def test_an_error_in_it_is_logged_and_ends_nothing(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    async def told(info: JobInfo, _: BaseException | None) -> None:
        raise error

    worker = await start(fails, on_dead=told, max_attempts=1)
    await queue.put_many([{}, {}])

    await worker.until_outcomes(dead=2)
    await worker.stop()
    lines = [line for line in caplog.records if getattr(line, "event", "") == "on_dead_failed"]
    assert [line.levelno for line in lines] == [logging.ERROR] * 2


async def test_one_that_lasts_holds_no_slot(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    told = []

    async def lasts(info: JobInfo, error: BaseException | None) -> None:
        told.append(info.id)
        await anyio.sleep(30)

    async def handler(job: AsyncJob) -> None:
        if job.data["fails"]:
            raise Discard

    worker = await start(handler, on_dead=lasts, concurrency=1)
    await queue.put({"fails": True})
    await wait_until_async(lambda: told, "the first one is told")
    await queue.put_many([{"fails": False}] * 3)

    await worker.until_outcomes(dead=1, completed=3)


async def test_a_stop_waits_for_what_is_being_told(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    begun, told = anyio.Event(), []

    async def takes_a_while(info: JobInfo, error: BaseException | None) -> None:
        begun.set()
        await anyio.sleep(0.2)
        told.append(info.id)

    worker = await start(fails, on_dead=takes_a_while, max_attempts=1)
    await queue.put({})
    await begun.wait()

    await worker.stop()
    assert len(told) == 1


async def test_a_stop_does_not_wait_for_ever(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(deaths, "GRACE", 0.2)
    monkeypatch.setattr(deaths, "AT_ONCE", 1)
    begun = anyio.Event()

    async def hangs(info: JobInfo, error: BaseException | None) -> None:
        begun.set()
        await anyio.sleep(30)

    worker = await start(fails, on_dead=hangs, max_attempts=1)
    await queue.put_many([{}, {}])
    await worker.until_outcomes(dead=2)
    await begun.wait()

    await worker.stop(within=3)

    lines = [line for line in caplog.records if getattr(line, "event", "") == "on_dead_left_out"]
    assert len(lines) == 1


async def test_no_more_than_some_wait_to_be_told(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(deaths, "AT_ONCE", 1)
    monkeypatch.setattr(deaths, "MOST_WAITING", 2)
    go_on, told = anyio.Event(), []

    async def waits(info: JobInfo, error: BaseException | None) -> None:
        await go_on.wait()
        told.append(info.id)

    worker = await start(fails, on_dead=waits, max_attempts=1)
    await queue.put_many([{}] * 5)
    await worker.until_outcomes(dead=5)
    go_on.set()

    await wait_until_async(lambda: len(told) == 3, "three are told")
    lines = [line for line in caplog.records if getattr(line, "event", "") == "on_dead_left_out"]
    assert len(lines) == 2


async def test_what_it_logs_names_the_job(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    seen: list[ObjectId] = []

    async def told(info: JobInfo, error: BaseException | None) -> None:
        attempt = running.get()
        assert attempt is not None
        seen.append(attempt.job_id)

    await start(fails, on_dead=told, max_attempts=1)
    job_id = await queue.put({})

    await wait_until_async(lambda: seen, "the death was told")
    assert seen == [job_id]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("notify", "must be a function that takes the job"),
        (lambda info: None, "takes \\(info\\)"),
        (Told, "must be a function"),
    ],
    ids=["a text", "one argument", "a class"],
)
async def test_what_cannot_be_told_is_refused(async_jobs: Any, given: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Worker(async_jobs, on_dead=given)
    with pytest.raises(ConfigurationError, match=sentence):
        Worker(async_jobs).handler("emails", on_dead=given)
