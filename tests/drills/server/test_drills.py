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
    pytest.param(answers.answers_kills, marks=pytest.mark.slow),
    keys.keys_kills,
    pytest.param(steps.steps_kills, marks=pytest.mark.slow),
    *poison.DRILLS,
    *hells.DRILLS,
    *(pytest.param(each, marks=pytest.mark.slow) for each in clocks.DRILLS),
    *(pytest.param(each, marks=pytest.mark.slow) for each in cancellations.DRILLS),
    *wakeups.DRILLS,
    pytest.param(ticks.ticks, marks=pytest.mark.slow),
    dispatching.dispatcher_kills,
    pytest.param(dispatching.dispatched_lone_jobs, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def arena(uri: str) -> Iterator[Arena]:
    with Arena(uri) as arena:
        yield arena


@pytest.mark.few(5)
@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_no_job_is_lost_doubled_or_held_by_two(arena: Arena, drill: Drill) -> None:
    report = perform(drill, arena, Scale.SHORT)

    assert report.problems() == []
