"""Faults in schedules."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

UNIT = "unit/test_schedules.py"
TICKS = "unit/test_ticks.py"
CONTRACT = "contract/test_schedules.py"
WORKER = "worker/test_worker_schedules.py"

FAULTS: tuple[PlantedFault, ...] = (
    PlantedFault(
        "a tick that is put again by who was frozen meanwhile",
        17,
        f"{WORKER}::test_a_process_frozen_between_reading_and_writing_puts_no_second_job",
        Edit(
            "protocol.operations.settings.schedules:take",
            '            "last_tick": {"$lt": step.tick},\n',
            "",
        ),
    ),
    PlantedFault(
        "a tick that is put before it is due by the server's clock",
        8,
        f"{CONTRACT}::test_the_server_alone_says_whether_a_tick_may_be_taken[blocking-tick1-change1-0]",
        Edit(
            "protocol.operations.settings.schedules:take",
            '            "$expr": {"$gte": ["$$NOW", due]},\n',
            "",
        ),
    ),
    PlantedFault(
        "a tick that is taken, and whose job is put outside of the transaction",
        1,
        f"{WORKER}::test_a_tick_whose_transaction_fails_is_put_all_the_same_and_once[insert-fault2]",
        Edit(
            "worker.schedules.firing:Firing._put",
            "self._move(schedule, step, put.id, session)",
            "self._move(schedule, step, put.id)",
        ),
    ),
    PlantedFault(
        "a worker that fires schedules while it drains",
        17,
        f"{WORKER}::test_a_worker_that_was_told_to_stop_fires_no_more",
        Edit("worker.run:Run._stop", "        self._schedules.stop()\n", ""),
    ),
    PlantedFault(
        "a schedule that any running worker declares, and that can be removed all the same",
        17,
        f"{WORKER}::test_what_a_running_worker_declares_is_not_removed_though_another_one_declared_it_last",
        Edit(
            "protocol.operations.consumers:declarers",
            ', {"schedules": {"$eq": schedule}}',
            "",
        ),
    ),
    PlantedFault(
        "a pause that is caught up as an outage",
        17,
        f"{CONTRACT}::test_a_pause_stays_over_a_change_and_is_no_outage[async]",
        Edit(
            "protocol.operations.settings.schedules:resume_schedule",
            '        "last_tick": "$$NOW",\n',
            "",
        ),
    ),
    PlantedFault(
        "a fixed time of the first pass of an hour that fires in the second too",
        17,
        f"{TICKS}::test_a_fixed_time_of_the_first_pass_does_not_come_again_for_who_looks_in_the_second",
        Edit(
            "protocol.ticks:Rule.ticks", "            if tick > last:\n", "            if True:\n"
        ),
    ),
    PlantedFault(
        "a tick of half a minute ago that catch_up drops",
        3,
        f"{UNIT}::test_a_tick_within_a_minute_is_put_with_every_catch_up[none]",
        Edit("protocol.schedules", "LATE = timedelta(seconds=60)", "LATE = timedelta(seconds=1)"),
    ),
    PlantedFault(
        "two versions of the code that both fire",
        17,
        f"{WORKER}::test_of_two_versions_of_the_code_one_rule_fires",
        Edit(
            "worker.schedules.schedules:Schedules._is_ours",
            "if own.rule == schedule.rule and own.queue == schedule.queue:",
            "if True:",
        ),
    ),
    PlantedFault(
        "one schedule whose write hangs holds up the others",
        13,
        f"{WORKER}::test_a_hanging_write_delays_no_other_schedule",
        Edit("worker.schedules.schedules", "AT_ONCE = 10", "AT_ONCE = 1"),
    ),
)
