"""What a dealer knows of a process: what it can take, and what it owes (``worker/seat``)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from bson import ObjectId

from streamqueue.worker import seat as seats
from streamqueue.worker.feed import Feed
from streamqueue.worker.seat import Seat

EVENT = {"operationType": "insert"}


@pytest.fixture
def seat() -> Iterator[Seat]:
    one, other = socket.socketpair()
    with one, other:
        yield Seat(Feed(one), "ada", free=2, owing=lambda: None)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(seats, "monotonic", lambda: now[0])
    return now


def job() -> dict[str, ObjectId]:
    return {"_id": ObjectId()}


def test_each_event_takes_a_free_slot_until_it_is_dealt_with(seat: Seat) -> None:
    seat.announce(EVENT)
    assert (seat.free, seat.owes, seat.owes_jobs) == (1, True, True)

    seat.settled(done=1, free=1)
    assert (seat.free, seat.owes, seat.owes_jobs) == (1, False, False)


def test_a_look_is_owed_but_is_no_job(seat: Seat) -> None:
    seat.look()

    assert (seat.free, seat.owes, seat.owes_jobs) == (1, True, False)


def test_an_event_before_a_look_is_owed_until_it_is_dealt_with_itself(seat: Seat) -> None:
    seat.announce(EVENT)
    seat.look()
    seat.settled(done=1)

    assert (seat.owes, seat.owes_jobs) == (True, False)


def test_who_has_asked_is_free_for_nothing_else_until_it_is_answered(seat: Seat) -> None:
    seat.asked = 2
    assert seat.free == 0

    seat.answer([job()], more=False)
    assert (seat.free, seat.asked) == (1, 0)


def test_waiting_jobs_are_owed_until_it_says_anything_more(seat: Seat) -> None:
    dealt = job()
    seat.answer([dealt], more=True)
    assert (seat.owes, seat.owes_jobs, seat.dealt) == (True, True, {dealt["_id"]})

    seat.settled(done=0)
    assert (seat.owes, seat.owes_jobs, seat.dealt) == (False, False, set())


def test_it_is_late_when_an_event_has_long_not_been_dealt_with(
    seat: Seat, now: list[float]
) -> None:
    seat.announce(EVENT)
    assert not seat.late

    now[0] += seats.AGAIN_AFTER + 0.001
    seat.announce(EVENT)
    assert seat.late

    seat.settled(done=1, free=1)
    assert not seat.late  # time begins anew for the other

    now[0] += seats.AGAIN_AFTER + 0.001
    assert seat.late


def test_it_is_late_when_waiting_jobs_have_long_not_been_claimed(
    seat: Seat, now: list[float]
) -> None:
    seat.answer([job()], more=False)
    now[0] += seats.AGAIN_AFTER + 0.001
    assert not seat.late

    now[0] += seats.DEALT_FOR
    assert seat.late


def test_who_was_late_is_dealt_nothing_more_until_it_has_answered(
    seat: Seat, now: list[float]
) -> None:
    seat.announce(EVENT)
    now[0] += 1
    seat.excuse()
    assert (seat.late, seat.owes, seat.free) == (False, False, 0)

    now[0] += 60
    assert not seat.late  # said once

    seat.settled(done=1, free=2)
    assert seat.free == 2


def test_who_was_late_with_waiting_jobs_leaves_them_to_others(seat: Seat, now: list[float]) -> None:
    seat.answer([job()], more=False)
    now[0] += 2 * seats.DEALT_FOR
    seat.excuse()

    assert (seat.late, seat.dealt) == (False, set())
