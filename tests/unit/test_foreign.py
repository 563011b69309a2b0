"""What other programs stored, read so that nothing fails, and named as it is."""

from __future__ import annotations

import bson
import pytest
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from streamqueue.protocol.document import CODEC
from streamqueue.protocol.foreign import RAW_CODEC, StrangeId, is_plain_id, oddness_of, read
from tests.strange import STORED_AS_ID, VALUES, Value, encoded, job, value_of

PLAIN = {
    *("double", "huge double", "infinity", "text", "empty text", "text with a NUL"),
    *("text for a terminal", "binary", "old binary", "old UUID", "UUID", "short UUID"),
    *("short old UUID", "encrypted", "vector", "user's binary", "ObjectId", "date", "last date"),
    *("first date", "null", "symbol", "int", "timestamp", "zero timestamp", "long", "MinKey"),
    "MaxKey",
}
"""The values that a job may have as its id."""


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
    data = encoded(("_id", value_of(5)), ("n", value_of(1)), ("bad", (4, b"\x06\0\0\0\x01\0")))

    with pytest.raises(BSONError):
        bson.decode(data, CODEC)
    document = read(RawBSONDocument(data, RAW_CODEC))

    assert (document["_id"], document["n"], document["bad"]) == (5, 1, None)
