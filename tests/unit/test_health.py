from __future__ import annotations

import gzip
import http.client
import json
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from streamqueue.errors import ConfigurationError
from streamqueue.health import renderings
from streamqueue.health import server as module
from streamqueue.health.health import Health, Request, answer
from streamqueue.health.server import HealthServer
from streamqueue.metrics.series import Metrics
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

PATIENCE = 10.0
"""How long a test waits for what should come at once."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock=clock)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = Metrics.of(registry)
    metrics.producer("emails")
    metrics.consumer("emails", "send")
    metrics.stream.connected.set(0)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry, health: Health) -> Iterator[HealthServer]:
    with HealthServer(registry, health) as server:
        yield server


class Response:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        assert self.headers["Content-Type"] == "application/json"
        return json.loads(self.body)


def ask(
    server: HealthServer,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Response:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        return Response(connection.getresponse())
    finally:
        connection.close()


def connect(server: HealthServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=PATIENCE)


def everything(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def say(server: HealthServer, request: bytes) -> bytes:
    with connect(server) as client:
        client.sendall(request)
        return everything(client)


def still_open(client: socket.socket) -> bool:
    return not select.select([client], [], [], 0)[0]


def wait_for_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("streamqueue-health"):
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_loop_that_turned_lately_is_alive(health: Health, clock: Clock) -> None:
    clock.now += 8
    health.beat()
    clock.now += 10

    assert health.alive()
    assert health.seconds_since_tick() == 10


def test_a_loop_that_stopped_turning_is_not_alive_until_it_turns_again(
    health: Health, clock: Clock
) -> None:
    health.beat()
    clock.now += 10.1

    assert not health.alive()

    health.beat()

    assert health.alive()


def test_a_loop_that_never_turned_has_the_same_time_to_begin(health: Health, clock: Clock) -> None:
    assert health.alive()

    clock.now += 10.1

    assert not health.alive()


def test_the_patience_with_the_loop_can_be_set(clock: Clock) -> None:
    health = Health(stall_after=timedelta(seconds=2), clock=clock)

    clock.now += 2.5

    assert not health.alive()
    with pytest.raises(ConfigurationError, match="stall_after"):
        Health(stall_after=-1)


def test_ready_is_the_absence_of_reasons(health: Health) -> None:
    assert health.ready()
    health.clear("never given")

    health.not_ready("stream", "the change stream is closed")
    health.not_ready("database", "no answer")
    health.not_ready("database", "no answer for 20 seconds")

    assert not health.ready()
    assert health.reasons() == {
        "stream": "the change stream is closed",
        "database": "no answer for 20 seconds",
    }

    health.clear("stream")
    health.clear("database")

    assert health.ready()
    assert health.reasons() == {}


def test_a_process_that_drains_is_alive_and_not_ready(health: Health) -> None:
    health.draining()

    assert health.alive()
    assert list(health.reasons()) == ["draining"]


def test_a_stuck_loop_is_not_ready(health: Health, clock: Clock) -> None:
    clock.now += 12.34

    assert health.reasons() == {"event_loop": "has not turned for 12.3 seconds"}


def test_reasons_that_were_handed_out_do_not_change(health: Health) -> None:
    health.not_ready("stream", "closed")
    before = health.reasons()

    health.clear("stream")
    before["mine"] = "to change"

    assert before == {"stream": "closed", "mine": "to change"}
    assert health.ready()


def test_healthz_is_ok_while_the_loop_turns(server: HealthServer) -> None:
    response = ask(server, "/healthz")

    assert (response.status, response.body) == (200, b"ok")


def test_healthz_says_for_how_long_the_loop_is_stuck(server: HealthServer, clock: Clock) -> None:
    clock.now += 42.5

    response = ask(server, "/healthz")

    assert response.status == 503
    assert response.json() == {"alive": False, "seconds_since_tick": 42.5}


def test_healthz_does_not_mind_a_process_that_is_not_ready(
    server: HealthServer, health: Health
) -> None:
    health.not_ready("database", "no answer")

    assert ask(server, "/healthz").status == 200


def test_readyz_gives_the_reasons(server: HealthServer, health: Health) -> None:
    response = ask(server, "/readyz")
    assert (response.status, response.json()) == (200, {"ready": True})

    health.not_ready("stream", "the change stream is closed")

    response = ask(server, "/readyz")
    assert response.status == 503
    assert response.json() == {
        "ready": False,
        "reasons": {"stream": "the change stream is closed"},
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH")
def test_promtool_accepts_a_scrape(server: HealthServer) -> None:
    response = ask(server, "/metrics")

    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=response.body, capture_output=True, timeout=60
    )

    assert b"streamqueue_job_wait_seconds_bucket" in response.body
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_others_get_the_interpreter_while_the_metrics_are_rendered() -> None:
    registry = CollectorRegistry()
    began, met, switching = threading.Event(), threading.Event(), sys.getswitchinterval()

    class Family(Collector):
        def collect(self) -> Iterator[Metric]:
            began.set()
            yield GaugeMetricFamily("met", "1 once the other thread has run.", met.is_set())

    def wait() -> None:
        began.wait()
        met.set()

    for _ in range(200):
        registry.register(Family())
    other = threading.Thread(target=wait)
    other.start()
    sys.setswitchinterval(60)  # nobody is interrupted
    try:
        answered = answer(Request("GET", "/metrics", {}), registry, None)
    finally:
        sys.setswitchinterval(switching)
        other.join()

    assert b"met 1.0" in answered.body


def scraped(registry: CollectorRegistry, **headers: str) -> float:
    """The value of the gauge on the registry, as a scrape has it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answered = answer(Request("GET", "/metrics", named), registry, None)
    body = gzip.decompress(answered.body) if "accept-encoding" in named else answered.body
    return float(body.split(b"\ndepth ")[1].split()[0])


