"""Frames between processes of one machine: BSON documents, which carry their own length, back to
back over a Unix socket.

Sending never waits: it is done from the loop that reads the change stream. What the other end does
not take at once is kept for it, and whoever takes nothing for long is left behind.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import anyio
import bson
from bson.errors import BSONError

from .. import plain
from ..protocol.document import CODEC

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

logger = plain.logger("streamqueue.connection")

READ_BYTES = 256 * 1024
MOST_KEPT_BYTES = 64 * 1024 * 1024
"""Sent and not taken: far more than any number of events and jobs that a live process leaves."""
NOT_UNDERSTOOD = (LookupError, TypeError, ValueError)
"""What using a frame may raise that lacks something, or has it in another form."""
_LENGTH = struct.Struct("<i")
_SHORTEST = _LENGTH.size + 1  # of nothing
_NAME_AT = _LENGTH.size + 1  # behind the type of the first field


class Connection:
    """One end of a connection.

    Args:
        channel: the connected socket; the connection's from now on.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._unread = bytearray()
        self._unsent = bytearray()
        self._blocked = anyio.Event()
        self.closed = False

    def send(self, frame: Mapping[str, Any]) -> None:
        """Send a frame now, or as soon as the other end takes it."""
        if self.closed:
            return
        data = bson.encode(frame, codec_options=CODEC)
        if not self._unsent:
            try:
                sent = self._channel.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        if len(self._unsent) > MOST_KEPT_BYTES:
            self.close()
        self._blocked.set()

    async def keep_sending(self) -> None:
        """Send what could not be sent at once, until closed."""
        while not self.closed:
            if not self._unsent:
                self._blocked = anyio.Event()
                await self._blocked.wait()
                continue
            try:
                await anyio.wait_writable(self._channel)
                del self._unsent[: self._channel.send(self._unsent)]
            except BlockingIOError:
                pass
            except (OSError, anyio.ClosedResourceError):
                self.close()

    async def receive(self) -> list[Any]:
        """Wait for frames and return all there are; none when the other end has closed.

        One that cannot be decoded (a job may hold anything) comes as ``messages.Undecodable``. What
        is no frame at all closes the connection.
        """
        while not self.closed:
            try:
                await anyio.wait_readable(self._channel)
                data = self._channel.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except (OSError, anyio.ClosedResourceError):
                break
            if not data:
                break
            self._unread += data
            if frames := list(self._frames()):
                return frames
        self.close()
        return []

    def _frames(self) -> Iterator[dict[str, Any]]:
        start, have = 0, len(self._unread)
        while have - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._unread, start)
            if not _SHORTEST <= length <= MOST_KEPT_BYTES:  # and where is the next one?
                logger.warning(
                    "A connection is closed: what a process said is no frame",
                    extra={"event": "dispatcher_refused"},
                )
                self.close()
                break
            if have - start < length:
                break
            frame = bytes(self._unread[start : start + length])
            try:
                yield bson.decode(frame, codec_options=CODEC)
            except BSONError:
                name = frame[_NAME_AT:].split(b"\0", 1)[0]
                yield {"undecodable": name.decode(errors="replace")}
            start += length
        del self._unread[:start]

    def close(self) -> None:
        """Close it, also for whoever waits in :meth:`receive`."""
        if not self.closed:
            self.closed = True
            self._blocked.set()
            anyio.notify_closing(self._channel)
            self._channel.close()


def refuse(connection: Connection, error: Exception) -> None:
    """Close a connection whose other end says what this one does not understand: it is of another
    version of the program, installed while this one was running."""
    logger.warning(
        "No dispatcher between two versions of the program: each process listens for itself (%r)",
        error,
        extra={"event": "dispatcher_refused"},
    )
    connection.close()
