"""The laws of ticks find what they are there to find."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from drills.reading import account_of
from drills.ticks import SCHEDULE, tick_doubled, tick_missing

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def found(*seconds: float, **fields: Any) -> dict[str, list[str]]:
    """What the laws say of jobs of these ticks."""
    documents = [
        {
            "_id": number,
            "schedule": SCHEDULE,
            "tick": NOON + timedelta(seconds=second),
            "state": "done",
            **fields,
        }
        for number, second in enumerate(seconds)
    ]
    account = account_of([], documents)
    return {law.__name__: [job.id for job, _ in law(account)] for law in LAWS}


LAWS = (tick_doubled, tick_missing)


@pytest.mark.parametrize(
    ("seconds", "doubled", "missing"),
    [
        ([], [], []),
        ([0, 1, 2, 3], [], []),
        ([3, 0, 2, 1], [], []),
        ([0, 1, 1, 2], ["2"], []),
        ([0, 1, 3], [], ["1"]),
        ([0, 2, 2], ["2"], ["0"]),
    ],
)
def test_a_tick_with_two_jobs_and_one_with_none_are_found(
    seconds: list[float], doubled: list[str], missing: list[str]
) -> None:
    assert found(*seconds) == {"tick_doubled": doubled, "tick_missing": missing}


def test_jobs_that_no_schedule_has_put_are_held_against_nobody() -> None:
    account = account_of([], [{"_id": 1, "state": "ready"}, {"_id": 2, "state": "done"}])

    assert [found for law in LAWS for found in law(account)] == []
