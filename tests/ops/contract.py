"""The series we promise: what a query may name, and the values its labels may have."""

from __future__ import annotations

import math
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector

from streamqueue.exporter.collector import StateMetrics
from streamqueue.exporter.counts import Census, LimitCensus, QueueCensus
from streamqueue.metrics.series import Metrics, Operation
from streamqueue.protocol.limits import Per, Rate

Series = dict[str, dict[str, set[str]]]
"""The values of each label of each series; an empty set where they are not from a closed list."""

OPEN = {"queue", "task", "topic", "error", "version", "pymongo", "python", "le"}
FROM_PROMETHEUS: dict[str, set[str]] = {"job": set(), "instance": set()}
PROMETHEUS_OWN: Series = {"ALERTS": {"alertname": set(), "alertstate": {"firing", "pending"}}}


def exposed() -> Series:
    """Return every series that the code can show: a worker, a producer and an exporter in one."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.producer("emails")
    metrics.published("orders", unread=False)
    metrics.ticks("emails", "fired", 1)
    metrics.consumer("emails", "send")
    metrics.stream.connected.set(0)
    metrics.worker.event_loop_lag.observe(0)
    for operation in get_args(Operation):
        metrics.operation_failed(operation, TimeoutError())
    registry.register(_state())
    ProcessCollector(registry=registry)
    series: Series = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue  # the command switches them off
            labels = series.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                values = labels.setdefault(label, set())
                if label not in OPEN:
                    values.add(value)
    return series


def _state() -> StateMetrics:
    state = StateMetrics()
    state.lead(math.inf)
    limits = [LimitCensus(per, "resize", 1, Rate(1)) for per in get_args(Per)]
    of_queue = QueueCensus("emails", has_schedules=True, limits=limits, held_groups=0)
    queues = {"emails": of_queue}
    state.show(Census(queues, consumers={}, oplog_window=0.0), math.inf)
    return state


def contract() -> Series:
    """Return what Prometheus has: the series that the code shows, and Prometheus's own."""
    return {
        name: {**labels, **FROM_PROMETHEUS}
        for name, labels in {**exposed(), **PROMETHEUS_OWN}.items()
    }
