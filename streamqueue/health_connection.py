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
    from collections.abc import Callable

MAX_BYTES = 8192
"""The most that is received at once."""

Result = TypeVar("Result")


class Connection:
    """A plain one. The socket stays the caller's, who closes it."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def receive(self, deadline: float) -> bytes:
        """Return the next bytes, or none when the client has ended."""
        self._client.settimeout(_left(deadline))
        return self._client.recv(MAX_BYTES)

    def send(self, content: bytes, deadline: float) -> None:
        """Send everything."""
        self._client.settimeout(_left(deadline))
        self._client.sendall(content)  # the timeout is for all of it

    def hang_up(self, deadline: float) -> None:
        """Say that this was all, and wait for the client to hang up.

        A close with bytes unread makes the kernel drop what was sent.
        """
        self._client.shutdown(socket.SHUT_WR)
        while Connection.receive(self, deadline):
            pass


class SecureConnection(Connection):
    """One with TLS.

    Over memory and not by wrapping the socket: that takes the descriptor out of the socket, so
    nobody else could hang up on the client, and it bounds each piece of an answer and not the
    whole.
    """

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        super().__init__(client)
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

    def send(self, content: bytes, deadline: float) -> None:
        self._exchange(lambda: self._tls.write(content), deadline)

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
            super().send(self._outgoing.read(), deadline)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
