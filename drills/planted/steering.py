"""Faults about what is said of jobs and done to them: progress, other times, limits in time."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

PROGRESS = "contract/test_queue_progress.py"
IN_A_WORKER = "worker/test_worker_progress.py"
STEERING = "contract/test_queue_steering.py"
EXPIRY = "contract/test_queue_expiry.py"
TOO_LATE = "worker/test_worker_expiry.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a write for every call of progress",
        15,
        f"{PROGRESS}::test_many_calls_share_few_writes",
        Edit("queue.ends:Ends.progress", "not renews and now < said.due_at", "False"),
    ),
    PlantedFault(
        "a lease that is left to end while progress is kept",
        2,
        f"{PROGRESS}::test_a_call_that_says_nothing_renews_the_lease_at_once",
        Edit("queue.ends:Ends.progress", "not renews and now < said.due_at", "now < said.due_at"),
    ),
    PlantedFault(
        "the last progress before a death forgotten",
        7,
        f"{IN_A_WORKER}::test_a_hundred_thousand_calls_are_few_writes_and_the_last_is_stored",
        Edit(
            "worker.ends:Ends._end",
            "        command = operations.with_progress(command, attempt.record.unstored)\n",
            "",
        ),
    ),
    PlantedFault(
        "progress written whenever leases are renewed",
        15,
        f"{IN_A_WORKER}::test_a_hundred_thousand_calls_are_few_writes_and_the_last_is_stored",
        Edit(
            "worker.leases:Leases._take_due", "(now if attempt.record.unstored else soon)", "soon"
        ),
    ),
    PlantedFault(
        "merged progress that waits for the event loop",
        15,
        f"{IN_A_WORKER}"
        "::test_calls_of_a_blocking_handler_that_are_merged_do_not_wait_for_the_event_loop",
        Edit(
            "worker.execution.threads:FromThread.progress",
            "        if self._attempt.says(count, note):\n",
            "        self._attempt.says(count, note)\n        if True:\n",
        ),
    ),
    PlantedFault(
        "a reply with all fields taken for a request to cancel",
        3,
        f"{PROGRESS}::test_progress_that_the_driver_sent_twice_is_no_request_to_cancel",
        Edit(
            "queue.ends:Ends.progress",
            "record.asked = renewed.get(operations.ASKED_AT) is not None",
            "record.asked = bool(renewed)",
        ),
    ),
    PlantedFault(
        "a running job moved to another time",
        2,
        f"{STEERING}::test_only_what_waits_can_be_rescheduled",
        Edit(
            "protocol.operations.waiting",
            'WAITING_STATES = ("ready", "scheduled", "waiting")',
            'WAITING_STATES = ("ready", "scheduled", "waiting", "running")',
        ),
    ),
    PlantedFault(
        "a place in the queue lost with another priority",
        17,
        f"{STEERING}::test_with_another_priority_a_job_keeps_its_place_among_those_that_have_it",
        Edit(
            "protocol.operations.waiting:rescheduled",
            'fields["priority"] = priority',
            'fields |= {"priority": priority, **LAST_IN}',
        ),
    ),
    PlantedFault(
        "an error to requeue by that is a pattern",
        14,
        f"{STEERING}::test_an_error_is_text_and_no_pattern",
        Edit("protocol.operations.deaths:Deaths.filter", "re.escape(self.error)", "self.error"),
    ),
    PlantedFault(
        "jobs that died today requeued as old ones",
        8,
        f"{STEERING}::test_those_that_died_long_ago_are_requeued",
        Edit(
            "protocol.operations.deaths:Deaths.filter",
            'wanted["$expr"] = {"$lte"',
            'wanted["$expr"] = {"$gte"',
        ),
    ),
    PlantedFault(
        "a claimed job that is begun too late",
        8,
        f"{TOO_LATE}::test_a_claimed_job_that_is_too_late_is_not_begun_and_uses_no_attempt",
        Edit(
            "worker.execution.executor:Execution._run_in_scope",
            "if attempt.record.too_late(self._store.clock.now):",
            "if False:",
        ),
    ),
    PlantedFault(
        "a job that next() hands out too late",
        8,
        f"{EXPIRY}::test_a_job_that_is_too_late_is_not_handed_out_and_is_gone",
        Edit(
            "queue.consumer:Consumer._take",
            "elif record.too_late(self._store.clock.now):",
            "elif False:",
        ),
    ),
    PlantedFault(
        "a time to end jobs that nothing is set for",
        6,
        f"{TOO_LATE}::test_a_job_for_later_ends_at_its_time_and_nothing_is_sent_before",
        Edit("worker.scheduler:Expiries.note", "monotonic() + max(0.0, left)", "math.inf"),
    ),
    PlantedFault(
        "a look for what is too late where nothing can be",
        6,
        f"{TOO_LATE}::test_who_does_not_use_it_is_asked_nothing_after_the_first_look",
        Edit(
            "worker.listener:WorkerListener.event",
            "        if change.expires_at is not None:\n"
            "            self._expiries.note(change.expires_at)\n",
            "        self._expiries.opened()\n",
        ),
    ),
    PlantedFault(
        "a job put back that is too late again",
        3,
        f"{EXPIRY}::test_a_dead_one_that_would_be_too_late_runs_when_it_is_put_back",
        Edit(
            "protocol.operations.deaths",
            '"expires_at", "misfit_at"',
            '"misfit_at",',
        ),
    ),
    PlantedFault(
        "a job that has expired without a word",
        13,
        f"{EXPIRY}::test_one_that_is_kept_says_why_it_was_not_run",
        Edit("protocol.operations.expiry:_expired", '"last_error": EXPIRED,', ""),
    ),
    PlantedFault(
        "a job that has expired taken for one that somebody else was faster at",
        17,
        f"{EXPIRY}::test_the_others_are_handed_out_in_their_order",
        Edit("queue.consumer:Consumer.claim", "if self._some_expired or", "if"),
    ),
)
