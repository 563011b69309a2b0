"""Payloads and what exceptions say of them are in no log, metric or repr.

Law: private by default.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from prometheus_client import generate_latest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Discard, Job, Retry
from streamqueue.stream.watcher import Watcher
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

CANARY = "4111-1111-1111-1111"


def everything_logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return all records as a handler with a formatter would write them, and their arguments."""
    formatter = logging.Formatter()
    return "\n".join(f"{formatter.format(record)} {record.__dict__}" for record in caplog.records)


async def failing_in_every_way(job: AsyncJob) -> None:
    match job.data["how"]:
        case "raises":
            raise ValueError(job.data["card"])
        case "raises a chain":
            try:
                raise KeyError(job.data["card"])
            except KeyError as error:
                raise RuntimeError(f"card {job.data['card']}") from error
        case "discards":
            raise Discard(job.data["card"])
        case "retries":
            raise Retry(delay=60)
        case "retries badly":
            raise Retry(delay=job.data["card"])
        case "ends itself and raises":
            await job.complete()
            raise ValueError(job.data["card"])
        case "errors":
            await job.error(job.data["card"])
        case "is a block":
            async with job as data:
                raise ValueError(data["card"])
        case "waits":
            await anyio.sleep_forever()


HOWS = [
    *("returns", "raises", "raises a chain", "discards", "retries", "retries badly"),
    *("ends itself and raises", "errors", "is a block", "waits"),
]


async def test_no_payload_and_no_exception_text_is_logged_or_measured_or_printed(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "streamqueue")
    printed: list[str] = []

    async def handler(job: AsyncJob) -> None:
        printed.append(repr(job) + str(job))
        await failing_in_every_way(job)

    def second(job: Job) -> None:
        printed.append(repr(job) + str(job))
        raise ValueError(job.data["card"])

    worker = await start(
        handler, second, drain_timeout=0.1, backoff=Backoff(initial=60), reap_interval=0.1
    )
    await queue.put_many([{"how": how, "card": CANARY} for how in HOWS])
    await AsyncMongoQueue(queue._jobs, name="second").put({"card": CANARY})
    jobs.insert_many(
        [
            {"queue": "default", "state": "ready", "payload": CANARY},
            {
                "queue": "default",
                "state": "ready",
                "payload": {"card": CANARY, "how": ""},
                "_id": 1,
            },
            {"queue": "default", "state": "scheduled", "payload": {"card": CANARY}, "run_at": "x"},
        ]
    )
    await wait_until_async(lambda: sum(worker.outcomes().values()) >= len(HOWS), "all but one")
    await worker.stop()

    assert len(printed) >= len(HOWS)
    assert CANARY not in everything_logged(caplog)
    assert CANARY not in generate_latest(worker.registry).decode()
    assert CANARY not in "".join(printed)
    assert CANARY not in repr(worker.worker) + repr(settings_of(worker.worker).options)


async def test_a_lost_lease_logs_no_payload(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "streamqueue")

    async def handler(job: AsyncJob) -> None:
        jobs.update_one({"_id": job.id}, {"$set": {"lease": b"another's"}})
        async with job as data:
            raise ValueError(data["card"])

    worker = await start(handler)
    await queue.put({"card": CANARY})
    await worker.until_outcomes(lease_lost=1)

    assert caplog.records
    assert CANARY not in everything_logged(caplog)


async def test_an_event_that_cannot_be_used_is_logged_by_class_and_place(
    start: WorkerStarter,
    jobs: Collection[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def handler(job: AsyncJob) -> None: ...

    def trip(self: object, event: dict[str, Any]) -> None:
        raise TypeError(f"cannot use {event}")

    monkeypatch.setattr("streamqueue.worker.listener.WorkerListener.event", trip)
    await start(handler)
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {}, "priority": CANARY})

    def unusable() -> list[logging.LogRecord]:
        return [line for line in caplog.records if getattr(line, "event", "") == "event_unusable"]

    line = (await wait_until_async(unusable, "the event is logged"))[0]
    assert (line.levelname, line.exc_info) == ("ERROR", None)
    assert "TypeError in " in line.getMessage()
    assert CANARY not in everything_logged(caplog)


async def test_what_a_server_says_of_a_broken_stream_is_not_logged(
    start: WorkerStarter,
    client: MongoClient[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def handler(job: AsyncJob) -> None: ...

    async def refuse(*_: object) -> None:
        raise OperationFailure(f"cannot use {CANARY}", 280, {"codeName": "ChangeStreamFatalError"})

    monkeypatch.setattr(Watcher, "_read", refuse)
    await start(handler)

    def broken() -> list[logging.LogRecord]:
        return [line for line in caplog.records if getattr(line, "event", "") == "stream_broken"]

    lines = await wait_until_async(broken, "the stream is broken")
    assert "ChangeStreamFatalError (280)" in lines[0].getMessage()
    assert CANARY not in everything_logged(caplog)
