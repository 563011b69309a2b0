"""How the queue stands: what is counted, and what the counting costs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Binary, Int64, ObjectId
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue, Topic
from streamqueue.exporter import census
from streamqueue.exporter.census import Surveyor
from streamqueue.names import INVALID
from streamqueue.store.asynchronous import AsyncStore
from tests.ops.profiled import looks_of
from tests.worker.faults import failing


@pytest.fixture
def queue(jobs: Collection[Any]) -> Iterator[MongoQueue]:
    with MongoQueue(jobs, name="emails") as queue:
        yield queue


@pytest.fixture
async def store(async_jobs: AsyncCollection[Any]) -> AsyncStore:
    store = AsyncStore(async_jobs)
    await store.prepare()
    return store


@pytest.fixture
def surveyor(store: AsyncStore) -> Surveyor:
    return Surveyor(store, holders=True)


def set_fields(jobs: Collection[Any], job_id: ObjectId, **fields: Any) -> None:
    jobs.update_one({"_id": job_id}, {"$set": fields})


def ago(**length: float) -> datetime:
    return datetime.now(UTC) - timedelta(**length)


def a_consumer(jobs: Collection[Any], name: str, **fields: Any) -> None:
    """Write an entry of the list of consumers, as a worker does."""
    entry = {"queues": ["emails"], "concurrency": 20, "seen_at": ago(seconds=1), **fields}
    jobs.database[f"{jobs.name}.consumers"].insert_one({"_id": name, **entry})


# jobs


async def test_an_empty_collection_has_no_queues(surveyor: Surveyor) -> None:
    counted = await surveyor.take()

    assert counted.queues == {}
    assert counted.consumers == {}


async def test_jobs_are_counted_by_queue_and_state(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    queue.put_many([{}] * 10)
    queue.put_many([{}] * 4, delay=60)
    for _ in range(3):
        job = queue.next()
        assert job is not None
        job.error("no")
    queue.claim(2)
    jobs.update_many({"state": "scheduled", "attempts": 1}, {"$set": {"state": "dead"}})
    with MongoQueue(jobs, name="reports") as reports:
        reports.put({})

    counted = await surveyor.take()

    there = {"ready": 5, "scheduled": 4, "waiting": 0, "running": 2, "dead": 3}
    assert counted.queues["emails"].jobs() == there
    assert counted.queues["reports"].jobs() == {**dict.fromkeys(there, 0), "ready": 1}


@pytest.mark.parametrize("state", ["ready", "scheduled", "waiting", "running", "dead"])
async def test_a_queue_with_jobs_in_one_state_alone_is_found(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue, state: str
) -> None:
    set_fields(jobs, queue.put({}), state=state)

    counted = await surveyor.take()

    assert counted.queues["emails"].jobs()[state] == 1


async def test_a_queue_that_became_empty_stays_with_zeros(
    surveyor: Surveyor, queue: MongoQueue
) -> None:
    queue.put({})
    await surveyor.take()
    queue.clear()

    counted = await surveyor.take()

    assert set(counted.queues["emails"].jobs().values()) == {0}
    assert counted.queues["emails"].oldest_ready_age == 0


async def test_done_jobs_are_not_counted(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    set_fields(jobs, queue.put({}), state="done")

    assert (await surveyor.take()).queues == {}


async def test_no_more_queues_are_counted_than_there_may_be_series(
    surveyor: Surveyor, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "MAX_QUEUES", 3)
    jobs.insert_many({"queue": f"q{n}", "state": "ready", "payload": {}} for n in range(7))

    counted = await surveyor.take()

    assert list(counted.queues) == ["q0", "q1", "q2"]


@pytest.mark.parametrize("state", ["ready", "scheduled", "waiting", "dead"])
async def test_a_queue_that_is_not_a_name_hides_no_other(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue, state: str
) -> None:
    queue.put({})
    for odd in (["a", "z"], ["b"], 7, None, {"a": 1}):
        jobs.insert_one({"queue": odd, "state": state, "payload": {}})
    jobs.insert_one({"queue": "reports", "state": state, "payload": {}})

    counted = await surveyor.take()

    assert list(counted.queues) == ["emails", "reports", INVALID]
    # A list counts once for each of its names.
    assert counted.queues[INVALID].jobs()[state] == counted.foreign == 6


# how late


async def test_nothing_waits_when_no_job_is_due(surveyor: Surveyor, queue: MongoQueue) -> None:
    queue.put({}, delay=60)

    assert (await surveyor.take()).queues["emails"].oldest_ready_age == 0


async def test_the_oldest_is_found_whatever_its_priority(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    for priority, age in ((0, 50), (5, 10), (-3, 300), (9, 20)):
        job_id = queue.put({}, priority=priority)
        queue.put({}, priority=priority)
        set_fields(jobs, job_id, run_at=ago(seconds=age))

    counted = await surveyor.take()

    assert counted.queues["emails"].oldest_ready_age == pytest.approx(300, abs=5)


async def test_a_due_job_that_nobody_promoted_waits_too(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    queue.put({})
    set_fields(jobs, queue.put({}, delay=60), run_at=ago(seconds=90))

    counted = await surveyor.take()

    assert counted.queues["emails"].oldest_ready_age == pytest.approx(90, abs=5)


async def test_a_foreign_job_without_times_waits_since_its_id_was_made(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    old = ObjectId.from_datetime(ago(seconds=120))
    jobs.insert_one({"_id": old, "queue": "emails", "state": "ready", "payload": {}})

    counted = await surveyor.take()

    assert counted.queues["emails"].oldest_ready_age == pytest.approx(120, abs=5)


@pytest.mark.parametrize("job_id", [7.0, Int64(7), "2020-01-01"])
async def test_an_id_that_only_looks_like_a_date_is_no_age(
    surveyor: Surveyor, jobs: Collection[Any], job_id: Any
) -> None:
    jobs.insert_one({"_id": job_id, "queue": "emails", "state": "ready", "payload": {}})

    counted = await surveyor.take()

    assert counted.queues["emails"].oldest_ready_age < 5


@pytest.mark.parametrize("run_at", [None, "soon", float("nan"), {}, 17])
@pytest.mark.parametrize("state", ["ready", "scheduled"])
async def test_a_damaged_time_does_not_stop_the_census(
    surveyor: Surveyor, jobs: Collection[Any], run_at: Any, state: str
) -> None:
    damaged = {"_id": "odd", "queue": "emails", "state": state, "run_at": run_at, "payload": {}}
    jobs.insert_one(damaged)

    counted = await surveyor.take()

    assert counted.queues["emails"].jobs()[state] == 1
    assert counted.queues["emails"].oldest_ready_age < 5


# what is held


async def test_what_cannot_be_decoded_does_not_stop_the_census(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    jobs.insert_one({"queue": "emails", "state": "running", "locked_by": Binary(b"abc", 4)})
    a_consumer(jobs, "odd", host=Binary(b"abc", 4))

    counted = await surveyor.take()

    assert counted.queues["emails"].running == 1
    assert counted.consumers is not None
    assert counted.consumers["odd"].host is None


async def test_a_lease_that_ended_and_was_not_returned_is_counted(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    queue.put_many([{}] * 3)
    first, *_ = queue.claim(3)
    set_fields(jobs, first.id, locked_until=ago(seconds=1))

    counted = await surveyor.take()

    assert counted.queues["emails"].expired_leases == 1
    assert counted.queues["emails"].running == 3


@pytest.mark.parametrize("holders", [False, True])
async def test_the_attempt_that_has_run_longest_is_found_in_each_queue(
    store: AsyncStore, jobs: Collection[Any], queue: MongoQueue, *, holders: bool
) -> None:
    queue.put_many([{}] * 3)
    old, *_ = queue.claim(3)
    set_fields(jobs, old.id, locked_at=ago(hours=2), locked_until=ago(hours=-1))
    with MongoQueue(jobs, "another", name="emails") as another:
        another.put({})
        another.claim(1)
    with MongoQueue(jobs, name="idle") as idle:
        idle.put({})

    counted = await Surveyor(store, holders=holders).take()

    assert counted.queues["emails"].oldest_running_age == pytest.approx(7200, abs=60)
    assert counted.queues["idle"].oldest_running_age == 0


@pytest.mark.parametrize("locked_at", [None, "long ago", datetime(2999, 1, 1, tzinfo=UTC)])
async def test_an_attempt_without_a_likely_beginning_has_the_age_0(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue, locked_at: object
) -> None:
    set_fields(jobs, queue.put({}), state="running", locked_at=locked_at)

    counted = await surveyor.take()

    assert counted.queues["emails"].oldest_running_age == 0


async def test_consumers_are_shown_with_what_they_hold(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    a_consumer(jobs, "one", host="h", pid=7, version="1.0", started_at=ago(seconds=30))
    a_consumer(jobs, "two", queues=["emails", "reports"], concurrency=5)
    with MongoQueue(jobs, "one", name="emails") as queue:
        queue.put_many([{}] * 3)
        held = queue.claim(3)
    set_fields(jobs, held[0].id, locked_at=ago(seconds=70))

    counted = await surveyor.take()

    assert counted.consumers is not None
    one, two = counted.consumers["one"], counted.consumers["two"]
    assert (one.running, one.slots, one.host, one.pid, one.version) == (3, 20, "h", 7, "1.0")
    assert one.longest == pytest.approx(70, abs=5)
    assert one.up == pytest.approx(30, abs=5)
    assert (two.running, two.longest, two.queues) == (0, 0.0, ["emails", "reports"])
    assert (counted.queues["emails"].consumers, counted.queues["emails"].slots) == (2, 25)
    assert (counted.queues["reports"].consumers, counted.queues["reports"].slots) == (1, 5)


async def test_a_consumer_that_is_on_no_list_is_shown_by_what_it_holds(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    with MongoQueue(jobs, "a script", name="emails") as queue:
        queue.put({})
        queue.next()

    counted = await surveyor.take()

    assert counted.consumers is not None
    assert counted.consumers["a script"].running == 1
    assert counted.consumers["a script"].queues == []
    assert counted.queues["emails"].consumers == 0


async def test_a_consumer_that_fell_silent_is_gone(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    a_consumer(jobs, "dead", seen_at=ago(seconds=80))
    a_consumer(jobs, "damaged", seen_at="just now")

    assert (await surveyor.take()).consumers == {}


async def test_a_damaged_entry_of_the_list_does_not_stop_the_census(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    a_consumer(jobs, "odd", queues="emails", concurrency="many", host=4, pid="x", version=None)
    a_consumer(jobs, "odder", queues=["emails", 7, None], concurrency=True, started_at=1)

    counted = await surveyor.take()

    assert counted.consumers is not None
    assert counted.consumers["odd"].queues == []
    assert counted.consumers["odder"].queues == ["emails"]
    assert counted.queues["emails"].slots == 0


# the oplog


# settings


async def test_a_paused_queue_is_told_apart_until_it_is_resumed(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue
) -> None:
    queue.put({})
    MongoQueue(jobs, name="reports").put({})
    queue.pause()

    paused = {name: one.paused for name, one in (await surveyor.take()).queues.items()}
    queue.resume()
    resumed = {name: one.paused for name, one in (await surveyor.take()).queues.items()}

    assert paused == {"emails": True, "reports": False}
    assert resumed == {"emails": False, "reports": False}


async def test_a_paused_queue_is_shown_though_it_has_neither_jobs_nor_consumers(
    surveyor: Surveyor, queue: MongoQueue
) -> None:
    queue.pause()

    counted = await surveyor.take()

    assert [one.name for one in counted.queues.values() if one.paused] == ["emails"]
    assert counted.foreign == 0


async def test_the_latest_schedule_of_a_queue_says_how_late_its_schedules_are(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]
    now = datetime.now(UTC)
    late: list[dict[str, Any]] = [
        {"queue": "emails", "next_tick": now - timedelta(seconds=100)},
        {"queue": "emails", "next_tick": now - timedelta(seconds=300), "spread": 120.0},
        {"queue": "reports", "next_tick": now + timedelta(hours=1)},
        {"queue": "paused", "next_tick": now - timedelta(hours=1), "paused": True},
        *({"queue": "odd", "next_tick": value} for value in (None, "x", 5, {"a": 1})),
        *({"queue": value, "next_tick": now} for value in (None, 5, "no name")),
        {"queue": "odd", "spread": "x", "next_tick": now},
    ]
    settings.insert_many(
        {"_id": f"schedule:s{number}", **fields} for number, fields in enumerate(late)
    )

    queues = (await surveyor.take()).queues

    shown = {name: queue.schedules_late for name, queue in queues.items()}
    assert shown == {
        "emails": pytest.approx(180, abs=10),
        "reports": 0,
        "odd": pytest.approx(0, abs=10),
    }


async def test_schedules_that_are_late_or_paused_are_named(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]
    now = datetime.now(UTC)
    fields: dict[str, dict[str, Any]] = {
        "a-moment": {"next_tick": now - timedelta(seconds=1)},
        "late": {"next_tick": now - timedelta(seconds=300), "spread": 120.0},
        "later": {"next_tick": now - timedelta(hours=1)},
        "paused": {"next_tick": now - timedelta(hours=1), "paused": True},
        "paused too": {"next_tick": None, "paused": True},
        "odd": {"next_tick": now + timedelta(hours=1), "paused": "yes"},
    }
    settings.insert_many(
        {"_id": f"schedule:{name}", "queue": "reports", **one} for name, one in fields.items()
    )

    counted = await surveyor.take()

    assert counted.late_schedules == {
        "later": pytest.approx(3600, abs=10),
        "late": pytest.approx(180, abs=10),
    }
    assert list(counted.late_schedules) == ["later", "late"]
    assert counted.paused_schedules == ["paused"]


async def test_a_queue_says_to_how_many_topics_it_subscribes(
    surveyor: Surveyor, jobs: Collection[Any]
) -> None:
    orders, returns = Topic(jobs, "orders"), Topic(jobs, "returns")
    orders.subscribe("mails")
    orders.subscribe("audit")
    returns.subscribe("mails")
    returns.subscribe("invoices")
    returns.unsubscribe("invoices")
    odd = ["x", {"queue": 5}, {"queue": "no name"}, {"queue": "mails"}, {"queue": "mails"}]
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.insert_many(
        [
            {"_id": "topic:odd", "subscribers": odd},
            {"_id": "topic:odder", "subscribers": 7},
            {"_id": "topic:over", "subscribers": [{"queue": "old", "expires_at": ago(hours=1)}]},
        ]
    )

    queues = (await surveyor.take()).queues

    assert {name: one.subscriptions for name, one in queues.items()} == {"audit": 1, "mails": 3}


@pytest.mark.parametrize("name", [5, "", "no name", "x" * 65, {"a": 1}], ids=repr)
async def test_settings_of_what_is_no_queue_do_not_stop_the_census(
    surveyor: Surveyor, jobs: Collection[Any], queue: MongoQueue, name: Any
) -> None:
    queue.put({})
    jobs.database[f"{jobs.name}.settings"].insert_one({"_id": name, "paused": True})

    assert list((await surveyor.take()).queues) == ["emails"]


async def test_the_window_of_the_oplog_is_measured(surveyor: Surveyor) -> None:
    counted = await surveyor.take()

    assert counted.oplog_window is not None
    assert counted.oplog_window >= 0


# what it costs


async def test_counting_reads_indexes_and_the_running_jobs_alone(
    store: AsyncStore, jobs: Collection[Any], queue: MongoQueue
) -> None:
    for priority in range(3):
        queue.put_many([{}] * 300, priority=priority)
    queue.put_many([{}] * 300, delay=60)
    queue.claim(50)
    jobs.insert_many({"queue": "emails", "state": "dead", "payload": {}} for _ in range(20))
    jobs.insert_many({"queue": "emails", "state": "done", "payload": {}} for _ in range(5000))
    surveyor = Surveyor(store)

    looks = await looks_of(jobs, surveyor)

    on_jobs = [look for look in looks if look["ns"].endswith(".jobs")]
    # Queues looked for in four states, one found in each but the third, and none after it; running,
    # counts, what is no queue.
    assert len(on_jobs) == 10
    assert [look["planSummary"] for look in looks if "COLLSCAN" in look["planSummary"]] == []
    assert sum(look.get("docsExamined", 0) for look in on_jobs) == 50  # those that run
    # 850 ready, 300 scheduled, 20 dead and 50 running are counted, one key each.
    assert sum(look.get("keysExamined", 0) for look in on_jobs) < 850 + 300 + 20 + 50 + 40


# rights


async def test_what_may_not_be_read_is_left_out(
    async_jobs: AsyncCollection[Any], jobs: Collection[Any], queue: MongoQueue, uri: str
) -> None:
    queue.put({})
    name = f"test-{secrets.token_hex(4)}"
    async with AsyncMongoClient(uri, appname=name) as own_client:
        store = AsyncStore(own_client[jobs.database.name][jobs.name])
        await store.prepare()
        surveyor = Surveyor(store)
        no_oplog: Any = {"errorCode": 13, "namespace": "local.oplog.rs"}
        with failing(jobs.database.client, "find", app=name, **no_oplog):
            first = await surveyor.take()
        second = await surveyor.take()

    assert first.oplog_window is None
    assert second.oplog_window is None  # and is not asked for again
    assert first.queues["emails"].ready == 1
    assert first.consumers == {}
