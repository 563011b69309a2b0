"""Faults in what a key does to a put."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

UNIQUE = "contract/test_queue_unique.py"
MANY = "contract/test_queue_unique_many.py"
PUT = "protocol.operations.keys.unique:put_unique"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a job replaced though it has begun",
        17,
        f"{UNIQUE}::test_what_has_begun_and_holds_the_key_is_not_changed",
        Edit(
            "protocol.operations.keys.unique",
            'UNBEGUN_STATES = ("scheduled", "ready", "waiting")',
            'UNBEGUN_STATES = ("scheduled", "ready", "waiting", "running")',
        ),
    ),
    PlantedFault(
        "steps of the old payload kept for the new one",
        17,
        f"{UNIQUE}::test_replace_clears_what_earlier_attempts_left_and_nothing_else",
        Edit(
            "protocol.operations.keys.unique", '"progress", "note", "steps")', '"progress", "note")'
        ),
    ),
    PlantedFault(
        "a debounced job put off for ever",
        17,
        f"{UNIQUE}::test_however_often_it_is_replaced_a_job_is_due_once_its_longest_delay_is_over",
        Edit(
            "protocol.operations.keys.unique:_moment",
            "if put.unique.max_delay is None:",
            "if True:",
        ),
    ),
    PlantedFault(
        "a key that nobody takes from what has ended",
        17,
        f"{UNIQUE}::test_what_has_ended_lets_go_of_a_key_that_it_is_to_hold_no_longer",
        Edit(PUT, '{"$cond": [outdated, "$$REMOVE", "$held_key"]}', '"$held_key"'),
    ),
    PlantedFault(
        "a key taken from what is to hold it for longer",
        17,
        f"{UNIQUE}::test_a_key_that_is_held_for_a_time_is_taken_until_then",
        Edit("protocol.operations.keys.unique", "                HOLDS_ON,\n", ""),
    ),
    PlantedFault(
        "a key of a batch that is not for the first",
        17,
        f"{MANY}::test_the_first_of_a_batch_has_the_key_whatever_each_is_to_do",
        Edit("protocol.puts:Puts.runs", "if not both:", "if True:"),
    ),
    PlantedFault(
        "a newer job that is given the older payload of a put that is repeated",
        17,
        f"{MANY}::test_a_put_that_is_repeated_by_its_id_does_nothing_to_a_newer_job_of_its_key",
        Edit("queue.unique:UniquePuts.put", "if put.named and", "if False and"),
    ),
    PlantedFault(
        "a job of a process of an earlier version that nobody knows to have its key",
        17,
        "contract/test_queue_keys.py::test_a_process_of_an_earlier_version_beside_this_one_puts_jobs"
        "_that_hold_their_keys",
        Edit(
            "queue.unique:UniquePuts.free", "if self._store.indexes.earlier_version:", "if False:"
        ),
    ),
    PlantedFault(
        "a job brought forward into the past",
        8,
        f"{UNIQUE}::test_a_job_brought_forward_to_a_moment_that_is_over_was_not_due_then",
        Edit(
            "protocol.operations.keys.unique:_brought_forward",
            '{"$max": [moment, "$$NOW"]}',
            "moment",
        ),
    ),
)
