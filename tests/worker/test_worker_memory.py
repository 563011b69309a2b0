"""An idle worker holds on to nothing of its last job."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Job
from tests.waiting import wait_until_async
from tests.worker.started import WorkerStarter

SIZE = 3_000_000


class Thing:
    """Something of a handler's that can be watched."""


class Failure(Exception):
    pass


def of_three_megabytes() -> list[str]:
    return [found for found in gc.get_objects() if type(found) is dict and _is_payload(found)]  # type: ignore[misc]


def jobs_in_memory() -> list[Any]:
    return [found for found in gc.get_objects() if type(found) in (AsyncJob, Job)]


def _is_payload(found: dict[Any, Any]) -> bool:
    body = found.get("body") if "body" in found else None
    return type(body) is str and len(body) == SIZE


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["async", "blocking"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
async def test_nothing_of_a_finished_attempt_is_reachable_a_moment_later(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    client: MongoClient[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fails: bool,
) -> None:
    # So that nothing is gone only because its thread has ended meanwhile.
    monkeypatch.setattr("streamqueue.worker.execution.threads.KEPT_SECONDS", 60.0)
    caplog.set_level(logging.CRITICAL + 1)  # pytest keeps records, and what they have
    things: list[weakref.ref[Any]] = []

    def work(job: Any) -> Any:
        thing = Thing()
        thing.data = job.data  # type: ignore[attr-defined]
        things.append(weakref.ref(thing))
        if fails:
            error = Failure(thing)
            things.append(weakref.ref(error))
            raise error
        return thing

    async def waits(job: AsyncJob) -> Any:
        return work(job)

    def blocks(job: Job) -> Any:
        return work(job)

    worker = await start(waits if kind == "async" else blocks, backoff=Backoff(initial=60))
    # Python does not keep count of a dict that has nothing but texts in it.
    payload = {"body": "x" * SIZE, "tags": ["a"]}
    gc.collect()
    before = {id(job) for job in jobs_in_memory()}  # in the traceback of a test that failed
    gc.disable()  # what only a collection would free stays in an idle process
    try:
        for _ in range(3):
            jobs.insert_one({"queue": "default", "state": "ready", "payload": payload})
        await worker.until_outcomes(**{"retried" if fails else "completed": 3})
        await wait_until_async(
            lambda: not any(ref() is not None for ref in things), "the end of the things", 5
        )
        del payload
        await wait_until_async(lambda: not of_three_megabytes(), "the end of the payloads", 5)
        await wait_until_async(
            lambda: before.issuperset(map(id, jobs_in_memory())), "the end of the jobs", 20
        )
    finally:
        gc.enable()


async def test_a_thread_without_work_ends_with_what_handlers_kept_in_it(
    start: WorkerStarter, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamqueue.worker.execution.threads.KEPT_SECONDS", 0.2)
    local, kept = threading.local(), []

    def handler(job: Job) -> None:
        local.connection = Thing()
        kept.append(weakref.ref(local.connection))

    worker = await start(handler)
    await queue.put({})
    await worker.until_outcomes(completed=1)

    await wait_until_async(lambda: kept[0]() is None, "the end of the thread")
    await queue.put({})
    await worker.until_outcomes(completed=2)
