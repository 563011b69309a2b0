"""Whatever dates are stored, a worker does its work, and who looks is shown how it stands."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, MongoQueue
from streamqueue.cli.main import main
from streamqueue.cli.monitor.pulse import PulseTaker
from streamqueue.exporter.census import Surveyor
from streamqueue.exporter.exporter import Exporter
from streamqueue.store.asynchronous import AsyncStore
from tests.contract.dates import EXTREMES, GOOD, LONG_AGO, a_job, ago, good_jobs, odd_jobs
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import WorkerStarter

SOON = 10.0
TEN_THOUSAND_YEARS = 10_000 * 366 * 86_400.0
every_extreme = pytest.mark.parametrize("name", EXTREMES)


class Good:
    """A handler that notes which of the good jobs ran."""

    def __init__(self) -> None:
        self.left = set(GOOD)

    async def __call__(self, job: AsyncJob) -> None:
        self.left.discard(job.data.get("good"))


@pytest.mark.parametrize("dispatched", [False, True], ids=["alone", "dispatched"])
async def test_a_worker_promotes_reaps_and_runs_the_jobs_beside_them(
    start: WorkerStarter, members: Members, jobs: Collection[Any], dispatched: bool
) -> None:
    good = Good()
    for date in EXTREMES.values():
        jobs.insert_many(odd_jobs("default", date))
    if dispatched:
        await members.open()
    worker = await (members.start(good) if dispatched else start(good))
    for date in EXTREMES.values():  # those that it is told of, too
        jobs.insert_many(odd_jobs("default", date))
    jobs.insert_many(good_jobs("default"))

    await wait_until_async(lambda: not good.left, "the good jobs ran", SOON)

    await worker.stop()


@every_extreme
async def test_the_queues_are_counted_right(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], name: str
) -> None:
    with MongoQueue(jobs) as queue:
        queue.size()
    jobs.insert_many(odd_jobs("odd", EXTREMES[name]))
    jobs.insert_many([a_job("good", "ready", run_at=ago(100)), *good_jobs("good")])
    jobs.insert_one(a_job("ready", "ready", run_at=EXTREMES[name]))
    store = AsyncStore(async_jobs)
    await store.prepare()

    census = await Surveyor(store, holders=True).take()

    assert (census.queues["ready"].oldest_ready_age > 86_400 * 365) is (name in LONG_AGO)
    odd, good = census.queues["odd"], census.queues["good"]
    passed = name in LONG_AGO
    assert {state for state, count in odd.jobs().items() if count == 7} == {
        *("ready", "scheduled", "running", "dead")
    }
    assert odd.expired_leases == int(passed)
    assert 3600 <= odd.oldest_ready_age < TEN_THOUSAND_YEARS
    assert (odd.oldest_ready_age > 86_400 * 365) is passed
    assert 3600 <= good.oldest_ready_age < 3700
    assert good.expired_leases == 0
    assert census.consumers is not None
    longest = census.consumers["somebody"].longest
    assert 60 <= longest < TEN_THOUSAND_YEARS
    assert (longest > 86_400 * 365) is passed


@every_extreme
async def test_the_exporter_and_top_show_what_there_is(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], name: str
) -> None:
    with MongoQueue(jobs) as queue:
        queue.size()
    jobs.insert_many(odd_jobs("odd", EXTREMES[name]))
    beside = jobs.database[f"{jobs.name}.consumers"]
    beside.insert_one({"_id": {"leader": "state"}, "holder": "x", "held_until": EXTREMES[name]})
    registry = CollectorRegistry()
    taker = PulseTaker(async_jobs)

    async with anyio.create_task_group() as tasks:
        await tasks.start(Exporter(AsyncStore(async_jobs), registry, candidate="me").run)
        pulse = await taker.take()
        await wait_until_async(
            lambda: registry.get_sample_value("streamqueue_leader") == 1, "it leads"
        )
        tasks.cancel_scope.cancel()

    assert len(pulse.failures) == 5


@every_extreme
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_the_dead_are_listed(
    uri: str, jobs: Collection[Any], capsys: pytest.CaptureFixture[str], name: str, options: Any
) -> None:
    with MongoQueue(jobs) as queue:
        queue.size()
    jobs.insert_many(odd_jobs("default", EXTREMES[name]))

    address = uri.replace("/?", f"/{jobs.database.name}?")
    assert not main(["dead", "list", "--uri", address, *options])

    said = capsys.readouterr().out
    assert len(json.loads(said) if options else said.splitlines()) == 7


@every_extreme
async def test_a_consumer_that_was_or_will_be_seen_then_is_not_there(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], name: str
) -> None:
    fields = {"queues": ["default"], "concurrency": 1}
    beside = jobs.database[f"{jobs.name}.consumers"]
    beside.insert_one({"_id": "odd", "seen_at": EXTREMES[name], **fields})
    beside.insert_one({"_id": "good", "seen_at": ago(1), "started_at": EXTREMES[name], **fields})
    store = AsyncStore(async_jobs)
    await store.prepare()

    census = await Surveyor(store).take()

    assert list(census.consumers or ()) == ["good"]
    assert census.queues["default"].consumers == 1
