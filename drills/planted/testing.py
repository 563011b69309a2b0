"""Faults in the end of a run that has nothing left to do, and in what is there for users' tests."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

EMPTY = "worker/test_worker_until_empty.py"
RUNS = "testing/test_runs.py"
TIME = "testing/test_passing_time.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a run that ends though a job runs elsewhere",
        1,
        f"{EMPTY}::test_a_job_that_another_process_gives_back_is_done",
        Edit(
            "worker.until_empty:UntilEmpty._count",
            "return due + ready + found[operations.RUNNING]",
            "return due + ready",
        ),
    ),
    PlantedFault(
        "a run that counts again and again while a job runs elsewhere",
        6,
        f"{EMPTY}::test_what_runs_in_another_process_is_waited_for_without_asking_again_and_again",
        Edit(
            "worker.until_empty:UntilEmpty._until_empty",
            "anyio.move_on_after(TICK_PAUSE if ticks else None)",
            "anyio.move_on_after(TICK_PAUSE)",
        ),
    ),
    PlantedFault(
        "a run that ends before those are let through that come after its last job",
        1,
        f"{EMPTY}::test_what_comes_after_the_last_job_is_done_too",
        Edit("worker.until_empty:UntilEmpty._idle", " or self._completer.lets_through", ""),
    ),
    PlantedFault(
        "a run that ends though a tick is due",
        6,
        f"{EMPTY}::test_a_tick_that_is_due_is_waited_for",
        Edit(
            "worker.until_empty:UntilEmpty._until_empty",
            "ticks = not left and await self._awaits_ticks()",
            "ticks = False",
        ),
    ),
    PlantedFault(
        "a run that waits for the jobs of paused queues",
        3,
        f"{EMPTY}::test_what_waits_for_later_or_is_paused_is_named_and_left",
        Edit(
            "protocol.operations.emptiness:left_in",
            "(READY, _of(queues, State.READY))",
            "(READY, _of(every, State.READY))",
        ),
    ),
    PlantedFault(
        "a worker that works on all of its queues whatever the command line chose",
        16,
        "cli/test_worker_choices.py::test_a_worker_of_some_of_its_queues_leaves_the_others_alone",
        Edit("cli.services:worker", "if options.queues is not None:", "if False:"),
    ),
    PlantedFault(
        "a run in a test that swallows failures",
        1,
        f"{RUNS}::test_the_first_failure_is_raised_as_it_was_with_its_job_and_the_line_of_the_handler",
        Edit(
            "testing.runs:run_until_empty",
            'if observed.failed and failures == "raise":',
            "if False:",
        ),
    ),
    PlantedFault(
        "a failure that is raised without the line of the handler",
        1,
        f"{RUNS}::test_the_first_failure_is_raised_as_it_was_with_its_job_and_the_line_of_the_handler",
        Edit("testing.runs:_to_raise", "    restore()\n", ""),
    ),
    PlantedFault(
        "a job that puts itself and runs for ever in a test",
        15,
        f"{RUNS}::test_a_job_that_puts_itself_ends_at_the_limit",
        Edit("testing.runs:Observed.begins", "if self._begun == self._limit:", "if False:"),
    ),
    PlantedFault(
        "time that passes and leaves the leases as they were",
        8,
        f"{TIME}::test_a_lease_ends_when_its_time_has_passed",
        Edit("protocol.operations.passing_time", '"locked_until",', ""),
    ),
    PlantedFault(
        "time that passes and leaves the schedules as they were",
        8,
        f"{TIME}::test_a_schedule_fires_when_its_time_has_passed",
        Edit("protocol.operations.passing_time", '("last_tick", "next_tick", ', '("next_tick", '),
    ),
    PlantedFault(
        "a made job whose payload was not sent through BSON",
        14,
        "testing/test_made_jobs.py::test_a_payload_has_been_through_bson_and_back",
        Edit(
            "testing.made_jobs",
            "bson.decode(encode_payload(content), CODEC)",
            "dict(content)",
        ),
    ),
    PlantedFault(
        "a client for tests that nobody closes",
        15,
        "testing/test_plugin.py::test_async_tests_run_with_anyio",
        Edit("driver:ClosedWithItsLoop._close_at_the_end", "await self.client.close()", "pass"),
    ),
)
