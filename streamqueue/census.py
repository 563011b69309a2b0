"""How the queue stands: jobs by state, the oldest that waits, consumers and what they hold.

Taken from the documents, for whoever looks from outside: the exporter, ``top``, the command line.
Every count is read from an index that holds only jobs that are live or dead, so what is done costs
nothing; a million waiting jobs cost a few tenths of a second of the server's time. The ages are
differences on the server's clock.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pymongo import ReadPreference
from pymongo.errors import OperationFailure

from . import observations, operations
from .document import BARE_CODEC, State
from .server import UNAUTHORIZED, consumers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pymongo.asynchronous.collection import AsyncCollection

    from .async_store import AsyncStore

logger = logging.getLogger("streamqueue.census")

NOT_ALLOWED = {UNAUTHORIZED, 73}  # 73: mongos knows no database ``local``
MAX_QUEUES = 200
"""Queues in one census; a program that makes a queue per user gets the first so many."""


@dataclass(slots=True)
class QueueCensus:
    """One queue.

    Attributes:
        ready: jobs that wait to be claimed.
        scheduled: jobs that are to run later.
        running: jobs that a consumer holds.
        dead: jobs that have failed for good.
        oldest_ready_age: seconds since the longest waiting of the due jobs became due, whether it
            has been promoted yet or not; 0 when none waits.
        expired_leases: running jobs whose lease has ended and that nobody has returned yet.
        consumers: live workers on the list.
        slots: the handlers those can run at a time. One that works on several queues counts its
            slots in each.
    """

    name: str
    ready: int = 0
    scheduled: int = 0
    running: int = 0
    dead: int = 0
    oldest_ready_age: float = 0.0
    expired_leases: int = 0
    consumers: int = 0
    slots: int = 0

    def jobs(self) -> dict[str, int]:
        """Return how many jobs there are in each state."""
        return {
            State.READY: self.ready,
            State.SCHEDULED: self.scheduled,
            State.RUNNING: self.running,
            State.DEAD: self.dead,
        }


@dataclass(slots=True)
class ConsumerCensus:
    """One consumer.

    Attributes:
        name: what its jobs have as ``locked_by``.
        queues: what it works on; none for a consumer that holds jobs and is on no list, such as a
            script that iterates over a queue.
        slots: jobs it can run at a time, or None.
        host, pid, version: where and what it runs, or None.
        up: seconds since it started, or None.
        silent: seconds since it last said that it lives, or None.
        running: jobs it holds.
        longest: seconds since it claimed the one it has held longest; 0 when it holds none.
        expired: jobs it held whose lease has ended.
    """

    name: str
    queues: list[str] = field(default_factory=list)
    slots: int | None = None
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    up: float | None = None
    silent: float | None = None
    running: int = 0
    longest: float = 0.0
    expired: int = 0


@dataclass(slots=True)
class Census:
    """All of a collection.

    Attributes:
        queues: those with jobs that are not done, or with a consumer, by name.
        consumers: by name; None when the list may not be read.
        oplog_window: seconds from the oldest entry of the oplog to the newest, which is how long a
            change stream may be away and still resume; None when ``local`` may not be read.
    """

    queues: dict[str, QueueCensus] = field(default_factory=dict)
    consumers: dict[str, ConsumerCensus] | None = None
    oplog_window: float | None = None

    def queue(self, name: str) -> QueueCensus:
        """Return that queue's part, made empty if there is none yet."""
        return self.queues.setdefault(name, QueueCensus(name))


