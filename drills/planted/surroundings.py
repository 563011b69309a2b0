"""Faults in what is set up, owned by others, printed and logged."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

FAULTS: tuple[PlantedFault, ...] = (
    # setting up, users' own indexes, and who says how many attempts
    PlantedFault(
        "a put that stores the attempts of its own queue object",
        3,
        "contract/test_queue_attempts.py::test_put_stores_no_number_that_it_was_not_told",
        Edit(
            "queue.blocking:MongoQueue.put",
            "            max_attempts=max_attempts,\n            expires=expires,\n",
            "            max_attempts=max_attempts or self._consumer._options.max_attempts,\n"
            "            expires=expires,\n",
        ),
    ),
    PlantedFault(
        "a reaper that goes by its own number of attempts",
        3,
        "contract/test_queue_attempts.py"
        "::test_another_consumer_returns_a_job_by_what_its_claim_went_by",
        Edit(
            "protocol.operations.transitions:exhausted",
            'count_of("allowed", max_attempts))',
            "max_attempts)",
        ),
    ),
    PlantedFault(
        "one number of attempts for all queues of a claim",
        3,
        "worker/test_worker_max_attempts.py::test_one_claim_goes_by_the_number_of_each_queue",
        Edit(
            "protocol.operations.claims:_by_queue",
            '    return {"$switch": {"branches": cases, "default": last}} if cases else last\n',
            "    return last\n",
        ),
    ),
    PlantedFault(
        "the progress of a failed attempt shown while the job waits",
        15,
        "contract/test_queue_attempts.py"
        "::test_a_job_that_waits_again_shows_nothing_of_the_attempt_before",
        Edit(
            "protocol.operations.transitions:failed",
            "        **over(dead),\n        **answered(dead),\n        ",
            "        **UNLOCK,\n        **answered(dead),\n        ",
        ),
    ),
    PlantedFault(
        "a worker that dies of a job whose queue is not its own by now",
        13,
        "worker/test_worker_max_attempts.py"
        "::test_a_job_that_is_moved_while_it_is_claimed_is_given_back",
        Edit(
            "worker.delivery:Delivery.deliver",
            "if not (type(queue) is str and queue in self._handlers):",
            "if not isinstance(queue, str):",
        ),
    ),
    PlantedFault(
        "a requeue that only takes the ids we make",
        13,
        "contract/test_queue_care.py::test_an_id_of_any_type_can_be_requeued",
        Edit(
            "protocol.document:ids_meant",
            "        if isinstance(value, _NO_IDS):",
            "        if True:",
        ),
    ),
    PlantedFault(
        "a pattern taken for an id",
        14,
        "contract/test_queue_care.py::test_what_is_no_id_is_refused",
        Edit(
            "protocol.document:ids_meant",
            "        if isinstance(value, _NO_IDS):",
            "        if False:",
        ),
    ),
    PlantedFault(
        "a size that reads the whole collection",
        15,
        "contract/test_queue_care.py"
        "::test_jobs_are_counted_from_indexes_alone_and_only_those_that_go_are_read",
        Edit(
            "protocol.operations.queues:size",
            "    return union(collection, map(_counted, _ALL_STATES, all_of_queue(queue)))",
            '    return _counted("ready", of_queue(queue))',
        ),
    ),
    PlantedFault(
        "an undone claim that is left running because another's is refused",
        13,
        "contract/test_queue_own_rules.py"
        "::test_a_release_that_is_refused_keeps_no_other_from_being_given_back",
        Edit(
            "store.flows.claims:_unclaim",
            "if len(ids) == 1 or not operations.is_spoiled(error):\n            raise\n    else:",
            "raise error\n    else:",
        ),
    ),
    PlantedFault(
        "claimed jobs lost because a damaged one among them may not be buried",
        13,
        "contract/test_queue_own_rules.py"
        "::test_a_damaged_job_that_may_not_be_buried_keeps_no_other_from_being_claimed",
        Edit(
            "queue.consumer:Consumer._discard_damaged",
            "        except PyMongoError as error:\n"
            '            logger.warning(\n                "Job %s could not be buried',
            "        except ZeroDivisionError as error:\n"
            '            logger.warning(\n                "Job %s could not be buried',
        ),
    ),
    PlantedFault(
        "an odd document that starves all others when it may not be buried",
        13,
        "worker/test_worker_own_rules.py"
        "::test_a_document_that_may_not_be_buried_starves_no_other_job",
        Edit(
            "protocol.operations.replies:is_refusal",
            "    return isinstance(error, WriteError) and error.code not in NOT_FOR_GOOD",
            "    return False",
        ),
    ),
    PlantedFault(
        "any clash of queue and key taken for a duplicate job",
        13,
        "contract/test_queue_own_rules.py"
        "::test_a_clash_in_a_users_index_of_the_same_fields_is_no_duplicate_job",
        Edit(
            "protocol.operations.replies:_by_index",
            '(named is None or named[1] == name) and value.get(field, "") is not None',
            "True",
        ),
    ),
    PlantedFault(
        "a put that waits for the indexes as long as a transaction is open",
        18,
        "contract/test_queue_setting_up.py"
        "::test_a_put_with_a_transaction_open_on_the_collection_does_not_wait_for_indexes",
        Edit(
            "store.flows.setting_up:_create_indexes",
            "        limit_ms=milliseconds(BUILD_SECONDS),\n",
            "",
        ),
    ),
    PlantedFault(
        "indexes that are not tried again",
        18,
        "contract/test_queue_setting_up.py"
        "::test_indexes_that_could_not_be_made_are_tried_again_later",
        Edit(
            "store.indexes:Indexes.wanted",
            "return self._wanted or monotonic() >= self._again_at",
            "return self._wanted",
        ),
    ),
    PlantedFault(
        "an index of another name taken for a conflict",
        18,
        "contract/test_queue_setting_up.py"
        "::test_indexes_of_other_names_that_do_the_same_are_accepted",
        Edit(
            "store.indexes:Indexes.blocked",
            "        if any(operations.serves_as(one, index) for one in there or ()):\n"
            "            return\n",
            "",
        ),
    ),
    PlantedFault(
        "jobs put into a capped collection",
        18,
        "contract/test_queue_setting_up.py"
        "::test_a_collection_that_is_not_for_jobs_is_refused_by_the_first_call",
        Edit("store.indexes:check_kind", '    elif options.get("capped"):', "    elif False:"),
    ),
    PlantedFault(
        "a collation that makes names equal",
        18,
        "contract/test_queue_setting_up.py"
        "::test_a_queue_whose_name_a_collation_makes_equal_is_left_alone",
        Edit("store.indexes:check_kind", "    elif collation:\n", "    elif False:\n"),
    ),
    # what is printed and logged
    PlantedFault(
        "the text of a handler's exception in the log",
        14,
        "worker/test_worker_privacy.py"
        "::test_no_payload_and_no_exception_text_is_logged_or_measured_or_printed",
        Edit(
            "worker.execution.outcomes:Outcomes.of",
            "type_name(error)",
            "repr(error)",
        ),
    ),
    PlantedFault(
        "the text of the server's refusal in the log",
        14,
        "worker/test_worker_stuck.py::test_what_a_refusal_quotes_is_not_logged",
        Edit(
            "store.refused:StuckJobs.refused",
            "**failure_facts(error),",
            '"code": str(error.details),',
        ),
    ),
    PlantedFault(
        "a password in a field of a log line",
        14,
        "unit/test_logs.py::test_passwords_are_masked_wherever_they_are",
        Edit("logs:_plain", "        return hide_password(value)\n", "        return value\n"),
    ),
    PlantedFault(
        "a stored name that a terminal obeys",
        14,
        "unit/test_tables.py::test_what_a_terminal_would_obey_is_not_printed",
        Edit(
            "cli.tables:columns",
            'yield printable("  ".join(cells).rstrip())',
            'yield "  ".join(cells).rstrip()',
        ),
    ),
    PlantedFault(
        "a worker that starts without the right to remove its jobs",
        14,
        "ops/test_roles.py::test_a_worker_that_may_not_do_its_work_does_not_start[remove]",
        Edit("worker.worker:Worker._run", "            await check_rights(store)\n", ""),
    ),
    PlantedFault(
        "a change stream that forgets the client's TLS settings",
        14,
        "ops/test_mongodb_tls.py"
        "::test_settings_that_are_not_in_the_uri_reach_the_change_stream_too",
        Edit(
            "stream.watcher:Watcher.run",
            '_duplicate(**client_settings("streamqueue-stream"))',
            '_duplicate(**client_settings("streamqueue-stream"), tls=False, tlsCAFile=None)',
        ),
    ),
    PlantedFault(
        "a password with an '@' that is hidden only up to there",
        14,
        "unit/test_diagnosis.py::test_passwords_are_hidden_and_nothing_else",
        Edit("passwords", r"((?:(?!mongodb(?:\+srv)?://)\S)*)@", r"([^@/\s]*)@"),
    ),
    PlantedFault(
        "a failed attempt that forgets fields of newer versions",
        1,
        "contract/test_document_compatibility.py::test_unknown_fields_are_as_they_were_after_a_job",
        Edit(
            "protocol.operations.transitions:failed",
            '    return [{"$set": unless_asked(fields)}]',
            '    return [{"$set": unless_asked(fields)}, {"$unset": "group"}]',
        ),
    ),
)
