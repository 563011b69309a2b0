"""The job document: how it is written, and how anything found in the database is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from streamqueue.protocol.document import (
    CODEC,
    MAX_ERROR_CHARACTERS,
    JobRecord,
    Payload,
    cut_error,
    id_text,
    new_document,
)
from streamqueue.protocol.payload import encode_payload, split_priority
from streamqueue.protocol.schema import INDEXES

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ID = ObjectId()


# Priorities in payloads.


def test_an_integer_priority_is_taken_out_of_the_payload() -> None:
    assert split_priority({"foobar": 0, "priority": 1}) == ({"foobar": 0}, 1)


def test_the_callers_payload_keeps_its_priority() -> None:
    payload = {"foobar": 0, "priority": 1}

    split_priority(payload)

    assert payload == {"foobar": 0, "priority": 1}


@pytest.mark.parametrize("value", [Int64(5), 0, -1, 2**70])
def test_every_int_counts_as_a_priority(value: int) -> None:
    assert split_priority({"priority": value}) == ({}, value)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], {"$gt": 1}])
def test_any_other_priority_stays_part_of_the_payload(value: object) -> None:
    payload = {"priority": value}

    left, priority = split_priority(payload)

    assert left is payload
    assert priority is None


@pytest.mark.parametrize("payload", [None, 5, "priority", ["priority"], {}])
def test_what_has_no_priority_is_returned_as_it_is(payload: object) -> None:
    assert split_priority(payload) == (payload, None)


# Payloads.


def test_a_payload_is_also_found_under_its_old_name() -> None:
    payload = Payload({"foobar": 0})

    assert payload["payload"] == {"foobar": 0}


def test_a_key_called_payload_wins_over_the_old_name() -> None:
    payload = Payload({"payload": 5})

    assert payload["payload"] == 5


def test_a_key_that_is_not_there_is_not_invented() -> None:
    payload = Payload({"foobar": 0})

    with pytest.raises(KeyError, match="other"):
        payload["other"]


# New documents.


def document(**settings: Any) -> Mapping[str, Any]:
    given: dict[str, Any] = {
        "queue": "default",
        "now": NOW,
        "priority": 0,
        "max_attempts": 3,
    } | settings
    return new_document(encode_payload({"n": 1}), **given)


def test_a_new_job_has_all_its_fields() -> None:
    stored = bson.decode(bson.encode(document(job_id=ID, priority=7, max_attempts=5)), CODEC)

    assert stored == {
        "_id": ID,
        "v": 1,
        "queue": "default",
        "state": "ready",
        "priority": 7,
        "seq": Timestamp(0, 0),
        "run_at": NOW,
        "created_at": NOW,
        "attempts": 0,
        "max_attempts": 5,
        "payload": {"n": 1},
    }


def test_a_job_that_is_to_run_later_is_scheduled() -> None:
    later = NOW + timedelta(seconds=1)

    job = document(run_at=later)

    assert (job["state"], job["run_at"], job["created_at"]) == ("scheduled", later, NOW)


@pytest.mark.parametrize("run_at", [None, NOW, NOW - timedelta(days=1)])
def test_a_job_whose_time_has_come_is_ready_and_stands_behind_earlier_ones(
    run_at: datetime | None,
) -> None:
    job = document(run_at=run_at)

    assert (job["state"], job["run_at"]) == ("ready", NOW)


def test_a_job_has_a_key_only_if_it_was_given_one() -> None:
    assert "key" not in document()
    assert document(key="k")["key"] == "k"


def test_every_new_job_has_an_id_of_its_own() -> None:
    assert document()["_id"] != document()["_id"]


def test_ids_of_one_process_rise_in_the_order_of_its_puts() -> None:
    ids = [document()["_id"] for _ in range(1000)]

    assert ids == sorted(ids)


# Reading what is in the database.


def read(**fields: Any) -> JobRecord:
    return JobRecord.from_document(stored(**fields), max_attempts=3)


def stored(**fields: Any) -> dict[str, Any]:
    """A claimed job as the server returns it; ``...`` leaves a field out."""
    document = {
        "_id": ID,
        "queue": "default",
        "state": "running",
        "priority": 7,
        "seq": Timestamp(0, 0),
        "run_at": NOW,
        "attempts": 2,
        "max_attempts": 5,
        "payload": {"n": 1},
        "key": "k",
        "locked_by": "consumer-1",
        "locked_at": NOW,
        "lease": b"token",
        "last_error": "oops",
    }
    document |= fields
    return {name: value for name, value in document.items() if value is not ...}


def test_a_whole_document_is_read_as_it_is() -> None:
    assert read() == JobRecord(
        id=ID,
        queue="default",
        data=Payload({"n": 1}),
        priority=7,
        attempts=2,
        max_attempts=5,
        locked_by="consumer-1",
        locked_at=NOW,
        last_error="oops",
        key="k",
        run_at=NOW,
        traceparent=None,
        token=b"token",
        damage=None,
    )


def test_a_document_of_another_program_has_the_defaults() -> None:
    document = {"_id": ID, "queue": "default", "state": "ready", "payload": {"n": 1}}

    record = JobRecord.from_document(document, max_attempts=4)

    assert record == JobRecord(
        id=ID,
        queue="default",
        data=Payload({"n": 1}),
        priority=0,
        attempts=0,
        max_attempts=4,
        locked_by=None,
        locked_at=None,
        last_error=None,
        key=None,
        run_at=None,
        traceparent=None,
        token=b"",
        damage=None,
    )


@pytest.mark.parametrize("field", ["priority", "attempts", "max_attempts"])
def test_a_whole_number_written_as_a_double_is_read_as_an_int(field: str) -> None:
    value = getattr(read(**{field: 4.0}), field)

    assert value == 4
    assert type(value) is int


DAMAGED: dict[str, tuple[Any, list[Any]]] = {
    "queue": ("", [..., None, 5, ["default"], {"$ne": None}, math.nan]),
    "priority": (0, [..., None, "high", math.nan, math.inf, 0.5, True, [1], Decimal128("NaN")]),
    "attempts": (
        0,
        [..., None, "2", math.nan, -math.inf, 0.5, False, {}, Decimal128("2"), -(2**62)],
    ),
    "max_attempts": (3, [..., None, "5", math.nan, math.inf, 0.5, True, [], Decimal128("5")]),
    "locked_by": (None, [..., None, 5, ["c"], {"a": 1}, math.nan, b"c"]),
    "locked_at": (None, [..., None, 5, "now", DatetimeMS(2**60), math.nan, {}]),
    "last_error": (None, [..., None, 5, ["oops"], {"a": 1}, math.nan, b"oops"]),
    "key": (None, [..., None, 5, ["k"], {"a": 1}, math.nan, Regex("k")]),
    "run_at": (None, [..., None, 5, "now", DatetimeMS(-(2**60)), math.nan, []]),
}


@pytest.mark.parametrize(
    ("field", "value", "default"),
    [
        pytest.param(field, value, default, id=f"{field}={value!r}")
        for field, (default, values) in DAMAGED.items()
        for value in values
    ],
)
def test_a_damaged_field_reads_as_an_absent_one(field: str, value: Any, default: Any) -> None:
    record = read(**{field: value})

    assert getattr(record, field) == default
    assert record.damage is None


@pytest.mark.parametrize("value", [..., None, "token", 5, [], math.nan])
def test_a_damaged_token_matches_nothing(value: Any) -> None:
    assert read(lease=value).token == b""


@pytest.mark.parametrize("value", [..., None, [1], "text", 5, math.nan, True, b"x", ID])
def test_a_job_whose_payload_is_no_mapping_cannot_run(value: Any) -> None:
    record = read(payload=value)

    assert record.damage == "its payload is not a mapping"
    assert record.data == {}


@pytest.mark.parametrize("value", [2**62, 1e300])
def test_a_huge_number_is_read(value: float) -> None:
    assert read(attempts=value).attempts == int(value)


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.datetimes(timezones=st.just(UTC))
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
    | st.sampled_from([..., Decimal128("NaN"), Regex("a"), DatetimeMS(2**60), ObjectId()])
)
FIELDS = sorted(stored().keys() - {"_id"})


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_every_document_can_be_read(fields: dict[str, Any]) -> None:
    record = read(**fields)

    assert type(record.priority) is int
    assert type(record.attempts) is int
    assert type(record.max_attempts) is int
    assert isinstance(record.data, dict)


# Error texts.


@pytest.mark.parametrize(
    ("job_id", "text"),
    [
        (ObjectId("6b05640f5d3001cc2b552327"), "6b05640f5d3001cc2b552327"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Binary.from_uuid(UUID(int=5)), "00000000-0000-0000-0000-000000000005"),
        (5, "5"),
        ("order-7", "order-7"),
    ],
    ids=ascii,
)
def test_an_id_is_shown_the_same_however_it_was_decoded(job_id: object, text: str) -> None:
    assert id_text(job_id) == text


def test_a_short_error_is_stored_whole() -> None:
    assert cut_error("oops") == "oops"


def test_of_a_long_error_the_end_is_kept() -> None:
    text = cut_error("a" * MAX_ERROR_CHARACTERS + "the cause")

    assert len(text) == MAX_ERROR_CHARACTERS
    assert text.startswith("…a")
    assert text.endswith("the cause")


@given(st.text(st.characters(), max_size=20))
def test_every_error_text_can_be_stored(text: str) -> None:
    assert bson.encode({"error": cut_error(text)})


def test_what_is_no_unicode_in_an_error_stays_readable() -> None:
    assert cut_error("file \udcff") == "file \\udcff"


# Indexes.


def test_the_indexes_are_few() -> None:
    assert [index.document["name"] for index in INDEXES] == [
        "streamqueue_order",
        "streamqueue_running",
        "streamqueue_waiting",
        "streamqueue_ended",
    ]
