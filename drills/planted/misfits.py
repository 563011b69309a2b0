"""Payloads that do not fit, and tasks that are not known: left to others, and not for ever."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

MISFITS = "worker/test_worker_misfits.py"
TASKS = "worker/test_worker_unknown_tasks.py"
FITTING = "unit/test_fitting.py"

FAULTS = (
    PlantedFault(
        "a misfit that uses an attempt",
        1,
        f"{MISFITS}::test_a_payload_that_does_not_fit_is_left_to_others_without_an_attempt",
        Edit(
            "protocol.operations.misfits:park_misfit",
            '        "attempts": {"$max": [0, {"$subtract": [count_of("attempts", 1), 1]}]},\n',
            "",
        ),
    ),
    PlantedFault(
        "a misfit that is given back to those whom it does not fit",
        3,
        f"{MISFITS}::test_a_misfit_is_not_written_to_while_nobody_can_run_it",
        Edit(
            "queue.outcome:write_of",
            'operations.park_misfit(*held, end.message or "")',
            "operations.release(*held, None)",
        ),
    ),
    PlantedFault(
        "a worker that starts and does not look for what was left to it",
        3,
        f"{MISFITS}::test_a_worker_that_starts_runs_what_was_left_to_it",
        Edit("worker.misfits:Misfits.__init__", "self._some = True", "self._some = False"),
        Edit("worker.misfits:Misfits.opened", "        self._some = True\n", ""),
    ),
    PlantedFault(
        "a worker that does not hear of what is left to it",
        4,
        f"{MISFITS}::test_a_worker_that_runs_hears_of_what_is_left_to_it",
        Edit("worker.listener:WorkerListener.event", "if change.left:", "if False:"),
    ),
    PlantedFault(
        "a worker that claims again at once what it has left",
        10,
        f"{MISFITS}::test_a_rolling_deployment_ends_with_every_job_done",
        Edit("store.left:LeftToOthers.__contains__", "monotonic() < until", "False"),
    ),
    PlantedFault(
        "a misfit that waits for ever",
        3,
        f"{MISFITS}::test_a_misfit_for_which_nobody_comes_is_dead_with_the_field_named",
        Edit(
            "store.flows.misfits:look_for_left",
            "operations.left_for(job) >= grace]",
            "False]",
        ),
    ),
    PlantedFault(
        "a misfit that is let through by the end of the attempt that left it",
        3,
        f"{MISFITS}::test_what_replaces_the_payload_of_a_misfit_is_run_at_once",
        Edit(
            "protocol.operations.held_back",
            '{f"{WAITS_FOR}.parents": {"$exists": False}, **NOT_LEFT}',
            '{f"{WAITS_FOR}.parents": {"$exists": False}}',
        ),
    ),
    PlantedFault(
        "a requeued misfit without a grace",
        3,
        f"{MISFITS}::test_a_dead_misfit_that_is_requeued_has_the_whole_grace_again",
        Edit(
            "protocol.operations.misfits:bury_misfits",
            '        MISFIT_AT: "$$REMOVE",\n',
            "",
        ),
        Edit("protocol.operations.deaths", '*("expires_at", "misfit_at")', '*("expires_at",)'),
    ),
    PlantedFault(
        "a misfit that shows a key of somebody's",
        14,
        f"{FITTING}::test_a_misfit_names_the_field_and_no_value",
        Edit(
            "protocol.fitting.libraries:_place", "if part in names else ITEM", "if part else ITEM"
        ),
    ),
    PlantedFault(
        "a job of an unknown task that is claimed when its event comes",
        1,
        f"{TASKS}::test_a_job_of_an_unknown_task_is_not_claimed_however_it_comes",
        Edit(
            "worker.claimer:Claimer.announce",
            "if not self._store.left.sift([dict(job)]):",
            "if False:",
        ),
    ),
    PlantedFault(
        "jobs of unknown tasks that hide those behind them",
        3,
        f"{TASKS}::test_a_known_task_behind_many_unknown_ones_starts_at_once",
        Edit(
            "store.flows.head:_head",
            "behind = which._replace(known=True)",
            "behind = which",
        ),
    ),
    PlantedFault(
        "jobs of unknown tasks that die of the grace of misfits",
        1,
        f"{TASKS}::test_jobs_of_unknown_tasks_do_not_die_of_the_grace",
        Edit(
            "protocol.operations.misfits:misfits",
            '{**_left(queues), f"{WAITS_FOR}.{MISFIT}": {"$exists": True}}',
            "_left(queues)",
        ),
        Edit(
            "protocol.operations.misfits:bury_misfits",
            '        f"{WAITS_FOR}.{MISFIT}": {"$type": "string"},\n',
            "",
        ),
    ),
    PlantedFault(
        "what is noted of a type in a model, taken for a type that has a hash",
        18,
        f"{FITTING}::test_a_misfit_names_the_field_and_no_value",
        Edit(
            "protocol.fitting.libraries:_names_in",
            "    if is_model(kind):\n",
            "    if kind in seen:\n        return names\n    if is_model(kind):\n",
        ),
    ),
)
