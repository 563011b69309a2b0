"""Faults in what is told of the queue and the process."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

RENDERINGS = "unit/test_renderings.py"
PLACES = "unit/test_health_places.py"
STRANGERS = "ops/test_census_strangers.py"
LIMITS = "ops/test_census_limits.py"

FAULTS: tuple[PlantedFault, ...] = (
    # how the queue stands
    PlantedFault(
        "a census that is gone before the next one is there",
        5,
        "ops/test_exporter.py::test_a_census_is_shown_until_the_next_however_long_they_take",
        Edit(
            "exporter.exporter:Exporter.take",
            "max(self._stale_after, took + 2 * pause)",
            "self._stale_after",
        ),
    ),
    PlantedFault(
        "a job that waits for another one, counted nowhere",
        3,
        "ops/test_census.py::test_a_queue_with_jobs_in_one_state_alone_is_found[waiting]",
        Edit(
            "exporter.census:Surveyor._count_queue",
            'queue.waiting = row["count"]',
            "pass",
        ),
    ),
    PlantedFault(
        "a schedule that somebody has paused, taken for late",
        3,
        "ops/test_census.py::test_schedules_that_are_late_or_paused_are_named",
        Edit(
            "exporter.settings:note_schedules",
            "                paused.append(name)\n            continue\n",
            "                paused.append(name)\n",
        ),
    ),
    PlantedFault(
        "a schedule whose part of the spread has not come, taken for late",
        3,
        "ops/test_census.py::test_the_latest_schedule_of_a_queue_says_how_late_its_schedules_are",
        Edit(
            "exporter.settings:note_schedules",
            'overdue -= seconds_in(row.get("spread"), 0.0) or 0.0',
            "pass",
        ),
    ),
    PlantedFault(
        "a subscription that is over, counted",
        3,
        "ops/test_census.py::test_a_queue_says_to_how_many_topics_it_subscribes",
        Edit(
            "protocol.operations.settings.topics:subscriptions",
            '{"input": _LIVE, "in": _QUEUE}',
            '{"input": {"$cond": [{"$isArray": "$subscribers"}, "$subscribers", []]}, "in": _QUEUE}',
        ),
    ),
    PlantedFault(
        "a queue that is a list ends the census",
        13,
        "ops/test_census.py::test_a_queue_that_is_not_a_name_hides_no_other",
        Edit(
            "exporter.discovery:Walk._next",
            "hint=self._keys, return_key=True",
            "sort=look.sort, return_key=True",
        ),
    ),
    PlantedFault(
        "a walk over the queues that goes on from a name as it was read",
        13,
        f"{STRANGERS}::test_names_that_are_no_text_neither_stop_a_census_nor_hide_a_queue",
        Edit(
            "exporter.discovery:Walk.go_on",
            "            self._position, self._past = jump, False\n",
            "            self._position, self._past = found, True\n",
        ),
    ),
    PlantedFault(
        "a walk over the queues that begins anew in every census",
        15,
        f"{STRANGERS}::test_a_walk_that_was_cut_short_goes_on_in_the_next_census",
        Edit(
            "exporter.discovery:Walk.go_on",
            "        for _ in range(MOST_LOOKS):",
            "        self._begin()\n        for _ in range(MOST_LOOKS):",
        ),
    ),
    PlantedFault(
        "queues without jobs are found as long as there is time",
        15,
        f"{STRANGERS}::test_finding_the_queues_leaves_time_for_counting_them",
        Edit("exporter.discovery:Walk.go_on", "if monotonic() >= until:", "if False:"),
    ),
    PlantedFault(
        "a census that takes as long as it takes",
        15,
        f"{STRANGERS}::test_a_census_that_takes_too_long_fails",
        Edit(
            "exporter.census:Surveyor.take",
            "with pymongo.timeout(LONGEST):",
            "with pymongo.timeout(None):",
        ),
    ),
    PlantedFault(
        "stored names as labels, whatever they are",
        15,
        f"{STRANGERS}::test_names_of_a_megabyte_are_neither_shown_nor_kept",
        Edit(
            "names:label_of",
            "return str(value) if is_name(value) else INVALID",
            "return str(value)",
        ),
        Edit(
            "exporter.queries:running_elsewhere",
            '"_id": short_text("$queue", LONGEST)',
            '"_id": "$queue"',
        ),
    ),
    PlantedFault(
        "reaped jobs of no queue counted and logged by what they have in its place",
        15,
        "unit/test_names.py::test_what_is_reaped_of_no_queue_is_counted_and_logged_as_one",
        Edit(
            "protocol.operations.timers:group_expired",
            "queue = label_of(record.queue)",
            "queue = record.queue",
        ),
    ),
    PlantedFault(
        "reaped jobs of made-up queues take the labels of a program's own",
        15,
        "unit/test_metrics.py::test_reaped_jobs_of_other_queues_take_no_label_from_ours",
        Edit(
            "metrics.series:Metrics._build",
            "self._others_queues = Names(MAX_QUEUES)",
            "self._others_queues = self._queues",
        ),
    ),
    PlantedFault(
        "names that sort first are counted first",
        15,
        f"{STRANGERS}::test_names_that_sort_first_take_no_queue_away",
        Edit(
            "exporter.roll:Roll.choose",
            "key=lambda name: (name not in served, name not in shown, name),",
            "key=str,",
        ),
    ),
    PlantedFault(
        "a queue that was there once is shown for ever",
        15,
        "unit/test_roll.py::test_what_has_been_empty_for_an_hour_is_forgotten",
        Edit("exporter.roll:Roll.counted", "if now - at < FORGET_AFTER", "if at <= now"),
    ),
    PlantedFault(
        "an exporter that is ready while its census hangs",
        5,
        "ops/test_exporter.py::test_it_is_not_ready_when_a_census_neither_ends_nor_fails",
        Edit(
            "exporter.exporter:Exporter._watch_age",
            "if not self._metrics.shows and ",
            "if False and ",
        ),
    ),
    PlantedFault(
        "a scheduled job without a date hides how long others are overdue",
        3,
        f"{STRANGERS}::test_a_job_without_a_date_is_overdue_and_hides_none",
        Edit(
            "exporter.queries:_first_due",
            '{"$match": {**of_queue(queue, State.SCHEDULED), "run_at": _ANY_DATE}}',
            '{"$match": of_queue(queue, State.SCHEDULED)}',
        ),
    ),
    PlantedFault(
        "a ready job without a place hides how long others wait",
        3,
        f"{STRANGERS}::test_a_ready_job_without_a_place_hides_not_how_long_others_wait",
        Edit("exporter.queries:queue_census", "_oldest_placed(queue), ", ""),
    ),
    PlantedFault(
        "jobs counted as overdue in the moment they are due",
        6,
        f"{STRANGERS}::test_a_job_without_a_date_is_overdue_and_hides_none",
        Edit("exporter.queries:_overdue", '**past("run_at", OVERDUE_AFTER)', '**past("run_at")'),
    ),
    PlantedFault(
        "a scheduled job whose time is a piece of code is never due",
        3,
        "worker/test_worker_timers.py::test_a_foreign_scheduled_job_that_is_due_already_is_run",
        Edit(
            "protocol.operations.expressions",
            '"dbPointer", "javascript", "javascriptWithScope", "maxKey"]',
            '"maxKey"]',
        ),
    ),
    PlantedFault(
        "a scheduled job with lists for its place never gets one",
        13,
        "worker/test_worker_timers.py::test_a_foreign_scheduled_job_that_is_due_already_is_run",
        Edit(
            "protocol.operations.timers:promote",
            "**NO_PROGRESS, **UNLISTED,",
            "**NO_PROGRESS,",
        ),
    ),
    PlantedFault(
        "a job with lists for its place is never returned",
        13,
        "worker/test_worker_reaper.py::test_a_job_with_lists_for_its_place_is_returned",
        Edit("protocol.operations.timers:reap", "                    **UNLISTED,\n", ""),
    ),
    PlantedFault(
        "a timer that sleeps for as long as a stored date says",
        3,
        "worker/test_worker_timers.py::test_it_looks_again_after_a_while_whatever_it_was_told",
        Edit("worker.scheduler:Alarm.keep", "min(left, LONGEST_SLEEP) + random", "left + random"),
    ),
    PlantedFault(
        "a wait for a job that sleeps for as long as a stored date says",
        3,
        "contract/test_queue_wait.py::test_a_wait_looks_again_after_a_while_whatever_is_stored",
        Edit("queue.consumer:Consumer.wait", "min(due_in, LONGEST_SLEEP)", "due_in"),
    ),
    PlantedFault(
        "a census that is shown past its time",
        5,
        "ops/test_exporter.py::test_a_census_is_gone_when_it_has_grown_old",
        Edit(
            "exporter.collector:StateMetrics.shows", " and monotonic() < self._good_until\n", "\n"
        ),
    ),
    PlantedFault(
        "a census taken again at once, however long it took",
        15,
        "ops/test_exporter.py::test_after_a_census_that_took_long_the_pause_is_long",
        Edit(
            "exporter.exporter:Exporter.take",
            "pause = max(self._interval, min(BUSY_SHARE * took, LONGEST_PAUSE))",
            "pause = self._interval",
        ),
    ),
    PlantedFault(
        "a leader that does not notice that another one leads",
        2,
        "worker/test_worker_leader.py::test_a_leader_that_lost_its_place_removes_its_series",
        Edit("exporter.exporter:Exporter._lead", ' and found["holder"] == candidate\n', "\n"),
    ),
    PlantedFault(
        "a leader that goes on showing when its lease is over",
        2,
        "worker/test_worker_leader.py"
        "::test_a_leader_that_cannot_renew_its_place_removes_its_series",
        Edit(
            "exporter.collector:StateMetrics.leads",
            "return monotonic() < self._leads_until",
            "return self._leads_until > 0",
        ),
    ),
    PlantedFault(
        "the oldest of the most urgent jobs taken for the oldest of all",
        3,
        "ops/test_census.py::test_the_oldest_is_found_whatever_its_priority",
        Edit("exporter.queries:_oldest", '"_id": "$priority",', '"_id": None,'),
    ),
    PlantedFault(
        "an age that leaves out due jobs that nobody promoted",
        3,
        "ops/test_census.py::test_a_due_job_that_nobody_promoted_waits_too",
        Edit("exporter.queries:queue_census", ", _first_due(queue)]", "]"),
    ),
    PlantedFault(
        "a UUID that fails ending the live view",
        13,
        "cli/test_top.py::test_a_failure_is_shown_when_it_happens",
        Edit("cli.monitor.pulse:PulseTaker.read", ".with_options(codec_options=BARE_CODEC)", ""),
    ),
    # what the metrics count
    PlantedFault(
        "duplicates counted as inserted",
        7,
        "contract/test_queue_metrics.py"
        "::test_a_put_with_the_key_of_a_live_job_is_counted_as_a_duplicate",
        Edit(
            "metrics.bundles:ProducerMetrics.__exit__",
            'self.put["duplicate"].inc()',
            'self.put["inserted"].inc()',
        ),
    ),
    PlantedFault(
        "all of many puts counted as inserted when one was refused",
        7,
        "contract/test_queue_metrics.py"
        "::test_of_many_puts_those_before_the_refused_one_are_counted_as_inserted",
        Edit(
            "metrics.bundles:ProducerMetrics.each",
            'counted["inserted"] += details.get("nInserted", 0)',
            'counted["inserted"] += count',
        ),
    ),
    # what a process says of itself
    PlantedFault(
        "an outage of MongoDB takes the process for dead",
        5,
        "unit/test_health.py::test_healthz_does_not_mind_a_process_that_is_not_ready",
        Edit(
            "health.health:Health.alive",
            "return self.seconds_since_tick() <= self._stall_after",
            "return not self._reasons",
        ),
    ),
    PlantedFault(
        "a reason not to be ready that forgets the one before it",
        5,
        "unit/test_health.py::test_ready_is_the_absence_of_reasons",
        Edit("health.health:Health.not_ready", "{**self._reasons, key: reason}", "{key: reason}"),
    ),
    PlantedFault(
        "a stuck event loop that is ready",
        5,
        "unit/test_health.py::test_a_stuck_loop_is_not_ready",
        Edit(
            "health.health:Health.reasons", "        if not self.alive():\n", "        if False:\n"
        ),
    ),
    PlantedFault(
        "the service manager told of readiness whatever speaks against it",
        4,
        "cli/test_notify.py::test_it_is_ready_when_no_reason_is_left_and_says_so_once",
        Edit(
            "health.systemd:Notifier._look",
            "if not reasons and not self._ready:",
            "if not self._ready:",
        ),
    ),
    PlantedFault(
        "ready before the change stream is open",
        4,
        "cli/test_notify.py::test_it_is_ready_once_the_stream_is_open_and_not_before[one process]",
        Edit(
            "worker.worker:Worker.run",
            '        self.health.not_ready("stream", NOT_OPEN)',
            "        #",
        ),
    ),
    # whoever may scrape
    PlantedFault(
        "a rendering for every version that a client makes up",
        15,
        f"{RENDERINGS}::test_the_versions_that_clients_make_up_cost_no_rendering_each",
        Edit(
            "health.renderings:rendered", "choose_encoder(_known(accept))", "choose_encoder(accept)"
        ),
    ),
    PlantedFault(
        "renderings that are kept when nobody asks for them any more",
        15,
        f"{RENDERINGS}::test_a_form_that_nobody_asks_for_any_more_is_dropped",
        Edit("health.renderings:_Renderings._keep", " if now - kept.ended_at < KEPT_SECONDS}", "}"),
    ),
    PlantedFault(
        "scrapes at once that each render for themselves",
        15,
        f"{RENDERINGS}::test_scrapes_at_once_share_a_rendering",
        Edit(
            "health.renderings:_Renderings.body",
            "kept = self._good(form, packed, asked_at) or self._render(",
            "kept = self._render(",
        ),
        Edit(
            "health.renderings:_Renderings._render",
            "        plain = self._good(form, False, asked_at)\n",
            "        plain = None\n",
        ),
    ),
    PlantedFault(
        "a full server that turns the newcomer away",
        15,
        f"{PLACES}::test_when_all_are_taken_the_client_goes_that_has_been_silent_longest",
        Edit("health.places:Places.take", "self._end(_silent_longest(self._taken))", "return None"),
    ),
    PlantedFault(
        "one address that may take every place",
        15,
        f"{PLACES}::test_an_address_with_too_many_takes_a_place_from_itself",
        Edit(
            "health.places:Places.take",
            "len(neighbours) >= MAX_PER_ADDRESS",
            "len(neighbours) >= MAX_CLIENTS",
        ),
    ),
    PlantedFault(
        "a client that waits for its answer taken for silent",
        15,
        f"{PLACES}::test_whoever_waits_for_us_is_not_silent",
        Edit(
            "health.places:_silent_longest", "(place.is_served, place.heard_at)", "place.heard_at"
        ),
    ),
    PlantedFault(
        "scrapes that wait in a mounted app, however many",
        15,
        "unit/test_health_app.py"
        "::test_scrapes_that_wait_for_a_collector_are_turned_away_when_they_are_many",
        Edit("health.app", "MAX_SCRAPES = 100\n", "MAX_SCRAPES = 10**9\n"),
    ),
    PlantedFault(
        "a limit that is full taken for one that holds jobs back",
        3,
        f"{LIMITS}::test_a_full_limit_is_saturated_while_jobs_are_ready",
        Edit(
            "exporter.limits:count_rules",
            "    if ready:\n        count",
            "    if True:\n        count",
        ),
    ),
    PlantedFault(
        "a group taken for held where its order is not strict",
        3,
        f"{LIMITS}::test_groups_that_a_dead_job_holds_are_counted_where_order_is_strict",
        Edit("exporter.limits:count_rules", 'rules.ordered == "strict"', "rules.ordered"),
    ),
    PlantedFault(
        "jobs of a group that are not due yet taken for held back",
        3,
        f"{LIMITS}::test_jobs_that_have_not_taken_their_place_yet_are_not_held_back",
        Edit(
            "exporter.limit_queries:ready_in_groups",
            '{**of_queue(queue, State.READY), **_ANY_GROUP, "seq": JOINED}',
            '{"queue": queue, "state": {"$gte": "ready"}, **_ANY_GROUP}',
        ),
    ),
    PlantedFault(
        "a look for groups that reads all jobs where their index is missing",
        13,
        f"{LIMITS}::test_without_the_indexes_of_groups_nothing_is_looked_up",
        Edit(
            "exporter.limits:_Count._with_ready",
            "self._rows(pipeline, queries.BY_GROUP)",
            "self._rows(pipeline)",
        ),
    ),
    PlantedFault(
        "held dependents that are read to be counted",
        15,
        "ops/test_census_dependents.py::test_they_are_counted_from_an_index_alone",
        Edit(
            "exporter.queries:held_dependents",
            '{"$sum": 1}',
            '{"$sum": {"$cond": ["$payload", 1, 1]}}',
        ),
    ),
)
