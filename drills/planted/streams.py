"""Faults on the way of a wake-up."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

EDITS = "contract/test_queue_edits.py"
CLOSE = "contract/test_queue_close.py"
OUTAGE = "contract/test_queue_outage.py"

FAULTS: tuple[PlantedFault, ...] = (
    # the stream
    PlantedFault(
        "only inserts announced",
        4,
        "contract/test_queue_wait.py::test_a_wait_ends_when_a_job_is_released[async]",
        Edit(
            "protocol.operations.events:stream_pipeline",
            '{"$match": {"$or": [whole, part, bell, *([waits] if dependents else [])]}}',
            '{"$match": whole}',
        ),
        Edit(
            "protocol.operations.events:stream_pipeline",
            '{"$in": ["insert", "replace"]}',
            '"insert"',
        ),
    ),
    PlantedFault(
        "replacements not announced",
        4,
        "contract/test_queue_wait.py"
        "::test_a_wait_ends_when_another_program_replaces_a_job_by_a_ready_one[async]",
        Edit(
            "protocol.operations.events:stream_pipeline",
            '{"$in": ["insert", "replace"]}',
            '"insert"',
        ),
    ),
    PlantedFault(
        "events of every queue sent to everybody",
        9,
        "unit/test_operations.py::test_an_event_passes_only_for_our_queues_or_if_it_does_not_say",
        Edit(
            "protocol.operations.events:stream_pipeline",
            '"fullDocument.queue": one_of(queues),\n        "fullDocument.state": {',
            '"fullDocument.state": {',
        ),
    ),
    PlantedFault(
        "a lost history taken for a lost connection",
        5,
        "unit/test_stream.py::test_each_error_has_its_verdict",
        Edit(
            "stream.verdict:classify",
            'return Verdict("history_lost", resume=False)',
            'return Verdict("history_lost", resume=True)',
        ),
    ),
    PlantedFault(
        "an election taken for a lost connection when the driver ran out of time over it",
        6,
        "unit/test_stream.py"
        "::test_what_broke_a_stream_is_its_first_error_not_that_the_driver_ran_out_of_time",
        Edit("stream.verdict:classify", "for each in _earlier(error)", "for each in ()"),
    ),
    PlantedFault(
        "the token kept after the history was lost",
        5,
        "worker/test_worker_stream.py::test_a_stream_is_resumed_unless_its_place_may_be_lost",
        Edit(
            "stream.watcher:Watcher._recover",
            "if not verdict.resume:",
            "if verdict.reason == 'never':",
        ),
    ),
    PlantedFault(
        "no look at the documents after the stream was opened again",
        4,
        "worker/test_worker_start_race.py"
        "::test_a_job_put_while_a_stream_takes_its_time_to_reopen_is_found_by_the_scan_after_it",
        Edit(
            "worker.listener:WorkerListener.opened",
            "        self._opened_before = True\n        self._claimer.opened()\n",
            "        if not self._opened_before:\n            self._claimer.opened()\n"
            "        self._opened_before = True\n",
        ),
    ),
    PlantedFault(
        "the look at the documents before the stream is open again",
        4,
        "worker/test_worker_start_race.py"
        "::test_a_job_put_while_a_stream_takes_its_time_to_reopen_is_found_by_the_scan_after_it",
        Edit(
            "stream.watcher:Watcher._open",
            "        self._listener.opened()\n        return stream\n",
            "        return stream\n",
        ),
        Edit(
            "stream.watcher:Watcher._open",
            "        with pymongo.timeout(OPEN_SECONDS):\n",
            "        self._listener.opened()\n        with pymongo.timeout(OPEN_SECONDS):\n",
        ),
    ),
    PlantedFault(
        "a claimer that is started, and looks, before the stream is open",
        4,
        "worker/test_worker_start_race.py"
        "::test_a_job_put_while_a_stream_takes_its_time_to_open_is_found_by_the_scan_after_it",
        Edit(
            "worker.run:Run._serve",
            "                await parts.start(part, self._source.run)\n",
            "                parts.start_soon(part, self._settings.run)\n"
            "                parts.start_soon(part, self._claimer.run)\n"
            "                await parts.start(part, self._source.run)\n",
        ),
        Edit(
            "worker.run:Run._serve",
            "                await parts.start(part, self._settings.run)\n                passing",
            "                passing",
        ),
        Edit(
            "worker.run:Run._serve",
            "                parts.start_soon(part, self._claimer.run)\n"
            "                logger.info(",
            "                logger.info(",
        ),
        Edit(
            "worker.listener:WorkerListener.opened",
            "        self._opened_before = True\n        self._claimer.opened()\n",
            "        if self._opened_before:\n            self._claimer.opened()\n"
            "        self._opened_before = True\n",
        ),
    ),
    PlantedFault(
        "the end of a stream's iteration taken for the end",
        4,
        "worker/test_worker_stream.py::test_a_worker_outlives_its_collection[drop]",
        Edit(
            "stream.watcher:Watcher._read_until_broken",
            "await self._recover(INVALIDATED, None)",
            "self._stopped.set()",
        ),
    ),
    PlantedFault(
        "a stream on the main client",
        5,
        "worker/test_worker_stream.py::test_a_wedged_connection_is_replaced",
        Edit(
            "stream.watcher:Watcher.run",
            'self._jobs.database.client._duplicate(**client_settings("streamqueue-stream"))',
            "self._jobs.database.client",
        ),
        Edit(
            "stream.watcher:Watcher.run",
            "                await client.close()\n",
            "                pass\n",
        ),
    ),
    PlantedFault(
        "a read of the stream without a bound",
        5,
        "worker/test_worker_stream.py::test_a_wedged_connection_is_replaced",
        Edit(
            "stream.watcher:Watcher._read",
            "with pymongo.timeout(self._max_await + WAIT_MARGIN):",
            "with pymongo.timeout(None):",
        ),
    ),
    PlantedFault(
        "a stream that is silent for half a minute after a clean shutdown",
        5,
        "unit/test_stream.py::test_the_streams_client_finds_a_new_primary_within_seconds",
        Edit(
            "stream.verdict:client_settings",
            '"serverSelectionTimeoutMS": 3000',
            '"serverSelectionTimeoutMS": 30000',
        ),
    ),
    PlantedFault(
        "an earlier time of a job makes no event",
        4,
        f"{EDITS}::test_an_edit_wakes_whoever_waits[blocking-an earlier time]",
        Edit(
            "protocol.operations.events",
            '(_updated(field) for field in ("queue", "priority", "seq", "run_at", ASKED_AT))',
            '(_updated(field) for field in ("queue", "priority", ASKED_AT))',
        ),
    ),
    PlantedFault(
        "every renewal wakes every consumer",
        9,
        f"{EDITS}::test_what_a_consumer_writes_all_the_time_makes_no_event",
        Edit(
            "protocol.operations.events",
            '{"$and": [_updated("locked_until"), _ends_soon(f"${_UPDATED}.locked_until")]},',
            '_updated("locked_until"),',
        ),
    ),
    PlantedFault(
        "events with the payload",
        9,
        f"{EDITS}::test_an_event_carries_the_head_of_the_job_and_never_its_payload",
        Edit(
            "protocol.operations.events",
            'HEAD = ("_id", "queue", "state", "priority", "seq", "run_at")',
            'HEAD = ("_id", "queue", "state", "priority", "seq", "run_at", "payload")',
        ),
    ),
    PlantedFault(
        "a job made ready by hand that is never given its place",
        4,
        "worker/test_worker_edits.py::test_a_job_without_a_place_that_is_made_ready_does_not_stand"
        "_behind_all_that_comes[alone]",
        Edit(
            "worker.listener:WorkerListener.event",
            'self._claimer.scan("stream", adopt=True)',
            "self.more(False)",
        ),
    ),
    PlantedFault(
        "a dispatcher that passes no ended lease on",
        3,
        "worker/test_worker_edits.py::test_every_edit_by_hand_that_makes_a_job_runnable_has_it_run"
        "[dispatched]",
        Edit(
            "processes.dispatcher:Dispatcher.event",
            "            self._have_one_look()\n",
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a late claim that counts as a missed wake-up",
        4,
        "worker/test_worker_sweep.py::test_a_job_whose_claim_is_late_is_not_missed",
        Edit(
            "worker.claimer:Claimer.run", "self._under_way = True  #", "self._under_way = False  #"
        ),
    ),
    PlantedFault(
        "a claim given back that counts as a missed wake-up",
        4,
        "worker/test_worker_sweep.py"
        "::test_a_job_that_was_claimed_and_given_back_meanwhile_is_not_missed",
        Edit(
            "worker.scheduler:Sweep.run_once",
            "                left.pop(job_id, None)\n",
            "                pass\n",
        ),
    ),
    # waiting: the doorbells, and the shells that wait
    PlantedFault(
        "close waits for whoever reads",
        12,
        f"{CLOSE}::test_a_signal_handler_may_close_the_queue_whose_wait_it_interrupts[iteration]",
        Edit(
            "stream.doorbell:Doorbell._shut_if_closed",
            "self._shut_at != self.closings and self._turn.acquire(blocking=False)",
            "self._shut_at != self.closings and self._turn.acquire()",
        ),
    ),
    PlantedFault(
        "a close during the first look is forgotten",
        12,
        f"{CLOSE}::test_a_close_during_the_first_look_of_a_wait_ends_it[blocking-next]",
        Edit(
            "queue.consumer:Consumer.wait",
            "                listening = True\n                continue",
            "                listening, closings = True, bell.closings\n                continue",
        ),
    ),
    PlantedFault(
        "a close during the first look is forgotten in the async shell",
        12,
        f"{CLOSE}::test_a_close_during_the_first_look_of_a_wait_ends_it[async-next]",
        Edit(
            "queue.consumer:Consumer.wait",
            "                listening = True\n                continue",
            "                listening, closings = True, bell.closings\n                continue",
        ),
    ),
    PlantedFault(
        "a forked child shuts its parent's stream",
        12,
        f"{CLOSE}::test_a_forked_child_that_closes_the_queue_leaves_its_parent_the_stream",
        Edit(
            "stream.doorbell:Doorbell.close",
            "        if os.getpid() == self._pid:",
            "        if True:",
        ),
    ),
    PlantedFault(
        "whoever reads leaves the stream of a closed queue open",
        15,
        f"{CLOSE}::test_a_close_during_the_opening_of_the_stream_ends_the_wait_and_leaves_no_stream"
        "[blocking]",
        Edit(
            "stream.doorbell:Doorbell._pass_turn",
            "            self._news.notify_all()\n        self._shut_if_closed()\n",
            "            self._news.notify_all()\n",
        ),
    ),
    PlantedFault(
        "an outage ends a wait",
        5,
        f"{OUTAGE}::test_a_wait_outlasts[blocking-no answer in time]",
        Edit(
            "queue.consumer:Consumer._outlasts",
            "return self._store.clock.known if passes(error) else self._looked",
            "return False",
        ),
    ),
    PlantedFault(
        "an outage ends an async wait",
        5,
        f"{OUTAGE}::test_a_wait_outlasts[async-no answer in time]",
        Edit(
            "queue.consumer:Consumer._outlasts",
            "return self._store.clock.known if passes(error) else self._looked",
            "return False",
        ),
    ),
    PlantedFault(
        "an outage at the end of a wait taken for no job",
        5,
        f"{OUTAGE}::test_a_wait_that_ends_in_an_outage_raises_what_the_server_said_last[blocking]",
        Edit(
            "queue.consumer:Consumer.wait",
            "                if monotonic() >= deadline or not self._outlasts(error):\n",
            "                if monotonic() >= deadline:\n                    return []\n"
            "                if not self._outlasts(error):\n",
        ),
    ),
    PlantedFault(
        "missing rights that are waited for from the first",
        14,
        f"{OUTAGE}::test_the_first_contact_may_refuse_a_wait[blocking-aggregate]",
        Edit(
            "queue.consumer:Consumer._outlasts",
            "is_final(error) or self._doorbell.refused",
            "is_final(error)",
        ),
    ),
    PlantedFault(
        "pauses between tries that overflow",
        5,
        "unit/test_stream.py::test_the_pauses_grow_up_to_a_limit_however_many_there_are",
        Edit(
            "stream.verdict:Pace.failed",
            "AGAIN.delay(self._failures) if",
            "min(5.0, 0.1 * 2.0**self._failures) if",
        ),
    ),
    PlantedFault(
        "a member that is not initiated again refuses who knew it",
        5,
        "contract/test_queue_surroundings.py::test_nor_is_it_refused_by_the_async_store",
        Edit(
            "store.flows.setting_up:prepare",
            "            if not store.clock.known:\n                raise\n",
            "            raise\n",
        ),
    ),
    PlantedFault(
        "whoever waits looks after its own queue alone",
        3,
        f"{EDITS}::test_whoever_waits_returns_what_the_dead_held_in_other_queues[blocking]",
        Edit(
            "queue.consumer:Consumer.wait",
            "expired = yield from self._expired_elsewhere()",
            "expired = False",
        ),
    ),
    PlantedFault(
        "a reaper that looks at nothing it was not told of",
        3,
        "worker/test_worker_reaper.py"
        "::test_a_lease_in_a_queue_that_nobody_serves_is_returned_by_whoever_is_left",
        Edit("worker.reaper:Reaper.run_once", "return min(left, self._interval)", "return left"),
    ),
    PlantedFault(
        "a client that does not bear the cancellation of its commands",
        5,
        "unit/test_driver.py::test_commands_cancelled_while_there_is_no_server_stop_no_later_one",
        Edit(
            "driver:bear_cancellation", "        pymongo.lock.wait_for = _wait_for", "        pass"
        ),
    ),
)
