"""The drills of processes and handlers, as short as they can be and still hit something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drills import (
    answers,
    cancellations,
    clocks,
    dispatching,
    hells,
    keys,
    kills,
    poison,
    steps,
    ticks,
    wakeups,
)
from drills.drill import Arena, Drill, Scale, perform

DRILLS = [
    *kills.DRILLS,
    answers.answers_kills,
    keys.keys_kills,
    steps.steps_kills,
    *poison.DRILLS,
    *hells.DRILLS,
    *clocks.DRILLS,
    *cancellations.DRILLS,
    *wakeups.DRILLS,
    pytest.param(ticks.ticks, marks=pytest.mark.slow),
    dispatching.dispatcher_kills,
    pytest.param(dispatching.dispatched_lone_jobs, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def arena(uri: str) -> Iterator[Arena]:
    with Arena(uri) as arena:
        yield arena


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_no_job_is_lost_doubled_or_held_by_two(arena: Arena, drill: Drill) -> None:
    report = perform(drill, arena, Scale.SHORT)

    assert report.problems() == []
