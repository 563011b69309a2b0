"""The series we promise: what a query may name, and the values its labels may have."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector

from streamqueue.metrics import Metrics

Series = dict[str, dict[str, set[str]]]
"""The values of each label of each series; an empty set where they are not from a closed list."""

OPEN = {"queue", "task", "error", "version", "pymongo", "python", "le"}
FROM_PROMETHEUS: dict[str, set[str]] = {"job": set(), "instance": set()}

PENDING: Series = {
    "streamqueue_claim_batch_jobs_bucket": {"le": set()},
    "streamqueue_leases_renewed_total": {"queue": set()},
    "streamqueue_queue_jobs": {"queue": set(), "state": {"ready", "scheduled", "running", "dead"}},
    "streamqueue_queue_oldest_ready_age_seconds": {"queue": set()},
    "streamqueue_queue_expired_leases": {"queue": set()},
    "streamqueue_queue_consumers": {"queue": set()},
    "streamqueue_queue_slots": {"queue": set()},
    "streamqueue_oplog_window_seconds": {},
    "streamqueue_state_collection_duration_seconds_bucket": {"le": set()},
    "streamqueue_state_collection_errors_total": {},
    "streamqueue_state_last_success_timestamp_seconds": {},
    "streamqueue_leader": {},
}
"""Agreed, and not in ``streamqueue.metrics`` yet."""

PROMETHEUS_OWN: Series = {"ALERTS": {"alertname": set(), "alertstate": {"firing", "pending"}}}


def contract() -> Series:
    """Return the series that the code makes, those that are agreed, and Prometheus's own."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.producer("emails")
    metrics.consumer("emails", "send")
    metrics.stream.connected.set(0)
    metrics.operation_failed("put", TimeoutError())
    ProcessCollector(registry=registry)
    series: Series = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = series.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                values = labels.setdefault(label, set())
                if label not in OPEN:
                    values.add(value)
    # An error was counted for one operation; it may be any.
    series["streamqueue_mongodb_errors_total"]["operation"] = set(
        series["streamqueue_mongodb_operation_duration_seconds_count"]["operation"]
    )
    return {
        name: {**labels, **FROM_PROMETHEUS}
        for name, labels in {**series, **PENDING, **PROMETHEUS_OWN}.items()
    }
