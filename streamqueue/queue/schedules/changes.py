"""Changes of schedules; the flows of both shells."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from pymongo.errors import DuplicateKeyError

from ...errors import ConfigurationError, ScheduleNotFound
from ...protocol import operations
from ...protocol.schedules import StoredSchedule, schedule_name
from ...store.collection import consumers_of, settings_of
from ..producer import Producer
from .info import ScheduleInfo

if TYPE_CHECKING:
    from bson import ObjectId
    from prometheus_client import CollectorRegistry

    from ...protocol.schedules import CatchUp, Schedule
    from ...store.asynchronous import AsyncStore
    from ...store.blocking import Store
    from ..flow import Flow


class Changes:
    """Reads and changes the schedules of a collection.

    Args:
        registry: where the puts of :meth:`run_now` are counted.
    """

    def __init__(self, store: Store | AsyncStore, registry: CollectorRegistry | None) -> None:
        self._store = store
        self._registry = registry
        jobs: Any = store.jobs
        self._settings: Any = settings_of(jobs)
        self._consumers: Any = consumers_of(jobs)

    def add(self, schedule: Schedule) -> Flow[None]:
        """Store a schedule, in the place of another one of its name."""
        yield self._store.prepare()
        following = schedule.rule.next(self._store.clock.now())
        by = f"{socket.gethostname()}:{os.getpid()}"
        command = operations.declare(schedule, "stored", by, following)
        try:
            yield self._settings.update_one(*command, upsert=True)
        except DuplicateKeyError:
            if (yield from self._look(schedule.name)).source == "code":
                raise ConfigurationError(
                    f"schedule {schedule.name!r} is declared in the code of workers: change it "
                    "there, or add one of another name"
                ) from None
            yield self._settings.update_one(*command, upsert=True)  # another one was the first
        yield self._store.ring()

    def all(self) -> Flow[list[ScheduleInfo]]:
        """Return all schedules, by their names."""
        yield self._store.prepare()
        documents = yield self._store.read_settings(operations.schedules())
        now = self._store.clock.now()
        read = filter(None, map(StoredSchedule.from_document, documents))
        return [ScheduleInfo.from_stored(stored, now) for stored in read]

    def remove(self, name: str) -> Flow[None]:
        """Take a schedule away, unless a worker that lives declares it."""
        schedule = yield from self._look(schedule_name(name))
        if schedule.source == "code":
            declarer = yield from self._declarer(schedule)
            if declarer is not None:
                raise ConfigurationError(
                    f"schedule {name!r} is declared in the code of {declarer}, which runs: it "
                    "would come back with its next start. Take it out of the code first, or pause "
                    "it"
                )
        yield self._settings.delete_one(operations.schedule_at(name))
        yield self._store.ring()

    def _declarer(self, schedule: StoredSchedule) -> Flow[str | None]:
        """Return the name of a consumer that lives and declares it; not only of the last one that
        has done so, which may be gone while others of the same code run."""
        command = operations.declarers(schedule.name, schedule.declared_by)
        found = yield self._consumers.find(command.filter, command.projection).to_list()
        return next((str(each["_id"]) for each in found if operations.lives(each)), None)

    def pause(self, name: str) -> Flow[None]:
        """Let a schedule fire no more."""
        yield from self._change(name, operations.pause_schedule(schedule_name(name)))

    def resume(self, name: str, catch_up: CatchUp | None) -> Flow[None]:
        """Let a paused schedule fire again."""
        rule = (yield from self._look(schedule_name(name))).rule
        following = rule.next(self._store.clock.now()) if rule else None
        yield from self._change(name, operations.resume_schedule(name, catch_up, following))

    def _change(self, name: str, command: operations.Update) -> Flow[None]:
        yield self._store.prepare()
        if not (yield self._settings.update_one(*command)).matched_count:
            raise ScheduleNotFound(name)
        yield self._store.ring()

    def run_now(self, name: str) -> Flow[ObjectId]:
        """Put a job of a schedule, and return its id."""
        schedule = yield from self._look(schedule_name(name))
        put = schedule.schedule().new_put(self._store.clock.now())
        producer = Producer(self._store, schedule.queue, self._registry)
        document = yield from producer.prepare(put, None)
        there: ObjectId = yield from producer.put(put, document, None)
        return there

    def _look(self, name: str) -> Flow[StoredSchedule]:
        yield self._store.prepare()
        found = yield self._store.read_settings(operations.schedules_named([name]))
        for row in found:
            schedule = StoredSchedule.from_document(row["found"])
            if schedule is not None:
                return schedule
        raise ScheduleNotFound(name)
