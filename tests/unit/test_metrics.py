from __future__ import annotations

import gc
import math
import shutil
import subprocess
import sys
import threading
import weakref
from typing import get_args

import pytest
from prometheus_client import (
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import REGISTRY, CollectorRegistry
from pymongo.errors import AutoReconnect

from streamqueue.errors import ConfigurationError
from streamqueue.metrics import buckets
from streamqueue.metrics.series import AttemptOutcome, Metrics, Operation
from streamqueue.names import INVALID
from streamqueue.protocol.foreign import REASONS


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def lines_of(registry: CollectorRegistry) -> list[str]:
    """The samples and headings, without the `_created` twins that a process may switch off."""
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if "_created" not in line]


def samples_of(registry: CollectorRegistry) -> list[str]:
    return [line for line in lines_of(registry) if not line.startswith("#")]


def labels_of(registry: CollectorRegistry, label: str) -> set[str]:
    return {
        sample.labels[label]
        for family in registry.collect()
        for sample in family.samples
        if label in sample.labels
    }


def fill(metrics: Metrics) -> None:
    for queue in ("emails", "reports"):
        metrics.producer(queue)
        metrics.consumer(queue, f"send_{queue}")
    metrics.published("orders", unread=False)
    metrics.stream.connected.set(0)
    metrics.worker.claim_batch.observe(1)


def test_every_series_has_the_agreed_name_type_and_labels(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    fill(metrics)
    metrics.operation_failed("put", TimeoutError())
    metrics.ticks("emails", "fired", 1)

    found = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in registry.collect()
    }

    assert found == {
        "streamqueue_build": ("info", {"version", "pymongo", "python"}),
        "streamqueue_jobs_put_total": ("counter", {"queue", "result"}),
        "streamqueue_topic_published_total": ("counter", {"topic", "result"}),
        "streamqueue_job_wait_seconds": ("histogram", {"queue"}),
        "streamqueue_job_duration_seconds": ("histogram", {"queue", "task"}),
        "streamqueue_attempts_total": ("counter", {"queue", "task", "outcome"}),
        "streamqueue_jobs_running": ("gauge", {"queue"}),
        "streamqueue_concurrency_limit": ("gauge", {"queue"}),
        "streamqueue_overdue_handlers": ("gauge", {"queue", "task"}),
        "streamqueue_claims_total": ("counter", {"queue", "trigger", "result"}),
        "streamqueue_claim_batch_jobs": ("histogram", set()),
        "streamqueue_leases_renewed_total": ("counter", {"queue"}),
        "streamqueue_steps_total": ("counter", {"queue", "result"}),
        "streamqueue_leases_lost_total": ("counter", {"queue"}),
        "streamqueue_middleware_errors_total": ("counter", {"queue"}),
        "streamqueue_missed_wakeups_total": ("counter", {"queue"}),
        "streamqueue_jobs_reaped_total": ("counter", {"queue", "result"}),
        "streamqueue_jobs_left_total": ("counter", {"queue", "reason"}),
        "streamqueue_jobs_buried_total": ("counter", {"reason"}),
        "streamqueue_schedule_ticks_total": ("counter", {"queue", "result"}),
        "streamqueue_mongodb_operation_duration_seconds": ("histogram", {"operation"}),
        "streamqueue_mongodb_errors_total": ("counter", {"operation", "error"}),
        "streamqueue_event_loop_lag_seconds": ("histogram", set()),
        "streamqueue_stream_connected": ("gauge", set()),
        "streamqueue_stream_events_total": ("counter", {"operation"}),
        "streamqueue_stream_event_age_seconds": ("histogram", set()),
        "streamqueue_stream_last_event_timestamp_seconds": ("gauge", set()),
        "streamqueue_stream_restarts_total": ("counter", {"reason"}),
    }


def test_build_info_is_a_gauge_of_one_that_names_the_versions(registry: CollectorRegistry) -> None:
    Metrics(registry)

    assert "# TYPE streamqueue_build_info gauge" in lines_of(registry)
    (sample,) = [line for line in samples_of(registry) if "build_info" in line]
    assert sample.endswith("} 1.0")
    assert f'python="{sys.version.split()[0]}"' in sample


def test_a_consumer_says_which_event_loop_it_runs_in(registry: CollectorRegistry) -> None:
    Metrics(registry).runs_on("uvloop")

    (sample,) = [line for line in samples_of(registry) if "build_info" in line]
    assert 'loop="uvloop"' in sample


