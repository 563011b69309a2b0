"""What stays of a job when it has ended, and who hears of its end."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

KEEP = "contract/test_queue_keep.py"
WORKER_KEEP = "worker/test_worker_keep.py"

FAULTS = (
    PlantedFault(
        "a complete that removes a job which somebody waits for",
        1,
        f"{WORKER_KEEP}::test_jobs_that_are_awaited_only_while_they_run_stay_with_their_results",
        Edit(
            "protocol.operations.attempts:unawaited",
            'return {**wanted, "awaited": {"$ne": True}}',
            "return wanted",
        ),
    ),
    PlantedFault(
        "an awaited job that the delete has left taken for a lost one",
        7,
        f"{WORKER_KEEP}::test_jobs_that_are_awaited_only_while_they_run_stay_with_their_results",
        Edit(
            "worker.ends:Ends._left_of",
            "if held and not attempt.kept:",
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
)
