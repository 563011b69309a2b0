"""What operators change by hand is held against nobody, and what they did not change is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drills import checker
from drills.history import digest_of
from drills.told import JOB, OTHER, Broken, Planted, document, read

EDITED = digest_of({"n": 2})


@pytest.mark.parametrize(("claimed", "allowed"), [(2.05, True), (2.5, False)])
def test_an_old_payload_may_be_seen_by_a_claim_that_was_sent_before_the_edit_was_answered(
    one: Planted, two: Planted, broken: Broken, claimed: float, allowed: bool
) -> None:
    one.put(1)
    two.edit(2, "payload", digest=EDITED)  # answered at 2.1
    one.start(2.6, "a", claimed=claimed)
    one.end(3, "complete", "a")

    assert broken() == (set() if allowed else {"payload_changed"})


@pytest.mark.parametrize(("edited", "allowed"), [(2.5, True), (2.7, False)])
def test_a_new_payload_may_not_be_seen_before_it_was_there(
    one: Planted, two: Planted, broken: Broken, edited: float, allowed: bool
) -> None:
    one.put(1)
    two.edit(edited, "payload", digest=EDITED)
    one.start(2.6, "a", digest=EDITED)
    one.end(3, "complete", "a")

    assert broken() == (set() if allowed else {"payload_changed"})


@pytest.mark.parametrize("digest", [None, EDITED])
def test_after_an_edit_that_nobody_answered_either_payload_may_be_seen(
    one: Planted, two: Planted, broken: Broken, digest: str | None
) -> None:
    one.put(1)
    two.edit(2, "payload", "unknown", digest=EDITED)
    said: dict[str, Any] = {"digest": digest} if digest else {}
    one.start(6, "a", **said)
    one.end(7, "complete", "a")

    assert broken() == set()


def test_an_edit_that_was_certainly_not_made_changes_nothing(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    two.edit(2, "payload", "failed", digest=EDITED)
    one.start(3, "a", digest=EDITED)
    one.end(4, "complete", "a")

    assert broken() == {"payload_changed"}


def test_payload_changed_of_an_edit_that_was_undone(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.edit(2, "payload", digest=EDITED)

    assert broken(document()) == {"payload_changed"}
    assert broken(document(payload={"n": 2}), laws=[checker.payload_changed]) == set()


@pytest.mark.parametrize(("queue", "laws"), [("here", {"misplaced"}), ("there", set())])
def test_misplaced_a_job_run_for_the_queue_that_it_had_left(
    one: Planted, two: Planted, broken: Broken, queue: str, laws: set[str]
) -> None:
    one.put(1, queue="here")
    two.edit(2, "queue", queue="there")
    one.start(3, "a", queue=queue)
    one.end(4, "complete", "a")

    assert broken() == laws


def test_a_moved_job_is_early_before_the_time_it_was_moved_to(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, delay=10)
    two.edit(2, "run_at", delay=1)  # due at 3
    one.start(3, "a")
    one.end(3.5, "complete", "a")
    assert broken() == set()

    one.put(1, job=OTHER, delay=1)
    two.edit(1.5, "run_at", job=OTHER, delay=10)  # due at 11.5
    one.start(4, "b", job=OTHER)
    one.end(4.5, "complete", "b", job=OTHER)
    assert broken() == {"early"}


def test_a_lease_ended_by_hand_may_be_followed_by_another_attempt(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.renew(2.2, "a")
    two.edit(2.5, "locked_until")
    two.start(2.7, "b", 2)
    two.end(4, "complete", "b")
    one.end(4.5, "complete", "a", "refused")

    assert broken(laws=(*checker.LAWS, checker.held_by_two)) == set()


def test_overlapping_although_its_lease_was_renewed_after_it_was_ended_by_hand(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.edit(2.2, "locked_until")
    one.renew(2.6, "a")
    two.start(3, "b", 2)
    two.end(4, "complete", "b")

    assert broken() == {"overlapping"}


def test_a_job_buried_by_hand_and_requeued_begins_anew(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.edit(2.5, "state")
    one.renew(2.6, "a")
    two.requeue(3)
    two.start(3.2, "b", 1)
    one.end(3.5, "complete", "a", "refused")
    two.end(4, "complete", "b")

    assert broken() == set()


def test_a_job_buried_by_hand_may_be_dead_with_attempts_left(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.edit(2, "state")

    assert broken(document(attempts=0)) == set()


def test_held_after_requeue_by_an_attempt_of_before(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.edit(2.5, "state")
    two.requeue(3)
    one.end(3.5, "complete", "a")

    assert broken() == {"held_after_requeue"}


def test_who_finds_a_job_gone_that_was_taken_by_hand_may_think_it_did_it(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.edit(2.1, "locked_until")
    two.start(2.4, "b", 2)
    two.end(2.5, "complete", "b")
    one.end(2.6, "complete", "a")

    assert broken() == set()


def test_a_document_inserted_again_is_another_job(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3, "complete", "a")
    one.put(4, again=True)
    two.start(5, "b", 1)
    two.end(6, "complete", "b")

    assert broken() == set()


def test_each_of_two_jobs_of_one_id_can_be_lost(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3, "complete", "a")
    one.put(4, again=True)
    assert broken() == {"lost"}

    two.start(5, "b", 1)
    two.end(6, "complete", "b")
    one.end(7, "complete", "a")
    assert broken() == {"completed_twice"}


def test_a_refusal_says_nothing_when_another_job_had_the_id_by_then(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.put(2.65, again=True)
    one.end(2.6, "complete", "a", "refused")  # until 2.7
    two.start(5, "b", 1)
    two.end(6, "complete", "b")

    assert broken() == set()


def test_a_claim_that_came_late_may_be_of_the_job_that_came_after(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3, "complete", "a")
    one.put(4, again=True)
    two.start(5, "b", 1, claimed=2.5)
    two.end(6, "complete", "b")

    assert broken() == set()


def test_a_job_has_one_id_in_all_its_lives(one: Planted, tmp_path: Path) -> None:
    one.put(1)
    one.put(4, again=True)

    assert [verdict.job for verdict in checker.check(read(tmp_path))] == [str(JOB)] * 2
