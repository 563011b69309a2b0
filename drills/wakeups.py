"""Nothing sleeps through its wake-up, at whatever moment it comes."""

from __future__ import annotations

from drills.drill import Stage, drill
from drills.programs.lone import LIMIT, waits

PROGRAM = "drills.programs.lone"
LANES = 12
SECONDS_PER_JOB = 0.2


@drill("lone-jobs", lone_jobs=(100, 2000, 10_000), streams_cut=(5, 200, 1000))
def lone_jobs(stage: Stage) -> None:
    """one job at a time around open, reopen, slot-free and due times; no safety sweep"""
    wanted = stage.wanted("lone jobs")
    child = stage.other(PROGRAM, jobs=wanted, lanes=LANES)

    def over() -> bool:
        stage.hits["lone jobs"] = stage.said(child, "waited")
        stage.hits["streams cut"] = stage.said(child, "cut a stream")
        stage.short_of("lone jobs")
        return not child.alive

    stage.wait_for(over, f"the end of {wanted} lone jobs", 30 + SECONDS_PER_JOB * wanted)
    path = stage.history_of(child)
    assert path is not None
    missed = 0
    for kind, seconds in waits(path).items():
        seconds.sort()
        late = [wait for wait in seconds if wait > LIMIT]
        missed += len(late)
        if seconds:
            middle, last = seconds[len(seconds) // 2], seconds[-1]
            stage.note(
                f"{kind}: {len(seconds)} jobs, {len(late)} missed, "
                f"waited {1000 * middle:.0f} ms (p50) to {1000 * last:.0f} ms (longest)"
            )
    assert not missed, f"{missed} jobs were not started within {LIMIT:.0f} s"


DRILLS = [lone_jobs]
