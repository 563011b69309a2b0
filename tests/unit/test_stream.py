"""What each error of a change stream means, and what its readers share."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    ConnectionFailure,
    CursorNotFound,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)

from streamqueue.stream import INVALIDATED, Verdict, changed_state, classify, client_settings


def failure(code: int, *labels: str) -> OperationFailure:
    return OperationFailure("oops", code, {"errorLabels": list(labels)})


NETWORK = Verdict("network", resume=True)
ELECTION = Verdict("election", resume=True)
HISTORY_LOST = Verdict("history_lost", resume=False)
NOT_RESUMABLE = Verdict("not_resumable", resume=False)
REFUSED = Verdict("refused", resume=True, patient=True)
UNKNOWN = Verdict("unknown", resume=False)

ROWS: list[tuple[str, PyMongoError, Verdict]] = [
    ("connection failure", ConnectionFailure("x"), NETWORK),
    ("reconnect", AutoReconnect("x"), NETWORK),
    ("network timeout", NetworkTimeout("x"), NETWORK),
    ("no server", ServerSelectionTimeoutError("x"), NETWORK),
    ("no connection free", WaitQueueTimeoutError("x"), NETWORK),
    ("deadline passed", ExecutionTimeout("x", 50), NETWORK),
    ("cursor not found", CursorNotFound("x", 43), NETWORK),
    ("43 by its code", failure(43), NETWORK),
    ("any code with the label", failure(9999, "ResumableChangeStreamError"), NETWORK),
    ("not primary", NotPrimaryError("x"), ELECTION),
    *[(f"{code}", failure(code), ELECTION) for code in (91, 189, 10107, 11600, 11602)],
    *[(f"{code}", failure(code), ELECTION) for code in (13435, 13436)],
    ("189 with the label", failure(189, "ResumableChangeStreamError"), ELECTION),
    ("oplog rolled over", failure(286, "NonResumableChangeStreamError"), HISTORY_LOST),
    ("286 without a label", failure(286), HISTORY_LOST),
    ("cursor fell behind", failure(136), HISTORY_LOST),
    ("136 with the label", failure(136, "ResumableChangeStreamError"), HISTORY_LOST),
    ("invalid token", failure(260), NOT_RESUMABLE),
    ("fatal", failure(280), NOT_RESUMABLE),
    ("resume impossible in 4.0", failure(40576), NOT_RESUMABLE),
    ("by its label", failure(9999, "NonResumableChangeStreamError"), NOT_RESUMABLE),
    ("unauthorized", failure(13), REFUSED),
    ("authentication failed", failure(18), REFUSED),
    ("unknown code", failure(9999), UNKNOWN),
    ("no code", OperationFailure("x"), UNKNOWN),
    ("misuse", InvalidOperation("x"), UNKNOWN),
    ("settings", ConfigurationError("x"), UNKNOWN),
    ("anything of pymongo", PyMongoError("x"), UNKNOWN),
]


@pytest.mark.parametrize(
    ("error", "verdict"), [pytest.param(error, verdict, id=name) for name, error, verdict in ROWS]
)
def test_each_error_has_its_verdict(error: PyMongoError, verdict: Verdict) -> None:
    assert classify(error) == verdict


def test_only_missing_rights_are_worth_a_long_wait() -> None:
    assert {verdict for _, _, verdict in ROWS if verdict.patient} == {REFUSED}


def test_a_stream_that_just_ends_has_lost_its_place() -> None:
    assert not INVALIDATED.resume


@pytest.mark.parametrize(
    ("event", "state"),
    [
        ({"operationType": "insert", "fullDocument": {"state": "ready"}}, "ready"),
        ({"operationType": "replace", "fullDocument": {"state": "scheduled"}}, "scheduled"),
        (
            {
                "operationType": "update",
                "fullDocument": None,
                "updateDescription": {"updatedFields": {"state": "ready"}},
            },
            "ready",
        ),
        ({"updateDescription": {"updatedFields": {"state": "ready"}}}, "ready"),
        ({"updateDescription": {"updatedFields": {}}}, None),
        ({"updateDescription": {}}, None),
        ({"fullDocument": {}}, None),
        ({"fullDocument": {"state": ["ready"]}}, None),
        ({"fullDocument": {"state": None}}, None),
        ({"operationType": "drop"}, None),
    ],
)
def test_an_event_says_the_state_its_job_is_in_now(
    event: dict[str, Any], state: str | None
) -> None:
    assert changed_state(event) == state


def test_the_streams_client_finds_a_new_primary_within_seconds() -> None:
    settings = client_settings("streamqueue-test")

    assert settings["serverSelectionTimeoutMS"] <= 3000
    assert settings["heartbeatFrequencyMS"] <= 2000


@pytest.mark.parametrize("setting", ["timeoutMS", "socketTimeoutMS"])
def test_no_timeout_of_the_users_client_ends_a_quiet_wait(setting: str) -> None:
    assert client_settings("streamqueue-test")[setting] is None


def test_the_streams_client_can_be_told_apart_in_the_servers_log() -> None:
    assert client_settings("streamqueue-test")["appname"] == "streamqueue-test"
