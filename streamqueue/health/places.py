"""The places of a server's clients: how many there are, and who gives up one for a newcomer.

A newcomer always gets a place, because it may be the probe that decides whether this process is
killed. When there is none, the client goes that has been silent longest: it is a client's turn to
speak, or to take its answer, and it does not.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CLIENTS = 64
MAX_PER_ADDRESS = 16
"""Four times as many as two Prometheus servers and two probes behind one address want at once. What
one address holds on to, it takes from itself."""
ENDING_SECONDS = 1.0


class Place:
    """A client that is connected.

    Attributes:
        socket: its connection.
        owner: whose place it is, as `owner()` has it.
        heard_at: when it last did its part, on the monotonic clock: came, sent, or took something.
        is_begun: whether a thread has its connection, which closes it.
        is_served: whether it waits for us, as it does until that thread listens to it.
    """

    __slots__ = ("heard_at", "is_begun", "is_served", "owner", "socket")

    def __init__(self, client: socket.socket, owner: str) -> None:
        self.socket = client
        self.owner = owner
        self.heard_at = time.monotonic()
        self.is_begun = False
        self.is_served = True

    def hear(self) -> None:
        """Note that the client did its part."""
        self.heard_at = time.monotonic()

    @contextmanager
    def served(self) -> Iterator[None]:
        """Do our part, while the client cannot be called silent."""
        self.is_served = True
        try:
            yield
        finally:
            self.hear()
            self.is_served = False

    def hang_up(self) -> None:
        """End the connection under whoever reads from it or writes to it."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it left on its own
            pass


class Places:
    """The places of one server. Safe to use from any thread."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._taken: set[Place] = set()
        # They lost their place, and the threads that serve them have not noticed yet.
        self._ending: set[Place] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def __contains__(self, place: Place) -> bool:
        return place in self._taken

    def take(self, client: socket.socket, owner: str) -> Place | None:
        """Give a newcomer a place, if need be that of another.

        Returns:
            None when so many were hung up on that their threads cannot end as fast. That is waited
            for, but not for longer than a second.
        """
        place = Place(client, owner)
        with self._change:
            if not self._change.wait_for(
                lambda: len(self._ending) < MAX_CLIENTS, timeout=ENDING_SECONDS
            ):
                return None
            neighbours = [taken for taken in self._taken if taken.owner == owner]
            if len(neighbours) >= MAX_PER_ADDRESS:
                self._end(_silent_longest(neighbours))
            elif len(self._taken) >= MAX_CLIENTS:
                self._end(_silent_longest(self._taken))
            self._taken.add(place)
        return place

    def free(self, place: Place) -> None:
        """Take a place back; before its socket is closed, whose number is another's then."""
        with self._change:
            self._taken.discard(place)
            self._ending.discard(place)
            self._change.notify_all()

    def clear(self) -> None:
        """Hang up on everybody."""
        with self._change:
            for place in list(self._taken):
                self._end(place)

    def _end(self, place: Place) -> None:
        self._taken.discard(place)
        if place.is_begun:
            self._ending.add(place)
            place.hang_up()
        else:
            place.socket.close()


def owner(address: tuple[object, ...]) -> str:
    """Return whose places a client of this address takes.

    Of IPv6, where everybody has as many addresses as they like, the network of 64 bits.
    """
    host = str(address[0])
    if ":" not in host:
        return host
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex()


def _silent_longest(places: set[Place] | list[Place]) -> Place:
    return min(places, key=lambda place: (place.is_served, place.heard_at))
