"""The server of ``/metrics``, ``/healthz`` and ``/readyz``.

It lives in threads of its own, because a stuck event loop must still be able to say that it is
stuck. One thread accepts, one thread serves each client and hangs up after its one answer. A client
that is slow, silent or gone costs one of a bounded number of places, for a few seconds, and delays
nobody else.

The servers that there are do not serve here. prometheus_client's own answers every path with the
metrics, so a probe of ``/healthz`` there succeeds and means nothing; and it shakes hands over TLS
where it accepts, so one silent client stops every scrape. uvicorn's TLS is asyncio's, which hangs
up on a client whose certificate it refuses without the alert that says so, and shows nobody the
clients that have not shaken hands yet, so no limit can be set to them; and it takes 0.2 seconds to
stop.
"""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from .. import plain
from ..errors import ConfigurationError
from .certificates import Certificates
from .connection import Connection, SecureConnection
from .health import Health, Request, answer
from .http import encoded, read_request, refusal
from .places import MAX_CLIENTS, Place, Places, owner

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .certificates import StrPath

logger = plain.logger("streamqueue.health")

BACKLOG = 1024
"""How many may come at once. Whoever finds no room there tries again after a second, which is all
the time that a probe has."""
MAX_SCRAPES = 16
"""How many scrapes are answered at once. More threads than these do not wait for a collector."""
CLIENT_SECONDS = 5.0
"""How long a client may take until it has sent its request, the handshake included, and again to
take the answer."""
LINGER_SECONDS = 1.0


class HealthServer:
    """Serve the metrics and the health of this process over HTTP, or HTTPS with a certificate.

    - ``/metrics``: the registry, as Prometheus text or OpenMetrics, gzipped when asked for.
    - ``/healthz``: 200 while the event loop turns, else 503. Asks no database.
    - ``/readyz``: 200 when there is no reason not to be ready, else 503 with the reasons.

    It has 64 places for clients, and 16 for those of one address. A newcomer always gets one: when
    all are taken, the client is hung up on that has been silent longest.

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
        # The acceptor gives one, a client's own thread takes it back.
        self._places = Places()
        self._scrapes = threading.BoundedSemaphore(MAX_SCRAPES)

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
        self._places.clear()

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
                newcomers: list[Place] = []
                try:
                    # All before the first is served: a probe may stand behind a crowd.
                    while len(newcomers) < MAX_CLIENTS:
                        client, address = listener.accept()
                        place = self._places.take(client, owner(address))
                        if place is None:
                            self._turn_away(client)
                        else:
                            newcomers.append(place)
                except (BlockingIOError, ConnectionAbortedError):  # no more, or it left already
                    pass
                except OSError:
                    # Out of file descriptors, say. The listener stays readable, and trying again
                    # at once would take a whole core, so look away for a moment.
                    selector.unregister(listener)
                    selector.select(0.1)
                    selector.register(listener, selectors.EVENT_READ)
                for place in newcomers:
                    self._begin(place)

    def _begin(self, place: Place) -> None:
        if place not in self._places:  # others came behind it
            return
        place.is_begun = True
        try:
            threading.Thread(
                target=self._serve,
                args=(place,),
                name="streamqueue-health-client",
                daemon=True,
            ).start()
        except RuntimeError:  # no thread to be had
            self._places.free(place)
            self._turn_away(place.socket)

    def _turn_away(self, client: socket.socket) -> None:
        with client:
            if self._certificates is not None:
                return  # to say so in TLS would take a handshake
            client.setblocking(False)  # the acceptor waits for nobody
            try:
                refused = refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
                client.send(b"".join(refused))
            except OSError:
                pass

    def _serve(self, place: Place) -> None:
        with place.socket:
            place.is_served = False
            try:
                deadline = time.monotonic() + CLIENT_SECONDS
                connection = self._connect(place, deadline)
                request = read_request(connection, deadline)
                with place.served():
                    response = self._respond(request)
                connection.send(*response, time.monotonic() + CLIENT_SECONDS)
                connection.hang_up(time.monotonic() + LINGER_SECONDS)
            except OSError:  # it left, or took too long, or we are stopping: nobody to tell
                pass
            finally:
                # Before the close, so that whoever sees the connection end finds the place free.
                self._places.free(place)

    def _connect(self, place: Place, deadline: float) -> Connection:
        if self._certificates is None:
            return Connection(place)
        connection = SecureConnection(place, self._certificates.context())
        try:
            connection.shake_hands(deadline)
        except ssl.SSLError as error:
            logger.debug(
                "Refused a TLS client: %s",
                error,
                extra={"event": "client_refused", "error": type(error).__name__},
            )
            plain = Connection(place)
            if error.reason == "HTTP_REQUEST":
                advice = "this port speaks TLS: ask it with https://"
                plain.send(*refusal(HTTPStatus.BAD_REQUEST, advice), deadline)
            plain.hang_up(time.monotonic() + LINGER_SECONDS)
            raise
        return connection

    def _respond(self, request: Request | HTTPStatus) -> tuple[bytes, bytes]:
        if isinstance(request, HTTPStatus):
            return refusal(request, request.phrase.lower())
        if request.path != "/metrics":
            return self._answer(request)
        if not self._scrapes.acquire(blocking=False):
            return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many scrapes at once")
        try:
            return self._answer(request)
        finally:
            self._scrapes.release()

    def _answer(self, request: Request) -> tuple[bytes, bytes]:
        content = answer(request, self._registry, self._health)
        return encoded(content, without_body=request.method == "HEAD")


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


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
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
