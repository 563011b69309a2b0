"""A real Prometheus scrapes the server, with a client certificate and without."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import CollectorRegistry, Gauge

from streamqueue.health.health import Health
from streamqueue.health.server import HealthServer
from tests.certified import Identity
from tests.waiting import free_port, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)

CONFIGURATION = """
global:
  scrape_interval: 200ms
  scrape_timeout: 200ms
scrape_configs:
  - job_name: known
    scheme: https
    static_configs: [{{targets: ["{address}"]}}]
    tls_config: {{ca_file: "{authority}", cert_file: "{cert}", key_file: "{key}"}}
  - job_name: unknown
    scheme: https
    static_configs: [{{targets: ["{address}"]}}]
    tls_config: {{ca_file: "{authority}"}}
  - job_name: plain
    scheme: http
    static_configs: [{{targets: ["{address}"]}}]
"""


class Prometheus:
    def __init__(self, folder: Path, configuration: str) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        (folder / "prometheus.yml").write_text(configuration)
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def get(self, path: str) -> Any:
        """Return what its API says, or None before it listens."""
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}", timeout=5) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            error.close()  # it is not ready
            return None
        except (urllib.error.URLError, ConnectionError):
            assert self._process.poll() is None, Path(self._log.name).read_text()
            return None

    def query(self, expression: str) -> dict[str, float]:
        """Return the value of an expression by job."""
        found = self.get("query?" + urllib.parse.urlencode({"query": expression}))
        rows = found["result"] if found else []
        return {row["metric"]["job"]: float(row["value"][1]) for row in rows}

    def errors(self) -> dict[str, str]:
        """Return why the last scrape failed, by job."""
        found = self.get("targets?state=active")["activeTargets"]
        return {each["labels"]["job"]: each["lastError"] for each in found}

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HealthServer]:
    registry = CollectorRegistry()
    Gauge("answer", "to everything", registry=registry).set(42)
    identity = Identity(tmp_path, trustme.CA())
    client = identity.authority.issue_cert("prometheus@example.org")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    files: dict[str, Any] = {**identity.pair, "client_ca": identity.client_ca}
    with HealthServer(registry, Health(), **files) as server:
        yield server


@pytest.fixture
def prometheus(tmp_path: Path, server: HealthServer) -> Iterator[Prometheus]:
    configuration = CONFIGURATION.format(
        address=server.address,
        authority=tmp_path / "clients.pem",
        cert=tmp_path / "client.pem",
        key=tmp_path / "client.key",
    )
    prometheus = Prometheus(tmp_path, configuration)
    yield prometheus
    prometheus.end()


def test_prometheus_is_up_with_a_client_certificate_and_down_without(
    prometheus: Prometheus,
) -> None:
    def up() -> dict[str, float]:
        return prometheus.query("up")

    wait_until(lambda: len(up()) == 3 and up()["known"] == 1, "all are scraped", within=60)

    assert up() == {"known": 1, "unknown": 0, "plain": 0}
    assert prometheus.query("answer") == {"known": 42}
    errors = prometheus.errors()
    assert errors["known"] == ""
    assert "certificate required" in errors["unknown"] or "bad certificate" in errors["unknown"]
    assert "400 Bad Request" in errors["plain"]
