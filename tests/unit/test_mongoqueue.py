"""What a document of mongoqueue is as a job, whatever is in its fields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import Binary, ObjectId
from bson.binary import UUID_SUBTYPE
from bson.raw_bson import RawBSONDocument

from streamqueue.options import MAX_PRIORITY
from streamqueue.protocol.foreign import RAW_CODEC
from streamqueue.protocol.mongoqueue import (
    BAD_PAYLOAD,
    LOCKED,
    UNREADABLE,
    Left,
    Taken,
    Takeover,
)

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
PUT = {
    "priority": 0,
    "attempts": 0,
    "locked_by": None,
    "locked_at": None,
    "last_error": None,
    "payload": {},
}


def stored(**fields: Any) -> RawBSONDocument:
    return RawBSONDocument(bson.encode({"_id": ObjectId(), **PUT, **fields}), RAW_CODEC)


def job_of(raw: RawBSONDocument, **settings: Any) -> Taken | Left:
    return Takeover("emails", 3, NOW, **settings).job_of(raw)


def document(**fields: Any) -> dict[str, Any]:
    found = job_of(stored(**fields))
    assert isinstance(found, Taken)
    return found.document


@pytest.mark.parametrize(
    ("priority", "wanted"),
    [
        (2, 2),
        (2.0, 2),
        (2.5, 0),
        ("high", 0),
        (None, 0),
        (True, 0),
        (2**40, MAX_PRIORITY),
        (-(2**40), -MAX_PRIORITY),
    ],
    ids=["int", "whole", "fraction", "text", "null", "bool", "large", "small"],
)
def test_a_priority_is_a_whole_number_that_a_put_takes(priority: object, wanted: int) -> None:
    assert document(priority=priority)["priority"] == wanted


@pytest.mark.parametrize(
    ("attempts", "wanted"),
    [(2, 2), (2.0, 2), (-1, 0), ("2", 0)],
    ids=["int", "whole", "negative", "text"],
)
def test_attempts_are_a_whole_number_from_0(attempts: object, wanted: int) -> None:
    assert document(attempts=attempts)["attempts"] == wanted


def test_an_error_is_text_that_is_not_too_long() -> None:
    assert document(last_error={"code": 1})["last_error"] != {"code": 1}
    assert len(document(last_error="x" * 10_000)["last_error"]) < 5000
    assert "last_error" not in document()


def test_a_job_was_not_created_later_than_now() -> None:
    later = ObjectId.from_datetime(datetime(2030, 1, 1, tzinfo=UTC))

    assert document(_id=later)["created_at"] == NOW
    assert document(_id="text")["created_at"] == NOW


@pytest.mark.parametrize("field", ["locked_by", "locked_at"])
def test_either_field_of_a_lock_is_a_lock(field: str) -> None:
    raw = stored(**{field: NOW})

    found = job_of(raw)
    taken = job_of(raw, locked_too=True)

    assert isinstance(found, Left)
    assert found.reason == LOCKED
    assert isinstance(taken, Taken)
    assert taken.document["attempts"] == 1


def test_a_lock_leaves_the_error_that_was_there() -> None:
    found = job_of(stored(locked_by="ada", last_error="boom"), locked_too=True)

    assert isinstance(found, Taken)
    assert found.document["last_error"] == "boom"


def test_a_payload_that_is_nested_too_deeply_to_be_put_stays() -> None:
    deep: dict[str, Any] = {}
    for _ in range(110):
        deep = {"a": deep}

    found = job_of(stored(payload=deep))

    assert isinstance(found, Left)
    assert found.reason == BAD_PAYLOAD


def test_a_document_that_cannot_be_decoded_stays_and_is_named() -> None:
    raw = stored(payload={"id": Binary(b"abc", UUID_SUBTYPE)})  # one has 16 bytes

    found = job_of(raw)

    assert found == Left(raw["_id"], UNREADABLE)
