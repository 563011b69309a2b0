"""Keys are held against who runs and who waits, and against the puts that were refused."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId

from drills.key_laws import key_leaked, two_of_a_key
from drills.told import QUEUE, Broken, Planted, document

OTHER_JOB = ObjectId("5" * 24)
LAWS = (two_of_a_key, key_leaked)
KEYED: dict[str, Any] = {"queue": QUEUE, "key": "k", "key_until": "start"}


@pytest.fixture
def keys(broken: Broken) -> Any:
    return lambda *documents: broken(*documents, laws=LAWS)


def test_two_jobs_of_a_key_may_run_one_after_the_other(
    one: Planted, two: Planted, keys: Any
) -> None:
    one.put(1, **KEYED)
    one.start(2, "a")
    two.put(2.1, job=OTHER_JOB, **KEYED)
    one.end(2.5, "complete", "a")
    two.start(2.7, "b", job=OTHER_JOB)

    assert keys() == set()


def test_two_jobs_of_a_key_may_not_run_at_once(one: Planted, two: Planted, keys: Any) -> None:
    one.put(1, **KEYED)
    one.start(2, "a")
    two.put(2.1, job=OTHER_JOB, **KEYED)
    two.start(2.3, "b", job=OTHER_JOB)
    one.end(2.9, "complete", "a")

    assert keys() == {"two_of_a_key"}


def test_two_jobs_of_different_keys_may(one: Planted, two: Planted, keys: Any) -> None:
    one.put(1, **KEYED)
    one.start(2, "a")
    two.put(2.1, job=OTHER_JOB, **{**KEYED, "key": "other"})
    two.start(2.3, "b", job=OTHER_JOB)
    one.end(2.9, "complete", "a")

    assert keys() == set()


def test_one_whose_lease_has_ended_does_not_run_for_certain(
    one: Planted, two: Planted, keys: Any
) -> None:
    one.put(1, **KEYED)
    one.start(2, "a")
    two.put(2.1, job=OTHER_JOB, **KEYED)
    two.start(60, "b", job=OTHER_JOB)

    assert keys() == set()


def test_two_jobs_of_a_key_may_not_wait(one: Planted, keys: Any) -> None:
    one.put(1, **KEYED)
    one.put(2, job=OTHER_JOB, **KEYED)

    assert keys(document("ready"), {**document("waiting"), "_id": OTHER_JOB}) == {"two_of_a_key"}


@pytest.mark.parametrize(
    ("at", "more", "leaked"),
    [
        (2.55, {}, False),  # before the answer to the complete
        (3, {}, True),
        (3, {"unique_for": 5}, False),
        (9, {"unique_for": 5}, True),
    ],
)
def test_a_put_is_refused_only_while_somebody_may_have_the_key(
    one: Planted, two: Planted, keys: Any, at: float, more: dict[str, Any], leaked: bool
) -> None:
    one.put(1, **KEYED, **more)
    one.start(2, "a")
    one.end(2.5, "complete", "a")
    two.put(at, "taken", job=OTHER_JOB, **KEYED)

    assert keys() == ({"key_leaked"} if leaked else set())


@pytest.mark.parametrize("more", [{}, {"unique_until": None}])
def test_what_has_ended_holds_its_key_only_for_a_time(
    one: Planted, keys: Any, more: dict[str, Any]
) -> None:
    one.put(1, **KEYED)

    assert keys(document("dead", held_key="k", **more)) == (set() if more else {"key_leaked"})
