"""What scrapes of many forms, and many at once, cost."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import anyio
import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from streamqueue.health import renderings
from streamqueue.health.app import HealthApp
from streamqueue.health.health import Answer, Request, answer
from tests.waiting import wait_until

PATIENCE = 10.0
"""How long a test waits for what should come at once."""


class Counted(Collector):
    """Counts how often it is collected."""

    def __init__(self) -> None:
        self.times = 0

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        self.times += 1
        yield GaugeMetricFamily("times", "How often it was collected.", self.times)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def registry(counted: Counted) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(counted)
    return registry


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a rendering kept for longer than any test takes."""
    monkeypatch.setattr(renderings, "KEPT_SECONDS", 60 * PATIENCE)


def scrape(registry: CollectorRegistry, accept: str, encoding: str = "") -> Answer:
    headers = {"accept": accept, "accept-encoding": encoding}
    return answer(Request("GET", "/metrics", headers), registry, None)


VERSIONS = [f"{major}.{minor}.{patch}" for major, minor, patch in product(range(10), repeat=3)]
KINDS = ("application/openmetrics-text", "text/plain")


@pytest.mark.usefixtures("unhurried")
def test_the_versions_that_clients_make_up_cost_no_rendering_each(
    registry: CollectorRegistry, counted: Counted
) -> None:
    types = {
        scrape(registry, f"{kind};version={version}").content_type
        for version in [*VERSIONS, "1", "1.0", "01.0.0", "1.0.00", "1.0.0.0", "999.0.0"]
        for kind in KINDS
    }

    assert {kind.partition(";")[0] for kind in types} == set(KINDS)
    assert len(types) == counted.times == 3


@pytest.mark.usefixtures("unhurried")
def test_all_that_an_accept_header_can_say_makes_ten_forms(
    registry: CollectorRegistry, counted: Counted
) -> None:
    parameters = [
        "",
        *(f";version={version}" for version in ("0.0.1", "0.0.4", "1.0.0", "2.0.0", "", " 1.0.0")),
        ";version=1.0.0 ;version=7.0.0",
        ";VERSION=3.0.0",
        ";version =3.0.0",
    ]
    escapings = ["", "allow-utf-8", "underscores", "dots", "values", "other", "dots2"]

    for kind, version, escaping in product(KINDS, parameters, escapings):
        for order in (f"{version};escaping={escaping}", f";escaping={escaping}{version}"):
            assert scrape(registry, f"{kind}{order};q=0.5", "gzip").status == 200
            scrape(registry, f"*/*,{kind}{order}")

    assert counted.times <= 10
    assert len(renderings._renderings[registry]._kept) <= 20


def test_of_several_versions_the_first_that_is_known_is_taken(registry: CollectorRegistry) -> None:
    accept = (
        "application/openmetrics-text;version=2.0.0;q=0.6,"
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
        "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3"
    )

    assert scrape(registry, accept).content_type.startswith(
        "application/openmetrics-text; version=1.0.0"
    )


