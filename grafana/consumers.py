"""The board for one step further: which worker is it, and what is wrong with it?"""

from __future__ import annotations

from board import board, variable
from panels import (
    RANGE,
    Json,
    heatmap,
    increase,
    quantile,
    rate,
    ratio,
    since,
    stat,
    state_timeline,
    table,
    timeseries,
)
from series import EACH_POINT, SHOWN

CONNECTED = "streamqueue_stream_connected{@instance}"
LAST_EVENT = "streamqueue_stream_last_event_timestamp_seconds{@instance}"
SILENCE = since(f"max by (instance) ({LAST_EVENT} > 0)")
LAG = "streamqueue_event_loop_lag_seconds{@instance}"
LIMIT = "max by (instance) (streamqueue_concurrency_limit{@instance})"
RUNNING = "sum by (instance) (streamqueue_jobs_running{@instance})"
LOST_CLAIMS = 'streamqueue_claims_total{@both, result="lost"}'
MADE_CLAIMS = 'streamqueue_claims_total{@both, result=~"won|lost"}'
OURS = "and on (job, instance) streamqueue_build_info{@instance}"
"""Every program has `process_` series; these are the ones of streamqueue's processes."""

UP_WITH_VERSIONS = (
    "max by (instance, version, pymongo, python) "
    "((time() - process_start_time_seconds{@instance}) * on (job, instance) "
    "group_left (version, pymongo, python) streamqueue_build_info{@instance})"
)

NO_WORKER = "no worker"


def consumers() -> Json:
    return board(
        "streamqueue-consumers",
        "streamqueue / Consumers",
        "Each worker: does it hear the stream, does it have slots, does it keep its leases?",
        [
            variable(
                "job",
                "Job",
                "label_values(streamqueue_build_info, job)",
                "Prometheus's jobs that scrape streamqueue.",
            ),
            variable(
                "queue",
                "Queue",
                "label_values(streamqueue_concurrency_limit{@job}, queue)",
                "Queues that a worker has a handler for.",
            ),
            variable(
                "instance",
                "Instance",
                "label_values(streamqueue_stream_connected{@job}, instance)",
                "Processes that listen to the change stream.",
            ),
        ],
        {
            "Are they all there and well?": at_a_glance(),
            "Do they hear the stream?": stream(),
            "Do they have slots, and keep up?": work(),
            "Do they get in one another's way?": claims_and_leases(),
            "What do the processes take?": processes(),
        },
    )


def at_a_glance() -> list[Json]:
    return [
        stat(
            "Consumers",
            "Processes that Prometheus scrapes and that listen to the change stream.",
            f"count({CONNECTED})",
            "short",
            base="red",
            steps={1: "green"},
            none=NO_WORKER,
        ),
        stat(
            "Streams closed",
            "Of these, the ones whose change stream is not open.",
            f"count({CONNECTED}) - sum({CONNECTED})",
            "short",
            steps={1: "red"},
            none=NO_WORKER,
        ),
        stat(
            "Longest silence",
            "Seconds since the most silent stream gave a sign of life. A live one gives one every "
            "ten seconds at the latest.",
            f"max({SILENCE})",
            "s",
            steps={30: "orange", 120: "red"},
            none=NO_WORKER,
        ),
        stat(
            "Fullest worker",
            "Slot use of the worker with the fewest free slots. At 100 % it claims nothing.",
            f"max({RUNNING} / {LIMIT})",
            "percentunit",
            steps={0.8: "orange", 1: "red"},
            none=NO_WORKER,
        ),
        stat(
            "Worst loop lag, p99",
            "Event loop lag of the worst process. High: one of its handlers blocks the loop.",
            f"max({quantile(0.99, LAG, by='instance')})",
            "s",
            steps={0.05: "orange", 0.25: "red"},
            none=NO_WORKER,
        ),
        stat(
            "Leases lost",
            "Attempts whose lease went to somebody else while they ran, in the time shown. The "
            "process froze, or could not reach MongoDB, for longer than the lease.",
            increase("streamqueue_leases_lost_total{@both}", over=SHOWN),
            "short",
            steps={1: "orange"},
            none=NO_WORKER,
        ),
        stat(
            "Streams reopened",
            "In the time shown, for whatever reason.",
            increase("streamqueue_stream_restarts_total{@instance}", over=SHOWN),
            "short",
            steps={1: "orange"},
            none=NO_WORKER,
        ),
        stat(
            "Youngest process",
            "Seconds since the last start of a process. Small over and over: one keeps dying.",
            f"time() - max(process_start_time_seconds{{@instance}} {OURS})",
            "s",
            base="text",
            none=NO_WORKER,
        ),
    ]


