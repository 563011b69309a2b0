"""Bundles of ready made children of the series, one for each part of a process that counts.

And the words that label values are of: closed sets, and names up to a limit.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pymongo.errors import BulkWriteError, PyMongoError

from ..errors import AttemptOutcome, DuplicateJob
from ..protocol.fitting.kinds import LeftReason
from ..protocol.steps import StepResult
from .buckets import CLAIM_BATCH_BUCKETS, LOOP_LAG_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OTHER = "other"


class Names:
    """The first so many distinct label values as they are; every later one as ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def label(self, name: str) -> str:
        """Return the label value for this name."""
        if name in self._known:
            return name
        with self._lock:
            if len(self._known) >= self._limit and name not in self._known:
                return OTHER
            self._known.add(name)
        return name


Counted = dict["PutResult", int]
PutResult = Literal["inserted", "duplicate", "replaced", "error"]
ClaimTrigger = Literal["stream", "scan", "sweep"]
ClaimResult = Literal["won", "lost", "empty"]
TickResult = Literal["fired", "skipped", "dropped", "error"]
ReapResult = Literal["requeued", "dead", "cancelled"]
StreamOperation = Literal["insert", "update", "replace"]
StreamRestart = Literal[
    "network", "election", "not_resumable", "history_lost", "invalidate", "refused", "unknown"
]
Operation = Literal[
    "put", "claim", "scan", "renew", "complete", "error", "release", "reap", "promote"
]


class ProducerMetrics:
    """What a producer of one queue counts on. As a context, it counts the one job put within.

    A put that is cancelled, or fails before anything is sent, counts nowhere; one whose outcome is
    unknown is an error.

    Attributes:
        put: jobs put, by result.
    """

    __slots__ = ("put",)

    def __init__(self, put: Mapping[PutResult, Counter]) -> None:
        self.put = put

    # No generator, and nothing to remember: with many puts in flight each microsecond counts.

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        if error is None:
            self.put["inserted"].inc()
        elif isinstance(error, DuplicateJob):
            self.put["duplicate"].inc()
        elif isinstance(error, PyMongoError):
            self.put["error"].inc()

    @contextmanager
    def each(self, count: int) -> Iterator[Counted]:
        """Count the jobs put within, as they are noted; of what is not, an error if one ends it."""
        counted: Counted = dict.fromkeys(self.put, 0)
        try:
            yield counted
        except DuplicateJob:
            counted["duplicate"] += count - sum(counted.values())
            raise
        except BulkWriteError as error:
            details = error.details or {}
            if not details.get("writeConcernErrors"):  # else the outcome of all is unknown
                counted["inserted"] += details.get("nInserted", 0)
                counted["inserted"] += details.get("nUpserted", 0)
            raise
        except PyMongoError:
            raise
        except BaseException:
            count = sum(counted.values())
            raise
        finally:
            counted["error"] += count - sum(counted.values())
            for result, number in counted.items():
                self.put[result].inc(number)


@dataclass(frozen=True, slots=True)
class ConsumerMetrics:
    """What a consumer of one queue counts on; `duration`, `overdue` and `outcome` are the task's.

    Attributes:
        wait: seconds from becoming due until the handler starts.
        duration: seconds an attempt took.
        running: attempts in progress.
        limit: how many attempts may be in progress at once.
        overdue: handlers that are over their time limit and have not ended.
        outcome: attempts ended, by how.
        claims: jobs won or lost and claims that found none, by what caused the claim.
        leases_renewed: leases extended while their handler ran.
        leases_lost: attempts that could not be sure of their lease until their end was written.
        missed_wakeups: ready jobs the safety sweep found before the change stream announced them.
        reaped: expired leases taken back, by what became of the job.
        steps: steps called, by what that came to.
        middleware_errors: exceptions of middleware after their handlers had returned.
        left: jobs that this process cannot run and has left to others, by why.
    """

    wait: Histogram
    duration: Histogram
    running: Gauge
    limit: Gauge
    overdue: Gauge
    outcome: Mapping[AttemptOutcome, Counter]
    claims: Mapping[tuple[ClaimTrigger, ClaimResult], Counter]
    leases_renewed: Counter
    leases_lost: Counter
    missed_wakeups: Counter
    reaped: Mapping[ReapResult, Counter]
    steps: Mapping[StepResult, Counter]
    middleware_errors: Counter
    left: Mapping[LeftReason, Counter]


