"""Jobs that come after others: let run too early, twice or never, and parents that are gone."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

CONTRACT = "contract/test_queue_dependencies.py"
RACES = "contract/test_queue_dependencies_races.py"
WORKER = "worker/test_worker_dependencies.py"

FAULTS = (
    PlantedFault(
        "a dependent that nobody looks at once it is put",
        17,
        f"{RACES}::test_a_parent_that_is_done_while_its_dependent_is_put",
        Edit(
            "queue.producer:Producer._put_dependent",
            "        yield from self.look_at(put, [put.id], session)\n",
            "",
        ),
    ),
    PlantedFault(
        "parents that are marked once the dependent is put",
        17,
        f"{RACES}::test_a_parent_that_is_done_while_its_dependent_is_put",
        Edit("queue.dependencies:Dependents._mark", "range(0, len(ids), BATCH)", "range(0)"),
    ),
    PlantedFault(
        "a witness that is not looked at again once it is written",
        17,
        f"{RACES}::test_the_other_parent_ends_while_one_ends",
        Edit(
            "store.flows.dependencies:_decide",
            "if one.unmarked or not one.says_so]",
            "if one.unmarked]",
        ),
    ),
    PlantedFault(
        "a complete that does not know that somebody waits by now",
        17,
        f"{CONTRACT}::test_a_dependent_of_a_kept_parent_that_was_marked_while_it_ran_runs",
        Edit("queue.ends:Ends._end_held", "operations.if_unneeded(command)", "command"),
    ),
    PlantedFault(
        "a worker's complete that does not know that somebody waits by now",
        17,
        f"{WORKER}::test_a_parent_that_was_marked_while_it_ran_lets_run",
        Edit(
            "worker.ends:done",
            "return command if record.needed else operations.if_unneeded(command)",
            "return command",
        ),
    ),
    PlantedFault(
        "a rule of put_many for nobody but those that have its parents",
        17,
        f"{CONTRACT}::test_a_rule_of_a_call_holds_for_jobs_that_say_themselves_what_they_come_after",
        Edit("protocol.puts:check_puts", "after=() if only_rule else after", "after=after"),
    ),
    PlantedFault(
        "a rule of put_many that no job needs taken in silence",
        17,
        f"{CONTRACT}::test_a_rule_of_a_call_that_no_job_can_need_is_refused",
        Edit("protocol.puts:check_puts", "len(own) == keyed and encoded", "False"),
    ),
    PlantedFault(
        "a dead parent taken for one that is done",
        17,
        f"{CONTRACT}::test_a_dependent_is_held_by_a_dead_parent",
        Edit("protocol.dependencies:decide", '(rule == "hold" and parents.dead)', "False"),
    ),
    PlantedFault(
        "a parent that is gone taken for one that is done",
        17,
        f"{CONTRACT}::test_a_parent_that_was_cleared_counts_as_gone",
        Edit(
            "protocol.dependencies:decide",
            "final = parents.cancelled + parents.missing",
            "final = parents.cancelled",
        ),
    ),
    PlantedFault(
        "a requeued parent that is deleted when it is done",
        1,
        f"{CONTRACT}::test_a_held_dependent_runs_after_its_requeued_parent",
        Edit(
            "protocol.operations.deaths",
            'NOT_ENDED["awaited"] = {"$cond": [IS_NEEDED, True, "$$REMOVE"]}',
            'NOT_ENDED["awaited"] = "$$REMOVE"',
        ),
    ),
    PlantedFault(
        "a key that is let go of lets a dependent pass its parents",
        17,
        f"{CONTRACT}::test_a_dependent_whose_key_is_let_go_of_waits_for_its_parents",
        Edit(
            "protocol.operations.held_back",
            '{f"{WAITS_FOR}.parents": {"$exists": False}, **NOT_LEFT}',
            "{**NOT_LEFT}",
        ),
    ),
    PlantedFault(
        "a dependent that passes its parents when it is rescheduled",
        17,
        f"{CONTRACT}::test_rescheduling_a_dependent_lets_it_pass_none_of_its_parents",
        Edit(
            "protocol.operations.waiting:rescheduled",
            '{"$cond": [_FOR_PARENTS, "$state", in_time]}',
            "in_time",
        ),
    ),
    PlantedFault(
        "a parent that is removed while it is needed",
        1,
        f"{CONTRACT}::test_a_parent_stays_while_its_dependent_lives",
        Edit(
            "protocol.operations.transitions:kept",
            '{"$cond": [IS_NEEDED, "$$REMOVE", until]}',
            "until",
        ),
    ),
    PlantedFault(
        "a parent that is let go between a mark and its dependent",
        1,
        f"{RACES}::test_the_only_dependent_ends_while_another_one_is_put",
        Edit("store.flows.dependencies:_decide", "    if unmarked:\n", "    if False:\n"),
    ),
    PlantedFault(
        "a parent that is let go while another dependent lives",
        1,
        f"{CONTRACT}::test_a_parent_goes_a_minute_after_its_dependents",
        Edit(
            "store.flows.dependencies:_release", "            if not found:", "            if True:"
        ),
    ),
    PlantedFault(
        "a parent that is never let go",
        15,
        f"{CONTRACT}::test_a_parent_goes_a_minute_after_its_dependents",
        Edit(
            "queue.ends:Ends._let_through",
            "if record.after and session is None:",
            "if False:",
        ),
    ),
    PlantedFault(
        "a dependent that is lost with whoever put it",
        3,
        f"{WORKER}::test_a_dependent_whose_producer_died_before_it_looked_runs",
        Edit("worker.listener:WorkerListener.event", "if change.waits:", "if False:"),
    ),
    PlantedFault(
        "a dependent that waits for one that has ended, and that nobody finds",
        3,
        f"{RACES}::test_a_dependent_runs_though_whoever_ended_its_parent_was_killed",
        Edit(
            "store.flows.dependencies:look_for_orphans",
            "    if not orphans:\n",
            "    if True:\n",
        ),
    ),
    PlantedFault(
        "a dependent that is put before its parents",
        17,
        "unit/test_dependencies.py::test_jobs_of_one_call_are_sent_behind_their_parents",
        Edit(
            "protocol.puts:_sort_parents",
            "puts.depths = {at: depth for at in among if (depth := depths[ids[at]])}",
            "puts.depths = {}",
        ),
    ),
    PlantedFault(
        "parents of many jobs that are looked up as they are",
        13,
        "unit/test_dependencies.py"
        "::test_many_jobs_may_come_after_one_of_another_program_whose_id_is_a_decimal",
        Edit("protocol.puts:_places_of", "map(key_of, parents.ids)", "parents.ids"),
    ),
    PlantedFault(
        "a delay that begins with the put",
        17,
        f"{CONTRACT}::test_a_delay_counts_from_the_end_of_the_parents",
        Edit(
            "protocol.put:Put.due",
            "        if self.parents.ids:\n            return self.run_at\n",
            "",
        ),
        Edit("protocol.dependencies:Parents.fields", '"delay": delay or None,', ""),
    ),
)
