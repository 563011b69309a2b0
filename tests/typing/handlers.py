"""Handlers, and what type checkers say of those that cannot be."""

# pyright: strict, reportUntypedFunctionDecorator=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

from streamqueue import AsyncJob, Job, Limit, Worker


class Email(TypedDict):
    to: str


@dataclass
class Picture:
    path: str


class Sent:
    """No BSON value."""


# Handlers as they should be.


def right(worker: Worker) -> None:
    @worker.handler("emails", concurrency=3, weight=2, limits=Limit(running=5))
    async def send(job: AsyncJob) -> None:
        assert_type(job.data, dict[str, Any])
        await job.progress(1)

    @worker.handler("reports", run_in="thread")
    def report(job: Job, pages: int = 1) -> str | None:
        assert_type(job.data, dict[str, Any])
        job.progress(pages)
        return job.last_error

    @worker.handler("pictures", run_in="process", time_limit=30)
    def shrink(payload: dict[str, Any]) -> dict[str, int]:
        return {"width": payload["width"] // 2}

    @worker.handler("files", run_in="process")
    def read(payload: Mapping[str, Any]) -> bytes:
        return bytes(payload["file"])

    @worker.handler("anything")
    async def take(job: AsyncJob[Any]) -> list[int]:
        return [job.data.id]

    @worker.schedule(every=10, key="poll")
    @worker.handler("polls")
    async def poll(job: AsyncJob[Mapping[str, Any]]) -> Any:
        return job.data["url"]


async def keep_their_types(worker: Worker, job: AsyncJob, held: Job) -> None:
    @worker.handler("emails")
    async def send(job: AsyncJob, *, again: bool = False) -> int:
        return 1

    @worker.handler("reports")
    def report(job: Job) -> str:
        return "done"

    assert_type(await send(job, again=True), int)
    assert_type(report(held), str)


def right_with_types(worker: Worker) -> None:
    @worker.handler("emails", payload=Email)
    async def send(job: AsyncJob[Email]) -> None:
        assert_type(job.data, Email)
        assert_type(job.data["to"], str)
        async with job as data:
            assert_type(data, Email)

    @worker.handler("reports", payload=Picture)
    def report(job: Job[Picture]) -> None:
        assert_type(job.data.path, str)
        with job as data:
            assert_type(data, Picture)

    @worker.handler("pictures", payload=Picture, run_in="process")
    def shrink(picture: Picture) -> int:
        return len(picture.path)


def right_batches(worker: Worker) -> None:
    @worker.handler("rows", batch=100, batch_wait=0.2, concurrency=100)
    async def store(jobs: list[AsyncJob]) -> None:
        assert_type(jobs[0].data, dict[str, Any])
        await jobs[0].complete(1)

    @worker.handler("reports", batch=10)
    def report(jobs: list[Job]) -> None:
        jobs[0].progress(1)

    @worker.handler("parcels", batch=10)
    async def ship(jobs: Sequence[AsyncJob]) -> None: ...

    @worker.handler("emails", batch=10, payload=Email)
    async def send(jobs: list[AsyncJob[Email]]) -> None:
        assert_type(jobs[0].data, Email)

    @worker.handler("pictures", batch=10, payload=Picture)
    def shrink(jobs: list[Job[Picture]]) -> None:
        assert_type(jobs[0].data.path, str)


# Batches.


def wrong_batches(worker: Worker) -> None:
    @worker.handler("rows", batch=100)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def one(job: AsyncJob) -> None: ...

    @worker.handler("rows")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def no_batch(jobs: list[AsyncJob]) -> None: ...

    @worker.handler("rows", batch=100)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def other_kind(jobs: list[Job]) -> None: ...

    @worker.handler("rows", batch=100)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def results(jobs: list[AsyncJob]) -> list[int]:
        return [1]

    @worker.handler("rows", batch=100, run_in="process")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportArgumentType]
    def in_a_process(payloads: list[dict[str, Any]]) -> None: ...

    @worker.handler("rows", batch_wait=1)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue]
    async def alone(job: AsyncJob) -> None: ...


# The other kind of job.


def wrong_kind(worker: Worker) -> None:
    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    def send(job: AsyncJob) -> None: ...

    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def report(job: Job) -> None: ...

    @worker.handler("emails", run_in="thread")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    def in_a_thread(job: AsyncJob) -> None: ...


# No parameter, or too many.


def wrong_parameters(worker: Worker) -> None:
    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def nothing() -> None: ...

    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    def nothing_blocking() -> None: ...

    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def too_many(job: AsyncJob, other: int) -> None: ...

    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def by_name(*, job: AsyncJob) -> None: ...


# What has not begun to run, or is no BSON value.


def wrong_results(worker: Worker) -> None:
    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    def generator(job: Job) -> Iterator[int]:
        yield 1

    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def no_bson(job: AsyncJob) -> Sent:
        return Sent()

    worker.handler("emails")(Sent)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]


# Settings.


def wrong_settings(worker: Worker) -> None:
    @worker.handler("emails", concurency=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue]
    async def misspelt(job: AsyncJob) -> None: ...

    @worker.handler("emails", weight="3")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
    async def wrong_type(job: AsyncJob) -> None: ...

    @worker.handler("emails", run_in="somewhere")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def somewhere(job: AsyncJob) -> None: ...

    @worker.handler()  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue]
    async def no_queue(job: AsyncJob) -> None: ...

    @worker.handler  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    async def not_called(job: AsyncJob) -> None: ...


# The payload's type.


def wrong_types(worker: Worker) -> None:
    @worker.handler("emails", payload=Email)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def plain(job: AsyncJob) -> None: ...

    @worker.handler("emails", payload=Email)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def other(job: AsyncJob[Picture]) -> None: ...

    @worker.handler("emails", payload=Email)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    def kind(job: AsyncJob[Email]) -> None: ...

    @worker.handler("emails")  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def not_said(job: AsyncJob[Email]) -> None: ...

    @worker.handler("emails", payload=Email)
    async def field(job: AsyncJob[Email]) -> None:
        assert job.data["too"]  # type: ignore[typeddict-item]  # pyright: ignore[reportGeneralTypeIssues]

    @worker.handler("emails", payload=Picture)
    def attribute(job: Job[Picture]) -> None:
        assert job.data.paht  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


# Child processes.


def wrong_process(worker: Worker) -> None:
    @worker.handler("emails", run_in="process")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    def takes_a_job(job: Job) -> None: ...

    @worker.handler("emails", run_in="process")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    async def is_async(payload: dict[str, Any]) -> None: ...

    @worker.handler("emails", run_in="process", payload=Picture)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def other_payload(payload: Email) -> None: ...
