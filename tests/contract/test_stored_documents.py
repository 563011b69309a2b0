"""What a server stores of a job: ours and other programs', accepted, read back and found again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo.synchronous.collection import Collection

from streamqueue.options import MAX_PRIORITY
from streamqueue.protocol.document import CODEC, State, new_document
from streamqueue.protocol.foreign import RAW_CODEC, among, read
from streamqueue.protocol.payload import encode_payload
from streamqueue.protocol.schema import VALIDATOR
from tests.strange import STORED_AS_ID, VALUES, job


@pytest.fixture
def validated(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    yield jobs.database.create_collection("validated", validator=VALIDATOR)
    jobs.database.drop_collection("validated")


@pytest.mark.parametrize("state", State)
def test_the_validator_accepts_every_job_of_ours(validated: Collection[Any], state: State) -> None:
    settings: dict[str, Any] = {"priority": -MAX_PRIORITY, "max_attempts": 3, "key": "k"}
    ours = new_document(
        encode_payload({"n": 1}), queue="default", now=datetime.now(UTC), **settings
    )

    validated.insert_one({**ours, "state": state})

    assert validated.count_documents({}) == 1


def test_the_validator_accepts_the_least_another_program_may_insert(
    validated: Collection[Any],
) -> None:
    validated.insert_one({"queue": "default", "state": "ready", "payload": {}})

    assert validated.count_documents({}) == 1


def test_the_codec_reads_what_other_programs_wrote(jobs: Collection[Any]) -> None:
    broken = bytearray(bson.encode({"_id": 1, "text": "hello", "date": DatetimeMS(2**60)}))
    broken[broken.index(b"hello")] = 0xFF
    jobs.insert_one(RawBSONDocument(bytes(broken)))

    found = jobs.with_options(codec_options=CODEC).find_one()

    assert found == {"_id": 1, "text": "\ufffdello", "date": DatetimeMS(2**60)}


@pytest.mark.parametrize("name", STORED_AS_ID)
def test_a_document_is_found_by_the_id_that_was_read(name: str, jobs: Collection[Any]) -> None:
    jobs.insert_one(job("ready", {"_id": VALUES[name]}, queue="emails"))
    [raw] = jobs.with_options(codec_options=RAW_CODEC).find()

    other, found = ObjectId(), read(raw)["_id"]

    assert jobs.count_documents({"_id": among([other, found])}) == 1
