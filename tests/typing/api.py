"""What type checkers say of code that uses the package. Checked by mypy and pyright, never run."""

# pyright: strict

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type
from wsgiref.simple_server import make_server

from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.client_session import ClientSession
from pymongo.synchronous.collection import Collection
from starlette.routing import Mount

from streamqueue import (
    AsyncJob,
    AsyncMongoQueue,
    Backoff,
    Call,
    Discard,
    DuplicateJob,
    HealthApp,
    Job,
    JobFailed,
    JobInfo,
    JobNotFound,
    LeaseLost,
    Limit,
    MongoQueue,
    NewJob,
    PutIds,
    Remaining,
    Retry,
    Snooze,
    StreamQueueError,
    Task,
    Worker,
    connection_uri,
)
from streamqueue.testing import MadeAsyncJob, MadeJob, advance, make_job, run_until_empty

Document = dict[str, Any]


assert_type(connection_uri(), str)

# The right collection for each shell.


def make_blocking(jobs: Collection[Document], wrong: AsyncCollection[Document]) -> None:
    MongoQueue(jobs)
    MongoQueue(jobs, "consumer-1", 300, 3)
    MongoQueue(jobs, timeout=timedelta(minutes=5), name="emails", backoff=Backoff(initial=2))
    MongoQueue(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    MongoQueue("jobs")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    MongoQueue(jobs, timeout="300")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    MongoQueue(jobs, None, 300, 3, "emails")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def make_async(jobs: AsyncCollection[Document], wrong: Collection[Document]) -> None:
    AsyncMongoQueue(jobs)
    AsyncMongoQueue(jobs, "consumer-1", timedelta(minutes=5), 3, name="emails")
    AsyncMongoQueue(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncMongoQueue(jobs, max_attempts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def make_from_clients() -> None:
    MongoQueue(MongoClient[Document]().app.jobs)
    AsyncMongoQueue(AsyncMongoClient[Document]().app.jobs)
    MongoQueue(AsyncMongoClient[Document]().app.jobs)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncMongoQueue(MongoClient[Document]().app.jobs)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# The blocking shell.


def use_blocking(queue: MongoQueue, session: ClientSession) -> None:
    assert_type(queue.name, str)
    assert_type(queue.put({"a": 1}), ObjectId)
    assert_type(queue.put({"a": 1}, priority=1, delay=1.5, key="k", session=session), ObjectId)
    assert_type(queue.put({"a": 1}, delay=timedelta(hours=1)), ObjectId)
    assert_type(queue.put({"a": 1}, run_at=datetime.now(UTC), job_id=ObjectId()), ObjectId)
    assert_type(queue.put_many([{"a": 1}, {"b": 2}]), PutIds)
    assert_type(queue.put_many(({"n": n} for n in range(3)), delay=5), PutIds)
    assert_type(queue.put_many([{"a": 1}, NewJob({"b": 2}, job_id=ObjectId(), key="k")]), PutIds)
    ids: list[ObjectId] = queue.put_many([NewJob({}, delay=timedelta(hours=1), priority=1)])
    assert_type(queue.put_many([{}]).existing, list[int])
    assert_type(ids[0], ObjectId)
    assert_type(queue.next(), Job | None)
    assert_type(queue.next(wait=30), Job | None)
    assert_type(queue.next(timedelta(seconds=30)), Job | None)
    assert_type(queue.claim(10), list[Job])
    assert_type(queue.claim(10, wait=1), list[Job])
    assert_type(iter(queue), Iterator[Job])
    assert_type(queue.requeue(), int)
    assert_type(queue.requeue(ObjectId()), int)
    assert_type(queue.get("id"), JobInfo)
    assert_type(queue.list(), list[JobInfo])
    assert_type(queue.wait(ObjectId(), 5), JobInfo)
    assert_type(queue.watch(ObjectId()), Iterator[JobInfo])
    queue.request({"a": 1}, session=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type(queue.size(), int)
    assert_type(queue.stats(), dict[str, int])
    assert_type(queue.repair(), int)
    queue.pause()
    assert_type(queue.is_paused(), bool)
    assert_type(queue.clear(), int)
    assert_type(queue.drop_max_attempts(), int)
    with queue as same:
        assert_type(same, MongoQueue)
    for job in queue:
        assert_type(job, Job)


def misuse_blocking(queue: MongoQueue, session: AsyncClientSession) -> None:
    queue.put("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.put({"a": 1}, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    queue.put({"a": 1}, priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.put({"a": 1}, run_at=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.put({"a": 1}, session=session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.put_many([{"a": 1}], key="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    NewJob({}, ObjectId())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    queue.claim()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    queue.next().complete()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


def book(session: ClientSession, amount: int) -> int:
    return amount


async def fetch(number: int) -> int:
    return number


def hold_blocking(job: Job, session: ClientSession) -> None:
    assert_type(job.id, ObjectId)
    assert_type(job.queue, str)
    assert_type(job.data, dict[str, Any])
    assert_type(job.payload, dict[str, Any])
    assert_type(job.priority, int)
    assert_type(job.attempts, int)
    assert_type(job.max_attempts, int)
    assert_type(job.locked_by, str | None)
    assert_type(job.locked_at, datetime | None)
    assert_type(job.run_at, datetime | None)
    assert_type(job.last_error, str | None)
    assert_type(job.key, str | None)
    with job as data:
        assert_type(data, dict[str, Any])
    job.complete()
    job.complete(session=session)
    job.complete({"sum": 5}, session=session)
    assert not job.cancelled
    job.error()
    job.error("oops", delay=timedelta(minutes=1))
    job.progress()
    job.progress(5)
    job.progress(5, "half")
    job.progress(note="half")
    job.step("round", round, 0.5)
    job.step("book", book, session, 5, session=session)
    assert_type(job.step_id("round"), str)
    job.step("book", book, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    job.step("book", session, book)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    job.release()
    job.release(delay=5)
    job.progress("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    job.release(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    job.attempts = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


# The async shell.


async def use_async(queue: AsyncMongoQueue, session: AsyncClientSession) -> None:
    assert_type(queue.name, str)
    assert_type(await queue.put({"a": 1}), ObjectId)
    assert_type(await queue.put({"a": 1}, priority=1, delay=1.5, session=session), ObjectId)
    assert_type(await queue.put_many([{"a": 1}, NewJob({"b": 2})]), PutIds)
    assert_type(await queue.next(), AsyncJob | None)
    assert_type(await queue.next(wait=30), AsyncJob | None)
    assert_type(await queue.claim(10), list[AsyncJob])
    assert_type(aiter(queue), AsyncIterator[AsyncJob])
    assert_type(await queue.requeue(), int)
    assert_type(await queue.get("id"), JobInfo)
    assert_type(await queue.list("dead", limit=5, start_after=ObjectId()), list[JobInfo])
    assert_type(await queue.counts(), dict[str, dict[str, int]])
    assert_type(await queue.wait(ObjectId(), timeout=timedelta(seconds=5)), JobInfo)
    assert_type(aiter(queue.watch(ObjectId())), AsyncIterator[JobInfo])
    await queue.request({"a": 1}, timeout=5, priority=1, keep=60)
    await queue.result(ObjectId(), wait=5)
    assert_type(await queue.size(), int)
    assert_type(await queue.stats(), dict[str, int])
    assert_type(await queue.repair(), int)
    await queue.pause()
    assert_type(await queue.is_paused(), bool)
    assert_type(await queue.clear(), int)
    assert_type(await queue.drop_max_attempts(), int)
    async with queue as same:
        assert_type(same, AsyncMongoQueue)
    async for job in queue:
        assert_type(job, AsyncJob)


async def misuse_async(queue: AsyncMongoQueue, session: ClientSession) -> None:
    await queue.put(["text"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await queue.put({"a": 1}, session=session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.next().data  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]  # noqa: B018
    for _ in queue:  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownVariableType, reportGeneralTypeIssues]
        pass
    with queue:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def hold_async(job: AsyncJob, session: AsyncClientSession) -> None:
    assert_type(job.id, ObjectId)
    assert_type(job.data, dict[str, Any])
    async with job as data:
        assert_type(data, dict[str, Any])
    await job.complete()
    await job.complete(session=session)
    await job.error("oops", delay=0)
    await job.progress(5)
    await job.step("round", round, 0.5)
    await job.step("fetch", fetch, 5)
    await job.step("fetch", fetch, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await job.release(delay=5)


# Workers, outcomes and errors.


def serve(jobs: AsyncCollection[Document], wrong: Collection[Document]) -> None:
    worker = Worker(jobs, concurrency=5, timeout=timedelta(seconds=30))
    Worker(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    @worker.handler("emails")
    async def send(job: AsyncJob) -> None:
        raise Retry(delay=timedelta(minutes=1))

    @worker.handler("reports")
    def report(job: Job) -> None:
        raise Snooze(5) if job.attempts else Discard("why")

    Snooze()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def run_in_a_test(jobs: AsyncCollection[Document]) -> None:
    worker = Worker(jobs)
    assert_type(await worker.run(until="empty"), Remaining | None)
    await worker.run(until="idle")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    report = await run_until_empty(worker, jobs, due=True, failures="collect", limit=10)
    assert_type(report.done, int)
    assert_type(report.failed[0].error, BaseException | None)
    await run_until_empty(worker, failures="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(make_job({}), MadeAsyncJob)
    assert_type(make_job({}, blocking=True), MadeJob)
    await advance(jobs, timedelta(hours=1))


def serve_metrics(jobs: AsyncCollection[Document]) -> None:
    Worker(jobs, metrics_port=9464, metrics_cert="server.pem", metrics_key=Path("server.key"))
    Worker(jobs, metrics_port="9464")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app = Worker(jobs).health_app()
    assert_type(app, HealthApp)
    Mount("/internal", app.asgi)
    make_server("", 8000, HealthApp().wsgi)
    make_server("", 8000, app.asgi)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def catch(queue: MongoQueue) -> None:
    try:
        queue.put({}, key="k")
    except DuplicateJob as error:
        assert_type(error.key, str)
        assert_type(error.job_id, ObjectId | None)
        assert_type(error.ids, list[ObjectId | None])
        assert_type(error.existing, list[int])
    try:
        queue.result(ObjectId())
    except JobFailed as error:
        assert_type(error.job_id, Any)
    except (LeaseLost, JobNotFound) as error:
        assert_type(error.job_id, ObjectId)
    except StreamQueueError:
        pass


# Tasks.


def resize_stub(path: str, width: int = 300) -> None: ...


async def use_tasks(
    jobs: AsyncCollection[Document], queue: AsyncMongoQueue, blocking: MongoQueue
) -> None:
    worker = Worker(jobs)

    @worker.task()
    async def welcome(name: str, lang: str = "en") -> int:
        return len(name)

    @worker.task("images", name="shrink", aliases=["resize"], max_attempts=3, limits=Limit(3))
    def resize(job: Job, path: str) -> str:
        return path

    @worker.schedule(every=60)
    @worker.task()
    async def tidy(job: AsyncJob, *, days: int = 7) -> None: ...

    assert_type(welcome.call("ada", lang="fr"), Call)
    assert_type(await welcome("ada"), int)
    assert_type(resize.call("a.png"), Call)
    assert_type(resize.name, str)
    tidy.call(days=3)
    welcome.call()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    welcome.call(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # (With a job mypy checks no arguments: the Any in its payload leaves it without an overload.)
    resize.call("a.png")
    worker.task(max_attempt=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    await queue.put(welcome.call("ada"), delay=3)
    await queue.put_many([welcome.call("ada"), {"a": 1}, NewJob(resize.call("a.png"), key="a")])
    blocking.put(resize.call("a.png"))
    await queue.request(welcome.call("ada"), timeout=3)

    thumbnail = Task("resize", queue="images", like=resize_stub)
    thumbnail.call("a.png", width=3)
    thumbnail.call()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Task("resize").call(anything=3)
