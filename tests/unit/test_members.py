"""What a dispatcher knows of a member: what it can take, and what it has not acknowledged."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from bson import ObjectId

from streamqueue.processes import members
from streamqueue.processes.frames import Connection
from streamqueue.processes.members import Member

EVENT = {"operationType": "insert"}


@pytest.fixture
def member() -> Iterator[Member]:
    one, other = socket.socketpair()
    with one, other:
        yield Member(Connection(one), "ada", free=2, on_sent=lambda: None)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(members, "monotonic", lambda: now[0])
    return now


def job() -> dict[str, ObjectId]:
    return {"_id": ObjectId()}


def test_each_event_takes_a_free_slot_until_it_is_acknowledged(member: Member) -> None:
    member.announce(EVENT)
    assert (member.free, member.unacknowledged, member.unacknowledged_jobs) == (1, True, True)

    member.acknowledged(done=1, free=1)
    assert (member.free, member.unacknowledged, member.unacknowledged_jobs) == (1, False, False)


def test_a_look_is_unacknowledged_but_is_no_job(member: Member) -> None:
    member.ask_to_fetch()

    assert (member.free, member.unacknowledged, member.unacknowledged_jobs) == (1, True, False)


def test_an_event_before_a_look_is_owed_until_it_is_acknowledged_itself(member: Member) -> None:
    member.announce(EVENT)
    member.ask_to_fetch()
    member.acknowledged(done=1)

    assert (member.unacknowledged, member.unacknowledged_jobs) == (True, False)


def test_who_has_asked_is_free_for_nothing_else_until_it_is_answered(member: Member) -> None:
    member.requested = 2
    assert member.free == 0

    member.reply([job()], more=False)
    assert (member.free, member.requested) == (1, 0)


def test_waiting_jobs_are_owed_until_it_says_anything_more(member: Member) -> None:
    sent = job()
    member.reply([sent], more=True)
    assert (member.unacknowledged, member.unacknowledged_jobs, member.dispatched) == (
        True,
        True,
        {sent["_id"]},
    )

    member.acknowledged(done=0)
    assert (member.unacknowledged, member.unacknowledged_jobs, member.dispatched) == (
        False,
        False,
        set(),
    )


def test_it_is_late_when_an_event_has_long_not_been_dealt_with(
    member: Member, now: list[float]
) -> None:
    member.announce(EVENT)
    assert not member.late

    now[0] += members.AGAIN_AFTER + 0.001
    member.announce(EVENT)
    assert member.late

    member.acknowledged(done=1, free=1)
    assert not member.late  # time begins anew for the other

    now[0] += members.AGAIN_AFTER + 0.001
    assert member.late


def test_it_is_late_when_waiting_jobs_have_long_not_been_claimed(
    member: Member, now: list[float]
) -> None:
    member.reply([job()], more=False)
    now[0] += members.AGAIN_AFTER + 0.001
    assert not member.late

    now[0] += members.CLAIM_WITHIN
    assert member.late


def test_who_was_late_is_sent_nothing_more_until_it_has_answered(
    member: Member, now: list[float]
) -> None:
    member.announce(EVENT)
    now[0] += 1
    member.write_off()
    assert (member.late, member.unacknowledged, member.free) == (False, False, 0)

    now[0] += 60
    assert not member.late  # said once

    member.acknowledged(done=1, free=2)
    assert member.free == 2


def test_who_was_late_with_waiting_jobs_leaves_them_to_others(
    member: Member, now: list[float]
) -> None:
    member.reply([job()], more=False)
    now[0] += 2 * members.CLAIM_WITHIN
    member.write_off()

    assert (member.late, member.dispatched) == (False, set())
