"""The drills of servers and connections, as short as they can be and still hit something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from drills.answers import answers_cuts, answers_step_downs
from drills.dependencies import dependencies
from drills.dispatching import dispatcher_cuts
from drills.drill import Arena, Drill, Scale, perform
from drills.held import held_at_random
from drills.keys import keys_step_downs
from drills.long_outages import a_days_outage
from drills.servers import failovers
from drills.steps import steps_step_downs
from drills.streams import oplog
from drills.topics import topics
from drills.wires import cuts, wedged_streams

SLOW = (
    answers_cuts,
    answers_step_downs,
    topics,
    keys_step_downs,
    steps_step_downs,
    dependencies,
    wedged_streams,
    oplog,
    dispatcher_cuts,
    held_at_random,
    a_days_outage,
)
DRILLS = [failovers, cuts, *(pytest.param(drill, marks=pytest.mark.slow) for drill in SLOW)]


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


@pytest.mark.few(1)
@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_no_job_is_lost_doubled_or_held_by_two(arena: Arena, drill: Drill) -> None:
    report = perform(drill, arena, Scale.SHORT)

    assert report.problems() == []
