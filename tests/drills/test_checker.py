"""The checker finds what it is there to find, and holds nothing against what nobody can know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drills import checker
from drills.history import History, digest_of, read_history
from drills.told import JOB, LEASE, OTHER, Broken, Entry, Planted, document, read

# what is in order


def test_a_job_that_was_put_run_and_completed_is_in_order(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a")
    one.end(3, "complete", "a")

    assert broken() == set()


def test_unknown_outcomes_are_held_against_nobody(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, "unknown")
    one.put(2, "unknown")
    one.put(3)
    one.start(4, "a", 1)
    one.end(5, "progress", "a", "unknown")
    one.end(6, "error", "a", "unknown")
    two.start(7, "b", 2)
    two.end(8, "complete", "b", "unknown")

    assert broken() == set()


def test_a_complete_nobody_saw_the_end_of_may_be_why_a_job_is_gone(
    one: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a")
    one.end(3, "complete", "a", "killed")

    assert broken() == set()


def test_a_lease_that_ran_out_may_be_followed_by_another_attempt(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.start(2 + LEASE, "b", 2)
    one.end(5, "complete", "a", "refused")
    two.end(4.5, "complete", "b")

    assert broken() == set()


def test_a_renewal_of_one_job_says_nothing_of_another_that_was_claimed_with_it(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.renew(3.5, "a", job=OTHER)
    two.start(2 + LEASE + 0.5, "b", 2)
    two.end(5, "complete", "b")

    assert broken() == set()


@pytest.mark.parametrize("more", [{}, {"count": 1}], ids=["that renews", "that may be merged"])
def test_progress_that_may_be_merged_with_more_renews_nothing_for_certain(
    one: Planted, two: Planted, broken: Broken, more: dict[str, Any]
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3.5, "progress", "a", **more)
    two.start(2 + LEASE + 0.5, "b", 2)
    two.end(5, "complete", "b")

    assert broken() == (set() if more else {"overlapping"})


def test_a_job_given_back_may_be_started_at_once_by_another(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(2.2, "release", "a")
    two.start(2.4, "b", 1)
    two.end(2.5, "complete", "b")

    assert broken() == set()


def test_an_attempt_that_died_before_its_handler_started_leaves_a_gap_in_the_count(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.claim(2, "never answered")
    two.start(5, "b", 2)
    two.end(6, "complete", "b")

    assert broken() == set()


def test_a_torn_last_line_is_no_line(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a")
    one.end(3, "complete", "a")
    with open(one.path, "ab") as file:
        file.write(b'{"what":"compl')

    assert broken() == set()


def test_a_torn_line_before_the_last_is_an_error(one: Planted, tmp_path: Path) -> None:
    with open(one.path, "ab") as file:
        file.write(b'{"what":"compl\n{"what":"process"}\n')

    with pytest.raises(ValueError, match="line 2"):
        read(tmp_path)


def test_what_an_operator_removed_is_not_lost(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.clear(2)

    assert broken() == set()


def test_a_put_repeated_after_its_job_was_done_and_gone_gives_it_a_second_life(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, "unknown")
    two.start(2, "a")
    two.end(2.1, "complete", "a")
    one.put(3)
    two.start(4, "b")
    two.end(4.1, "complete", "b")

    assert broken() == set()


def test_so_does_one_repeated_after_a_complete_whose_first_try_was_applied_unseen(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1, "unknown")
    two.start(2, "a")
    two.end(2.1, "complete", "a", "refused")
    one.put(2.05)
    two.start(4, "b")
    two.end(4.1, "complete", "b")

    assert broken() == set()


# one planted fault for each verdict


def test_lost_put_and_gone(one: Planted, broken: Broken) -> None:
    one.put(1)

    assert broken() == {"lost"}


def test_lost_although_somebody_was_refused_its_complete(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a")
    one.end(3, "complete", "a", "refused")

    assert broken() == {"lost"}


def test_lost_although_an_operator_removed_what_was_there_before(
    one: Planted, broken: Broken
) -> None:
    one.clear(1)
    one.put(9)

    assert broken() == {"lost"}


def test_unexpected_an_attempt_at_what_nobody_put(one: Planted, broken: Broken) -> None:
    one.start(2, "a")
    one.end(3, "complete", "a")

    assert broken() == {"unexpected"}


def test_unexpected_a_document_whose_put_failed(one: Planted, broken: Broken) -> None:
    one.put(1, "failed")
    # A refused put is a refusal by the client: LeaseLost stands for any error of ours.
    assert "unexpected" in broken(document())


@pytest.mark.parametrize("outcome", ["unknown", "acknowledged"])
def test_completed_twice(one: Planted, two: Planted, broken: Broken, outcome: str) -> None:
    one.put(1, outcome)
    one.start(2, "a", 1)
    two.start(5, "b", 2)
    one.end(4.95, "complete", "a")
    two.end(6, "complete", "b")

    assert broken() == {"completed_twice"}


def test_completed_twice_by_one_attempt(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a")
    one.end(3, "complete", "a")
    one.end(3.5, "complete", "a")

    assert broken() == {"completed_twice"}


def test_overlapping_leases(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.start(2 + LEASE / 2, "b", 2)
    one.end(3.5, "complete", "a", "refused")
    two.end(3.5, "complete", "b")

    assert broken() == {"overlapping"}


@pytest.mark.parametrize("by", ["progress", "renewal"])
def test_overlapping_a_lease_that_was_renewed(
    one: Planted, two: Planted, broken: Broken, by: str
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    if by == "progress":
        one.end(3.5, "progress", "a")
    else:
        one.renew(3.5, "a")
    two.start(2 + LEASE + 1, "b", 2)
    two.end(5.5, "complete", "b")

    assert broken() == {"overlapping"}


def test_overlapping_attempts_with_one_token(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.start(9, "a", 2)
    two.end(9.5, "complete", "a")

    assert "overlapping" in broken()


@pytest.mark.parametrize("what", ["progress", "error", "release"])
def test_stale_write_of_an_attempt_whose_job_was_taken(
    one: Planted, two: Planted, broken: Broken, what: str
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.start(5, "b", 2)
    one.end(5.5, what, "a")
    two.end(6, "complete", "b", "refused")

    assert "stale_write" in broken(document())


def test_redelivered_after_an_acknowledged_complete(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3, "complete", "a")
    two.start(5, "b", 2)

    assert broken() == {"redelivered"}


def test_attempts_that_do_not_rise(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    two.start(5, "b", 1)
    two.end(6, "complete", "b")

    assert broken() == {"attempts_miscounted"}


def test_attempts_that_skip_without_a_claim(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 2)
    one.end(3, "complete", "a")

    assert broken() == {"attempts_miscounted"}


def test_an_attempt_frozen_before_its_first_line_counts_where_it_was_claimed(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    two.start(4, "b", 2)
    one.start(4.5, "a", 1, claimed=1.5)
    one.end(4.6, "complete", "a", "refused")
    two.end(5, "complete", "b")

    assert broken() == set()


def test_an_attempt_that_failed_over_an_unknown_call_holds_nothing_any_more(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.renew(2.5, "a")
    one.end(2.8, "progress", "a", "unknown")
    one.end(3, "error", "a", "killed")  # the worker's own, whose answer nobody noted
    two.start(3.2, "b", 2)
    two.end(4, "complete", "b")

    assert broken() == set()


def test_attempts_beyond_the_limit(one: Planted, broken: Broken) -> None:
    one.put(1)
    for number in range(1, 5):
        one.start(3 * number, f"token {number}", number)

    assert broken(document()) == {"attempts_miscounted"}


def test_attempts_left_when_it_was_buried(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3, "error", "a")

    assert broken(document(attempts=1)) == {"attempts_miscounted"}


def test_a_discarded_job_may_be_buried_with_attempts_left(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", 1)
    one.end(3, "error", "a", "killed", discard=True)

    assert broken(document(attempts=1)) == set()


def test_payload_changed_on_its_way_to_the_handler(one: Planted, broken: Broken) -> None:
    one.put(1)
    one.start(2, "a", digest=digest_of({"n": 2}))
    one.end(3, "complete", "a")

    assert broken() == {"payload_changed"}


def test_payload_changed_where_it_is_stored(one: Planted, broken: Broken) -> None:
    one.put(1)

    assert broken(document(payload={})) == {"payload_changed"}


def test_early_a_delayed_job_before_its_time(one: Planted, broken: Broken) -> None:
    one.put(1, delay=5)
    one.start(4, "a")
    one.end(4.1, "complete", "a")

    assert broken() == {"early"}


@pytest.mark.parametrize("state", ["ready", "running", "scheduled"])
def test_stuck_at_the_end(one: Planted, broken: Broken, state: str) -> None:
    one.put(1)

    assert broken(document(state)) == {"stuck"}


def test_out_of_order_is_judged_when_asked_for(one: Planted, two: Planted, broken: Broken) -> None:
    one.put(1, job=JOB)
    one.put(2, job=OTHER)
    two.start(3, "a", job=OTHER)
    two.end(3.2, "complete", "a", job=OTHER)
    two.start(4, "b", job=JOB)
    two.end(4.2, "complete", "b", job=JOB)

    assert broken() == set()
    assert broken(laws=[checker.out_of_order]) == {"out_of_order"}


@pytest.mark.parametrize("difference", [{"priority": 1}, {"delay": 5}])
def test_jobs_of_other_priorities_and_delayed_ones_are_not_out_of_order(
    one: Planted, two: Planted, broken: Broken, difference: dict[str, Any]
) -> None:
    one.put(1, job=JOB)
    one.put(2, job=OTHER, **difference)
    two.start(3, "a", job=OTHER)
    two.start(4, "b", job=JOB)

    assert broken(laws=[checker.out_of_order]) == set()


def test_a_verdict_shows_the_job_and_its_lines(one: Planted, tmp_path: Path) -> None:
    one.put(1)
    one.put(1, job=OTHER)

    [verdict, _] = checker.check(read(tmp_path))

    assert verdict.job == str(JOB)
    assert str(JOB) in str(verdict)
    assert len(verdict.lines) == 2
    assert str(OTHER) not in str(verdict)


# any history of a queue that keeps its word

Step = tuple[str, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("claim", "lease runs out", "zombie", "progress", "complete", "error"),
                *("release", "transaction"),
            ]
        ),
        st.sampled_from(["answered", "applied, no answer", "not applied, no answer"]),
    ),
    max_size=30,
)


class Queue:
    """One job in a queue that does everything right, among consumers of which any may be killed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._at = 1.0
        self._attempts = 0
        self._state = "ready"
        self._holder: tuple[Planted, str] | None = None
        self._zombie: tuple[Planted, str] | None = None
        self.entries: list[Entry] = []
        Planted(directory, "producer").put(self._at)

    def step(self, what: str, how: str) -> None:
        self._at += 0.3
        if what == "claim" and self._state == "ready" and self._attempts < 3:
            self._claim(how)
        elif what == "lease runs out" and self._state == "running":
            self._at += LEASE
            self._zombie = self._holder
            self._end()
        elif what == "zombie" and self._zombie is not None:
            consumer, token = self._zombie
            outcome = "refused" if how == "answered" else "unknown"
            consumer.end(self._at, "complete", token, outcome)
        elif what == "transaction" and self._holder is not None:
            self._transact(how)
        elif what not in ("claim", "lease runs out", "zombie") and self._holder is not None:
            self._call(what, how)

    def _claim(self, how: str) -> None:
        consumer, token = Planted(self._directory, "consumer"), str(self._at)
        if how == "not applied, no answer":
            consumer.claim(self._at, token)
            return
        self._attempts += 1
        self._state = "running"
        if how == "answered":
            consumer.start(self._at, token, self._attempts)
            self._holder = consumer, token
        else:
            consumer.claim(self._at - 0.1, token)

    def _call(self, what: str, how: str) -> None:
        assert self._holder is not None
        consumer, token = self._holder
        outcome = "unknown"
        if how == "answered":
            outcome = "acknowledged" if self._state == "running" else "refused"
        consumer.end(self._at, what, token, outcome)
        if what != "progress" and how != "not applied, no answer" and self._state == "running":
            self._attempts -= what == "release"
            self._end("gone" if what == "complete" else "ready")
        if how != "answered":
            self._holder = None  # it was killed before the answer

    def _transact(self, how: str) -> None:
        """Complete in a transaction, whose commit is what is answered and applied, or not."""
        assert self._holder is not None
        consumer, token = self._holder
        transaction, holds = consumer.begin(self._at), self._state == "running"
        outcome = "acknowledged" if holds else "refused"
        consumer.end(self._at, "complete", token, outcome, transaction=transaction)
        end = "unknown"
        if how == "answered" or not holds:
            end = "committed" if holds else "aborted"
        consumer.over(self._at + 0.2, transaction, end)
        if holds and how != "not applied, no answer":
            self.entries.append(consumer.entry(transaction))
            self._end("gone")
        if how != "answered":
            self._holder = None

    def _end(self, state: str = "ready") -> None:
        used_up = state == "ready" and self._attempts >= 3
        self._state = "dead" if used_up else state
        self._holder = None

    def documents(self) -> list[dict[str, Any]]:
        self._at += 2 * LEASE
        if self._state in ("ready", "running"):
            self._state = "dead" if self._attempts >= 3 else self._state
        return [] if self._state == "gone" else [document(self._state, attempts=self._attempts)]


@given(steps=STEPS)
def test_a_queue_that_keeps_its_word_is_never_blamed(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    directory = tmp_path_factory.mktemp("history")
    queue = Queue(directory)
    for what, how in steps:
        queue.step(what, how)

    broken = checker.check(read(directory, *queue.documents(), entries=queue.entries))

    assert {verdict.law for verdict in broken} <= {"stuck"}  # nobody drained it


# the files


@given(cut=st.integers(1, 400))
def test_a_history_cut_anywhere_is_read_up_to_the_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    history = History(tmp_path_factory.mktemp("cut"), "p")
    with history.call("put", job="j", text="line\nbreak"):
        pass
    whole = read_history(history.path)

    os.truncate(history.path, max(0, history.path.stat().st_size - cut))

    assert read_history(history.path) == whole[: history.path.read_bytes().count(b"\n")]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT


@given(payload=st.dictionaries(TEXT.filter(lambda key: "\0" not in key), VALUES))
def test_a_digest_is_the_same_after_a_way_through_bson(payload: dict[str, Any]) -> None:
    assert digest_of(bson.decode(bson.encode(payload))) == digest_of(payload)
