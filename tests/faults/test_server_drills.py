"""The drills of servers and connections, as short as they can be and still hit something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.dealing import dealer_cuts
from tests.faults.drill import Arena, Drill, Scale, perform
from tests.faults.servers import failovers
from tests.faults.streams import oplog
from tests.faults.wires import cuts, wedged_streams

DRILLS = [failovers, cuts, wedged_streams, oplog, dealer_cuts]


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name)
def test_no_job_is_lost_doubled_or_held_by_two(arena: Arena, drill: Drill) -> None:
    report = perform(drill, arena, Scale.SHORT)

    assert report.problems() == []
