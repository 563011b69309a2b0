"""What a job shows of itself, whatever a program has stored."""

from __future__ import annotations

import pytest
from bson import ObjectId

from streamqueue import JobInfo
from tests.strange import FIELDS, STATES, STORED_AS_ID, VALUES, job

SHOWN = [name for name in FIELDS if name != "_id"] + ["group", "task", "note", "steps"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("field", SHOWN)
def test_a_damaged_field_reads_as_absent(field: str, state: str) -> None:
    for name, value in VALUES.items():
        info = JobInfo.from_raw(job(state, {field: value}, queue="emails"))

        assert isinstance(info.id, ObjectId), name
        assert info.data is None or isinstance(info.data, dict), name
        assert isinstance(info.priority, int), name
        assert info.attempts >= 0, name
        assert repr(info)


@pytest.mark.parametrize("name", STORED_AS_ID)
def test_a_job_with_any_id_is_shown(name: str) -> None:
    info = JobInfo.from_raw(job("dead", {"_id": VALUES[name]}, queue="emails"))

    assert (info.queue, info.state, info.last_error) == ("emails", "dead", "boom")
    assert repr(info).startswith("<JobInfo ")


def test_of_a_document_with_nothing_else_all_is_absent() -> None:
    info = JobInfo.from_document({"_id": 1})

    shown = {name for name in dir(info) if not name.startswith(("_", "from_"))}
    assert {name for name in shown if getattr(info, name)} == {"id"}


def test_two_looks_at_an_unchanged_job_are_equal() -> None:
    document = {"_id": 1, "state": "ready", "payload": {"n": 1}, "priority": 1}

    one, other = JobInfo.from_document(document), JobInfo.from_document(document)

    assert one == other
    assert hash(one) == hash(other)


def test_max_attempts_are_those_of_the_put_else_those_the_claim_goes_by() -> None:
    document = {"_id": 1, "state": "running", "max_attempts": 2, "allowed": 3}

    assert JobInfo.from_document(document).max_attempts == 2
    assert JobInfo.from_document({**document, "max_attempts": None}).max_attempts == 3
