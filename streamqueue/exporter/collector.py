"""How the queue stands, as Prometheus series: those of the last census, as long as it is good.

A census that has grown old is worse than none, because the alerts on it stay quiet: past its time
its series are gone, whether the reading stopped, hangs or was taken over by another process.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..clock import monotonic
from ..names import INVALID
from .counts import Census
from .limit_queries import MOST_GROUPS
from .queries import MOST_DEPENDENTS, MOST_LEFT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from .counts import QueueCensus

CENSUS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class StateMetrics(Collector):
    """What the exporter of the state shows, as one collector: all of it comes and goes together.

    Made anew for each run, so that a worker may be run again on the same registry.

    Attributes:
        duration: seconds a census took.
        errors: censuses that failed.
        last_success: unix time of the last one; 0 before the first.
    """

    def __init__(self) -> None:
        self._census: Census | None = None
        self._good_until = -math.inf
        self._leads_until = -math.inf
        self.duration = Histogram(
            "streamqueue_state_collection_duration_seconds",
            "Seconds a census of the queues took.",
            buckets=CENSUS_BUCKETS,
            registry=None,
        )
        self.errors = Counter(
            "streamqueue_state_collection_errors_total",
            "Censuses of the queues that failed.",
            registry=None,
        )
        self.last_success = Gauge(
            "streamqueue_state_last_success_timestamp_seconds",
            "Unix time of the last census of the queues; 0 before the first.",
            registry=None,
        )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that exports."""
        return monotonic() < self._leads_until

    @property
    def shows(self) -> bool:
        """Whether there is a good census."""
        return self._census is not None and monotonic() < self._good_until

    def lead(self, until: float) -> None:
        """Export until that :func:`monotonic` time; after it only ``leader`` is shown, as 0."""
        self._leads_until = until

    def show(self, census: Census, until: float) -> None:
        """Show this census until that time."""
        # In this order: a scrape in between shows the new one for as long as the old one was good.
        self._census = census
        self._good_until = until

    def describe(self) -> Iterable[Metric]:
        """Yield every family there may be, for readers that ask for one by name."""
        yield from self._own()
        yield from _families(Census(consumers={}, oplog_window=0.0))

    def collect(self) -> Iterable[Metric]:
        """Yield the series; asks no database."""
        leader, *others = self._own()
        yield leader
        if self.leads:
            yield from others
            census = self._census
            if census is not None and self.shows:
                yield from _families(census)

    def _own(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            "streamqueue_leader",
            "1 where the state of the queues is exported, else 0.",
            value=float(self.leads),
        )
        for own in (self.duration, self.errors, self.last_success):
            yield from own.collect()


class _LimitFamilies:
    """What is shown of limits: of each one its scope and, if it is for one task, that."""

    def __init__(self) -> None:
        labels = ("queue", "per", "task")
        self._limit = GaugeMetricFamily(
            "streamqueue_queue_limit",
            "Jobs of a queue, or of each task or group of it, that may run at once in all "
            "processes; 1 of each group where groups have an order.",
            labels=labels,
        )
        self._running = GaugeMetricFamily(
            "streamqueue_queue_limit_running",
            "Jobs that run under such a limit; those of the fullest task or group, if it is of "
            "each.",
            labels=labels,
        )
        self._starts = GaugeMetricFamily(
            "streamqueue_queue_limit_starts_per_second",
            "Jobs of a queue, or of each task or group of it, that may start in a second in all "
            "processes.",
            labels=labels,
        )
        self._saturated = GaugeMetricFamily(
            "streamqueue_queue_limit_saturated",
            "1 while a limit has no room for a job that is ready, else 0; if it is of each task or "
            f"group, how many have none, of the {MOST_GROUPS} fullest.",
            labels=labels,
        )
        self.all = (self._limit, self._running, self._starts, self._saturated)

    def add(self, queue: QueueCensus) -> None:
        """Show the limits of a queue."""
        for one in queue.limits:
            labels = (queue.name, one.per, one.task or "")
            if one.limit is not None:
                self._limit.add_metric(labels, one.limit)
                self._running.add_metric(labels, one.running or 0)
            if one.rate is not None:
                self._starts.add_metric(labels, one.rate.count / one.rate.seconds)
            if one.saturated is not None:
                self._saturated.add_metric(labels, one.saturated)


