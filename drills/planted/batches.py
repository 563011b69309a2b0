"""Faults about batches: how jobs gather, and that each of them ends by itself."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

TESTS = "worker/test_worker_batches.py::"
BATCHES = "worker.execution.batches"

FAULTS = (
    PlantedFault(
        "a full batch that waits for more",
        11,
        f"{TESTS}test_a_full_batch_waits_for_nothing",
        Edit(
            f"{BATCHES}:Batches.gather",
            "if len(gathering.attempts) == handler.batch:",
            "if False:",
        ),
    ),
    PlantedFault(
        "a job that waits for company for ever",
        3,
        f"{TESTS}test_a_job_without_company_waits_no_longer_than_it_is_told",
        Edit(f"{BATCHES}:Batches.gather", "call_later(handler.batch_wait,", "call_later(3600,"),
    ),
    PlantedFault(
        "a job that gathers through a pause",
        12,
        f"{TESTS}test_a_job_that_gathers_is_given_back_with_its_attempt[pause]",
        Edit(
            "worker.execution.executor:Execution.give_back_unbegun_of",
            "self._batches.take_out(queues)",
            "()",
        ),
    ),
    PlantedFault(
        "a job that gathers through a stop",
        12,
        f"{TESTS}test_a_job_that_gathers_is_given_back_with_its_attempt[stop]",
        Edit(
            "worker.execution.executor:Execution.give_back_unbegun",
            "self._batches.take_out()",
            "()",
        ),
    ),
    PlantedFault(
        "slots that are lost with the jobs that gathered in them",
        3,
        f"{TESTS}test_a_queue_that_goes_on_after_a_pause_has_all_of_its_slots",
        Edit(f"{BATCHES}:Batches.take_out", "self._slots.handler_waits()", "pass"),
    ),
    PlantedFault(
        "a batch that waits for a job that has left it",
        3,
        f"{TESTS}test_a_misfit_is_left_to_others_and_the_rest_goes_on",
        Edit(f"{BATCHES}:Batches.ended", "begun.wait_no_more(attempt)", "pass"),
    ),
    PlantedFault(
        "a batch that waits for ever for a job that a middleware holds back",
        3,
        f"{TESTS}test_a_middleware_that_holds_jobs_back_holds_up_no_others",
        Edit(f"{BATCHES}:_Begun.come", "self._timer = self._later(self._start_call)", "pass"),
    ),
    PlantedFault(
        "a lost job that a batch is given",
        2,
        f"{TESTS}test_a_job_that_is_lost_while_it_waits_for_the_others_is_not_in_the_list",
        Edit(f"{BATCHES}:_Call.leave_out_lost", "if self._lost:", "if False:"),
    ),
    PlantedFault(
        "a lost job that stops the work on all others of its batch",
        16,
        f"{TESTS}test_a_job_that_is_lost_is_out_alone",
        Edit(f"{BATCHES}:_Call._stop", "if all(", "if any("),
    ),
    PlantedFault(
        "a handler that works on for jobs that are all cancelled",
        2,
        f"{TESTS}test_a_handler_is_cancelled_once_all_that_it_has_not_ended_are",
        Edit(f"{BATCHES}:_Call._stop", "if all(", "if False and all("),
    ),
    PlantedFault(
        "a job that has ended while its batch still works on it",
        2,
        f"{TESTS}test_a_job_that_is_cancelled_is_out_alone_and_ends_with_its_batch[returns]",
        Edit(
            f"{BATCHES}:_Call.wait",
            "with CancelScope(shield=True):\n                    await self._over.wait()",
            "pass",
        ),
    ),
    PlantedFault(
        "a failure of a batch that counts for what it has ended",
        16,
        f"{TESTS}test_each_job_passes_the_middleware_with_what_became_of_it",
        Edit(
            f"{BATCHES}:_Call.wait",
            "if self._error is not None and attempt.outcome is None:",
            "if self._error is not None:",
        ),
    ),
    PlantedFault(
        "a traceback that only the first job of a batch has",
        16,
        f"{TESTS}test_an_exception_fails_those_that_have_not_ended",
        Edit(f"{BATCHES}:_Call._whole", "if self._restore is not None:", "if False:"),
    ),
    PlantedFault(
        "results of a batch that nobody gets, and nobody is told",
        16,
        f"{TESTS}test_what_a_handler_returns_is_a_failure_that_says_what_to_do",
        Edit(f"{BATCHES}:_Call.run", "if result is not None:", "if False:"),
    ),
    PlantedFault(
        "a time limit that does not hold for batches",
        16,
        f"{TESTS}test_the_time_limit_of_the_call_fails_those_that_have_not_ended",
        Edit(f"{BATCHES}:Batches._start", "self._limits.begin(attempt, self._context)", "pass"),
    ),
    PlantedFault(
        "an error that a batch holds on to",
        15,
        f"{TESTS}test_nothing_of_a_batch_is_held_after_its_end",
        Edit(f"{BATCHES}:_Call.wait", "self._error = self._restore = None", "pass"),
    ),
    PlantedFault(
        "a batch that its slots can never hold",
        18,
        f"{TESTS}test_slots_that_a_task_takes_from_its_queue_are_noticed_when_the_worker_starts",
        Edit(
            "worker.settings:Settings.check_handlers",
            "queue.check_batch(self.options.concurrency)",
            "pass",
        ),
    ),
)
