"""What people are told of jobs is held against what became of them; pauses against who claims."""

from __future__ import annotations

from typing import Any

import pytest

from drills.ends import LONGEST_WAIT, PAUSE_HEEDED, notes
from drills.told import LEASE, OTHER, QUEUE, Broken, Planted, document, read

KEPT: dict[str, Any] = {"keep": 3600, "payload": {"answers": True}}


def completed(one: Planted, token: str = "a", outcome: str = "acknowledged", **put: Any) -> None:
    """Put a job, and have an attempt complete it."""
    one.put(1, **{**KEPT, **put})
    one.start(2, token, queue=QUEUE)
    one.end(2.5, "complete", token, outcome)


def done(result: str | None = "a") -> dict[str, Any]:
    return document("done", attempts=1, result=result)


# what is in order


def test_everybody_is_told_the_end_that_it_had(one: Planted, two: Planted, broken: Broken) -> None:
    completed(one)
    two.wait(1.2, "late")
    two.wait(1.5, "done", "a", takes=1.2)
    two.wait(2.1, "running", by="get")
    two.wait(3, "done", "a", by="get")
    two.cancel(4, "ended")

    assert broken(done()) == set()


def test_one_cancelled_while_it_waits_is_not_lost(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    two.cancel(2, "cancelled")
    two.wait(3, "not found")

    assert broken() == set()


@pytest.mark.parametrize("outcome", ["unknown", "acknowledged"])
def test_one_asked_to_end_may_have(
    one: Planted, two: Planted, broken: Broken, outcome: str
) -> None:
    one.put(1)
    one.start(2, "a")
    two.cancel(2.1, "asked", outcome)
    one.cancelled(2.3, "a")

    assert broken() == set()


def test_one_asked_to_end_may_be_completed_before_its_holder_knows(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, **KEPT)
    one.start(2, "a")
    two.cancel(2.4, "asked")
    one.end(2.5, "complete", "a")
    two.wait(3, "done", "a")

    assert broken(done()) == set()


def test_one_that_expires_or_is_cancelled_by_its_handler_is_not_lost(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, expires=1)
    one.put(1, job=OTHER)
    two.start(2, "a", job=OTHER)
    two.end(2.1, "cancel", "a", "killed", job=OTHER)

    assert broken() == set()


def test_a_cancelled_job_that_stays_is_not_stuck(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, **KEPT)
    two.cancel(2, "cancelled")

    assert broken(document("cancelled", attempts=0)) == set()


def test_a_complete_that_nobody_answered_may_be_the_end_that_was_told(
    one: Planted, two: Planted, broken: Broken
) -> None:
    completed(one, outcome="killed")
    two.cancel(2.2, "asked")
    two.wait(3, "done", "a")

    assert broken(done()) == set()


@pytest.mark.parametrize("how", ["by its handler", "by somebody", "as expired"])
def test_a_put_repeated_after_its_job_was_cancelled_and_gone_gives_it_a_second_life(
    one: Planted, two: Planted, broken: Broken, how: str
) -> None:
    limit: dict[str, Any] = {"expires": 1} if how == "as expired" else {}
    one.put(1, "unknown", **limit)
    two.start(2, "a")
    if how == "by its handler":
        two.end(2.1, "cancel", "a", "killed")
    elif how == "by somebody":
        one.cancel(2.1, "asked")
        two.cancelled(2.2, "a")
    one.put(3, **limit)
    two.start(4, "b")
    two.end(4.1, "complete", "b")

    assert broken() == set()


# told_wrong


def test_told_of_two_ends(one: Planted, two: Planted, broken: Broken) -> None:
    completed(one, outcome="unknown")
    two.cancel(2.2, "asked")
    two.wait(2.3, "cancelled")
    two.wait(3, "done", "a")

    assert "told_wrong" in broken(done())


def test_told_of_another_end_than_the_collection_has(
    one: Planted, two: Planted, broken: Broken
) -> None:
    completed(one, outcome="unknown")
    two.cancel(2.2, "asked")
    two.wait(3, "cancelled")

    assert broken(done()) == {"told_wrong"}


def test_told_of_an_end_that_a_complete_contradicts(
    one: Planted, two: Planted, broken: Broken
) -> None:
    completed(one)
    two.wait(3, "dead")

    assert broken(document("dead", attempts=3)) == {"told_wrong"}


@pytest.mark.parametrize("result", ["b", None])
def test_told_another_result_than_the_attempt_returned(
    one: Planted, two: Planted, broken: Broken, result: str | None
) -> None:
    completed(one)
    two.wait(3, "done", result)

    assert broken(done(result)) == {"told_wrong"}


def test_told_the_result_of_an_attempt_that_was_refused(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, **KEPT)
    one.start(2, "a", 1)
    two.start(2 + LEASE, "b", 2)
    one.end(4.5, "complete", "a", "refused")
    two.end(4.6, "complete", "b")
    two.wait(5, "done", "a")

    assert broken(done()) == {"told_wrong"}


def test_told_that_it_is_done_before_anybody_completed_it(
    one: Planted, two: Planted, broken: Broken
) -> None:
    two.wait(1.2, "done", "a")
    completed(one)

    assert broken(done()) >= {"told_wrong"}


def test_told_that_it_is_cancelled_and_nobody_did(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, **KEPT)
    two.wait(3, "cancelled")

    assert broken(document("cancelled", attempts=0)) == {"told_wrong"}


@pytest.mark.parametrize("put", [{"keep": 3600}, {"awaited": True}])
def test_a_job_that_stays_is_not_found(
    one: Planted, two: Planted, broken: Broken, put: dict[str, Any]
) -> None:
    one.put(1, **put)
    one.start(2, "a")
    one.end(2.5, "complete", "a")
    two.wait(3, "not found")

    assert broken(done(None)) == {"told_wrong"}


def test_a_job_is_not_found_before_its_end(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    two.wait(1.5, "not found")
    one.start(2, "a")
    one.end(2.5, "complete", "a")

    assert broken() == {"told_wrong"}


def test_a_job_that_has_ended_is_said_to_run(one: Planted, two: Planted, broken: Broken) -> None:
    completed(one)
    two.wait(3, "done", "a")
    two.wait(3.5, "running", by="get")

    assert broken(done()) == {"told_wrong"}


def test_a_job_that_is_claimed_later_is_said_to_have_ended(
    one: Planted, two: Planted, broken: Broken
) -> None:
    two.cancel(1.5, "ended")
    completed(one)

    assert broken(done()) == {"told_wrong"}


# the others


def test_lost_although_it_was_to_be_kept(one: Planted, broken: Broken) -> None:
    completed(one)

    assert broken() == {"lost"}


def test_hung_told_long_after_the_end(one: Planted, two: Planted, broken: Broken) -> None:
    completed(one)
    two.wait(2, "done", "a", takes=LONGEST_WAIT + 1)

    assert broken(done()) == {"hung"}


def test_hung_without_an_answer_when_all_is_over(
    one: Planted, two: Planted, broken: Broken
) -> None:
    completed(one)
    two.wait_in_vain(1.5)

    assert broken(done()) == {"hung"}


def test_completed_after_cancelled(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1, **KEPT)
    one.start(2, "a")
    two.cancel(2.1, "asked")
    two.wait(2.2, "cancelled")
    one.end(2.5, "complete", "a")

    assert "completed_after_cancelled" in broken(document("cancelled", attempts=1))


def test_claimed_after_it_was_cancelled(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    two.cancel(1.2, "cancelled")
    one.start(2, "a")
    one.cancelled(2.5, "a")

    assert broken() == {"completed_after_cancelled"}


def test_claimed_after_it_was_asked_to_end(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.cancel(2.1, "asked")
    two.start(2 + LEASE, "b", 2)
    two.cancelled(4.5, "b")

    assert broken() == {"completed_after_cancelled"}


def test_started_while_paused(one: Planted, two: Planted, broken: Broken) -> None:
    two.pause(1.5)
    completed(one, token="b")
    assert broken(done("b")) == set()  # nobody had to know yet

    one.put(7, job=OTHER)
    one.start(8, "c", job=OTHER, queue=QUEUE)
    one.end(8.1, "complete", "c", job=OTHER)
    two.pause(9, "resume")

    assert broken(done("b")) == {"started_while_paused"}


@pytest.mark.parametrize("before", [0.2, 1.5 - PAUSE_HEEDED], ids=["resumed", "not yet known"])
def test_what_is_claimed_when_the_queue_goes_on_is_not_held_against_anybody(
    one: Planted, two: Planted, broken: Broken, before: float
) -> None:
    two.pause(-5)
    two.pause(before, "resume")
    completed(one)

    assert broken(done()) == set()


def test_the_longest_times_are_noted(one: Planted, two: Planted, tmp_path: Any) -> None:
    two.pause(1.5)
    completed(one)
    two.wait(2, "done", "a", takes=1.2)

    told, paused = notes(read(tmp_path, done()))
    assert told == "told 600 ms after the end (median), 600 ms at the latest"
    assert paused == "1 attempts claimed in 1 pauses, the latest 300 ms after its begin"