def stream() -> list[Json]:
    return [
        state_timeline(
            "Change stream",
            "Whether each process has its change stream open. With it closed, it finds jobs by "
            "looking every few seconds.",
            {"{{instance}}": f"min by (instance) ({CONNECTED})"},
            {0: ("closed", "red"), 1: ("open", "green")},
        ),
        timeseries(
            "Since the last sign of life",
            "Seconds since the last event or new resume token. It falls back to 0 every few "
            "seconds, in an idle queue too; a line that climbs is a stream that is dead.",
            {"{{instance}}": SILENCE},
            "s",
            w=12,
        ),
        timeseries(
            "Streams opened again, by reason",
            "An election or a cut of the network is made good by itself; refused means missing "
            f"rights. {EACH_POINT}",
            {
                "{{instance}} {{reason}}": increase(
                    "streamqueue_stream_restarts_total{@instance}", by="instance, reason"
                )
            },
            "short",
        ),
        timeseries(
            "Change events",
            "Events received per second. All processes hear the same, so one line that is lower "
            "is one that lags.",
            {"{{instance}}": rate("streamqueue_stream_events_total{@instance}", by="instance")},
            "ops",
        ),
        timeseries(
            "Age of change events, p99",
            "From the server writing an event to its arrival in the process. Compares two clocks.",
            {
                "{{instance}}": quantile(
                    0.99, "streamqueue_stream_event_age_seconds{@instance}", by="instance"
                )
            },
            "s",
        ),
    ]


def work() -> list[Json]:
    return [
        timeseries(
            "Slot use",
            "Handlers that run, of those that may, for all queues of the worker. At 100 % for long "
            "there are too few workers or slots.",
            {"{{instance}}": f"{RUNNING} / {LIMIT}"},
            "percentunit",
            top=1,
        ),
        timeseries(
            "Handlers running",
            "Attempts in progress, by queue.",
            {
                "{{instance}} {{queue}}": "sum by (instance, queue) "
                "(streamqueue_jobs_running{@both})"
            },
            "short",
        ),
        timeseries(
            "Handlers over their time limit",
            "Those that do not end: threads, which cannot be stopped, and async handlers that "
            "swallow their cancellation. A worker that has no other slots is not ready.",
            {
                "{{instance}} {{queue}}": "sum by (instance, queue) "
                "(streamqueue_overdue_handlers{@both})"
            },
            "short",
        ),
        timeseries(
            "Attempts",
            "Attempts ended per second, however they ended. The workers should be alike.",
            {"{{instance}}": rate("streamqueue_attempts_total{@both}", by="instance")},
            "ops",
        ),
        timeseries(
            "Event loop lag, p99",
            "How late a timer of the event loop fires. High in one process: a handler there "
            "computes or blocks, and belongs in a thread or in more processes.",
            {"{{instance}}": quantile(0.99, LAG, by="instance")},
            "s",
        ),
        timeseries(
            "Wait, from due to started, p99",
            "By the worker that started the job.",
            {"{{instance}}": quantile(0.99, "streamqueue_job_wait_seconds{@both}", by="instance")},
            "s",
        ),
        timeseries(
            "MongoDB round trip of claims and completes, p99",
            "The two that a job waits for. One worker far above the others has a network problem "
            "or no time to look at its answers.",
            {
                "{{instance}} {{operation}}": quantile(
                    0.99,
                    "streamqueue_mongodb_operation_duration_seconds"
                    '{@instance, operation=~"claim|complete"}',
                    by="instance, operation",
                )
            },
            "s",
        ),
        timeseries(
            "Slots held by queue",
            "In all of the workers shown. The queues of a worker share its slots by weight: with a "
            "backlog in each, this is the share that each has.",
            {"{{queue}}": "sum by (queue) (streamqueue_jobs_running{@both})"},
            "short",
            stack=True,
        ),
        timeseries(
            "Errors of middleware",
            "Exceptions that middleware has raised after its handler had returned. The results "
            f"stand, and the log names each (`middleware_failed`). {EACH_POINT}",
            {"{{queue}}": increase("streamqueue_middleware_errors_total{@both}", by="queue")},
            "short",
        ),
    ]


