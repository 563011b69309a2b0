"""A put, checked before anything is sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import ObjectId

from streamqueue import ConfigurationError, NewJob, PayloadError
from streamqueue.protocol.document import CODEC
from streamqueue.protocol.put import check_put
from streamqueue.protocol.puts import check_puts

NOW = datetime(2030, 1, 1, tzinfo=UTC)


COMMON: dict[str, Any] = {
    "priority": None,
    "delay": None,
    "run_at": None,
    "max_attempts": 3,
    "queue": "default",
}


def put(payload: object = None, **settings: Any) -> Any:
    settings = {
        "priority": None,
        "delay": None,
        "run_at": None,
        "key": None,
        "max_attempts": 3,
    } | settings
    return check_put({} if payload is None else payload, **settings)


def test_an_explicit_priority_leaves_the_payload_as_it_is() -> None:
    checked = put({"priority": 1}, priority=5)

    assert checked.priority == 5
    assert bson.decode(checked.payload) == {"priority": 1}


def test_a_priority_in_the_payload_obeys_the_same_range() -> None:
    with pytest.raises(ConfigurationError, match="priority must be"):
        put({"priority": 2**40})


def test_a_job_has_priority_0_unless_told_otherwise() -> None:
    assert put({"n": 1}).priority == 0


def test_delay_and_run_at_together_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="delay or run_at, not both"):
        put(delay=5, run_at=NOW)


@pytest.mark.parametrize(
    ("settings", "run_at"),
    [
        ({"delay": 5}, NOW + timedelta(seconds=5)),
        ({"delay": timedelta(hours=1)}, NOW + timedelta(hours=1)),
        ({"run_at": NOW + timedelta(days=1)}, NOW + timedelta(days=1)),
    ],
)
def test_a_later_job_is_due_by_the_servers_time(settings: Any, run_at: datetime) -> None:
    document = put(**settings).document("default", NOW)

    assert (document["state"], document["run_at"]) == ("scheduled", run_at)


@pytest.mark.parametrize("settings", [{}, {"delay": 0}, {"delay": None}, {"run_at": NOW}])
def test_a_job_without_a_later_time_is_ready(settings: Any) -> None:
    assert put(**settings).document("default", NOW)["state"] == "ready"


@pytest.mark.parametrize(
    "settings",
    [
        {"priority": 1.5},
        {"priority": "high"},
        {"delay": -1},
        {"delay": float("nan")},
        {"run_at": datetime(2030, 1, 1)},
        {"run_at": "tomorrow"},
        {"key": ""},
        {"key": {"$ne": None}},
        {"max_attempts": 0},
        {"max_attempts": 2.0},
    ],
    ids=str,
)
def test_a_bad_argument_of_a_put_is_refused(settings: Any) -> None:
    with pytest.raises(ConfigurationError):
        put(**settings)


def test_the_id_of_a_put_is_known_before_it_is_sent() -> None:
    checked = put()

    assert checked.document("default", NOW)["_id"] == checked.id


@pytest.mark.parametrize("payloads", [{"n": 1}, "text", b"bytes", NewJob({"n": 1})])
def test_one_payload_is_not_taken_for_many(payloads: Any) -> None:
    with pytest.raises(ConfigurationError, match="for one payload use put"):
        check_puts(payloads, **COMMON)


def test_the_ids_of_many_puts_differ_and_sort_as_they_were_given() -> None:
    puts = [check_puts([{"n": n} for n in range(1000)], **COMMON) for _ in range(3)]
    ids = [job_id for many in puts if many for job_id in many.ids]

    assert len(set(ids)) == 3000
    assert all(many is not None and many.ids == sorted(many.ids) for many in puts)
    assert abs((ids[0].generation_time - datetime.now(UTC)).total_seconds()) < 60


def test_each_of_many_puts_has_its_payload_and_priority_in_its_document() -> None:
    puts = check_puts([{"n": 0}, {"n": 1, "priority": 5}, {"n": [2]}], **COMMON)
    assert puts is not None

    documents = [bson.decode(found.raw) for found in puts.documents("default", NOW)]

    assert [found["_id"] for found in documents] == puts.ids
    assert [found["payload"] for found in documents] == [{"n": 0}, {"n": 1}, {"n": [2]}]
    assert [found["priority"] for found in documents] == [0, 5, 0]


def test_the_documents_of_many_puts_are_those_of_single_ones() -> None:
    for payload in ({}, {"a": {"b": [1, "x", None]}}, {"text": "x" * 1000}):
        many = check_puts([payload], **COMMON)
        single = put(payload)
        assert many is not None

        [document] = many.documents("default", NOW)

        expected = bson.decode(single.document("default", NOW).raw)
        assert bson.decode(document.raw) == {**expected, "_id": many.ids[0]}


def many(*payloads: object, **settings: Any) -> list[dict[str, Any]]:
    """The documents of many puts, as they are stored."""
    puts = check_puts(payloads, **{**COMMON, **settings})
    assert puts is not None
    return [bson.decode(found.raw, CODEC) for found in puts.documents("default", NOW)]


@pytest.mark.parametrize(
    ("own", "shared", "field", "expected"),
    [
        ({"priority": 7}, {"priority": 1}, "priority", 7),
        ({}, {"priority": 1}, "priority", 1),
        ({"max_attempts": 9}, {}, "max_attempts", 9),
        ({}, {"max_attempts": 5}, "max_attempts", 5),
        ({"delay": 5}, {"run_at": NOW + timedelta(1)}, "run_at", NOW + timedelta(seconds=5)),
        ({}, {"delay": 60}, "run_at", NOW + timedelta(seconds=60)),
        ({"key": "k"}, {}, "key", "k"),
    ],
)
def test_what_a_new_job_leaves_open_the_call_says(
    own: Any, shared: Any, field: str, expected: object
) -> None:
    plain, new = many({"n": 0}, NewJob({"n": 1}, **own), **shared)

    assert (new["payload"], new[field]) == ({"n": 1}, expected)
    assert plain.get(field) == many({"n": 0}, **shared)[0].get(field)


def test_a_new_job_without_an_id_has_its_place_among_the_others() -> None:
    job_id = ObjectId()

    ids = [found["_id"] for found in many({}, NewJob({}), NewJob({}, job_id=job_id), {})]

    assert ids[2] == job_id
    assert [ids[0], ids[1], ids[3]] == sorted([ids[0], ids[1], ids[3]])


@pytest.mark.parametrize(
    ("jobs", "problem"),
    [
        ([NewJob({1: 2})], PayloadError),  # type: ignore[dict-item]
        ([NewJob("text")], PayloadError),  # type: ignore[arg-type]
        ([NewJob({}, delay=1, run_at=NOW)], ConfigurationError),
        ([NewJob({}, key="")], ConfigurationError),
        ([NewJob({}, job_id="none")], ConfigurationError),  # type: ignore[arg-type]
        (
            [NewJob({}, job_id=ObjectId("0" * 24)), NewJob({}, job_id=ObjectId("0" * 24))],
            ConfigurationError,
        ),
    ],
)
def test_a_bad_new_job_is_refused(jobs: list[NewJob], problem: type[Exception]) -> None:
    with pytest.raises(problem):
        many({}, *jobs)


def test_the_payload_of_a_new_job_is_not_shown() -> None:
    assert "4111" not in repr(NewJob({"card": "4111-1111"}))