def test_every_known_label_set_stands_at_zero_before_the_first_event(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)

    fill(metrics)

    known_at_start: dict[str, dict[str, tuple[str, ...]]] = {
        "jobs_put_total": {"result": ("inserted", "duplicate", "error")},
        "attempts_total": {
            "task": ("send_emails",),
            "outcome": ("completed", "retried", "dead", "released", "cancelled", "lease_lost"),
        },
        "jobs_reaped_total": {"result": ("requeued", "dead")},
        "leases_renewed_total": {},
        "leases_lost_total": {},
        "middleware_errors_total": {},
        "missed_wakeups_total": {},
        "jobs_running": {},
        "concurrency_limit": {},
        "job_wait_seconds_count": {},
        "job_duration_seconds_count": {"task": ("send_emails",)},
    }
    for series, labels in known_at_start.items():
        expected = [{"queue": "emails"}]
        for label, values in labels.items():
            expected = [{**known, label: value} for known in expected for value in values]
        for known in expected:
            assert registry.get_sample_value(f"streamqueue_{series}", known) == 0, (series, known)
    for trigger in ("stream", "scan", "sweep"):
        for result in ("won", "lost", "empty"):
            known = {"queue": "reports", "trigger": trigger, "result": result}
            assert registry.get_sample_value("streamqueue_claims_total", known) == 0
    for operation in ("insert", "update", "replace"):
        known = {"operation": operation}
        assert registry.get_sample_value("streamqueue_stream_events_total", known) == 0
    assert labels_of(registry, "reason") == {
        *("network", "election", "not_resumable", "history_lost", "invalidate", "refused"),
        "unknown",
        *("id", "queue", "payload", "undecodable", "refused", "damaged", "misfit"),
        "task",
    }
    for reason in REASONS:
        known = {"reason": reason}
        assert registry.get_sample_value("streamqueue_jobs_buried_total", known) == 0
    for operation in get_args(Operation):
        name = "streamqueue_mongodb_operation_duration_seconds_count"
        assert registry.get_sample_value(name, {"operation": operation}) == 0


