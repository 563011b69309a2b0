"""The faults that are planted in a copy of the code, each with the test that must notice it.

A fault is what somebody might well write: a filter without its token, a wait without its bound. Its
text must occur exactly once in its file; when the code has moved on it is written anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """A place in the code, and what stands there instead.

    Attributes:
        file: its path in the package.
        text: whole or part lines, to the letter.
        instead: what replaces them.
    """

    file: str
    text: str
    instead: str

    def apply(self, package: Path) -> None:
        """Change the file in this copy of the package.

        Raises:
            ValueError: the text is not there, or more than once.
        """
        path = package / self.file
        source = path.read_text()
        if (count := source.count(self.text)) != 1:
            raise ValueError(f"{self.file} has {count} times, not once: {self.text!r}")
        path.write_text(source.replace(self.text, self.instead))


class PlantedFault:
    """A fault to plant.

    Args:
        name: what is wrong, as part of a sentence.
        law: the number of the law that it breaks.
        caught_by: the test that must fail: a file in ``tests/`` and, after ``::``, the test.
        edits: what to change.
    """

    def __init__(self, name: str, law: int, caught_by: str, *edits: Edit) -> None:
        self.name = name
        self.law = law
        self.caught_by = f"tests/{caught_by}"
        self.edits = edits

    def plant(self, package: Path) -> None:
        """Change a copy of the package.

        Raises:
            ValueError: the code has moved on, and the fault needs to be written anew.
        """
        for edit in self.edits:
            try:
                edit.apply(package)
            except ValueError as error:
                raise ValueError(f"write the fault {self.name!r} anew: {error}") from None


NOT_HELD = "contract/test_queue_held.py::test_a_job_that_is_no_longer_held_cannot_be_changed"
"""Every call on a job, after every way to lose it."""
DEALER = "cli/test_worker_dealer.py"
TABLE = "worker/test_worker_dealer.py"
TABLE_FAULTS = "worker/test_worker_dealer_faults.py"

FAULTS: tuple[PlantedFault, ...] = (
    # the fences: operations.py, and the shells that complete
    PlantedFault(
        "complete without the token",
        2,
        "contract/test_queue_held.py::test_the_new_holder_is_not_disturbed_by_the_old_one",
        Edit(
            "queue.py",
            "        wanted = operations.held(record.id, record.token)\n"
            "        if not self._jobs.delete_one(",
            '        wanted = {"_id": record.id}\n        if not self._jobs.delete_one(',
        ),
    ),
    PlantedFault(
        "complete without the token in the async shell",
        2,
        "contract/test_queue_held.py::test_the_new_holder_is_not_disturbed_by_the_old_one",
        Edit(
            "async_queue.py",
            "        wanted = operations.held(record.id, record.token)\n"
            "        with CancelScope(shield=True):\n",
            '        wanted = {"_id": record.id}\n        with CancelScope(shield=True):\n',
        ),
    ),
    PlantedFault(
        "error without the token",
        2,
        f"{NOT_HELD}[blocking-error-give_it_to_another]",
        Edit(
            "operations.py",
            "Update(held(job_id, token), _fail(message, delay, _exhausted(max_attempts)))",
            'Update({"_id": job_id}, _fail(message, delay, _exhausted(max_attempts)))',
        ),
    ),
    PlantedFault(
        "release without the token",
        2,
        f"{NOT_HELD}[blocking-release-give_it_to_another]",
        Edit(
            "operations.py",
            "Update(held(job_id, token), _release(delay))",
            'Update({"_id": job_id}, _release(delay))',
        ),
    ),
    PlantedFault(
        "progress without the token",
        2,
        f"{NOT_HELD}[blocking-progress-give_it_to_another]",
        Edit(
            "queue.py",
            "        wanted = operations.held(record.id, record.token)\n        self._end(",
            '        wanted = {"_id": record.id}\n        self._end(',
        ),
    ),
    PlantedFault(
        "the holder known by its name instead of its token",
        2,
        f"{NOT_HELD}[blocking-complete-give_it_to_a_namesake]",
        Edit(
            "operations.py",
            'return {"_id": job_id, "lease": token}',
            'return {"_id": job_id, "locked_by": "consumer-1"}',
        ),
    ),
    PlantedFault(
        "renewal without the tokens",
        2,
        "worker/test_worker_leases.py::test_only_the_handler_whose_lease_was_lost_is_cancelled",
        Edit(
            "operations.py",
            'return {"_id": _in(ids), "lease": _in(list(tokens))}',
            'return {"_id": _in(ids)}',
        ),
    ),
    PlantedFault(
        "undoing a claim without its token",
        2,
        "unit/test_operations.py::test_an_unclaim_matches_only_what_its_own_claim_took",
        Edit(
            "operations.py",
            'Update({"_id": _in(ids), "lease": token}, _release(None))',
            'Update({"_id": _in(ids)}, _release(None))',
        ),
    ),
    PlantedFault(
        "a claim of whatever state the job is in",
        2,
        "contract/test_queue_claim.py::test_no_two_of_many_consumers_get_the_same_job",
        Edit(
            "operations.py",
            'wanted: Document = {"_id": _in(ids), "state": "ready"}\n    if fresh:',
            'wanted: Document = {"_id": _in(ids)}\n    if fresh:',
        ),
    ),
    PlantedFault(
        "one token for all claims of a process",
        2,
        "contract/test_queue_claim.py::test_every_claim_has_a_token_of_its_own",
        Edit("operations.py", "return os.urandom(16)", 'return b"%16d" % os.getpid()'),
    ),
    PlantedFault(
        "a job given back with the token still on it",
        2,
        "contract/test_queue_held.py::test_a_job_that_is_given_back_carries_no_lock",
        Edit(
            "operations.py", '"locked_until", "lease"), "$$REMOVE")', '"locked_until"), "$$REMOVE")'
        ),
    ),
    # what users write: $literal, sizes, keys
    PlantedFault(
        "error text without $literal",
        14,
        "contract/test_queue_held.py::test_a_message_is_stored_as_it_is",
        Edit(
            "operations.py", '_note({"$literal": cut_error(message)})', "_note(cut_error(message))"
        ),
    ),
    PlantedFault(
        "the consumer's name without $literal",
        14,
        "contract/test_queue_held.py::test_a_name_of_a_consumer_is_stored_as_it_is",
        Edit("operations.py", '"locked_by": {"$literal": consumer}', '"locked_by": consumer'),
    ),
    PlantedFault(
        "progress without $literal",
        14,
        "unit/test_operations.py::test_a_progress_count_is_never_evaluated",
        Edit("operations.py", '{"$literal": progress}', "progress"),
    ),
    PlantedFault(
        "a payload of any size",
        14,
        "unit/test_payload.py::test_a_payload_over_the_size_limit_is_refused_with_both_numbers",
        Edit("document.py", "if len(encoded) > MAX_PAYLOAD_BYTES:", "if False:"),
    ),
    PlantedFault(
        "a flat payload that comes back as a DBRef",
        14,
        "unit/test_payload.py::test_a_mapping_that_cannot_be_a_payload_is_refused",
        Edit("document.py", '(flat and "$ref" not in payload) or', "flat or"),
    ),
    PlantedFault(
        "a key that several live jobs may have",
        1,
        "contract/test_queue_put.py::test_a_second_live_job_with_the_key_is_refused",
        Edit("document.py", "unique=True", "unique=False"),
    ),
    PlantedFault(
        "an exception's text in the log",
        14,
        "worker/test_worker_privacy.py"
        "::test_no_payload_and_no_exception_text_is_logged_or_measured_or_printed",
        Edit(
            "worker/execution.py",
            '        name or "said by its handler",\n',
            "        error,\n",
        ),
    ),
    PlantedFault(
        "a list of errors without an end",
        15,
        "contract/test_queue_held.py::test_the_last_five_errors_are_kept",
        Edit(
            "operations.py",
            '{"$slice": [{"$concatArrays": [errors, [entry]]}, -MAX_ERRORS]}',
            '{"$concatArrays": [errors, [entry]]}',
        ),
    ),
    # time
    PlantedFault(
        "leases and due times compared with this machine's clock",
        8,
        "unit/test_operations.py::test_no_command_carries_a_time_of_this_machine",
        Edit(
            "operations.py",
            '    no_moment = {"$type": ["timestamp", "regex", "maxKey"]}\n'
            '    return {"$or": [{"$expr": {"$lte": [f"${field}", "$$NOW"]}}',
            "    from datetime import UTC, datetime\n\n"
            '    no_moment = {"$type": ["timestamp", "regex", "maxKey"]}\n'
            '    return {"$or": [{field: {"$lte": datetime.now(UTC)}}',
        ),
    ),
    PlantedFault(
        "a lease that ends by this machine's clock",
        8,
        "contract/test_queue_clocks.py::test_a_lease_is_as_long_as_the_timeout",
        Edit(
            "operations.py",
            '    return {"$add": ["$$NOW", milliseconds(delay)]}\n',
            "    import time\n    from datetime import UTC, datetime\n\n"
            "    return datetime.fromtimestamp(time.time() + milliseconds(delay) / 1000, UTC)\n",
        ),
    ),
    PlantedFault(
        "a put with the time of this machine",
        8,
        "contract/test_queue_clocks.py::test_a_job_is_created_at_the_servers_time",
        Edit(
            "clock.py",
            "return self._server_time + timedelta(seconds=monotonic() - self._observed_at)",
            "return datetime.fromtimestamp(time.time(), self._server_time.tzinfo)",
        ),
    ),
    PlantedFault(
        "a reaper that does not check the lease again",
        2,
        "unit/test_operations.py::test_what_time_does_to_a_job_is_checked_again_in_the_update",
        Edit(
            "operations.py",
            '{"_id": _in(ids), "state": "running", **_past("locked_until")}',
            '{"_id": _in(ids), "state": "running"}',
        ),
    ),
    # attempts
    PlantedFault(
        "attempts not counted at the claim",
        13,
        "contract/test_queue_claim.py::test_a_claim_counts_as_an_attempt",
        Edit(
            "operations.py",
            '"attempts": {"$add": [_count("attempts", 0), 1]},',
            '"attempts": _count("attempts", 0),',
        ),
    ),
    PlantedFault(
        "a release that does not give the attempt back",
        12,
        "contract/test_queue_held.py::test_a_released_job_is_as_it_was_before_the_claim",
        Edit(
            "operations.py",
            '"attempts": {"$max": [0, {"$subtract": [_count("attempts", 1), 1]}]},',
            '"attempts": _count("attempts", 1),',
        ),
    ),
    PlantedFault(
        "one attempt more than was asked for",
        13,
        "contract/test_queue_held.py::test_a_job_is_dead_when_its_attempts_are_used_up",
        Edit(
            "operations.py",
            'return {"$gte": [_count("attempts", 0)',
            'return {"$gt": [_count("attempts", 0)',
        ),
    ),
    PlantedFault(
        "a job that no claim can change, tried for ever",
        13,
        "worker/test_worker_claims.py"
        "::test_a_job_that_the_validator_refuses_to_have_claimed_stops_no_other",
        Edit("operations.py", '    121: "DocumentValidationFailure",\n', ""),
    ),
    # what is acknowledged: server.py, put.py, the shells
    PlantedFault(
        "writes at w:1",
        1,
        "unit/test_server.py::test_the_users_concerns_are_not_inherited",
        Edit("server.py", 'WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS)', "WriteConcern(1)"),
    ),
    PlantedFault(
        "scans with read concern majority",
        4,
        "unit/test_server.py::test_the_users_concerns_are_not_inherited",
        Edit("server.py", 'ReadConcern("local")', 'ReadConcern("majority")'),
    ),
    PlantedFault(
        "scans of a secondary",
        4,
        "unit/test_server.py::test_the_users_concerns_are_not_inherited",
        Edit("server.py", "ReadPreference.PRIMARY,", "ReadPreference.SECONDARY_PREFERRED,"),
    ),
    PlantedFault(
        "a claim of a worker at w:1",
        2,
        "worker/test_worker_claims.py::test_whatever_a_worker_writes_to_a_job_waits_for_the_majority",
        Edit(
            "worker/claimer.py",
            "won = (await self._store.jobs.update_one(*command)).modified_count",
            "quickly = self._store.jobs.with_options(write_concern=WriteConcern(1))\n"
            "                        won = (await quickly.update_one(*command)).modified_count",
        ),
        Edit(
            "worker/claimer.py",
            "from pymongo.errors import OperationFailure, PyMongoError\n",
            "from pymongo import WriteConcern\n"
            "from pymongo.errors import OperationFailure, PyMongoError\n",
        ),
    ),
    PlantedFault(
        "a put that is given a new id each time it is repeated",
        7,
        "contract/test_queue_put.py::test_a_put_may_be_repeated_with_the_same_id",
        Edit("put.py", "id=job_id or ObjectId(),", "id=ObjectId(),"),
    ),
    PlantedFault(
        "puts of a group reported stored whatever the server said",
        1,
        "contract/test_queue_put.py::test_of_puts_at_the_same_time_only_the_duplicate_fails",
        Edit(
            "async_queue.py",
            "return operations.errors_of_each(error, len(documents))",
            "error.details",
        ),
    ),
    PlantedFault(
        "an end of a job that its caller's cancellation stops half-way",
        7,
        "contract/test_queue_cancellation.py"
        "::test_what_ends_a_job_is_carried_out_although_its_caller_is_cancelled",
        Edit(
            "async_queue.py",
            "        with CancelScope(shield=True):\n"
            "            result = await self._jobs.update_one(*command)\n",
            "        result = await self._jobs.update_one(*command)\n",
        ),
    ),
    PlantedFault(
        "a claim that failed, in a queue, not given back",
        7,
        "contract/test_queue_claim.py::test_a_claim_that_may_not_be_durable_is_given_back_at_once",
        Edit(
            "store.py",
            "        except OperationFailure as error:\n            self.untake(ids, token)\n",
            "        except OperationFailure as error:\n",
        ),
    ),
    PlantedFault(
        "a claim that failed, in a worker, not given back",
        7,
        "worker/test_worker_claims.py::test_failing_claims_are_tried_again_and_use_up_no_attempt",
        Edit(
            "worker/claimer.py",
            "                await self._store.untake(ids, token)\n",
            "",
        ),
    ),
    # the stream
    PlantedFault(
        "only inserts announced",
        4,
        "contract/test_queue_wait.py::test_a_wait_ends_when_a_job_is_released[async]",
        Edit("operations.py", '{"$in": ["insert", "replace"]}', '"insert"'),
        Edit(
            "operations.py",
            '{"operationType": "update", "updateDescription.updatedFields.state": states},\n',
            "",
        ),
    ),
    PlantedFault(
        "replacements not announced",
        4,
        "contract/test_queue_wait.py"
        "::test_a_wait_ends_when_another_program_replaces_a_job_by_a_ready_one[async]",
        Edit("operations.py", '{"$in": ["insert", "replace"]}', '"insert"'),
    ),
    PlantedFault(
        "events of every queue sent to everybody",
        9,
        "unit/test_operations.py::test_an_event_passes_only_for_our_queues_or_if_it_does_not_say",
        Edit("operations.py", '"fullDocument.queue": _in(queues),\n', "\n"),
    ),
    PlantedFault(
        "a lost history taken for a lost connection",
        5,
        "unit/test_stream.py::test_each_error_has_its_verdict",
        Edit(
            "stream.py",
            'return Verdict("history_lost", resume=False)',
            'return Verdict("history_lost", resume=True)',
        ),
    ),
    PlantedFault(
        "the token kept after the history was lost",
        5,
        "worker/test_worker_stream.py::test_a_stream_is_resumed_unless_its_place_may_be_lost",
        Edit("watcher.py", "if not verdict.resume:", "if verdict.reason == 'never':"),
    ),
    PlantedFault(
        "no look at the documents after the stream was opened again",
        4,
        "worker/test_worker_start_race.py"
        "::test_a_job_put_while_a_stream_takes_its_time_to_reopen_is_found_by_the_scan_after_it",
        Edit(
            "worker/run.py",
            "        self._opened_before = True\n        self._claimer.scan(adopt=True)\n",
            "        if not self._opened_before:\n            self._claimer.scan(adopt=True)\n"
            "        self._opened_before = True\n",
        ),
    ),
    PlantedFault(
        "the look at the documents before the stream is open again",
        4,
        "worker/test_worker_start_race.py"
        "::test_a_job_put_while_a_stream_takes_its_time_to_reopen_is_found_by_the_scan_after_it",
        Edit(
            "watcher.py",
            "        self._listener.opened()\n        return stream\n",
            "        return stream\n",
        ),
        Edit(
            "watcher.py",
            "        with pymongo.timeout(10):\n",
            "        self._listener.opened()\n        with pymongo.timeout(10):\n",
        ),
    ),
    PlantedFault(
        "a claimer that is started, and looks, before the stream is open",
        4,
        "worker/test_worker_start_race.py"
        "::test_a_job_put_while_a_stream_takes_its_time_to_open_is_found_by_the_scan_after_it",
        Edit(
            "worker/run.py",
            "                await parts.start(self._hand.run)\n",
            "                parts.start_soon(self._claimer.run)\n"
            "                await parts.start(self._hand.run)\n",
        ),
        Edit(
            "worker/run.py",
            "                parts.start_soon(self._claimer.run)\n                logger.info(",
            "                logger.info(",
        ),
        Edit(
            "worker/run.py",
            "        self._opened_before = True\n        self._claimer.scan(adopt=True)\n",
            "        if self._opened_before:\n            self._claimer.scan(adopt=True)\n"
            "        self._opened_before = True\n",
        ),
    ),
    PlantedFault(
        "the end of a stream's iteration taken for the end",
        4,
        "worker/test_worker_stream.py::test_a_worker_outlives_its_collection[drop]",
        Edit("watcher.py", "await self._recover(INVALIDATED, None)", "self._stopped.set()"),
    ),
    PlantedFault(
        "a stream on the main client",
        5,
        "worker/test_worker_stream.py::test_a_wedged_connection_is_replaced",
        Edit(
            "watcher.py",
            'self._jobs.database.client._duplicate(**client_settings("streamqueue-stream"))',
            "self._jobs.database.client",
        ),
        Edit("watcher.py", "                await client.close()\n", "                pass\n"),
    ),
    PlantedFault(
        "a read of the stream without a bound",
        5,
        "worker/test_worker_stream.py::test_a_wedged_connection_is_replaced",
        Edit(
            "watcher.py",
            "with pymongo.timeout(self._max_await + WAIT_MARGIN):",
            "with pymongo.timeout(None):",
        ),
    ),
    PlantedFault(
        "a stream that is silent for half a minute after a clean shutdown",
        5,
        "unit/test_stream.py::test_the_streams_client_finds_a_new_primary_within_seconds",
        Edit("stream.py", '"serverSelectionTimeoutMS": 3000', '"serverSelectionTimeoutMS": 30000'),
    ),
    # the worker's claims
    PlantedFault(
        "no look when a slot comes free",
        4,
        "worker/test_worker_claims.py"
        "::test_a_job_announced_while_every_slot_is_busy_is_run_when_one_comes_free",
        Edit(
            "worker/claimer.py",
            "        if self._scan_for is not None or self._slots.free < 1:\n"
            '            self._scan_for = self._scan_for or "stream"\n',
            "        if self._scan_for is not None or self._slots.free < 1:\n",
        ),
    ),
    PlantedFault(
        "jobs whose turn is a dead peer's, left for ever",
        3,
        "worker/test_worker_peers.py"
        "::test_jobs_whose_turn_is_a_consumers_that_never_comes_are_taken_by_others[0]",
        Edit("worker/claimer.py", "            self._wait_for_turn(turn)\n", ""),
    ),
    PlantedFault(
        "a backlog's jobs whose turn is a dead peer's, left for ever",
        3,
        "worker/test_worker_peers.py"
        "::test_a_more_urgent_job_is_not_left_to_a_consumer_that_never_comes",
        Edit(
            "worker/claimer.py",
            "                if self._backlog.left:\n                    self._wait_for_turn(1)\n",
            "",
        ),
    ),
    PlantedFault(
        "everybody going for every job at once",
        10,
        "worker/test_worker_peers.py::test_idle_workers_leave_jobs_to_the_one_whose_turn_it_is",
        Edit(
            "worker/peers.py",
            "return min((place - number) % count for place in places)",
            "return 0",
        ),
    ),
    # the dealer of several processes
    PlantedFault(
        "nobody is told to look for what was dealt to a process that does nothing about it",
        4,
        f"{DEALER}::test_a_process_that_stands_still_keeps_no_job_that_it_was_dealt",
        Edit("worker/table.py", "                if seat.late:\n", "                if False:\n"),
    ),
    PlantedFault(
        "nobody is told to look for what was dealt to a process that has died",
        4,
        f"{DEALER}::test_a_process_killed_with_a_job_just_dealt_to_it_does_not_take_it_along",
        Edit(
            "worker/dealer.py",
            "        if self.stopping:\n            return\n        if seat.owes",
            "        return\n        if seat.owes",
        ),
    ),
    PlantedFault(
        "a process waits for a silent dealer for ever",
        4,
        f"{DEALER}::test_a_dealer_that_stands_still_keeps_no_job_waiting_for_long",
        Edit("worker/hand.py", "SILENT_AFTER if self._dealt_to else None", "None"),
    ),
    PlantedFault(
        "a process never returns to a dealer that was silent",
        6,
        f"{DEALER}::test_a_dealer_that_stands_still_keeps_no_job_waiting_for_long",
        Edit(
            "worker/hand.py",
            "            if patience.cancelled_caught:\n                self._be_dealt_to(False)\n",
            "            if patience.cancelled_caught:\n                feed.close()\n",
        ),
    ),
    PlantedFault(
        "a process keeps the stream of its own when there is a dealer again",
        6,
        f"{DEALER}::test_a_dealer_killed_amid_jobs_costs_none_and_another_takes_its_place",
        Edit(
            "worker/hand.py",
            "            if self._watcher is not None:\n                self._watcher.stop()\n"
            "            logger.info(",
            "            logger.info(",
        ),
    ),
    PlantedFault(
        "nobody is introduced to a dealer that took another's place",
        6,
        f"{DEALER}::test_a_dealer_killed_amid_jobs_costs_none_and_another_takes_its_place",
        Edit(
            "worker/processes.py",
            "                    for other in self._running.values():\n"
            "                        self._introduce(other)\n",
            "",
        ),
    ),
    PlantedFault(
        "processes that each listen for themselves",
        6,
        f"{DEALER}::test_idle_processes_and_their_dealer_hold_one_stream",
        Edit("worker/processes.py", "                self._introduce(running)\n", ""),
    ),
    PlantedFault(
        "a dealer that is stopped before those it deals to",
        6,
        f"{DEALER}::test_the_dealer_is_the_last_to_end",
        Edit(
            "worker/processes.py",
            "        for running in self._running.values():\n            running.tell(order)\n",
            "        if self._dealer is not None:\n            self._dealer.tell(order)\n"
            "        for running in self._running.values():\n            running.tell(order)\n",
        ),
    ),
    PlantedFault(
        "a dealer that dies of the signal that tells it to stop",
        12,
        f"{DEALER}::test_a_dealer_that_is_sent_the_signal_deals_until_its_processes_have_left",
        Edit("worker/dealer.py", "            if handle_signals and ", "            if False and "),
    ),
    PlantedFault(
        "a supervisor that waits for its dealer for ever",
        12,
        f"{DEALER}::test_a_dealer_that_stands_still_does_not_keep_the_supervisor_from_ending",
        Edit("worker/processes.py", "            dealer.process.kill()\n", "            pass\n"),
    ),
    PlantedFault(
        "a watchdog that does not see to the dealer",
        4,
        "cli/test_notify.py::test_a_dealer_that_stands_still_is_killed_and_another_takes_its_place",
        Edit(
            "worker/processes.py",
            "self._silence if was_ready else None",
            "self._silence if was_ready and number != DEALER else None",
        ),
    ),
    PlantedFault(
        "jobs that a process gave up without a word are not read again",
        4,
        f"{TABLE}::test_waiting_jobs_that_a_worker_gave_up_are_dealt_again",
        Edit("worker/dealer.py", "            if seat.owes_jobs:\n", "            if False:\n"),
    ),
    PlantedFault(
        "waiting jobs dealt to two processes",
        10,
        f"{TABLE}::test_a_backlog_is_drained_by_all_without_a_lost_claim[20]",
        Edit("worker/backlog.py", "        if elsewhere:\n", "        if False:\n"),
    ),
    PlantedFault(
        "a dealer that does not give a place to what another program inserted",
        4,
        f"{TABLE}::test_jobs_that_another_program_inserted_without_a_priority_are_run",
        Edit("worker/dealer.py", "await self._store.adopt(self._queues)", "pass"),
    ),
    PlantedFault(
        "processes that are dealt nothing are not told that others are",
        3,
        f"{TABLE}::test_leases_are_watched_by_workers_that_are_dealt_nothing",
        Edit("worker/dealer.py", '"active": self._active}', '"active": False}'),
    ),
    PlantedFault(
        "what a process takes along that leaves in order is not looked for",
        4,
        f"{TABLE}::test_waiting_jobs_that_a_worker_takes_with_it_are_run_by_others[True]",
        Edit(
            "worker/dealer.py",
            "        if seat.owes:\n            self._look_for_more()\n        elif",
            "        if",
        ),
    ),
    PlantedFault(
        "a dealer that forgets when a job falls due",
        4,
        f"{TABLE}::test_delayed_jobs_are_promoted_on_time_by_the_dealer",
        Edit("worker/dealer.py", 'self._timers.note(fields.get("run_at"))', "pass"),
    ),
    PlantedFault(
        "jobs that were read are forgotten after a lost claim",
        4,
        f"{TABLE}::test_jobs_that_were_read_before_a_claim_was_lost_are_read_again",
        Edit(
            "worker/dealer.py",
            "                self._look_for_more()  # what was read is forgotten\n",
            "                pass\n",
        ),
    ),
    PlantedFault(
        "a process waits for a dealer's answer for ever",
        4,
        f"{TABLE_FAULTS}::test_a_dealer_that_takes_long_to_answer_holds_up_no_job",
        Edit("worker/hand.py", "move_on_after(ANSWER_WITHIN)", "move_on_after(None)"),
    ),
    PlantedFault(
        "a dealer that does not say that its stream lives",
        5,
        f"{TABLE_FAULTS}::test_while_the_stream_is_quiet_all_workers_know_that_it_lives",
        Edit("worker/dealer.py", '"tick": signs - seen', '"tick": 0'),
    ),
    # the worker's leases
    PlantedFault(
        "a deadline counted from the answer to the claim",
        2,
        "worker/test_worker_leases.py"
        "::test_a_claim_that_was_answered_after_its_deadline_starts_no_handler",
        Edit(
            "worker/claimer.py",
            "        now = self._store.clock.now()\n",
            "        now, sent = self._store.clock.now(), monotonic()\n",
        ),
    ),
    PlantedFault(
        "a handler that goes on after its lease was lost",
        2,
        "worker/test_worker_leases.py"
        "::test_a_handler_whose_renewals_fail_is_cancelled_before_the_lease_can_be_anybody_elses"
        "[errors]",
        Edit(
            "worker/lease.py",
            "        if attempt.scope is not None:\n            attempt.scope.cancel()\n",
            "",
        ),
    ),
    PlantedFault(
        "a lease believed in until the server says otherwise",
        2,
        "worker/test_worker_leases.py"
        "::test_a_handler_whose_renewals_fail_is_cancelled_before_the_lease_can_be_anybody_elses",
        Edit("worker/lease.py", "if attempt.deadline <= now:", "if attempt.lost:"),
    ),
    PlantedFault(
        "two live attempts at one job in one process",
        2,
        "worker/test_worker_leases.py"
        "::test_a_job_claimed_again_by_the_same_worker_ends_the_old_attempt_at_once",
        Edit(
            "worker/lease.py",
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
            "worker/completer.py",
            "if result.deleted_count == len(ids):",
            "if result.acknowledged:",
        ),
    ),
    PlantedFault(
        "a group completed without its tokens",
        2,
        "worker/test_worker_completes.py"
        "::test_a_job_that_was_lost_is_not_completed_with_the_others_of_its_group",
        Edit(
            "worker/completer.py",
            "wanted = operations.held_any(ids, {attempt.record.token for attempt in attempts})",
            'wanted = {"_id": {"$in": ids}}',
        ),
    ),
    PlantedFault(
        "completes written one by one",
        11,
        "worker/test_worker_completes.py::test_handlers_that_finish_together_share_their_deletes",
        Edit("worker/completer.py", "MAX_GROUP = 1000", "MAX_GROUP = 1"),
    ),
    PlantedFault(
        "a complete given up at the first error",
        7,
        "worker/test_worker_completes.py"
        "::test_completes_whose_first_tries_fail_are_reported_completed_once",
        Edit(
            "worker/completer.py",
            "if attempt.lost or attempt.deadline < until:",
            "if attempt.lost or until:",
        ),
    ),
    # stopping, time passing
    PlantedFault(
        "jobs started whose claim was answered after the stop",
        12,
        "worker/test_worker_shutdown.py::test_a_claim_that_is_answered_after_a_stop_is_given_back",
        Edit("worker/claimer.py", "if self._stopping and documents:", "if False:"),
    ),
    PlantedFault(
        "a drain that leaves what it stopped to its lease",
        12,
        "worker/test_worker_shutdown.py"
        "::test_a_handler_longer_than_the_drain_time_is_released_without_blame",
        Edit(
            "worker/execution.py",
            "                case Interrupted():\n"
            "                    await completer.release(attempt)\n",
            "                case Interrupted():\n                    pass\n",
        ),
    ),
    PlantedFault(
        "a reaper that nobody tells of running jobs",
        3,
        "worker/test_worker_crash.py"
        "::test_a_worker_that_shared_a_backlog_takes_over_from_one_that_was_killed",
        Edit("worker/reaper.py", "self._alarm.ring_at(monotonic() + self._interval)", "pass"),
    ),
    PlantedFault(
        "a reaper that polls",
        6,
        "worker/test_worker_reaper.py::test_a_reaper_sends_nothing_when_nothing_is_running",
        Edit(
            "worker/reaper.py",
            "            if left > 0.001:\n                return left\n",
            "            if left > 0.001:\n                return min(left, self._interval)\n",
        ),
    ),
    PlantedFault(
        "no look ahead after due jobs were promoted",
        3,
        "worker/test_worker_timers.py"
        "::test_jobs_scheduled_before_the_worker_started_are_run_when_due",
        Edit(
            "worker/timers.py",
            "            return await self._store.seconds_to_due(self._queues)\n",
            "            return math.inf\n",
        ),
    ),
    # jobs that the server refuses to change
    PlantedFault(
        "a job that cannot be promoted is tried again at once",
        13,
        "worker/test_worker_stuck.py"
        "::test_a_job_that_cannot_be_changed_is_tried_at_intervals_that_grow[scheduled]",
        Edit(
            "stuck.py",
            "        if not self.full:\n            self._held[name] = job_id\n",
            "",
        ),
    ),
    PlantedFault(
        "a job that cannot be changed is left out for ever",
        3,
        "worker/test_worker_stuck.py"
        "::test_a_job_that_could_not_be_changed_is_run_once_it_can_be[scheduled]",
        Edit("stuck.py", "        if self._again_at <= monotonic():\n", "        if False:\n"),
    ),
    PlantedFault(
        "a look ahead that sees only the first of the jobs that are due",
        13,
        "worker/test_worker_stuck.py"
        "::test_a_job_that_cannot_be_promoted_does_not_delay_the_one_behind_it",
        Edit("async_store.py", "self.find(look(1 + len(stuck)))", "self.find(look(1))"),
    ),
    PlantedFault(
        "a claim that does not look past the jobs that cannot be claimed",
        13,
        "contract/test_queue_stuck.py::test_a_job_that_is_known_to_be_stuck_does_not_hide_the_next",
        Edit("store.py", "        many = limit + len(stuck)\n", "        many = limit\n"),
    ),
    PlantedFault(
        "a repair that leaves out what was refused before",
        3,
        "contract/test_queue_stuck.py::test_a_repair_tries_what_was_stuck_at_once",
        Edit("queue.py", "        self._store.try_stuck_again()\n", ""),
    ),
    PlantedFault(
        "a job that cannot be claimed counts as not announced",
        4,
        "worker/test_worker_stuck.py::test_a_job_that_cannot_be_claimed_is_no_missed_wakeup",
        Edit("worker/timers.py", ' and job["_id"] not in stuck]', "]"),
    ),
    PlantedFault(
        "a claim that goes on when more jobs are stuck than can be left out",
        13,
        "worker/test_worker_stuck.py"
        "::test_more_stuck_jobs_than_can_be_remembered_keep_no_worker_busy",
        Edit(
            "worker/claimer.py", "if not documents and self._store.unclaimable.full:", "if False:"
        ),
    ),
    PlantedFault(
        "expired jobs read with a codec that one of them can fail",
        13,
        "worker/test_worker_poison.py::test_a_field_that_cannot_be_decoded_stops_nobody",
        Edit("async_store.py", "self._bare if command.bare else self.jobs", "self.jobs"),
    ),
    PlantedFault(
        "an odd document whose burial is refused ends the claim",
        13,
        "worker/test_worker_stuck.py::test_an_odd_document_that_cannot_be_buried_stops_nobody",
        Edit(
            "worker/backlog.py", "if refusal.code not in operations.DOCUMENT_ERRORS:", "if refusal:"
        ),
    ),
    # how the queue stands
    PlantedFault(
        "a census that is gone before the next one is there",
        5,
        "ops/test_exporter.py::test_a_census_is_shown_until_the_next_however_long_they_take",
        Edit("exporter.py", "max(self._stale_after, took + 2 * pause)", "self._stale_after"),
    ),
    PlantedFault(
        "a queue that is a list ends the census",
        13,
        "ops/test_census.py::test_a_queue_that_is_not_a_name_hides_no_other",
        Edit("census.py", 'if look and not isinstance(look[0]["queue"], str):', "if False:"),
    ),
    PlantedFault(
        "a census that is shown past its time",
        5,
        "ops/test_exporter.py::test_a_census_is_gone_when_it_has_grown_old",
        Edit("state.py", " and monotonic() < self._good_until\n", "\n"),
    ),
    PlantedFault(
        "a census taken again at once, however long it took",
        15,
        "ops/test_exporter.py::test_after_a_census_that_took_long_the_pause_is_long",
        Edit(
            "exporter.py",
            "pause = max(self._interval, min(BUSY_SHARE * took, LONGEST_PAUSE))",
            "pause = self._interval",
        ),
    ),
    PlantedFault(
        "a leader that does not notice that another one leads",
        2,
        "worker/test_worker_leader.py::test_a_leader_that_lost_its_place_removes_its_series",
        Edit("exporter.py", ' and found["holder"] == candidate\n', "\n"),
    ),
    PlantedFault(
        "a leader that goes on showing when its lease is over",
        2,
        "worker/test_worker_leader.py"
        "::test_a_leader_that_cannot_renew_its_place_removes_its_series",
        Edit("state.py", "return monotonic() < self._leads_until", "return self._leads_until > 0"),
    ),
    PlantedFault(
        "the oldest of the most urgent jobs taken for the oldest of all",
        3,
        "ops/test_census.py::test_the_oldest_is_found_whatever_its_priority",
        Edit("observations.py", '"_id": "$priority",', '"_id": None,'),
    ),
    PlantedFault(
        "an age that leaves out due jobs that nobody promoted",
        3,
        "ops/test_census.py::test_a_due_job_that_nobody_promoted_waits_too",
        Edit("observations.py", ", _first_due(queue)]", "]"),
    ),
    # what the metrics count
    PlantedFault(
        "duplicates counted as inserted",
        7,
        "contract/test_queue_metrics.py"
        "::test_a_put_with_the_key_of_a_live_job_is_counted_as_a_duplicate",
        Edit("series.py", 'self.put["duplicate"].inc()', 'self.put["inserted"].inc()'),
    ),
    PlantedFault(
        "all of many puts counted as inserted when one was refused",
        7,
        "contract/test_queue_metrics.py"
        "::test_of_many_puts_those_before_the_refused_one_are_counted_as_inserted",
        Edit(
            "series.py",
            'inserted = (error.details or {}).get("nInserted", 0)',
            "inserted = count",
        ),
    ),
    # what a process says of itself
    PlantedFault(
        "an outage of MongoDB takes the process for dead",
        5,
        "unit/test_health.py::test_healthz_does_not_mind_a_process_that_is_not_ready",
        Edit(
            "health.py",
            "return self.seconds_since_tick() <= self._stall_after",
            "return not self._reasons",
        ),
    ),
    PlantedFault(
        "a reason not to be ready that forgets the one before it",
        5,
        "unit/test_health.py::test_ready_is_the_absence_of_reasons",
        Edit("health.py", "{**self._reasons, key: reason}", "{key: reason}"),
    ),
    PlantedFault(
        "a stuck event loop that is ready",
        5,
        "unit/test_health.py::test_a_stuck_loop_is_not_ready",
        Edit("health.py", "        if not self.alive():\n", "        if False:\n"),
    ),
    PlantedFault(
        "the service manager told of readiness whatever speaks against it",
        4,
        "cli/test_notify.py::test_it_is_ready_when_no_reason_is_left_and_says_so_once",
        Edit("notify.py", "if not reasons and not self._ready:", "if not self._ready:"),
    ),
    PlantedFault(
        "ready before the change stream is open",
        4,
        "cli/test_notify.py::test_it_is_ready_once_the_stream_is_open_and_not_before[one process]",
        Edit("worker/runtime.py", '        self.health.not_ready("stream", NOT_OPEN)', "        #"),
    ),
    # what is printed and logged
    PlantedFault(
        "the text of a handler's exception in the log",
        14,
        "worker/test_worker_privacy.py"
        "::test_no_payload_and_no_exception_text_is_logged_or_measured_or_printed",
        Edit(
            "worker/execution.py",
            "name = None if error is None else type(error).__name__\n    record",
            "name = None if error is None else repr(error)\n    record",
        ),
    ),
    PlantedFault(
        "the text of the server's refusal in the log",
        14,
        "worker/test_worker_stuck.py::test_what_a_refusal_quotes_is_not_logged",
        Edit("stuck.py", '"code": error.code,', '"code": str(error.details),'),
    ),
    PlantedFault(
        "a password in a field of a log line",
        14,
        "unit/test_logs.py::test_passwords_are_masked_wherever_they_are",
        Edit("logs.py", "        return hide_password(value)\n", "        return value\n"),
    ),
    PlantedFault(
        "a stored name that a terminal obeys",
        14,
        "unit/test_tables.py::test_what_a_terminal_would_obey_is_not_printed",
        Edit(
            "tables.py",
            'yield printable("  ".join(cells).rstrip())',
            'yield "  ".join(cells).rstrip()',
        ),
    ),
    PlantedFault(
        "a worker that starts without the right to remove its jobs",
        14,
        "ops/test_roles.py::test_a_worker_that_may_not_do_its_work_does_not_start[remove]",
        Edit("worker/runtime.py", "            await self._store.check_rights()\n", ""),
    ),
    PlantedFault(
        "a change stream that forgets the client's TLS settings",
        14,
        "ops/test_mongodb_tls.py"
        "::test_settings_that_are_not_in_the_uri_reach_the_change_stream_too",
        Edit(
            "watcher.py",
            '_duplicate(**client_settings("streamqueue-stream"))',
            '_duplicate(**client_settings("streamqueue-stream"), tls=False, tlsCAFile=None)',
        ),
    ),
    PlantedFault(
        "a password with an '@' that is hidden only up to there",
        14,
        "unit/test_diagnosis.py::test_passwords_are_hidden_and_nothing_else",
        Edit("diagnosis.py", r"(?:(?!mongodb(?:\+srv)?://)\S)*@", r"[^@/\s]*@"),
    ),
    PlantedFault(
        "a failed attempt that forgets fields of newer versions",
        1,
        "contract/test_document_compatibility.py::test_unknown_fields_are_as_they_were_after_a_job",
        Edit(
            "operations.py",
            '**_UNLOCK,\n    }\n    return [{"$set": fields}]\n\n\ndef _note',
            '**_UNLOCK,\n    }\n    return [{"$set": fields}, {"$unset": "group"}]\n\n\ndef _note',
        ),
    ),
)
