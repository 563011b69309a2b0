"""Faults in a worker and the dispatcher: claims, leases, completes, stopping."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

LEASES = "worker/test_worker_leases.py"
TRANSACTIONS = "worker/test_worker_transactions.py"
PROCESSES_DISPATCHER = "cli/test_worker_dispatcher.py"
MEMBERS = "worker/test_worker_dispatcher.py"
DISPATCHER_FAULTS = "worker/test_worker_dispatcher_faults.py"

FAULTS: tuple[PlantedFault, ...] = (
    # the worker's claims
    PlantedFault(
        "no look when a slot comes free",
        4,
        "worker/test_worker_claims.py"
        "::test_a_job_announced_while_every_slot_is_busy_is_run_when_one_comes_free",
        Edit(
            "worker.claimer:Claimer.announce",
            "        elif self._scan_for is not None or self._slots.free < 1:\n"
            '            self._scan_too("stream")\n',
            "        elif self._scan_for is not None or self._slots.free < 1:\n",
        ),
    ),
    PlantedFault(
        "jobs whose turn is a dead peer's, left for ever",
        3,
        "worker/test_worker_partition.py"
        "::test_jobs_whose_turn_is_a_consumers_that_never_comes_are_taken_by_others[0]",
        Edit(
            "worker.claimer:Claimer.announce",
            "            self._intake.wait_for_turn(turn)\n",
            "",
        ),
    ),
    PlantedFault(
        "a backlog's jobs whose turn is a dead peer's, left for ever",
        3,
        "worker/test_worker_partition.py"
        "::test_a_more_urgent_job_is_not_left_to_a_consumer_that_never_comes",
        Edit(
            "worker.claimer:Claimer._claim_waiting",
            "                if self._backlog.left:\n                    self._intake.wait_for_turn(1)\n",
            "",
        ),
    ),
    PlantedFault(
        "what was left to others, left to them again when its turn has come",
        3,
        "worker/test_worker_partition.py"
        "::test_jobs_whose_turn_is_a_consumers_that_never_comes_are_taken_by_others[300]",
        Edit("worker.intake:Intake.wait", "            self._backlog.turn_came()\n", ""),
    ),
    PlantedFault(
        "everybody going for every job at once",
        10,
        "worker/test_worker_partition.py::test_idle_workers_leave_jobs_to_the_one_whose_turn_it_is",
        Edit(
            "worker.partition:Partition.turn",
            "return min((place - number) % count for place in places)",
            "return 0",
        ),
    ),
    # claims ahead of the slots, and the stream that is closed meanwhile
    PlantedFault(
        "more handlers at once than there are slots",
        15,
        "worker/test_worker_ahead.py"
        "::test_handlers_that_return_at_once_share_claims_beyond_the_slots",
        Edit(
            "worker.execution.unbegun:Unbegun._begin_some",
            "min(self._at_once, len(self._waiting), self._slots.startable)",
            "min(self._at_once, len(self._waiting))",
        ),
    ),
    PlantedFault(
        "jobs claimed ahead kept while all slots are full",
        3,
        "worker/test_worker_ahead.py"
        "::test_what_was_claimed_for_handlers_that_then_take_long_goes_back_for_others",
        Edit(
            "worker.execution.executor:Execution._keep",
            "self._ends.start_soon(self._unbegun.give_back_overdue)",
            "pass",
        ),
    ),
    PlantedFault(
        "jobs claimed ahead run after the order to stop",
        12,
        "worker/test_worker_ahead.py"
        "::test_a_worker_that_stops_begins_no_job_that_it_has_claimed_ahead",
        Edit(
            "worker.run:Run._stop",
            "self._drain.given_back += await self._execution.give_back_unbegun()",
            "pass",
        ),
    ),
    PlantedFault(
        "claims ahead though handlers turned out to take long",
        15,
        "worker/test_worker_ahead.py"
        "::test_what_is_known_of_quick_handlers_is_forgotten_when_jobs_were_given_back",
        Edit("worker.slots:Slots.given_back", "        self.idle()\n", ""),
    ),
    PlantedFault(
        "a worker whose slots are full, waiting for word of jobs and for no slot",
        3,
        "worker/test_worker_dispatcher.py"
        "::test_a_worker_that_would_claim_ahead_says_when_its_slot_is_free",
        Edit(
            "worker.claimer:Claimer.run",
            "wanted < 1 or (free < 1 and not self._knows)",
            "wanted < 1",
        ),
    ),
    PlantedFault(
        "jobs claimed ahead whose return failed left to their leases",
        3,
        "worker/test_worker_ahead.py::test_what_could_not_be_given_back_is_given_back_later",
        Edit(
            "worker.execution.unbegun:Unbegun._give_back",
            "await self._store.untake(GivenUp.of(pairs))",
            "await self._leases.leave(ours)",
        ),
    ),
    PlantedFault(
        "a job given back for which a slot is free",
        11,
        "worker/test_worker_ahead.py::test_one_for_which_a_slot_is_free_waits_for_the_event_loop_alone_and_is_kept",
        Edit(
            "worker.execution.unbegun:Unbegun.give_back_overdue",
            "self._from(max(0, first))",
            "self._from(0)",
        ),
    ),
    PlantedFault(
        "a broken stream taken for one that rests",
        5,
        "worker/test_worker_rest.py"
        "::test_a_stream_that_broke_is_opened_again_also_for_a_worker_that_looks_often",
        Edit(
            "stream.watcher:Watcher._read_until_broken",
            "                    await self._recover(classify(error), error)\n                    return False\n",
            "                    await self._recover(classify(error), error)\n                    return True\n",
        ),
    ),
    PlantedFault(
        "a job that runs given back with another of its claim",
        2,
        "unit/test_given_up.py::test_some_jobs_of_a_claim_are_given_back_by_themselves",
        Edit("store.given_up:GivenUp.of", "partial=True", "partial=False"),
    ),
    PlantedFault(
        "one refusal that keeps all others from being given back",
        2,
        "contract/test_queue_own_rules.py"
        "::test_a_release_that_is_refused_keeps_no_other_from_being_given_back",
        Edit(
            "store.flows.claims:untake_again",
            "except OperationFailure as error:",
            "except ZeroDivisionError as error:",
        ),
    ),
    PlantedFault(
        "the events of a backlog read after all",
        9,
        "worker/test_worker_rest.py"
        "::test_a_stream_that_was_closed_for_a_backlog_is_open_again_when_that_is_worked_off",
        Edit(
            "stream.watcher:Watcher._read_until_broken",
            "self._token = None  # what",
            "pass  # what",
        ),
    ),
    PlantedFault(
        "nobody looking for what falls due while the stream is closed",
        6,
        "worker/test_worker_rest.py"
        "::test_a_job_that_falls_due_is_made_ready_while_the_stream_is_closed",
        Edit("stream.watcher:Watcher._rest", "            self._listener.unheard()\n", ""),
    ),
    PlantedFault(
        "an outage that does not show while the stream is closed",
        5,
        "worker/test_worker_rest.py"
        "::test_a_server_that_goes_away_while_the_stream_is_closed_shows_in_the_readiness",
        Edit(
            "stream.watcher:Watcher._rest",
            "                await self._recover(classify(error), error)\n                return\n",
            "                continue\n",
        ),
    ),
    PlantedFault(
        "a stream closed for jobs that take long",
        4,
        "worker/test_worker_rest.py::test_a_worker_whose_jobs_take_long_goes_on_to_read_its_stream",
        Edit(
            "worker.claimer:Claimer.looks_often",
            "self._backlog.outruns_events(self.loaded)",
            "self.loaded",
        ),
    ),
    # the dispatcher of several processes
    PlantedFault(
        "nobody is told to look for what was sent to a process that does nothing about it",
        4,
        f"{PROCESSES_DISPATCHER}::test_a_process_that_stands_still_keeps_no_job_that_it_was_sent",
        Edit(
            "processes.members:Members.run",
            "                if member.late:\n",
            "                if False:\n",
        ),
    ),
    PlantedFault(
        "nobody is told to look for what was sent to a process that has died",
        4,
        f"{PROCESSES_DISPATCHER}::test_a_process_killed_with_a_job_just_sent_to_it_does_not_take_it_along",
        Edit(
            "processes.dispatcher:Dispatcher.left",
            "        if self.stopping:\n            return\n        if member.unacknowledged",
            "        return\n        if member.unacknowledged",
        ),
    ),
    PlantedFault(
        "a process waits for a silent dispatcher for ever",
        4,
        f"{PROCESSES_DISPATCHER}::test_a_dispatcher_that_stands_still_keeps_no_job_waiting_for_long",
        Edit(
            "processes.subscriber:Subscriber._listen_to",
            "SILENT_AFTER if self._dispatched else None",
            "None",
        ),
    ),
    PlantedFault(
        "a process never returns to a dispatcher that was silent",
        6,
        f"{PROCESSES_DISPATCHER}::test_a_dispatcher_that_stands_still_keeps_no_job_waiting_for_long",
        Edit(
            "processes.subscriber:Subscriber._listen_to",
            "            if patience.cancelled_caught:\n                self._note_dispatched(False)\n",
            "            if patience.cancelled_caught:\n                connection.close()\n",
        ),
    ),
    PlantedFault(
        "a process keeps the stream of its own when there is a dispatcher again",
        6,
        f"{PROCESSES_DISPATCHER}::test_a_dispatcher_killed_amid_jobs_costs_none_and_another_takes_its_place",
        Edit(
            "processes.subscriber:Subscriber._note_dispatched",
            "            if self._watcher is not None:\n                self._watcher.stop()\n"
            "            logger.info(",
            "            logger.info(",
        ),
    ),
    PlantedFault(
        "nobody is introduced to a dispatcher that took another's place",
        6,
        f"{PROCESSES_DISPATCHER}::test_a_dispatcher_killed_amid_jobs_costs_none_and_another_takes_its_place",
        Edit(
            "processes.supervisor:Processes._listen",
            "                    for other in self._running.values():\n"
            "                        self._introduce(other)\n",
            "",
        ),
    ),
    PlantedFault(
        "processes that each listen for themselves",
        6,
        f"{PROCESSES_DISPATCHER}::test_idle_processes_and_their_dispatcher_hold_one_stream",
        Edit(
            "processes.supervisor:Processes._run_one",
            "                self._introduce(running)\n",
            "",
        ),
    ),
    PlantedFault(
        "a dispatcher that is stopped before its members",
        6,
        f"{PROCESSES_DISPATCHER}::test_the_dispatcher_is_the_last_to_end",
        Edit(
            "processes.supervisor:Processes._tell",
            "        for running in self._running.values():\n            running.tell(order)\n",
            "        if self._dispatcher is not None:\n            self._dispatcher.tell(order)\n"
            "        for running in self._running.values():\n            running.tell(order)\n",
        ),
    ),
    PlantedFault(
        "a dispatcher that dies of the signal that tells it to stop",
        12,
        f"{PROCESSES_DISPATCHER}::test_a_dispatcher_that_is_sent_the_signal_deals_until_its_processes_have_left",
        Edit(
            "processes.dispatcher:Dispatcher.run",
            "            if handle_signals and ",
            "            if False and ",
        ),
    ),
    PlantedFault(
        "a supervisor that waits for its dispatcher for ever",
        12,
        f"{PROCESSES_DISPATCHER}::test_a_dispatcher_that_stands_still_does_not_keep_the_supervisor_from_ending",
        Edit(
            "processes.supervisor:Processes._see_off",
            "            dispatcher.process.kill()\n",
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a watchdog that does not see to the dispatcher",
        4,
        "cli/test_notify.py::test_a_dispatcher_that_stands_still_is_killed_and_another_takes_its_place",
        Edit(
            "processes.supervisor:Processes._listen",
            "self._silence if was_ready else None",
            "self._silence if was_ready and number != DISPATCHER else None",
        ),
    ),
    PlantedFault(
        "jobs that a process gave up without a word are not read again",
        4,
        f"{MEMBERS}::test_waiting_jobs_that_a_member_gave_up_are_sent_again",
        Edit(
            "processes.dispatcher:Dispatcher.said",
            "            if member.unacknowledged_jobs:\n",
            "            if False:\n",
        ),
    ),
    PlantedFault(
        "waiting jobs sent to two members",
        10,
        f"{MEMBERS}::test_waiting_jobs_that_one_member_was_sent_are_not_sent_to_another",
        Edit("worker.backlog:Backlog._read_head", "        if elsewhere:\n", "        if False:\n"),
    ),
    PlantedFault(
        "a dispatcher that does not give a place to what another program inserted",
        4,
        f"{MEMBERS}::test_jobs_that_another_program_inserted_without_a_priority_are_run",
        Edit(
            "processes.waiting_jobs:WaitingJobs._read",
            "await self._store.adopt(self._settings.open_queues()) or self._adopt",
            "False",
        ),
    ),
    PlantedFault(
        "what a process takes along that leaves in order is not looked for",
        4,
        f"{MEMBERS}::test_waiting_jobs_that_a_worker_takes_with_it_are_run_by_others[True]",
        Edit(
            "processes.dispatcher:Dispatcher.left",
            "        if member.unacknowledged:\n            self._waiting.look_for_more()\n        else:\n",
            "        if True:\n",
        ),
    ),
    PlantedFault(
        "a dispatcher that forgets when a job falls due",
        4,
        f"{MEMBERS}::test_delayed_jobs_are_promoted_on_time_by_the_dispatcher",
        Edit("processes.dispatcher:Dispatcher.event", "self._timers.note(change.run_at)", "pass"),
    ),
    PlantedFault(
        "jobs that were read are forgotten after a lost claim",
        4,
        f"{MEMBERS}::test_jobs_that_were_read_before_a_claim_was_lost_are_read_again",
        Edit(
            "processes.waiting_jobs:WaitingJobs.lost",
            "            self.look_for_more()  # what was read is forgotten\n",
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a process waits for a dispatcher's answer for ever",
        4,
        f"{DISPATCHER_FAULTS}::test_a_dispatcher_that_takes_long_to_answer_holds_up_no_job",
        Edit(
            "processes.subscriber:Subscriber.ask",
            "move_on_after(ANSWER_WITHIN)",
            "move_on_after(None)",
        ),
    ),
    PlantedFault(
        "a dispatcher that does not say that its stream lives",
        5,
        f"{DISPATCHER_FAULTS}::test_while_the_stream_is_quiet_all_workers_know_that_it_lives",
        Edit("processes.dispatcher:Dispatcher._tick", "Tick(tick=alive,", "Tick(tick=0,"),
    ),
    # the worker's leases
    PlantedFault(
        "a deadline counted from the answer to the claim",
        2,
        "worker/test_worker_leases.py::test_a_lease_is_counted_from_before_its_claim_was_sent",
        Edit(
            "worker.claims:Claims.take",
            "            await self._delivery.deliver(trigger, documents, sent)\n",
            "            await self._delivery.deliver(trigger, documents, monotonic())\n",
        ),
    ),
    PlantedFault(
        "a handler that goes on after its lease was lost",
        2,
        "worker/test_worker_leases.py"
        "::test_a_handler_whose_renewals_fail_is_cancelled_before_the_lease_can_be_anybody_elses"
        "[errors]",
        Edit(
            "worker.leases:Leases.lose",
            "        if attempt.scope is not None:\n            attempt.scope.cancel()\n",
            "",
        ),
    ),
    PlantedFault(
        "a lease believed in until the server says otherwise",
        2,
        "worker/test_worker_leases.py"
        "::test_a_handler_whose_renewals_fail_is_cancelled_before_the_lease_can_be_anybody_elses",
        Edit(
            "worker.leases:Leases._lose_overdue",
            "if attempt.deadline > now:",
            "if not attempt.lost:",
        ),
    ),
    PlantedFault(
        "two live attempts at one job in one process",
        2,
        "worker/test_worker_leases.py"
        "::test_a_job_claimed_again_by_the_same_worker_ends_the_old_attempt_at_once",
        Edit(
            "worker.leases:Leases.add",
            "        if old is not None:\n            self.lose(old)\n",
            "",
        ),
    ),
    # the worker's completes
    PlantedFault(
        "a group reported completed without a look at what was deleted",
        12,
        "worker/test_worker_completes.py"
        "::test_a_job_that_was_lost_is_not_completed_with_the_others_of_its_group",
        Edit(
            "worker.completer:Completer._complete_shared",
            "left = NONE_LEFT if ended == len(group) else await self._left_of(group)",
            "left = NONE_LEFT",
        ),
    ),
    PlantedFault(
        "a group completed without its tokens",
        2,
        "worker/test_worker_completes.py"
        "::test_a_job_that_was_lost_is_not_completed_with_the_others_of_its_group",
        Edit(
            "worker.completer:Completer._end_together",
            "wanted = operations.held_any(ids, {attempt.record.token for attempt in group})",
            'wanted = {"_id": {"$in": ids}}',
        ),
    ),
    PlantedFault(
        "completes written one by one",
        11,
        "worker/test_worker_completes.py::test_handlers_that_finish_together_share_their_deletes",
        Edit("worker.completer", "MAX_GROUP = 1000", "MAX_GROUP = 1"),
    ),
    PlantedFault(
        "a complete given up at the first error",
        7,
        "worker/test_worker_completes.py"
        "::test_completes_whose_first_tries_fail_are_reported_completed_once",
        Edit(
            "worker.completer:Completer._give_up_overdue",
            "if attempt.lost or attempt.deadline < until:",
            "if attempt.lost or until:",
        ),
    ),
    # what is near, blocked or refused
    PlantedFault(
        "deadlines kept to the end of what was held before a late claim",
        2,
        f"{LEASES}::test_a_lease_that_ends_before_what_is_held_already_is_lost_at_its_end",
        Edit("worker.leases:Leases.add", "        self._deadlines.note(attempt.deadline)\n", ""),
    ),
    PlantedFault(
        "a late claim that is renewed after what was held before it",
        2,
        f"{LEASES}::test_a_late_reply_to_a_claim_is_renewed_before_what_is_held_already",
        Edit(
            "worker.leases:Leases",
            "        self.renewals.note(attempt.renew_at)\n\n    def remove(",
            "\n    def remove(",
        ),
    ),
    PlantedFault(
        "a lease shortened by the late answer to an older renewal",
        2,
        f"{LEASES}::test_a_late_reply_to_an_older_renewal_shortens_no_lease",
        Edit(
            "worker.execution.attempt:Attempt.extend",
            "max(self.deadline, sent + timeout - margin)",
            "sent + timeout - margin",
        ),
    ),
    PlantedFault(
        "a claim held whose lease was over before its reply",
        2,
        f"{LEASES}::test_a_lease_that_has_ended_before_its_claim_was_answered_is_never_held",
        Edit(
            "worker.leases:Leases.add",
            "        if attempt.deadline <= monotonic():\n",
            "        if False:\n",
        ),
    ),
    PlantedFault(
        "renewals that wait for somebody's open transaction",
        16,
        f"{TRANSACTIONS}"
        "::test_somebody_elses_open_transaction_holds_up_only_the_job_it_has_changed",
        Edit(
            "worker.leases:Leases._renew",
            "        limit = min(limit, left)\n",
            "        limit = left\n",
        ),
    ),
    PlantedFault(
        "completes that wait for somebody's open transaction",
        16,
        f"{TRANSACTIONS}::test_a_blocked_job_delays_no_other_complete",
        Edit(
            "worker.completer:Completer._complete_shared",
            "limit = min(self._limit.seconds, time_left(*group))",
            "limit = time_left(*group)",
        ),
    ),
    PlantedFault(
        "a complete that waits for its own transaction together with others",
        16,
        f"{TRANSACTIONS}::test_a_transaction_left_open_delays_only_the_complete_of_its_own_job",
        Edit(
            "worker.completer:Completer._complete_shared",
            "limit = min(self._limit.seconds, time_left(*group))",
            "limit = time_left(*group)",
        ),
        Edit(
            "worker.completer:Completer._complete_group",
            "                or attempt.in_transaction\n",
            "",
        ),
    ),
    PlantedFault(
        "renewals behind the snapshot of the handler's own transaction",
        2,
        f"{TRANSACTIONS}::test_a_transaction_longer_than_a_third_of_the_lease_completes_its_job",
        Edit(
            "worker.leases:Leases._may_be_renewed",
            "        if attempt.in_transaction:\n            self._renew",
            "        if False:\n            self._renew",
        ),
    ),
    PlantedFault(
        "a conflict told before the lease is renewed for the next try",
        2,
        f"{TRANSACTIONS}::test_a_lease_is_renewed_before_a_handler_hears_of_a_conflict",
        Edit(
            "worker.completer:Completer._complete_in",
            "await self._renew_after(attempt, error)",
            "pass",
        ),
    ),
    PlantedFault(
        "a complete begun in a transaction that cannot be committed in time",
        2,
        f"{TRANSACTIONS}::test_a_complete_that_the_lease_has_no_time_for_is_refused",
        Edit(
            "worker.completer:Completer._complete_in",
            "if attempt.deadline - monotonic() < LEAST_TIME:",
            "if False:",
        ),
    ),
    PlantedFault(
        "a handler lost for going on after its commit",
        2,
        f"{TRANSACTIONS}::test_a_handler_may_go_on_after_the_commit",
        Edit("worker.leases:Leases._not_ours", "if gone and attempt.completed:", "if False:"),
    ),
    PlantedFault(
        "a call of a job that waits for the job's own transaction",
        16,
        "contract/test_queue_transactions.py"
        "::test_a_call_that_would_wait_for_the_jobs_own_transaction_is_refused",
        Edit(
            "queue.view:JobView._check_beside_transaction",
            "        if self._ended or not ends:\n",
            "        if not self._ended:\n",
        ),
    ),
    PlantedFault(
        "a refused end tried again as if its outcome were unknown",
        13,
        "worker/test_worker_refused.py"
        "::test_an_end_that_is_refused_altogether_gives_the_slot_back_at_once",
        Edit("worker.ends:Ends._end", "if operations.is_refusal(error):", "if False:"),
    ),
    PlantedFault(
        "a block whose refused end is left to the lease",
        13,
        "contract/test_queue_refused.py"
        "::test_an_error_without_room_is_written_without_its_message[blocking]",
        Edit(
            "queue.ends:Ends._end",
            "yield from self._end_shortened(record, command, error)",
            "raise",
        ),
    ),
    PlantedFault(
        "one refused renewal that fails the others",
        13,
        f"{LEASES}::test_a_job_whose_renewal_is_refused_costs_no_other_its_lease",
        Edit(
            "protocol.operations.replies:is_spoiled",
            "(BSONError, ExecutionTimeout)) or is_refusal(error)",
            "(BSONError, ExecutionTimeout))",
        ),
    ),
    PlantedFault(
        "a refusal that hides that the majority has not answered",
        7,
        "unit/test_refusals.py::test_of_two_things_that_a_reply_says_the_doubt_is_raised",
        Edit(
            "protocol.operations.replies:check_reply",
            '    problem = reply.get("writeConcernError")\n    if problem:',
            '    problem = reply.get("writeConcernError")\n'
            '    if problem and not reply.get("writeErrors"):',
        ),
    ),
    # stopping, time passing
    PlantedFault(
        "jobs started whose claim was answered after the stop",
        12,
        "worker/test_worker_shutdown.py::test_a_claim_that_is_answered_after_a_stop_is_given_back",
        Edit(
            "worker.claims:Claims.take", "        if not self._stopping():\n", "        if True:\n"
        ),
    ),
    PlantedFault(
        "a drain that leaves what it stopped to its lease",
        12,
        "worker/test_worker_shutdown.py"
        "::test_a_handler_longer_than_the_drain_time_is_released_without_blame",
        Edit(
            "worker.execution.outcomes:_write",
            "elif end is INTERRUPTED:\n        await completer.end(attempt, end)\n",
            "elif end is INTERRUPTED:\n        pass\n",
        ),
    ),
    PlantedFault(
        "a reaper that polls",
        6,
        "worker/test_worker_reaper.py"
        "::test_a_reaper_looks_once_in_its_interval_when_nothing_is_running",
        Edit(
            "worker.reaper:Reaper.run_once",
            "return min(left, self._interval)",
            "return min(left, 0.05)",
        ),
    ),
    PlantedFault(
        "no look ahead after due jobs were promoted",
        3,
        "worker/test_worker_timers.py"
        "::test_jobs_scheduled_before_the_worker_started_are_run_when_due",
        Edit(
            "worker.scheduler:Timers.run_once",
            "            return await self._store.seconds_to_due(self._queues)\n",
            "            return math.inf\n",
        ),
    ),
    PlantedFault(
        "the slots of a queue whose jobs are left to another consumer, lent",
        15,
        "worker/test_worker_fairness.py"
        "::test_a_queue_whose_jobs_are_left_to_a_dead_consumer_lends_none_of_its_slots",
        Edit("worker.backlog:Backlog._read_lane", "limit, rather_others=True)", "limit)"),
    ),
    PlantedFault(
        "a call that a task's function cannot take, as a failed attempt",
        13,
        "worker/test_worker_tasks.py::test_arguments_that_do_not_fit_are_left_to_other_workers",
        Edit("worker.tasks.tasking:Tasking.task", "read=task.read,", "read=None,"),
    ),
)
