"""``/metrics``, ``/healthz`` and ``/readyz``: what a process says about itself, and its server.

The server lives in threads of its own, because a stuck event loop must still be able to say that it
is stuck. One thread accepts, one thread serves each client and hangs up after its one answer. A
client that is slow, silent or gone costs one of a bounded number of places, for a few seconds,
and delays nobody else. (prometheus_client's own server answers every path with the metrics, so a
probe of ``/healthz`` there succeeds and means nothing.)
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder

from .durations import seconds
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType
    from typing import Self

    from prometheus_client import CollectorRegistry

logger = logging.getLogger("streamqueue.health")

MAX_CLIENTS = 32
MAX_HEAD_BYTES = 8192
CLIENT_SECONDS = 5.0
"""How long a client may take to send its request, and again to take the answer."""
LINGER_SECONDS = 1.0


class Health:
    """What a worker reports about itself: whether its event loop turns, and why it is not ready.

    Ready is the absence of reasons::

        health.not_ready("stream", "the change stream is closed")
        health.clear("stream")

    Written by the event loop, readable from any thread. Reasons are served to whoever reaches the
    port, so they name no user, host or payload.

    Args:
        stall_after: seconds (or a timedelta) without a tick after which the loop counts as stuck.
            Default 10, far above any pause of a loop that is only busy. Until the first tick it
            counts from the making of this object.
        clock: a monotonic clock, in seconds.

    Raises:
        ConfigurationError: `stall_after` outside its range.
    """

    def __init__(
        self,
        *,
        stall_after: float | timedelta = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stall_after = seconds(stall_after, "Health(stall_after=)")
        self._clock = clock
        self._ticked_at = clock()
        # One writer, the event loop. Replaced and never changed, so that a reader in another thread
        # needs no lock.
        self._reasons: dict[str, str] = {}
        self._observers: list[Callable[[], None]] = []

    def observe(self, observer: Callable[[], None]) -> None:
        """Have `observer` called at every beat and every change of the reasons, in the event loop.

        It must neither block nor raise.
        """
        self._observers.append(observer)

    def _tell(self) -> None:
        for observer in self._observers:
            observer()

    def beat(self) -> None:
        """Note that the event loop turned. Call it at least every few seconds."""
        self._ticked_at = self._clock()
        self._tell()

    def alive(self) -> bool:
        """Whether the event loop turned within `stall_after` seconds. Asks no database.

        An outage of MongoDB must not make an orchestrator restart every worker.
        """
        return self.seconds_since_tick() <= self._stall_after

    def seconds_since_tick(self) -> float:
        """Return the seconds since the event loop last turned."""
        return self._clock() - self._ticked_at

    def not_ready(self, key: str, reason: str) -> None:
        """Give a reason not to be ready; the same key again replaces it."""
        self._reasons = {**self._reasons, key: reason}
        self._tell()

    def clear(self, key: str) -> None:
        """Take a reason back; one that was never given is fine."""
        self._reasons = {name: reason for name, reason in self._reasons.items() if name != key}
        self._tell()

    def draining(self) -> None:
        """Not ready any more: what runs is finished, nothing new is taken."""
        self.not_ready("draining", "finishing what runs and taking nothing new")

    def ready(self) -> bool:
        """Whether there is no reason not to be ready."""
        return not self.reasons()

    def reasons(self) -> dict[str, str]:
        """Return why this process is not ready, by key; empty when it is ready.

        A loop that is stuck cannot report anything, so that is always among the reasons.
        """
        reasons = dict(self._reasons)
        if not self.alive():
            reasons["event_loop"] = f"has not turned for {self.seconds_since_tick():.1f} seconds"
        return reasons


class HealthServer:
    """Serve the metrics and the health of this process over HTTP.

    - ``/metrics``: the registry, as Prometheus text or OpenMetrics, gzipped when asked for.
    - ``/healthz``: 200 while the event loop turns, else 503. Asks no database.
    - ``/readyz``: 200 when there is no reason not to be ready, else 503 with the reasons.

    Example::

        with HealthServer(registry, health, port=9464) as server:
            print(f"http://{server.address}/metrics")

    Args:
        registry: what ``/metrics`` shows.
        health: what ``/healthz`` and ``/readyz`` show.
        host: the address to listen on. Default 127.0.0.1: nobody else sees it unless told so.
        port: 0 to 65535. Default 0, a free one: read `port` after the start.

    Raises:
        ConfigurationError: an empty host or a port outside the range.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        # An empty host would mean every interface, and an unset variable is how one comes about.
        if not host:
            raise ConfigurationError("host= must be an address to listen on, such as 127.0.0.1")
        if not 0 <= port <= 65535:
            raise ConfigurationError(f"port= must be 0 to 65535, not {port!r}")
        self.host = host
        self.port = port
        self._registry = registry
        self._health = health
        self._asked_port = port
        self._acceptor: threading.Thread | None = None
        self._waker: socket.socket | None = None
        # The acceptor adds, a client's own thread removes.
        self._clients: set[socket.socket] = set()

    @property
    def address(self) -> str:
        """``host:port``, as it stands in a URL."""
        return _address(self.host, self.port)

    def start(self) -> None:
        """Listen and return at once; a server that is started already is left as it is.

        Raises:
            ConfigurationError: nothing can listen on the address: it is in use, not this machine's,
                or not allowed. The message says which.
        """
        if self._acceptor is not None:
            return
        listener = _listen(self.host, self._asked_port)
        self.port = listener.getsockname()[1]
        stopped, self._waker = socket.socketpair()
        # Here and not in the thread: once started, it needs no further file descriptor to go on.
        selector = selectors.DefaultSelector()
        selector.register(stopped, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        self._acceptor = threading.Thread(
            target=self._accept,
            args=(selector, listener, stopped),
            name="streamqueue-health",
            daemon=True,
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Close the port and hang up on every client; safe to call twice, or without a start."""
        if self._acceptor is None or self._waker is None:
            return
        self._waker.close()
        self._acceptor.join()
        self._acceptor = self._waker = None
        for client in list(self._clients):
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:  # it left on its own
                pass

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _accept(
        self, selector: selectors.BaseSelector, listener: socket.socket, stopped: socket.socket
    ) -> None:
        with selector, listener, stopped:
            while all(key.fileobj is not stopped for key, _ in selector.select()):
                try:
                    client, _ = listener.accept()
                except (BlockingIOError, ConnectionAbortedError):  # it left before its turn
                    continue
                except OSError:
                    # Out of file descriptors, say. The listener stays readable, and trying again
                    # at once would take a whole core, so look away for a moment.
                    selector.unregister(listener)
                    selector.select(0.1)
                    selector.register(listener, selectors.EVENT_READ)
                    continue
                self._admit(client)

    def _admit(self, client: socket.socket) -> None:
        if len(self._clients) < MAX_CLIENTS:
            self._clients.add(client)
            try:
                threading.Thread(
                    target=self._serve,
                    args=(client,),
                    name="streamqueue-health-client",
                    daemon=True,
                ).start()
            except RuntimeError:  # no thread to be had
                self._clients.discard(client)
            else:
                return
        busy = _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many connections"})
        with client:
            client.setblocking(False)  # the acceptor waits for nobody
            try:
                client.send(busy.encode())
            except OSError:
                pass

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                request = _read_request(client)
                answer = self._answer(request)
                without_body = isinstance(request, _Request) and request.method == "HEAD"
                client.settimeout(CLIENT_SECONDS)
                client.sendall(answer.encode(without_body=without_body))
                _linger(client)
            except OSError:  # it left, or took too long, or we are stopping: nobody to tell
                pass
            finally:
                # Before the close, so that whoever sees the connection end finds the place free.
                self._clients.discard(client)

    def _answer(self, request: _Request | HTTPStatus) -> _Answer:
        if isinstance(request, HTTPStatus):
            return _json(request, {"error": request.phrase.lower()})
        routes = {"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz}
        route = routes.get(request.path)
        if route is None:
            return _json(HTTPStatus.NOT_FOUND, {"error": "not found", "paths": sorted(routes)})
        if request.method not in {"GET", "HEAD"}:
            return _json(
                HTTPStatus.METHOD_NOT_ALLOWED,
                {"error": "method not allowed"},
                ("Allow: GET, HEAD",),
            )
        return route(request.headers)

    def _metrics(self, headers: dict[str, str]) -> _Answer:
        accept = headers.get("accept", "")
        if _ODD_VERSION.search(accept):
            accept = ""
        encode, content_type = choose_encoder(accept)
        try:
            body = encode(self._registry)
        except Exception:
            logger.exception("Failed to collect the metrics")
            return _json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "a collector failed"})
        if not _wants_gzip(headers.get("accept-encoding", "")):
            return _Answer(HTTPStatus.OK, content_type, body)
        return _Answer(
            HTTPStatus.OK, content_type, gzip.compress(body), ("Content-Encoding: gzip",)
        )

    def _healthz(self, _headers: dict[str, str]) -> _Answer:
        if self._health.alive():
            return _Answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok")
        silence = round(self._health.seconds_since_tick(), 3)
        return _json(
            HTTPStatus.SERVICE_UNAVAILABLE, {"alive": False, "seconds_since_tick": silence}
        )

    def _readyz(self, _headers: dict[str, str]) -> _Answer:
        reasons = self._health.reasons()
        if not reasons:
            return _json(HTTPStatus.OK, {"ready": True})
        return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "reasons": reasons})


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[str, ...] = ()

    def encode(self, *, without_body: bool = False) -> bytes:
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(self.body)}",
            *self.headers,
            "Connection: close",
            "\r\n",
        )
        return "\r\n".join(head).encode("latin-1") + (b"" if without_body else self.body)


def _json(status: HTTPStatus, content: object, headers: tuple[str, ...] = ()) -> _Answer:
    return _Answer(status, "application/json", json.dumps(content).encode(), headers)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=MAX_CLIENTS)
    except (socket.gaierror, UnicodeError) as error:
        raise _cannot_listen(host, port, "no such host") from error
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise _cannot_listen(host, port, reason) from error
    listener.setblocking(False)
    return listener


def _cannot_listen(host: str, port: int, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot serve metrics and health on {_address(host, port)}, {reason}: choose another "
        "host= or port= (a worker's metrics_host= and metrics_port=; port 0 takes a free one)"
    )


# The encoders compare versions number by number and raise TypeError on anything else (0.26).
_ODD_VERSION = re.compile(r"version=(?!\d{1,3}(\.\d{1,3}){0,2}\s*([;,]|$))", re.ASCII)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def _read_request(client: socket.socket) -> _Request | HTTPStatus:
    """Return the request without its body, or the status that refuses it."""
    deadline = time.monotonic() + CLIENT_SECONDS
    head = b""
    while (end := _BLANK_LINE.search(head)) is None:
        if len(head) >= MAX_HEAD_BYTES:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        received = _receive(client, deadline)
        if not received:
            raise ConnectionAbortedError("the client left within its request")
        head += received
    first, *lines = head[: end.start()].splitlines() or [b""]
    match first.decode("latin-1").split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0"]:
            pairs = (line.decode("latin-1").partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            return _Request(method, target.partition("?")[0], headers)
    return HTTPStatus.BAD_REQUEST


def _receive(client: socket.socket, deadline: float) -> bytes:
    # A timeout for the whole, not for each read: a byte every few seconds would hold on for ever.
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    client.settimeout(left)
    return client.recv(MAX_HEAD_BYTES)


def _linger(client: socket.socket) -> None:
    """Let the client hang up first: a close with bytes unread makes the kernel drop the answer."""
    client.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + LINGER_SECONDS
    while _receive(client, deadline):
        pass


def _wants_gzip(accept_encoding: str) -> bool:
    for accepted in accept_encoding.lower().split(","):
        coding, *parameters = accepted.replace(" ", "").split(";")
        if coding == "gzip":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
