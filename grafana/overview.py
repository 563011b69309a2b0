"""The board for whoever is on call: is anything lost, stuck or late, and is the stream alive?"""

from __future__ import annotations

from board import board, variable
from glance import at_a_glance, in_numbers
from held_back import held_back
from panels import Json, heatmap, increase, quantile, rate, ratio, state_timeline, table, timeseries
from series import (
    AGE_OF_COUNTS,
    ATTEMPTS,
    COMPLETED,
    CONSUMERS,
    DEAD,
    DIED,
    DURATION,
    EACH_POINT,
    ENDED,
    EXPIRED,
    FAILED,
    LATE_SCHEDULES,
    LONGEST_SILENCE,
    OLDEST,
    OLDEST_RUNNING,
    OVERDUE,
    PAUSED,
    SHOWN,
    SLOTS,
    SUBSCRIPTIONS,
    WAIT,
    WAITING,
)


def overview() -> Json:
    return board(
        "streamqueue-overview",
        "streamqueue / Overview",
        "Is anything lost, is anything stuck, how late are we, and is the stream alive?",
        [
            variable(
                "job",
                "Job",
                "label_values(streamqueue_build_info, job)",
                "Prometheus's jobs that scrape streamqueue; leave the exporter's among them.",
            ),
            variable(
                "queue",
                "Queue",
                'label_values({__name__=~"streamqueue_(queue_jobs|jobs_put_total|attempts_total)",'
                " @job}, queue)",
                "Queues that the exporter, a producer or a worker knows.",
            ),
        ],
        {
            "Is anything lost or stuck, how late are we, is the stream alive?": at_a_glance(),
            "How much is going on?": in_numbers(),
            "How late are we, and what takes the time?": latency(),
            "What flows in and out?": flow(),
            "Do schedules fire, do messages arrive, and what do keys hold back?": by_itself(),
            "What do limits, groups and parents hold back?": held_back(),
            "What went wrong, and was it made good?": recovery(),
            "How is MongoDB, as we see it?": mongodb(),
        },
    )


def latency() -> list[Json]:
    return [
        timeseries(
            "Wait, from due to started",
            "The time from a job becoming due until its handler starts: what a user feels of the "
            "queue. p50 shows the path, p99 the backlog.",
            {
                "p50 {{queue}}": quantile(0.5, WAIT, by="queue"),
                "p95 {{queue}}": quantile(0.95, WAIT, by="queue"),
                "p99 {{queue}}": quantile(0.99, WAIT, by="queue"),
            },
            "s",
            w=12,
        ),
        heatmap(
            "How the waits spread",
            "Jobs started, by how long they had waited. Two bands are two kinds of pick-up: by the "
            "stream, and after a wait for a free slot.",
            WAIT,
            "s",
            w=12,
        ),
        timeseries(
            "Handler time by task",
            "How long attempts take, however they end.",
            {
                "p50 {{task}}": quantile(0.5, DURATION, by="task"),
                "p99 {{task}}": quantile(0.99, DURATION, by="task"),
            },
            "s",
            w=6,
        ),
        timeseries(
            "Age of change events",
            "From the server writing an event to its arrival. It compares the clocks of two "
            "machines. High here and low below: the stream is the slow part.",
            {
                "p50": quantile(0.5, "streamqueue_stream_event_age_seconds{@job}"),
                "p99": quantile(0.99, "streamqueue_stream_event_age_seconds{@job}"),
            },
            "s",
            w=6,
        ),
        timeseries(
            "MongoDB round trip, p99",
            "How long operations take, as the processes see it: server, network and driver.",
            {
                "{{operation}}": quantile(
                    0.99,
                    "streamqueue_mongodb_operation_duration_seconds{@job}",
                    by="operation",
                )
            },
            "s",
            w=6,
        ),
        timeseries(
            "Event loop lag",
            "How late a timer of the event loop fires. A handler that blocks shows here first; "
            "the board Consumers says in which process.",
            {
                "p50": quantile(0.5, "streamqueue_event_loop_lag_seconds{@job}"),
                "p99": quantile(0.99, "streamqueue_event_loop_lag_seconds{@job}"),
            },
            "s",
            w=6,
        ),
    ]


