"""Taking ticks: a schedule's last tick is moved forward and its job put, in one transaction."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pymongo
from anyio import CancelScope
from pymongo import ReadPreference
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from ... import plain
from ...clock import monotonic
from ...errors import ConfigurationError, DuplicateJob, PayloadError
from ...failures import failure_name
from ...protocol import operations
from ...protocol.schedules import StoredSchedule
from ...queue.flow import run_async
from ...queue.producer import Producer
from ...queue.transactions import commit
from ...store.collection import settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import ObjectId
    from pymongo.asynchronous.client_session import AsyncClientSession

    from ...metrics.bundles import TickResult
    from ...metrics.series import Metrics
    from ...protocol.put import Put
    from ...protocol.schedules import Step
    from ...store.asynchronous import AsyncStore

logger = plain.logger("streamqueue.schedules")

PATIENCE = 5.0
"""Seconds that one tick may take. So long others wait for a place, if all places are taken."""


class TakenAlready(Exception):
    """Somebody else has taken the tick, it is not due, or something else is stored by now."""


class Seen(NamedTuple):
    """A schedule as it was read.

    Attributes:
        schedule: what was stored.
        then: the server's time when it was read.
        at: the :func:`monotonic` time when that was known here.
    """

    schedule: StoredSchedule
    then: datetime
    at: float

    def now(self) -> datetime:
        """Return the server's time, or a moment before it: so nothing looks due too early."""
        return self.then + timedelta(seconds=monotonic() - self.at)


@dataclass(slots=True)
class Taken:
    """What has become of a step."""

    result: TickResult
    before: datetime | None


