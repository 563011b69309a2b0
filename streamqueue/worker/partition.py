"""The other live consumers, and whose turn a job is.

Every process sees every event and reads the same head of a backlog. If all of them went for all of
it, most claims would be lost, and each costs the server a write. So each job is one consumer's turn
first: the ids are divided among those who live, round after round. The others wait
their turn, a few milliseconds each, and take what is still there by then.

That is a courtesy, not a rule: a claim is decided by the document alone, and nothing depends on the
list of consumers being right. It is kept in a collection beside the jobs, where each process notes
every ``HEARTBEAT`` seconds that it lives; where the user may not write there, everybody races as if
alone. A newcomer is noticed at the next heartbeat, or as soon as a claim is lost to it.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import zlib
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pymongo
from anyio import CancelScope
from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from .. import plain
from ..clock import monotonic
from ..metrics.series import own_version
from ..outage import LoggedOutage
from ..protocol import operations
from ..store.collection import UNAUTHORIZED, consumers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ..store.asynchronous import AsyncStore

logger = plain.logger("streamqueue.partition")

Job = TypeVar("Job", bound="Mapping[str, Any]")
Places = tuple[frozenset[int], int]
ALONE: Places = (frozenset({0}), 1)

HEARTBEAT = 30.0
"""Seconds between two signs of life. An idle process sends nothing else, and every write wakes
every stream of the server (about 50 us each); what a late one costs is small, see ``TURN``."""
FORGOTTEN_AFTER = 3600.0
LOOK_PAUSE = 0.2
"""Seconds between two looks at the list, however many claims are lost."""
STALE_SHARE = 4
"""Once the list has not been read for a quarter of the time since this consumer joined, the next
job makes it look: consumers tend to be started together."""
TURN = 0.01
"""Seconds until it is the next one's turn: a claim takes about 3 ms, twice that under load. This
is what a job waits longer whose first consumer is full, or has died without a word."""
MOST_TURNS = 5
"""Turns waited for at the most: a fleet that was killed stays on the list for a while, and not one
of it will come."""
PATIENCE = 1.0
"""Seconds that a command about the list may take: no start and no drain hangs on it."""


class Partition:
    """Which jobs are whose among the consumers of a collection, of which this is one.

    Args:
        consumer: the name of this one; None for a dispatcher, which claims nothing.
        queues: what it handles.
        concurrency: how many jobs it runs at a time; for people to read.
        own: returns the names whose turn counts as ours; None is `consumer` alone.
        schedules: the names of those that this consumer declares.
    """

    def __init__(
        self,
        store: AsyncStore,
        consumer: str | None,
        queues: Sequence[str],
        concurrency: int = 0,
        own: Callable[[], Collection[str]] | None = None,
        schedules: Sequence[str] = (),
    ) -> None:
        self._consumers = consumers_of(store.jobs)
        self._store = store
        self._consumer = consumer
        self._queues = list(queues)
        self._concurrency = concurrency
        self._schedules = list(schedules)
        self._own = own or (lambda: () if consumer is None else (consumer,))
        self._dispatched = False
        self._refused = False
        self._listing = LoggedOutage(
            logger, "consumers", "The list of consumers", level=logging.INFO
        )
        self._joined_at = self._read_at = -math.inf
        self._look_at = math.inf
        self._moved = anyio.Event()
        # By queue: who was listed; who there is, in the order of names; which of those are ours.
        self._listed: dict[str, list[str]] = {}
        self._names: dict[str, list[str]] = {}
        self._places: dict[str, Places] = {}
        self._everybody: list[str] = []

    def dispatched(self, yes: bool) -> None:
        """Note whether somebody else minds whose turn it is: then all that comes is ours."""
        was, self._dispatched = self._dispatched, yes
        if yes:
            self._places = {}
        elif was:
            self.look()

    def own_changed(self) -> None:
        """Note that other names are ours now: they have their turns at once, whatever the list says
        of them; and look, who else there is."""
        self._rank()
        self.look()

    def count(self) -> int:
        """Return how many share the queue that has most of them, all of ours as one; 1 is alone."""
        return max((count - len(own) + 1 for own, count in self._places.values()), default=1)

    def turn(self, job: Mapping[str, Any]) -> int:
        """Return how many others come first for this job: 0 if it is ours to take."""
        places, count = self._places.get(job["queue"], ALONE)
        number = _number(job["_id"])
        return min((place - number) % count for place in places)

    def first(self, job: Mapping[str, Any]) -> str | None:
        """Return the name of the one whose turn it is before all others, if any is known."""
        names = self._names.get(job["queue"])
        return names[_number(job["_id"]) % len(names)] if names else None

    def rank(self, name: str) -> int | None:
        """Return how many others of the collection come before this consumer for what has this
        name; None while they are not known."""
        if self._consumer is None or self._consumer not in self._everybody:
            return None
        own = _weight(self._consumer, name)
        return sum(_weight(other, name) < own for other in self._everybody)

    def divide(self, jobs: Iterable[Job]) -> tuple[list[Job], list[Job]]:
        """Return the jobs that are ours to take, and the others, each in their order."""
        own: list[Job] = []
        others: list[Job] = []
        places = self._places
        for job in jobs:  # thousands: as turn(), without the call
            ours, count = places.get(job["queue"], ALONE)
            (own if _number(job["_id"]) % count in ours else others).append(job)
        return own, others

    def owns(self, queue: str, number: int) -> bool:
        """Return whether what has this number in a queue is ours to take."""
        places, count = self._places.get(queue, ALONE)
        return number % count in places

    async def gone(self, consumers: Iterable[str]) -> None:
        """Take consumers off the list whose leases have run out. One that lives after all is back
        with its next heartbeat."""
        gone = [name for name in consumers if name != self._consumer]
        if gone and not self._refused:
            try:
                with CancelScope(shield=True), pymongo.timeout(PATIENCE):
                    await self._consumers.delete_many(operations.deregister(*gone))
                    await self._read()
            except PyMongoError as error:
                self._listing.failed(error, "The list of consumers is out of reach: %s")

    def look(self) -> None:
        """Read the list now: a claim was lost, perhaps to a newcomer."""
        # Spread, so that those who collided do not look in step.
        self._look_by(max(monotonic(), self._read_at + LOOK_PAUSE) + random.uniform(0, 0.01))

    def job_came(self) -> None:
        """Read the list soon, if it has not been read for long."""
        now = monotonic()
        age = now - self._read_at
        if age > LOOK_PAUSE and age > (now - self._joined_at) / STALE_SHARE:
            self._look_by(now + LOOK_PAUSE * random.uniform(1.0, 2.0))

    def _look_by(self, moment: float) -> None:
        if moment < self._look_at and not (self._refused or self._dispatched):
            self._look_at = moment
            self._moved.set()

    async def join(self) -> None:
        """Put this consumer on the list and read the others; what the server refuses is logged."""
        if self._refused:
            return
        if self._joined_at < 0:
            self._joined_at = monotonic()
        if self._consumer is None:
            await self._look()
            return
        about = {"host": socket.gethostname(), "pid": os.getpid(), "version": own_version()}
        command = operations.register(
            self._consumer, self._queues, self._concurrency, about, self._schedules
        )
        try:
            with CancelScope(shield=True), pymongo.timeout(PATIENCE):
                await self._consumers.update_one(*command, upsert=True)
                if not self._dispatched:
                    await self._read()
        except PyMongoError as error:
            self._failed(error)

    def _failed(self, error: PyMongoError) -> None:
        if not (isinstance(error, OperationFailure) and error.code == UNAUTHORIZED):
            self._listing.failed(error, "The list of consumers is out of reach: %s")
            return
        self._refused = True
        self._listed = {}
        self._rank()
        if self._consumer is not None:
            logger.info(
                "Claiming without regard for other consumers: no right to keep the list in %s",
                self._consumers.name,
                extra={
                    "event": "consumers_refused",
                    "consumer": self._consumer,
                    "code": error.code,
                },
            )

    async def leave(self) -> None:
        """Take this consumer off the list, so that nobody leaves jobs to it."""
        if self._refused or self._consumer is None:
            return
        try:
            with CancelScope(shield=True), pymongo.timeout(PATIENCE):
                await self._consumers.delete_one(operations.deregister(self._consumer))
        except PyMongoError:
            pass  # its silence will tell

    async def run(self) -> None:
        """Renew this consumer's entry for ever, and read the list when there is reason to."""
        beat_at = monotonic() + HEARTBEAT
        while True:
            while (left := min(beat_at, self._look_at) - monotonic()) > 0:
                self._moved = anyio.Event()
                with anyio.move_on_after(left):
                    await self._moved.wait()
            self._look_at = math.inf
            if monotonic() >= beat_at:
                beat_at = monotonic() + HEARTBEAT * random.uniform(0.9, 1.1)
                await self.join()
            else:
                await self._look()

    async def _look(self) -> None:
        try:
            with CancelScope(shield=True), pymongo.timeout(PATIENCE):
                await self._read()
        except PyMongoError as error:
            self._failed(error)

    async def _read(self) -> None:
        self._read_at = monotonic()
        names: dict[str, list[str]] = {queue: [] for queue in self._queues}
        forgotten, everybody = [], []
        async with self._consumers.find(*operations.registered()[:2]) as cursor:
            for found in await cursor.to_list():
                silent = found.get("silent")
                if not isinstance(silent, int) or silent > FORGOTTEN_AFTER * 1000:
                    forgotten.append(found["_id"])
                elif operations.lives(found):
                    everybody.append(str(found["_id"]))
                    queues = found.get("queues")
                    for queue in queues if isinstance(queues, list) else ():
                        if type(queue) is str and queue in names:
                            names[queue].append(str(found["_id"]))
        self._listed, self._everybody = names, everybody
        self._rank()
        if forgotten:
            await self._consumers.delete_many(operations.deregister(*forgotten))
        self._listing.succeeded()

    def _rank(self) -> None:
        """Number the consumers of each queue by their names, us among them."""
        own = set(self._own())
        for queue in self._queues:
            there = self._names[queue] = sorted({*self._listed.get(queue, ()), *own})
            places = frozenset(place for place, name in enumerate(there) if name in own)
            self._places[queue] = (places, len(there)) if places else ALONE
        if self._dispatched:
            self._places = {}


def turn_over(turn: int) -> float:
    """Return the moment when so many others have had their chance at a job; a random bit later, so
    that those who waited do not go for it in step."""
    return monotonic() + TURN * min(turn, MOST_TURNS) * random.uniform(1.0, 1.2)


def _weight(consumer: str, name: str) -> tuple[int, str]:
    """Return what orders the consumers for this name: for each name in another way."""
    return zlib.crc32(f"{consumer}\0{name}".encode("utf-8", "backslashreplace")), consumer


def _number(job_id: object) -> int:
    """Return a number that every process gives this id.

    The last bytes of an ObjectId count up, so jobs put one after the other go to all in turn.
    """
    if type(job_id) is ObjectId:
        binary = job_id.binary
        return binary[10] << 8 | binary[11]
    return zlib.crc32(repr(job_id).encode("utf-8", "backslashreplace"))
