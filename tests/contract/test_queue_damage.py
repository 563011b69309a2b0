"""Documents damaged behind the queue's back: none of them stops it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import Binary, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo.synchronous.collection import Collection

from streamqueue.protocol import operations
from streamqueue.protocol.document import CODEC
from tests.contract.looks import document
from tests.contract.shells import Shell
from tests.contract.waiters import WAIT, waiting

PAST = datetime(2020, 1, 1, tzinfo=UTC)
ODD: list[Any] = [
    *(
        None,
        True,
        5,
        2**62,
        -(2**63),
        0.5,
        math.nan,
        math.inf,
        "text",
        b"bytes",
        [1],
        {"$ne": None},
    ),
    *(ObjectId(), Regex("a"), MinKey(), MaxKey(), Timestamp(1, 1), Decimal128("NaN"), PAST),
    DatetimeMS(2**62),
]
"""Values of every kind; most of them are wrong for most fields."""
READ = [
    *("priority", "run_at", "attempts", "max_attempts", "payload", "lease", "locked_until"),
    *("last_error", "errors", "progress"),
]
UNREAD = ["v", "created_at", "locked_by", "locked_at", "finished_at", "result", "something else"]
FIELDS = [pytest.param([field], id=field) for field in READ] + [pytest.param(UNREAD, id="others")]
ADDED_TO = [
    *("attempts", "max_attempts", "run_at", "locked_until", "last_error", "errors", "progress"),
]
"""What the end of an attempt reads or adds to."""
NO_TIMES: list[Any] = [
    *(None, ..., True, 5, math.nan, "text", [], {}, b"x", Timestamp(1, 1), MaxKey(), Regex("a")),
]


def damaged(state: str, value: Any, *fields: str) -> dict[str, Any]:
    """A job with this value in some fields; ``...`` leaves them out."""
    job = {"queue": "default", "state": state, "payload": {}, "attempts": 1}
    job |= dict.fromkeys(fields, value)
    return {name: value for name, value in job.items() if value is not ...}


async def claim_everything(queue: Any) -> list[Any]:
    """Claim what there is, as a consumer that goes on would."""
    claimed = []
    while batch := await queue.claim(10):
        claimed += batch
    return claimed


@pytest.mark.few(6)
@pytest.mark.parametrize("fields", FIELDS)
async def test_a_ready_job_with_a_damaged_field_does_not_keep_others_from_being_claimed(
    queue: Any, jobs: Collection[Any], fields: list[str]
) -> None:
    jobs.insert_many([damaged("ready", value, *fields) for value in ODD])
    good = await queue.put({"n": 1})

    claimed = await claim_everything(queue)

    assert good in [job.id for job in claimed]
    assert set(jobs.distinct("state")) <= {"running", "dead"}


@pytest.mark.few(7)
@pytest.mark.parametrize("field", ADDED_TO)
@pytest.mark.parametrize("ending", ["error", "release"])
async def test_a_job_with_a_damaged_field_can_be_given_back_like_any_other(
    queue: Any, jobs: Collection[Any], field: str, ending: str
) -> None:
    jobs.insert_many([damaged("ready", value, field) for value in ODD])
    claimed = await claim_everything(queue)

    for job in claimed:
        await getattr(job, ending)(delay=60)

    assert jobs.count_documents({"state": "running"}) == 0


@pytest.mark.parametrize("fields", FIELDS)
async def test_a_stale_job_with_a_damaged_field_does_not_keep_others_from_being_repaired(
    queue: Any, jobs: Collection[Any], fields: list[str]
) -> None:
    jobs.insert_many([{"locked_until": PAST} | damaged("running", value, *fields) for value in ODD])
    good = jobs.insert_one(damaged("running", PAST, "locked_until")).inserted_id

    await queue.repair()

    assert document(jobs, good)["state"] == "ready"


async def test_a_lock_that_does_not_say_until_when_is_stale(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_many([damaged("running", value, "locked_until") for value in NO_TIMES])

    await queue.repair()

    assert [job.get("locked_until") for job in jobs.find({"state": "running"})] == []


async def test_a_job_that_is_scheduled_for_no_moment_is_due(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_many([damaged("scheduled", value, "run_at") for value in NO_TIMES])

    await queue.next()

    assert [job.get("run_at") for job in jobs.find({"state": "scheduled"})] == []


@pytest.mark.parametrize(
    ("state", "field", "look"),
    [
        ("scheduled", "run_at", operations.next_due(["default"])),
        ("running", "locked_until", operations.next_expiry(["default"])),
    ],
    ids=["scheduled", "running"],
)
async def test_nothing_is_due_at_once_after_everything_due_was_seen_to(
    queue: Any, jobs: Collection[Any], state: str, field: str, look: operations.Find
) -> None:
    # What stays due for ever would make everybody who waits look again at once, for ever.
    extremes = [DatetimeMS(-(2**63)), DatetimeMS(2**63 - 1)]
    jobs.insert_many([damaged(state, value, field) for value in (*NO_TIMES, *extremes)])
    await queue.next()

    waiting = jobs.with_options(codec_options=CODEC).find(
        look.filter, {**(look.projection or {}), field: 1}
    )

    assert [job.get(field) for job in waiting if job["due_in"] <= 0] == []


@pytest.mark.parametrize("value", [..., None, 5, "text", [{"n": 1}], b"x"], ids=repr)
async def test_a_job_without_a_payload_is_buried_with_the_reason(
    queue: Any, jobs: Collection[Any], value: Any
) -> None:
    job_id = jobs.insert_one({**damaged("ready", value, "payload"), "priority": 5}).inserted_id
    good = await queue.put({"n": 1})

    job = await queue.next()

    stored = document(jobs, job_id)
    assert job.id == good
    assert (stored["state"], stored["last_error"]) == ("dead", "its payload is not a mapping")


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"payload": {"id": Binary(b"short", 4)}}, id="a UUID of another length"),
        pytest.param({"payload": {}, "note": Binary(b"short", 4)}, id="the same outside"),
    ],
)
@pytest.mark.parametrize("limit", [1, 5])
async def test_a_job_that_cannot_be_decoded_does_not_stop_the_queue(
    queue: Any, jobs: Collection[Any], document: dict[str, Any], limit: int
) -> None:
    jobs.insert_one({"queue": "default", "state": "ready", "priority": 5, **document})
    good = await queue.put({"n": 1})

    claimed = []
    for _ in range(3):
        claimed += await queue.claim(limit)

    assert good in [job.id for job in claimed]


async def test_an_event_that_cannot_be_decoded_does_not_stop_those_who_wait(
    queue: Any, jobs: Collection[Any]
) -> None:
    async with waiting(jobs, lambda: queue.next(wait=WAIT)) as [waiter]:
        jobs.insert_one(damaged("ready", Binary(b"short", 4), "id"))
        await queue.put({"n": 1})
        job = await waiter.soon()

    assert job.data == {"n": 1}


async def test_broken_text_in_a_job_is_read_as_well_as_it_can_be(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1})
    jobs.update_one({}, [{"$set": {"payload.text": "hello"}}])
    raw = jobs.find_one_and_delete({})
    jobs.insert_one(broken_text(raw))

    job = await queue.next()

    assert job.data == {"n": 1, "text": "\ufffdello"}


def broken_text(document: Any) -> RawBSONDocument:
    """The document with a byte in it that is not UTF-8."""
    encoded = bytearray(bson.encode(document))
    encoded[encoded.index(b"hello")] = 0xFF
    return RawBSONDocument(bytes(encoded))


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, Decimal128("NaN"), -(2**62), "many", None, [], -5], ids=repr
)
async def test_a_job_whose_attempts_are_damaged_dies_in_the_end_all_the_same(
    shell: Shell, jobs: Collection[Any], value: Any
) -> None:
    queue = shell.queue(max_attempts=3)
    jobs.insert_one(damaged("ready", value, "attempts"))

    attempts = 0
    while attempts < 12 and (job := await queue.next()):
        await job.error("oops", delay=0)
        attempts += 1

    assert attempts <= 10
    assert (await queue.stats())["errors"] == 1


async def test_a_queue_field_that_is_a_list_does_not_stop_repairs(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_one({"queue": ["default"], "state": "running", "payload": {}})
    good = jobs.insert_one(damaged("running", PAST, "locked_until")).inserted_id

    await queue.repair()

    assert document(jobs, good)["state"] == "ready"


async def test_an_unknown_state_is_left_alone(queue: Any, jobs: Collection[Any]) -> None:
    jobs.insert_many([damaged(state, 1, "n") for state in ("paused", "", "READY")])

    assert await queue.next() is None
    assert await queue.repair() == 0
