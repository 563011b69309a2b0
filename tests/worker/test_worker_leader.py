"""Of the workers that are told to export the state of the queues, the one that leads does."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, Worker
from streamqueue.exporter import exporter
from streamqueue.worker.worker import settings_of
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import WorkerStarter


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaders are replaced soon."""
    monkeypatch.setattr(exporter, "STALE_AFTER", 1.2)
    monkeypatch.setattr(exporter, "INTERVAL", 0.1)


async def idle(_: Any) -> None: ...


@pytest.mark.usefixtures("hasty")
async def test_of_the_workers_one_exports_the_state(start: WorkerStarter) -> None:
    workers = [await start(idle, export_state="leader") for _ in range(3)]
    await wait_until_async(
        lambda: sum(worker.metric("streamqueue_queue_slots") for worker in workers) > 0, "exported"
    )

    leading = [worker for worker in workers if worker.metric("streamqueue_leader")]

    assert len(leading) == 1
    for worker in workers:
        shows = worker.metric("streamqueue_state_last_success_timestamp_seconds") > 0
        assert shows == (worker in leading)


@pytest.mark.usefixtures("hasty")
async def test_a_leader_keeps_its_place_over_a_pause_longer_than_it_may_be_silent(
    start: WorkerStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a census that took long."""
    monkeypatch.setattr(exporter, "INTERVAL", 0.3)  # a leader may be silent for 1.2 seconds
    monkeypatch.setattr(exporter, "BUSY_SHARE", 10_000)
    worker = await start(idle, export_state="leader")
    await wait_until_async(lambda: worker.metric("streamqueue_queue_slots") > 0, "it leads")
    until = time.monotonic() + 2.5
    lapsed = False

    def is_over() -> bool:
        nonlocal lapsed
        lapsed = lapsed or worker.metric("streamqueue_queue_slots") == 0
        return time.monotonic() > until

    await wait_until_async(is_over, "two such times have passed")

    assert not lapsed
    assert worker.metric("streamqueue_state_collection_duration_seconds_count") == 1


@pytest.mark.usefixtures("hasty")
async def test_a_leader_that_stops_makes_way(start: WorkerStarter) -> None:
    first = await start(idle, export_state="leader")
    await wait_until_async(lambda: first.metric("streamqueue_queue_slots") > 0, "it leads")
    second = await start(idle, export_state="leader")

    await first.stop()

    await wait_until_async(lambda: second.metric("streamqueue_queue_slots") > 0, "it took over")


@pytest.mark.usefixtures("hasty")
async def test_a_leader_that_lost_its_place_removes_its_series(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = await start(idle, export_state="leader")
    await wait_until_async(lambda: worker.metric("streamqueue_queue_slots") > 0, "it leads")

    jobs.database[f"{jobs.name}.consumers"].update_one(
        {"holder": settings_of(worker.worker).options.consumer_id}, {"$set": {"holder": "another"}}
    )

    await wait_until_async(lambda: worker.metric("streamqueue_leader") == 0, "it knows")
    assert worker.metric("streamqueue_queue_slots") == 0
    assert worker.metric("streamqueue_state_last_success_timestamp_seconds") == 0


@pytest.mark.usefixtures("hasty")
async def test_a_leader_that_cannot_renew_its_place_removes_its_series(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = await start(idle, export_state="leader")
    await wait_until_async(lambda: worker.metric("streamqueue_queue_slots") > 0, "it leads")

    with failing(jobs.database.client, "findAndModify", app=worker.app, errorCode=50):
        await wait_until_async(lambda: worker.metric("streamqueue_leader") == 0, "it knows")

        assert worker.metric("streamqueue_queue_slots") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
async def test_a_leader_does_not_wait_for_a_server_that_is_away_to_end(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = await start(idle, export_state="leader")
    await wait_until_async(lambda: worker.metric("streamqueue_queue_slots") > 0, "it leads")
    silent = {"blockConnection": True, "blockTimeMS": 5000}

    with failing(jobs.database.client, "delete", app=worker.app, **silent):
        await worker.stop(within=4)


async def test_of_two_that_share_a_registry_the_second_says_what_to_do(
    async_jobs: AsyncCollection[Any],
) -> None:
    registry = CollectorRegistry()
    workers = [Worker(async_jobs, registry=registry, export_state="leader") for _ in range(2)]
    for worker in workers:
        worker.handler("default")(idle)

    async with anyio.create_task_group() as tasks:
        await tasks.start(workers[0].run)
        with pytest.raises(ConfigurationError, match="export_state"), anyio.fail_after(5):
            await workers[1].run()
        workers[0].stop()


async def test_a_worker_exports_nothing_unless_told_to(start: WorkerStarter) -> None:
    worker = await start(idle)
    await worker.until_idle()

    assert "streamqueue_leader" not in {
        sample.name for family in worker.registry.collect() for sample in family.samples
    }


@pytest.mark.usefixtures("hasty")
async def test_who_leads_is_no_consumer_to_the_others(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker = await start(idle, export_state="leader")
    await wait_until_async(lambda: worker.metric("streamqueue_queue_slots") > 0, "it leads")

    await start(idle)

    await wait_until_async(
        lambda: worker.metric("streamqueue_queue_consumers", queue="default") == 2, "two of them"
    )
