"""Nothing that a URI says of reading and writing reaches a worker, or who looks at the queues."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncSchedules, AsyncTopic, MongoQueue
from streamqueue.cli.monitor.pulse import PulseTaker
from streamqueue.exporter.exporter import Exporter
from streamqueue.store.asynchronous import AsyncStore
from tests.contract.uris import COMBINED, SETTINGS
from tests.waiting import wait_until_async
from tests.worker.members import Members, Notes
from tests.worker.started import WorkerStarter

WITHIN = 20.0


async def each(settings: tuple[str, ...], try_one: Callable[[str, int], Awaitable[None]]) -> None:
    """Try all of these, at once: each takes a while, most of which is waiting."""

    async def named(one: str, number: int) -> None:
        try:
            with anyio.fail_after(WITHIN):
                await try_one(one, number)
        except Exception as error:
            error.add_note(f"with {one} in the URI")
            raise

    async with anyio.create_task_group() as tasks:
        for number, one in enumerate(settings):
            tasks.start_soon(named, one, number)


@pytest.mark.slow
async def test_a_worker_runs_jobs_whatever_the_uri_says(uri: str, jobs: Collection[Any]) -> None:
    async def try_one(settings: str, number: int) -> None:
        async def handler(job: AsyncJob) -> None:
            seen.append(job.data["n"])

        async def never(job: AsyncJob) -> None:
            raise AssertionError

        seen: list[int] = []
        handler.__name__ = f"queue{number}"
        async with anyio.create_task_group() as tasks:
            start = WorkerStarter(f"{uri}&{settings}", jobs.database.name, jobs.name, tasks)
            worker = await start(never, handler)
            with MongoQueue(jobs, name=handler.__name__) as queue:
                queue.put({"n": 1})
                queue.put({"n": 2}, delay=0.1)
            await worker.until_outcomes(within=WITHIN, completed=2)
            await start.end()
        assert sorted(seen) == [1, 2]

    await each(SETTINGS, try_one)


@pytest.mark.slow
async def test_schedules_fire_and_topics_publish_whatever_the_uri_says(
    uri: str, jobs: Collection[Any]
) -> None:
    async def try_one(settings: str, number: int) -> None:
        async def handler(job: AsyncJob) -> None:
            seen.append(job.data.get("n"))

        seen: list[int | None] = []
        handler.__name__ = f"queue{number}"
        async with (
            anyio.create_task_group() as tasks,
            AsyncMongoClient[dict[str, Any]](f"{uri}&{settings}") as client,
        ):
            start = WorkerStarter(f"{uri}&{settings}", jobs.database.name, jobs.name, tasks)
            worker = start.prepare(handler, handler)
            worker.worker._settings.handlers.pop("default")
            worker.worker.schedule(every=1, name=f"s{number}", key="k")(handler)
            await start.begin(worker)
            own = client[jobs.database.name][jobs.name]
            topic = AsyncTopic(own, f"topic{number}", registry=CollectorRegistry())
            await topic.subscribe(handler.__name__)
            await topic.publish({"n": number})
            await wait_until_async(lambda: {None, number} <= set(seen), "both ran", WITHIN)
            await AsyncSchedules(own, registry=CollectorRegistry()).pause(f"s{number}")
            await start.end()

    await each((*COMBINED, *SETTINGS[:5]), try_one)


async def test_a_dispatcher_deals_whatever_the_uri_says(uri: str, jobs: Collection[Any]) -> None:
    for settings in COMBINED:
        notes = Notes()
        async with anyio.create_task_group() as tasks:
            start = WorkerStarter(f"{uri}&{settings}", jobs.database.name, jobs.name, tasks)
            members = Members(start)
            await members.open()
            await members.start(notes)
            with MongoQueue(jobs) as queue:
                queue.put({"n": 1})
            await notes.until_seen(1, within=WITHIN)
            await members.end()
            await start.end()


@pytest.mark.slow
async def test_the_exporter_and_top_see_the_queues_whatever_the_uri_says(
    uri: str, jobs: Collection[Any]
) -> None:
    with MongoQueue(jobs) as queue:
        queue.put({"n": 1})

    async def try_one(settings: str, number: int) -> None:
        registry = CollectorRegistry()
        async with AsyncMongoClient[Any](f"{uri}&{settings}") as client:
            collection = client[jobs.database.name][jobs.name]
            exporter = Exporter(AsyncStore(collection), registry, candidate="me", interval=0.1)
            taker = PulseTaker(collection)
            async with anyio.create_task_group() as tasks:
                await tasks.start(exporter.run)
                await taker.take()
                await tasks.start(taker.read)
                pulse = await taker.take()
                await wait_until_async(lambda: shown(registry) == 1, "the job is shown", WITHIN)
                tasks.cancel_scope.cancel()
        assert pulse.stream == "open"
        assert pulse.census.consumers is not None
        assert pulse.census.oplog_window is not None

    await each(SETTINGS, try_one)


def shown(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value(
        "streamqueue_queue_jobs", {"queue": "default", "state": "ready"}
    )
