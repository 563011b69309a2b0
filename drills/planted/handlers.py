"""Faults about handlers, and what they can reach."""

from __future__ import annotations

from drills.planted.fault import Edit, PlantedFault

GOING_DOWN = "cli/test_worker_going_down.py"
UNASKED = "cli/test_worker_unasked_ends.py"
CHILDREN = "cli/test_worker_children.py"
PROCESSES = "cli/test_worker_processes.py"

FAULTS: tuple[PlantedFault, ...] = (
    # handlers, and what they can reach
    PlantedFault(
        "a command that children of a handler cannot load by its path",
        16,
        f"{PROCESSES}::test_a_handler_in_a_child_process_runs_under_a_supervisor",
        Edit("__main__", "from streamqueue.signals import take", "from .signals import take"),
    ),
    PlantedFault(
        "a job that was asked for counted as what its block says",
        16,
        "worker/test_worker_cancel.py"
        "::test_the_job_is_cancelled_whatever_its_handler_does_afterwards",
        Edit(
            "worker.execution.attempt:Attempt.end",
            'if end.kind != "cancelled":',
            'if end.kind in ("failed", "released"):',
        ),
    ),
    PlantedFault(
        "attempts that share a context",
        16,
        "worker/test_worker_attempts.py"
        "::test_what_a_handler_sets_in_its_context_is_not_there_in_the_next",
        Edit("worker.execution.tasks:begin", "context=context.copy()", "context=context"),
    ),
    PlantedFault(
        "attempts that share a decimal context",
        16,
        "worker/test_worker_attempts.py"
        "::test_what_a_handler_sets_in_its_context_is_not_there_in_the_next",
        Edit(
            "worker.execution.executor:Execution._run",
            "if self._decimals:",
            "if False:",
        ),
    ),
    PlantedFault(
        "tasks that outlive the attempt that left their group open",
        16,
        "worker/test_worker_attempts.py"
        "::test_tasks_in_a_group_that_is_left_open_end_with_the_attempt",
        Edit(
            "worker.execution.executor:Execution._run_in_scope",
            "            scope.cancel()\n            if not",
            "            if not",
        ),
    ),
    PlantedFault(
        "attempts in tasks of the worker's own group",
        16,
        "worker/test_worker_attempts.py"
        "::test_a_cancel_scope_that_is_left_open_is_the_end_of_nothing_but_the_attempt",
        Edit(
            "worker.execution.executor:Execution._run_in_scope",
            "        except BaseException as problem:\n",
            "        except ZeroDivisionError as problem:\n",
        ),
    ),
    PlantedFault(
        "a run that ends by an error and blames no attempt",
        13,
        "worker/test_worker_attempts.py"
        "::test_what_ran_when_its_run_ended_by_an_error_has_used_an_attempt",
        Edit("worker.run:Run.serve", "give_back(begun=not failed)", "give_back()"),
        Edit(
            "worker.drain:Drain.close",
            "                if failed:\n",
            "                if False:\n",
        ),
    ),
    PlantedFault(
        "an exception whose notes raise, which ends more than its attempt",
        16,
        "unit/test_logs.py::test_a_traceback_that_cannot_be_made_costs_no_line[NotesMissing-json]",
        Edit(
            "tracebacks:describe",
            "    text = _made(_whole_traceback, error) or",
            "    text = _whole_traceback(error) or",
        ),
    ),
    PlantedFault(
        "a reason that must have a text",
        16,
        "contract/test_queue_block.py::test_a_reason_that_cannot_be_shown_is_stored_by_its_name",
        Edit(
            "errors:text_of",
            "    except BaseException as problem:  # somebody's",
            "    except ZeroDivisionError as problem:  # somebody's",
        ),
    ),
    PlantedFault(
        "a returned generator taken for a success",
        16,
        "worker/test_worker_returns.py::test_what_was_not_begun_is_a_failure_that_names_it",
        Edit("worker.execution.begun", "LAZY = (GeneratorType, ", "LAZY = ("),
    ),
    PlantedFault(
        "a returned coroutine of an async handler taken for a success",
        16,
        "worker/test_worker_returns.py::test_what_was_not_begun_is_a_failure_that_names_it",
        Edit("worker.execution.begun:not_begun", "if inspect.isawaitable(result):", "if False:"),
    ),
    PlantedFault(
        "a class for a handler",
        16,
        "worker/test_worker_returns.py"
        "::test_what_cannot_be_called_with_a_job_or_does_nothing_then_is_refused",
        Edit(
            "worker.handler:is_async",
            "    if inspect.isclass(innermost(function)):",
            "    if False:",
        ),
    ),
    PlantedFault(
        "a handler that does not await what it takes for calls of a Job",
        16,
        "unit/test_annotations.py::test_an_async_def_that_says_that_it_takes_a_job_is_refused",
        Edit(
            "worker.handling:Handling.handler",
            "check_kind_of_job(function, place, batch=batch is not None)",
            "pass",
        ),
    ),
    PlantedFault(
        "a Job of the program's own taken for ours",
        16,
        "unit/test_annotations.py::test_what_does_not_certainly_say_the_wrong_kind_is_registered",
        Edit(
            "worker.annotations:_named",
            "found: object = code.__globals__[name]",
            "found: object = globals().get(name)",
        ),
    ),
    PlantedFault(
        "a handler whose type takes a coroutine for a result",
        16,
        "typing/test_type_checkers.py::test_a_type_checker_finds_what_is_wrong_and_nothing_else",
        Edit(
            "worker.handler_types",
            'InThread = TypeVar("InThread", bound=Callable[[Job], Returned])',
            'InThread = TypeVar("InThread", bound=Callable[[Job], Any])',
        ),
    ),
    PlantedFault(
        "settings of a worker that no type checker knows",
        18,
        "typing/test_type_checkers.py::test_a_type_checker_finds_what_is_wrong_and_nothing_else",
        Edit(
            "worker.worker:Worker.__init__", "**settings: Unpack[RarerSettings]", "**settings: Any"
        ),
    ),
    PlantedFault(
        "an outcome in a group taken for a failure in a worker",
        16,
        "worker/test_worker_returns.py::test_outcomes_in_a_group_count_as_if_they_were_raised_bare",
        Edit(
            "queue.outcome:asked_outcome",
            "    for leaf in _leaves(error):\n",
            "    for leaf in [error]:\n",
        ),
    ),
    PlantedFault(
        "an outcome beside a real failure taken for all of it",
        16,
        "contract/test_queue_block.py"
        "::test_a_group_of_nothing_but_outcomes_counts_as_one[blocking-beside a failure]",
        Edit(
            "queue.outcome:asked_outcome",
            "        if not isinstance(leaf, Outcome):\n            return None\n",
            "        if not isinstance(leaf, Outcome):\n            continue\n",
        ),
        Edit(
            "queue.outcome:outcome_of",
            "    if any(isinstance(leaf, Exception) and",
            "    if all(isinstance(leaf, Exception) and",
        ),
    ),
    PlantedFault(
        "a thread that remembers its last call",
        15,
        "worker/test_worker_memory.py"
        "::test_nothing_of_a_finished_attempt_is_reachable_a_moment_later[returns-blocking]",
        Edit(
            "worker.execution.threads:Threads._work",
            "            del call  # it has",
            "            # it has",
        ),
    ),
    PlantedFault(
        "an exception that holds the frames it came through",
        15,
        "worker/test_worker_memory.py"
        "::test_nothing_of_a_finished_attempt_is_reachable_a_moment_later[fails-async]",
        Edit(
            "worker.execution.executor:Execution._call",
            "                forget(error)\n",
            "                pass\n",
        ),
    ),
    PlantedFault(
        "a retry that says neither why nor when",
        16,
        "contract/test_queue_block.py"
        "::test_a_retry_is_stored_with_its_delay_its_reason_and_its_cause",
        Edit("errors:_sentence", '        when += f": {text_of(reason)}"\n', "        pass\n"),
    ),
    PlantedFault(
        "a blocked event loop that nobody names",
        16,
        "worker/test_worker_blocked.py::test_what_blocks_the_event_loop_is_named_once_a_minute",
        Edit(
            "worker.execution.blocked:BlockedLoop",
            "            self._name(seen, late)\n\n    def _watch",
            "            pass\n\n    def _watch",
        ),
    ),
    PlantedFault(
        "a blocked event loop that is named for every job",
        16,
        "worker/test_worker_blocked.py::test_what_blocks_the_event_loop_is_named_once_a_minute",
        Edit("worker.execution.blocked", "AGAIN = 60.0", "AGAIN = 0.0"),
    ),
    PlantedFault(
        "loggers that a module has disabled without a word",
        18,
        "cli/test_log_format.py"
        "::test_our_loggers_speak_again_after_the_module_has_configured_logging",
        Edit(
            "cli.loading:_enable_our_loggers",
            "            found.disabled = False",
            "            pass",
        ),
    ),
    PlantedFault(
        "lines that a module hides without a word",
        18,
        "cli/test_log_format.py::test_what_the_module_hides_of_our_lines_is_said_in_one",
        Edit("cli.loading:load_worker", "    _say_what_is_hidden(level)\n", ""),
    ),
    PlantedFault(
        "lines of a handler that do not say whose they are",
        14,
        "unit/test_logs.py::test_a_line_written_in_a_handler_says_whose_it_is",
        Edit("logs:_of_the_attempt", "    attempt = running.get()\n", "    attempt = None\n"),
    ),
    PlantedFault(
        "tracebacks in the log that nobody asked for",
        14,
        "worker/test_worker_privacy.py"
        "::test_no_payload_and_no_exception_text_is_logged_or_measured_or_printed",
        Edit(
            "worker.execution.outcomes:Outcomes._log_failure",
            "exc_info=error if self._log_tracebacks else None",
            "exc_info=error",
        ),
    ),
    PlantedFault(
        "a worker's stream with the read concern of the URI",
        5,
        "worker/test_worker_uri.py::test_a_worker_runs_jobs_whatever_the_uri_says",
        Edit(
            "stream.watcher:Watcher.run",
            "jobs = watched(client, self._jobs)",
            "jobs = client[self._jobs.database.name][self._jobs.name].with_options(\n"
            "            codec_options=self._jobs.codec_options\n        )",
        ),
    ),
    PlantedFault(
        "a queue's stream with the read preference of the URI",
        5,
        "contract/test_queue_uri.py::test_a_queue_works_whatever_the_uri_says"
        "[async-readPreference=secondary]",
        Edit(
            "stream.verdict:watched",
            "        read_preference=ReadPreference.PRIMARY,\n"
            "        write_concern=jobs.write_concern,\n",
            "        write_concern=jobs.write_concern,\n",
        ),
    ),
    PlantedFault(
        "an oplog's window with the read concern of the URI",
        5,
        "worker/test_worker_uri.py::test_the_exporter_and_top_see_the_queues_whatever_the_uri_says",
        Edit(
            "store.collection:oplog_of",
            'PRIMARY, read_concern=ReadConcern("local")\n    )',
            "PRIMARY\n    )",
        ),
    ),
    PlantedFault(
        "a time until a stored date that wraps around",
        8,
        "contract/test_queue_dates.py"
        "::test_the_time_until_it_has_the_right_sign_and_is_within_reach",
        Edit(
            "protocol.operations.expressions:milliseconds_until",
            '{"$subtract": [near(f"${field}"), "$$NOW"]}',
            '{"$subtract": [f"${field}", "$$NOW"]}',
        ),
    ),
    PlantedFault(
        "a time since a stored date that wraps around",
        8,
        "worker/test_worker_dates.py::test_the_queues_are_counted_right",
        Edit(
            "protocol.operations.expressions:milliseconds_since",
            '{"$subtract": ["$$NOW", near(f"${field}")]}',
            '{"$subtract": ["$$NOW", f"${field}"]}',
        ),
    ),
    PlantedFault(
        "an age of the oldest job that wraps around",
        8,
        "worker/test_worker_dates.py::test_the_queues_are_counted_right",
        Edit("exporter.queries", 'near("$at")', '"$at"'),
    ),
    PlantedFault(
        "a consumer that lives because it will be seen in the year 10000",
        8,
        "worker/test_worker_dates.py::test_a_consumer_that_was_or_will_be_seen_then_is_not_there",
        Edit(
            "protocol.operations.consumers:registered",
            '{"$abs": milliseconds_since("seen_at", no_date=None)}',
            'milliseconds_since("seen_at", no_date=None)',
        ),
    ),
    PlantedFault(
        "a leader until the year 10000",
        8,
        "worker/test_worker_dates.py::test_the_exporter_and_top_show_what_there_is",
        Edit(
            "protocol.operations.consumers:lead",
            '            {"$lte": ["$held_until", longest]},  # else',
            "            # else",
        ),
    ),
    PlantedFault(
        "a pause of the stream that overflows after two hours",
        5,
        "unit/test_stream.py::test_no_outage_is_too_long_for_the_pace",
        Edit(
            "stream.verdict:Pace.failed",
            "pause = AGAIN.delay(self._failures) if self._failures else 0.0",
            "pause = min(5.0, 0.1 * 2.0**self._failures) if self._failures else 0.0",
        ),
    ),
    PlantedFault(
        "a line of the log for every failed try",
        5,
        "drills/server/test_server_drills.py::test_no_job_is_lost_doubled_or_held_by_two[a-days-outage]",
        Edit(
            "outage:Outage.failed",
            "            return False\n        self._since = now",
            "            return True\n        self._since = now",
        ),
    ),
    PlantedFault(
        "a pause between two ends of attempts that is doubled by hand",
        5,
        "unit/test_architecture.py::test_every_pause_between_tries_comes_from_backoff",
        Edit(
            "worker.ends:Ends._end",
            "pause = AGAIN.delay(tries)",
            "pause = min(2.0, 0.05 * 2**tries)",
        ),
    ),
    PlantedFault(
        "a backoff that overflows",
        5,
        "unit/test_backoff.py::test_no_number_of_failures_is_too_many",
        Edit(
            "backoff:Backoff.delay",
            "        except OverflowError:",
            "        except ZeroDivisionError:",
        ),
    ),
    PlantedFault(
        "a write that may take as long as a lease of months",
        5,
        "worker/test_worker_leases.py::test_a_lease_of_months_is_as_good_as_a_short_one",
        Edit(
            "worker.ends:time_left",
            "return min(LONGEST_WRITE, max(LEAST_TIME, left))",
            "return max(LEAST_TIME, left)",
        ),
    ),
    PlantedFault(
        "a run that ends by itself taken for one that was stopped",
        12,
        f"{UNASKED}::test_a_run_that_ends_by_itself_is_an_error_in_a_sentence[a part is cancelled]",
        Edit(
            "worker.run:Run.serve",
            "            if not stop.is_set():\n                # As a task group",
            "            if False:\n                # As a task group",
        ),
        Edit(
            "worker.worker:Worker._run",
            "        if not stop.is_set():\n            raise StreamQueueError(NOT_TOLD)\n",
            "",
        ),
    ),
    PlantedFault(
        "a part that returns and is not missed",
        12,
        f"{UNASKED}::test_a_run_that_ends_by_itself_is_an_error_in_a_sentence[a part returns]",
        Edit(
            "worker.run:Run._serve",
            "if not stop.is_set() and not cancelled and not self._drain.closing:",
            "if False:",
        ),
    ),
    PlantedFault(
        "tasks of a handler that may end the event loop",
        16,
        "worker/test_worker_handlers.py::test_no_task_that_a_handler_begins_takes_the_worker_down",
        Edit(
            "worker.execution.tasks:contained_exits.make",
            "        if in_attempt():",
            "        if False:",
        ),
    ),
    PlantedFault(
        "a module's sys.exit() taken for the end of the command",
        12,
        f"{UNASKED}::test_a_module_that_exits_is_told_with_its_line[alone]",
        Edit(
            "cli.loading:_import",
            '        raise _ended(f"module',
            '        raise\n        raise _ended(f"module',
        ),
        Edit(
            "cli.exits:exit_code",
            "        case SystemExit():  # of",
            "        case GeneratorExit():  # of",
        ),
    ),
    PlantedFault(
        "an exit code 0 taken for an order to stop",
        12,
        f"{PROCESSES}::test_an_end_that_nobody_asked_for_is_none_in_order",
        Edit(
            "processes.process:ProcessEnd.in_order",
            "return self.told and ended_itself and",
            "return ended_itself and",
        ),
    ),
    PlantedFault(
        "a drain that waits for a handler that swallows its cancellation",
        12,
        f"{GOING_DOWN}::test_a_handler_that_swallows_its_cancellation_is_named_and_left[alone]",
        Edit(
            "worker.drain:Drain.run",
            "                await self._until(lambda: not self._at_work())\n"
            "            await self._leave(self._at_work())\n",
            "                pass\n            await self._until(lambda: not self._at_work())\n",
        ),
    ),
    PlantedFault(
        "a job that is not released when its handler is left",
        12,
        f"{GOING_DOWN}::test_a_handler_that_swallows_its_cancellation_is_named_and_left[alone]",
        Edit(
            "worker.leases:Leases.leave", "await self._give_back(ours) if ours else 0", "len(ours)"
        ),
    ),
    PlantedFault(
        "a process that waits for whatever holds the interpreter",
        12,
        f"{GOING_DOWN}"
        "::test_tasks_threads_and_exit_functions_that_do_not_end_do_not_hold_the_process",
        Edit(
            "signals:Ending._within",
            "        self._deadline = min(self._deadline, monotonic() + seconds)\n",
            "",
        ),
    ),
    PlantedFault(
        "a third signal that only hurries",
        12,
        f"{GOING_DOWN}::test_a_third_signal_ends_it_now",
        Edit("signals", "STOP, HURRY, END = 1, 2, 3", "STOP, HURRY, END = 1, 2, 9"),
    ),
    PlantedFault(
        "a SIGHUP that ends a worker without a drain",
        12,
        f"{GOING_DOWN}::test_sighup_drains",
        Edit(
            "signals",
            "STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)",
            "STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)",
        ),
    ),
    PlantedFault(
        "signals that are taken when the worker is ready, and not before",
        12,
        f"{GOING_DOWN}::test_as_process_1_it_ends_when_it_is_told_to",
        Edit("signals:take", "        _ours.take()\n", "        _ours = None\n"),
        Edit(
            "cli.services:worker",
            "    ending = signals.take()\n",
            "    ending = signals.Ending()\n",
        ),
        Edit("__main__:main", "        take()  # first", "        pass  # first"),
    ),
    PlantedFault(
        "a supervisor that waits for a process that does not end",
        12,
        f"{PROCESSES}::test_a_process_that_does_not_end_when_its_time_is_over_is_killed",
        Edit(
            "processes.process:RunningProcess.listen",
            "            self._drain = float(limit[1])\n",
            "            pass\n",
        ),
    ),
    PlantedFault(
        "a forked child that takes signals in the worker's place",
        16,
        f"{CHILDREN}::test_a_signal_to_what_a_handler_forked_ends_that_and_not_the_worker[default]",
        Edit("signals", "    after_in_child=_after_fork_in_child,\n", ""),
        Edit("signals", "    before=_before_fork,\n", ""),
    ),
    PlantedFault(
        "processes that look for modules in the current folder first",
        16,
        f"{CHILDREN}::test_files_beside_the_module_are_not_taken_for_pythons_own[supervised]",
        Edit("interpreter:_switches", '        switches.append("-P")\n', "        pass\n"),
    ),
    PlantedFault(
        "a wait for a missing server without a word",
        5,
        f"{GOING_DOWN}::test_the_wait_for_a_missing_server_is_said_at_once",
        Edit(
            "store.first_answer:_say_while_away",
            "        if not store.in_reach:\n",
            "        if False:\n",
        ),
    ),
    PlantedFault(
        "an attempt that hangs, whose age begins anew with each renewal",
        3,
        "ops/test_census.py::test_the_attempt_that_has_run_longest_is_found_in_each_queue[False]",
        Edit(
            "exporter.queries",
            '"longest": {"$max": milliseconds_since("locked_at", no_date=0)}',
            '"longest": {"$max": milliseconds_since("locked_until", no_date=0)}',
        ),
    ),
    PlantedFault(
        "a validator that knows no bounds of dates",
        14,
        "cli/test_commands.py::test_the_validator_refuses_what_is_not_a_job",
        Edit(
            "protocol.schema",
            'for operator, bound in (("$lt", FIRST_DATE), ("$gt", LAST_DATE))',
            'for operator, bound in (("$lt", FIRST_DATE),)',
        ),
    ),
    PlantedFault(
        "an exporter that asks again and again for what it may not read",
        14,
        "ops/test_census.py::test_what_may_not_be_read_is_left_out",
        Edit(
            "exporter.census:Surveyor._note_refused",
            "        self._refused.add(name)\n",
            "",
        ),
    ),
    PlantedFault(
        "a members that prints what anybody stored as it is",
        14,
        "cli/test_hostile_text.py::test_nothing_that_a_terminal_obeys_is_printed[text]",
        Edit(
            "cli.tables:show", "            print(printable(line))\n", "            print(line)\n"
        ),
    ),
    PlantedFault(
        "a message that begins another line of the log",
        14,
        "unit/test_plain.py::test_a_record_is_one_line[an argument-text]",
        Edit(
            "logs:TextFormatter.format",
            "plain.escaped(hide_password(self._line(record)))",
            "self._line(record)",
        ),
    ),
    PlantedFault(
        "a traceback whose lines look like records",
        14,
        "unit/test_plain.py::test_no_line_of_an_exception_looks_like_a_record[text]",
        Edit(
            "plain:escaped_lines",
            'return "\\n  ".join(map(escaped',
            'return "\\n".join(map(escaped',
        ),
    ),
    PlantedFault(
        "loggers that trust what jobs say where a program formats the lines itself",
        14,
        "unit/test_plain.py::test_with_a_programs_own_formatter_too_our_lines_are_one_line_each",
        Edit("plain:logger", "        found.addFilter(_one_line)\n", "        pass\n"),
    ),
    PlantedFault(
        "a password that is hidden only as it stands in the address",
        14,
        "unit/test_passwords.py::test_the_password_of_an_address_from_a_file_is_known",
        Edit(
            "passwords:_forms",
            "    for plain in {password, unquote(password), unquote_plus(password)}:\n",
            "    for plain in {password}:\n",
        ),
    ),
    PlantedFault(
        "a password that is not looked for among the variables of the code",
        14,
        "unit/test_passwords.py::test_a_traceback_in_the_log_shows_none[text]",
        Edit(
            "passwords:passwords_of",
            "                found |= _of_values(frame.f_globals) | _of_values(frame.f_locals)\n",
            "",
        ),
    ),
    PlantedFault(
        "a requeue of many that takes a death for another one",
        13,
        "cli/test_dead_commands.py::test_a_job_that_died_again_since_it_was_read_is_left",
        Edit(
            "protocol.operations.deaths:requeue",
            ', "finished_at": {"$eq": died.get("finished_at")}',
            "",
        ),
    ),
    PlantedFault(
        "a purge that removes what is dead no more",
        1,
        "cli/test_dead_commands.py::test_a_job_that_died_again_since_it_was_read_is_left",
        Edit(
            "protocol.operations.deaths:_still_dead",
            'return {**deaths.filter(), "_id": one_of_ids([one["_id"] for one in died])}',
            'return {"_id": one_of([one["_id"] for one in died])}',
        ),
    ),
    PlantedFault(
        "a purge of what died after it was agreed to",
        1,
        "cli/test_dead_commands.py::test_only_what_was_dead_at_the_count_is_meant[purge]",
        Edit("protocol.operations.deaths:Deaths.filter", ', "$expr": {"$or": by_then}}', "}"),
    ),
    PlantedFault(
        "a requeue of many that ends at the first key that is taken",
        17,
        "cli/test_dead_commands.py::test_those_whose_key_is_taken_stay_dead_and_are_counted",
        Edit(
            "store.blocking:Store._update_each",
            "bulk_write(changes, ordered=False)",
            "bulk_write(changes, ordered=True)",
        ),
    ),
    PlantedFault(
        "dead jobs that are purged without a question",
        14,
        "cli/test_dead_commands.py"
        "::test_without_a_terminal_and_a_yes_nothing_is_changed[purge-purged]",
        Edit(
            "cli.dead:_change_many",
            "    if not options.yes and not (sys.stdin",
            "    if not (sys.stdin",
        ),
        Edit("cli.dead:_change_many", "sys.stdin.isatty()):\n", "True):\n"),
    ),
    PlantedFault(
        "a requeue of many that Ctrl-C does not stop",
        12,
        "cli/test_dead_commands.py::test_ctrl_c_stops_between_two_pieces_and_says_what_was_done",
        Edit(
            "cli.dead:_change_in_pieces",
            "if asked_to_stop() and not progress.complete:",
            "if False:",
        ),
    ),
    PlantedFault(
        "an error that MongoDB refused and that has no name in the log",
        14,
        "unit/test_failures.py::test_of_what_mongodb_refuses_there_are_its_number_and_its_name",
        Edit(
            "failures:failure_name",
            "    if code is None:\n        return type_name",
            "    if True:\n        return type_name",
        ),
    ),
    PlantedFault(
        "a server whose names of errors are taken as they are",
        14,
        "unit/test_failures.py::test_of_what_mongodb_refuses_there_are_its_number_and_its_name",
        Edit("failures:_code_name", " and name.isidentifier() and name.isascii()", ""),
    ),
    PlantedFault(
        "JSON that a payload is read from as Python likes it",
        14,
        "cli/test_wrong_input.py::test_what_is_no_payload_is_told_and_nothing_is_put[a key twice]",
        Edit("cli.given:_parse", "            object_pairs_hook=_object,\n", ""),
    ),
)
