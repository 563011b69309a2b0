"""Jobs that nobody can change: what is left out, and when it is tried again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from bson import Binary, ObjectId
from pymongo.errors import WriteError

from streamqueue.backoff import Backoff
from streamqueue.store import refused as stuck_module
from streamqueue.store.refused import AGAIN, StuckJobs

REFUSAL = WriteError("no", 121)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stuck_module, "monotonic", clock)
    monkeypatch.setattr(stuck_module, "AGAIN", Backoff(initial=1, maximum=8, jitter=0))
    return clock


@pytest.fixture
def stuck(clock: Clock) -> StuckJobs:
    return StuckJobs("cannot be promoted")


def jobs(*ids: object) -> list[dict[str, Any]]:
    return [{"_id": job_id} for job_id in ids]


def refuse(stuck: StuckJobs, found: list[dict[str, Any]]) -> int:
    """Try what is to be tried; all of it is refused. Return how much that was."""
    tried = [job for part in stuck.divide(found) for job in part]
    for job in tried:
        stuck.refused(job["_id"], REFUSAL)
    stuck.settle()
    return len(tried)


def test_with_none_everything_is_tried_and_there_is_no_time_to_wait_for(stuck: StuckJobs) -> None:
    found = jobs(1, 2)

    assert stuck.divide(found) == (found, [])
    assert (len(stuck), stuck.wait()) == (0, float("inf"))


def test_a_refused_job_is_left_out_and_the_others_are_not(stuck: StuckJobs) -> None:
    stuck.refused(1, REFUSAL)

    assert stuck.sift(jobs(1, 2)) == jobs(2)


@pytest.mark.parametrize("job_id", [ObjectId(), "7", 7, {"shop": 1}, b"x", None, float("nan")])
def test_an_id_may_be_of_any_kind(stuck: StuckJobs, job_id: object) -> None:
    stuck.refused(job_id, REFUSAL)

    assert job_id in stuck
    assert stuck.sift(jobs(job_id)) == []


def test_the_waits_between_two_tries_grow_to_a_limit(stuck: StuckJobs, clock: Clock) -> None:
    waits = []
    for _ in range(6):
        assert refuse(stuck, jobs(1)) == 1
        waits.append(stuck.wait())
        clock.now += stuck.wait()

    assert waits == [1, 2, 4, 8, 8, 8]


def test_it_is_not_tried_before_its_time(stuck: StuckJobs, clock: Clock) -> None:
    refuse(stuck, jobs(1))
    clock.now += 0.99

    assert refuse(stuck, jobs(1)) == 0


def test_the_real_waits_are_jittered_and_at_most_a_minute() -> None:
    assert AGAIN.jitter > 0
    assert max(AGAIN.delay(100) for _ in range(100)) <= 60


def test_what_is_tried_again_is_kept_apart_from_what_never_failed(
    stuck: StuckJobs, clock: Clock
) -> None:
    refuse(stuck, jobs(1))
    clock.now += 1

    assert stuck.divide(jobs(1, 2)) == (jobs(2), jobs(1))


def test_the_order_is_kept_where_they_may_go_together(stuck: StuckJobs, clock: Clock) -> None:
    refuse(stuck, jobs(2))
    clock.now += 1

    assert stuck.sift(jobs(1, 2, 3)) == jobs(1, 2, 3)


def test_after_one_got_through_the_others_are_tried_soon(stuck: StuckJobs, clock: Clock) -> None:
    for _ in range(4):
        refuse(stuck, jobs(1, 2))
        clock.now += stuck.wait()
    stuck.divide(jobs(1, 2))
    stuck.refused(1, REFUSAL)

    stuck.settle()

    assert stuck.wait() == 1


def test_many_are_tried_a_part_at_a_time_and_each_comes_to_its_turn(
    stuck: StuckJobs, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck_module, "TRIED_AT_ONCE", 2)
    refuse(stuck, jobs(1, 2, 3))

    tried = []
    for _ in range(3):
        clock.now += stuck.wait()
        again = stuck.divide(jobs(1, 2, 3))[1]
        tried.append([job["_id"] for job in again])
        for job in again:
            stuck.refused(job["_id"], REFUSAL)
        stuck.settle()

    assert tried == [[1, 2], [1, 3], [1, 2]]


def test_one_that_is_gone_is_forgotten_when_it_would_be_tried(
    stuck: StuckJobs, clock: Clock
) -> None:
    refuse(stuck, jobs(1, 2))
    clock.now += 1

    refuse(stuck, jobs(2))

    assert 1 not in stuck


def test_forgetting_them_tries_them_all_at_once(stuck: StuckJobs) -> None:
    refuse(stuck, jobs(1, 2))

    stuck.forget()

    assert stuck.sift(jobs(1, 2)) == jobs(1, 2)


def test_there_is_a_limit_to_what_is_remembered(
    stuck: StuckJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck_module, "MOST_STUCK", 2)

    refuse(stuck, jobs(1, 2, 3))

    assert (len(stuck), stuck.full) == (2, True)


def test_each_is_logged_once(
    stuck: StuckJobs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        refuse(stuck, jobs(1))
        clock.now += stuck.wait()

    assert [record.getMessage() for record in caplog.records] == [
        "Job 1 cannot be promoted: DocumentValidationFailure (121)"
    ]


def test_a_uuid_is_the_same_job_however_it_was_decoded(
    stuck: StuckJobs, caplog: pytest.LogCaptureFixture
) -> None:
    identity = UUID(int=7)

    stuck.refused(Binary.from_uuid(identity), REFUSAL)

    assert stuck.sift(jobs(identity)) == []
    assert identity in stuck
    assert str(identity) in caplog.text