@pytest.mark.parametrize(
    "headers", [{}, {"accept_encoding": "gzip"}, {"accept": "application/openmetrics-text"}]
)
def test_many_scrapes_in_a_second_cost_one_rendering(headers: dict[str, str]) -> None:
    registry = CollectorRegistry()
    depth = Gauge("depth", "Its value says when it was rendered.", registry=registry)

    values = []
    for value in range(20):
        depth.set(value)
        values.append(scraped(registry, **headers))

    assert len(set(values)) <= 2  # a second may end in between


def test_a_rendering_is_good_for_less_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert renderings.KEPT_SECONDS < 1  # whoever scrapes every second never sees a value twice
    monkeypatch.setattr(renderings, "KEPT_SECONDS", 0.05)
    registry = CollectorRegistry()
    depth = Gauge("depth", "Its value says when it was rendered.", registry=registry)
    assert scraped(registry) == 0

    depth.set(1)

    wait_until(lambda: scraped(registry) == 1, "it is rendered anew")


def test_each_registry_has_a_rendering_of_its_own() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Gauge("depth", "One.", registry=first).set(1)
    Gauge("depth", "Two.", registry=second).set(2)

    assert (scraped(first), scraped(second), scraped(first)) == (1, 2, 1)


def test_metrics_are_prometheus_text_unless_asked_otherwise(server: HealthServer) -> None:
    response = ask(server, "/metrics?name=any")

    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert response.headers["Content-Encoding"] is None
    assert int(response.headers["Content-Length"]) == len(response.body)
    assert b"# EOF" not in response.body


def test_metrics_are_openmetrics_when_asked(server: HealthServer) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"

    response = ask(server, "/metrics", headers={"Accept": accept})

    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0")
    read = text_string_to_metric_families(response.body.decode())  # type: ignore[no-untyped-call]
    assert "streamqueue_attempts" in {family.name for family in read}


