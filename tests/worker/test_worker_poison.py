"""One bad document never stops the queue, whoever inserted it.

Law: poison is contained.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import Binary, Timestamp
from bson.binary import UUID_SUBTYPE, UuidRepresentation
from bson.datetime_ms import DatetimeMS
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from tests.waiting import wait_until_async
from tests.worker.started import StartedWorker, WorkerStarter

READY: dict[str, Any] = {"queue": "default", "state": "ready", "payload": {"bad": True}}
UUID_ID = Binary.from_uuid(UUID(int=7), UuidRepresentation.STANDARD)

ODD_DOCUMENTS = {
    "a string as its id": READY | {"_id": "order-7"},
    "a number as its id": READY | {"_id": 7},
    "a UUID as its id": READY | {"_id": UUID_ID},
    "a mapping as its id": READY | {"_id": {"shop": 1, "order": 7}},
    "its queue in a list": READY | {"queue": ["default"]},
    "its state in a list": READY | {"state": ["ready"]},
    "a payload that is a text": READY | {"payload": "text"},
    "no payload": {"queue": "default", "state": "ready"},
    "a priority that is a text": READY | {"priority": "high"},
    "a priority that is not a number": READY | {"priority": float("nan")},
    "attempts that are a text": READY | {"attempts": "many"},
    "attempts without end": READY | {"attempts": float("inf")},
    "no attempts allowed": READY | {"max_attempts": 0},
    "a due time that is a text": READY | {"run_at": "soon"},
    "a due time after the year 9999": READY | {"run_at": DatetimeMS(2**52)},
    "a due time that is a timestamp": READY | {"run_at": Timestamp(1, 1)},
    "a key that is a mapping": READY | {"key": {"$gt": ""}},
    "errors that are no list": READY | {"errors": "none", "last_error": {"a": 1}},
    "a lease already": READY | {"lease": "mine", "locked_until": "never", "locked_by": 5},
    "scheduled, due time a text": READY | {"state": "scheduled", "run_at": "soon"},
    "scheduled, no due time": READY | {"state": "scheduled"},
    "scheduled, due time a timestamp": READY | {"state": "scheduled", "run_at": Timestamp(1, 1)},
    "running, no end of its lease": READY | {"state": "running"},
    "running, a text as the end of its lease": READY | {"state": "running", "locked_until": "x"},
    "running, a timestamp as the end of its lease": READY
    | {"state": "running", "locked_until": Timestamp(1, 1)},
}
SHORT_UUID = Binary(b"abc", UUID_SUBTYPE)
"""What a server stores and pymongo fails to decode."""
UNREADABLE: dict[str, dict[str, Any]] = {
    "the id of a ready job": READY | {"_id": SHORT_UUID},
    "the priority of a ready job": READY | {"priority": SHORT_UUID},
    "the id of a due job": READY | {"_id": SHORT_UUID, "state": "scheduled"},
    "the id of an expired job": READY | {"_id": SHORT_UUID, "state": "running"},
    "the holder of an expired job": READY | {"locked_by": SHORT_UUID, "state": "running"},
    "the attempts of an expired job": READY | {"attempts": SHORT_UUID, "state": "running"},
}

AS_AN_EVENT = [
    *(name for name in ODD_DOCUMENTS if "as its id" in name or "scheduled" in name),
    *("its queue in a list", "its state in a list", "no payload", "attempts without end"),
    "a due time after the year 9999",
]
ON_A_TIMER = [name for name in ODD_DOCUMENTS if "scheduled" in name or "lease" in name]


def some(names: list[str]) -> pytest.MarkDecorator:
    parameters = [pytest.param(ODD_DOCUMENTS[name], id=name) for name in names]
    return pytest.mark.parametrize("document", parameters)


async def start_counting(start: WorkerStarter, **settings: Any) -> tuple[StartedWorker, list[int]]:
    """Start a worker, and return it with the list its handler notes the good jobs in."""
    good: list[int] = []

    async def handler(job: Any) -> None:
        if "n" in job.data:
            good.append(job.data["n"])

    return await start(handler, concurrency=2, **settings), good


@pytest.mark.few(3)
@some(AS_AN_EVENT)
async def test_an_odd_document_announced_to_a_worker_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], document: dict[str, Any]
) -> None:
    worker, good = await start_counting(start)
    await worker.until_idle(0.02)

    jobs.insert_many([document, *({**READY, "payload": {"n": n}} for n in range(4))])

    await wait_until_async(
        lambda: sorted(good) == [0, 1, 2, 3] or worker.ended.is_set(), "the good jobs are done", 5
    )
    assert worker.error is None


@pytest.mark.few(7)
@some(list(ODD_DOCUMENTS))
async def test_an_odd_document_found_by_a_scan_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], document: dict[str, Any]
) -> None:
    jobs.insert_many([document, *({**READY, "payload": {"n": n}} for n in range(4))])

    worker, good = await start_counting(start)

    await wait_until_async(
        lambda: sorted(good) == [0, 1, 2, 3] or worker.ended.is_set(), "the good jobs are done", 5
    )
    assert worker.error is None


@pytest.mark.few(2)
@pytest.mark.parametrize("name", UNREADABLE)
async def test_a_field_that_cannot_be_decoded_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], name: str
) -> None:
    jobs.insert_many([UNREADABLE[name], *({**READY, "payload": {"n": n}} for n in range(4))])

    worker, good = await start_counting(start, reap_interval=0.1, sweep_interval=0.1)

    await wait_until_async(
        lambda: sorted(good) == [0, 1, 2, 3] or worker.ended.is_set(), "the good jobs are done", 5
    )
    worker.commands.forget()
    await wait_until_async(
        lambda: len(worker.commands.named("find")) > 3 or worker.ended.is_set(), "it goes on"
    )
    assert worker.error is None


async def test_an_entry_of_the_list_of_consumers_that_cannot_be_decoded_stops_nobody(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    entry = {"_id": "odd", "seen_at": datetime.now(UTC), "queues": ["default"], "host": SHORT_UUID}
    jobs.database[f"{jobs.name}.consumers"].insert_one(entry)

    worker, good = await start_counting(start)
    await queue.put({"n": 0})

    await wait_until_async(lambda: good or worker.ended.is_set(), "the job is done", 5)
    assert worker.error is None


@pytest.mark.few(3)
@some(ON_A_TIMER)
async def test_an_odd_document_keeps_no_worker_busy(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], document: dict[str, Any]
) -> None:
    worker, good = await start_counting(start, reap_interval=2)
    jobs.insert_many([document, {**READY, "payload": {"n": 0}}])
    await wait_until_async(lambda: good or worker.ended.is_set(), "the good job is done", 5)

    await worker.until_idle(0.7)

    assert worker.error is None


async def test_a_document_without_a_mapping_as_payload_is_buried_with_the_reason(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    worker, _ = await start_counting(start)
    jobs.insert_one(READY | {"_id": 1, "payload": [1, 2]})

    await worker.until_outcomes(dead=1)

    stored = jobs.find_one()
    assert stored is not None
    assert stored["state"] == "dead"
    assert stored["last_error"] == "its payload is not a mapping"


async def test_a_job_whose_stored_fields_are_odd_still_fails_in_the_ordinary_way(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    async def handler(job: Any) -> None:
        raise ValueError("no")

    odd = {"attempts": "many", "errors": "none", "run_at": "soon", "max_attempts": "few"}
    worker = await start(handler, max_attempts=1)
    jobs.insert_one(READY | odd | {"created_at": datetime.now(UTC)})

    await worker.until_outcomes(dead=1)
    stored = jobs.find_one()
    assert stored is not None
    assert [stored["state"], stored["attempts"], len(stored["errors"])] == ["dead", 1, 1]
