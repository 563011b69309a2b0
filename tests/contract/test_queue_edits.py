"""What other programs write into a job wakes whoever could run it, and nothing else.

Law: the document is the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue
from streamqueue.protocol import operations
from streamqueue.protocol.document import CODEC
from tests.contract.looks import document
from tests.contract.shells import Shell
from tests.contract.waiters import WAIT, waiting
from tests.edits import EDITS, Edit, job


@pytest.mark.few(7)
@pytest.mark.parametrize(("stored", "edit"), EDITS.values(), ids=EDITS)
async def test_an_edit_wakes_whoever_waits(
    shell: Shell,
    jobs: Collection[Any],
    monkeypatch: pytest.MonkeyPatch,
    stored: dict[str, Any],
    edit: Edit,
) -> None:
    # So that it is the event that wakes.
    monkeypatch.setattr("streamqueue.queue.consumer.ELSEWHERE_EVERY", 60)
    jobs.insert_one(stored)
    queue = shell.queue()

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        jobs.update_one({"_id": stored["_id"]}, edit())
        found = await waiter.soon()

    assert found.id == stored["_id"]


@pytest.mark.parametrize("state", ["scheduled", "running"])
async def test_a_replacement_that_is_due_wakes_too(
    shell: Shell, jobs: Collection[Any], state: str
) -> None:
    stored = job("dead")
    jobs.insert_one(stored)
    queue = shell.queue()

    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        past = {"run_at": datetime.now(UTC), "locked_until": datetime.now(UTC)}
        jobs.replace_one({"_id": stored["_id"]}, job(state, **past, _id=stored["_id"]))
        found = await waiter.soon()

    assert found.id == stored["_id"]


async def test_whoever_waits_returns_what_the_dead_held_in_other_queues(
    shell: Shell, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else may be left to do it, and no event says that a lease has ended."""
    monkeypatch.setattr("streamqueue.queue.consumer.ELSEWHERE_EVERY", 0.2)
    ended = {"locked_until": datetime.now(UTC), "attempts": 1}
    lost = [job("running", queue="other", max_attempts=limit, **ended) for limit in (3, 1)]
    queue = shell.queue()

    async with waiting(jobs, lambda: queue.next(wait=1)) as [waiter]:
        jobs.insert_many(lost)
        assert await waiter.soon() is None

    assert [document(jobs, one["_id"])["state"] for one in lost] == ["ready", "dead"]


# What passes the filter, and what is left of it: seen by a reader of its own.


@pytest.fixture
def events(jobs: Collection[Any]) -> Any:
    """A function that returns the events since it was last called."""
    with jobs.with_options(codec_options=CODEC).watch(
        operations.stream_pipeline(["default", "second"]), max_await_time_ms=50
    ) as stream:

        def read() -> list[Any]:
            # One more, which does pass, says that all before it have been looked at.
            last = jobs.insert_one({"queue": "second", "state": "ready"}).inserted_id
            found: list[Any] = []
            while not found or found[-1]["documentKey"]["_id"] != last:
                if (event := stream.try_next()) is not None:
                    found.append(event)
            return found[:-1]

        yield read


def test_what_a_consumer_writes_all_the_time_makes_no_event(
    jobs: Collection[Any], events: Callable[[], list[Any]]
) -> None:
    jobs.insert_many([job(payload={"text": "x" * size}) for size in (1, 1, 20_000)])
    queue = MongoQueue(jobs, timeout=30)
    assert len(events()) == 3

    claimed = [queue.next(), *queue.claim(2)]
    for held in claimed:
        assert held is not None
        held.progress()
        held.progress(5)
        held.complete()

    assert events() == []


def test_the_end_of_a_job_makes_no_event(
    jobs: Collection[Any], events: Callable[[], list[Any]]
) -> None:
    jobs.insert_one(job(max_attempts=1))
    held = MongoQueue(jobs).next()
    assert len(events()) == 1
    assert held is not None

    held.error("of no use")

    assert jobs.count_documents({"state": "dead"}) == 1
    assert events() == []


@pytest.mark.parametrize(
    "update",
    [
        {"$set": {"queue": "third"}},
        {"$set": {"payload.run_at": 5}},
        {"$unset": {"payload.n": 1}},
        {"$set": {"state": "running", "priority": 5}},
        {"$set": {"locked_until": datetime(2100, 1, 1, tzinfo=UTC)}},
    ],
    ids=str,
)
def test_an_edit_that_makes_no_work_makes_no_event(
    jobs: Collection[Any], events: Callable[[], list[Any]], update: dict[str, Any]
) -> None:
    stored = job("scheduled")
    jobs.insert_one(stored)
    events()

    jobs.update_one({"_id": stored["_id"]}, update)

    assert events() == []


def test_an_event_carries_the_head_of_the_job_and_never_its_payload(
    jobs: Collection[Any], events: Callable[[], list[Any]]
) -> None:
    stored = job()
    jobs.insert_one(stored)

    [event] = events()

    head = {field: stored[field] for field in ("_id", "queue", "state", "priority")}
    assert event["operationType"] == "insert"
    assert event["fullDocument"].pop("run_at") is not None
    assert event["fullDocument"].pop("seq") is not None
    assert event["fullDocument"] == head


def test_an_event_of_an_update_carries_what_was_edited_and_no_more(
    jobs: Collection[Any], events: Callable[[], list[Any]]
) -> None:
    stored = job("scheduled")
    jobs.insert_one(stored)
    events()

    edit = {"queue": "second", "priority": 7, "payload": "secret"}
    jobs.update_one({"_id": stored["_id"]}, {"$set": edit, "$unset": {"run_at": 1}})

    [event] = events()
    assert event["documentKey"] == {"_id": stored["_id"]}
    assert event["updateDescription"]["updatedFields"] == {"queue": "second", "priority": 7}
    assert event["updateDescription"]["removedFields"] == ["run_at"]
    assert "fullDocument" not in event
