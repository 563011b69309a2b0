"""The server's time, estimated from what it said and from time that passed here."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from streamqueue import clock
from streamqueue.clock import STALE_AFTER, ServerClock

SAID = datetime(2030, 1, 1, tzinfo=UTC)


class Monotonic:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    fake = Monotonic()
    monkeypatch.setattr(clock, "monotonic", fake)
    return fake


def test_time_that_was_never_observed_is_not_invented() -> None:
    with pytest.raises(RuntimeError, match="never observed"):
        ServerClock().now()


def test_the_server_is_taken_to_have_answered_half_way(monotonic: Monotonic) -> None:
    server = ServerClock()

    server.observe(SAID, sent=999.0, received=1000.0)

    assert server.now() == SAID + timedelta(seconds=0.5)


def test_time_goes_on_after_the_observation(monotonic: Monotonic) -> None:
    server = ServerClock()
    server.observe(SAID, sent=1000.0, received=1000.0)

    monotonic.now += 12.25

    assert server.now() == SAID + timedelta(seconds=12.25)


def test_a_wall_clock_that_jumps_changes_nothing(
    monotonic: Monotonic, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServerClock()
    server.observe(SAID, sent=1000.0, received=1000.0)

    monkeypatch.setattr(time, "time", lambda: 0.0)

    assert server.now() == SAID


def test_a_later_observation_replaces_an_earlier_one(monotonic: Monotonic) -> None:
    server = ServerClock()
    server.observe(SAID, sent=1000.0, received=1000.0)

    server.observe(SAID + timedelta(hours=1), sent=1000.0, received=1000.0)

    assert server.now() == SAID + timedelta(hours=1)


def test_it_is_stale_before_the_first_observation() -> None:
    assert ServerClock().stale


def test_it_is_stale_again_after_a_while(monotonic: Monotonic) -> None:
    server = ServerClock()
    server.observe(SAID, sent=1000.0, received=1000.0)
    fresh = server.stale

    monotonic.now += STALE_AFTER + 1

    assert not fresh
    assert server.stale


def test_monotonic_time_never_goes_back() -> None:
    readings = [clock.monotonic() for _ in range(1000)]

    assert readings == sorted(readings)
