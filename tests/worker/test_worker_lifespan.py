"""What a program opens once for all handlers of a process, and how that is closed."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    ConfigurationError,
    Job,
    StreamQueueError,
    Worker,
)
from streamqueue.worker import lifespan as lifespans
from streamqueue.worker.scheduler import Timers
from tests.waiting import wait_until_async
from tests.worker.processes import WorkerProcess
from tests.worker.programs import in_child
from tests.worker.started import StartedWorker, WorkerStarter


class Resource:
    """What a lifespan opens: when it was opened, and when closed."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.asynccontextmanager
    async def __call__(self, worker: Worker) -> AsyncIterator[Mapping[str, Any]]:
        self.said.append("opened")
        try:
            yield {"database": self}
        finally:
            await anyio.sleep(0.05)
            self.said.append("closed")


async def notes(job: AsyncJob) -> None:
    job.context["database"].said.append("handled")


def notes_in_a_thread(job: Job) -> None:
    job.context["database"].said.append("handled")


@pytest.mark.parametrize("handler", [notes, notes_in_a_thread], ids=["async", "blocking"])
async def test_what_it_yields_is_the_context_of_every_job(
    start: WorkerStarter, queue: AsyncMongoQueue, handler: Any
) -> None:
    resource = Resource()
    worker = await start(handler, lifespan=resource)
    await queue.put_many([{}] * 3)

    await worker.until_outcomes(completed=3)
    assert resource.said == ["opened", *["handled"] * 3]
    await worker.stop()
    assert resource.said[-1] == "closed"
    assert resource.said.count("opened") == 1


async def test_it_is_called_with_the_worker(start: WorkerStarter) -> None:
    given = []

    @contextlib.asynccontextmanager
    async def lifespan(worker: Worker) -> AsyncIterator[None]:
        given.append(worker)
        yield

    worker = await start(notes, lifespan=lifespan)

    assert given == [worker.worker]


async def test_without_one_the_context_is_empty(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen: list[Mapping[str, Any]] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.context)

    def blocking(job: Job) -> None:
        seen.append(job.context)

    worker = await start(handler, blocking)
    await queue.put({})
    await AsyncMongoQueue(queue._jobs, name="blocking").put({})

    await worker.until_outcomes(completed=2)
    assert [dict(context) for context in seen] == [{}, {}]


