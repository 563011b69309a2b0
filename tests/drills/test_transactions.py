"""What is asked for in a transaction counts as its end says, and its effect agrees with it."""

from __future__ import annotations

from drills.told import JOB, Broken, Planted, document


def completed(one: Planted, end: str, at: float = 2, token: str = "a") -> int:
    """Start an attempt that completes in a transaction, which ends so."""
    one.start(at, token)
    number = one.begin(at + 0.1)
    one.end(at + 0.2, "complete", token, transaction=number)
    if end:
        one.over(at + 0.5, number, end)
    return number


def test_a_job_completed_in_a_transaction_that_was_committed_is_done(
    one: Planted, broken: Broken
) -> None:
    one.put(1)
    number = completed(one, "committed")

    assert broken(entries=[one.entry(number)]) == set()


def test_what_was_completed_in_a_transaction_that_was_aborted_is_still_there(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    completed(one, "aborted")
    one.end(2.6, "error", "a", "killed")
    two.start(3, "b", 2)
    two.end(3.2, "complete", "b")

    assert broken(entries=[]) == set()


def test_lost_a_job_whose_only_complete_was_undone(one: Planted, broken: Broken) -> None:
    one.put(1)
    completed(one, "aborted")

    assert broken(entries=[]) == {"lost"}


def test_without_a_ledger_nobody_knows_what_became_of_a_commit(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    completed(one, "unknown")
    assert broken() == set()

    two.start(6, "b", 2)
    two.end(6.2, "complete", "b")
    assert broken() == set()


def test_lost_a_job_whose_ledger_says_that_its_work_was_not_done(
    one: Planted, broken: Broken
) -> None:
    one.put(1)
    completed(one, "unknown")

    assert broken(entries=[]) == {"lost"}


def test_a_ledger_tells_of_a_commit_that_a_dead_process_could_not(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    number = completed(one, "")
    assert broken(entries=[one.entry(number)]) == set()

    two.start(6, "b", 2)
    two.end(6.2, "complete", "b")
    assert broken(entries=[one.entry(number)]) == {"completed_twice"}


def test_redelivered_after_a_commit_and_not_after_the_call_in_it(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    number = completed(one, "committed", at=2)  # at 2.5
    two.claim(2.4, "b")
    two.start(2.6, "b", 2, claimed=2.4)
    assert "redelivered" not in broken(entries=[one.entry(number)])

    two.start(4, "c", 3)
    assert "redelivered" in broken(entries=[one.entry(number)])


def test_a_put_in_a_transaction_counts_as_its_end_says(
    one: Planted, two: Planted, broken: Broken
) -> None:
    undone = one.begin(1)
    one.put(1.1, transaction=undone)
    one.over(1.5, undone, "aborted")
    assert broken(entries=[]) == set()

    two.start(2, "a")
    assert broken(entries=[]) == {"unexpected"}


def test_lost_a_put_whose_transaction_was_committed(one: Planted, broken: Broken) -> None:
    number = one.begin(1)
    one.put(1.1, transaction=number)
    one.over(1.5, number, "committed")

    assert broken(entries=[one.entry(number, "put")]) == {"lost"}


def test_a_put_in_a_transaction_may_never_have_been_if_nobody_knows_its_end(
    one: Planted, broken: Broken
) -> None:
    number = one.begin(1)
    one.put(1.1, transaction=number)
    one.over(1.5, number, "unknown")

    assert broken(entries=[]) == set()
    assert broken(entries=[one.entry(number, "put")]) == {"lost"}


def test_effect_lost_that_a_committed_transaction_should_have_left(
    one: Planted, broken: Broken
) -> None:
    one.put(1)
    completed(one, "committed")

    assert broken(entries=[]) == {"effect_lost"}


def test_effect_doubled_by_two_transactions_that_were_committed(
    one: Planted, two: Planted, broken: Broken
) -> None:
    one.put(1)
    first = completed(one, "committed", at=2)
    second = completed(two, "unknown", at=6, token="b")

    entries = [one.entry(first), two.entry(second)]
    assert "effect_doubled" in broken(entries=entries)
    assert "effect_doubled" not in broken(entries=entries[:1])


def test_effect_unexpected_of_a_transaction_that_was_aborted(one: Planted, broken: Broken) -> None:
    one.put(1)
    number = completed(one, "aborted")

    assert broken(document(), entries=[one.entry(number)]) == {"effect_unexpected"}


def test_effect_unexpected_of_a_job_that_is_still_there(one: Planted, broken: Broken) -> None:
    one.put(1)
    number = completed(one, "unknown")

    assert "effect_unexpected" in broken(document(), entries=[one.entry(number)])


def test_effect_unexpected_that_nobody_has_written_down(one: Planted, broken: Broken) -> None:
    one.put(1)
    stranger = {"job": str(JOB), "what": "complete", "process": "nobody", "transaction": 1}

    assert broken(document(), entries=[stranger]) == {"effect_unexpected"}
