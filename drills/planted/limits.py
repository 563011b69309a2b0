"""Faults about time limits, child processes, and queues that have only some of the slots."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

LIMITS = "worker/test_worker_time_limits.py"
CHILDREN = "worker/test_worker_child_processes.py"
SHARES = "worker/test_worker_concurrency.py"
FAIRNESS = "worker/test_worker_fairness.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "queues with few slots not looked at while the stream rests",
        3,
        "worker/test_worker_concurrency.py"
        "::test_a_queue_with_few_slots_is_looked_at_while_the_stream_rests",
        Edit(
            "worker.claimer:Claimer.unheard",
            '            self._scan_too("scan")\n',
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a handler that gets around its time limit by returning",
        13,
        f"{LIMITS}"
        "::test_a_handler_that_swallows_its_cancellation_and_returns_has_failed_all_the_same",
        Edit(
            "worker.execution.executor:Execution._call",
            "if error is not None or self._around is None:",
            "if error is not None:",
        ),
    ),
    PlantedFault(
        "an attempt that has failed while its thread goes on",
        2,
        f"{LIMITS}::test_no_attempt_runs_beside_a_thread_that_is_over_its_limit",
        Edit(
            "worker.execution.time_limits:TimeLimits._pass",
            "scope = attempt.scope\n",
            "scope = attempt.scope or attempt.abandon\n",
        ),
    ),
    PlantedFault(
        "a stop that counts as the time limit",
        12,
        f"{LIMITS}"
        "::test_a_job_whose_handler_is_stopped_for_the_end_of_the_drain_time_has_not_failed",
        Edit(
            "worker.execution.executor:Execution._call",
            "if scope.cancel_called and not attempt.overdue:",
            "if scope.cancel_called and not limited:",
        ),
    ),
    PlantedFault(
        "child processes that are started by calls that are cancelled",
        15,
        f"{CHILDREN}::test_a_limit_that_is_shorter_than_any_start_leaves_no_child_behind",
        Edit(
            "worker.execution.processes:_WithChild.__aenter__",
            "        await _make_ready(TRIES)\n",
            "        self._begin()\n        await _make_ready(TRIES)\n",
        ),
        Edit("worker.execution.processes:_make_ready", ", shield=True", ""),
    ),
    PlantedFault(
        "child processes that may take as long as they like to get ready",
        12,
        f"{CHILDREN}::test_a_child_that_does_not_get_ready_in_time_is_killed_and_a_failed_attempt",
        Edit(
            "worker.execution.processes:_make_ready",
            "fail_after(LONGEST_START,",
            "fail_after(None,",
        ),
    ),
    PlantedFault(
        "workers that run in the child processes of workers",
        12,
        f"{CHILDREN}::test_a_program_that_runs_its_worker_in_its_children_too_is_told_what_to_do",
        Edit("worker.worker:Worker.run", "        check_not_in_child()\n", ""),
    ),
    PlantedFault(
        "a Ctrl-C for a child process that interrupts its worker",
        12,
        f"{CHILDREN}::test_a_key_that_interrupts_a_child_that_is_not_ready_interrupts_no_worker",
        Edit(
            "worker.execution.processes:_make_ready",
            "except (BrokenWorkerProcess, KeyboardInterrupt) as error:",
            "except BrokenWorkerProcess as error:",
        ),
    ),
    PlantedFault(
        "a fork that holds the pipes of a child process",
        12,
        f"{CHILDREN}::test_a_forked_process_that_returns_too_does_not_answer_for_the_child",
        Edit(
            "worker.execution.processes:_let_go_in_forks",
            "os.register_at_fork(after_in_child=_let_go)",
            "pass",
        ),
    ),
    PlantedFault(
        "a module that writes into the pipe while it is imported",
        15,
        f"{CHILDREN}"
        "::test_what_a_module_writes_while_it_is_imported_does_not_come_between_them_either",
        Edit(
            "worker.execution.processes:call",
            "        with _streams_of_its_own():\n"
            "            function = attrgetter(name)(import_module(module))\n",
            "        function = attrgetter(name)(import_module(module))\n"
            "        with _streams_of_its_own():\n",
        ),
    ),
    PlantedFault(
        "work that is repeated since its result cannot leave its child process",
        13,
        f"{CHILDREN}::test_a_result_that_cannot_be_stored_and_nobody_keeps_does_not_matter",
        Edit(
            "worker.execution.processes:run_in_child",
            "return PayloadError(why)",
            "raise PayloadError(why)",
        ),
    ),
    PlantedFault(
        "a busy child process that outlives its worker",
        2,
        f"{CHILDREN}::test_a_busy_child_dies_with_its_worker",
        Edit(
            "worker.execution.processes:prepare",
            "ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))",
            "pass",
        ),
    ),
    PlantedFault(
        "a signal to all that ends child processes",
        12,
        f"{CHILDREN}::test_a_signal_to_the_whole_group_lets_a_child_finish",
        Edit(
            "worker.execution.processes",
            "_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
            "_STOPS: tuple[signal.Signals, ...] = ()",
        ),
    ),
    PlantedFault(
        "weights that share the starts, and not the slots that are held",
        17,
        f"{FAIRNESS}::test_long_and_short_jobs_hold_half_the_slots_each",
        Edit(
            "worker.sharing.fairness:Fairness.plan",
            "held = dict(holder.held)",
            "held: dict[str, int] = {}",
        ),
    ),
    PlantedFault(
        "a rest of a slot that is given away before whole ones",
        17,
        "unit/test_fairness.py"
        "::test_while_all_have_work_each_holds_its_share_give_or_take_less_than_one_slot",
        Edit("worker.sharing.fairness:_rank", "if held < whole:", "if False:"),
    ),
    PlantedFault(
        "jobs claimed ahead that start in the slots of other queues",
        17,
        f"{FAIRNESS}::test_weights_are_shares_of_the_slots_that_are_held",
        Edit(
            "worker.sharing.shares:Share.may_start",
            "return due is None or ",
            "return True or ",
        ),
    ),
    PlantedFault(
        "members that are handed jobs without regard to what they hold",
        17,
        f"{FAIRNESS}::test_the_shares_hold_in_each_member_of_a_dispatcher",
        Edit(
            "processes.dispatcher:Dispatcher.said",
            'message.get("held", {}), message.get("ahead", {})',
            "{}, {}",
        ),
    ),
    PlantedFault(
        "a read for each of many queues, most of which have no work",
        6,
        f"{FAIRNESS}::test_few_queues_with_work_among_many_are_found_in_few_reads",
        Edit("worker.backlog:Backlog._look", "if len(quiet) > FEW_LANES:", "if False:"),
    ),
    PlantedFault(
        "a read for each of many queues that all have work",
        17,
        f"{FAIRNESS}::test_many_queues_that_all_have_work_are_read_many_at_a_time",
        Edit("worker.backlog:Backlog.fill", "elif left:", "elif False:"),
        Edit("worker.backlog:Backlog.fill", "together.intersection(short)", "short"),
    ),
    PlantedFault(
        "queues hidden by older backlogs, of which some are looked for in each claim",
        17,
        f"{FAIRNESS}::test_queues_that_are_hidden_by_older_backlogs_have_their_shares_at_once",
        Edit("worker.backlog:Backlog.fill", "together.intersection(short)", "()"),
    ),
    PlantedFault(
        "a queue that is read and loses its place among those that wait",
        17,
        "unit/test_lanes.py::test_what_is_planned_is_the_same_when_it_has_been_read",
        Edit(
            "worker.sharing.lanes:Lanes.begin_read",
            "self._lanes[queue].unread = False",
            "self._lanes[queue].empty()",
        ),
    ),
    PlantedFault(
        "more queues than slots, and not by turns",
        17,
        "unit/test_fairness.py::test_with_fewer_slots_than_queues_all_have_their_turns",
        Edit(
            "worker.sharing.fairness:Fairness.plan",
            "without.sort(key=turns.__getitem__)",
            "pass",
        ),
    ),
    PlantedFault(
        "a slot of a share that comes free and wakes nobody",
        6,
        f"{SHARES}::test_a_slot_that_comes_free_is_taken_at_once_and_in_order",
        Edit(
            "worker.sharing.shares:Share.over",
            "            self._shares.on_room()\n",
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a share that gets smaller with every job that is given back",
        17,
        "worker/test_worker_ahead.py"
        "::test_what_is_given_back_leaves_the_slots_of_its_queue_to_others",
        Edit(
            "worker.execution.unbegun:Unbegun._give_back",
            "                attempt.registered.share.given_back()\n",
            "                pass\n",
        ),
    ),
    PlantedFault(
        "a member that keeps what it has no room for",
        10,
        f"{SHARES}::test_a_member_passes_back_what_it_has_no_room_for",
        Edit("worker.claimer:Claimer._report", "self._lanes.give_up() or ", ""),
    ),
    PlantedFault(
        "a member that is handed what it has no room for",
        10,
        f"{SHARES}::test_a_lone_job_goes_to_a_member_that_has_room_without_a_look_at_what_waits",
        Edit(
            "processes.members:Member.has_room",
            "return not isinstance(queue, str) or self.room.get(queue, 1) > 0",
            "return True",
        ),
    ),
    PlantedFault(
        "a sweep that counts what is held back as unannounced",
        4,
        f"{SHARES}::test_the_sweep_does_not_call_what_is_held_back_unannounced",
        Edit("worker.sharing.lanes:Lanes.without_room", "if lane.room < 1", "if lane.room < 0"),
    ),
)
