"""What becomes of keys: let go of, taken again and held for a time; and jobs that wait for one."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

HELD = "contract/test_queue_held_keys.py"
FOR_A_TIME = "contract/test_queue_held_for_a_time.py"
WORKER = "worker/test_worker_keys.py"

FAULTS = (
    PlantedFault(
        "a claim that does not let go of the key",
        17,
        f"{HELD}::test_the_claim_lets_go_of_the_key_of_a_job_that_says_so",
        Edit("protocol.operations.claims:claim", '        "held_key": LET_GO_AT_START,\n', ""),
    ),
    PlantedFault(
        "a key that a dead job holds for ever",
        17,
        f"{HELD}::test_what_stays_of_a_job_that_has_ended_holds_no_key",
        Edit(
            "protocol.operations.transitions:held_unless",
            '{"$cond": [dead, LET_GO, HELD_AGAIN]}',
            "HELD_AGAIN",
        ),
    ),
    PlantedFault(
        "a job that waits again without its key",
        17,
        f"{HELD}::test_a_job_that_waits_again_has_its_key_again",
        Edit(
            "protocol.operations.keys.holding",
            'HELD_AGAIN: Document = {"$cond": [{"$and": [_UNTIL_START, _HAS_A_KEY]}, "$key", '
            '"$held_key"]}',
            'HELD_AGAIN: Document = {"$cond": [True, "$held_key", "$key"]}',
        ),
    ),
    PlantedFault(
        "a key that is free before its time",
        17,
        f"{FOR_A_TIME}::test_what_only_holds_a_key_is_counted_nowhere_and_no_job",
        Edit(
            "protocol.operations.keys.holding:removable",
            ', "unique_until": {"$not": _A_DATE}',
            "",
        ),
    ),
    PlantedFault(
        "two running jobs of one key",
        17,
        f"{HELD}::test_what_is_put_while_the_job_runs_is_a_new_job_that_runs_after_it",
        Edit(
            "protocol.schema",
            'name="streamqueue_running_key",\n    unique=True',
            'name="streamqueue_running_key",\n    unique=False',
        ),
    ),
    PlantedFault(
        "a job that waits for one that has ended",
        3,
        f"{WORKER}::test_what_comes_while_a_job_runs_is_run_after_it_in_its_newest_form",
        Edit("worker.ends:Ends._let_through", "        if keys:\n", "        if False:\n"),
    ),
    PlantedFault(
        "a job left waiting that nobody looks for",
        3,
        f"{WORKER}::test_what_nobody_came_to_let_through_is_found",
        Edit(
            "worker.scheduler:HeldBack.note",
            "        self._alarm.ring_at(monotonic() + self._timeout)\n",
            "",
        ),
    ),
    PlantedFault(
        "a job that must wait taken for one that cannot be claimed",
        13,
        f"{WORKER}::test_of_many_that_are_claimed_together_only_those_wait_that_must",
        Edit(
            "store.flows.claims:_take",
            "if tries and operations.is_held_back(error):",
            "if False:",
        ),
    ),
    PlantedFault(
        "a lost job whose key is taken that is tried again for ever",
        17,
        f"{HELD}::test_one_of_many_lost_jobs_stops_none_of_the_others",
        Edit(
            "store.flows.changes:change_each",
            "if instead is not None and store.is_duplicate_job(error):",
            "if False:",
        ),
    ),
    PlantedFault(
        "a count that leaves out what one of many had not yet spoiled",
        3,
        f"{HELD}::test_one_of_many_lost_jobs_stops_none_of_the_others",
        Edit(
            "store.flows.changes:change_each",
            "    total = len(ids) - len(left)\n",
            "    total = 0\n",
        ),
    ),
    PlantedFault(
        "a job parked during a look that nobody looks for",
        3,
        f"{WORKER}::test_one_that_is_parked_while_somebody_looks_is_found_by_the_next_look",
        Edit(
            "worker.scheduler:HeldBack.run_once",
            "self._some_wait = self._some_wait or look.waiting > 0",
            "self._some_wait = look.waiting > 0",
        ),
    ),
    PlantedFault(
        "a job completed in a session for whose end another waits",
        3,
        f"{WORKER}::test_a_job_completed_in_a_session_lets_the_other_through",
        Edit(
            "worker.completer:Completer._complete_in",
            "            await self._let_through(attempt)\n",
            "",
        ),
    ),
    PlantedFault(
        "a job that cannot be completed where a validator takes no bare holder",
        17,
        f"{WORKER}::test_where_a_validator_wants_all_that_a_job_has_a_completed_one_stays",
        Edit(
            "worker.completer:Completer._complete_apart",
            "if attempt.record.holds_on and not attempt.kept:",
            "if False:",
        ),
    ),
)
