"""Faults about tasks: what a call becomes, and who runs it with what."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

CALLS = "unit/test_calls.py"
PUTS = "contract/test_queue_tasks.py"
WORKER = "worker/test_worker_tasks.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a call whose tuple comes back as a list",
        1,
        f"{CALLS}::test_what_would_come_back_as_something_else_is_refused_with_its_place",
        Edit("protocol.calls:encode_arguments", "    _check_unchanged(task, arguments)\n", ""),
    ),
    PlantedFault(
        "defaults that are stored with a call",
        1,
        f"{CALLS}::test_a_default_is_not_part_of_a_call",
        Edit(
            "protocol.tasks:Takes.bind",
            "    # As the caller",
            "    bound.apply_defaults()\n        # As the caller",
        ),
    ),
    PlantedFault(
        "arguments that somebody changes after the call was made",
        1,
        f"{CALLS}::test_later_changes_of_an_argument_are_not_part_of_a_call",
        Edit(
            "protocol.calls:Call.__init__",
            "self._arguments: dict[str, Any] | None = None",
            "self._arguments: dict[str, Any] | None = dict(arguments)",
        ),
    ),
    PlantedFault(
        "an argument that is taken for the priority",
        10,
        f"{PUTS}::test_an_argument_called_priority_is_no_priority",
        Edit(
            "protocol.put:check_put",
            "        task, encoded = payload.task, payload.encoded\n",
            "        task, encoded = payload.task, payload.encoded\n"
            "        priority = payload.get('priority') if priority is None else priority\n",
        ),
    ),
    PlantedFault(
        "many calls that lose their task",
        1,
        f"{PUTS}::test_many_calls_and_payloads_are_put_together",
        Edit("protocol.puts:check_puts", "named, tasks=tasks)", "named)"),
    ),
    PlantedFault(
        "a task that is none, looked up among those that have names",
        13,
        "unit/test_terms.py::test_what_another_program_stored_as_a_task_is_none",
        Edit("protocol.terms:said_of", "name = text_in(task)", "name: Any = task"),
    ),
    PlantedFault(
        "a call that is put where nobody runs it",
        3,
        f"{PUTS}::test_a_call_of_a_task_of_another_queue_is_refused",
        Edit(
            "protocol.puts:check_puts",
            "            payload.check_queue(queue)\n",
            "",
        ),
    ),
    PlantedFault(
        "a key that is looked for in every task",
        17,
        f"{PUTS}::test_a_key_of_one_task_is_not_that_of_another",
        Edit(
            "protocol.operations.keys.unique:holding",
            '"task": one_of(tasks), ',
            "",
        ),
    ),
    PlantedFault(
        "an upsert that puts a call of another task than it looks for",
        17,
        f"{PUTS}::test_a_key_of_one_task_is_not_that_of_another",
        Edit(
            "protocol.operations.keys.unique:put_unique",
            "(put.task)",
            "(put.task and put.task.upper())",
        ),
    ),
    PlantedFault(
        "a holder that is read as one of no task",
        17,
        f"{PUTS}::test_a_duplicate_is_that_of_its_task",
        Edit("queue.unique:_by_key", 'text_in(holder.get("task"))', "None"),
    ),
    PlantedFault(
        "a schedule that goes on to put calls after it has a payload",
        1,
        f"{PUTS}::test_a_schedule_that_puts_payloads_again_puts_calls_no_more",
        Edit(
            "protocol.operations.settings.schedules:declare",
            '                    "task": "$$REMOVE",  # of an earlier text\n',
            "",
        ),
    ),
    PlantedFault(
        "a handler that is given jobs of unknown tasks",
        13,
        f"{WORKER}::test_a_job_of_an_unknown_task_is_left_as_it_is",
        Edit(
            "worker.queues:RegisteredQueue.of_task",
            "self.by_task.get(task) if",
            "self.by_task.get(task, self.by_task.get(None)) if",
        ),
    ),
    PlantedFault(
        "jobs of former names that are given back",
        3,
        f"{WORKER}::test_a_task_runs_jobs_of_its_former_names",
        Edit(
            "worker.queues:RegisteredQueue.of",
            "in queue.tasks.items()",
            "in queue.tasks.items() if name == handler.name",
        ),
    ),
    PlantedFault(
        "a claim that gives all tasks the same attempts",
        13,
        f"{WORKER}::test_each_task_has_attempts_of_its_own",
        Edit("protocol.operations.claims:_by_queue", "cases += _by_task(queue, said)", "pass"),
    ),
    PlantedFault(
        "a task whose name is read as that of a field",
        14,
        f"{WORKER}::test_each_task_has_attempts_of_its_own",
        Edit("protocol.operations.claims:_by_task", "literal(tasks)", "tasks"),
    ),
    PlantedFault(
        "a limit at a task that is for its queue",
        17,
        f"{WORKER}::test_a_limit_at_a_task_is_of_its_jobs_unless_it_is_of_the_queue",
        Edit(
            "protocol.limits:check_rules",
            '("task" if tasks else "queue")',
            '"queue"',
        ),
    ),
    PlantedFault(
        "a schedule above a task that it cannot call",
        3,
        f"{WORKER}::test_a_task_above_a_schedule_that_does_not_fit_does_not_start",
        Edit(
            "worker.schedules.declared:schedules_of",
            "        if handler.name is not None:\n",
            "        if False:\n",
        ),
    ),
)
