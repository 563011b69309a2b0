"""Every Prometheus series of one process: names, labels, buckets, and children ready to count on.

The package takes its series from ``Metrics.of(registry)``, gives a producer
``metrics.producer(queue)`` and a consumer ``metrics.consumer(queue, task)``, and counts on what
those hold. Looking a child up by its labels costs four times what counting on it does, so each is
made once; and every label set that can be known is made at 0, because ``rate()`` misses the first
event of a series that was not there before.

Label values come from closed sets and from names the program registered, each set with a limit.
Payloads, job ids, keys and consumer ids never become labels.
"""

from __future__ import annotations

import math
import platform
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import pymongo
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Info
from pymongo.errors import BulkWriteError, PyMongoError

from .errors import ConfigurationError, DuplicateJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Eight edges below 15 ms keep a quantile interpolated on a path of a few milliseconds honest; the
# tail still shows a backlog of minutes.
LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
DURATION_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)
OPERATION_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LOOP_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
CLAIM_BATCH_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

MAX_QUEUES = 200
MAX_TASKS = 200
MAX_ERRORS = 20
OTHER = "other"


class AttemptOutcome(StrEnum):
    """How an attempt ended; every attempt ends in exactly one of these."""

    COMPLETED = "completed"
    RETRIED = "retried"
    DEAD = "dead"
    RELEASED = "released"
    CANCELLED = "cancelled"
    LEASE_LOST = "lease_lost"


PutResult = Literal["inserted", "duplicate", "error"]
ClaimTrigger = Literal["stream", "scan", "sweep"]
ClaimResult = Literal["won", "lost", "empty"]
ReapResult = Literal["requeued", "dead"]
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
    def many(self, count: int) -> Iterator[None]:
        """Count the jobs put within by one insert, in order."""
        inserted = 0
        try:
            yield
            inserted = count
        except BulkWriteError as error:
            inserted = (error.details or {}).get("nInserted", 0)
            raise
        finally:
            self.put["inserted"].inc(inserted)
            self.put["error"].inc(count - inserted)


@dataclass(frozen=True, slots=True)
class ConsumerMetrics:
    """What a consumer of one queue counts on; only `duration` and `outcome` are the task's own.

    Attributes:
        wait: seconds from becoming due until the handler starts.
        duration: seconds an attempt took.
        running: attempts in progress.
        limit: how many attempts may be in progress at once.
        outcome: attempts ended, by how.
        claims: jobs won or lost and claims that found none, by what caused the claim.
        leases_renewed: leases extended while their handler ran.
        leases_lost: attempts whose lease went to somebody else.
        missed_wakeups: ready jobs the safety sweep found before the change stream announced them.
        reaped: expired leases taken back, by what became of the job.
    """

    wait: Histogram
    duration: Histogram
    running: Gauge
    limit: Gauge
    outcome: Mapping[AttemptOutcome, Counter]
    claims: Mapping[tuple[ClaimTrigger, ClaimResult], Counter]
    leases_renewed: Counter
    leases_lost: Counter
    missed_wakeups: Counter
    reaped: Mapping[ReapResult, Counter]


