"""Faults in looking at jobs, and in waiting for what becomes of them."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

LOOKS = "contract/test_queue_looks.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a list of jobs that reads their payloads",
        15,
        f"{LOOKS}::test_a_list_of_large_jobs_moves_no_payloads",
        Edit(
            "protocol.operations.looks:_shown",
            "_PRIVATE if data else _PRIVATE + _LARGE",
            "_PRIVATE",
        ),
    ),
    PlantedFault(
        "pages that rely on the order of jobs that ended together",
        1,
        f"{LOOKS}::test_pages_have_every_job_once_of_those_that_one_write_ended",
        Edit(
            "queue.looking:Looking._ordered",
            "if not ties or len(found) <= limit:\n            return found\n",
            "if not ties or len(found) <= limit:\n            return found\n"
            "        return found[:limit]\n",
        ),
    ),
    PlantedFault(
        "pages that compare a missing field as an index does not",
        1,
        f"{LOOKS}::test_without_a_state_the_states_are_listed_one_after_the_other",
        Edit(
            "protocol.operations.looks:next_page",
            "if place[equal] is None:",
            "if place[equal] is ...:",
        ),
    ),
    PlantedFault(
        "counts of all queues that read the jobs",
        15,
        f"{LOOKS}::test_all_queues_are_counted_from_indexes_alone",
        Edit("protocol.operations.looks:counts", '{**part, "queue": {"$gte": ""}}', "part"),
    ),
)
