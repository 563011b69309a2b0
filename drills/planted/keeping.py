"""What stays of a job when it has ended, who hears of its end, and who may ask for it."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

KEEP = "contract/test_queue_keep.py"
WORKER_KEEP = "worker/test_worker_keep.py"

FAULTS = (
    PlantedFault(
        "a job that was cancelled by hand removed with those that nobody keeps",
        1,
        "contract/test_queue_cancel.py::test_only_what_has_stayed_long_enough_is_removed",
        Edit(
            "protocol.operations.cancels:cancelled_and_over",
            ', "removed_at": {"$type": "date"}',
            "",
        ),
    ),
    PlantedFault(
        "a complete that removes a job which somebody waits for",
        1,
        f"{WORKER_KEEP}::test_jobs_that_are_awaited_only_while_they_run_stay_with_their_results",
        Edit(
            "protocol.operations.keys.holding:removable",
            '"awaited": {"$ne": True}, ',
            "",
        ),
    ),
    PlantedFault(
        "an awaited job that the delete has left taken for a lost one",
        7,
        f"{WORKER_KEEP}::test_jobs_that_are_awaited_only_while_they_run_stay_with_their_results",
        Edit(
            "worker.ends:Ends._left_of",
            "if held and (found_needed or not attempt.kept):",
            "if False:",
        ),
    ),
    PlantedFault(
        "a death that who waits for the job does not hear of",
        3,
        f"{KEEP}::test_a_dead_job_is_no_longer_awaited",
        Edit(
            "protocol.operations.transitions:failed",
            "        **answered(dead),\n",
            "",
        ),
    ),
    PlantedFault(
        "a result without $literal",
        14,
        f"{KEEP}::test_any_value_of_bson_is_a_result",
        Edit(
            "queue.ends:Ends._done",
            "operations.done(record.id, record.token, result)",
            'operations.done(record.id, record.token, result and result["$literal"])',
        ),
    ),
    PlantedFault(
        "results of any size in one write",
        15,
        f"{WORKER_KEEP}::test_results_that_are_too_large_for_one_write_share_as_many_as_they_need",
        Edit(
            "worker.completer",
            "MAX_GROUP_BYTES = 8 * 1024 * 1024",
            "MAX_GROUP_BYTES = 2**40",
        ),
    ),
    PlantedFault(
        "a result that cannot be stored, tried again",
        13,
        f"{WORKER_KEEP}::test_a_job_that_the_server_refuses_with_its_result_is_dead_at_once",
        Edit(
            "worker.completer:Completer._complete_apart",
            "if attempt.kept and attempt.value.size:",
            "if False:",
        ),
    ),
    PlantedFault(
        "a job that was to be cancelled, given back to run again",
        3,
        "contract/test_queue_cancel.py::test_a_job_that_was_asked_for_never_waits_again",
        Edit(
            "protocol.operations.transitions:released",
            '[{"$set": unless_asked(fields)}]',
            '[{"$set": fields}]',
        ),
    ),
    PlantedFault(
        "an outage taken for an index that cannot be made",
        18,
        "contract/test_queue_setting_up.py"
        "::test_a_connection_that_breaks_while_an_index_is_made_is_an_outage",
        Edit(
            "store.flows.setting_up:require_index",
            "raise missing(feature, use, seen=not unseen) if outage is None else outage",
            "raise missing(feature, use, seen=not unseen)",
        ),
    ),
    PlantedFault(
        "an index that is taken for tried when that of another feature was",
        18,
        "contract/test_queue_keys.py"
        "::test_another_feature_that_is_used_meanwhile_has_its_index_made_next",
        Edit(
            "store.flows.setting_up:_build_indexes",
            "store.indexes.builds.update(features)",
            'store.indexes.builds.update(["key", "keep", "expires"])',
        ),
    ),
    PlantedFault(
        "a job said to have ended that was put meanwhile",
        3,
        "contract/test_queue_cancel.py::test_a_job_that_is_put_at_the_same_time_has_not_ended",
        Edit(
            "queue.steering.canceller:Canceller.cancel",
            "live = any(map(operations.can_be_cancelled, found))",
            "live = False",
        ),
    ),
    PlantedFault(
        "a job that was to be cancelled, returned from a dead consumer",
        3,
        "contract/test_queue_cancel.py"
        "::test_a_job_that_was_asked_for_is_not_returned_from_a_dead_consumer",
        Edit("protocol.operations.timers:reap", "unless_asked(", "dict("),
    ),
    PlantedFault(
        "a result that counts though the handler was told to stop",
        2,
        "worker/test_worker_cancel.py"
        "::test_the_job_is_cancelled_whatever_its_handler_does_afterwards",
        Edit(
            "worker.execution.executor:Execution._settle",
            "        if attempt.asked:\n            end = CANCELLED\n",
            "",
        ),
    ),
    PlantedFault(
        "a request to cancel that a renewal does not find",
        4,
        "worker/test_worker_cancel.py"
        "::test_a_request_whose_event_was_lost_is_found_by_the_next_renewal",
        Edit(
            "protocol.operations.attempts:unasked",
            'return {**wanted, "cancel_requested_at": None}',
            "return wanted",
        ),
    ),
    PlantedFault(
        "a job that is renewed no more once it was to be cancelled",
        2,
        "worker/test_worker_cancel.py::test_a_job_is_renewed_until_its_handler_has_ended",
        Edit(
            "worker.leases:Leases._renew",
            "if not due[0].asked:",
            "if True:",
        ),
    ),
    PlantedFault(
        "a dispatcher that tells nobody what is to be cancelled",
        4,
        "worker/test_worker_cancel.py::test_it_is_heard_with_a_dispatcher_between",
        Edit(
            "processes.dispatcher:Dispatcher.event",
            "self._members.broadcast(Asked(asked=True))",
            "pass",
        ),
    ),
)
