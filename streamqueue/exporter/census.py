"""How the queue stands: jobs by state, the oldest that waits, consumers and what they hold.

Taken from the documents, for whoever looks from outside: the exporter, ``top``, the command line.
Every count is read from an index that holds only jobs that are live or dead, so what is done costs
nothing; of the running jobs the documents are read. A million waiting jobs cost a few tenths of a
second of the server's time. The ages are differences on the server's clock.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo.errors import OperationFailure

from .. import plain
from ..clock import monotonic
from ..names import INVALID, is_name, label_of
from ..protocol import operations
from ..protocol.document import BARE_CODEC, State
from ..queue.flow import run_async
from ..store.collection import UNAUTHORIZED, consumers_of, oplog_of, rates_beside, settings_of
from . import queries, settings
from .counts import Census, ConsumerCensus, QueueCensus
from .discovery import MOST_FOREIGN, NO_SUCH_INDEX, Walk
from .limits import count_rules
from .roll import Roll

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from pymongo.asynchronous.collection import AsyncCollection

    from ..protocol.limits import Rules
    from ..store.asynchronous import AsyncStore

logger = plain.logger("streamqueue.census")

NOT_ALLOWED = {UNAUTHORIZED, 73}  # 73: mongos knows no database ``local``
MAX_QUEUES = 200
"""Queues in one census; a program that makes a queue per user gets so many of them."""
LONGEST = 60.0
"""Seconds a census may take as a whole."""
DISCOVERY = 5.0
"""Seconds of these for finding which queues there are; the next one goes on from there."""
MOST_RUNNING = 10_000
"""Running jobs of queues that are not known yet that are looked at; those of the others all are."""
MOST_SET, MOST_SUBSCRIBED = 2000, 2000
"""Queues whose pauses and limits are read, and whose subscriptions are counted."""
NO_DEPENDENTS_SECONDS = 60.0
"""For so long they are not asked for again where no job has parents."""
MOST_HELD, MOST_HOLDERS = 100_000, 1000
"""Running jobs that are sorted by who holds them, and consumers known by that alone."""


class Surveyor:
    """Takes one census after another.

    What the user may not read is asked for once and left out from then on.

    Args:
        store: the jobs.
        holders: also find out which consumer holds how many jobs.
    """

    def __init__(self, store: AsyncStore, *, holders: bool = False) -> None:
        self._store = store
        self._holders = holders
        self._jobs = store.jobs.with_options(codec_options=BARE_CODEC)
        self._consumers = consumers_of(store.jobs)
        self._oplog = oplog_of(store.jobs)
        self._settings = settings_of(store.jobs)
        self._rates = f"{store.jobs.database.name}.{rates_beside(store.jobs.name)}"
        self._refused: set[str] = set()
        self._left_out_without = {
            self._consumers.name: "consumers are",
            self._oplog.name: "the window of the oplog is",
            self._settings.name: "pauses, limits, schedules and subscriptions are",
        }
        self._rules: Mapping[str, Rules] = {}
        self._roll = Roll()
        self._walks = [Walk(store, state) for state in queries.QUEUE_FIRST]
        self._tells_left_out = True
        # When they are asked for again.
        self._dependents_at = self._left_at = -math.inf

    async def take(self) -> Census:
        """Count everything now. A queue that was there once stays for an hour, with zeros.

        Raises:
            PyMongoError: the server, or it took more than a minute; nothing is known then.
        """
        until = monotonic() + DISCOVERY
        with pymongo.timeout(LONGEST):
            census = Census()
            await self._count_consumers(census)
            served = set(census.queues)
            await self._note_settings(census)
            known = set(census.queues) | self._roll.shown
            for place, walk in enumerate(self._walks):
                left = until - monotonic()
                await walk.go_on(known, monotonic() + left / (len(self._walks) - place))
            names = known.union(*(walk.names for walk in self._walks))
            await self._count_running(census, sorted(names))
            chosen = self._roll.choose(names | set(census.queues) - {INVALID}, served, MAX_QUEUES)
            for name in chosen:
                await self._count_queue(census.queue(name))
            if any(census.queue(name).waiting for name in chosen):
                await self._count_held_dependents(census)
                await self._count_left(census)
            await self._count_foreign(census)
            if self._holders and census.consumers is not None:
                await self._count_held(census.consumers)
            census.oplog_window = await self._measure_oplog()
        self._settle(census, chosen, served)
        return census

    def _settle(self, census: Census, chosen: list[str], served: Set[str]) -> None:
        """Keep only the queues that are shown, in order, and remember them."""
        queues = census.queues
        alive = {
            name
            for name in chosen
            if name in served
            or queues[name].paused
            or queues[name].has_schedules
            or queues[name].subscriptions
            or any(queues[name].jobs().values())
        }
        self._roll.counted(alive, set(chosen) - alive)
        census.left_out = self._roll.left_out
        shown = sorted(self._roll.shown)
        if census.foreign:
            shown.append(INVALID)
        census.queues = {name: census.queues[name] for name in shown}
        if census.left_out and self._tells_left_out:
            logger.warning(
                "Of %d queues only %d are counted",
                len(chosen) + census.left_out,
                len(chosen),
                extra={"event": "queues_left_out", "count": census.left_out},
            )
        self._tells_left_out = not census.left_out

    async def _count_queue(self, queue: QueueCensus) -> None:
        pipeline = queries.queue_census(queue.name, self._store.jobs.name)
        for row in await self._aggregate(pipeline):
            match row["_id"]:
                case State.READY:
                    queue.ready = row["count"]
                case State.SCHEDULED:
                    queue.scheduled = row["count"]
                case State.WAITING:
                    queue.waiting = row["count"]
                case State.DEAD:
                    queue.dead = row["count"]
                case queries.OVERDUE:
                    queue.overdue = row["count"]
                case _:
                    queue.oldest_ready_age = max(queue.oldest_ready_age, row["age"] / 1000)
        if (rules := self._rules.get(queue.name)) is not None:
            await self._count_rules(queue, rules)

    async def _count_rules(self, queue: QueueCensus, rules: Rules) -> None:
        found = await run_async(
            count_rules(
                self._store,
                queue.name,
                rules,
                running=queue.running,
                ready=queue.ready,
                dead=queue.dead,
                rates=self._rates not in self._refused,
            )
        )
        queue.limits, queue.held_groups = found.limits, found.held_groups
        if found.rates_refused:
            self._note_refused(self._rates, "whether rates hold jobs back is")

    async def _count_held_dependents(self, census: Census) -> None:
        """Count the jobs that wait for a dead parent; there is an index for those where any may."""
        if monotonic() < self._dependents_at:
            return
        pipeline = queries.held_dependents()
        try:
            rows = await self._aggregate(pipeline, hint=queries.HELD_DEPENDENTS)
        except OperationFailure as error:
            if error.code != NO_SUCH_INDEX:
                raise
            self._dependents_at = monotonic() + NO_DEPENDENTS_SECONDS
            return
        for row in rows:
            if is_name(row["_id"]):
                census.queue(row["_id"]).held_dependents = row["count"]

    async def _count_left(self, census: Census) -> None:
        """Count the jobs that are left to other workers; there is an index where any was."""
        if monotonic() < self._left_at:
            return
        try:
            rows = await self._aggregate(queries.left_to_others(), hint=queries.LEFT_TO_OTHERS)
        except OperationFailure as error:
            if error.code != NO_SUCH_INDEX:
                raise
            self._left_at = monotonic() + NO_DEPENDENTS_SECONDS
            return
        for row in rows:
            if is_name(row["_id"].get("queue")):
                queue = census.queue(row["_id"]["queue"])
                if row["_id"]["misfit"]:
                    queue.misfits = row["count"]
                else:
                    queue.unknown_tasks = row["count"]

    async def _count_foreign(self, census: Census) -> None:
        """Count the documents whose queue is no valid name, except the running ones."""
        jobs: Counter[str] = Counter()
        for walk in self._walks:
            jobs[walk.state] = walk.foreign
        pipeline = queries.foreign_queues(self._store.jobs.name, MOST_FOREIGN)
        for row in await self._aggregate(pipeline):
            jobs[row["_id"]] += row["count"]
        if jobs.total():
            queue = census.queue(INVALID)
            queue.ready, queue.scheduled = jobs[State.READY], jobs[State.SCHEDULED]
            queue.waiting, queue.dead = jobs[State.WAITING], jobs[State.DEAD]

    async def _count_running(self, census: Census, names: Sequence[str]) -> None:
        unknown = False
        for row in await self._aggregate(queries.running_census(names)):
            if row["_id"] is None:
                unknown = True
            else:
                _add_running(census.queue(row["_id"]), row)
        if unknown:
            pipeline = queries.running_elsewhere(names, MOST_RUNNING)
            for row in await self._aggregate(pipeline):
                _add_running(census.queue(label_of(row["_id"])), row)

    async def _count_held(self, consumers: dict[str, ConsumerCensus]) -> None:
        pipeline = queries.held_census(MOST_HELD, MOST_HOLDERS)
        for row in await self._aggregate(pipeline, allowDiskUse=True):
            name = INVALID if row["_id"] is None else str(row["_id"])
            holder = consumers.setdefault(name, ConsumerCensus(name))
            holder.running += row["running"]
            holder.expired += row["expired"]
            holder.longest = max(holder.longest, row["longest"] / 1000)

    async def _aggregate(
        self, pipeline: operations.Pipeline, **options: Any
    ) -> list[dict[str, Any]]:
        with self._store.limit():
            async with await self._jobs.aggregate(pipeline, **options) as cursor:
                return await cursor.to_list()

    async def _count_consumers(self, census: Census) -> None:
        rows = await self._read_if_allowed(self._consumers, operations.registered())
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

    async def _note_settings(self, census: Census) -> None:
        def note_queues(census: Census, rows: Sequence[Mapping[str, Any]]) -> None:
            settings.note_paused(census, rows)
            self._rules = settings.rules_in(rows)

        self._rules = {}
        for command, note in (
            (operations.queues_with_settings(MOST_SET), note_queues),
            (operations.schedules_late(), settings.note_schedules),
            (operations.subscriptions(MOST_SUBSCRIBED), settings.note_subscriptions),
        ):
            rows = await self._read_if_allowed(self._settings, command)
            if rows is None:
                census.knows_settings = False
                return
            note(census, rows)

    async def _measure_oplog(self) -> float | None:
        times = []
        for direction in (1, -1):
            command = queries.end_of_oplog(direction)
            for entry in await self._read_if_allowed(self._oplog, command) or ():
                times.append(entry["ts"].time)
        return float(times[1] - times[0]) if len(times) == 2 else None

    async def _read_if_allowed(
        self, collection: AsyncCollection[Any], command: operations.Find | operations.Pipeline
    ) -> list[dict[str, Any]] | None:
        """Return what is found, or None when this server or its administrator does not allow it."""
        if collection.full_name in self._refused:
            return None
        try:
            with self._store.limit():
                if isinstance(command, operations.Find):
                    cursor: Any = collection.find(
                        command.filter, command.projection, sort=command.sort, limit=command.limit
                    )
                else:
                    cursor = await collection.aggregate(command)
                async with cursor:
                    found: list[dict[str, Any]] = await cursor.to_list()
                    return found
        except OperationFailure as error:
            if error.code not in NOT_ALLOWED:
                raise
            self._note_refused(collection.full_name, self._left_out_without[collection.name])
            return None

    def _note_refused(self, name: str, left_out: str) -> None:
        self._refused.add(name)
        logger.info(
            "No right to read %s: %s left out",
            name,
            left_out,
            extra={"event": "census_refused", "reason": name},
        )


def _add_running(queue: QueueCensus, row: Mapping[str, Any]) -> None:
    queue.running += row["running"]
    queue.expired_leases += row["expired"]
    queue.oldest_running_age = max(queue.oldest_running_age, row["longest"] / 1000)


def _read_consumer(row: Mapping[str, Any]) -> ConsumerCensus:
    """Read an entry of the list, which anybody may have written."""
    queues = row.get("queues")
    return ConsumerCensus(
        name=str(row["_id"]),
        queues=[queue for queue in queues if is_name(queue)] if isinstance(queues, list) else [],
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
