"""Faults in pausing a queue."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

CONTRACT = "contract/test_queue_pause.py"
WORKER = "worker/test_worker_pause.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "members asked to fetch, on and on, while all queues are paused",
        6,
        "worker/test_worker_pause.py"
        "::test_a_dispatcher_asks_nobody_to_fetch_while_all_of_its_queues_are_paused",
        Edit(
            "processes.waiting_jobs:WaitingJobs._have_one_fetch",
            " if self._settings.plain_queues() else None",
            "",
        ),
        Edit(
            "processes.waiting_jobs:WaitingJobs.loaded",
            " and bool(self._settings.plain_queues())",
            "",
        ),
    ),
    PlantedFault(
        "members told of a change only if the dispatcher sees a difference",
        17,
        "worker/test_worker_pause.py"
        "::test_a_pause_that_is_over_before_a_dispatcher_has_read_of_it_is_told_too",
        Edit(
            "processes.dispatcher:Dispatcher.event",
            "            self._members.broadcast(Bell(bell=True))\n            self._bell_told = True\n",
            "",
        ),
    ),
    PlantedFault(
        "a worker that claims before it has read the settings",
        4,
        f"{WORKER}::test_the_first_claim_waits_until_the_settings_can_be_read",
        Edit("worker.claimer:Claimer.run", "elif not self._settings.sure:", "elif False:"),
    ),
    PlantedFault(
        "a claim that begins its jobs though their queue was paused meanwhile",
        4,
        f"{WORKER}::test_a_claim_that_is_answered_after_the_pause_begins_nothing",
        Edit("worker.delivery:Delivery.deliver", "if queue in self._settings.paused:", "if False:"),
    ),
    PlantedFault(
        "jobs of a paused queue that were claimed ahead are kept",
        4,
        f"{WORKER}::test_what_was_claimed_and_not_begun_is_given_back_with_its_attempts_as_before",
        Edit("worker.parts:Parts._settings_read", "        if paused:\n", "        if False:\n"),
    ),
    PlantedFault(
        "a pause that nobody notices while the stream rests",
        4,
        f"{WORKER}::test_a_pause_is_noticed_while_the_stream_rests",
        Edit("stream.watcher:Watcher._unloaded_within", "self._listener.bell()", "pass"),
    ),
    PlantedFault(
        "a stream that was silent for long taken for one that has heard nothing",
        4,
        f"{WORKER}::test_a_worker_whose_stream_is_cut_reads_the_settings_before_its_next_claim",
        Edit(
            "store.known_settings:KnownSettings.sure_until",
            "            return self._read_at + SURE_FOR\n"
            "        return max(self._read_at, heard_at) + SURE_FOR\n",
            "            return self._read_at + SURE_FOR\n"
            "        return self._read_at + 3600 * SURE_FOR\n",
        ),
    ),
    PlantedFault(
        "members of a dispatcher that are not told of a pause",
        4,
        f"{WORKER}::test_a_dispatcher_tells_its_members_of_a_pause_and_of_its_end",
        Edit(
            "processes.dispatcher:Dispatcher._settings_read",
            "self._members.broadcast(Bell(bell=True))",
            "pass",
        ),
    ),
    PlantedFault(
        "a dispatcher that hands out the jobs of a paused queue",
        4,
        f"{WORKER}"
        "::test_idle_members_of_a_dispatcher_leave_a_paused_queue_alone_and_wake_when_it_goes_on",
        Edit(
            "processes.waiting_jobs:WaitingJobs.ready",
            'if job["queue"] in self._settings.paused:',
            "if False:",
        ),
    ),
    PlantedFault(
        "jobs of a paused queue counted as missed",
        4,
        f"{WORKER}"
        "::test_a_bell_that_never_rang_is_made_good_by_the_sweep_which_misses_no_paused_job",
        Edit(
            "worker.scheduler:Sweep._waiting",
            "self._store.unclaimable.full or not self._claimer.open_queues()",
            "self._store.unclaimable.full",
        ),
        Edit(
            "worker.scheduler:Sweep._command",
            "self._claimer.open_queues()",
            "list(self._handlers)",
        ),
    ),
    PlantedFault(
        "a bell whose first ring is not let through",
        4,
        f"{CONTRACT}::test_every_wait_for_a_resumed_queue_is_woken_at_once[async]",
        Edit(
            "protocol.operations.events",
            '        {"$eq": ["$documentKey._id", BELL]},\n',
            "",
        ),
    ),
    PlantedFault(
        "settings that are not read anew when the stream was opened again",
        4,
        f"{CONTRACT}::test_a_pause_is_heard_also_when_the_stream_broke_meanwhile[blocking]",
        Edit(
            "stream.doorbell:Doorbell._open",
            "        self.bells += 1  # it may have rung before\n",
            "",
        ),
    ),
    PlantedFault(
        "a queue object that reads the settings for every claim",
        6,
        f"{CONTRACT}::test_a_queue_object_reads_the_settings_once_in_two_seconds[async]",
        Edit(
            "queue.steering.present_settings:PresentSettings.paused",
            "if self._known.rung or",
            "if True or",
        ),
    ),
    PlantedFault(
        "a validator that refuses the bell",
        18,
        f"{CONTRACT}::test_the_validator_lets_the_bell_ring[blocking]",
        Edit("protocol.schema", "_HOLDS_A_KEY, _IS_THE_BELL]}", "_HOLDS_A_KEY]}"),
    ),
)
