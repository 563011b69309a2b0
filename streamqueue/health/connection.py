"""A client's connection, plain or TLS, where nothing takes longer than its deadline.

A timeout is for the whole of a step, not for each read: with a byte every few seconds a client
would hold on for ever. Deadlines are times of the monotonic clock; past one, TimeoutError is
raised. All else that can go wrong with a client is an OSError too, as TLS errors are.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .places import Place

MAX_BYTES = 8192
"""The most that is received at once."""
PIECE_BYTES = 65536
"""The most that is sent at once: clients share what they are slow to take, and hold on to no more
than a piece of their own."""

Result = TypeVar("Result")


class Connection:
    """A connection without TLS. The socket stays the caller's, who closes it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._client = place.socket

    def receive(self, deadline: float) -> bytes:
        """Return the next bytes, or none when the client has ended."""
        self._client.settimeout(_left(deadline))
        received = self._client.recv(MAX_BYTES)
        self._place.hear()
        return received

    def send(self, head: bytes, body: bytes, deadline: float) -> None:
        """Send everything."""
        for piece in _pieces(head, body):
            self._write(piece, deadline)

    def _write(self, piece: bytes | memoryview, deadline: float) -> None:
        self._client.settimeout(_left(deadline))
        self._client.sendall(piece)  # the timeout is for all of it
        self._place.hear()

    def hang_up(self, deadline: float) -> None:
        """Say that this was all, and wait for the client to hang up.

        A close with bytes unread makes the kernel drop what was sent.
        """
        self._client.shutdown(socket.SHUT_WR)
        while Connection.receive(self, deadline):
            pass


class SecureConnection(Connection):
    """A connection with TLS.

    Over memory and not by wrapping the socket: that takes the descriptor out of the socket, so
    nobody else could hang up on the client, and it bounds each piece of an answer and not the
    whole.
    """

    def __init__(self, place: Place, context: ssl.SSLContext) -> None:
        super().__init__(place)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def shake_hands(self, deadline: float) -> None:
        """Agree on keys and check the client's certificate, before anything else.

        Raises:
            SSLError: it failed; what TLS has to say about that was sent.
        """
        try:
            self._exchange(self._tls.do_handshake, deadline)
        except ssl.SSLError:
            self._flush(deadline)
            raise

    def receive(self, deadline: float) -> bytes:
        return self._exchange(lambda: self._tls.read(MAX_BYTES), deadline)

    def _write(self, piece: bytes | memoryview, deadline: float) -> None:
        self._exchange(lambda: self._tls.write(piece), deadline)

    def hang_up(self, deadline: float) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # it would wait for the client to say so too
            pass
        self._flush(deadline)
        super().hang_up(deadline)

    def _exchange(self, step: Callable[[], Result], deadline: float) -> Result:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush(deadline)
                received = super().receive(deadline)
                if not received:
                    raise ConnectionAbortedError("the client left without a word") from None
                self._incoming.write(received)
            else:
                self._flush(deadline)
                return result

    def _flush(self, deadline: float) -> None:
        if self._outgoing.pending:
            super()._write(self._outgoing.read(), deadline)


def _pieces(head: bytes, body: bytes) -> Iterator[bytes | memoryview]:
    yield head + body[:PIECE_BYTES]  # a small body in a packet of its own would be held back
    whole = memoryview(body)
    for start in range(PIECE_BYTES, len(body), PIECE_BYTES):
        yield whole[start : start + PIECE_BYTES]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
