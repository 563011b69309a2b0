"""Failures in a row are one outage: a line at its beginning and one at its end."""

from __future__ import annotations

import logging

import pytest

from streamqueue import outage
from streamqueue.outage import STEADY, LoggedOutage, Outage


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outage, "monotonic", clock)
    return clock


def test_the_first_failure_in_a_row_is_told() -> None:
    broken = Outage()

    assert [broken.failed() for _ in range(3)] == [True, False, False]


def test_the_end_says_how_long_it_was_and_how_many_failures(clock: Clock) -> None:
    broken = Outage()
    broken.failed()
    clock.now += 2
    broken.failed()
    clock.now += 1

    assert broken.succeeded() == (3.0, 2)


def test_a_success_without_a_failure_is_told_to_nobody() -> None:
    broken = Outage()
    broken.failed()
    broken.succeeded()

    assert broken.succeeded() is None
    assert Outage().succeeded() is None


def test_the_next_outage_is_told_again(clock: Clock) -> None:
    broken = Outage()
    broken.failed()
    broken.succeeded()
    clock.now += STEADY

    assert broken.failed()
    assert broken.succeeded() == (0.0, 1)


def test_what_fails_every_other_time_is_two_outages_and_the_second_lasts(clock: Clock) -> None:
    broken, told = Outage(), 0

    for _ in range(100):
        told += broken.failed()
        clock.now += 0.7
        told += broken.succeeded() is not None

    assert told == 3  # broken, back, broken


def test_the_end_of_an_unsteady_outage_is_told_when_it_has_been_quiet_for_a_while(
    clock: Clock,
) -> None:
    broken = Outage()
    broken.failed()
    broken.succeeded()
    broken.failed()
    clock.now += 4
    broken.failed()

    clock.now += STEADY - 1
    assert broken.succeeded() is None
    clock.now += 1
    assert broken.succeeded() == (4.0, 2)


def test_a_logged_outage_has_two_lines(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    caplog.set_level(logging.INFO)
    claiming = LoggedOutage(logging.getLogger("test"), "claim", "Claiming")

    for _ in range(3):
        claiming.failed(TimeoutError("4111"), "Claiming %s failed: %s", "all")
    clock.now += 2.5
    claiming.succeeded()
    claiming.succeeded()

    assert [(line.levelname, line.getMessage()) for line in caplog.records] == [
        ("WARNING", "Claiming all failed: TimeoutError"),
        ("INFO", "Claiming works again after 2.5 s and 3 failures"),
    ]
    begin, end = (vars(line) for line in caplog.records)
    assert (begin["event"], begin["operation"], begin["error"]) == (
        "operation_failing",
        "claim",
        "TimeoutError",
    )
    assert (end["event"], end["seconds"], end["count"]) == ("operation_recovered", 2.5, 3)
