"""What other programs stored, read so that nothing fails, and named as it is."""

from __future__ import annotations

import bson
import pytest
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from streamqueue.protocol.document import CODEC
from streamqueue.protocol.foreign import (
    RAW_CODEC,
    StrangeId,
    by_oddness,
    is_plain_id,
    literal,
    oddness_of,
    read,
)
from tests.strange import STORED_AS_ID, VALUES, Value, encoded, job, value_of

PLAIN = {
    *("double", "huge double", "infinity", "text", "empty text", "text with a NUL"),
    *("text for a terminal", "binary", "old binary", "old UUID", "UUID", "short UUID"),
    *("short old UUID", "encrypted", "vector", "user's binary", "ObjectId", "date", "last date"),
    *("first date", "null", "symbol", "int", "timestamp", "zero timestamp", "long", "MinKey"),
    "MaxKey",
}
"""The values that a job may have as its id."""
BROKEN: Value = (4, b"\x06\0\0\0\x01\0")
"""What cannot be decoded: an array that ends within its first element."""


@pytest.mark.parametrize("name", VALUES)
def test_a_document_is_read_whatever_is_in_it(name: str) -> None:
    fields: dict[str, Value] = dict.fromkeys(
        ("queue", "payload", "attempts", "run_at"), VALUES[name]
    )

    document = read(job("ready", fields, queue="emails"))

    assert document["state"] == "ready"


@pytest.mark.parametrize("name", STORED_AS_ID)
def test_an_id_is_plain_or_stays_as_it_came(name: str) -> None:
    document = read(job("ready", {"_id": VALUES[name]}, queue="emails"))

    hash(document["_id"])
    assert isinstance(document["_id"], StrangeId) is (name not in PLAIN)
    assert (oddness_of(document) is None) is (name in PLAIN)


@pytest.mark.parametrize("name", [name for name in STORED_AS_ID if name not in PLAIN])
def test_a_strange_id_is_named_in_an_expression_as_it_is_stored(name: str) -> None:
    strange = read(job("ready", {"_id": VALUES[name]}, queue="emails"))["_id"]

    assert bytes(literal(strange).raw) == encoded(("$literal", VALUES[name]))


def test_of_many_jobs_the_odd_ones_are_found_by_what_makes_them_so() -> None:
    jobs: list[dict[str, object]] = [
        {"_id": 1, "queue": "emails"},
        {"_id": True, "queue": "emails"},
        {"_id": 2, "queue": ["emails"]},
        {"_id": 3},
    ]

    assert by_oddness(jobs) == {"id": [True], "queue": [2, 3]}


def test_a_strange_id_is_shown_short_and_in_plain_characters() -> None:
    document = read(job("ready", {"_id": VALUES["code that is not UTF-8"]}, queue="emails"))

    shown = str(document["_id"])

    assert shown.isprintable()
    assert shown.isascii()
    assert len(shown) < 80


def test_what_python_takes_for_the_same_is_not_two_ids() -> None:
    assert not is_plain_id(True)
    assert is_plain_id(1)
    assert not is_plain_id(float("nan"))


@pytest.mark.parametrize("job_id", ["x" * 1025, b"x" * 1025])
def test_an_id_of_more_than_a_kilobyte_is_none(job_id: object) -> None:
    assert not is_plain_id(job_id)
    assert is_plain_id(job_id[:1024])  # type: ignore[index]


def test_a_field_that_cannot_be_decoded_is_left_out_and_the_others_are_read() -> None:
    data = encoded(("_id", value_of(5)), ("n", value_of(1)), ("bad", BROKEN))

    with pytest.raises(BSONError):
        bson.decode(data, CODEC)
    document = read(RawBSONDocument(data, RAW_CODEC))

    assert (document["_id"], document["n"], document["bad"]) == (5, 1, None)


@pytest.mark.parametrize("name", VALUES)
def test_what_stands_behind_a_value_of_whatever_type_is_read_where_another_cannot_be(
    name: str,
) -> None:
    data = encoded(
        ("_id", value_of(5)), ("bad", BROKEN), ("value", VALUES[name]), ("n", value_of(1))
    )

    document = read(RawBSONDocument(data, RAW_CODEC))

    assert (document["_id"], document["n"], list(document)) == (5, 1, ["_id", "bad", "value", "n"])


def test_a_document_with_a_type_that_bson_does_not_have_cannot_be_read() -> None:
    data = encoded(("_id", value_of(5)), ("future", (99, b"\0\0\0\0")))

    with pytest.raises(BSONError, match="BSON has no type 99"):
        read(RawBSONDocument(data, RAW_CODEC))
