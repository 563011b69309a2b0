"""The row of the Overview about what limits, dead jobs and parents hold back."""

from __future__ import annotations

from panels import Json, increase, table, timeseries
from series import (
    EACH_POINT,
    HELD_DEPENDENTS,
    HELD_GROUPS,
    LIMIT,
    MISFITS,
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
        timeseries(
            "Jobs left to other workers",
            "Jobs that no worker which runs has taken: their payload does not fit its types "
            "(misfit), or it does not know their task. In a rolling deployment the new workers "
            "take them. Which field, or which task: `streamqueue list --state waiting`.",
            {"{{queue}} {{reason}}": MISFITS},
            "short",
            w=12,
        ),
        timeseries(
            "Jobs that workers leave",
            "How often a worker found a job that it cannot run, and left it to others: each worker "
            f"counts a job of its own. {EACH_POINT}",
            {
                "{{queue}} {{reason}}": increase(
                    "streamqueue_jobs_left_total{@queue}", by="queue, reason"
                )
            },
            "short",
            w=12,
        ),
    ]
