"""What a consumer says of jobs that do not say it, by their tasks."""

from __future__ import annotations

from typing import Any

import pytest
from bson.code import Code

from streamqueue.protocol.terms import ByTask, said_of

BY_TASK: int | ByTask[int] = ByTask(3, {"resize": 5})


@pytest.mark.parametrize(("task", "said"), [("resize", 5), ("crop", 3), (None, 3)], ids=str)
def test_what_is_said_of_a_job_is_that_of_its_task_or_of_all_others(task: Any, said: int) -> None:
    assert said_of(BY_TASK, task) == said


@pytest.mark.parametrize("task", [Code("resize"), 5, ["resize"], {"resize": 1}], ids=ascii)
def test_what_another_program_stored_as_a_task_is_none(task: Any) -> None:
    assert said_of(BY_TASK, task) == 3


def test_what_is_said_of_a_queue_holds_for_all_of_its_tasks() -> None:
    assert said_of(7, "resize") == 7
