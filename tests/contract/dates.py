"""The dates that BSON can hold and Python cannot, or only just, in every field that has a date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from bson.datetime_ms import DatetimeMS

EXTREMES: dict[str, Any] = {
    "the smallest": DatetimeMS(-(2**63)),
    "the year 0": DatetimeMS(-62_167_219_200_000),
    "the year 1": datetime(1, 1, 1, tzinfo=UTC),
    "the year 9999": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
    "the year 10000": DatetimeMS(253_402_300_800_000),
    "the largest": DatetimeMS(2**63 - 1),
}
LONG_AGO = ("the smallest", "the year 0", "the year 1")
FIELDS = (
    *("run_at", "created_at", "locked_at", "locked_until", "finished_at", "expires_at"),
    "errors",
)
STATES = ("scheduled", "ready", "running", "done", "dead", "cancelled")


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def a_job(queue: str, state: str, **fields: Any) -> dict[str, Any]:
    """A job whose other dates are those of an hour ago, or of the next hour."""
    dates = {
        "run_at": ago(-3600) if state == "scheduled" else ago(3600),
        "created_at": ago(3600),
        "finished_at": ago(60),
        "locked_at": ago(60),
        "locked_until": ago(-3600),
        "errors": [{"at": ago(60), "attempt": 1, "message": "oops"}],
    }
    job = {"queue": queue, "state": state, "priority": 0, "payload": {}, "attempts": 1}
    return {**job, "max_attempts": 3, "locked_by": "somebody", "lease": b"x", **dates, **fields}


def odd_jobs(queue: str, date: Any) -> list[dict[str, Any]]:
    """A job for each state and field, with this date in that field."""
    return [
        a_job(queue, state, **{field: [{"at": date, "attempt": 1}] if field == "errors" else date})
        for state in STATES
        for field in FIELDS
    ]


def good_jobs(queue: str) -> list[dict[str, Any]]:
    """One that is due in a moment, one whose lease ends in a moment, and one that is ready."""
    return [
        a_job(queue, "scheduled", run_at=ago(-0.3), payload={"good": "due"}),
        a_job(queue, "running", locked_until=ago(-0.3), payload={"good": "expired"}),
        a_job(queue, "ready", payload={"good": "ready"}),
    ]


GOOD = {"due", "expired", "ready"}
