"""Faults in steps."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

STEPS = "contract/test_queue_steps.py"
TRANSACTIONS = "contract/test_queue_step_transactions.py"
WORKER = "worker/test_worker_steps.py"
DRILL = "drills/server/test_drills.py::test_no_job_is_lost_doubled_or_held_by_two[steps-kills]"
WRITE = "protocol.operations.attempts:store_step"
RUN = "queue.steps:StepsView._run_step"
STEP = "queue.steps:StepsView._step"
STATE = "protocol.steps:Steps"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a step stored by whoever has lost the lease",
        2,
        f"{STEPS}::test_a_step_of_a_lost_lease_is_not_stored",
        Edit(WRITE, "Update(held(job_id, token), ", 'Update({"_id": job_id}, '),
    ),
    PlantedFault(
        "a step that is stored once more when the write is repeated",
        7,
        f"{STEPS}::test_a_write_of_unknown_outcome_is_repeated_until_it_is_certain",
        Edit(WRITE, '{"$cond": [is_there, "$steps", added]}', "added"),
    ),
    PlantedFault(
        "the result of a step evaluated as an expression",
        14,
        f"{STEPS}::test_the_first_attempt_is_given_what_later_ones_are",
        Edit("protocol.result:encode_value", '{"$literal": value}', '{"$ifNull": [value, None]}'),
        Edit("protocol.result:decode_result", '["$literal"]', '["$ifNull"][0]'),
    ),
    PlantedFault(
        "the first attempt given what the function returned",
        2,
        f"{STEPS}::test_the_first_attempt_is_given_what_later_ones_are",
        Edit(RUN, "value = yield call()", "self.last = value = yield call()"),
        Edit(STEP, "return decode_result(bytes(encoded.raw))", "return self.last"),
        Edit("queue.steps:StepsView", "    __slots__ = ()\n", '    __slots__ = ("last",)\n'),
    ),
    PlantedFault(
        "a stored result of None taken for none",
        1,
        f"{STEPS}::test_a_result_of_none_is_a_result",
        Edit(STEP, "if name in steps:", "if name in steps and steps.result(name) is not None:"),
    ),
    PlantedFault(
        "a name that an attempt may use twice",
        1,
        f"{STEPS}::test_a_name_used_twice_in_an_attempt_is_refused_before_anything_is_run",
        Edit(f"{STATE}.use", "raise used_twice(name)", "pass"),
    ),
    PlantedFault(
        "a step inside a step",
        1,
        f"{STEPS}::test_a_step_inside_a_step_is_refused_and_the_outer_one_fails",
        Edit(
            "queue.steps:StepsView._check_step",
            "if (self._record.id, self._record.token) in _inside.get():",
            "if False:",
        ),
    ),
    PlantedFault(
        "a step of a job that has ended",
        2,
        f"{STEPS}::test_after_the_end_of_the_job_no_step_is_run",
        Edit("queue.steps:StepsView._check_step", "if self._ended:", "if False:"),
    ),
    PlantedFault(
        "a write of a step whose outcome nobody learns, and nobody asks",
        7,
        f"{STEPS}::test_a_write_of_unknown_outcome_is_repeated_until_it_is_certain",
        Edit("store.flows.stored_steps:store_step", "if left <= 0:", "if True:"),
    ),
    PlantedFault(
        "a write of a step that is tried for ever",
        3,
        f"{STEPS}::test_a_write_of_unknown_outcome_ends_with_the_lease[async]",
        Edit("store.flows.stored_steps:store_step", "if left <= 0:", "if False:"),
        Edit("store.flows.stored_steps:store_step", "min(AGAIN.delay(tries), left)", "0.05"),
    ),
    PlantedFault(
        "the result of a step that cannot be stored, tried again",
        15,
        f"{STEPS}::test_a_result_that_cannot_be_stored_makes_the_job_dead_at_once",
        Edit(
            "queue.steps:StepsView._unless_dead",
            'yield self._holder.end(self._record, End("discarded", str(problem)))',
            "pass",
        ),
    ),
    PlantedFault(
        "steps that are too large together",
        15,
        f"{STEPS}::test_results_of_more_than_4_mb_together_make_the_job_dead_in_whichever_attempt",
        Edit(
            f"{STATE}._all_sizes",
            "{name: _size(each) for name, each in self._stored.items()}",
            "{}",
        ),
    ),
    PlantedFault(
        "a step beyond the last that is run before it is refused",
        15,
        f"{STEPS}::test_more_than_a_thousand_steps_make_the_job_dead_before_the_next_is_run",
        Edit(RUN, "yield from self._unless_dead(partial(steps.check_room, name), session)", "pass"),
    ),
    PlantedFault(
        "a look that moves the results of steps",
        15,
        f"{STEPS}::test_a_look_moves_no_results_of_steps",
        Edit("protocol.operations.awaited", '("lease", "steps.result")', '("lease",)'),
    ),
    PlantedFault(
        "a step that does not hear of a cancel",
        2,
        f"{STEPS}::test_a_step_learns_that_the_job_is_to_be_cancelled_and_is_stored",
        Edit("queue.ends:Ends.store_step", "record.asked = asked", "pass"),
    ),
    PlantedFault(
        "a fresh start with the old steps",
        1,
        f"{STEPS}::test_requeue_keeps_the_steps_and_with_fresh_it_takes_them_away",
        Edit("protocol.operations.deaths:requeue", "if fresh:", "if False:"),
    ),
    PlantedFault(
        "a step of a transaction that is stored beside it",
        1,
        f"{TRANSACTIONS}::test_a_step_is_not_stored_when_its_transaction_is_aborted",
        Edit(
            "store.flows.stored_steps:store_step_in",
            "LONGEST_WRITE, _ASKED, session",
            "LONGEST_WRITE, _ASKED, None",
        ),
    ),
    PlantedFault(
        "a step that was aborted and may not be called again",
        3,
        f"{TRANSACTIONS}::test_what_was_aborted_may_be_called_again_in_the_same_attempt",
        Edit(f"{STATE}.use", "not (in_transaction and name in self._in_transactions)", "True"),
    ),
    PlantedFault(
        "a step that was committed and may be called again",
        1,
        f"{TRANSACTIONS}::test_what_was_not_aborted_may_not_be_called_again",
        Edit(STEP, "if not first and (yield", "if False and (yield"),
    ),
    PlantedFault(
        "a call of the job that waits for its own transaction",
        3,
        f"{TRANSACTIONS}::test_while_the_transaction_is_open_any_other_call_is_refused_and_waits_for"
        "_nothing",
        Edit(RUN, "self._step_session = session", "pass"),
    ),
    PlantedFault(
        "a job that cannot be buried, for its own transaction",
        3,
        f"{TRANSACTIONS}::test_what_cannot_be_stored_makes_the_job_dead_and_leaves_no_effect",
        Edit("queue.steps:StepsView._unless_dead", "yield session.abort_transaction()", "pass"),
    ),
    PlantedFault(
        "a lease that nobody renews between transactions of steps",
        3,
        f"{WORKER}::test_transactions_of_steps_behind_one_another_may_outlast_the_lease",
        Edit("worker.steps", "DUE_SHARE = 0.5", "DUE_SHARE = 0.0"),
    ),
    PlantedFault(
        "a blocking step that blocks the event loop",
        16,
        f"{WORKER}::test_a_blocking_step_of_an_async_handler_does_not_block_the_loop",
        Edit(
            "queue.steps:_awaited",
            "await holder.in_thread(partial(function, *arguments))",
            "function(*arguments)",
        ),
    ),
    PlantedFault(
        "a thread of a step left behind by its cancelled handler",
        16,
        f"{WORKER}::test_a_step_in_a_thread_keeps_its_job_until_it_returns_when_that_is_cancelled",
        Edit("worker.execution.threads:Threads.run_to_its_end", "shield=True", "shield=False"),
    ),
    PlantedFault(
        "a worker's step that does not hear of a cancel",
        2,
        f"{WORKER}::test_a_step_learns_that_its_job_is_to_be_cancelled",
        Edit("worker.steps:StepEnds.store_step", "if asked:", "if False:"),
    ),
    PlantedFault(
        "a claim without the steps of earlier attempts",
        1,
        f"{WORKER}::test_each_step_runs_once_though_the_attempts_fail_in_between",
        Edit(
            "protocol.document:JobRecord.from_document",
            'steps=Steps.of_field(get("steps"))',
            "steps=None",
        ),
    ),
    PlantedFault(
        "a step that is run again, in the midst of kills",
        1,
        DRILL,
        Edit(STEP, "if name in steps:", "if False:"),
    ),
)
