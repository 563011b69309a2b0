"""No document ends a worker: whatever may be inserted, what it does ends with it.

Law: poison is contained.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from bson import Binary, Decimal128, ObjectId
from pymongo.errors import BulkWriteError
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from streamqueue.protocol.document import JobRecord
from tests.strange import FIELDS, STORED_AS_ID, VALUES, encoded, job, later
from tests.waiting import wait_until_async
from tests.worker.members import Members, Notes
from tests.worker.started import StartedWorker, WorkerStarter

BURIED = "streamqueue_jobs_buried_total"
LIVE = ["ready", "scheduled", "running"]
NO_IDS = [name for name in STORED_AS_ID if VALUES[name][0] in {3, 8, 12, 13, 15, 19}]
"""Values that no job may have as its id, whatever bytes they are of."""


@pytest.fixture
def notes() -> Notes:
    return Notes()


def insert(jobs: Collection[Any], documents: Iterable[Any]) -> None:
    """Insert all that the server stores: of what equals another (a symbol a text) only one."""
    with suppress(BulkWriteError):
        jobs.insert_many(documents, ordered=False)


def odd_jobs(field: str, state: str) -> list[Any]:
    names = STORED_AS_ID if field == "_id" else VALUES
    return [job(state, {field: VALUES[name]}, queue="default") for name in names]


async def until_seen(notes: Notes, what: object, *workers: StartedWorker) -> None:
    """Wait for a good job, or for the end of who should run it, which fails the test."""
    await wait_until_async(
        lambda: what in notes.seen or any(worker.ended.is_set() for worker in workers),
        f"{what} is run",
        40,
    )
    assert what in notes.seen


async def until_nothing_lives(jobs: Collection[Any]) -> None:
    live = {"state": {"$in": LIVE}, "queue": "default"}
    await wait_until_async(lambda: not jobs.count_documents(live), "nothing waits")


@pytest.mark.few(1)
@pytest.mark.parametrize("state", LIVE)
async def test_a_job_with_any_id_at_all_that_comes_while_a_worker_runs_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes, state: str
) -> None:
    worker = await start(notes, sweep_interval=None, max_attempts=1, reap_interval=0.2)

    insert(jobs, odd_jobs("_id", state))
    await queue.put({"n": "good"})

    await until_seen(notes, "good", worker)
    await until_nothing_lives(jobs)
    await worker.until_idle()


@pytest.mark.few(1)
@pytest.mark.parametrize("state", LIVE)
async def test_a_job_with_any_id_at_all_that_a_worker_finds_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes, state: str
) -> None:
    insert(jobs, odd_jobs("_id", state))
    await queue.put({"n": "good"})

    worker = await start(notes, sweep_interval=None, max_attempts=1)

    await until_seen(notes, "good", worker)
    await until_nothing_lives(jobs)
    await worker.until_idle()


@pytest.mark.parametrize("state", LIVE)
async def test_a_job_with_any_id_at_all_stops_no_dispatcher(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes, state: str
) -> None:
    dispatcher = await members.open(max_attempts=1)
    worker = await members.start(notes, max_attempts=1, sweep_interval=None)
    insert(jobs, odd_jobs("_id", state))
    await queue.put({"n": "good"})

    await until_seen(notes, "good", worker)
    await until_nothing_lives(jobs)

    assert not dispatcher.ended.is_set()
    if state == "ready":  # what a dispatcher buries is counted by one of its processes
        await wait_until_async(lambda: worker.metric(BURIED, reason="id") > 0, "it is counted")


async def test_a_job_with_any_value_in_any_field_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes
) -> None:
    worker = await start(notes, sweep_interval=0.2, reap_interval=0.2, timeout=5, concurrency=100)

    for field in FIELDS[1:]:  # ids have tests of their own
        for state in LIVE[:1] if field == "key" else LIVE:  # (a key is unique)
            insert(jobs, odd_jobs(field, state))
    await queue.put({"n": "good"}, priority=-1_000_000)

    await until_seen(notes, "good", worker)
    assert worker.metric("streamqueue_stream_restarts_total") == 0


async def test_a_job_whose_id_is_none_is_buried_with_its_reason_and_counted(
    start: WorkerStarter, jobs: Collection[Any], notes: Notes
) -> None:
    jobs.insert_many(job("ready", {"_id": VALUES[name]}, queue="default") for name in NO_IDS)

    worker = await start(notes, sweep_interval=None)
    await until_nothing_lives(jobs)

    reason = "its _id is not a plain value of at most 1024 bytes"
    assert jobs.count_documents({"state": "dead", "last_error": reason}) == len(NO_IDS)
    await wait_until_async(lambda: worker.metric(BURIED) == len(NO_IDS), "they are counted")
    assert worker.metric(BURIED, reason="id") == len(NO_IDS)
    assert notes.seen == []


async def test_more_jobs_that_nobody_can_run_than_are_read_at_a_time_hide_no_other(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes
) -> None:
    await queue.put({"n": "good"}, priority=-1)
    jobs.insert_many(
        {"_id": Decimal128(str(number)), "queue": "default", "state": "ready", "payload": {}}
        | {"priority": 5}
        for number in range(2500)
    )

    worker = await start(notes, sweep_interval=None)

    await until_seen(notes, "good", worker)
    assert worker.metric(BURIED, reason="id") == 2500
    assert jobs.count_documents({"state": "dead"}) == 2500


async def test_a_job_with_an_id_that_cannot_be_written_and_no_place_holds_nobody_up(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes
) -> None:
    # To be given a place it must be named, and what was decoded is not its name.
    odd = {"_id": VALUES["text that is not UTF-8"], "run_at": VALUES["text"]}
    jobs.insert_one(job("ready", odd, queue="default"))

    worker = await start(notes, sweep_interval=None)
    await queue.put({"n": "good"})

    await until_seen(notes, "good", worker)
    await worker.until_idle()


async def test_a_due_job_with_an_id_that_cannot_be_written_keeps_no_timer_busy(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes
) -> None:
    odd = {"_id": VALUES["document with a field twice"], "run_at": later(0.1)}
    jobs.insert_one(job("scheduled", odd, queue="default"))

    worker = await start(notes, sweep_interval=None)
    await until_nothing_lives(jobs)

    await worker.until_idle()
    assert worker.metric(BURIED, reason="id") == 1


async def test_an_event_that_cannot_be_decoded_breaks_no_stream(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes
) -> None:
    worker = await start(notes, sweep_interval=None)

    for field in ("_id", "priority", "run_at"):
        jobs.insert_one(job("ready", {field: VALUES["short UUID"]}, queue="default"))
    await queue.put({"n": "good"})

    def broken() -> float:
        return worker.metric("streamqueue_stream_restarts_total")

    await wait_until_async(
        lambda: worker.metric("streamqueue_stream_events_total") >= 4 or broken(),
        "all events have been read",
    )
    assert broken() == 0


async def test_a_job_with_a_uuid_as_its_id_is_run_once(
    start: WorkerStarter, jobs: Collection[Any], notes: Notes
) -> None:
    worker = await start(notes, sweep_interval=None)

    uuid = {"_id": VALUES["UUID"], "payload": (3, encoded(("n", VALUES["text"])))}
    jobs.insert_one(job("ready", uuid, queue="default"))

    await until_seen(notes, "text", worker)
    await worker.until_idle()
    assert notes.seen == ["text"]


async def test_a_job_that_has_two_queues_is_buried_when_it_comes_again(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], notes: Notes
) -> None:
    jobs.insert_one(job("ready", {}, queue="default", twice="queue"))

    worker = await start(notes, sweep_interval=None)
    await queue.put({"n": "good"})

    await until_seen(notes, "good", worker)
    await wait_until_async(lambda: worker.metric(BURIED, reason="queue") == 1, "it is buried")
    assert jobs.find_one({}, {"_id": 0, "last_error": 1}) == {"last_error": "it has two queues"}


async def test_a_job_that_cannot_be_handed_over_is_buried_and_those_beside_it_are_run(
    start: WorkerStarter,
    queue: AsyncMongoQueue,
    jobs: Collection[Any],
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = JobRecord.from_document

    def read_or_fail(document: Any, *, max_attempts: int) -> JobRecord:
        if "bad" in document.get("payload", {}):
            raise RuntimeError("secret")
        return read(document, max_attempts=max_attempts)

    monkeypatch.setattr(JobRecord, "from_document", read_or_fail)
    await queue.put_many([{"n": 1}, {"bad": True}, {"n": 2}])

    worker = await start(notes, sweep_interval=None)

    await until_seen(notes, 2, worker)
    await until_nothing_lives(jobs)
    [buried] = jobs.find({}, {"_id": 0, "state": 1, "last_error": 1})
    assert buried == {
        "state": "dead",
        "last_error": "it cannot be handed over: RuntimeError",
    }
    await wait_until_async(lambda: worker.metric(BURIED, reason="damaged") == 1, "it is counted")


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"payload": 5}, "payload"),
        ({"queue": ["default"]}, "queue"),
        ({"payload": {"id": Binary(b"short", 4)}}, "undecodable"),
        ({"_id": "x" * 2000}, "id"),
    ],
)
async def test_a_buried_job_is_counted_by_what_is_wrong_with_it(
    start: WorkerStarter, jobs: Collection[Any], notes: Notes, odd: dict[str, Any], reason: str
) -> None:
    worker = await start(notes, sweep_interval=None)

    jobs.insert_one({"_id": ObjectId(), "queue": "default", "state": "ready", "payload": {}, **odd})

    await wait_until_async(lambda: worker.metric(BURIED) == 1, "it is counted")
    assert worker.metric(BURIED, reason=reason) == 1
    assert jobs.count_documents({"state": "dead"}) == 1
