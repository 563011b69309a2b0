"""What is published comes to all of its subscribers, or to none."""

from __future__ import annotations

import pytest

from drills.copies import notes
from drills.told import JOB, OTHER, Broken, Planted, document, read

COPIES = {JOB: "billing", OTHER: "mails"}


def publish(one: Planted, outcome: str = "acknowledged", at: float = 1) -> None:
    for job, queue in COPIES.items():
        one.put(at, outcome, job=job, queue=queue, message="m", keep=60)


@pytest.mark.parametrize("outcome", ["acknowledged", "unknown"])
def test_a_message_comes_to_all(one: Planted, broken: Broken, outcome: str) -> None:
    publish(one, outcome)

    assert broken(document(), document(_id=OTHER)) == set()


def test_one_of_unknown_outcome_comes_to_none(one: Planted, broken: Broken) -> None:
    publish(one, "unknown")

    assert broken() == set()


@pytest.mark.parametrize("copy", [JOB, OTHER])
def test_one_that_came_to_some_is_a_broken_law(one: Planted, broken: Broken, copy: object) -> None:
    publish(one, "unknown")

    assert broken(document(_id=copy)) == {"published_in_part"}


def test_one_that_a_handler_saw_has_come(one: Planted, broken: Broken) -> None:
    publish(one, "unknown")
    one.start(2, "a", queue="billing")
    one.end(2.5, "complete", "a")

    assert "published_in_part" in broken()


def test_one_that_was_acknowledged_and_is_nowhere_is_lost(one: Planted, broken: Broken) -> None:
    publish(one)

    assert broken() == {"lost"}


def test_a_copy_in_another_subscriber_s_queue_is_a_broken_law(one: Planted, broken: Broken) -> None:
    publish(one)
    one.claim(1.9, "a")
    one.start(2, "a", queue="mails")

    assert "misplaced" in broken(document(), document(_id=OTHER))


def test_the_figures_say_how_many_came(one: Planted) -> None:
    publish(one)

    account = read(one.path.parent, document(), document(_id=OTHER))
    assert notes(account) == ["1 messages came to all of their subscribers, 0 to none"]
