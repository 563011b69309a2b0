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

import platform
import threading
import time
import weakref
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, get_args

import pymongo
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Info
from pymongo.errors import PyMongoError

from ..errors import AttemptOutcome
from ..failures import failure_label
from ..names import INVALID, label_of
from ..protocol.foreign import REASONS
from .buckets import DURATION_BUCKETS, LATENCY_BUCKETS, OPERATION_BUCKETS, checked_edges
from .bundles import (
    OTHER,
    ClaimTrigger,
    ConsumerMetrics,
    ConsumerSeries,
    Names,
    Operation,
    ProducerMetrics,
    PutResult,
    ReapResult,
    StreamMetrics,
    TickResult,
    WorkerMetrics,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    from ..protocol.foreign import BuryReason

__all__ = [
    "AttemptOutcome",
    "ClaimTrigger",
    "ConsumerMetrics",
    "Metrics",
    "Operation",
    "ProducerMetrics",
    "StreamMetrics",
    "WorkerMetrics",
    "own_version",
]

MAX_QUEUES = 200
MAX_TASKS = 200
MAX_TOPICS = 100
MAX_ERRORS = 20


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
    topics_published: Counter
    jobs_buried: Counter
    schedule_ticks: Counter
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
        latency = checked_edges(latency_buckets, "latency_buckets")
        duration = checked_edges(duration_buckets, "duration_buckets")
        operation = checked_edges(operation_buckets, "operation_buckets")
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
        self._queues = Names(MAX_QUEUES)
        self._others_queues = Names(MAX_QUEUES)  # their jobs are reaped here, whoever put them
        self._tasks = Names(MAX_TASKS)
        self._topics = Names(MAX_TOPICS)
        self._errors = Names(MAX_ERRORS)
        self._producers: dict[str, ProducerMetrics] = {}
        self._consumers: dict[tuple[str, str], ConsumerMetrics] = {}
        self._stream: StreamMetrics | None = None
        self._worker: WorkerMetrics | None = None

        self.build_info = Info(
            "streamqueue_build",
            "The versions this process runs, and a consumer's event loop; always 1.",
            registry=registry,
        )
        self.build_info.info(_versions())
        self.jobs_put = Counter(
            "streamqueue_jobs_put_total",
            "Jobs put, by result: inserted, replaced (the one that waited with the key), duplicate "
            "(the key was taken) or error.",
            ("queue", "result"),
            registry=registry,
        )
        self.topics_published = Counter(
            "streamqueue_topic_published_total",
            "Messages published to a topic: delivered, or unread, because nobody subscribes.",
            ("topic", "result"),
            registry=registry,
        )
        self._of_consumers = ConsumerSeries(registry, latency_buckets, duration_buckets)
        self.jobs_buried = Counter(
            "streamqueue_jobs_buried_total",
            "Jobs made dead before a handler saw them, by what is wrong with their documents.",
            ("reason",),
            registry=registry,
        )
        self.schedule_ticks = Counter(
            "streamqueue_schedule_ticks_total",
            "Ticks of schedules, by the queue of their jobs: fired, skipped (the key was taken, or "
            "catch_up left it out), dropped (too late, with catch_up none) or error.",
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
            "MongoDB operations that raised, by the class of the error, or what MongoDB calls it.",
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

    def published(self, topic: str, *, unread: bool) -> None:
        """Count a message that was published: to somebody, or to nobody.

        Past 100 distinct topics in a process, every further one is counted as ``other``.
        """
        topic = self._topics.label(topic)
        children = [self.topics_published.labels(topic, how) for how in ("delivered", "unread")]
        children[unread].inc()

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
            bundle = self._consumers[queue, task] = self._of_consumers.of(queue, task)
        return bundle

    def reaped(self, queue: str, result: ReapResult, count: int) -> None:
        """Count expired leases taken back, also those of queues that this process has no part in.

        Those have a limit of their own: past 200 distinct names every further one is counted as
        ``other``. What is no valid name is counted as ``(invalid)``.
        """
        self._of_consumers.reaped.labels(self._label(queue), result).inc(count)

    def ticks(self, queue: str, result: TickResult, count: int) -> None:
        """Count ticks of schedules, whose jobs may go to queues that this process has no part in.

        The first of a queue makes the other results of it too, at 0.
        """
        queue = self._label(queue)
        for each in get_args(TickResult):
            self.schedule_ticks.labels(queue, each).inc(count if each == result else 0)

    def _label(self, queue: str) -> str:
        queue = label_of(queue)
        if queue != INVALID and queue not in self._queues:
            queue = self._others_queues.label(queue)
        return queue

    def buried(self, reason: BuryReason, count: int) -> None:
        """Count jobs that were made dead because of what is in their documents."""
        self.jobs_buried.labels(reason).inc(count)

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
                for reason in REASONS:
                    self.jobs_buried.labels(reason)
            return self._worker

    def runs_on(self, loop: str) -> None:
        """Say which event loop this process runs, beside the versions."""
        self.build_info.info(_versions() | {"loop": loop})

    @property
    def registry(self) -> CollectorRegistry:
        """Where the series are registered."""
        registry = self._registry()
        if registry is None:
            raise RuntimeError("the registry of these metrics is gone")
        return registry

    def timed(self, operation: Operation) -> AbstractContextManager[None]:
        """Return a context that measures a MongoDB operation, and counts it if it raises."""
        return _Timed(self, operation)

    def operation_failed(self, operation: Operation, error: BaseException) -> None:
        """Count an error of a MongoDB operation under the name of its class, or of MongoDB's for
        what it refuses, never its message.

        Past 20 distinct names in a process, every further one is counted as ``other``.
        """
        self.operation_errors.labels(operation, self._errors.label(failure_label(error))).inc()


class _Timed:
    # No generator: this is around every command, and one costs 4 us where this costs 2.

    __slots__ = ("_metrics", "_operation", "_started")
    _operation: Operation

    def __init__(self, metrics: Metrics, operation: Operation) -> None:
        self._metrics = metrics
        self._operation = operation

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        metrics, operation = self._metrics, self._operation
        metrics.operation[operation].observe(time.perf_counter() - self._started)
        if isinstance(error, PyMongoError):
            metrics.operation_failed(operation, error)


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


def _versions() -> dict[str, str]:
    return {
        "version": own_version(),
        "pymongo": pymongo.version,
        "python": platform.python_version(),
    }


@cache
def own_version() -> str:
    """Return the version of this package that is installed."""
    try:
        return version("streamqueue")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


_building = threading.RLock()
_built: weakref.WeakKeyDictionary[CollectorRegistry, Metrics] = weakref.WeakKeyDictionary()