class ConsumerSeries:
    """The series that consumers count on: each is declared here, and bound to a queue and a task
    below, so that a new one is a change of this class, of its bundle and of who counts."""

    def __init__(
        self,
        registry: CollectorRegistry,
        latency_buckets: tuple[float, ...],
        duration_buckets: tuple[float, ...],
    ) -> None:
        self.wait = Histogram(
            "streamqueue_job_wait_seconds",
            "Seconds from a job becoming due until its handler starts.",
            ("queue",),
            buckets=latency_buckets,
            registry=registry,
        )
        self.duration = Histogram(
            "streamqueue_job_duration_seconds",
            "Seconds an attempt took, however it ended.",
            ("queue", "task"),
            buckets=duration_buckets,
            registry=registry,
        )
        self.attempts = Counter(
            "streamqueue_attempts_total",
            "Attempts ended, by outcome; every attempt ends in exactly one.",
            ("queue", "task", "outcome"),
            registry=registry,
        )
        self.running = Gauge(
            "streamqueue_jobs_running",
            "Attempts in progress in this process.",
            ("queue",),
            registry=registry,
        )
        self.limit = Gauge(
            "streamqueue_concurrency_limit",
            "How many attempts may be in progress in this process at once.",
            ("queue",),
            registry=registry,
        )
        self.overdue = Gauge(
            "streamqueue_overdue_handlers",
            "Handlers of this process that are over their time limit and have not ended.",
            ("queue", "task"),
            registry=registry,
        )
        self.claims = Counter(
            "streamqueue_claims_total",
            "Jobs won or lost to another consumer, and claims that found none, by trigger.",
            ("queue", "trigger", "result"),
            registry=registry,
        )
        self.leases_renewed = Counter(
            "streamqueue_leases_renewed_total",
            "Leases extended while their attempts ran.",
            ("queue",),
            registry=registry,
        )
        self.leases_lost = Counter(
            "streamqueue_leases_lost_total",
            "Attempts that could not be sure of their lease until their end was written.",
            ("queue",),
            registry=registry,
        )
        self.missed_wakeups = Counter(
            "streamqueue_missed_wakeups_total",
            "Ready jobs the safety sweep found before the change stream announced them.",
            ("queue",),
            registry=registry,
        )
        self.reaped = Counter(
            "streamqueue_jobs_reaped_total",
            "Expired leases taken back by this process, by what became of the job.",
            ("queue", "result"),
            registry=registry,
        )
        self.steps = Counter(
            "streamqueue_steps_total",
            "Steps of jobs: run (and stored), replayed (an earlier attempt had stored it) or "
            "failed (not stored).",
            ("queue", "result"),
            registry=registry,
        )
        self.middleware_errors = Counter(
            "streamqueue_middleware_errors_total",
            "Exceptions of middleware after their handlers had returned, whose results stand.",
            ("queue",),
            registry=registry,
        )

        self.left = Counter(
            "streamqueue_jobs_left_total",
            "Jobs that this process cannot run and has left to others, by why: their task is not "
            "known here, or their payload does not fit its types (misfit).",
            ("queue", "reason"),
            registry=registry,
        )

    def of(self, queue: str, task: str) -> ConsumerMetrics:
        """Return what a consumer of this queue counts on; the labels are as they are to be."""
        return ConsumerMetrics(
            wait=self.wait.labels(queue),
            duration=self.duration.labels(queue, task),
            running=self.running.labels(queue),
            limit=self.limit.labels(queue),
            overdue=self.overdue.labels(queue, task),
            outcome={
                outcome: self.attempts.labels(queue, task, outcome) for outcome in AttemptOutcome
            },
            claims={
                (trigger, result): self.claims.labels(queue, trigger, result)
                for trigger in get_args(ClaimTrigger)
                for result in get_args(ClaimResult)
            },
            leases_renewed=self.leases_renewed.labels(queue),
            leases_lost=self.leases_lost.labels(queue),
            missed_wakeups=self.missed_wakeups.labels(queue),
            reaped={result: self.reaped.labels(queue, result) for result in get_args(ReapResult)},
            steps={result: self.steps.labels(queue, result) for result in get_args(StepResult)},
            middleware_errors=self.middleware_errors.labels(queue),
            left={reason: self.left.labels(queue, reason) for reason in get_args(LeftReason)},
        )


class StreamMetrics:
    """What the change stream's reader counts on.

    Attributes:
        connected: 1 while a stream is open, or rests because the backlog is read often; else 0.
        events: events received, by operation.
        event_age: seconds between the server writing an event and its arrival here. It compares two
            machines' clocks; observe a negative difference as 0.
        last_event: unix time of the last sign of life, which is an event, a new resume token or, at
            rest, a ping, so that an idle stream does not look dead; 0 before the first.
        restarts: how often the stream was opened again, by reason.
    """

    __slots__ = ("connected", "event_age", "events", "last_event", "restarts")

    def __init__(self, registry: CollectorRegistry | None, latency_buckets: tuple[float, ...]):
        self.connected = Gauge(
            "streamqueue_stream_connected",
            "1 while the change stream is open, or rests while the backlog is read often; else 0.",
            registry=registry,
        )
        self.event_age = Histogram(
            "streamqueue_stream_event_age_seconds",
            "Seconds between the server writing an event and its arrival here (two clocks).",
            buckets=latency_buckets,
            registry=registry,
        )
        self.last_event = Gauge(
            "streamqueue_stream_last_event_timestamp_seconds",
            "Unix time of the last event, new resume token or, at rest, ping; 0 before the first.",
            registry=registry,
        )
        events = Counter(
            "streamqueue_stream_events_total",
            "Change stream events received, by operation.",
            ("operation",),
            registry=registry,
        )
        restarts = Counter(
            "streamqueue_stream_restarts_total",
            "Times the change stream was opened again, by reason.",
            ("reason",),
            registry=registry,
        )
        self.events: Mapping[StreamOperation, Counter] = {
            operation: events.labels(operation) for operation in get_args(StreamOperation)
        }
        self.restarts: Mapping[StreamRestart, Counter] = {
            reason: restarts.labels(reason) for reason in get_args(StreamRestart)
        }


class WorkerMetrics:
    """What a worker counts on, for all its queues together.

    Attributes:
        claim_batch: jobs asked for in one claim.
        event_loop_lag: seconds a timer of the event loop fired late.
    """

    __slots__ = ("claim_batch", "event_loop_lag")

    def __init__(self, registry: CollectorRegistry | None):
        self.claim_batch = Histogram(
            "streamqueue_claim_batch_jobs",
            "Jobs asked for in one claim.",
            buckets=CLAIM_BATCH_BUCKETS,
            registry=registry,
        )
        self.event_loop_lag = Histogram(
            "streamqueue_event_loop_lag_seconds",
            "Seconds a timer of the event loop fired late; a blocking handler shows here first.",
            buckets=LOOP_LAG_BUCKETS,
            registry=registry,
        )