def claims_and_leases() -> list[Json]:
    return [
        timeseries(
            "Claims lost",
            "Jobs another consumer was faster with, of all jobs tried for. A few percent is what "
            "taking turns costs; a third means that they race.",
            {
                "{{instance}}": ratio(
                    rate(LOST_CLAIMS, by="instance"), rate(MADE_CLAIMS, by="instance")
                )
            },
            "percentunit",
            w=5,
        ),
        heatmap(
            "Jobs asked for in one claim",
            "Claims, by how many jobs they asked for. One at a time while jobs trickle in, many "
            "while there is a backlog.",
            "streamqueue_claim_batch_jobs{@instance}",
            "short",
            w=5,
        ),
        timeseries(
            "Leases renewed",
            "Renewals per second. None while handlers run for longer than half a lease: the leases "
            "are about to be lost.",
            {"{{instance}}": rate("streamqueue_leases_renewed_total{@both}", by="instance")},
            "ops",
            w=5,
        ),
        timeseries(
            "Leases lost, over time",
            f"Attempts whose lease went to somebody else while they ran. {EACH_POINT}",
            {"{{instance}}": increase("streamqueue_leases_lost_total{@both}", by="instance")},
            "short",
            w=5,
        ),
        timeseries(
            "Steps, over time",
            "Steps of jobs: run and stored, replayed (an earlier attempt had stored the result) or "
            f"failed. Many replayed ones are attempts that fail late. {EACH_POINT}",
            {"{{result}}": increase("streamqueue_steps_total{@both}", by="result")},
            "short",
            w=4,
        ),
    ]


def processes() -> list[Json]:
    return [
        timeseries(
            "Memory",
            "Resident memory. A line that only climbs is a leak, most often in a handler.",
            {
                "{{instance}}": "max by (instance) "
                f"(process_resident_memory_bytes{{@instance}} {OURS})"
            },
            "bytes",
        ),
        timeseries(
            "CPU",
            "Cores in use. A Python process has one: at 100 % give the worker `--processes`.",
            {
                "{{instance}}": "sum by (instance) "
                f"(rate(process_cpu_seconds_total{{@instance}}[{RANGE}]) {OURS})"
            },
            "percentunit",
        ),
        timeseries(
            "Open files",
            "Connections and files. A line that only climbs ends at the limit of the process.",
            {"{{instance}}": f"max by (instance) (process_open_fds{{@instance}} {OURS})"},
            "short",
        ),
        table(
            "Versions",
            "What each process runs, and since when.",
            {
                "instance": "Instance",
                "version": "streamqueue",
                "pymongo": "pymongo",
                "python": "Python",
            },
            {
                "Up": (UP_WITH_VERSIONS, "s"),
            },
            sort="Up",
            w=24,
            h=6,
        ),
    ]
