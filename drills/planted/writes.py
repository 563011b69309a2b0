"""Faults in what is acknowledged, keyed, shared and claimed."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

CORNERS = "contract/test_queue_claim_corners.py"

FAULTS: tuple[PlantedFault, ...] = (
    # what is acknowledged: server.py, put.py, the shells
    PlantedFault(
        "writes at w:1",
        1,
        "unit/test_server.py::test_the_users_concerns_are_not_inherited",
        Edit(
            "store.collection:jobs_collection",
            'WriteConcern("majority", wtimeout=WRITE_TIMEOUT_MS)',
            "WriteConcern(1)",
        ),
    ),
    PlantedFault(
        "scans with read concern majority",
        4,
        "unit/test_server.py::test_the_users_concerns_are_not_inherited",
        Edit(
            "store.collection:jobs_collection",
            'WRITE_TIMEOUT_MS),\n        read_concern=ReadConcern("local"),',
            'WRITE_TIMEOUT_MS),\n        read_concern=ReadConcern("majority"),',
        ),
    ),
    PlantedFault(
        "scans of a secondary",
        4,
        "unit/test_server.py::test_the_users_concerns_are_not_inherited",
        Edit(
            "store.collection:jobs_collection",
            'ReadPreference.PRIMARY,\n        write_concern=WriteConcern("majority"',
            'ReadPreference.SECONDARY_PREFERRED,\n        write_concern=WriteConcern("majority"',
        ),
    ),
    PlantedFault(
        "a claim of a worker at w:1",
        2,
        "worker/test_worker_claims.py::test_whatever_a_worker_writes_to_a_job_waits_for_the_majority",
        Edit(
            "store.asynchronous:AsyncStore._command_within",
            "command = make(self.jobs.name, what, limit, self.jobs.write_concern.document)",
            'command = make(self.jobs.name, what, limit, {"w": 1})',
        ),
    ),
    PlantedFault(
        "a put that is given a new id each time it is repeated",
        7,
        "contract/test_queue_put.py::test_a_put_may_be_repeated_with_the_same_id",
        Edit(
            "protocol.put:check_put",
            "id=ObjectId() if job_id is None else object_id(job_id),",
            "id=ObjectId(),",
        ),
    ),
    PlantedFault(
        "puts of a group reported stored whatever the server said",
        1,
        "contract/test_queue_put.py::test_of_puts_at_the_same_time_only_the_duplicate_fails[async]",
        Edit(
            "queue.producer:Producer.insert",
            "return operations.errors_of_each(error, len(documents))",
            "error.details",
        ),
    ),
    # a reply that says two things: operations.py, the shells
    PlantedFault(
        "a put that is there already, although the majority may not have it",
        1,
        "contract/test_queue_doubt.py"
        "::test_a_repeated_put_whose_majority_is_in_doubt_has_not_succeeded",
        Edit(
            "protocol.operations.replies:errors_of_each",
            'if doubts := details.get("writeConcernErrors"):',
            'if doubts := details.get("doubts"):',
        ),
    ),
    PlantedFault(
        "a key that is taken, although the majority may not have its holder",
        1,
        "contract/test_queue_doubt.py"
        "::test_a_dead_job_is_not_refused_for_a_key_that_may_not_be_taken",
        Edit(
            "queue.steering.steering:Steering._requeue_one",
            "bulk_write([UpdateOne(*command)])",
            "update_one(*command)",
        ),
        Edit(
            "queue.steering.steering:Steering._requeue_one",
            "        except BulkWriteError as error:\n            (problem,) = "
            "operations.errors_of_each(error, 1)\n",
            "        except Exception as error:\n            problem = error\n",
        ),
    ),
    PlantedFault(
        "a repeated put that rests on what an election can undo",
        1,
        "contract/test_queue_doubt.py"
        "::test_a_repeated_put_rests_on_nothing_that_an_election_could_undo",
        Edit(
            "store.asynchronous:AsyncStore.__init__",
            'self._safe = self.jobs.with_options(read_concern=ReadConcern("majority"))',
            "self._safe = self.jobs",
        ),
    ),
    PlantedFault(
        "a put repeated in a transaction that returns from what has ended",
        1,
        "contract/test_queue_transactions.py"
        "::test_a_put_repeated_in_a_transaction_raises_because_that_has_ended",
        Edit(
            "queue.producer:Producer._accept",
            "if ended or not operations.is_repeated_put(error):",
            "if not operations.is_repeated_put(error):",
        ),
    ),
    PlantedFault(
        "many puts of which the rest is dropped where one is there already",
        1,
        "contract/test_queue_put_many.py"
        "::test_many_jobs_of_which_some_were_stored_before_it_broke_are_there_once",
        Edit(
            "queue.producer:Producer._insert_part",
            "some, ordered=False,",
            "some, ordered=True,",
        ),
    ),
    PlantedFault(
        "many puts that take another queue's jobs for theirs",
        1,
        "contract/test_queue_put_many.py"
        "::test_an_id_of_another_queues_job_is_not_taken_for_a_repetition_of_many",
        Edit(
            "queue.producer:Producer._insert_part",
            "if len((yield from self._unique.known(repeated))) < len(repeated):",
            "if not repeated:",
        ),
    ),
    # what a group of puts shares: group_commit.py, the async shell
    PlantedFault(
        "a group that is written in its leader's own task",
        7,
        "unit/test_group_commit.py"
        "::test_a_group_whose_leader_asyncio_cancels_in_flight_is_written_once",
        Edit(
            "store.group_commit:GroupCommit._lead",
            "            async with anyio.create_task_group() as tasks:\n"
            "                Context().run(tasks.start_soon, self._write_group, group, begun)\n",
            "            await self._write_group(group, begun)\n",
        ),
    ),
    PlantedFault(
        "a group that is written within its leader's limit",
        7,
        "unit/test_group_commit.py::test_a_group_is_written_in_a_context_of_its_own",
        Edit(
            "store.group_commit:GroupCommit._lead",
            "Context().run(tasks.start_soon, self._write_group, group, begun)",
            "tasks.start_soon(self._write_group, group, begun)",
        ),
    ),
    PlantedFault(
        "a put with a limit of its caller's own that waits for the writes of others",
        7,
        "contract/test_queue_shared_puts.py::test_a_time_limit_of_one_putter_is_no_others",
        Edit("queue.asynchronous:AsyncMongoQueue._put", " and not has_own_limit():", ":"),
    ),
    PlantedFault(
        "a put with a key in one write with others",
        16,
        "contract/test_queue_shared_puts.py::test_what_may_meet_another_job_shares_no_write",
        Edit(
            "queue.asynchronous:AsyncMongoQueue._put",
            "session is None and put.is_plain and",
            "session is None and",
        ),
    ),
    PlantedFault(
        "a group that waits for as long as the server holds the one before it up",
        16,
        "unit/test_group_commit.py::test_a_write_that_is_held_up_delays_the_next_for_a_moment",
        Edit(
            "store.group_commit:GroupCommit._await_turn",
            "with anyio.move_on_after(self._overdue_at - monotonic()):",
            "with anyio.move_on_after(None):",
        ),
    ),
    PlantedFault(
        "a group whose write was killed reported stored",
        1,
        "unit/test_group_commit.py"
        "::test_when_the_write_itself_is_killed_the_outcome_is_unknown_to_all_of_its_items",
        Edit(
            "store.group_commit:GroupCommit._write_group",
            "| None] = _killed()",
            "| None] = [None] * len(group)",
        ),
    ),
    # what a key rests on: indexes.py, the stores
    PlantedFault(
        "a key put without a look at its index",
        17,
        "contract/test_queue_keys.py"
        "::test_a_dropped_collection_does_not_make_a_key_free_for_two[blocking]",
        Edit(
            "store.flows.setting_up:require_key_index",
            "    there = yield from _key_index_there(store, queue)\n    if store.indexes.earlier",
            "    there = not store.indexes.wanted\n    if store.indexes.earlier",
        ),
    ),
    PlantedFault(
        "an index taken for one that is being built",
        17,
        "contract/test_queue_keys.py"
        "::test_with_an_index_that_others_are_making_a_put_with_a_key_waits_too",
        Edit(
            "protocol.operations.indexes:list_indexes",
            '"includeBuildUUIDs": True,',
            '"includeBuildUUIDs": False,',
        ),
    ),
    PlantedFault(
        "an index known by its name",
        17,
        "contract/test_queue_keys.py"
        "::test_an_index_that_only_has_its_name_is_not_taken_for_it_and_stops_nothing_else",
        Edit(
            "protocol.operations.indexes:keeps_keys_unique",
            'index.get("unique") is True',
            'index.get("name") is not None',
        ),
    ),
    PlantedFault(
        "indexes made inside a transaction",
        18,
        "contract/test_queue_keys.py::test_in_a_transaction_no_index_is_made[async]",
        Edit(
            "store.flows.setting_up:prepare",
            "if build and store.indexes.wanted:",
            "if store.indexes.wanted:",
        ),
    ),
    PlantedFault(
        "an index that cannot be made that stops the work",
        18,
        "contract/test_queue_keys.py::test_two_jobs_that_hold_a_key_stop_the_index_and_not_the_work",
        Edit("protocol.operations.indexes", '    DUPLICATE_KEY: "DuplicateKey",\n', ""),
    ),
    PlantedFault(
        "an end of a job that its caller's cancellation stops half-way",
        7,
        "contract/test_queue_cancellation.py"
        "::test_what_ends_a_job_is_carried_out_although_its_caller_is_cancelled",
        Edit(
            "queue.shielded:ShieldedEnds.end",
            "run_async(self._ends.end(record, end), shield())",
            "run_async(self._ends.end(record, end))",
        ),
    ),
    PlantedFault(
        "a claim that failed, in a queue, not given back",
        7,
        "contract/test_queue_claim.py::test_a_claim_that_may_not_be_durable_is_given_back_at_once",
        Edit("store.flows.claims:_take", "yield from untake(store, claim.given_up(error))", "pass"),
    ),
    PlantedFault(
        "a claim that failed, in a worker, not given back",
        7,
        "worker/test_worker_claims.py::test_failing_claims_are_tried_again_and_use_up_no_attempt",
        Edit(
            "store.flows.claims:_take",
            "yield from untake(store, claim.given_up(error))",
            "pass",
        ),
    ),
    # the corners of claims: given_up.py, write_limit.py, and the stores
    PlantedFault(
        "one token for a claim and for its parts",
        2,
        f"{CORNERS}::test_no_claim_has_the_token_of_another",
        Edit(
            "store.given_up:Claim.of",
            "queues, timeout, now, limit_of, keep_of)",
            "queues, timeout, now, limit_of, keep_of, bytes(16))",
        ),
    ),
    PlantedFault(
        "what could not be given back is forgotten",
        7,
        f"{CORNERS}::test_what_could_not_be_given_back_is_given_back_by_the_next_call",
        Edit(
            "store.given_up:GivenUpClaims.tried",
            "if claim.forget_at <= sent or (claim in answered and claim.certain_from <= sent)",
            "if True",
        ),
    ),
    PlantedFault(
        "a claim that may arrive at any time later",
        7,
        "unit/test_operations.py"
        "::test_a_claim_takes_only_what_is_ready_in_its_queue_and_only_for_some_time",
        Edit(
            "protocol.operations.claims:claim",
            '            "$expr": {"$lt": ["$$NOW", until]},\n',
            "",
        ),
    ),
    PlantedFault(
        "a lease handed out that was over before",
        2,
        f"{CORNERS}::test_a_claim_that_takes_longer_than_its_lease_hands_out_nothing",
        Edit(
            "store.flows.claims:_take_in_time",
            "elif monotonic() - sent < terms.timeout:",
            "elif documents:",
        ),
    ),
    PlantedFault(
        "a write for many that waits for one locked document",
        16,
        f"{CORNERS}"
        "::test_an_expired_job_locked_by_a_transaction_keeps_no_other_from_being_returned",
        Edit("store.write_limit", "USUAL, LONGEST = 0.5, 10.0", "USUAL, LONGEST = 7.0, 10.0"),
    ),
    PlantedFault(
        "a claim of whatever queue the job is in by now",
        4,
        "worker/test_worker_hints.py"
        "::test_a_job_moved_to_another_queue_after_it_was_read_ahead_is_left_to_that",
        Edit(
            "protocol.operations.claims:claim",
            '            "queue": one_of(queues),\n            "$expr"',
            '            "$expr"',
        ),
    ),
    PlantedFault(
        "a job that was inserted again taken for one whose event is late",
        4,
        "worker/test_worker_hints.py::test_a_job_inserted_again_under_its_id_runs_again",
        Edit(
            "worker.claimer:Claimer.announce",
            '            # was inserted again. A look tells.\n            self.scan("stream")\n',
            "            # was inserted again. A look tells.\n            self._intake.wake()\n",
        ),
    ),
    PlantedFault(
        "what was claimed sorted by the server",
        13,
        "unit/test_operations.py::test_what_was_claimed_is_not_sorted_by_the_server_and_is_one_reply",
        Edit(
            "protocol.operations.claims:claimed",
            'return Find({"_id": one_of(ids), "lease": token}, _NOT_ASKED_FOR, limit=-len(ids))',
            'return Find({"_id": one_of(ids), "lease": token}, None, CLAIM_ORDER, -len(ids))',
        ),
    ),
    PlantedFault(
        "what did not fit into the reply of a claim left to its lease",
        13,
        f"{CORNERS}::test_no_more_is_claimed_than_fits_into_a_reply",
        Edit("store.flows.claims:_claimed_by", "if len(documents) < taken:", "if not documents:"),
    ),
    PlantedFault(
        "a job handed out whose lease was used up for others",
        2,
        f"{CORNERS}::test_promotion_after_a_claim_does_not_use_up_its_lease",
        Edit(
            "queue.consumer:Consumer.claim",
            "if monotonic() - sent > timeout / 2:",
            "if False:",
        ),
    ),
    PlantedFault(
        "all that is due promoted before anything is claimed",
        13,
        f"{CORNERS}::test_due_jobs_do_not_stand_in_front_of_a_ready_one",
        Edit(
            "queue.consumer:Consumer.claim",
            "self._store.adopt(self._queues)\n        contended",
            "self._store.adopt(self._queues)\n            while (yield from self._pass_time()):\n"
            "                pass\n        contended",
        ),
    ),
    PlantedFault(
        "a requeue of all that goes on with what dies meanwhile",
        13,
        f"{CORNERS}::test_requeue_is_for_what_is_dead_when_it_is_called",
        Edit("protocol.operations.deaths:Deaths.filter", ', "$expr": {"$or": by_then}}', "}"),
    ),
    PlantedFault(
        "a requeue that leaves the lease",
        2,
        f"{CORNERS}"
        "::test_who_held_a_job_that_was_made_dead_by_hand_does_not_end_it_after_its_requeue",
        Edit(
            "protocol.operations.deaths:requeue",
            "        **over(),\n",
            "",
        ),
    ),
    PlantedFault(
        "a job without a time that comes before all others",
        10,
        f"{CORNERS}::test_a_job_inserted_without_a_time_does_not_jump_the_line",
        Edit(
            "protocol.operations.claims:is_placed",
            'return type(job.get("seq")) is Timestamp and (',
            "return (job or True) and (",
        ),
    ),
    PlantedFault(
        "a lease that is not taken when there is no room to say so",
        13,
        f"{CORNERS}::test_a_lease_is_taken_from_a_document_that_takes_no_word_about_it",
        Edit("store.flows.changes:change_each", "elif smaller is not None:", "elif False:"),
    ),
)
