"""The drills of processes and handlers, as short as they can be and still hit something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import cancellations, clocks, dealing, kills, poison, wakeups
from tests.faults.drill import Arena, Drill, Scale, perform

DRILLS = [
    *kills.DRILLS,
    *poison.DRILLS,
    *clocks.DRILLS,
    *cancellations.DRILLS,
    *wakeups.DRILLS,
    dealing.dealer_kills,
    dealing.dealt_lone_jobs,
]


@pytest.fixture(scope="module")
def arena(uri: str) -> Iterator[Arena]:
    with Arena(uri) as arena:
        yield arena


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_no_job_is_lost_doubled_or_held_by_two(arena: Arena, drill: Drill) -> None:
    report = perform(drill, arena, Scale.SHORT)

    assert report.problems() == []
