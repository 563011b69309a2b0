"""Faults about what stands around handlers: middleware, lifespan, and what is told of the dead."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

MIDDLEWARE = "worker/test_worker_middleware.py::"
LIFESPAN = "worker/test_worker_lifespan.py::"
FAILING = "worker/test_worker_failing.py::"
ON_DEAD = "worker/test_worker_on_dead.py::"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a result that falls with a middleware that raises after it",
        16,
        f"{MIDDLEWARE}test_the_result_stands_when_one_raises_after_the_handler",
        Edit(
            "worker.execution.middleware:Around._call",
            "            if not handling.returned:\n                raise\n",
            "            raise\n",
        ),
    ),
    PlantedFault(
        "a failure that a middleware catches and that counts as a success",
        1,
        f"{MIDDLEWARE}test_a_failure_stands_though_one_catches_it",
        Edit(
            "worker.execution.middleware:Around._call",
            "        if handling.error is not None:\n            raise handling.error",
            "        if handling.error is not None:\n            return None",
        ),
    ),
    PlantedFault(
        "a job that is done although a middleware did not have it handled",
        16,
        f"{MIDDLEWARE}test_a_job_whose_handler_was_not_called_has_failed",
        Edit(
            "worker.execution.middleware:Around._call",
            "if not (attempt.outcome or handling.job._ended):",
            "if False:",
        ),
    ),
    PlantedFault(
        "a handler that a middleware calls twice in an attempt",
        2,
        f"{MIDDLEWARE}test_a_handler_is_called_once_in_an_attempt",
        Edit("worker.execution.middleware:_Next.__call__", "if self.called:", "if False:"),
    ),
    PlantedFault(
        "a handler that is called after its attempt",
        2,
        f"{MIDDLEWARE}test_nothing_is_handled_after_the_attempt",
        Edit("worker.execution.middleware:_Next.__call__", "if self._handling.over:", "if False:"),
    ),
    PlantedFault(
        "a handler that is left running by a middleware",
        16,
        f"{MIDDLEWARE}test_a_handler_that_is_left_running_is_cancelled_and_its_attempt_has_failed",
        Edit(
            "worker.execution.middleware:_Handling.close",
            "if self._task is not None:",
            "if False:",
        ),
    ),
    PlantedFault(
        "a handler that is called within its middleware once the lease is lost",
        2,
        f"{MIDDLEWARE}test_the_handler_is_not_called_once_the_lease_is_lost",
        Edit(
            "worker.execution.executor:Execution._handle",
            "if attempt.lost or monotonic() >= attempt.deadline:",
            "if False:",
        ),
    ),
    PlantedFault(
        "threads that no middleware stands around",
        16,
        f"{MIDDLEWARE}test_a_job_passes_them_wherever_its_handler_runs",
        Edit(
            "worker.execution.executor:Execution._call",
            "if self._around is not None:\n                attempt.scope",
            'if self._around is not None and handler.run_in != "thread":\n'
            "                attempt.scope",
        ),
    ),
    PlantedFault(
        "a result in time that falls with the limit of what comes after it",
        16,
        f"{MIDDLEWARE}test_a_result_in_time_stands_though_the_limit_stops_what_comes_after_it",
        Edit(
            "worker.execution.executor:Execution._call",
            "if error is not None or self._around is None:",
            "if True:",
        ),
    ),
    PlantedFault(
        "a lifespan that is closed before the handlers have ended",
        12,
        f"{LIFESPAN}test_it_is_closed_after_the_last_handler",
        Edit(
            "worker.lifespan:open_lifespan",
            "            yield keeper.context\n",
            "            keeper.close(in_order=True)\n            yield keeper.context\n",
        ),
    ),
    PlantedFault(
        "a lifespan that a cancelled run does not close",
        12,
        f"{LIFESPAN}test_a_run_that_is_cancelled_closes_it",
        Edit("worker.lifespan:_Keeper.__init__", "CancelScope(shield=True)", "CancelScope()"),
    ),
    PlantedFault(
        "an error of a lifespan's end that nobody learns",
        12,
        f"{LIFESPAN}test_an_error_of_its_end_is_logged_and_raised",
        Edit("worker.lifespan:_Keeper._failed", "if self._in_order:", "if False:"),
    ),
    PlantedFault(
        "a lifespan that takes as long to close as it likes",
        12,
        f"{LIFESPAN}test_an_error_of_its_end_is_logged_and_raised",
        Edit(
            "worker.lifespan:_Keeper.close",
            "self._scope.deadline = anyio.current_time() + GRACE",
            "pass",
        ),
    ),
    PlantedFault(
        "a handler in a child process that is promised a lifespan",
        16,
        f"{LIFESPAN}test_a_handler_in_a_child_process_has_none_and_is_refused",
        Edit(
            "worker.handling:check_place",
            'if place == "process" and settings.lifespan is not None:',
            "if False:",
        ),
    ),
    PlantedFault(
        "an error to discard on that is retried",
        13,
        f"{FAILING}test_discard_comes_before_retry",
        Edit(
            "worker.failing:Failing.decide",
            "if any(self.discard_on & one for one in names):",
            "if self.retry_on is None and any(self.discard_on & one for one in names):",
        ),
    ),
    PlantedFault(
        "a group of errors of which one is enough to retry it",
        13,
        f"{FAILING}test_with_errors_to_retry_on_those_alone_are_retried",
        Edit("worker.failing:Failing.decide", "not all(self.retry_on", "not any(self.retry_on"),
    ),
    PlantedFault(
        "what a handler asked for that its errors overrule",
        13,
        f"{FAILING}test_what_a_handler_asks_for_is_left_as_it_is",
        Edit("worker.failing:Failing.decide", "if names and not end.asked:", "if names:"),
    ),
    PlantedFault(
        "a killed child process that counts as an error of its handler",
        13,
        f"{FAILING}test_a_child_process_that_has_ended_is_no_error_of_the_handler",
        Edit(
            "worker.execution.outcomes:_names_of",
            "() if issubclass(type(error), OF_THE_CHILD) else names_of(error)",
            "names_of(error)",
        ),
    ),
    PlantedFault(
        "a backoff function whose error ends the attempt otherwise",
        16,
        f"{FAILING}test_a_function_that_gives_no_seconds_leaves_it_to_the_workers_backoff",
        Edit(
            "worker.failing:Failing._delay",
            "except BaseException as problem:",
            "except ConfigurationError as problem:",
        ),
    ),
    PlantedFault(
        "a death that is told twice",
        13,
        f"{ON_DEAD}test_a_job_whose_attempts_are_used_up_is_told_once",
        Edit(
            "worker.ends:Ends.end",
            "self._deaths.tell(told, record, end.message, end.error)",
            "[self._deaths.tell(told, record, end.message, end.error) for _ in range(2)]",
        ),
    ),
    PlantedFault(
        "deaths without a limit to how many wait to be told",
        15,
        f"{ON_DEAD}test_no_more_than_some_wait_to_be_told",
        Edit("worker.deaths:Deaths.tell", "if len(self._waiting) >= MOST_WAITING:", "if False:"),
    ),
    PlantedFault(
        "a stop that waits for ever for what is told of the dead",
        12,
        f"{ON_DEAD}test_a_stop_does_not_wait_for_ever",
        Edit("worker.deaths:Deaths.close", "anyio.move_on_after(GRACE)", "CancelScope()"),
    ),
    PlantedFault(
        "an exit out of on_dead that ends the worker",
        16,
        f"{ON_DEAD}test_an_error_in_it_is_logged_and_ends_nothing",
        Edit("worker.deaths:Deaths._call", "except BaseException as", "except Exception as"),
    ),
)
