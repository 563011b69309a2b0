"""The processes that a dealer deals to: who they are, who is free, and who owes an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import anyio

from .feed import NOT_UNDERSTOOD, Feed, refuse
from .seat import AGAIN_AFTER, Seat

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from bson import ObjectId


class Host(Protocol):
    """Who minds the table; told at once, so it must not wait for anything."""

    def seated(self, seat: Seat) -> None:
        """A process has taken a seat."""

    def said(self, seat: Seat, frame: Mapping[str, Any]) -> None:
        """It says something."""

    def left(self, seat: Seat, *, leaving: bool) -> None:
        """It is there no more; `leaving`: it said so."""

    def late(self, seat: Seat) -> None:
        """It has done nothing about what it was dealt, long enough for others to look."""


class Table:
    """The seats, in the order in which they were taken."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seats: list[Seat] = []
        self._next = 0
        self._dealt_something = anyio.Event()

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats))

    def __len__(self) -> int:
        return len(self._seats)

    def names(self) -> set[str]:
        """Return the names of the consumers."""
        return {seat.consumer for seat in self._seats}

    def dealt(self) -> set[ObjectId]:
        """Return the ids of waiting jobs that were dealt and may not be claimed yet."""
        return set().union(*(seat.dealt for seat in self._seats))

    def asking(self) -> list[Seat]:
        """Return those that wait for an answer."""
        return [seat for seat in self._seats if seat.asked]

    def free(self, *, first: str | None = None, besides: Seat | None = None) -> Seat | None:
        """Return one that has a free slot: the consumer `first`, or any, in turn; not `besides`."""
        free = [seat for seat in self._seats if seat.free > 0 and seat is not besides]
        for seat in free:
            if seat.consumer == first:
                return seat
        self._next += 1
        return free[self._next % len(free)] if free else None

    def broadcast(self, frame: Mapping[str, Any]) -> None:
        """Tell all of them."""
        for seat in self:
            seat.feed.send(frame)

    async def serve(self, channel: socket.socket) -> None:
        """Listen to the process at the other end until one of the two closes."""
        feed = Feed(channel)
        seat: Seat | None = None
        leaving = False
        async with anyio.create_task_group() as sending:
            sending.start_soon(feed.keep_sending)
            try:
                while not leaving and (frames := await feed.receive()):
                    for frame in frames:
                        if seat is None:
                            name, free = str(frame["consumer"]), int(frame["free"])
                            seat = Seat(feed, name, free, self._owing)
                            self._seats.append(seat)
                            self._host.seated(seat)
                        elif "leaving" in frame:
                            leaving = True
                        else:
                            self._host.said(seat, frame)
            except NOT_UNDERSTOOD as error:
                refuse(feed, error)
            finally:
                feed.close()
                if seat is not None:
                    self._seats.remove(seat)
                    self._host.left(seat, leaving=leaving)

    def _owing(self) -> None:
        self._dealt_something.set()

    async def run(self) -> None:
        """Look for those that are late, for ever."""
        while True:
            if not any(seat.owes for seat in self._seats):
                self._dealt_something = anyio.Event()
                await self._dealt_something.wait()
            await anyio.sleep(AGAIN_AFTER)
            for seat in self:
                if seat.late:
                    seat.excuse()
                    self._host.late(seat)