@pytest.mark.parametrize("version", ["new", "1.x", "2.x", '"1.0.0"', "1.0.0 x", "9" * 5000, ""])
def test_a_version_that_is_no_number_gets_the_plain_text(
    server: HealthServer, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    accept = f"application/openmetrics-text;version={version},text/plain"

    response = ask(server, "/metrics", headers={"Accept": accept})

    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert caplog.records == []


@pytest.mark.parametrize("accepted", ["gzip", "deflate, GZip;q=0.5", "br, gzip ; q=1.0"])
def test_metrics_are_gzipped_when_asked(server: HealthServer, accepted: str) -> None:
    response = ask(server, "/metrics", headers={"Accept-Encoding": accepted})

    assert response.headers["Content-Encoding"] == "gzip"
    assert int(response.headers["Content-Length"]) == len(response.body)
    assert b"streamqueue_build_info" in gzip.decompress(response.body)


@pytest.mark.parametrize("accepted", ["", "identity", "deflate", "gzip;q=0", "gzip; q=0.00"])
def test_metrics_are_not_gzipped_when_not_asked(server: HealthServer, accepted: str) -> None:
    response = ask(server, "/metrics", headers={"Accept-Encoding": accepted})

    assert response.headers["Content-Encoding"] is None
    assert response.body.startswith(b"# HELP")


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_head_gives_the_headers_without_the_body(server: HealthServer, path: str) -> None:
    answer = say(server, f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 0" not in head
    assert body == b""


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/healthz/../metrics", "*"])
def test_any_other_path_is_not_found(server: HealthServer, path: str) -> None:
    response = ask(server, path)

    assert response.status == 404
    assert response.json() == {
        "error": "not found",
        "paths": ["/healthz", "/metrics", "/readyz"],
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_any_other_method_is_not_allowed(server: HealthServer, method: str) -> None:
    response = ask(server, "/metrics", method=method, body=b"x" * 100_000)

    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert response.json() == {"error": "method not allowed"}


@pytest.mark.parametrize(
    "request_line", [b"", b"nonsense", b"GET /healthz", b"GET /healthz HTTP/3", b"\xff \xff \xff"]
)
def test_what_is_no_request_is_refused(server: HealthServer, request_line: bytes) -> None:
    answer = say(server, request_line + b"\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_request_typed_by_hand_is_understood(server: HealthServer) -> None:
    assert say(server, b"GET /healthz HTTP/1.0\n\n").endswith(b"\r\n\r\nok")


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: "])
def test_a_request_that_goes_on_and_on_is_refused(server: HealthServer, start: bytes) -> None:
    answer = say(server, start + b"x" * 100_000)

    assert answer.startswith(b"HTTP/1.1 431 ")


def test_silent_and_slow_clients_delay_nobody(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 6 * PATIENCE)
    with connect(server) as silent, connect(server) as half, connect(server) as late:
        half.sendall(b"GET /met")
        late.sendall(b"GET /metrics HTTP/1.1\r\nHost:")

        assert ask(server, "/metrics").status == 200
        assert ask(server, "/healthz").status == 200
        assert still_open(silent)
        assert still_open(half)
        assert still_open(late)


def test_a_client_that_does_not_read_delays_nobody(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 6 * PATIENCE)
    registry = CollectorRegistry()
    Gauge("large", "x" * 16_000_000, registry=registry)  # more than the sockets hold
    with HealthServer(registry, health) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(PATIENCE)
        deaf.connect((server.host, server.port))
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert deaf.recv(5) == b"HTTP/"

        assert ask(server, "/metrics").status == 200
        assert ask(server, "/healthz").status == 200
        assert len(everything(deaf)) > 16_000_000


def test_a_silent_client_is_hung_up_on(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.05)

    with connect(server) as silent:
        assert everything(silent) == b""
        assert len(server._places) == 0


def test_a_client_that_drips_is_hung_up_on(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.2)

    with connect(server) as dripping:
        for _ in range(int(PATIENCE / 0.02)):
            dripping.sendall(b"x")
            if select.select([dripping], [], [], 0.02)[0]:
                break

        assert not still_open(dripping)


def test_out_of_file_descriptors_it_waits_for_one_without_spinning() -> None:
    program = (
        "import os, resource, select, socket, time\n"
        "from prometheus_client import CollectorRegistry\n"
        "from streamqueue.health.health import Health\n"
        "from streamqueue.health.server import HealthServer\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "with HealthServer(CollectorRegistry(), Health()) as server, socket.socket() as client:\n"
        "    taken = []\n"
        "    try:\n"
        "        while True:\n"
        "            taken.append(os.open(os.devnull, os.O_RDONLY))\n"
        "    except OSError:\n"
        "        pass\n"
        "    client.connect((server.host, server.port))\n"
        "    client.sendall(b'GET /healthz HTTP/1.0\\r\\n\\r\\n')\n"
        "    used = time.process_time()\n"
        "    assert not select.select([client], [], [], 0.5)[0]\n"
        "    assert time.process_time() - used < 0.25\n"
        "    for number in taken:\n"
        "        os.close(number)\n"
        "    client.settimeout(10)\n"
        "    print(client.recv(15))\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)

    assert (ended.stdout, ended.stderr) == (b"b'HTTP/1.1 200 OK'\n", b"")


def test_without_a_thread_to_be_had_a_client_is_turned_away(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with connect(server) as client:
            assert everything(client).startswith(b"HTTP/1.1 503 ")

    assert len(server._places) == 0
    assert ask(server, "/healthz").status == 200


def test_many_clients_at_once_are_all_served(server: HealthServer) -> None:
    together = threading.Barrier(16)
    statuses: list[int] = []

    def scrape() -> None:
        together.wait()
        statuses.append(ask(server, "/metrics").status)

    threads = [threading.Thread(target=scrape) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert statuses == [200] * 16


def test_nothing_is_printed_when_clients_come_and_go(
    server: HealthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    reset_on_close = struct.pack("ii", 1, 0)
    for request in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
            client.sendall(request)
    ask(server, "/metrics")
    ask(server, "/nothing")
    server.stop()
    wait_for_threads()

    assert capfd.readouterr() == ("", "")


def test_a_failing_collector_is_logged_and_leaves_the_probes_alone(
    server: HealthServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def collect(self) -> Iterator[Any]:
            raise OSError("secret of the collector")

    registry.register(Failing())

    response = ask(server, "/metrics")

    assert response.status == 500
    assert response.json() == {"error": "a collector failed"}
    assert [record.message for record in caplog.records] == ["Failed to collect the metrics"]
    assert ask(server, "/healthz").status == 200


def test_a_collector_that_hangs_leaves_the_probes_alone(
    server: HealthServer, registry: CollectorRegistry
) -> None:
    collecting, done = threading.Event(), threading.Event()

    class Hanging:
        def collect(self) -> Iterator[Any]:
            collecting.set()
            done.wait(PATIENCE)
            return iter(())

    registry.register(Hanging())
    with connect(server) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert collecting.wait(PATIENCE)

        assert ask(server, "/healthz").status == 200
        assert still_open(client)

        done.set()
        assert everything(client).startswith(b"HTTP/1.1 200 OK")


def test_it_listens_on_loopback_at_a_free_port_unless_told_otherwise(
    server: HealthServer,
) -> None:
    assert server.host == "127.0.0.1"
    assert server.port > 0
    assert server.address == f"127.0.0.1:{server.port}"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_it_can_listen_on_ipv6(registry: CollectorRegistry, health: Health) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")

    with HealthServer(registry, health, host="::1") as server:
        assert server.address == f"[::1]:{server.port}"
        assert ask(server, "/healthz").body == b"ok"


def test_a_port_in_use_is_named_with_the_option_to_change_it(
    server: HealthServer, registry: CollectorRegistry, health: Health
) -> None:
    second = HealthServer(registry, health, port=server.port)

    with pytest.raises(ConfigurationError) as raised:
        second.start()

    assert str(raised.value) == (
        f"cannot serve metrics and health on 127.0.0.1:{server.port}, address already in use: "
        "choose another host= or port= (a worker's metrics_host= and metrics_port=, or "
        "--metrics-host and --metrics-port; port 0 takes a free one)"
    )
    second.stop()
    assert ask(server, "/healthz").status == 200


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("", 0, "host="),
        (
            "127.0.0.1",
            65536,
            "port= must be 0 to 65535, not 65536",
        ),
        (
            "127.0.0.1",
            -1,
            "port= must be 0 to 65535, not -1",
        ),
        ("192.0.2.1", 0, "192.0.2.1:0, cannot assign requested address"),
        ("x" * 70, 0, "no such host"),
    ],
)
def test_an_address_nobody_can_listen_on_is_refused(
    registry: CollectorRegistry, health: Health, host: str, port: int, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HealthServer(registry, health, host=host, port=port).start()


def test_stop_closes_the_port_and_hangs_up(registry: CollectorRegistry, health: Health) -> None:
    server = HealthServer(registry, health)
    server.stop()
    server.start()
    server.start()
    with connect(server) as silent:
        assert ask(server, "/healthz").status == 200

        server.stop()
        server.stop()

        assert everything(silent) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(server)
    wait_for_threads()


def test_a_stopped_server_can_start_again_at_the_same_port(
    server: HealthServer, registry: CollectorRegistry, health: Health
) -> None:
    ask(server, "/healthz")
    server.stop()

    with HealthServer(registry, health, port=server.port) as again:
        assert ask(again, "/healthz").status == 200
    server.start()
    assert ask(server, "/healthz").status == 200


def test_a_running_server_does_not_keep_the_process_alive() -> None:
    program = (
        "import socket\n"
        "from prometheus_client import CollectorRegistry\n"
        "from streamqueue.health.health import Health\n"
        "from streamqueue.health.server import HealthServer\n"
        "server = HealthServer(CollectorRegistry(), Health())\n"
        "server.start()\n"
        "client = socket.create_connection((server.host, server.port))\n"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_a_blocked_event_loop_can_still_be_asked(server: HealthServer, clock: Clock) -> None:
    """This thread, where a loop would run, does nothing at all while somebody else asks."""
    program = (
        "import sys, urllib.request\n"
        "try:\n"
        "    urllib.request.urlopen(sys.argv[1], timeout=10)\n"
        "except urllib.error.HTTPError as error:\n"
        "    print(error.code)\n"
    )
    clock.now += 60

    asked = subprocess.run(
        [sys.executable, "-c", program, f"http://{server.address}/healthz"],
        capture_output=True,
        timeout=60,
        check=True,
    )

    assert asked.stdout == b"503\n"
