"""What the package logs: every event and field by name, and a formatter that writes them as JSON.

The loggers are called ``streamqueue.*``, after the part that speaks. A line is a sentence for
people, and carries its facts as fields of the record (``extra``), of which ``event`` is always one.
There is no line for a job that was completed: counting those is what the metrics are for. Nothing
that a job holds is logged, nor what an exception says (it tends to quote the job): of an error
there is its class, and the traceback is stored on the job.

The library adds no handler, not even one that does nothing, and sets no level: without any
configuration Python prints warnings and errors, which is what whoever lost a job wants to see. The
command line writes with :class:`JsonFormatter` under ``--log-format json``. In a program of one's
own::

    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level="INFO", handlers=[handler])

or, with ``logging.config.dictConfig``: ``{"()": "streamqueue.logs.JsonFormatter"}``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any

from . import plain
from .passwords import hide_password, hide_passwords, passwords_of
from .running import running
from .tracebacks import describe

EVENTS = {
    # a worker
    "worker_started": "the server answered; the change stream is being opened",
    "metrics_served": "its metrics and health can be asked for at the address in the message",
    "worker_ready": "its stream is open and it claims",
    "signal_received": "SIGTERM, SIGINT or SIGHUP",
    "server_awaited": "no server answers at the start: at once, and then every ten seconds",
    "worker_empty": "nothing is left to do for a worker that runs until then",
    "worker_waits_for_others": "it waits for jobs that are held back, or run elsewhere",
    "time_patched": "a test has replaced the clock of its process, which moves no job",
    "worker_stopping": "it claims nothing more and lets its handlers finish",
    "lifespan_failed": "the lifespan raised while the worker stopped, or did not end in time",
    "worker_stopped": "it holds nothing more: how long that took, how many jobs it gave back",
    # its jobs
    "attempt_failed": "a handler raised, or called job.error()",
    "job_dead": "attempts used up, discarded by its handler, or impossible to run",
    "cancel_asked": "somebody has asked to cancel a job that runs: its handler is stopped",
    "job_cancelled": "a job that ran has ended as cancelled: asked for, or by its handler",
    "lease_lost": "the job is, or may be, somebody else's; its handler is cancelled",
    "lease_blocked": "an open transaction has changed the job, whose lease is renewed by itself",
    "end_shortened": "the server refused the message at an attempt's end; it was left out",
    "end_refused": "the server refuses an attempt's end, or its renewal: its lease will end it",
    "time_limit": "a handler is over its time limit: it is stopped, unless it is in a thread",
    "slots_overdue": "handlers that are over their time limits have all slots: not ready",
    "middleware_failed": "a middleware raised after its handler had returned; the result stands",
    "backoff_failed": "a backoff function raised, or gave no seconds: the worker's backoff holds",
    "on_dead_failed": "on_dead raised",
    "on_dead_left_out": "on_dead was not called: too many deaths, or the worker has stopped",
    "handler_left": "a handler does not end though it was cancelled; the process ends without it",
    "claim_given_back": "a handler was stopped by a shutdown; the attempt does not count",
    "claim_left": "a claim that could not be given back; the end of its lease will do it",
    "loop_blocked": "a handler keeps the event loop from all others: once a minute for each",
    "claim_late": "a claim took longer than its lease: slow server, or timeout= is too short",
    "jobs_reaped": "jobs of consumers that died or hung: ready again, dead, or cancelled",
    "job_stuck": "the server refuses every change to a job's document",
    "job_expired": "a claimed job was too late to begin, as `put(expires=)` said",
    "jobs_expired": "jobs that waited were too late to begin, and ended",
    "job_stays_dead": "a dead job was not requeued, because a live one has its key",
    "rules_refused": "an index is missing without which the rules of a queue cannot be kept",
    "room_unsaid": "a held-back job that may start now was told to nobody, and is looked for later",
    "left_waiting": "jobs that wait for others were not let through, and are looked for later",
    "dependents_cancelled": "jobs come after one that has failed, or is gone, and are cancelled",
    "jobs_left": "jobs that cannot be run here are left to others: once for each task, or field",
    "queue_paused": "it claims no job of the queue, and has given back what it had not begun",
    "queue_resumed": "it claims its jobs again",
    "rules_declared": "limits and order of a queue are those of this worker's handler from now on",
    "rules_left": "no right to take away limits that no handler declares: they go on to hold",
    "rules_not_told": "the jobs' validator refuses the bell: others learn of the limits late",
    "tick_fired": "a schedule has put the job of a tick (at DEBUG)",
    "tick_skipped": "a schedule has put none for a tick, because a job has its key",
    "tick_failed": "the same, because of what is stored of it, or because the server refuses it",
    "ticks_left_out": "ticks came too late, and catch_up leaves them out",
    "schedule_not_fired": "a schedule cannot be read here, or another version has another rule",
    "schedule_begun_anew": "somebody has damaged its last tick: it fires from then on",
    "schedule_not_declared": "one in code has the name of a stored one, which goes on",
    "schedules_not_told": "the jobs' validator refuses the bell: other workers learn of them late",
    "schedules_refused": "no right to fire schedules: they are left to other workers",
    # its surroundings
    "stream_opened": "the change stream is open for the first time",
    "stream_broken": "the change stream broke or ended: the first time in a row",
    "stream_reopened": "it is open again, and all jobs have been looked for",
    "event_unusable": "a change event that could not be read; its job is looked for instead",
    "missed_wakeup": "the sweep found jobs that the stream had not announced: a fault",
    "operation_failing": "the server or the way there fails an operation: the first time in a row",
    "operation_recovered": "that operation works again",
    "consumers_refused": "no right to write the list of consumers: claims are not shared out",
    "settings_refused": "no right to read which queues are paused or limited: they are worked on",
    "rates_refused": "no right to reserve starts: jobs whose starts have a rate are not started",
    "buckets_stay": "no index removes what is known of the rates of quiet groups",
    "indexes_failed": "the indexes could not be created for now; they are tried again later",
    "indexes_created": "the collection was new, or this version wants more indexes",
    "indexes_refused": "no right to create indexes; a warning if some are missing, else at DEBUG",
    "index_blocked": "an index cannot be made: `reason`; without that of the keys none can be used",
    "metrics_failed": "a collector raised during a scrape",
    "client_refused": "a client of the metrics' port that TLS did not let in",
    "certificates_renewed": "the certificates of the metrics' port were replaced, and read",
    "certificates_refused": "the new certificates cannot be used; the old ones stay",
    # the state of the queues
    "exporter_ready": "the queues were counted, and are served",
    "exporter_stopped": "the exporter was told to stop, and has",
    "leading": "of the workers told to export the state, this one does",
    "leading_no_more": "another worker exports the state",
    "census_failed": "the queues could not be counted: a fault",
    "census_refused": "no right to read a part of the state; it is left out",
    "queues_left_out": "more queues than there may be series",
    # the supervisor of --processes
    "process_started": "a consumer process is ready",
    "process_restarted": "the same, in place of one that died",
    "process_died": "a consumer process, or the dispatcher, ended that should not have",
    "process_killed": "one whose event loop stood still under a watchdog, or that did not end",
    "process_ended": "one ended in order, told so by somebody else; it is not started again",
    "dispatcher_ready": "the process that hands out jobs to the others is",
    "dispatcher_refused": "a process says what it cannot use, of another version; it listens alone",
    "dispatcher_joined": "a consumer process has its jobs from the dispatcher",
    "dispatcher_gone": "a consumer process listens for itself: no dispatcher, or a silent one",
    "supervisor_stopped": "all consumer processes have ended",
    "supervisor_gone": "a consumer process lost its supervisor, and stops",
    # the supervisor of --reload
    "code_changed": "the worker is stopped, and started anew",
    "reload_waits": "the worker has ended by itself; it is started again when its code changes",
    # any command
    "logs_hidden": "the module's logging configuration hides lines that --log-level asks for",
    "manager_unreachable": "the service manager's socket takes no message: the first in a row",
    "thread_failed": "a thread of the program, `task`, was ended by an error",
    "process_ended_at_once": "by a third signal, or because something held it that did not end",
    "command_failed": "what ends the command, as the sentence on the terminal",
}
"""Every ``event``, and what has happened when it is logged."""

FIELDS = {
    "event": "one of EVENTS",
    "queue": "the queue it is about",
    "schedule": "the schedule it is about",
    "tick": "the moment that a schedule's job is for",
    "queues": "all of them, where it is about several",
    "job_id": "as text",
    "attempt": "which one, from 1",
    "max_attempts": "how many the job has",
    "consumer": "the name of the consumer that holds, or held, the job; or that speaks",
    "consumers": "several of them",
    "concurrency": "how many handlers the worker runs at a time",
    "loop": "the library whose event loop the worker runs in: asyncio or uvloop",
    "result": "requeued, dead or cancelled",
    "reason": "why, in a word or a few",
    "error": "the class of an exception",
    "code": "MongoDB's number for it",
    "code_name": "and its name for that",
    "operation": "as in the metrics: claim, complete, renew, reap, ...; also sweep, consumers",
    "count": "of what the event is about: jobs, failures, indexes, processes",
    "seconds": "how long it took or lasted",
    "signal": "the name of one that was received, or that killed a process",
    "task": "the name of a handler, or of what else runs in the event loop",
    "field": "of a payload, the one that does not fit",
    "place": "where in the code, innermost first",
    "exit_code": "of a process that ended by itself",
    "pid": "of a consumer process",
    "process_number": "of a consumer process, from 0, or -1 for the dispatcher; in JSON `process`",
}
"""Every field, and what is in it. Fields that do not apply are absent."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_DEEPEST = 5


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    It has ``time`` (RFC 3339, UTC, milliseconds), ``level``, ``logger``, ``message``, and whatever
    the record was given as ``extra``; inside a handler ``queue``, ``job_id`` and ``attempt``; of an
    exception its class as ``error`` (unless the record says another) and its ``traceback``, of
    ``stack_info=True`` the ``stack``. What JSON has no form for is written as ``str`` gives it.
    Passwords in MongoDB addresses are masked. An extra that has the name of one of the above gets
    an underscore.

    Args:
        process: the number of this process among several, written as ``process``; default: none.
    """

    def __init__(self, *, process: int | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": hide_password(record.getMessage()),
        }
        if self._process is not None:
            line["process"] = self._process
        for name, value in vars(record).items():
            if name not in _STANDARD:
                # `process` is the record's own word for the pid, so no extra can have that name.
                name = "process" if name == "process_number" else name
                line[f"{name}_" if name in line else name] = _plain(value)
        for name, value in _of_the_attempt(record).items():
            line.setdefault(name, value)
        if record.exc_info and record.exc_info[0] is not None:
            line.setdefault("error", record.exc_info[0].__name__)
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = hide_passwords(self.formatStack(record.stack_info))
        return plain.as_json(line)

    def formatException(self, ei: Any) -> str:
        """Return the traceback, as much of it as the exception lets be had, without passwords."""
        return _traceback(ei)


class TextFormatter(logging.Formatter):
    """Writes a record as text for people, with the passwords in MongoDB addresses masked.

    Inside a handler the queue, the job and the attempt stand behind the message. A record begins
    one line: a newline in its message is written as ``\\n``, other characters that cannot be seen
    likewise, and the lines of a traceback are indented.

    Args:
        process: the number of this process among several, written before the logger's name.
    """

    def __init__(self, *, process: int | None = None) -> None:
        which = "" if process is None else f"process {process} "
        super().__init__(f"%(asctime)s %(levelname)s {which}%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines, without the last one's end."""
        parts = [plain.escaped(hide_password(self._line(record)))]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        elif record.exc_text:  # of a record that another process or thread has formatted
            parts.append(hide_passwords(record.exc_text))
        if record.stack_info:
            parts.append(hide_passwords(self.formatStack(record.stack_info)))
        first, *others = parts
        return "\n".join([first, *(f"  {plain.escaped_lines(other)}" for other in others)])

    def _line(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        return self.formatMessage(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without the traceback."""
        line = super().formatMessage(record)
        attempt = _of_the_attempt(record)
        if not attempt:
            return line
        which = " ".join(f"{name}={value}" for name, value in attempt.items())
        return f"{line} [{which}]"

    def formatException(self, ei: Any) -> str:
        """Return the traceback, as much of it as the exception lets be had, without passwords."""
        return _traceback(ei)


def _of_the_attempt(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of the attempt that writes a line, unless the line names a job itself.

    Looked at where the line is formatted: the handlers of ``logging`` do so in the writer's
    context, but for those that hand a record to another thread.
    """
    attempt = running.get()
    if attempt is None or "job_id" in vars(record):
        return {}
    if attempt.job_id is None:
        return {"queue": attempt.queue}
    return {
        "queue": attempt.queue,
        "job_id": str(attempt.job_id),
        "attempt": attempt.attempt,
    }


def _traceback(exc_info: Any) -> str:
    error = exc_info[1]
    if error is None:
        return ""
    return hide_passwords(describe(error).rstrip("\n"), passwords_of(error))


def _plain(value: object, depth: int = 1) -> Any:
    """Return a value as JSON has it; its text beyond a few levels, and where JSON has nothing."""
    if isinstance(value, str):
        return hide_password(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {_text(key): _plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple, AbstractSet)):
            return [_plain(item, depth + 1) for item in value]
    return _text(value)


def _text(value: object) -> str:
    try:
        return hide_password(str(value))
    except Exception as error:  # a line is not lost for a field of it
        return f"<{type(value).__name__}: {type(error).__name__}>"
