"""The members of a dispatcher: what each can take, and what it has not acknowledged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from ..clock import monotonic
from .frames import NOT_UNDERSTOOD, Connection, refuse
from .messages import Event, Fetch, Jobs

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bson import ObjectId

    from .messages import FromDispatcher, FromMember

AGAIN_AFTER = 0.05
"""Seconds a member may take to acknowledge an event: many times what a claim takes."""
CLAIM_WITHIN = 1.0
"""Seconds a member may take to claim the jobs it asked for; there may be hundreds of them."""


class Member:
    """A consumer process, as its dispatcher knows it.

    Args:
        free: how many jobs it could claim when it joined.
        on_sent: called whenever it is sent something that it has to acknowledge.

    Attributes:
        connection: the way to it.
        consumer: its name.
        requested: how many waiting jobs it has asked for without a reply yet; 0 is none.
        held, ahead, room: as of :class:`~streamqueue.worker.sharing.fairness.Holder`, when it has
            asked last.
    """

    def __init__(
        self, connection: Connection, consumer: str, free: int, on_sent: Callable[[], None]
    ) -> None:
        self.connection = connection
        self.consumer = consumer
        self._on_sent = on_sent
        self.requested = 0
        self._free = free
        self._sent = self._done = self._written_off = 0
        self._announced = 0  # what `_sent` was with the last event
        self._sent_at = math.inf
        self.held: Mapping[str, int] = {}
        self.ahead: Mapping[str, int] = {}
        self.room: dict[str, int] = {}
        self._dispatched: set[ObjectId] = set()
        self._dispatched_at = math.inf

    @property
    def free(self) -> int:
        """How many jobs it could claim now; none while it has asked, or is late."""
        if self.requested or self._done < self._written_off:
            return 0
        return self._free - (self._sent - self._done)

    @property
    def unacknowledged_jobs(self) -> bool:
        """Whether it was sent jobs, announced or waiting ones, that it may not have claimed."""
        return self._announced > self._done or bool(self._dispatched)

    @property
    def _unacknowledged_events(self) -> bool:
        return self._sent > max(self._done, self._written_off)

    @property
    def unacknowledged(self) -> bool:
        """Whether it was sent something that it has not acknowledged."""
        return self._unacknowledged_events or bool(self._dispatched)

    @property
    def late(self) -> bool:
        """Whether an acknowledgement is overdue: it stands still, or cannot reach the server."""
        now = monotonic()
        events_late = self._unacknowledged_events and now - self._sent_at > AGAIN_AFTER
        return events_late or (bool(self._dispatched) and now - self._dispatched_at > CLAIM_WITHIN)

    @property
    def dispatched(self) -> set[ObjectId]:
        """The ids of the waiting jobs that it is about to claim."""
        return self._dispatched

    def has_room(self, queue: object) -> bool:
        """Whether it can claim a job of this queue, as soon as it has a free slot."""
        return not isinstance(queue, str) or self.room.get(queue, 1) > 0

    def announce(self, event: Mapping[str, Any], queue: object = None) -> None:
        """Send it the event of a job to claim; of that queue, if its room is limited."""
        self._use_room(queue)
        self._tell(Event(event=event))
        self._announced = self._sent

    def ask_to_fetch(self, *, everything: bool = False) -> None:
        """Have it ask for what waits; `everything`: and look for all there may be to do."""
        self._tell(Fetch(fetch="everything" if everything else "waiting"))

    def _tell(self, message: Event | Fetch) -> None:
        if not self._unacknowledged_events:
            self._sent_at = monotonic()
        self._sent += 1
        self.connection.send(message)
        self._on_sent()

    def reply(self, jobs: Sequence[Mapping[str, Any]], *, more: bool) -> None:
        """Send it the waiting jobs it asked for; `more`: there are others."""
        self.requested = 0
        self._free -= len(jobs)
        if self.room:
            for job in jobs:
                self._use_room(job.get("queue"))
        self._dispatched = {job["_id"] for job in jobs}
        self._dispatched_at = monotonic()
        self.connection.send(Jobs(jobs=list(jobs), more=more))
        if jobs:
            self._on_sent()

    def _use_room(self, queue: object) -> None:
        if isinstance(queue, str) and queue in self.room:
            self.room[queue] -= 1

    def acknowledged(
        self, done: int, free: int | None = None, room: Mapping[str, int] | None = None
    ) -> None:
        """Note that it has dealt with so many events in all, and with every waiting job; and what
        it had room for then."""
        self._dispatched = set()
        if room is not None:
            before = {} if done == self._sent else self.room  # else some is used up already
            self.room = {
                queue: min(count, before.get(queue, count)) for queue, count in room.items()
            }
        if done != self._done:
            self._done = done
            self._sent_at = monotonic()
        if free is not None:
            self._free = free

    def write_off(self) -> None:
        """Leave what it was sent to others, and send it nothing more until it has acknowledged."""
        self._written_off = self._sent
        self._dispatched = set()


class RoomOfMembers:
    """How many jobs of a queue the members that wait for jobs could claim."""

    def __init__(self, members: Members, queue: str) -> None:
        self._members = members
        self._queue = queue

    @property
    def room(self) -> int:
        """As of :class:`Lane`."""
        return self._members.room(self._queue)


class MembersListener(Protocol):
    """Whoever is told of members; at once, so it must not wait for anything."""

    def joined(self, member: Member) -> None:
        """A member has joined."""

    def said(self, member: Member, message: FromMember) -> None:
        """A member has sent a message."""

    def left(self, member: Member, *, leaving: bool) -> None:
        """The connection of a member has closed; `leaving`: it announced that it was stopping."""

    def late(self, member: Member) -> None:
        """A member has not acknowledged what it was sent for so long that others should look."""


class Members:
    """The members that have joined, in that order."""

    def __init__(self, listener: MembersListener) -> None:
        self._listener = listener
        self._members: list[Member] = []
        self._next = 0
        self._sent_something = anyio.Event()

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def names(self) -> set[str]:
        """Return the names of the consumers."""
        return {member.consumer for member in self._members}

    def dispatched(self) -> set[ObjectId]:
        """Return the ids of the waiting jobs that members were sent and may not have claimed."""
        return set().union(*(member.dispatched for member in self._members))

    def asking(self) -> list[Member]:
        """Return the members that wait for waiting jobs."""
        return [member for member in self._members if member.requested]

    def room(self, queue: str) -> int:
        """Return how many jobs of a queue could be claimed by those that wait for jobs."""
        return sum(
            min(member.requested, member.room.get(queue, member.requested))
            for member in self.asking()
        )

    def have_room(self, queue: str) -> bool:
        """Whether a member can claim a job of this queue, as soon as it has a free slot."""
        return any(member.has_room(queue) for member in self._members)

    def free(
        self,
        *,
        first: str | None = None,
        besides: Member | None = None,
        queue: object = None,
    ) -> Member | None:
        """Return a member with a free slot: the consumer `first` or any, in turn; not `besides`.

        Args:
            queue: one that can claim a job of this queue.
        """
        free = [
            member
            for member in self._members
            if member.free > 0 and member is not besides and member.has_room(queue)
        ]
        for member in free:
            if member.consumer == first:
                return member
        self._next += 1
        return free[self._next % len(free)] if free else None

    def broadcast(self, message: FromDispatcher) -> None:
        """Send all members a message."""
        for member in self:
            member.connection.send(message)

    async def serve(self, channel: socket.socket) -> None:
        """Listen to the process at the other end until one of the two closes."""
        connection = Connection(channel)
        member: Member | None = None
        leaving = False
        async with anyio.create_task_group() as sending:
            sending.start_soon(connection.keep_sending)
            try:
                while not leaving and (frames := await connection.receive()):
                    for message in frames:
                        if member is None:
                            name, free = str(message["consumer"]), int(message["free"])
                            member = Member(connection, name, free, self._on_sent)
                            self._members.append(member)
                            self._listener.joined(member)
                        elif "leaving" in message:
                            leaving = True
                        else:
                            self._listener.said(member, message)
            except NOT_UNDERSTOOD as error:
                refuse(connection, error)
            finally:
                connection.close()
                if member is not None:
                    self._members.remove(member)
                    self._listener.left(member, leaving=leaving)

    def _on_sent(self) -> None:
        self._sent_something.set()

    async def run(self) -> None:
        """Write off what late members were sent, for ever."""
        while True:
            if not any(member.unacknowledged for member in self._members):
                self._sent_something = anyio.Event()
                await self._sent_something.wait()
            await anyio.sleep(AGAIN_AFTER)
            for member in self:
                if member.late:
                    member.write_off()
                    self._listener.late(member)