class StreamMetrics:
    """What the change stream's reader counts on.

    Attributes:
        connected: 1 while a stream is open, else 0.
        events: events received, by operation.
        event_age: seconds between the server writing an event and its arrival here. It compares two
            machines' clocks; observe a negative difference as 0.
        last_event: unix time of the last sign of life, which is an event or a new resume token, so
            that an idle stream does not look dead; 0 before the first.
        restarts: how often the stream was opened again, by reason.
    """

    __slots__ = ("connected", "event_age", "events", "last_event", "restarts")

    def __init__(self, registry: CollectorRegistry | None, latency_buckets: tuple[float, ...]):
        self.connected = Gauge(
            "streamqueue_stream_connected",
            "1 while the change stream is open, else 0.",
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
            "Unix time of the last event or new resume token; 0 before the first.",
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


class Metrics:
    """Every series of a process, on one registry.

    Built a second time for the same registry it is the first one over again: the same series with
    the same buckets, whatever is asked for. So build it with buckets of your own before the first
    queue or worker that uses the registry::

        registry = CollectorRegistry()
        Metrics(registry, duration_buckets=(1, 10, 60, 600))
        worker = Worker(collection, registry=registry)

    Safe to use from any thread. A consumer of two queues shows under 500 lines per scrape, which
    take a few milliseconds to render, with the interpreter held.

    Args:
        registry: where the series are registered; None is prometheus_client's own ``REGISTRY``.
        latency_buckets: upper edges, in seconds, for the wait of jobs and the age of stream events.
            20 by default, half a millisecond to five minutes.
        duration_buckets: the same for how long attempts take. 18 by default, 1 ms to an hour.
        operation_buckets: the same for MongoDB operations. 12 by default, half a millisecond to
            five seconds.

    Raises:
        ConfigurationError: edges that are not increasing numbers.
    """

    build_info: Info
    jobs_put: Counter
    job_wait: Histogram
    job_duration: Histogram
    attempts: Counter
    jobs_running: Gauge
    concurrency_limit: Gauge
    claims: Counter
    leases_renewed: Counter
    leases_lost: Counter
    missed_wakeups: Counter
    jobs_reaped: Counter
    operation_duration: Histogram
    operation_errors: Counter
    operation: Mapping[Operation, Histogram]
    """The children of `operation_duration`, each made at the latest when it is first read."""

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        latency_buckets: Iterable[float] = LATENCY_BUCKETS,
        duration_buckets: Iterable[float] = DURATION_BUCKETS,
        operation_buckets: Iterable[float] = OPERATION_BUCKETS,
    ) -> None:
        registry = REGISTRY if registry is None else registry
        # All before the first series: one left behind on the registry would fail the next try.
        latency = _edges(latency_buckets, "latency_buckets")
        duration = _edges(duration_buckets, "duration_buckets")
        operation = _edges(operation_buckets, "operation_buckets")
        with _building:
            built = _built.get(registry)
            if built is None:
                self._build(registry, latency, duration, operation)
                _built[registry] = self
            else:
                self.__dict__ = built.__dict__

    def _build(
        self,
        registry: CollectorRegistry,
        latency_buckets: tuple[float, ...],
        duration_buckets: tuple[float, ...],
        operation_buckets: tuple[float, ...],
    ) -> None:
        # Weak, because `_built` keeps this object for as long as the registry lives.
        self._registry = weakref.ref(registry)
        self._latency_buckets = latency_buckets
        self._queues = _Names(MAX_QUEUES)
        self._tasks = _Names(MAX_TASKS)
        self._errors = _Names(MAX_ERRORS)
        self._producers: dict[str, ProducerMetrics] = {}
        self._consumers: dict[tuple[str, str], ConsumerMetrics] = {}
        self._stream: StreamMetrics | None = None
        self._worker: WorkerMetrics | None = None

        self.build_info = Info(
            "streamqueue_build",
            "The versions this process runs; always 1.",
            registry=registry,
        )
        self.build_info.info(
            {
                "version": own_version(),
                "pymongo": pymongo.version,
                "python": platform.python_version(),
            }
        )
        self.jobs_put = Counter(
            "streamqueue_jobs_put_total",
            "Jobs put, by result: inserted, duplicate (a live job has the key) or error.",
            ("queue", "result"),
            registry=registry,
        )
        self.job_wait = Histogram(
            "streamqueue_job_wait_seconds",
            "Seconds from a job becoming due until its handler starts.",
            ("queue",),
            buckets=latency_buckets,
            registry=registry,
        )
        self.job_duration = Histogram(
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
        self.jobs_running = Gauge(
            "streamqueue_jobs_running",
            "Attempts in progress in this process.",
            ("queue",),
            registry=registry,
        )
        self.concurrency_limit = Gauge(
            "streamqueue_concurrency_limit",
            "How many attempts may be in progress in this process at once.",
            ("queue",),
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
            "Attempts whose lease went to somebody else while they ran.",
            ("queue",),
            registry=registry,
        )
        self.missed_wakeups = Counter(
            "streamqueue_missed_wakeups_total",
            "Ready jobs the safety sweep found before the change stream announced them.",
            ("queue",),
            registry=registry,
        )
        self.jobs_reaped = Counter(
            "streamqueue_jobs_reaped_total",
            "Expired leases taken back by this process, by what became of the job.",
            ("queue", "result"),
            registry=registry,
        )
        self.operation_duration = Histogram(
            "streamqueue_mongodb_operation_duration_seconds",
            "Seconds a MongoDB operation took, its errors included.",
            ("operation",),
            buckets=operation_buckets,
            registry=registry,
        )
        self.operation_errors = Counter(
            "streamqueue_mongodb_errors_total",
            "MongoDB operations that raised, by the class of the error.",
            ("operation", "error"),
            registry=registry,
        )
        self._operations = _Operations(self.operation_duration)
        self.operation = self._operations

    @classmethod
    def of(cls, registry: CollectorRegistry | None = None) -> Metrics:
        """Return the series of this registry, built with the defaults if there are none yet.

        They live as long as the registry. None is prometheus_client's own ``REGISTRY``.
        """
        registry = REGISTRY if registry is None else registry
        with _building:
            built = _built.get(registry)
            return cls(registry) if built is None else built

    def producer(self, queue: str) -> ProducerMetrics:
        """Return what a producer of this queue counts on; no consumer series come to be.

        Past 200 distinct queue names in a process, every further one is counted as ``other``.
        """
        queue = self._queues.label(queue)
        bundle = self._producers.get(queue)
        if bundle is None:
            self._operations.make("put")
            # Two threads may both come here; the children are the same, so either bundle will do.
            bundle = self._producers[queue] = ProducerMetrics(
                {result: self.jobs_put.labels(queue, result) for result in get_args(PutResult)}
            )
        return bundle

    def consumer(self, queue: str, task: str) -> ConsumerMetrics:
        """Return what a consumer of this queue counts on.

        Past 200 distinct queue names in a process, every further one is counted as ``other``, and
        its tasks with it; past 200 distinct task names, so is every further task.
        """
        queue = self._queues.label(queue)
        task = OTHER if queue == OTHER else self._tasks.label(task)
        bundle = self._consumers.get((queue, task))
        if bundle is None:
            self._operations.make(*get_args(Operation))
            bundle = self._consumers[queue, task] = ConsumerMetrics(
                wait=self.job_wait.labels(queue),
                duration=self.job_duration.labels(queue, task),
                running=self.jobs_running.labels(queue),
                limit=self.concurrency_limit.labels(queue),
                outcome={
                    outcome: self.attempts.labels(queue, task, outcome)
                    for outcome in AttemptOutcome
                },
                claims={
                    (trigger, result): self.claims.labels(queue, trigger, result)
                    for trigger in get_args(ClaimTrigger)
                    for result in get_args(ClaimResult)
                },
                leases_renewed=self.leases_renewed.labels(queue),
                leases_lost=self.leases_lost.labels(queue),
                missed_wakeups=self.missed_wakeups.labels(queue),
                reaped={
                    result: self.jobs_reaped.labels(queue, result)
                    for result in get_args(ReapResult)
                },
            )
        return bundle

    def reaped(self, queue: str, result: ReapResult, count: int) -> None:
        """Count expired leases taken back, also those of queues that this process has no part in.

        Past 200 distinct queue names in a process, every further one is counted as ``other``.
        """
        self.jobs_reaped.labels(self._queues.label(queue), result).inc(count)

    @property
    def stream(self) -> StreamMetrics:
        """What the change stream's reader counts on.

        The series come to be when this is first read: a process that only puts jobs has no stream,
        and one reported as not connected would raise an alarm.
        """
        with _building:
            if self._stream is None:
                self._stream = StreamMetrics(self.registry, self._latency_buckets)
            return self._stream

    @property
    def worker(self) -> WorkerMetrics:
        """What a worker counts on; its series, too, come to be when this is first read."""
        with _building:
            if self._worker is None:
                self._worker = WorkerMetrics(self.registry)
            return self._worker

    @property
    def registry(self) -> CollectorRegistry:
        """Where the series are registered."""
        registry = self._registry()
        if registry is None:
            raise RuntimeError("the registry of these metrics is gone")
        return registry

    @contextmanager
    def timed(self, operation: Operation) -> Iterator[None]:
        """Measure a MongoDB operation, and count it if it raises."""
        started = time.perf_counter()
        try:
            yield
        except PyMongoError as error:
            self.operation_failed(operation, error)
            raise
        finally:
            self.operation[operation].observe(time.perf_counter() - started)

    def operation_failed(self, operation: Operation, error: BaseException) -> None:
        """Count an error of a MongoDB operation under the name of its class, never its message.

        Past 20 distinct class names in a process, every further one is counted as ``other``.
        """
        self.operation_errors.labels(operation, self._errors.label(type(error).__name__)).inc()


class _Operations(dict[Operation, Histogram]):
    """Children made on demand: a process that only puts shows nothing of what consumers do."""

    def __init__(self, series: Histogram) -> None:
        super().__init__()
        self._series = series

    def __missing__(self, operation: Operation) -> Histogram:
        if operation not in get_args(Operation):
            raise KeyError(operation)
        child = self[operation] = self._series.labels(operation)
        return child

    def make(self, *operations: Operation) -> None:
        for operation in operations:
            self[operation]


class _Names:
    """The first so many distinct label values as they are; every later one as ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def label(self, name: str) -> str:
        if name in self._known:
            return name
        with self._lock:
            if len(self._known) >= self._limit and name not in self._known:
                return OTHER
            self._known.add(name)
        return name


def _edges(buckets: Iterable[float], name: str) -> tuple[float, ...]:
    try:
        edges = tuple(float(edge) for edge in buckets)
    except (TypeError, ValueError):
        edges = ()
    increasing = all(low < high for low, high in pairwise(edges))
    if not edges or not increasing or not 0 < edges[0] < math.inf:
        raise ConfigurationError(
            f"{name} must be one or more increasing numbers of seconds above 0, not {buckets!r}"
        )
    return edges


@cache
def own_version() -> str:
    """Return the version of this package that is installed."""
    try:
        return version("streamqueue")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


_building = threading.RLock()
_built: weakref.WeakKeyDictionary[CollectorRegistry, Metrics] = weakref.WeakKeyDictionary()
