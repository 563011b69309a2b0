"""What is said of the progress of an attempt: what is written, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamqueue.protocol import progress
from streamqueue.protocol.progress import Progress, progress_of
from tests.locks import HadBefore


def test_what_is_said_is_written_once_and_then_is_nothing_new() -> None:
    said = Progress()
    said.say(5, "half")

    fields = said.begin(now=0)
    said.end(fields, settled=True)

    assert fields == {"progress": 5, "note": "half"}
    assert said.unstored == {}
    assert said.begin(now=1) == {}


def test_no_write_begins_beside_another_and_what_was_said_meanwhile_goes_with_the_next() -> None:
    said = Progress()
    said.say(1, None)
    first = said.begin(now=0)
    said.say(2, None)

    beside = said.begin(now=1)
    said.end(first, settled=True)

    assert (first, beside) == ({"progress": 1}, {})
    assert said.begin(now=2) == {"progress": 2}


def test_the_end_of_a_write_that_was_none_ends_no_other() -> None:
    said = Progress()
    said.say(1, None)
    said.begin(now=0)

    said.end(said.begin(now=1), settled=True)

    assert said.unstored == {"progress": 1}
    assert said.due_at == float("inf")


def test_what_could_not_be_written_goes_with_the_next_write() -> None:
    said = Progress()
    said.say(1, None)
    said.end(said.begin(now=0), settled=False)

    assert said.begin(now=1) == {"progress": 1}


def test_only_who_is_first_to_say_something_is_told_to_have_it_written() -> None:
    said = Progress()

    assert said.say(1, None)
    assert not said.say(2, None)
    assert said.say(None, None)  # a call without a value is to extend the lease
    said.begin(now=0)
    assert said.say(3, None)


def test_of_two_threads_that_speak_first_both_have_what_the_faster_one_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record: Any = SimpleNamespace(progress=None)
    of_the_faster = Progress()

    before = HadBefore(lambda: setattr(record, "progress", of_the_faster))
    monkeypatch.setattr(progress, "_first", before)

    assert progress_of(record, 1) is of_the_faster
    assert progress_of(record, 1) is of_the_faster


def test_a_job_has_one_progress_from_the_first_call_on() -> None:
    record: Any = SimpleNamespace(progress=None)

    assert progress_of(record, 1) is progress_of(record, 1)