class Surveyor:
    """Takes one census after another.

    What the user may not read is asked for once and left out from then on.

    Args:
        store: the jobs.
        holders: also find out which consumer holds how many jobs, which reads every running job.
    """

    def __init__(self, store: AsyncStore, *, holders: bool = False) -> None:
        self._store = store
        self._holders = holders
        self._jobs = store.jobs.with_options(codec_options=BARE_CODEC)
        self._consumers = consumers_of(store.jobs)
        self._oplog = store.jobs.database.client.local.get_collection(
            "oplog.rs", read_preference=ReadPreference.PRIMARY
        )
        self._refused: set[str] = set()
        self._seen: set[str] = set()

    async def take(self) -> Census:
        """Count everything now. A queue that was there once stays, with zeros.

        Raises:
            PyMongoError: the server; nothing is known then.
        """
        census = Census()
        await self._count_consumers(census)
        await self._count_running(census)
        names = self._seen | set(census.queues)
        for state in observations.QUEUE_FIRST:
            names |= await self._queues_with(state)
        if len(names) > MAX_QUEUES > len(self._seen):
            logger.warning(
                "Of %d queues only %d are counted",
                len(names),
                MAX_QUEUES,
                extra={"event": "queues_left_out", "count": len(names) - MAX_QUEUES},
            )
        for name in sorted(names)[:MAX_QUEUES]:
            await self._count_queue(census.queue(name))
        census.queues = {name: census.queues[name] for name in sorted(names)[:MAX_QUEUES]}
        self._seen = set(census.queues)
        census.oplog_window = await self._measure_oplog()
        return census

    async def _queues_with(self, state: State) -> set[str]:
        found: set[str] = set()
        last = ""
        while len(found) <= MAX_QUEUES:
            look = await self._store.find(observations.next_queue(state, last))
            if look and not isinstance(look[0]["queue"], str):
                look = await self._store.find(observations.next_queue(state, last, named=True))
            if not look:
                break
            last = look[0]["queue"]
            found.add(last)
        return found

    async def _count_queue(self, queue: QueueCensus) -> None:
        pipeline = observations.queue_census(queue.name, self._store.jobs.name)
        for row in await self._aggregate(pipeline):
            match row["_id"]:
                case State.READY:
                    queue.ready = row["count"]
                case State.SCHEDULED:
                    queue.scheduled = row["count"]
                case State.DEAD:
                    queue.dead = row["count"]
                case _:
                    queue.oldest_ready_age = max(queue.oldest_ready_age, row["age"] / 1000)

    async def _count_running(self, census: Census) -> None:
        for row in await self._aggregate(observations.running_census(by_holder=self._holders)):
            if isinstance(row["_id"].get("queue"), str):
                queue = census.queue(row["_id"]["queue"])
                queue.running += row["running"]
                queue.expired_leases += row["expired"]
            if self._holders and census.consumers is not None:
                name = str(row["_id"].get("holder"))
                holder = census.consumers.setdefault(name, ConsumerCensus(name))
                holder.running += row["running"]
                holder.expired += row["expired"]
                holder.longest = max(holder.longest, row["longest"] / 1000)

    async def _aggregate(self, pipeline: operations.Pipeline) -> list[dict[str, Any]]:
        with self._store.limit():
            async with await self._jobs.aggregate(pipeline) as cursor:
                return await cursor.to_list()

    async def _count_consumers(self, census: Census) -> None:
        rows = await self._find_if_allowed(self._consumers, operations.registered())
        if rows is None:
            return
        census.consumers = {}
        for row in rows:
            consumer = _read_consumer(row)
            if consumer.silent is None or consumer.silent > operations.SILENT_AFTER:
                continue
            census.consumers[consumer.name] = consumer
            for name in consumer.queues:
                queue = census.queue(name)
                queue.consumers += 1
                queue.slots += consumer.slots or 0

    async def _measure_oplog(self) -> float | None:
        times = []
        for direction in (1, -1):
            command = observations.end_of_oplog(direction)
            for entry in await self._find_if_allowed(self._oplog, command) or ():
                times.append(entry["ts"].time)
        return float(times[1] - times[0]) if len(times) == 2 else None

    async def _find_if_allowed(
        self, collection: AsyncCollection[Any], command: operations.Find
    ) -> list[dict[str, Any]] | None:
        """Return what is found, or None when this server or its administrator does not allow it."""
        if collection.full_name in self._refused:
            return None
        try:
            with self._store.limit():
                async with collection.find(
                    command.filter, command.projection, sort=command.sort, limit=command.limit
                ) as cursor:
                    return await cursor.to_list()
        except OperationFailure as error:
            if error.code not in NOT_ALLOWED:
                raise
            self._refused.add(collection.full_name)
            logger.info(
                "Left out of the census, no right to read it: %s",
                collection.full_name,
                extra={"event": "census_refused", "reason": collection.full_name},
            )
            return None


def _read_consumer(row: Mapping[str, Any]) -> ConsumerCensus:
    """Read an entry of the list, which anybody may have written."""
    queues = row.get("queues")
    return ConsumerCensus(
        name=str(row["_id"]),
        queues=[queue for queue in queues if isinstance(queue, str)]
        if isinstance(queues, list)
        else [],
        slots=_whole(row.get("concurrency")),
        host=_text(row.get("host")),
        pid=_whole(row.get("pid")),
        version=_text(row.get("version")),
        up=_seconds(row.get("up")),
        silent=_seconds(row.get("silent")),
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(milliseconds: object) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, (int, float)) else None
