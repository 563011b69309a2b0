"""The monitoring of the drills does what a drill will rely on."""

from __future__ import annotations

import socket
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from tests.ops.prometheus import Monitoring, NotInstalled, hasten, missing_programs
from tests.waiting import wait_until

needs_programs = pytest.mark.skipif(
    bool(missing_programs()), reason=f"not on PATH: {', '.join(missing_programs())}"
)

RULES_FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = textwrap.dedent("""
    groups:
      - name: drill
        rules:
          - record: room:heat:max
            expr: max by (room) (heat)
          - alert: TooHot
            expr: room:heat:max > 30
            for: 1m
            labels: {severity: critical}
            annotations: {summary: 'The {{ $labels.room }} has {{ $value }} degrees.'}
    """)


class Oven:
    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.heat = Gauge("heat", "Degrees.", ("room",), registry=registry).labels("kitchen")
        self._server, self._thread = start_http_server(0, "127.0.0.1", registry)
        self.address = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def oven() -> Iterator[Oven]:
    oven = Oven()
    yield oven
    oven.close()


@pytest.mark.slow
@needs_programs
def test_an_alert_fires_at_the_receiver_and_resolves_there(tmp_path: Path, oven: Oven) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(hasten(RULES, 60))
    began = time.time()

    with Monitoring(
        tmp_path, {"house": [oven.address]}, [rules], labels={"house": {"cluster": "a"}}
    ) as monitoring:
        monitoring.wait_until_up()
        oven.heat.set(40)
        fired = monitoring.wait_for_notice("TooHot", "firing", within=60)
        (alert,) = monitoring.alerts()
        oven.heat.set(20)
        resolved = monitoring.wait_for_notice("TooHot", "resolved", within=60)

        (sample,) = monitoring.query("heat")
        # The steps count from the beginning: the last of them may be before the last value.
        ((labels, values),) = monitoring.query_range("room:heat:max", began, time.time() + 1)
        names = monitoring.series_names()
        errors = monitoring.rule_errors()
        address = monitoring.address

    assert fired.labels == {"alertname": "TooHot", "room": "kitchen", "severity": "critical"}
    assert fired.annotations == {"summary": "The kitchen has 40 degrees."}
    assert (alert["state"], alert["labels"]) == ("firing", fired.labels)
    assert resolved.labels == fired.labels
    assert (sample.value, sample.labels["cluster"], sample.labels["job"]) == (20, "a", "house")
    assert labels == {"__name__": "room:heat:max", "room": "kitchen"}
    assert {value for _, value in values} >= {20, 40}
    assert {"heat", "room:heat:max", "ALERTS", "up"} <= names
    assert errors == {}
    host, port = address.split(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0  # it is gone


@needs_programs
def test_the_real_rules_reach_the_receiver_in_seconds(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    age, consumers = (
        Gauge(f"streamqueue_queue_{name}", "As the exporter has it.", ("queue",), registry=registry)
        for name in ("oldest_ready_age_seconds", "consumers")
    )
    age.labels("emails").set(20)
    consumers.labels("emails").set(0)
    rules = tmp_path / "rules.yml"
    rules.write_text(hasten((RULES_FOLDER / "streamqueue.rules.yml").read_text(), 60))
    server, thread = start_http_server(0, "127.0.0.1", registry)

    try:
        targets = {"exporter": [f"127.0.0.1:{server.server_port}"]}
        with Monitoring(tmp_path, targets, [rules]) as monitoring:
            fired = monitoring.wait_for_notice("StreamqueueNoConsumers", "firing", within=60)
            consumers.labels("emails").set(1)
            monitoring.wait_for_notice("StreamqueueNoConsumers", "resolved", within=60)
            errors = monitoring.rule_errors()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert fired.annotations["summary"] == "Queue emails has jobs waiting and no live worker."
    assert "The oldest job has waited 20s." in fired.annotations["description"]
    assert errors == {}


@pytest.mark.slow
@needs_programs
def test_a_target_that_is_not_there_is_named(tmp_path: Path) -> None:
    with Monitoring(tmp_path, {"nobody": ["127.0.0.1:1"]}) as monitoring:
        wait_until(lambda: monitoring.query("up"), "it has tried")

        with pytest.raises(AssertionError, match=r"127\.0\.0\.1:1/metrics.*refused"):
            monitoring.wait_until_up(within=0.1)
        with pytest.raises(ValueError, match="parse error"):
            monitoring.query("up ==")


@needs_programs
def test_rules_that_prometheus_refuses_end_with_its_reason(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES.replace("> 30", "> > 30"))

    with (
        pytest.raises(AssertionError, match=r"prometheus ended with .*(?s:.*)parse error"),
        Monitoring(tmp_path, {}, [rules]),
    ):
        pass


def test_what_is_not_installed_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NotInstalled, match=r"apt-get install .* prometheus prometheus-alertm"):
        Monitoring(tmp_path, {}).__enter__()


def test_hastening_shortens_waits_and_windows_and_leaves_the_rest() -> None:
    rules = """
        groups:
          - name: drill
            rules:
              - alert: A
                expr: increase(a_total{x="5m"}[15m]) - (b offset 10m) > 60 and c_5m > d:e_10m
                for: 1h30m
                annotations: {summary: 'In 5m [5m].'}
              - record: a:b:rate1m
                expr: rate(a_total[1m])
              - record: a:b:absent
                expr: count_over_time((a == 0)[10m:30s])
              - record: a:b:sum
                expr: sum_over_time(a:b:rate1m[6h:10m])
        """

    first, second, third, fourth = yaml.safe_load(hasten(rules, 60))["groups"][0]["rules"]

    assert first["expr"] == (
        'increase(a_total{x="5m"}[15000ms]) - (b offset 10000ms) > 60 and c_5m > d:e_10m'
    )
    assert first["for"] == "90000ms"
    assert first["annotations"] == {"summary": "In 5m [5m]."}
    assert second == {"record": "a:b:rate1m", "expr": "rate(a_total[5000ms])"}  # not below 5 s
    assert third["expr"] == "count_over_time((a == 0)[10000ms:1000ms])"  # nor a step below 1 s
    assert fourth["expr"] == "sum_over_time(a:b:rate1m[360000ms:10000ms])"


def test_hastening_replaces_what_a_drill_cannot_reach() -> None:
    rule = yaml.safe_load(hasten(RULES, 1, {"> 30": "> 3"}))["groups"][0]["rules"][1]

    assert rule["expr"] == "room:heat:max > 3"
    with pytest.raises(ValueError, match="no expression holds"):
        hasten(RULES, 1, {"> 31": "> 3"})
