"""Who may only insert a job can take no queue out of the census, nor stop or swell it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from bson import Code, MaxKey, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from prometheus_client import CollectorRegistry, generate_latest
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.cli.main import main
from streamqueue.exporter import census, discovery
from streamqueue.exporter.census import Surveyor
from streamqueue.exporter.exporter import Exporter
from streamqueue.names import INVALID
from streamqueue.store.asynchronous import AsyncStore
from tests.strangers import NOT_UTF8, a_job_of
from tests.waiting import wait_until_async
from tests.worker.faults import failing

STATES = ("ready", "scheduled", "waiting", "running", "dead")
SOON = 20.0


@pytest.fixture
async def store(async_jobs: AsyncCollection[Any]) -> AsyncStore:
    store = AsyncStore(async_jobs)
    await store.prepare()
    return store


@pytest.fixture
def surveyor(store: AsyncStore) -> Surveyor:
    return Surveyor(store, holders=True)


@pytest.fixture
async def slow(uri: str, jobs: Collection[Any]) -> AsyncIterator[Surveyor]:
    """A surveyor each of whose reads takes a tenth of a second."""
    with MongoQueue(jobs) as queue:
        queue.size()  # which makes the indexes
    app = f"test-{secrets.token_hex(4)}"
    async with AsyncMongoClient(uri, appname=app) as client:
        store = AsyncStore(client[jobs.database.name][jobs.name])
        await store.prepare()
        late = {"blockConnection": True, "blockTimeMS": 100}
        with failing(jobs.database.client, "find", "aggregate", app=app, **late):
            yield Surveyor(store)


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def a_job(queue: Any, state: str = "ready", **fields: Any) -> dict[str, Any]:
    return {"queue": queue, "state": state, "payload": {}, **fields}


def a_worker(jobs: Collection[Any], *queues: str) -> None:
    entry = {"queues": list(queues), "concurrency": 5, "seen_at": ago(1)}
    jobs.database[f"{jobs.name}.consumers"].insert_one({"_id": "worker", **entry})


# names that are none


async def test_names_that_are_no_text_neither_stop_a_census_nor_hide_a_queue(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    for state in STATES:
        jobs.insert_many([a_job_of(name, state) for name in NOT_UTF8])
        jobs.insert_many([a_job(name, state) for name in ("emails", "zz", "a", "reports")])

    with anyio.fail_after(SOON):
        counted = await surveyor.take()

    assert list(counted.queues) == ["a", "emails", "reports", "zz", INVALID]
    assert set(counted.queues["zz"].jobs().values()) == {1}
    assert set(counted.queues[INVALID].jobs().values()) == {len(NOT_UTF8)}
    assert counted.foreign == len(NOT_UTF8) * len(STATES)
    assert counted.consumers is not None
    assert set(counted.consumers) == {INVALID}


@pytest.mark.parametrize("command", [["consumers"], ["top", "--once"]], ids=lambda one: one[0])
def test_who_looks_is_shown_the_queues_beside_names_that_are_no_text(
    uri: str, jobs: Collection[Any], capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    jobs.insert_many([a_job_of(name, state) for name in NOT_UTF8 for state in STATES])
    jobs.insert_one(a_job("zz"))
    a_worker(jobs, "zz", "not a name", "\x1b[31m")

    address = uri.replace("/?", f"/{jobs.database.name}?")
    assert not main([*command, "--uri", address, "--json"])

    said = capsys.readouterr().out
    content = json.loads(said)
    if command == ["consumers"]:
        assert [one["queues"] for one in content] == [[], ["zz"]]
    else:
        assert set(content["census"]["queues"]) == {"zz", INVALID}


def test_a_list_of_the_dead_names_no_queue_that_is_none(
    uri: str, jobs: Collection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.insert_many([a_job_of(name, "dead") for name in (*NOT_UTF8, b"a; reboot")])
    jobs.insert_one(a_job("zz", "dead"))

    address = uri.replace("/?", f"/{jobs.database.name}?")
    assert not main(["dead", "list", "--uri", address])

    assert "(there are some in zz: --queue zz)" in capsys.readouterr().out


async def test_without_indexes_the_queues_are_found_as_well(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any]
) -> None:
    for name in ("emails", ["a", "b"], "zz", 7):
        jobs.insert_one(a_job(name))
    jobs.insert_one(a_job_of(b"em\xff", "ready"))

    counted = await Surveyor(AsyncStore(async_jobs)).take()

    assert {"emails", "zz", INVALID} <= set(counted.queues)
    assert counted.queues["zz"].ready == 1


async def test_names_of_a_megabyte_are_neither_shown_nor_kept(
    store: AsyncStore, jobs: Collection[Any]
) -> None:
    megabyte = "x" * 1_000_000
    for letter in "abc":
        for state in STATES:
            jobs.insert_one(a_job(letter + megabyte, state, locked_by=letter + megabyte))
    jobs.insert_one(a_job("emails"))
    registry = CollectorRegistry()
    async with anyio.create_task_group() as tasks:
        await tasks.start(Exporter(store, registry).run)
        await wait_until_async(
            lambda: registry.get_sample_value("streamqueue_foreign_documents") is not None, "shown"
        )
        shown = generate_latest(registry)
        tasks.cancel_scope.cancel()

    assert b'streamqueue_queue_jobs{queue="(invalid)",state="ready"} 3.0' in shown
    assert b"streamqueue_foreign_documents 15.0" in shown
    assert b'oldest_ready_age_seconds{queue="(invalid)"}' not in shown
    assert len(shown) < 20_000
    counted = await Surveyor(store, holders=True).take()
    assert counted.consumers is not None
    assert set(counted.consumers) == {INVALID}


# more names than may be


async def test_names_that_sort_first_take_no_queue_away(
    surveyor: Surveyor, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "MAX_QUEUES", 4)
    jobs.insert_many([a_job("stalled"), a_job("stalled", "running")])
    await surveyor.take()
    a_worker(jobs, "served")
    jobs.insert_one(a_job("served"))
    jobs.insert_many(a_job(f"0{n}", state) for n in range(9) for state in STATES)

    for _ in range(2):
        counted = await surveyor.take()

        assert set(counted.queues) == {"00", "01", "served", "stalled"}
        assert counted.queues["stalled"].jobs()["running"] == 1
        assert counted.queues["served"].slots == 5
        assert counted.left_out == 7


async def test_a_walk_that_was_cut_short_goes_on_in_the_next_census(
    surveyor: Surveyor, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "MOST_LOOKS", 3)
    jobs.insert_many(a_job(f"q{n}") for n in range(8))

    sizes = [len((await surveyor.take()).queues) for _ in range(4)]

    assert sizes == [3, 6, 8, 8]


async def test_a_census_that_takes_too_long_fails(
    slow: Surveyor, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "LONGEST", 1.0)
    a_worker(jobs, *(f"q{n}" for n in range(150)))

    with anyio.fail_after(SOON / 2), pytest.raises(PyMongoError):
        await slow.take()


async def test_finding_the_queues_leaves_time_for_counting_them(
    slow: Surveyor, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "DISCOVERY", 0.6)
    jobs.insert_many(a_job(f"q{n:02}") for n in range(50))
    a_worker(jobs, "zz")

    counted = await slow.take()

    assert "zz" in counted.queues
    assert len(counted.queues) < 15


# odd dates


NO_DATES = [None, "soon", Code("x"), Regex("x"), Timestamp(2**31, 1), DatetimeMS(-(2**63))]


@pytest.mark.parametrize("run_at", NO_DATES, ids=lambda date: type(date).__name__)
async def test_a_job_without_a_date_is_overdue_and_hides_none(
    surveyor: Surveyor, jobs: Collection[Any], run_at: Any
) -> None:
    jobs.insert_one(a_job("emails", "scheduled", run_at=run_at))
    jobs.insert_one(a_job("emails", "scheduled", run_at=ago(90)))
    jobs.insert_many(a_job("later", "scheduled", run_at=ago(age)) for age in (1, -60))

    counted = await surveyor.take()

    assert counted.queues["emails"].overdue == 2
    assert counted.queues["emails"].oldest_ready_age > 85
    assert counted.queues["later"].overdue == 0


@pytest.mark.parametrize(
    "seq",
    [None, "soon", Code("x"), Regex("x"), MaxKey(), ago(90)],
    ids=lambda seq: type(seq).__name__,
)
async def test_a_ready_job_without_a_place_hides_not_how_long_others_wait(
    surveyor: Surveyor, jobs: Collection[Any], seq: Any
) -> None:
    jobs.insert_one(a_job("emails", _id="x", priority=1, seq=seq))
    jobs.insert_one(a_job("emails", priority=1, seq=Timestamp(0, 0), run_at=ago(90)))

    assert (await surveyor.take()).queues["emails"].oldest_ready_age > 85