class Firing:
    """Takes the ticks of schedules; knows nothing of when they are due."""

    def __init__(self, store: AsyncStore, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings_of(store.jobs)
        self._metrics = metrics
        self._doubtful: dict[str, tuple[ObjectId, Step]] = {}

    async def look(self, names: Sequence[str]) -> dict[str, Seen]:
        """Return all that is stored of these schedules, by their names."""
        rows = await self._store.read_settings(operations.schedules_named(names))
        seen = {}
        for row in rows:
            schedule = StoredSchedule.from_document(row["found"])
            if schedule is not None:
                self._settle(schedule.name, schedule)
                seen[schedule.name] = Seen(schedule, row["now"], monotonic())
        return seen

    def _settle(self, name: str, schedule: StoredSchedule) -> None:
        """Count a tick whose transaction has come through, though nobody said so."""
        job_id, step = self._doubtful.pop(name, (None, None))
        if step is not None and schedule.last_job == job_id and schedule.last_tick == step.tick:
            self._metrics.ticks(schedule.queue, "fired", 1)

    async def begin_anew(self, schedule: StoredSchedule) -> None:
        """Have a schedule fire from now on whose last tick is lost.

        Raises:
            TakenAlready: look again.
            PyMongoError: the outcome is unknown: look again.
        """
        following = schedule.rule.next(self._store.clock.now()) if schedule.rule else None
        command = operations.begin_anew(schedule, following)
        with CancelScope(shield=True), pymongo.timeout(PATIENCE):
            begun = await self._settings.update_one(*command)
        if not begun.matched_count:
            raise TakenAlready
        logger.warning(
            "Schedule %s had lost its last tick: it fires from now on",
            schedule.name,
            extra={
                "event": "schedule_begun_anew",
                "schedule": schedule.name,
                "queue": schedule.queue,
            },
        )

    async def take(self, schedule: StoredSchedule, step: Step) -> None:
        """Take a tick, and put its job unless it is to be left out.

        Raises:
            TakenAlready: look again.
            PyMongoError: the outcome is unknown: look again.
        """
        if not step.fires:
            await self._pass_over(schedule, step)
            return
        try:
            put = schedule.schedule().new_put(step.tick)
        except (ConfigurationError, PayloadError) as error:
            await self._pass_over(schedule, step, "error", str(error))
            return
        try:
            taken = await self._put(schedule, step, put)
        except DuplicateJob:
            await self._pass_over(schedule, step, "skipped")
        except PyMongoError as error:
            if _is_conflict(error):
                raise TakenAlready from error
            if not operations.is_refusal(error):
                self._doubtful[schedule.name] = put.id, step
                raise
            reason = f"the server refuses its job: {failure_name(error)}"
            await self._pass_over(schedule, step, "error", reason)
        else:
            self._count(schedule, step, taken)

    async def _put(self, schedule: StoredSchedule, step: Step, put: Put) -> Taken:
        producer = Producer(self._store, schedule.queue, self._metrics.registry)
        document = await run_async(producer.prepare(put, None))  # before: it may make an index

        async def act(session: AsyncClientSession) -> Taken:
            before = await self._move(schedule, step, put.id, session)
            there = await run_async(producer.put(put, document, session))
            if there == put.id:
                return Taken("fired", before.get("last_tick"))
            skips = put.unique.on_conflict == "skip"
            last_job = before.get("last_job") if skips else there
            command = operations.note_last_job(schedule.name, last_job)
            await self._settings.update_one(*command, session=session)
            return Taken("skipped" if skips else "fired", before.get("last_tick"))

        client = self._store.jobs.database.client
        with CancelScope(shield=True), pymongo.timeout(PATIENCE):
            async with client.start_session() as session:
                # (What the client's URI says of reads may be none that transactions know.)
                await session.start_transaction(
                    ReadConcern("local"), WriteConcern("majority"), ReadPreference.PRIMARY
                )
                taken = await act(session)  # an error ends the session, and the transaction with it
                await run_async(commit(session, monotonic() + PATIENCE, anyio.sleep))
        return taken

    async def _move(
        self,
        schedule: StoredSchedule,
        step: Step,
        job_id: ObjectId | None,
        session: AsyncClientSession | None = None,
    ) -> dict[str, Any]:
        """Move the last tick; return what was stored before."""
        following = schedule.rule.next(step.tick) if schedule.rule else None
        before: dict[str, Any] | None = await self._settings.find_one_and_update(
            *operations.take(schedule, step, following, job_id),
            projection={"last_tick": 1, "last_job": 1},
            session=session,
        )
        if before is None:
            raise TakenAlready
        return before

    async def _pass_over(
        self,
        schedule: StoredSchedule,
        step: Step,
        result: TickResult | None = None,
        reason: str = "",
    ) -> None:
        """Move the last tick and put nothing."""
        with CancelScope(shield=True), pymongo.timeout(PATIENCE):
            before = await self._move(schedule, step, None)
        taken = Taken(result or _left_out(schedule), before.get("last_tick"))
        self._count(schedule, step, taken, reason)

    def _count(self, schedule: StoredSchedule, step: Step, taken: Taken, reason: str = "") -> None:
        """Count and log what became of a tick, and of those before it that were passed over."""
        missed = 0
        if schedule.rule is not None and taken.before is not None:
            missed = schedule.rule.count(taken.before, step.tick) - 1
        if not step.fires:
            missed += 1
        else:
            self._metrics.ticks(schedule.queue, taken.result, 1)
        if missed > 0:
            self._metrics.ticks(schedule.queue, _left_out(schedule), missed)
            logger.warning(
                "Schedule %s was late: %d ticks up to %s were left out (catch_up is %s)",
                schedule.name,
                missed,
                step.tick.isoformat(),
                schedule.catch_up,
                extra={
                    "event": "ticks_left_out",
                    "schedule": schedule.name,
                    "queue": schedule.queue,
                    "tick": step.tick.isoformat(),
                    "count": missed,
                },
            )
        if step.fires:
            _log_fired(schedule, step, taken, reason or "a job has its key")


def _log_fired(schedule: StoredSchedule, step: Step, taken: Taken, reason: str) -> None:
    tick = step.tick.isoformat()
    if taken.result == "fired":
        logger.debug(
            "Schedule %s fired for %s",
            schedule.name,
            tick,
            extra={
                "event": "tick_fired",
                "schedule": schedule.name,
                "queue": schedule.queue,
                "tick": tick,
            },
        )
        return
    skipped = taken.result == "skipped"
    logger.log(
        logging.INFO if skipped else logging.ERROR,
        "Schedule %s put no job for %s: %s",
        schedule.name,
        tick,
        reason,
        extra={
            "event": "tick_skipped" if skipped else "tick_failed",
            "schedule": schedule.name,
            "queue": schedule.queue,
            "tick": tick,
        },
    )


def _is_conflict(error: PyMongoError) -> bool:
    """Whether the server has ended a transaction for another one, before it was committed."""
    transient = error.has_error_label("TransientTransactionError")
    return transient and isinstance(error, OperationFailure)


def _left_out(schedule: StoredSchedule) -> TickResult:
    return "dropped" if schedule.catch_up == "none" else "skipped"