def flow() -> list[Json]:
    return [
        timeseries(
            "Put and completed",
            "Jobs put and completed per second. Put above completed for long: the backlog grows.",
            {
                "put {{queue}}": rate(
                    'streamqueue_jobs_put_total{@queue, result="inserted"}', by="queue"
                ),
                "completed {{queue}}": rate(COMPLETED, by="queue"),
            },
            "ops",
            w=6,
        ),
        state_timeline(
            "Paused queues",
            "A queue that somebody has paused takes jobs in and gives none out, until "
            "`streamqueue resume`. What ran when it was paused goes on to its end.",
            {"{{queue}}": PAUSED},
            {0: ("open", "green"), 1: ("paused", "orange")},
            w=6,
        ),
        timeseries(
            "Jobs by state",
            "Due, scheduled for later, waiting for another one, running and dead jobs of the "
            "chosen queues.",
            {
                "{{state}}": "sum by (state) "
                "(max by (queue, state) (streamqueue_queue_jobs{@queue}))"
            },
            "short",
            stack=True,
            w=6,
        ),
        timeseries(
            "Oldest due job by queue",
            "Since when the oldest job that could run has been waiting.",
            {"{{queue}}": OLDEST},
            "s",
            w=6,
        ),
        timeseries(
            "Oldest attempt by queue",
            "Since when the attempt that began first has been running. One that hangs grows by a "
            "second each second, and keeps its slot.",
            {"{{queue}}": OLDEST_RUNNING},
            "s",
            w=6,
        ),
        timeseries(
            "Attempts by outcome",
            "Every attempt ends in exactly one. Released ones were given back without blame, "
            "cancelled ones stopped, and lease_lost ones went to somebody else.",
            {"{{outcome}}": rate(ATTEMPTS, by="outcome")},
            "ops",
            stack=True,
            w=6,
        ),
        timeseries(
            "Claims by trigger and result",
            "Jobs won, lost to another consumer, and claims that found none. Most should be won "
            "by the stream, or by a scan while there is a backlog.",
            {
                "{{trigger}} {{result}}": rate(
                    "streamqueue_claims_total{@queue}", by="trigger, result"
                )
            },
            "ops",
            w=6,
        ),
        timeseries(
            "Live consumers and slots",
            "Workers on the list of those that live, and the handlers they can run at once.",
            {
                "consumers {{queue}}": CONSUMERS,
                "slots {{queue}}": SLOTS,
            },
            "short",
            w=6,
        ),
        table(
            "Tasks",
            "Each task as it is now: attempts per second, the share that failed, how long they "
            "take, and jobs that died in the time shown.",
            {"queue": "Queue", "task": "Task"},
            {
                "Attempts": (rate(ATTEMPTS, by="queue, task"), "ops"),
                "Failed": (
                    ratio(rate(FAILED, by="queue, task"), rate(ENDED, by="queue, task")),
                    "percentunit",
                ),
                "p50": (quantile(0.5, DURATION, by="queue, task"), "s"),
                "p99": (quantile(0.99, DURATION, by="queue, task"), "s"),
                "Died": (
                    increase(DIED, by="queue, task", over=SHOWN),
                    "short",
                ),
            },
            sort="Attempts",
            w=24,
            h=6,
        ),
    ]


def by_itself() -> list[Json]:
    return [
        timeseries(
            "Ticks of schedules",
            "By the queue of their jobs. Skipped: a job had the key, or `catch_up` left it out. "
            f"Dropped: nobody fired it in time. {EACH_POINT}",
            {
                "{{queue}} {{result}}": increase(
                    "streamqueue_schedule_ticks_total{@queue}", by="queue, result"
                )
            },
            "short",
        ),
        timeseries(
            "Schedules that are late",
            "Since when the latest of a queue's schedules should have fired. A line that climbs by "
            "a second each second: no worker fires it. Which: `streamqueue schedule list`.",
            {"{{queue}}": LATE_SCHEDULES},
            "s",
        ),
        timeseries(
            "Messages of topics",
            "Published per second. An unread one went to nobody, because no queue subscribes to "
            "its topic. Who subscribes: `streamqueue topic list`.",
            {
                "{{topic}} {{result}}": rate(
                    "streamqueue_topic_published_total{@job}", by="topic, result"
                )
            },
            "ops",
        ),
        timeseries(
            "Puts whose key was taken",
            "Per second. A duplicate was refused or left out, a replaced one gave its data to the "
            "job that waits with the key.",
            {
                "{{queue}} {{result}}": rate(
                    'streamqueue_jobs_put_total{@queue, result=~"duplicate|replaced"}',
                    by="queue, result",
                )
            },
            "ops",
        ),
        timeseries(
            "Jobs that wait for another one",
            "Such as the running one of their key. They are let through when that has ended; a "
            "line that stays long after is worth a look at `streamqueue list --state waiting`.",
            {"{{queue}}": WAITING},
            "short",
        ),
        timeseries(
            "Subscriptions by queue",
            "To how many topics a queue subscribes. One that nobody works on any more fills "
            "until somebody unsubscribes it.",
            {"{{queue}}": SUBSCRIPTIONS},
            "short",
        ),
    ]


