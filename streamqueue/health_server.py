"""The server of ``/metrics``, ``/healthz`` and ``/readyz``.

It lives in threads of its own, because a stuck event loop must still be able to say that it is
stuck. One thread accepts, one thread serves each client and hangs up after its one answer. A client
that is slow, silent or gone costs one of a bounded number of places, for a few seconds, and delays
nobody else. (prometheus_client's own server answers every path with the metrics, so a probe of
``/healthz`` there succeeds and means nothing; and it shakes hands over TLS where it accepts, so one
silent client stops every scrape.)
"""

from __future__ import annotations

import logging
import os
import re
import selectors
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from .certificates import Certificates
from .errors import ConfigurationError
from .health import Answer, Health, Request, answer, json_answer
from .health_connection import Connection, SecureConnection

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .certificates import StrPath

logger = logging.getLogger("streamqueue.health")

MAX_CLIENTS = 32
MAX_HEAD_BYTES = 8192
CLIENT_SECONDS = 5.0
"""How long a client may take until it has sent its request, the handshake included, and again to
take the answer."""
LINGER_SECONDS = 1.0


class HealthServer:
    """Serve the metrics and the health of this process over HTTP, or HTTPS with a certificate.

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
        certfile: serve TLS 1.2 or newer with this certificate, a PEM file with those between it and
            the root. Read again when it changes, as the two below. Default: plain HTTP.
        keyfile: its private key, a PEM file without a passphrase. None when `certfile` has it too.
        client_ca: let in only clients with a certificate of one of the authorities in this PEM
            file. Default: anybody.

    Raises:
        ConfigurationError: an empty host, a port outside the range, a file that cannot be used, a
            key that is not the certificate's, or one of these without a certificate.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certfile: StrPath | None = None,
        keyfile: StrPath | None = None,
        client_ca: StrPath | None = None,
    ) -> None:
        # An empty host would mean every interface, and an unset variable is how one comes about.
        if not host:
            raise ConfigurationError(
                "host= must be an address to listen on, such as 127.0.0.1 (a worker's "
                "metrics_host=, or --metrics-host)"
            )
        if not 0 <= port <= 65535:
            raise ConfigurationError(
                f"port= must be 0 to 65535, not {port!r} (a worker's metrics_port=, or "
                "--metrics-port)"
            )
        self.host = host
        self.port = port
        self._registry = registry
        self._health = health
        self._asked_port = port
        self._certificates: Certificates | None = None
        if certfile is not None:
            self._certificates = Certificates(certfile, keyfile, client_ca)
        elif keyfile is not None or client_ca is not None:
            alone = "keyfile= (--metrics-key)"
            if keyfile is None:
                alone = "client_ca= (--metrics-client-ca)"
            raise ConfigurationError(
                f"{alone} goes with certfile=: give the server's certificate too (a worker's "
                "metrics_cert=, or --metrics-cert), or neither for plain HTTP"
            )
        self._acceptor: threading.Thread | None = None
        self._waker: socket.socket | None = None
        # The acceptor adds, a client's own thread removes.
        self._clients: set[socket.socket] = set()

    @property
    def address(self) -> str:
        """``host:port``, as it stands in a URL."""
        return _address(self.host, self.port)

    @property
    def url(self) -> str:
        """The address as a URL, without a path."""
        return f"{'http' if self._certificates is None else 'https'}://{self.address}"

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
        with client:
            if self._certificates is not None:
                return  # to say so in TLS would take a handshake
            client.setblocking(False)  # the acceptor waits for nobody
            try:
                client.send(_refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"))
            except OSError:
                pass

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                deadline = time.monotonic() + CLIENT_SECONDS
                connection = self._connect(client, deadline)
                response = self._respond(_read_request(connection, deadline))
                connection.send(response, time.monotonic() + CLIENT_SECONDS)
                connection.hang_up(time.monotonic() + LINGER_SECONDS)
            except OSError:  # it left, or took too long, or we are stopping: nobody to tell
                pass
            finally:
                # Before the close, so that whoever sees the connection end finds the place free.
                self._clients.discard(client)

    def _connect(self, client: socket.socket, deadline: float) -> Connection:
        if self._certificates is None:
            return Connection(client)
        connection = SecureConnection(client, self._certificates.context())
        try:
            connection.shake_hands(deadline)
        except ssl.SSLError as error:
            logger.debug(
                "Refused a TLS client: %s",
                error,
                extra={"event": "client_refused", "error": type(error).__name__},
            )
            plain = Connection(client)
            if error.reason == "HTTP_REQUEST":
                advice = "this port speaks TLS: ask it with https://"
                plain.send(_refusal(HTTPStatus.BAD_REQUEST, advice), deadline)
            plain.hang_up(time.monotonic() + LINGER_SECONDS)
            raise
        return connection

    def _respond(self, request: Request | HTTPStatus) -> bytes:
        if isinstance(request, HTTPStatus):
            return _refusal(request, request.phrase.lower())
        without_body = request.method == "HEAD"
        return _encode(answer(request, self._registry, self._health), without_body=without_body)


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where a process is to serve its metrics and health.

    Attributes:
        port: as a HealthServer's; None, the default, does not serve.
        host: as a HealthServer's.
        cert: its `certfile`.
        key: its `keyfile`.
        client_ca: as a HealthServer's.
    """

    port: int | None = None
    host: str = "127.0.0.1"
    cert: StrPath | None = None
    key: StrPath | None = None
    client_ca: StrPath | None = None

    def serve(self, registry: CollectorRegistry, health: Health) -> HealthServer | None:
        """Start a server there and return it; None without a port.

        Raises:
            ConfigurationError: as HealthServer and its start do.
        """
        server = self._server(registry, health)
        if server is not None:
            server.start()
        return server

    def check(self) -> None:
        """Find what is wrong with the address and the files now, before anything is begun.

        Whether the port is free shows only when it is served on.

        Raises:
            ConfigurationError: as HealthServer does.
        """
        self._server(CollectorRegistry(), Health())

    def _server(self, registry: CollectorRegistry, health: Health) -> HealthServer | None:
        if self.port is None:
            return None
        return HealthServer(
            registry,
            health,
            host=self.host,
            port=self.port,
            certfile=self.cert,
            keyfile=self.key,
            client_ca=self.client_ca,
        )


def _encode(content: Answer, *, without_body: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {content.status.value} {content.status.phrase}",
        *(f"{name}: {value}" for name, value in content.headers),
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(head).encode("latin-1") + (b"" if without_body else content.body)


def _refusal(status: HTTPStatus, reason: str) -> bytes:
    return _encode(json_answer(status, {"error": reason}))


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
        "host= or port= (a worker's metrics_host= and metrics_port=, or --metrics-host and "
        "--metrics-port; port 0 takes a free one)"
    )


_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def _read_request(connection: Connection, deadline: float) -> Request | HTTPStatus:
    """Return the request without its body, or the status that refuses it."""
    head = b""
    while (end := _BLANK_LINE.search(head)) is None:
        if len(head) >= MAX_HEAD_BYTES:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        received = connection.receive(deadline)
        if not received:
            raise ConnectionAbortedError("the client left within its request")
        head += received
    first, *lines = head[: end.start()].splitlines() or [b""]
    match first.decode("latin-1").split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0"]:
            pairs = (line.decode("latin-1").partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            return Request(method, target.partition("?")[0], headers)
    return HTTPStatus.BAD_REQUEST
