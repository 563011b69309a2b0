"""The first two rows of the Overview: the answers, and the figures beside them."""

from __future__ import annotations

from panels import Json, increase, quantile, rate, ratio, stat
from series import (
    AGE_OF_COUNTS,
    COMPLETED,
    CONNECTED,
    CONSUMERS,
    DEAD,
    DUE,
    ENDED,
    EXPIRED,
    FAILED,
    LONGEST_SILENCE,
    OLDEST,
    SCHEDULED,
    SHOWN,
    WAIT,
)

NO_EXPORTER = "no exporter"
NO_WORKER = "no worker"


def at_a_glance() -> list[Json]:
    return [
        stat(
            "Lost: dead jobs",
            "Jobs whose attempts are used up, kept with their reason. Nobody will run them until "
            "somebody does: `streamqueue dead list`, then `dead requeue`.",
            f"sum({DEAD})",
            "short",
            steps={1: "orange"},
            none=NO_EXPORTER,
            glance=True,
        ),
        stat(
            "Lost: failed puts",
            "Puts that raised in the time shown: these jobs may not be in the queue, unless the "
            "producer tried again. Empty while no producer is scraped.",
            increase('streamqueue_jobs_put_total{@queue, result="error"}', over=SHOWN),
            "short",
            steps={1: "red"},
            none="no producer",
            glance=True,
        ),
        stat(
            "Stuck: oldest job",
            "Since when the oldest job that could run has been waiting. Grows while consumers are "
            "missing, too few, or deaf; compare slot use and the stream.",
            f"max({OLDEST})",
            "s",
            steps={10: "orange", 60: "red"},
            none=NO_EXPORTER,
            glance=True,
        ),
        stat(
            "Stuck: expired",
            "Running jobs whose lease has ended and that no reaper has returned yet. Not 0 for a "
            "few seconds after a consumer died; for longer, no reaper runs.",
            f"sum({EXPIRED})",
            "short",
            steps={1: "orange", 100: "red"},
            none=NO_EXPORTER,
            glance=True,
        ),
        stat(
            "Stuck: no consumer",
            "Queues that have due jobs and not one live consumer.",
            f"sum(({DUE} > bool 0) * ({CONSUMERS} == bool 0))",
            "short",
            steps={1: "red"},
            none=NO_EXPORTER,
            glance=True,
        ),
        stat(
            "Late: wait p99",
            "99 of 100 jobs started within this time of becoming due. Empty while none starts.",
            quantile(0.99, WAIT),
            "s",
            steps={1: "orange", 10: "red"},
            none="none started",
            glance=True,
        ),
        stat(
            "Stream: closed",
            "Consumers whose change stream is not open. They still find jobs by looking every few "
            "seconds, so jobs are late, not lost.",
            f"count({CONNECTED}) - sum({CONNECTED})",
            "short",
            steps={1: "red"},
            none=NO_WORKER,
            glance=True,
        ),
        stat(
            "Stream: missed",
            "Ready jobs that the safety sweep found before the change stream told of them, in the "
            "time shown. Must be 0; anything else is a bug worth reporting.",
            increase("streamqueue_missed_wakeups_total{@queue}", over=SHOWN),
            "short",
            steps={1: "red"},
            none=NO_WORKER,
            glance=True,
        ),
    ]


def in_numbers() -> list[Json]:
    return [
        stat(
            "Due jobs",
            "Jobs that could run now.",
            f"sum({DUE})",
            "short",
            base="text",
            none=NO_EXPORTER,
        ),
        stat(
            "Scheduled jobs",
            "Jobs that become due later: delayed ones, and those in their backoff.",
            f"sum({SCHEDULED})",
            "short",
            base="text",
            none=NO_EXPORTER,
        ),
        stat(
            "Completed",
            "Jobs completed per second.",
            rate(COMPLETED),
            "ops",
            base="text",
            none=NO_WORKER,
        ),
        stat(
            "Failure ratio",
            "Failed attempts, retried ones and dead jobs, among those that completed or failed.",
            ratio(rate(FAILED), rate(ENDED)),
            "percentunit",
            steps={0.01: "orange", 0.05: "red"},
            none="none ended",
        ),
        stat(
            "Live consumers",
            "Workers on the list of those that live. One with several queues counts in each, so "
            "the largest queue speaks for all.",
            f"max({CONSUMERS})",
            "short",
            base="red",
            steps={1: "green"},
            none=NO_EXPORTER,
        ),
        stat(
            "Slot use",
            "Handlers that run, of those that may, in all workers and for all queues: the queues "
            "of a worker share its slots.",
            "sum(streamqueue_jobs_running{@job}) / "
            "sum(max by (job, instance) (streamqueue_concurrency_limit{@job}))",
            "percentunit",
            steps={0.8: "orange", 0.95: "red"},
            none=NO_WORKER,
        ),
        stat(
            "Longest silence",
            "Seconds since the most silent stream gave a sign of life, an event or a new resume "
            "token. A live stream gives one every ten seconds at the latest.",
            LONGEST_SILENCE,
            "s",
            steps={30: "orange", 120: "red"},
            none=NO_WORKER,
        ),
        stat(
            "Age of the counts",
            "Seconds since the exporter last counted the queues. All counts on this board are as "
            "old as this.",
            AGE_OF_COUNTS,
            "s",
            steps={30: "orange", 120: "red"},
            none=NO_EXPORTER,
        ),
    ]