async def test_one_that_yields_nothing_gives_an_empty_context(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    seen: list[Mapping[str, Any]] = []

    @contextlib.asynccontextmanager
    async def lifespan(worker: Worker) -> AsyncIterator[None]:
        yield

    async def handler(job: AsyncJob) -> None:
        seen.append(job.context)

    worker = await start(handler, lifespan=lifespan)
    await queue.put({})

    await worker.until_outcomes(completed=1)
    assert [dict(context) for context in seen] == [{}]


async def test_nothing_is_claimed_before_it_is_open(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    opening, go_on = anyio.Event(), anyio.Event()

    @contextlib.asynccontextmanager
    async def slow(worker: Worker) -> AsyncIterator[dict[str, Any]]:
        opening.set()
        await go_on.wait()
        yield {"database": SimpleNamespace(said=[])}

    await queue.put({})
    worker = start.prepare(notes, lifespan=slow)
    start.started.append(worker)
    start.tasks.start_soon(worker.run)
    await opening.wait()

    assert worker.commands.claims() == []
    assert "lifespan" in worker.worker.health.reasons()
    go_on.set()
    await worker.until_outcomes(completed=1)


async def test_it_is_closed_after_the_last_handler(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    resource, begun = Resource(), anyio.Event()

    async def lasts(job: AsyncJob) -> None:
        begun.set()
        await anyio.sleep(0.3)
        job.context["database"].said.append("handled")

    worker = await start(lasts, lifespan=resource)
    await queue.put({})
    await begun.wait()

    await worker.stop()
    assert resource.said == ["opened", "handled", "closed"]


async def test_each_run_opens_its_own(start: WorkerStarter) -> None:
    resource = Resource()
    worker = await start(notes, lifespan=resource)
    await worker.stop()
    again = StartedWorker(worker.worker, worker.app, worker.registry, worker.commands)
    await start.begin(again)
    await again.stop()

    assert resource.said == ["opened", "closed"] * 2


async def test_it_may_keep_a_task_group_open(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    said = []

    @contextlib.asynccontextmanager
    async def lifespan(worker: Worker) -> AsyncIterator[dict[str, Any]]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 30)
            yield {"database": SimpleNamespace(said=said)}
            tasks.cancel_scope.cancel()

    worker = await start(notes, lifespan=lifespan)
    await queue.put({})
    await worker.until_outcomes(completed=1)

    await worker.stop()
    assert said == ["handled"]


# when something goes wrong


async def test_a_run_that_is_cancelled_closes_it(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    resource = Resource()
    worker = start.prepare(notes, lifespan=resource)

    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await worker.worker.run(handle_signals=False, task_status=task_status)

        await tasks.start(run)
        await worker.until_idle()
        tasks.cancel_scope.cancel()

    assert resource.said == ["opened", "closed"]


async def test_a_run_that_ends_by_an_error_closes_it(
    start: WorkerStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = Resource()
    until = anyio.Event()

    async def breaks(self: Timers) -> None:
        await until.wait()
        raise ZeroDivisionError

    monkeypatch.setattr(Timers, "run", breaks)
    worker = await start(notes, lifespan=resource)
    await worker.until_idle()
    until.set()

    with pytest.raises(ZeroDivisionError):
        await worker.until_ended()
    worker.error = None
    assert resource.said == ["opened", "closed"]


@pytest.mark.parametrize("error", [OSError("no database"), SystemExit("no database")])
async def test_the_worker_does_not_start_when_it_cannot_be_opened(
    start: WorkerStarter, queue: AsyncMongoQueue, error: BaseException
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(worker: Worker) -> AsyncIterator[None]:
        raise error
        yield

    worker = start.prepare(notes, lifespan=lifespan)
    await queue.put({})

    with pytest.raises(StreamQueueError) as raised:
        await worker.worker.run(handle_signals=False)

    sentence = f"the worker does not start: its lifespan raised {type(error).__name__}: no database"
    assert str(raised.value) == sentence
    assert raised.value.__cause__ is error
    assert worker.commands.claims() == []


@pytest.mark.parametrize("fails", [False, True], ids=["an error", "too long"])
async def test_an_error_of_its_end_is_logged_and_raised(
    start: WorkerStarter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    monkeypatch.setattr(lifespans, "GRACE", 0.1)

    @contextlib.asynccontextmanager
    async def lifespan(worker: Worker) -> AsyncIterator[None]:
        yield
        if fails:
            raise OSError("no database")
        await anyio.sleep(30)

    worker = await start(notes, lifespan=lifespan)
    what = "raised OSError: no database" if fails else "did not end within 0.1 s"

    with pytest.raises(StreamQueueError, match=f"the lifespan {what}, while the worker stopped"):
        await worker.stop()

    worker.error = None
    [line] = [line for line in caplog.records if getattr(line, "event", "") == "lifespan_failed"]
    assert line.levelno == logging.ERROR
    assert "no database" not in line.getMessage()


async def test_a_run_ends_when_what_its_lifespan_keeps_open_breaks(start: WorkerStarter) -> None:
    until = anyio.Event()

    async def breaks() -> None:
        await until.wait()
        raise OSError("connection closed")

    @contextlib.asynccontextmanager
    async def lifespan(worker: Worker) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(breaks)
            yield

    worker = await start(notes, lifespan=lifespan)
    until.set()

    sentence = "the lifespan raised OSError: connection closed, though the worker runs"
    with pytest.raises(StreamQueueError, match=sentence):
        await worker.until_ended()
    worker.error = None


async def test_a_stop_while_it_is_being_opened_is_an_end_in_order(start: WorkerStarter) -> None:
    opening, cancelled = anyio.Event(), []

    @contextlib.asynccontextmanager
    async def slow(worker: Worker) -> AsyncIterator[None]:
        opening.set()
        try:
            await anyio.sleep(30)
        finally:
            cancelled.append(True)
        yield

    worker = start.prepare(notes, lifespan=slow)
    start.tasks.start_soon(worker.run)
    await opening.wait()

    await worker.stop()
    assert cancelled == [True]


# what is none


@contextlib.contextmanager
def blocking_one(worker: Any) -> Any:
    yield


async def coroutine(worker: Any) -> None:
    pass


async def bare(worker: Any) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def takes_nothing() -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def yields_a_list(worker: Any) -> AsyncIterator[Any]:
    yield [1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (5, "must be a function that takes the worker"),
        (coroutine, "must be a function that takes the worker"),
        (bare, "put @contextlib.asynccontextmanager above it"),
        (takes_nothing, "is called with the worker alone"),
    ],
    ids=["a number", "a coroutine", "a generator", "no argument"],
)
async def test_what_is_no_lifespan_is_refused(async_jobs: Any, given: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Worker(async_jobs, lifespan=given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (blocking_one, "must return an async context manager"),
        (lambda worker: None, "must return an async context manager"),
        (yields_a_list, "must yield a mapping"),
    ],
    ids=["a blocking one", "none", "a list"],
)
async def test_one_that_turns_out_to_be_none_is_refused_at_the_start(
    start: WorkerStarter, given: Any, sentence: str
) -> None:
    worker = start.prepare(notes, lifespan=given)

    with pytest.raises(ConfigurationError, match=sentence):
        await worker.worker.run(handle_signals=False)


async def test_a_handler_in_a_child_process_has_none_and_is_refused(async_jobs: Any) -> None:
    register = Worker(async_jobs, lifespan=Resource()).handler("default", run_in="process")

    with pytest.raises(ConfigurationError, match="the child process gets the payload alone"):
        register(in_child.adds)


# in a process of its own


async def test_a_signal_closes_it_after_the_last_handler(
    spawn: Callable[..., WorkerProcess], queue: AsyncMongoQueue
) -> None:
    process = spawn(lifespan="says")
    await queue.put({"seconds": 0.3})
    await wait_until_async(lambda: process.said("started"), "the handler has begun")

    process.send(signal.SIGTERM)

    assert process.exit_code() == 0
    said = [line["what"] for line in process._said]
    assert said == ["opened", "ready", "started", "finished", "closed", "stopped"]