def _families(census: Census) -> Iterable[Metric]:
    jobs = GaugeMetricFamily(
        "streamqueue_queue_jobs", "Jobs of a queue, by state.", labels=("queue", "state")
    )
    oldest = GaugeMetricFamily(
        "streamqueue_queue_oldest_ready_age_seconds",
        "Seconds since the longest waiting of the due jobs became due; 0 when none waits.",
        labels=("queue",),
    )
    running = GaugeMetricFamily(
        "streamqueue_queue_oldest_running_age_seconds",
        "Seconds since the one of the running jobs that was claimed first was claimed; 0 when none "
        "runs.",
        labels=("queue",),
    )
    overdue = GaugeMetricFamily(
        "streamqueue_queue_overdue_jobs",
        "Scheduled jobs nobody has made ready, 10 seconds after their time, or without a time.",
        labels=("queue",),
    )
    expired = GaugeMetricFamily(
        "streamqueue_queue_expired_leases",
        "Running jobs whose lease has ended and that nobody has returned yet.",
        labels=("queue",),
    )
    paused = GaugeMetricFamily(
        "streamqueue_paused",
        "1 while a queue is paused, so that nobody claims its jobs, else 0.",
        labels=("queue",),
    )
    late = GaugeMetricFamily(
        "streamqueue_schedules_late_seconds",
        "Seconds since the longest overdue of the schedules of a queue should have fired, without "
        "its spread; 0 when none is overdue.",
        labels=("queue",),
    )
    subscriptions = GaugeMetricFamily(
        "streamqueue_queue_subscriptions",
        "Topics to which a queue subscribes.",
        labels=("queue",),
    )
    limits = _LimitFamilies()
    held_groups = GaugeMetricFamily(
        "streamqueue_queue_held_groups",
        "Groups of a queue with strict order whose ready jobs a dead one holds back; of no more "
        f"than {MOST_GROUPS} that have a dead job.",
        labels=("queue",),
    )
    held_dependents = GaugeMetricFamily(
        "streamqueue_queue_held_dependents",
        "Jobs that wait for a parent that is dead; of all queues no more than "
        f"{MOST_DEPENDENTS} are counted.",
        labels=("queue",),
    )
    misfits = GaugeMetricFamily(
        "streamqueue_queue_misfits",
        "Jobs that workers have left to others, by why: their task is not known to those, or their "
        f"payload does not fit their types (misfit); of all queues no more than {MOST_LEFT} are "
        "counted.",
        labels=("queue", "reason"),
    )
    consumers = GaugeMetricFamily(
        "streamqueue_queue_consumers", "Live workers of a queue.", labels=("queue",)
    )
    slots = GaugeMetricFamily(
        "streamqueue_queue_slots",
        "Handlers that the live workers of a queue can run at a time.",
        labels=("queue",),
    )
    for queue in census.queues.values():
        for state, count in queue.jobs().items():
            jobs.add_metric((queue.name, state), count)
        if queue.name == INVALID:  # nobody works on it, so nothing else can be said of it
            continue
        oldest.add_metric((queue.name,), queue.oldest_ready_age)
        running.add_metric((queue.name,), queue.oldest_running_age)
        overdue.add_metric((queue.name,), queue.overdue)
        held_dependents.add_metric((queue.name,), queue.held_dependents)
        misfits.add_metric((queue.name, "misfit"), queue.misfits)
        misfits.add_metric((queue.name, "task"), queue.unknown_tasks)
        expired.add_metric((queue.name,), queue.expired_leases)
        paused.add_metric((queue.name,), queue.paused)
        if queue.has_schedules:
            late.add_metric((queue.name,), queue.schedules_late)
        subscriptions.add_metric((queue.name,), queue.subscriptions)
        limits.add(queue)
        if queue.held_groups is not None:
            held_groups.add_metric((queue.name,), queue.held_groups)
        consumers.add_metric((queue.name,), queue.consumers)
        slots.add_metric((queue.name,), queue.slots)
    yield from (jobs, oldest, running, overdue, expired, held_dependents, misfits)
    yield GaugeMetricFamily(
        "streamqueue_foreign_documents",
        "Documents whose queue is no valid name, so that nobody works on them; there may be more.",
        value=census.foreign,
    )
    yield GaugeMetricFamily(
        "streamqueue_queues_left_out",
        "Queues that are not counted, because there are too many; there may be more.",
        value=census.left_out,
    )
    if census.knows_settings:
        yield from (paused, late, subscriptions, *limits.all, held_groups)
    if census.consumers is not None:
        yield from (consumers, slots)
    if census.oplog_window is not None:
        yield GaugeMetricFamily(
            "streamqueue_oplog_window_seconds",
            "Seconds from the oldest entry of the oplog to the newest: how long a change "
            "stream may be away and still resume.",
            value=census.oplog_window,
        )