def test_what_is_counted_on_a_bundle_shows_under_its_labels(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    producer = metrics.producer("emails")
    consumer = metrics.consumer("emails", "send")

    producer.put["duplicate"].inc()
    consumer.wait.observe(0.004)
    consumer.duration.observe(2)
    consumer.running.inc()
    consumer.limit.set(8)
    consumer.outcome[AttemptOutcome.LEASE_LOST].inc()
    consumer.claims["stream", "won"].inc(3)
    consumer.leases_lost.inc()
    consumer.missed_wakeups.inc()
    consumer.reaped["requeued"].inc(2)
    metrics.operation["claim"].observe(0.002)
    metrics.stream.connected.set(1)
    metrics.stream.events["replace"].inc()
    metrics.stream.restarts["history_lost"].inc()

    moved = {line for line in samples_of(registry) if not line.endswith(" 0.0")}
    assert {
        'streamqueue_jobs_put_total{queue="emails",result="duplicate"} 1.0',
        'streamqueue_job_wait_seconds_bucket{le="0.005",queue="emails"} 1.0',
        'streamqueue_job_duration_seconds_sum{queue="emails",task="send"} 2.0',
        'streamqueue_jobs_running{queue="emails"} 1.0',
        'streamqueue_concurrency_limit{queue="emails"} 8.0',
        'streamqueue_attempts_total{outcome="lease_lost",queue="emails",task="send"} 1.0',
        'streamqueue_claims_total{queue="emails",result="won",trigger="stream"} 3.0',
        'streamqueue_leases_lost_total{queue="emails"} 1.0',
        'streamqueue_missed_wakeups_total{queue="emails"} 1.0',
        'streamqueue_jobs_reaped_total{queue="emails",result="requeued"} 2.0',
        'streamqueue_mongodb_operation_duration_seconds_count{operation="claim"} 1.0',
        "streamqueue_stream_connected 1.0",
        'streamqueue_stream_events_total{operation="replace"} 1.0',
        'streamqueue_stream_restarts_total{reason="history_lost"} 1.0',
    } <= moved
    assert 'streamqueue_job_wait_seconds_bucket{le="0.003",queue="emails"} 0.0' not in moved


def test_a_producer_shows_nothing_of_what_consumers_do(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    metrics.producer("emails")

    assert {line.split("{")[0].split(" ")[0] for line in samples_of(registry)} == {
        "streamqueue_build_info",
        "streamqueue_jobs_put_total",
        "streamqueue_mongodb_operation_duration_seconds_bucket",
        "streamqueue_mongodb_operation_duration_seconds_count",
        "streamqueue_mongodb_operation_duration_seconds_sum",
    }
    assert labels_of(registry, "operation") == {"put"}


def test_a_consumer_shows_nothing_of_what_producers_do(registry: CollectorRegistry) -> None:
    Metrics(registry).consumer("emails", "send")

    assert not [line for line in samples_of(registry) if "jobs_put" in line]


def test_the_same_bundle_is_returned_each_time(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    assert metrics.producer("emails") is metrics.producer("emails")
    assert metrics.consumer("emails", "send") is metrics.consumer("emails", "send")
    assert metrics.consumer("emails", "send") is not metrics.consumer("emails", "resend")
    assert metrics.operation["put"] is metrics.operation["put"]
    assert metrics.stream is metrics.stream


def test_two_tasks_of_one_queue_share_what_is_counted_per_queue(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)
    send, resend = metrics.consumer("emails", "send"), metrics.consumer("emails", "resend")

    assert send.wait is resend.wait
    assert send.running is resend.running
    assert send.duration is not resend.duration


def test_an_unknown_operation_is_a_mistake_and_not_a_new_series(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)

    with pytest.raises(KeyError):
        metrics.operation["enqueue"]  # type: ignore[index]

    assert labels_of(registry, "operation") == set()


def test_of_returns_the_one_set_of_series_a_registry_has(registry: CollectorRegistry) -> None:
    metrics = Metrics.of(registry)

    assert Metrics.of(registry) is metrics
    assert Metrics.of(CollectorRegistry()) is not metrics


def test_of_finds_series_that_were_built_with_other_buckets(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry, duration_buckets=(60, 600))

    Metrics.of(registry).consumer("emails", "send")

    assert Metrics.of(registry) is metrics
    edges = [line for line in samples_of(registry) if "job_duration_seconds_bucket" in line]
    assert edges == [
        f'streamqueue_job_duration_seconds_bucket{{le="{edge}",queue="emails",task="send"}} 0.0'
        for edge in ("60.0", "600.0", "+Inf")
    ]


def test_built_twice_for_a_registry_it_is_the_same_series(registry: CollectorRegistry) -> None:
    first = Metrics(registry)
    second = Metrics(registry)

    first.producer("emails").put["inserted"].inc()
    second.producer("emails").put["inserted"].inc()
    second.stream.events["insert"].inc()
    first.stream.events["insert"].inc()

    known = {"queue": "emails", "result": "inserted"}
    assert registry.get_sample_value("streamqueue_jobs_put_total", known) == 2
    known = {"operation": "insert"}
    assert registry.get_sample_value("streamqueue_stream_events_total", known) == 2


def test_built_by_many_threads_at_once_it_is_the_same_series(registry: CollectorRegistry) -> None:
    together = threading.Barrier(8)
    built: list[Metrics] = []

    def build() -> None:
        together.wait()
        metrics = Metrics.of(registry)
        metrics.consumer("emails", "send").leases_lost.inc()
        metrics.stream.events["insert"].inc()
        built.append(metrics)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {id(metrics) for metrics in built} == {id(Metrics.of(registry))}
    assert registry.get_sample_value("streamqueue_leases_lost_total", {"queue": "emails"}) == 8


def test_a_registry_nobody_holds_is_freed_with_its_series() -> None:
    registry = CollectorRegistry()
    fill(Metrics.of(registry))
    gone = weakref.ref(registry)

    del registry
    gc.collect()

    assert gone() is None


def test_without_a_registry_it_is_the_process_wide_one() -> None:
    # It stays built: any queue of the other tests in this process may have built it before.
    metrics = Metrics.of()

    assert Metrics() is not metrics
    assert Metrics.of(REGISTRY) is metrics
    assert 'pymongo="' in generate_latest(REGISTRY).decode()


def test_importing_the_module_registers_and_starts_nothing() -> None:
    program = (
        "import threading, prometheus_client as p, streamqueue.metrics.series;"
        "assert b'streamqueue' not in p.generate_latest();"
        "assert threading.active_count() == 1"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    "edges", [(), (1, 1), (2, 1), (0, 1), (-1,), (math.nan,), (math.inf,), ("one",), 5]
)
def test_edges_that_do_not_increase_are_refused_before_anything_is_registered(
    registry: CollectorRegistry, edges: object
) -> None:
    for name in ("latency_buckets", "duration_buckets", "operation_buckets"):
        with pytest.raises(ConfigurationError, match=name):
            Metrics(registry, **{name: edges})  # type: ignore[arg-type]

    assert lines_of(registry) == []


def test_the_default_edges_keep_the_agreed_numbers() -> None:
    assert len(buckets.LATENCY_BUCKETS) == 20
    assert len(buckets.DURATION_BUCKETS) == 18
    assert len(buckets.OPERATION_BUCKETS) == 12
    assert len(buckets.LOOP_LAG_BUCKETS) == 10
    assert sum(edge <= 0.015 for edge in buckets.LATENCY_BUCKETS) == 8


def test_queue_names_past_the_limit_are_counted_together(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    for number in range(1000):
        metrics.producer(f"queue-{number}").put["inserted"].inc()
        metrics.consumer(f"queue-{number}", f"task-{number}").leases_lost.inc()

    assert len(labels_of(registry, "queue")) == 201
    assert labels_of(registry, "task") <= {*(f"task-{number}" for number in range(200)), "other"}
    known = {"queue": "other", "result": "inserted"}
    assert registry.get_sample_value("streamqueue_jobs_put_total", known) == 800
    assert registry.get_sample_value("streamqueue_leases_lost_total", {"queue": "other"}) == 800
    known = {"queue": "queue-199"}
    assert registry.get_sample_value("streamqueue_leases_lost_total", known) == 1


def test_reaped_jobs_of_other_queues_take_no_label_from_ours(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    for number in range(300):
        metrics.reaped(f"queue-{number}", "dead", 1)
        metrics.reaped(f"no name {number}", "dead", 1)

    metrics.producer("emails").put["inserted"].inc()

    known = {"queue": "emails", "result": "inserted"}
    assert registry.get_sample_value("streamqueue_jobs_put_total", known) == 1
    for label, count in (("other", 100), ("(invalid)", 300)):
        known = {"queue": label, "result": "dead"}
        assert registry.get_sample_value("streamqueue_jobs_reaped_total", known) == count


def test_the_tasks_of_queues_past_the_limit_are_counted_together(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)
    for number in range(200):
        metrics.producer(f"queue-{number}")

    first, second = metrics.consumer("late", "send"), metrics.consumer("later", "resend")

    assert first is second
    assert labels_of(registry, "task") == {"other"}


def test_task_names_past_the_limit_are_counted_together(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    for number in range(300):
        metrics.consumer("emails", f"task-{number}").outcome[AttemptOutcome.COMPLETED].inc()

    assert len(labels_of(registry, "task")) == 201
    known = {"queue": "emails", "task": "other", "outcome": "completed"}
    assert registry.get_sample_value("streamqueue_attempts_total", known) == 100


def test_errors_are_counted_by_class_and_never_by_message(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    metrics.operation_failed("claim", ConnectionError("mongodb://user:secret@host"))

    known = {"operation": "claim", "error": "ConnectionError"}
    assert registry.get_sample_value("streamqueue_mongodb_errors_total", known) == 1
    assert "secret" not in generate_latest(registry).decode()


def test_an_operation_is_timed_and_counted_when_it_raises(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    with metrics.timed("claim"):
        pass
    with pytest.raises(AutoReconnect), metrics.timed("claim"):
        raise AutoReconnect("gone")

    name = "streamqueue_mongodb_operation_duration_seconds_count"
    assert registry.get_sample_value(name, {"operation": "claim"}) == 2
    known = {"operation": "claim", "error": "AutoReconnect"}
    assert registry.get_sample_value("streamqueue_mongodb_errors_total", known) == 1


def test_it_knows_the_registry_it_is_on(registry: CollectorRegistry) -> None:
    assert Metrics.of(registry).registry is registry


def test_error_classes_past_the_limit_are_counted_together(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)

    for number in range(50):
        error = type(f"Error{number}", (Exception,), {})
        metrics.operation_failed("put", error())
        metrics.operation_failed("claim", error())

    assert len(labels_of(registry, "error")) == 21
    known = {"operation": "claim", "error": "other"}
    assert registry.get_sample_value("streamqueue_mongodb_errors_total", known) == 30


def test_the_results_of_ticks_are_all_there_with_the_first_of_a_queue(
    registry: CollectorRegistry,
) -> None:
    metrics = Metrics(registry)
    metrics.ticks("emails", "skipped", 3)
    metrics.ticks("no name", "error", 1)

    name = "streamqueue_schedule_ticks_total"
    counted = {
        (queue, result): registry.get_sample_value(name, {"queue": queue, "result": result})
        for queue in ("emails", INVALID)
        for result in ("fired", "skipped", "dropped", "error")
    }
    assert {key: count for key, count in counted.items() if count} == {
        ("emails", "skipped"): 3,
        (INVALID, "error"): 1,
    }
    assert None not in counted.values()


def test_a_consumer_of_two_queues_stays_within_500_lines(registry: CollectorRegistry) -> None:
    fill(Metrics(registry))
    own = len(lines_of(registry))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    text = generate_latest(registry)
    whole, created = text.count(b"\n"), text.count(b"_created")

    assert own == 420
    assert whole - created <= 500  # the command line serves no `_created`; with it there are 509


def test_openmetrics_readers_understand_it(registry: CollectorRegistry) -> None:
    fill(Metrics(registry))

    text = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]

    read = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family.type for family in read}
    assert families["streamqueue_build"] == "info"
    assert families["streamqueue_attempts"] == "counter"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
def test_promtool_finds_nothing_to_say_about_the_names(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    fill(metrics)
    metrics.operation_failed("put", TimeoutError())

    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        timeout=60,
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
