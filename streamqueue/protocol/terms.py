"""What a consumer says of the jobs that it claims where they do not say it: of a queue, or by task.

A claim reads nothing of a job but its place, so what it writes by the task of a job is an
expression; whoever has read the job asks for what is said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from .stored import text_in

Said = TypeVar("Said")


@dataclass(frozen=True, slots=True)
class ByTask(Generic[Said]):
    """What is said of the jobs of a queue by their tasks.

    Attributes:
        others: of jobs without a task, and of those of tasks of which nothing is said.
        tasks: of the jobs of each task.
    """

    others: Said
    tasks: Mapping[str, Said]


LimitOf = Callable[[str], int | ByTask[int]]
"""Says, for a queue, how many attempts a job has that does not say."""
KeepOf = Callable[[str], float | ByTask[float | None] | None]
"""Says, for a queue, how long a job stays that does not say."""


def said_of(said: Said | ByTask[Said], task: object) -> Said:
    """Return what is said of a job of this task."""
    if not isinstance(said, ByTask):
        return said
    name = text_in(task)
    return said.others if name is None else said.tasks.get(name, said.others)
