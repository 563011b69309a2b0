"""Metrics and health inside somebody else's server: uvicorn, Starlette and wsgiref."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import anyio
import prometheus_client
import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Gauge
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from streamqueue import HealthApp
from streamqueue.health.health import Health
from streamqueue.health.server import HealthServer
from tests.waiting import wait_until

PATIENCE = 10.0
"""How long a test waits for what should come at once."""

OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0"}
GZIP = {"Accept-Encoding": "gzip"}


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
    Gauge("answer", "to everything", registry=registry).set(42)
    return registry


class Response:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Response):
            return NotImplemented
        same = all(
            self.headers[name] == other.headers[name]
            for name in ("Content-Type", "Content-Length", "Content-Encoding", "Allow")
        )
        return same and (self.status, self.body) == (other.status, other.body)

    def __hash__(self) -> int:
        return hash(self.body)

    def __repr__(self) -> str:
        return f"{self.status} {self.headers.items()} {self.body!r}"


def ask(port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=headers or {})
        return Response(connection.getresponse())
    finally:
        connection.close()


@contextmanager
def uvicorn_with(app: Any, **settings: Any) -> Iterator[int]:
    """Serve an ASGI app; give the port."""
    config = uvicorn.Config(app, log_config=None, **{"lifespan": "on", **settings})
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "uvicorn has started")
            assert server.started
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def wsgiref_with(app: Any) -> Iterator[int]:
    """Serve a WSGI app, and check each of its answers against the standard; give the port."""
    with make_server("127.0.0.1", 0, validator(app), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


Serve = Callable[[HealthApp], int]


@pytest.fixture(params=["asgi", "wsgi"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(
            uvicorn_with(app.asgi) if request.param == "asgi" else wsgiref_with(app.wsgi)
        )


@pytest.fixture
def port(serve: Serve, registry: CollectorRegistry, health: Health) -> int:
    return serve(HealthApp(registry, health))


# both


@pytest.mark.parametrize("headers", [{}, GZIP, OPENMETRICS, OPENMETRICS | GZIP], ids=str)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics?name=any"),
        ("HEAD", "/metrics"),
        ("POST", "/metrics"),
        ("GET", "/healthz"),
        ("HEAD", "/healthz"),
        ("DELETE", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/"),
        ("GET", "/metrics/"),
        ("GET", "/internal/metrics"),
        ("POST", "/favicon.ico"),
    ],
)
def test_an_app_answers_as_the_server_does(
    port: int,
    registry: CollectorRegistry,
    health: Health,
    method: str,
    path: str,
    headers: dict[str, str],
) -> None:
    health.not_ready("stream", "the change stream is closed")

    with HealthServer(registry, health) as server:
        assert ask(port, path, method, headers) == ask(server.port, path, method, headers)


def test_metrics_are_those_of_the_registry(port: int) -> None:
    plain, packed = ask(port, "/metrics"), ask(port, "/metrics", headers=GZIP)

    assert plain.status == 200
    assert b"\nanswer 42.0\n" in plain.body
    assert gzip.decompress(packed.body) == plain.body


def test_head_gives_no_body(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))

    assert b"content-length: 2\r\n" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


def test_readyz_gives_the_reasons(port: int, health: Health) -> None:
    assert ask(port, "/readyz").status == 200

    health.not_ready("stream", "the change stream is closed")

    refusal = ask(port, "/readyz")
    assert refusal.status == 503
    assert json.loads(refusal.body)["reasons"] == {"stream": "the change stream is closed"}


def test_healthz_says_that_the_loop_is_stuck(port: int, clock: Clock) -> None:
    assert ask(port, "/healthz").status == 200

    clock.now += 42.5

    assert ask(port, "/healthz").status == 503


def test_a_program_that_only_puts_jobs_is_alive_and_ready(serve: Serve) -> None:
    port = serve(HealthApp())

    assert ask(port, "/healthz").body == b"ok"
    assert json.loads(ask(port, "/readyz").body) == {"ready": True}
    assert (
        ask(port, "/metrics").body.splitlines()[:2]
        == (prometheus_client.generate_latest().splitlines()[:2])
    )


def test_a_failing_collector_leaves_probes_alone(port: int, registry: CollectorRegistry) -> None:
    class Failing:
        def collect(self) -> Iterator[Any]:
            raise OSError("secret of the collector")

    registry.register(Failing())

    assert json.loads(ask(port, "/metrics").body) == {"error": "a collector failed"}
    assert ask(port, "/healthz").status == 200


# ASGI


def test_a_server_that_insists_on_the_lifespan_is_content(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")

    with uvicorn_with(HealthApp(registry).asgi, lifespan="on"):
        pass

    messages = [record.message for record in caplog.records]
    assert "Application startup complete." in messages
    assert "Application shutdown complete." in messages


def test_mounted_under_a_prefix_it_answers_below_it(registry: CollectorRegistry) -> None:
    async def home(request: Any) -> PlainTextResponse:
        return PlainTextResponse("home")

    app = Starlette(
        routes=[
            Route("/", home),
            Mount("/internal", Starlette(routes=[Mount("/queue", HealthApp(registry).asgi)])),
        ]
    )
    with uvicorn_with(app) as port:
        assert b"answer 42.0" in ask(port, "/internal/queue/metrics").body
        assert ask(port, "/internal/queue/healthz").body == b"ok"
        assert ask(port, "/internal/queue/nothing").status == 404
        assert ask(port, "/internal/queue/").status == 404
        assert ask(port, "/metrics").status == 404
        assert ask(port, "/").body == b"home"


def test_behind_a_proxy_that_takes_a_prefix_off_it_answers(registry: CollectorRegistry) -> None:
    with uvicorn_with(HealthApp(registry).asgi, root_path="/queue") as port:
        assert ask(port, "/metrics").status == 200
        assert ask(port, "/nothing").status == 404


class Talk:
    """What a server exchanges with an app, by hand."""

    def __init__(self, **scope: Any) -> None:
        self.scope: Any = {"type": "http", "method": "GET", "headers": [], **scope}
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, app: HealthApp) -> list[Any]:
        await app.asgi(self.scope, self.receive, self.send)
        return self.sent


@pytest.mark.parametrize(
    ("root_path", "path", "status"),
    [
        ("", "/metrics", 200),
        ("/", "/metrics", 200),
        ("/queue", "/queue/metrics", 200),
        ("/queue/", "/queue/metrics", 200),
        ("/queue", "/metrics", 200),  # the prefix was taken off
        ("/metrics", "/metrics/metrics", 200),
        ("/metrics", "/metrics", 200),
        ("/queue", "/queue", 404),
        ("/queue", "/queuemetrics", 404),
        ("/queue", "/queue/queue/metrics", 404),
    ],
)
async def test_the_prefix_may_be_in_the_path_or_not(
    registry: CollectorRegistry, root_path: str, path: str, status: int
) -> None:
    start, _ = await Talk(path=path, root_path=root_path).run(HealthApp(registry))

    assert start["status"] == status


async def test_an_asgi_server_gets_no_body_for_a_head(registry: CollectorRegistry) -> None:
    _, body = await Talk(method="HEAD", path="/healthz").run(HealthApp(registry))

    assert body == {"type": "http.response.body", "body": b""}


async def test_a_header_that_comes_twice_is_taken_together(registry: CollectorRegistry) -> None:
    headers = [(b"accept-encoding", b"br"), (b"Accept-Encoding", b"gzip")]

    start, _ = await Talk(path="/metrics", headers=headers).run(HealthApp(registry))

    assert (b"content-encoding", b"gzip") in start["headers"]


async def test_a_websocket_is_refused(registry: CollectorRegistry) -> None:
    sent = await Talk(type="websocket", path="/metrics").run(HealthApp(registry))

    assert sent == [{"type": "websocket.close"}]


async def test_another_protocol_is_an_error(registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="'telnet'"):
        await Talk(type="telnet").run(HealthApp(registry))


async def test_a_collector_that_hangs_blocks_neither_the_loop_nor_the_threads_of_others(
    registry: CollectorRegistry,
) -> None:
    release = threading.Event()

    class Hanging:
        collecting = 0

        def collect(self) -> Iterator[Any]:
            self.collecting += 1
            if not release.wait(PATIENCE):
                release.set()  # it failed: let the others not wait as well
            return iter(())

    hanging, app = Hanging(), HealthApp(registry)
    registry.register(hanging)
    hanging.collecting = 0  # it was asked for its names
    scrapes = [Talk(path="/metrics") for _ in range(60)]

    async with anyio.create_task_group() as tasks:
        for scrape in scrapes:
            tasks.start_soon(scrape.run, app)
        with anyio.fail_after(PATIENCE / 2):
            while not hanging.collecting:
                await anyio.lowlevel.checkpoint()
            start, _ = await Talk(path="/healthz").run(app)
            await anyio.to_thread.run_sync(lambda: None)
        in_time = not release.is_set()
        release.set()

    assert in_time
    assert start["status"] == 200
    assert {scrape.sent[0]["status"] for scrape in scrapes} == {200}


async def test_scrapes_that_wait_for_a_collector_are_turned_away_when_they_are_many(
    registry: CollectorRegistry,
) -> None:
    release = threading.Event()

    class Hanging:
        def describe(self) -> list[Any]:
            return []

        def collect(self) -> Iterator[Any]:
            release.wait(PATIENCE)
            return iter(())

    app = HealthApp(registry)
    registry.register(Hanging())
    scrapes = [Talk(path="/metrics") for _ in range(100)]

    async with anyio.create_task_group() as tasks:
        for scrape in scrapes:
            tasks.start_soon(scrape.run, app)
        await anyio.wait_all_tasks_blocked()
        try:
            with anyio.fail_after(PATIENCE / 5):
                start, body = await Talk(path="/metrics").run(app)
        finally:
            release.set()

    assert start["status"] == 503
    assert json.loads(body["body"]) == {"error": "too many scrapes at once"}
    assert {scrape.sent[0]["status"] for scrape in scrapes} == {200}
    assert (await Talk(path="/metrics").run(app))[0]["status"] == 200


def test_an_app_may_serve_one_loop_after_another(registry: CollectorRegistry) -> None:
    app = HealthApp(registry)

    for _ in range(2):
        sent = anyio.run(Talk(path="/metrics").run, app)
        assert sent[0]["status"] == 200


# WSGI


def test_a_wsgi_app_under_a_prefix_answers_below_it(registry: CollectorRegistry) -> None:
    app = HealthApp(registry)

    def site(environ: Any, start_response: Any) -> Any:
        prefix = "/internal"
        environ["SCRIPT_NAME"] = prefix
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(prefix)
        return app.wsgi(environ, start_response)

    with wsgiref_with(site) as port:
        assert b"answer 42.0" in ask(port, "/internal/metrics").body
        assert ask(port, "/internal/nothing").status == 404