def test_a_form_that_nobody_asks_for_any_more_is_dropped(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrape(registry, KINDS[0], "gzip")
    monkeypatch.setattr(renderings, "KEPT_SECONDS", 0.0)

    scrape(registry, KINDS[1])

    [(form, packed)] = renderings._renderings[registry]._kept
    assert form.startswith(KINDS[1])
    assert not packed


@pytest.mark.usefixtures("unhurried")
def test_packed_and_plain_are_of_one_rendering(
    registry: CollectorRegistry, counted: Counted
) -> None:
    packed = scrape(registry, "", "gzip").body

    assert gzip.decompress(packed) == scrape(registry, "").body
    assert counted.times == 1


class Slow(Counted):
    """Takes until it is let go, each time."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def collect(self) -> Iterator[Metric]:
        yield from super().collect()
        self.go.wait(PATIENCE)


def at_once(registry: CollectorRegistry, slow: Slow, scrapes: int) -> list[int]:
    """Scrape while another scrape is collecting; let all go when all have begun."""
    statuses: list[int] = []
    begun = threading.Semaphore(0)

    def one() -> None:
        begun.release()
        statuses.append(scrape(registry, "").status)

    threads = [threading.Thread(target=one) for _ in range(scrapes)]
    for thread in threads:
        thread.start()
        begun.acquire(timeout=PATIENCE)
        wait_until(lambda: slow.times > 0, "the first is collecting")
    slow.go.set()
    for thread in threads:
        thread.join(PATIENCE)
    return statuses


def test_scrapes_at_once_share_a_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, registry = Slow(), CollectorRegistry()
    registry.register(slow)

    assert at_once(registry, slow, 20) == [200] * 20
    assert slow.times <= 2  # the last may have begun when the first had ended long ago


def test_a_scrape_waits_only_so_long_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderings, "WAIT_SECONDS", 0.01)
    slow, registry = Slow(), CollectorRegistry()
    registry.register(slow)
    first = threading.Thread(target=scrape, args=(registry, ""))
    first.start()
    wait_until(lambda: slow.times == 1, "the first is collecting")

    refused = scrape(registry, "")

    slow.go.set()
    first.join(PATIENCE)
    assert refused.status == 503
    assert b"earlier scrape" in refused.body
    assert slow.times == 1
    assert scrape(registry, "").status == 200


def test_a_collector_that_failed_keeps_nobody_waiting(registry: CollectorRegistry) -> None:
    class Failing(Counted):
        def collect(self) -> Iterator[Metric]:
            raise OSError("no matter why")

    failing = Failing()
    registry.register(failing)
    assert scrape(registry, "").status == 500
    registry.unregister(failing)

    assert scrape(registry, "").status == 200


def test_a_forked_child_does_not_wait_for_its_parents_scrape() -> None:
    program = (
        "import os, threading, warnings\n"
        "from prometheus_client import CollectorRegistry\n"
        "from streamqueue.health.health import Request, answer\n"
        "warnings.simplefilter('ignore')\n"
        "collecting, parent = threading.Event(), os.getpid()\n"
        "class Hanging:\n"
        "    def describe(self):\n"
        "        return []\n"
        "    def collect(self):\n"
        "        collecting.set()\n"
        "        if os.getpid() == parent:\n"
        "            threading.Event().wait()\n"
        "        return iter(())\n"
        "registry = CollectorRegistry()\n"
        "registry.register(Hanging())\n"
        "scrape = lambda: answer(Request('GET', '/metrics', {}), registry, None)\n"
        "threading.Thread(target=scrape, daemon=True).start()\n"
        "collecting.wait()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if scrape().status == 200 else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )

    # (From 3.12 on Python warns of a fork beside threads.)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    ended = subprocess.run(command, capture_output=True, timeout=60)

    assert (ended.stdout, ended.stderr) == (b"0\n", b"")


# inside a server that the program has already


@pytest.mark.usefixtures("unhurried")
def test_a_mounted_app_renders_no_form_that_a_client_made_up(
    registry: CollectorRegistry, counted: Counted
) -> None:
    app = HealthApp(registry)
    headers: list[Any] = []

    def start_response(_status: str, fields: list[tuple[str, str]]) -> None:
        headers.extend(fields)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers.extend((name.decode(), value.decode()) for name, value in message["headers"])

    async def receive() -> Any:
        return {"type": "http.request"}

    async def over_asgi() -> None:
        for version in VERSIONS[100:200]:
            accept = f"application/openmetrics-text;version={version}".encode()
            scope = {"type": "http", "method": "GET", "path": "/metrics"}
            await app.asgi({**scope, "headers": [(b"accept", accept)]}, receive, send)

    for version in VERSIONS[:100]:
        accept = f"application/openmetrics-text;version={version}"
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "HTTP_ACCEPT": accept}
        app.wsgi(environ, start_response)
    anyio.run(over_asgi)

    types = {value for name, value in headers if name.lower() == "content-type"}
    assert len(types) == counted.times == 2
