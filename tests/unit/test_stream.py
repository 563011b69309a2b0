"""What each error of a change stream means, and what its readers share."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pymongo
import pytest
from bson.errors import BSONError
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

from streamqueue.clock import monotonic
from streamqueue.stream.verdict import (
    INVALIDATED,
    Change,
    Pace,
    Verdict,
    change_of,
    classify,
    client_settings,
    is_final,
    passes,
)


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


def test_what_broke_a_stream_is_its_first_error_not_that_the_driver_ran_out_of_time() -> None:
    """The driver reopens a stream by itself, and says then that no connection was made in time."""
    error, late = NetworkTimeout("timed out"), TimeoutError("timed out")
    error.__cause__ = late
    late.__context__ = NotPrimaryError("interrupted at shutdown")

    assert classify(error) == ELECTION


def test_only_missing_rights_are_worth_a_long_wait() -> None:
    assert {verdict for _, _, verdict in ROWS if verdict.patient} == {REFUSED}


def test_a_stream_that_just_ends_has_lost_its_place() -> None:
    assert not INVALIDATED.resume


# When to try again.


def test_the_first_failure_is_followed_by_a_try_at_once() -> None:
    assert Pace().failed(NETWORK) == 0


def test_the_pauses_grow_up_to_a_limit_however_many_there_are() -> None:
    pace = Pace()

    pauses = [pace.failed(NETWORK) for _ in range(5000)]

    assert 0 < pauses[1] < pauses[4] < pauses[20]
    assert max(pauses) <= 5


def test_after_a_success_the_next_failure_is_the_first_again() -> None:
    pace = Pace()
    for _ in range(10):
        pace.failed(NETWORK)

    pace.worked()

    assert pace.again_at < monotonic()
    assert pace.failed(NETWORK) == 0


def test_a_stream_is_not_opened_again_right_after_it_was_opened() -> None:
    pace = Pace()
    pace.opened()

    assert 0.5 < pace.failed(UNKNOWN) <= 0.7


def test_for_rights_one_waits_long() -> None:
    assert 20 <= Pace().failed(REFUSED) <= 30


@pytest.mark.parametrize("error", [ConfigurationError("x"), InvalidOperation("closed")])
def test_to_repeat_a_programs_own_error_is_pointless(error: Exception) -> None:
    assert is_final(error)


def test_to_try_again_under_a_time_limit_that_is_over_is_pointless() -> None:
    with pymongo.timeout(60):
        assert not is_final(AutoReconnect("x"))
    with pymongo.timeout(1e-9):
        assert is_final(AutoReconnect("x"))


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (AutoReconnect("x"), True),
        (failure(10107), True),
        (failure(13), False),
        (failure(40573), False),
        (BSONError("x"), False),
        (ValueError("x"), False),
    ],
)
def test_what_passes_by_itself_is_a_server_that_is_away(error: Exception, alone: bool) -> None:
    assert passes(error) is alone


# What an event says.


SOME_TIME = datetime(2030, 1, 1, tzinfo=UTC)


def update(*removed: str, **fields: Any) -> dict[str, Any]:
    return {
        "operationType": "update",
        "updateDescription": {"updatedFields": fields, "removedFields": list(removed)},
    }


@pytest.mark.parametrize(
    ("event", "change"),
    [
        (update(state="ready"), Change(ready=True)),
        (update(state="scheduled"), Change(scheduled=True)),
        (
            update("lease", state="scheduled", run_at=SOME_TIME),
            Change(scheduled=True, run_at=SOME_TIME),
        ),
        (update("lease", "locked_until", state="ready"), Change(ready=True)),
        (update(run_at=SOME_TIME), Change(scheduled=True, run_at=SOME_TIME)),
        (update(run_at="soon"), Change(scheduled=True)),
        (update("run_at"), Change(scheduled=True)),
        (update(priority=5), Change(ready=True)),
        (update("priority"), Change(ready=True)),
        (update(queue="a"), Change(ready=True, scheduled=True)),
        (update(queue="a", run_at=SOME_TIME), Change(ready=True, scheduled=True)),
        (update(locked_until=SOME_TIME), Change(expired=True)),
        (update("locked_until"), Change(expired=True)),
        (update(), Change()),
        ({"updateDescription": None}, Change()),
        ({"operationType": "drop"}, Change()),
    ],
)
def test_a_plain_update_says_what_may_be_to_do(event: dict[str, Any], change: Change) -> None:
    assert change_of(event) == change


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ("ready", {"ready": True, "anew": True}),
        ("scheduled", {"scheduled": True}),
        ("running", {"expired": True}),
        ("dead", {}),
        (["ready"], {}),
        (None, {}),
    ],
)
def test_an_event_with_the_job_says_in_which_state_it_is(
    state: Any, change: dict[str, Any]
) -> None:
    job = {"_id": 1, "queue": "a", "state": state, "run_at": SOME_TIME}

    assert change_of({"fullDocument": job}) == Change(job, run_at=SOME_TIME, **change)


def test_the_streams_client_finds_a_new_primary_within_seconds() -> None:
    settings = client_settings("streamqueue-test")

    assert settings["serverSelectionTimeoutMS"] <= 3000
    assert settings["heartbeatFrequencyMS"] <= 2000
    assert settings["serverMonitoringMode"] == "poll"


@pytest.mark.parametrize("setting", ["timeoutMS", "socketTimeoutMS"])
def test_no_timeout_of_the_users_client_ends_a_quiet_wait(setting: str) -> None:
    assert client_settings("streamqueue-test")[setting] is None


def test_the_streams_client_can_be_told_apart_in_the_servers_log() -> None:
    assert client_settings("streamqueue-test")["appname"] == "streamqueue-test"


def test_no_outage_is_too_long_for_the_pace() -> None:
    pace = Pace()

    pauses = [pace.failed(NETWORK) for _ in range(10_000)]

    assert max(pauses) <= 5.0
