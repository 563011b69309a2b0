"""Faults in rates: starts that are too many, or two at a time, or somebody else's."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

RATES = "contract/test_rates.py"
COSTS = "worker/test_worker_rates.py"
COMMANDS = "protocol.operations.rates"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "starts that are planned by the clock of whoever reserves them",
        8,
        f"{RATES}::test_a_wrong_clock_of_a_process_changes_nothing",
        Edit(COMMANDS, "from bson import Int64\n", "import time\nfrom bson import Int64\n"),
        Edit(
            f"{COMMANDS}:reserve",
            '{"$multiply": [{"$toLong": "$$NOW"}, Int64(MILLISECOND)]}',
            "Int64(time.time() * 1e9)",
        ),
    ),
    PlantedFault(
        "starts that are never too late",
        17,
        "unit/test_rates.py::test_no_window_has_more_when_all_that_may_be_late_wait_for_one_moment",
        Edit(
            "protocol.rates:reservation",
            "until = (max(planned, at) + pace.late)",
            "until = (max(planned, at) + 60 * SECOND)",
        ),
    ),
    PlantedFault(
        "starts that are read from the newest reservation, whoever made it",
        17,
        f"{RATES}::test_what_another_reserves_before_the_answer_is_read_is_its_own",
        Edit(
            f"{COMMANDS}:_reserved_by",
            '{"$filter": {"input": "$taken", "cond": mine}}',
            '{"$slice": ["$taken", -1]}',
        ),
    ),
    PlantedFault(
        "a last start ahead of the clock that counts as one of now",
        17,
        f"{RATES}::test_a_last_start_that_is_ahead_of_the_clock_is_believed_as_of_a_late_command",
        Edit(
            f"{COMMANDS}:reserve",
            '{"$cond": [is_odd, latest, "$last"]}',
            '{"$min": ["$last", "$$now"]}',
        ),
    ),
    PlantedFault(
        "a bucket that is removed while it still holds starts back",
        17,
        f"{RATES}::test_a_bucket_is_kept_until_it_would_give_what_none_gives",
        Edit(
            f"{COMMANDS}:reserve",
            '_date({"$add": ["$$last", Int64(pace.to_fill)]})',
            '_date("$$last")',
        ),
    ),
    PlantedFault(
        "queues in which only a rate holds jobs back, where each end rings for everybody",
        6,
        f"{COSTS}::test_by_hand_it_rings_for_nobody_either",
        Edit("store.state:StoreState.makes_room", "ruled.rules.by_running", "True"),
    ),
    PlantedFault(
        "jobs that are read although no start of them can come yet",
        6,
        f"{COSTS}::test_jobs_that_are_put_before_the_next_start_may_come_are_not_looked_at",
        Edit("store.ruled:RuledQueue.starts_at", "or not self.late", "or self.late"),
    ),
    PlantedFault(
        "a job that may start at once, as soon as another rate is asked for, and is left",
        3,
        f"{COSTS}::test_a_job_under_a_rate_of_its_queue_and_one_of_its_group_runs_soon",
        Edit(
            "worker.rules.queues",
            "if chosen.again_at < math.inf:",
            "if math.isfinite(chosen.again_at):",
        ),
    ),
    PlantedFault(
        "a queue object that passes time whenever it waits for a start",
        6,
        f"{COSTS}::test_many_that_wait_for_starts_in_one_queue_object_read_little_for_each",
        Edit(
            "queue.consumer:Look.starts_soon",
            "self.held_by_rules and self.starts_at < monotonic() + PROMOTE_EVERY",
            "False",
        ),
    ),
)
