"""Faults about limits that hold over all processes, ordered groups and rates."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

SLOTS = "unit/test_slots.py"
LIMITS = "contract/test_queue_limits.py"
LIMITED = "contract/test_queue_limited.py"
ORDERED = "contract/test_queue_ordered.py"
WORKER_LIMITED = "worker/test_worker_limited.py"
WORKER_ORDERED = "worker/test_worker_ordered.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a slot that is free and taken, with as many above it as may run",
        17,
        f"{SLOTS}::test_no_start_exceeds_a_limit_however_it_changes_and_however_old_what_is_known",
        Edit(
            "protocol.slots:Taken.free",
            "number + higher + without > limit or len(found)",
            "len(found)",
        ),
    ),
    PlantedFault(
        "a running job without a slot that is not counted",
        17,
        f"{SLOTS}::test_jobs_that_were_claimed_without_a_slot_count",
        Edit("protocol.slots:Taken.__init__", "self._without[limited.scope] += 1", "pass"),
    ),
    PlantedFault(
        "a claim that leaves its slots out",
        17,
        f"{LIMITED}::test_a_job_has_its_slots_while_it_runs_and_no_longer",
        Edit("protocol.operations.claims:claim", "if slots is not None:", "if False:"),
    ),
    PlantedFault(
        "slots kept after the end",
        17,
        f"{LIMITED}::test_a_job_has_its_slots_while_it_runs_and_no_longer",
        Edit(
            "protocol.operations.transitions", '"allowed", "kept", "slots")', '"allowed", "kept")'
        ),
    ),
    PlantedFault(
        "a slot that somebody else has, and that fails the claim of the others",
        17,
        f"{LIMITED}::test_of_two_that_go_for_the_same_place_one_gets_it_and_the_other_nothing",
        Edit(
            "store.flows.ruled:take_ruled",
            "        if not operations.is_slot_taken(error):\n            raise\n        return []\n",
            "        raise\n",
        ),
    ),
    PlantedFault(
        "a slot that somebody else has, and that undoes the claims made with it",
        10,
        f"{LIMITED}::test_one_whose_place_is_taken_keeps_none_of_those_that_are_claimed_with_it",
        Edit(
            "store.flows.claims:_take_in_time",
            "_take if len(jobs) == 1 else _take_each",
            "_take",
        ),
    ),
    PlantedFault(
        "processes that all go for the same groups",
        10,
        f"{WORKER_ORDERED}::test_several_workers_get_in_each_others_way_seldom",
        Edit(
            "worker.backlog:Backlog.turns",
            "        if not self._contended():\n",
            "        if True:\n",
        ),
    ),
    PlantedFault(
        "starts by the rules of before that are not counted",
        17,
        f"{LIMITED}::test_one_that_was_told_of_a_limit_counts_what_others_start_who_do_not_know"
        "_it_yet",
        Edit("store.ruled:RuledQueue.taken", "self._read_at < all_know_at or ", ""),
    ),
    PlantedFault(
        "a place withheld for what ran a moment ago",
        3,
        f"{LIMITED}::test_nothing_is_withheld_for_what_was_known_a_moment_ago",
        Edit(
            "store.flows.ruled:choose",
            "if choice.jobs or choice.late or fresh:",
            "if True:",
        ),
    ),
    PlantedFault(
        "a head passed by while it is in its backoff",
        17,
        f"{ORDERED}::test_a_head_that_fails_and_is_due_again_comes_before_all_that_waited_behind_it",
        Edit(
            "protocol.operations.limits:heads_of",
            '"state": {"$gte": "ready"},',
            '"state": {"$in": ["ready", "running"]},',
        ),
    ),
    PlantedFault(
        "one that began passed by another that joined its group at the same moment",
        17,
        f"{ORDERED}::test_of_two_that_joined_at_the_same_moment_one_waits_for_the_other_through_its"
        "_attempts",
        Edit(
            "protocol.schema",
            '("seq", ASCENDING), ("state", DESCENDING)',
            '("seq", ASCENDING), ("state", ASCENDING)',
        ),
        Edit("protocol.operations.limits:heads_of", '{"seq": 1, "state": -1}', '{"seq": 1}'),
    ),
    PlantedFault(
        "a group of which a dead head lets the next one pass though that is strict",
        17,
        f"{ORDERED}::test_where_that_is_strict_a_group_goes_on_once_its_dead_are_purged",
        Edit("protocol.operations.limits:heads_of", "*(no_dead if strict else ()),\n", ""),
    ),
    PlantedFault(
        "a strict group whose live and dead jobs are looked for at two moments",
        17,
        "unit/test_operations.py::test_the_head_of_a_strict_group_and_its_dead_are_of_one_snapshot",
        Edit(
            "protocol.operations.limits:heads_of",
            '        **({"readConcern": {"level": "snapshot"}} if strict else {}),\n',
            "",
        ),
    ),
    PlantedFault(
        "a group that is held and hides the others behind it",
        3,
        f"{LIMITS}::test_a_group_that_is_held_stands_before_no_other_however_many_jobs_it_has",
        Edit("store.flows.ruled:_Choice.choose", "if deep and self._rules.by_group", "if False"),
    ),
    PlantedFault(
        "a bell not rung after a head was cancelled",
        4,
        f"{WORKER_ORDERED}"
        "::test_whatever_ends_a_head_in_its_backoff_the_next_one_starts_at_once[be_cancelled]",
        Edit(
            "queue.steering.canceller:Canceller._make_room",
            "            yield self._store.say_room_in(self._name)\n",
            "            return\n            yield\n",
        ),
    ),
    PlantedFault(
        "a bell not rung after the dead were purged",
        4,
        f"{WORKER_ORDERED}::test_where_that_is_strict_the_next_one_starts_when_the_dead_are_purged",
        Edit(
            "queue.steering.canceller:Canceller.drop_dead",
            "            yield self._store.say_room_in(self._name)\n",
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a bell not rung after a dead consumer's job was buried",
        4,
        f"{WORKER_ORDERED}::test_whatever_ends_a_head_the_next_one_starts_at_once[be_reaped_dead]",
        Edit(
            "store.flows.timers:reap",
            'if any("slots" in job for job in jobs):',
            "if False:",
        ),
    ),
    PlantedFault(
        "a worker that is stopped and leaves its place to nobody",
        3,
        f"{WORKER_LIMITED}::test_a_worker_that_is_stopped_leaves_its_place_to_others",
        Edit("worker.run:Run._stop", "        await self._ruled.say_room()\n", ""),
    ),
    PlantedFault(
        "a job claimed before there were rules that ends and tells nobody",
        3,
        f"{WORKER_LIMITED}"
        "::test_a_limit_that_is_set_on_a_busy_queue_lets_the_next_start_when_enough_have_ended",
        Edit(
            "worker.rules.queues:RuledQueues.ended",
            "if not self._store.makes_room(queue, slots):",
            "if not slots:",
        ),
    ),
    PlantedFault(
        "members of a dispatcher that look for ever at what is held back",
        6,
        f"{WORKER_ORDERED}"
        "::test_members_of_a_dispatcher_send_nothing_while_all_that_waits_is_held_back",
        Edit(
            "processes.waiting_jobs:WaitingJobs._have_one_fetch",
            "if self._settings.plain_queues() else None",
            "if self._settings.open_queues() else None",
        ),
    ),
    PlantedFault(
        "jobs of a queue with rules that members of a dispatcher give no place",
        3,
        f"{WORKER_ORDERED}"
        "::test_members_of_a_dispatcher_run_what_another_program_has_put_without_a_place",
        Edit(
            "worker.backlog:Backlog.to_be_placed",
            "return self.ruled.among(queues) if dispatched and self.ruled is not None else queues",
            "return [] if dispatched else queues",
        ),
    ),
    PlantedFault(
        "a start that is used after it is void",
        17,
        f"{LIMITED}::test_a_start_that_comes_too_late_for_its_rate_is_none",
        Edit("store.given_up:Claim.update", "if self.void_at is not None:", "if False:"),
    ),
    PlantedFault(
        "a start that is used before it is due",
        17,
        "unit/test_starts.py::test_a_start_is_not_taken_before_its_time",
        Edit(
            "store.starts:Starts.take",
            "known.starts and known.starts[0].due <= now",
            "known.starts",
        ),
    ),
)
