"""Which queues are counted when there are more than may be."""

from __future__ import annotations

import pytest

from streamqueue.exporter import roll
from streamqueue.exporter.roll import Roll

MADE_UP = {f"0{number:03}" for number in range(300)}


def test_without_too_many_all_are_counted() -> None:
    assert sorted(Roll().choose({"b", "a"}, {"c"}, 3)) == ["a", "b", "c"]


def test_what_a_worker_serves_comes_before_names_that_sort_first() -> None:
    queues = Roll()

    chosen = queues.choose({*MADE_UP, "zeta"}, {"zeta"}, 200)

    assert chosen[0] == "zeta"
    assert len(chosen) == 200
    assert queues.left_out == 101


def test_what_was_shown_before_is_not_pushed_out_by_new_names() -> None:
    queues = Roll()
    queues.counted({"zeta"}, {"empty"})

    chosen = queues.choose({*MADE_UP, "zeta"}, set(), 200)

    assert {"zeta", "empty"} <= set(chosen)


def test_what_is_served_comes_before_what_was_shown() -> None:
    queues = Roll()
    queues.counted(MADE_UP, set())

    assert queues.choose(MADE_UP, {"zeta"}, 200)[0] == "zeta"


def test_what_has_been_empty_for_an_hour_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(roll, "monotonic", lambda: now)
    queues = Roll()
    queues.counted({"emails", "reports"}, set())
    now = 3500
    queues.counted({"reports"}, {"emails"})
    assert queues.shown == {"emails", "reports"}

    now = 3700
    queues.counted({"reports"}, {"emails"})

    assert queues.shown == {"reports"}
