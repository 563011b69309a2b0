"""Faults in what is stored: the fences, what users write, time and attempts."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

NOT_HELD = "contract/test_queue_held.py::test_a_job_that_is_no_longer_held_cannot_be_changed"
"""Every call on a job, after every way to lose it."""

FAULTS: tuple[PlantedFault, ...] = (
    # the fences: operations.py, and the ends of jobs in queue/
    PlantedFault(
        "complete without the token",
        2,
        "contract/test_queue_held.py::test_the_new_holder_is_not_disturbed_by_the_old_one",
        Edit(
            "queue.ends:Ends.complete",
            "wanted = operations.held(record.id, record.token)",
            'wanted = {"_id": record.id}',
        ),
    ),
    PlantedFault(
        "complete without the token in the async shell",
        2,
        "contract/test_queue_held.py::test_the_new_holder_is_not_disturbed_by_the_old_one",
        Edit(
            "queue.ends:Ends.complete",
            "wanted = operations.held(record.id, record.token)",
            'wanted = {"_id": record.id}',
        ),
    ),
    PlantedFault(
        "error without the token",
        2,
        f"{NOT_HELD}[blocking-error-give_it_to_another]",
        Edit(
            "protocol.operations.attempts:error",
            "Update(held(job_id, token), failed(message, delay, exhausted(max_attempts)))",
            'Update({"_id": job_id}, failed(message, delay, exhausted(max_attempts)))',
        ),
    ),
    PlantedFault(
        "release without the token",
        2,
        f"{NOT_HELD}[blocking-release-give_it_to_another]",
        Edit(
            "protocol.operations.attempts:release",
            "Update(held(job_id, token), released(delay))",
            'Update({"_id": job_id}, released(delay))',
        ),
    ),
    PlantedFault(
        "progress without the token",
        2,
        f"{NOT_HELD}[blocking-progress-give_it_to_another]",
        Edit(
            "queue.ends:Ends.progress",
            "wanted = operations.held(record.id, record.token)",
            'wanted = {"_id": record.id}',
        ),
    ),
    PlantedFault(
        "the holder known by its name instead of its token",
        2,
        f"{NOT_HELD}[blocking-complete-give_it_to_a_namesake]",
        Edit(
            "protocol.operations.attempts:held",
            'return {"_id": job_id, "lease": token}',
            'return {"_id": job_id, "locked_by": "consumer-1"}',
        ),
    ),
    PlantedFault(
        "renewal without the tokens",
        2,
        "worker/test_worker_leases.py::test_only_the_handler_whose_lease_was_lost_is_cancelled",
        Edit(
            "protocol.operations.attempts:held_any",
            'return {"_id": one_of(ids), "lease": one_of(list(tokens))}',
            'return {"_id": one_of(ids)}',
        ),
    ),
    PlantedFault(
        "undoing a claim without its token",
        2,
        "unit/test_operations.py::test_a_write_to_several_held_jobs_matches_their_ids_and_tokens",
        Edit(
            "protocol.operations.claims:unclaim",
            "Update(held_any(ids, tokens), released(None))",
            'Update({"_id": one_of(ids)}, released(None))',
        ),
    ),
    PlantedFault(
        "a claim of whatever state the job is in",
        2,
        "contract/test_queue_claim.py::test_no_two_of_many_consumers_get_the_same_job",
        Edit(
            "protocol.operations.claims:claim",
            '            "state": "ready",\n            "queue": one_of(queues),',
            '            "queue": one_of(queues),',
        ),
    ),
    PlantedFault(
        "one token for all claims of a process",
        2,
        "contract/test_queue_claim.py::test_every_claim_has_a_token_of_its_own",
        Edit(
            "protocol.operations.claims:new_token",
            "return os.urandom(16)",
            'return b"%16d" % os.getpid()',
        ),
    ),
    PlantedFault(
        "a job given back with the token still on it",
        2,
        "contract/test_queue_held.py::test_a_job_that_is_given_back_carries_no_lock",
        Edit(
            "protocol.operations.transitions",
            '"locked_until", "lease", "allowed", "kept", "slots")',
            '"locked_until", "allowed", "kept", "slots")',
        ),
    ),
    # what users write: $literal, sizes, keys
    PlantedFault(
        "error text without $literal",
        14,
        "contract/test_queue_held.py::test_a_message_is_stored_as_it_is",
        Edit(
            "protocol.operations.transitions:failed",
            'noted({"$literal": cut_error(message)})',
            "_note(cut_error(message))",
        ),
    ),
    PlantedFault(
        "the consumer's name without $literal",
        14,
        "contract/test_queue_held.py::test_a_name_of_a_consumer_is_stored_as_it_is",
        Edit(
            "protocol.operations.claims:claim",
            '"locked_by": {"$literal": consumer}',
            '"locked_by": consumer',
        ),
    ),
    PlantedFault(
        "progress without $literal",
        14,
        "unit/test_operations.py::test_a_progress_count_is_never_evaluated",
        Edit("protocol.operations.attempts:_literal", '{"$literal": value}', "value"),
    ),
    PlantedFault(
        "a payload of any size",
        14,
        "unit/test_payload.py::test_a_payload_over_the_size_limit_is_refused_with_both_numbers",
        Edit(
            "protocol.payload:encode_payload", "if len(encoded) > MAX_PAYLOAD_BYTES:", "if False:"
        ),
    ),
    PlantedFault(
        "a flat payload that comes back as a DBRef",
        14,
        "unit/test_payload.py::test_a_mapping_that_cannot_be_a_payload_is_refused",
        Edit("protocol.payload:encode_payload", '(flat and "$ref" not in payload) or', "flat or"),
    ),
    PlantedFault(
        "a key that several live jobs may have",
        1,
        "contract/test_queue_put.py::test_a_second_live_job_with_the_key_is_refused",
        Edit(
            "protocol.schema",
            'name="streamqueue_held_key",\n    unique=True',
            'name="streamqueue_held_key",\n    unique=False',
        ),
    ),
    PlantedFault(
        "an exception's text in the log",
        14,
        "worker/test_worker_privacy.py"
        "::test_no_payload_and_no_exception_text_is_logged_or_measured_or_printed",
        Edit(
            "worker.execution.outcomes:Outcomes._log_failure",
            '        name or "said by its handler",\n',
            "        error,\n",
        ),
    ),
    PlantedFault(
        "a list of errors without an end",
        15,
        "contract/test_queue_held.py::test_the_last_five_errors_are_kept",
        Edit(
            "protocol.operations.transitions:noted",
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
            "protocol.operations.expressions:past",
            '    return {"$or": [{"$expr": {"$lte": [f"${field}", moment]}}',
            "    from datetime import UTC, datetime\n\n"
            '    return {"$or": [{field: {"$lte": datetime.now(UTC)}}',
        ),
    ),
    PlantedFault(
        "a lease that ends by this machine's clock",
        8,
        "contract/test_queue_clocks.py::test_a_lease_is_as_long_as_the_timeout",
        Edit(
            "protocol.operations.expressions:later",
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
            "clock:ServerClock.now",
            "return self._server_time + timedelta(seconds=monotonic() - self._observed_at)",
            "return datetime.fromtimestamp(time.time(), self._server_time.tzinfo)",
        ),
    ),
    PlantedFault(
        "a reaper that does not check the lease again",
        2,
        "unit/test_operations.py::test_what_time_does_to_a_job_is_checked_again_in_the_update",
        Edit(
            "protocol.operations.timers:lost",
            '{"_id": one_of_ids(ids), "state": "running", **past("locked_until")}',
            '{"_id": one_of_ids(ids), "state": "running"}',
        ),
    ),
    # attempts
    PlantedFault(
        "attempts not counted at the claim",
        13,
        "contract/test_queue_claim.py::test_a_claim_counts_as_an_attempt",
        Edit(
            "protocol.operations.claims:claim",
            '"attempts": {"$add": [count_of("attempts", 0), 1]},',
            '"attempts": count_of("attempts", 0),',
        ),
    ),
    PlantedFault(
        "a release that does not give the attempt back",
        12,
        "contract/test_queue_held.py::test_a_released_job_is_as_it_was_before_the_claim",
        Edit(
            "protocol.operations.transitions:released",
            '"attempts": {"$max": [0, {"$subtract": [count_of("attempts", 1), 1]}]},',
            '"attempts": count_of("attempts", 1),',
        ),
    ),
    PlantedFault(
        "one attempt more than was asked for",
        13,
        "contract/test_queue_held.py::test_a_job_is_dead_when_its_attempts_are_used_up",
        Edit(
            "protocol.operations.transitions:exhausted",
            'return {"$gte": [count_of("attempts", 0)',
            'return {"$gt": [count_of("attempts", 0)',
        ),
    ),
    PlantedFault(
        "a job that no claim can change, tried for ever",
        13,
        "worker/test_worker_claims.py"
        "::test_a_job_that_the_validator_refuses_to_have_claimed_stops_no_other",
        Edit("protocol.operations.replies", '    121: "DocumentValidationFailure",\n', ""),
    ),
)