def recovery() -> list[Json]:
    return [
        timeseries(
            "Leases that expired",
            "Jobs a reaper took back from consumers that died or froze, by what became of them, "
            f"and attempts that learned that their lease was lost. {EACH_POINT}",
            {
                "{{result}}": increase("streamqueue_jobs_reaped_total{@queue}", by="result"),
                "lost": increase("streamqueue_leases_lost_total{@queue}"),
            },
            "short",
            w=5,
        ),
        timeseries(
            "Expired leases not returned yet",
            "Jobs that nobody runs and nobody has taken back. Back at 0 within seconds, while a "
            "reaper runs.",
            {"{{queue}}": EXPIRED},
            "short",
            w=5,
        ),
        timeseries(
            "Dead jobs by queue",
            "A step up is a job given up; a step down, one requeued or removed.",
            {"{{queue}}": DEAD},
            "short",
            w=5,
        ),
        timeseries(
            "Buried unseen",
            "Jobs made dead before a handler saw any, by what is wrong with their documents: other "
            f"programs put them there. Each says why in `last_error`. {EACH_POINT}",
            {"{{reason}}": increase("streamqueue_jobs_buried_total{@job}", by="reason")},
            "short",
            w=5,
        ),
        timeseries(
            "Missed wake-ups",
            "Ready jobs found by the safety sweep before the change stream told of them. Must be "
            f"0. {EACH_POINT}",
            {"{{queue}}": increase("streamqueue_missed_wakeups_total{@queue}", by="queue")},
            "short",
            w=4,
        ),
        timeseries(
            "Overdue scheduled jobs",
            "Jobs that nobody has made ready 10 s after their time, or that have no time. Back at "
            "0 at once, while a worker serves the queue.",
            {"{{queue}}": OVERDUE},
            "short",
            w=12,
        ),
        timeseries(
            "Not seen by the other panels",
            "Documents whose queue is no valid name, which nobody works on, and queues that are "
            "not counted because there are more than 200. There may be more of both.",
            {
                "foreign documents": "max(streamqueue_foreign_documents{@job})",
                "queues left out": "max(streamqueue_queues_left_out{@job})",
            },
            "short",
            w=12,
        ),
    ]


def mongodb() -> list[Json]:
    return [
        timeseries(
            "Errors",
            "MongoDB operations that raised, by the class of the error. A short burst at an "
            "election is normal: they are tried again. The first of its kind in a process does not "
            f"show. {EACH_POINT}",
            {
                "{{operation}} {{error}}": increase(
                    "streamqueue_mongodb_errors_total{@job}", by="operation, error"
                )
            },
            "short",
        ),
        timeseries(
            "Change streams opened again",
            "By reason. history_lost means that a stream was down for longer than the oplog "
            f"reaches back; the jobs were found by looking. {EACH_POINT}",
            {"{{reason}}": increase("streamqueue_stream_restarts_total{@job}", by="reason")},
            "short",
        ),
        timeseries(
            "Change events",
            "Events received per second, by all consumers together: each of them hears each.",
            {"{{operation}}": rate("streamqueue_stream_events_total{@job}", by="operation")},
            "ops",
        ),
        timeseries(
            "Oplog window, and how far back we need it",
            "How far back the oplog reaches, and the time since the most silent stream's last sign "
            "of life. Should the lines meet, that stream cannot resume. There is no window while "
            "the exporter may not read the database `local`.",
            {
                "oplog window": "max(streamqueue_oplog_window_seconds{@job})",
                "most silent stream": LONGEST_SILENCE,
            },
            "s",
            w=6,
        ),
        timeseries(
            "Counting the queues",
            "How long the exporter takes to count, and how old its counts are. Its age falls back "
            "at each count.",
            {
                "p99": quantile(0.99, "streamqueue_state_collection_duration_seconds{@job}"),
                "age": AGE_OF_COUNTS,
            },
            "s",
            w=6,
        ),
        timeseries(
            "Failed counts of the queues",
            f"The exporter tries again at the next interval. {EACH_POINT}",
            {"failed": increase("streamqueue_state_collection_errors_total{@job}")},
            "short",
            w=6,
        ),
        state_timeline(
            "Who counts the queues",
            "The exporter, or the one worker that leads. With nobody, the counts stand still.",
            {"{{instance}}": "max by (instance) (streamqueue_leader{@job})"},
            {0: ("stands by", "text"), 1: ("counts", "green")},
            w=6,
        ),
    ]
