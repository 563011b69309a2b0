"""The steps of a held job, as its handlers share them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamqueue.protocol import steps
from streamqueue.protocol.steps import Steps, steps_of
from tests.locks import HadBefore


def test_a_job_without_steps_has_them_from_the_first_call_on() -> None:
    record: Any = SimpleNamespace(steps=None)

    assert steps_of(record) is steps_of(record)


def test_of_two_threads_with_a_first_step_both_have_what_the_faster_one_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record: Any = SimpleNamespace(steps=None)
    of_the_faster = Steps()

    before = HadBefore(lambda: setattr(record, "steps", of_the_faster))
    monkeypatch.setattr(steps, "_first", before)

    assert steps_of(record) is of_the_faster
