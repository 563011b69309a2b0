"""What stands around handlers: called for every attempt, and never the end of what was done."""

from __future__ import annotations

import asyncio  # noqa: TID251 - as a middleware may
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    AsyncTopic,
    Backoff,
    Cancel,
    ConfigurationError,
    Discard,
    Job,
    Snooze,
    Worker,
)
from tests.waiting import wait_until_async
from tests.worker.programs import in_child
from tests.worker.started import WorkerStarter

AT_ONCE = Backoff(initial=0.01)
CANCELLED = asyncio.CancelledError


class Noting:
    """A middleware that notes which jobs passed it, and how they came out."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, Any]] = []

    async def __call__(self, job: AsyncJob, call_next: Any) -> Any:
        try:
            result = await call_next(job)
        except BaseException as error:
            self.seen.append((job.queue, job.attempts, type(error).__name__))
            raise
        self.seen.append((job.queue, job.attempts, result))
        return result


def last_error(jobs: Collection[Any]) -> str:
    [job] = jobs.find()
    return str(job["last_error"])


async def returns(job: AsyncJob) -> str:
    return "done"


async def until_dead(jobs: Collection[Any]) -> str:
    await wait_until_async(lambda: jobs.count_documents({"state": "dead"}), "the job is dead")
    return last_error(jobs)


# their order


async def test_the_first_is_the_outermost(start: WorkerStarter, queue: AsyncMongoQueue) -> None:
    order = []

    def named(name: str) -> Callable[..., Any]:
        async def around(job: AsyncJob, call_next: Any) -> Any:
            order.append(f"{name} begins")
            result = await call_next(job)
            order.append(f"{name} ends with {result}")
            return result

        return around

    async def handler(job: AsyncJob) -> str:
        order.append("handler")
        return "done"

    worker = await start(handler, middleware=[named("outer"), named("inner")])
    await queue.put({})

    await worker.until_outcomes(completed=1)
    assert order == [
        *("outer begins", "inner begins", "handler", "inner ends with done", "outer ends with done")
    ]


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_handler_has_the_context_variables_of_what_stands_around_it(
    start: WorkerStarter, queue: AsyncMongoQueue, kind: str
) -> None:
    customer = contextvars.ContextVar("customer", default="nobody")
    seen = []

    async def around(job: AsyncJob, call_next: Any) -> Any:
        customer.set(job.data["customer"])
        return await call_next(job)

    async def in_loop(job: AsyncJob) -> None:
        seen.append(customer.get())

    def in_thread(job: Job) -> None:
        seen.append(customer.get())

    worker = await start(in_loop if kind == "loop" else in_thread, middleware=[around])
    await queue.put({"customer": "ada"})

    await worker.until_outcomes(completed=1)
    assert seen == ["ada"]


# which attempts they stand around


async def from_a_put(queue: AsyncMongoQueue) -> None:
    await queue.put({})


async def from_many(queue: AsyncMongoQueue) -> None:
    await queue.put_many([{}])


async def from_a_topic(queue: AsyncMongoQueue) -> None:
    topic = AsyncTopic(queue._jobs, "orders")
    await topic.subscribe("default")
    await topic.publish({})


async def from_another_language(queue: AsyncMongoQueue) -> None:
    await queue._jobs.insert_one({"queue": "default", "state": "ready", "payload": {}})


async def from_a_timer(queue: AsyncMongoQueue) -> None:
    await queue.put({}, delay=0.1)


async def from_the_dead(queue: AsyncMongoQueue) -> None:
    now = datetime.now(UTC)
    died = {"state": "dead", "attempts": 3, "finished_at": now, "created_at": now}
    inserted = await queue._jobs.insert_one({"queue": "default", "payload": {}, **died})
    await queue.requeue(inserted.inserted_id)


async def from_a_dead_consumer(queue: AsyncMongoQueue) -> None:
    job_id = await queue.put({}, delay=60)  # or it would be claimed before it is somebody's
    await queue._jobs.update_one(
        {"_id": job_id},
        {
            "$set": {
                "state": "running",
                "lease": b"somebody's",
                "locked_until": datetime(2020, 1, 1, tzinfo=UTC),
            }
        },
    )


ORIGINS = [
    *(from_a_put, from_many, from_a_topic, from_another_language, from_a_timer, from_the_dead),
    from_a_dead_consumer,
]


@pytest.mark.few(3)
@pytest.mark.parametrize("put", ORIGINS, ids=lambda put: put.__name__)
async def test_a_job_passes_them_wherever_it_comes_from(
    start: WorkerStarter, queue: AsyncMongoQueue, put: Any
) -> None:
    noting = Noting()
    worker = await start(returns, middleware=[noting], reap_interval=0.1)
    await put(queue)

    await worker.until_outcomes(completed=1)
    assert [(name, result) for name, _, result in noting.seen] == [("default", "done")]


async def test_the_job_of_a_tick_passes_them(start: WorkerStarter) -> None:
    noting = Noting()
    worker = start.prepare(middleware=[noting])
    worker.worker.schedule(every=1)(worker.worker.handler("ticks")(returns))
    await start.begin(worker)

    await wait_until_async(lambda: noting.seen, "a tick has passed")
    assert noting.seen[0] == ("ticks", 1, "done")


@pytest.mark.few(1)
@pytest.mark.parametrize("run_in", ["loop", "thread", "process"])
async def test_a_job_passes_them_wherever_its_handler_runs(
    start: WorkerStarter, queue: AsyncMongoQueue, run_in: Any
) -> None:
    def in_thread(job: Job) -> str:
        return "done"

    handlers: dict[str, Any] = {"loop": returns, "thread": in_thread, "process": in_child.says_done}
    noting = Noting()
    worker = start.prepare(middleware=[noting])
    worker.worker.handler("default", run_in=run_in)(handlers[run_in])
    await start.begin(worker)
    await queue.put({})

    await worker.until_outcomes(within=30, completed=1)
    assert noting.seen == [("default", 1, "done")]


async def test_every_attempt_passes_them_and_they_see_how_it_failed(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def handler(job: AsyncJob) -> str:
        if job.attempts < 3:
            raise OSError
        return "done"

    noting = Noting()
    worker = await start(handler, middleware=[noting], backoff=AT_ONCE)
    await queue.put({})

    await worker.until_outcomes(retried=2, completed=1)
    assert noting.seen == [
        *(("default", 1, "OSError"), ("default", 2, "OSError"), ("default", 3, "done"))
    ]


# what becomes of the job


async def test_one_that_raises_before_the_handler_fails_the_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    called = []

    async def around(job: AsyncJob, call_next: Any) -> Any:
        raise OSError("no such tenant")

    async def handler(job: AsyncJob) -> None:
        called.append(job.id)

    worker = await start(handler, middleware=[around], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "OSError: no such tenant" in last_error(jobs)
    assert called == []


@pytest.mark.parametrize("raised", [OSError("no"), Discard("no"), SystemExit(3), CANCELLED()])
async def test_the_result_stands_when_one_raises_after_the_handler(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    caplog: pytest.LogCaptureFixture,
    raised: BaseException,
) -> None:
    outer = Noting()

    async def around(job: AsyncJob, call_next: Any) -> Any:
        await call_next(job)
        raise raised

    worker = await start(returns, middleware=[outer, around], keep=60)
    job_id = await queue.put({})

    await worker.until_outcomes(completed=1)
    assert await queue.result(job_id) == "done"
    assert outer.seen == [("default", 1, "done")]
    assert worker.metric("streamqueue_middleware_errors_total", queue="default") == 1
    [line] = [line for line in caplog.records if getattr(line, "event", "") == "middleware_failed"]
    assert type(raised).__name__ in line.getMessage()
    assert line.levelno == logging.ERROR


async def test_the_result_is_what_the_handler_returned_though_one_does_not_hand_it_on(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def around(job: AsyncJob, call_next: Any) -> None:
        await call_next(job)

    worker = await start(returns, middleware=[around], keep=60)
    job_id = await queue.put({})

    await worker.until_outcomes(completed=1)
    assert await queue.result(job_id) == "done"


async def test_a_failure_stands_though_one_catches_it(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    outer = Noting()

    async def around(job: AsyncJob, call_next: Any) -> Any:
        try:
            return await call_next(job)
        except Exception:
            return "all is well"

    async def handler(job: AsyncJob) -> None:
        raise OSError("no answer")

    worker = await start(handler, middleware=[outer, around], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "OSError: no answer" in last_error(jobs)
    assert outer.seen == [("default", 1, "OSError")]


@pytest.mark.parametrize(
    ("instead", "outcome"),
    [(Discard("gone"), "dead"), (Cancel("gone"), "cancelled"), (Snooze(60), "released")],
    ids=["discard", "cancel", "snooze"],
)
async def test_one_may_put_another_end_in_the_place_of_a_failure(
    start: WorkerStarter, queue: AsyncMongoQueue, instead: Exception, outcome: str
) -> None:
    async def around(job: AsyncJob, call_next: Any) -> Any:
        try:
            return await call_next(job)
        except OSError as error:
            raise instead from error

    async def handler(job: AsyncJob) -> None:
        raise OSError

    worker = await start(handler, middleware=[around])
    await queue.put({})

    await worker.until_outcomes(**{outcome: 1})


async def test_a_job_whose_handler_was_not_called_has_failed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def forgetful(job: AsyncJob, call_next: Any) -> Any:
        return None

    worker = await start(returns, middleware=[forgetful], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "forgetful returned without calling call_next" in last_error(jobs)


async def test_one_may_end_the_job_instead_of_having_it_handled(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def answers(job: AsyncJob, call_next: Any) -> Any:
        await job.complete("from the cache")

    worker = await start(returns, middleware=[answers], keep=60)
    job_id = await queue.put({})

    await worker.until_outcomes(completed=1)
    assert await queue.result(job_id) == "from the cache"


async def test_a_handler_is_called_once_in_an_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    called = []

    async def twice(job: AsyncJob, call_next: Any) -> Any:
        try:
            return await call_next(job)
        except OSError:
            return await call_next(job)

    async def handler(job: AsyncJob) -> None:
        called.append(job.id)
        raise OSError

    worker = await start(handler, middleware=[twice], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "called call_next twice" in last_error(jobs)
    assert len(called) == 1


async def test_call_next_takes_no_other_job(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def around(job: AsyncJob, call_next: Any) -> Any:
        return await call_next(job.data)

    worker = await start(returns, middleware=[around], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "with something else than its job" in last_error(jobs)


async def test_a_handler_that_is_left_running_is_cancelled_and_its_attempt_has_failed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    ended = []
    tasks = []

    async def hasty(job: AsyncJob, call_next: Any) -> Any:
        tasks.append(asyncio.get_running_loop().create_task(call_next(job)))
        await anyio.sleep(0.05)

    async def handler(job: AsyncJob) -> None:
        try:
            await anyio.sleep(30)
        except CANCELLED:
            ended.append(job.id)
            raise

    worker = await start(handler, middleware=[hasty], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "hasty returned before call_next did" in last_error(jobs)
    await wait_until_async(lambda: ended, "the handler was cancelled")


async def test_nothing_is_handled_after_the_attempt(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    kept: list[Any] = []
    called = []

    async def keeps(job: AsyncJob, call_next: Any) -> Any:
        kept.extend((job, call_next))
        raise Discard("not now")

    async def handler(job: AsyncJob) -> None:
        called.append(job.id)

    worker = await start(handler, middleware=[keeps])
    await queue.put({})
    await worker.until_outcomes(dead=1)

    with pytest.raises(ConfigurationError, match="after the attempt had ended"):
        await kept[1](kept[0])
    assert called == []


# cancellation


async def swallows(job: AsyncJob, call_next: Any) -> Any:
    try:
        return await call_next(job)
    except CANCELLED:
        return "all is well"


async def test_a_handler_that_was_cancelled_is_not_completed_by_one_that_swallows_that(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    begun = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        begun.set()
        await anyio.sleep(30)

    worker = await start(handler, middleware=[swallows], drain_timeout=0)
    await queue.put({})
    await begun.wait()

    await worker.stop()

    assert worker.outcomes() == {"released": 1}
    assert [job["attempts"] for job in jobs.find()] == [0]


async def test_a_job_that_was_to_be_cancelled_is_though_one_swallows_that(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    begun = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        begun.set()
        await anyio.sleep(30)

    worker = await start(handler, middleware=[swallows])
    job_id = await queue.put({})
    await begun.wait()

    assert await queue.cancel(job_id) == "asked"

    await worker.until_outcomes(cancelled=1)


async def test_a_limit_of_its_own_fails_the_attempt_though_it_says_nothing(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def impatient(job: AsyncJob, call_next: Any) -> Any:
        with anyio.move_on_after(0.05):
            return await call_next(job)

    async def handler(job: AsyncJob) -> None:
        await anyio.sleep(30)

    worker = await start(handler, middleware=[impatient], max_attempts=1)
    await queue.put({})

    await worker.until_outcomes(dead=1)


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_the_handler_is_not_called_once_the_lease_is_lost(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    called = []
    waiting = anyio.Event()

    async def slow(job: AsyncJob, call_next: Any) -> Any:
        waiting.set()
        try:
            await anyio.sleep(30)
        except CANCELLED:
            with anyio.CancelScope(shield=True):
                return await call_next(job)

    async def in_loop(job: AsyncJob) -> None:
        called.append(job.id)

    def in_thread(job: Job) -> None:
        called.append(job.id)

    handler = in_loop if kind == "loop" else in_thread
    worker = await start(handler, middleware=[slow], timeout=0.5)
    job_id = await queue.put({})
    await waiting.wait()
    jobs.update_one({"_id": job_id}, {"$set": {"lease": b"somebody else's"}})

    await worker.until_outcomes(lease_lost=1)
    assert called == []


# time limits


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_time_limit_counts_what_comes_before_the_handler(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    async def slow(job: AsyncJob, call_next: Any) -> Any:
        await anyio.sleep(30)
        return await call_next(job)

    def in_thread(job: Job) -> None:
        pass

    worker = start.prepare(middleware=[slow], max_attempts=1)
    worker.worker.handler("default", time_limit=0.1)(returns if kind == "loop" else in_thread)
    await start.begin(worker)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "time limit of 0.1 s" in last_error(jobs)


async def test_a_result_in_time_stands_though_the_limit_stops_what_comes_after_it(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    async def lingers(job: AsyncJob, call_next: Any) -> Any:
        await call_next(job)
        await anyio.sleep(30)

    worker = start.prepare(middleware=[lingers], keep=60)
    worker.worker.handler("default", time_limit=0.1)(returns)
    await start.begin(worker)
    job_id = await queue.put({})

    await worker.until_outcomes(completed=1)
    assert await queue.result(job_id) == "done"


async def test_a_handler_that_returns_after_its_limit_has_failed(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    async def around(job: AsyncJob, call_next: Any) -> Any:
        return await call_next(job)

    def late(job: Job) -> str:
        threading.Event().wait(0.3)
        return "done"

    worker = start.prepare(middleware=[around], max_attempts=1)
    worker.worker.handler("default", time_limit=0.1)(late)
    await start.begin(worker)
    await queue.put({})

    await worker.until_outcomes(dead=1)
    assert "time limit of 0.1 s" in last_error(jobs)


# what is left


class Held:
    """Something a job leads to."""


@pytest.mark.few(1)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
async def test_nothing_of_a_job_is_held_after_its_end(
    start: WorkerStarter, queue: AsyncMongoQueue, fails: bool
) -> None:
    held: list[weakref.ref[Held]] = []

    async def around(job: AsyncJob, call_next: Any) -> Any:
        try:
            return await call_next(job)
        except OSError:
            raise ValueError from None

    async def handler(job: AsyncJob) -> None:
        thing = Held()
        job.data["thing"] = thing
        held.append(weakref.ref(thing))
        if fails:
            raise OSError

    worker = await start(handler, middleware=[around], max_attempts=1)
    gc.collect()
    gc.disable()
    try:
        await queue.put({})
        await worker.until_outcomes(**{"dead" if fails else "completed": 1})
        await wait_until_async(lambda: held[0]() is None, "nothing holds it")
    finally:
        gc.enable()


# what is none


def plain(job: Any, call_next: Any) -> Any:
    return call_next(job)


async def alone(job: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (plain, "must be a list"),
        ([plain], "must be an async def"),
        (["around"], "must be an async def"),
        ([alone], "is called with the job and the next one"),
        (5, "must be a list"),
    ],
    ids=["a function", "a def", "a text", "one argument", "a number"],
)
async def test_what_is_no_middleware_is_refused(async_jobs: Any, given: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Worker(async_jobs, middleware=given)
