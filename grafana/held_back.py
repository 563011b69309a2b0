"""The row of the Overview about what limits, dead jobs and parents hold back."""

from __future__ import annotations

from panels import Json, table, timeseries
from series import (
    HELD_DEPENDENTS,
    HELD_GROUPS,
    LIMIT,
    SATURATED,
    STARTS_PER_SECOND,
    UNDER_LIMIT,
)


def held_back() -> list[Json]:
    return [
        table(
            "Limits",
            "Each limit as it is now: of which jobs it is, how many run (of the fullest task or "
            "group, if each has a limit) of how many that may, how many may start per second, and "
            "whether jobs are ready that it holds back.",
            {"queue": "Queue", "per": "Per", "task": "Task"},
            {
                "Running": (UNDER_LIMIT, "short"),
                "May run": (LIMIT, "short"),
                "Starts": (STARTS_PER_SECOND, "ops"),
                "Saturated": (SATURATED, "short"),
            },
            sort="Saturated",
            w=12,
        ),
        timeseries(
            "Limits that hold jobs back",
            "1 while the limit of a queue has no room for a job that is ready; of each task or "
            "group, how many have none. That is what a limit is for: compare *Oldest due job by "
            "queue*. Who has said so: `streamqueue limit`.",
            {"{{queue}} per {{per}} {{task}}": SATURATED},
            "short",
            w=6,
        ),
        timeseries(
            "Groups and dependents that are held",
            "Groups whose strict order a dead job holds up, and jobs that wait for a parent that "
            "is dead. Nobody goes on with them until somebody requeues that, or purges it.",
            {"groups {{queue}}": HELD_GROUPS, "dependents {{queue}}": HELD_DEPENDENTS},
            "short",
            w=6,
        ),
    ]
