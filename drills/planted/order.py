"""Faults in the order of jobs, and in the indexes that it rests on."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

CLAIM = "contract/test_queue_claim.py"
MANY = "worker/test_worker_many_queues.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "an order by the clocks of the producers",
        10,
        f"{CLAIM}::test_what_was_put_first_is_first_whatever_the_clocks_of_those_who_put_said",
        Edit(
            "protocol.schema",
            '    ("seq", ASCENDING),\n    ("run_at", ASCENDING),\n',
            '    ("run_at", ASCENDING),\n',
        ),
    ),
    PlantedFault(
        "a failed job that keeps its place",
        10,
        f"{CLAIM}::test_what_becomes_ready_again_comes_behind_what_is_ready",
        Edit("protocol.operations.transitions:failed", "fields |= LAST_IN", "pass"),
    ),
    PlantedFault(
        "a requeued job that keeps its place",
        10,
        f"{CLAIM}::test_what_was_requeued_comes_behind_what_is_ready",
        Edit("protocol.operations.deaths:requeue", "        **LAST_IN,\n", ""),
    ),
    PlantedFault(
        "a released job that loses its place",
        10,
        f"{CLAIM}::test_what_was_released_keeps_its_place",
        Edit(
            "protocol.operations.transitions:released",
            '"state": "ready",\n',
            '"state": "ready",\n        **LAST_IN,\n',
        ),
    ),
    PlantedFault(
        "jobs that became due together in the order of their ids",
        10,
        f"{CLAIM}::test_jobs_that_become_due_together_come_in_the_order_of_their_times",
        Edit("protocol.schema", '    ("run_at", ASCENDING),\n    ("_id"', '    ("_id"'),
    ),
    PlantedFault(
        "an index of the keys that is taken to be made, because the others were",
        18,
        "contract/test_queue_keys.py"
        "::test_while_the_indexes_are_made_puts_with_a_key_wait_and_others_do_not",
        Edit("store.flows.setting_up:_build_indexes", "update(features)", 'update(["key"])'),
    ),
    PlantedFault(
        "an index of the keys for whoever has none",
        18,
        "contract/test_queue_keys.py"
        "::test_the_index_of_the_keys_is_made_for_the_first_job_that_has_one",
        Edit("store.indexes:Indexes.all", "if feature in self.features", "if True"),
    ),
    PlantedFault(
        "the places of an earlier version's jobs forgotten",
        10,
        "cli/test_commands.py::test_init_keeps_the_order_of_what_an_earlier_version_put",
        Edit("cli.setup:init", "        if superseded:\n", "        if False:\n"),
    ),
    PlantedFault(
        "many queues sorted by the server",
        10,
        f"{MANY}::test_the_server_sorts_nothing_for_the_head_of_many_queues",
        Edit("protocol.operations.claims", "MERGED_QUEUES = 200", "MERGED_QUEUES = 10_000"),
    ),
    PlantedFault(
        "of many queues no more than the share of each part",
        3,
        f"{MANY}::test_all_that_waits_is_read_where_the_parts_have_unequal_shares",
        Edit(
            "store.flows.head:_first", "cut = len(read_of[number]) == share < limit", "cut = False"
        ),
    ),
    PlantedFault(
        "urgent jobs of one part of the queues left for ordinary ones of others",
        10,
        f"{MANY}::test_what_is_urgent_in_one_part_of_the_queues_comes_before_all_others",
        Edit(
            "store.flows.head:_first",
            " or place(read_of[number][-1]) < place(first[-1])",
            "",
        ),
    ),
    PlantedFault(
        "a held job that is gone, looked for again and again",
        15,
        f"{MANY}::test_a_held_job_that_is_gone_leaves_a_worker_of_many_queues_calm",
        Edit("store.flows.head:_head", "return stuck.sift([]), False", "return [], False"),
    ),
    PlantedFault(
        "no claim until every job of an earlier producer has a place",
        3,
        "contract/test_queue_claim_corners.py"
        "::test_ever_new_jobs_without_a_place_keep_nobody_from_claiming",
        Edit("store.flows.head", "ROUNDS = 4", "ROUNDS = 1000"),
    ),
    PlantedFault(
        "jobs of many queues one queue after the other",
        10,
        f"{MANY}::test_what_waits_in_many_queues_is_read_in_order",
        Edit(
            "store.flows.head:_merged",
            "sorted(merged, key=operations.claim_order_of)[:limit]",
            "merged[:limit]",
        ),
    ),
    PlantedFault(
        "jobs due in many queues sorted by the server",
        10,
        f"{MANY}::test_the_server_sorts_nothing_for_what_is_due_in_many_queues",
        Edit(
            "store.flows.timers:seconds_to_due",
            "for part in operations.merged_parts(queues):",
            "for part in [queues]:",
        ),
    ),
)
