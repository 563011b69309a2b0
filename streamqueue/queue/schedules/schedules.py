"""Schedules and AsyncSchedules: the two shells on the schedules of a collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from anyio import CancelScope

from ...durations import shown
from ...errors import ConfigurationError
from ...protocol.schedules import DEFAULT_LIMIT, CatchUp, Schedule, check_schedule
from ...protocol.ticks import check_rule
from ...store.asynchronous import AsyncStore
from ...store.blocking import Store
from ..flow import run, run_async
from .changes import Changes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from typing import Unpack

    from bson import ObjectId
    from prometheus_client import CollectorRegistry
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.collection import Collection

    from ...protocol.fitting.kinds import PayloadLike
    from ...protocol.schedules import TickSettings
    from .info import ScheduleInfo


def _checked(
    name: str, queue: str, when: Mapping[str, Any], settings: Mapping[str, Any]
) -> Schedule:
    return check_schedule(name, queue, check_rule(**when), **settings)


def _catch_up(value: CatchUp | None) -> CatchUp | None:
    """Return which ticks of a pause are caught up; None if none are, not even those of its last
    minute, which after an outage would be in time."""
    if value is not None and value not in get_args(CatchUp):
        raise ConfigurationError(
            f"catch_up must be one of {', '.join(map(repr, get_args(CatchUp)))}, or None, not "
            f"{shown(value)}"
        )
    return None if value == "none" else value


class Schedules:
    """The schedules that are stored for a collection of jobs, which any of its workers fires.

    Those that workers declare in their code (``@worker.schedule``) are listed, paused, resumed and
    run from here too.

    Args:
        collection: a pymongo ``Collection`` (or ``Database``: its ``jobs`` collection).
        registry: where the metrics of :meth:`run_now` are registered; None, the default, is
            prometheus_client's own.

    Raises:
        ConfigurationError: not such a collection.

    ::

        schedules = Schedules(MongoClient(uri).shop.jobs)
        schedules.add("report", cron="0 3 * * *", timezone="Europe/Berlin", queue="reports")
    """

    def __init__(
        self, collection: Collection[Any], *, registry: CollectorRegistry | None = None
    ) -> None:
        self._changes = Changes(Store(collection), registry)

    def add(
        self,
        name: str,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        offset: float | timedelta = 0,
        timezone: str = "UTC",
        queue: str = "default",
        payload: PayloadLike | None = None,
        catch_up: CatchUp = "one",
        catch_up_limit: int = DEFAULT_LIMIT,
        spread: float | timedelta = 0,
        **put: Unpack[TickSettings],
    ) -> None:
        """Store a schedule, in the place of one of its name; it holds in all workers at once.

        With a new or changed rule it fires from now on: nothing is caught up. With the same rule
        it goes on where it was, and one that is paused stays so.

        Args:
            name: 1-64 letters, digits, ``_ . -``.
            cron: a line of five fields, or one of @hourly, @daily, @weekly, @monthly, @yearly.
            every: in the place of `cron`: seconds (or a timedelta), at least 1, on the grid of the
                Unix epoch.
            offset: seconds by which the ticks of `every` are moved.
            timezone: the zone that `cron` is read in, such as ``"Europe/Berlin"``.
            queue: the queue that its jobs go to.
            payload: of its jobs, or a call of a task in that queue; default an empty one.
            catch_up: which ticks are put that were missed by more than a minute because no worker
                ran: ``"none"``, the latest ``"one"``, or ``"all"``, the oldest first.
            catch_up_limit: how many missed ticks ``"all"`` puts at the most.
            spread: seconds over which schedules begin that fire at the same moments.
            put: settings of ``put``, such as `priority`, `key`, `group`, `expires`, `keep`,
                `max_attempts`.

        Raises:
            ConfigurationError: a rule that cannot be read or never fires, an unknown zone, a
                setting out of its range or not for schedules; cronsim is not installed; or a
                worker declares a schedule of this name in its code.
            PayloadError: the payload cannot be stored.
            PyMongoError: the server; after a timeout or a lost connection it may be stored.
        """
        when = {"cron": cron, "every": every, "offset": offset, "timezone": timezone}
        settings: dict[str, Any] = {
            "spread": spread,
            "catch_up": catch_up,
            "catch_up_limit": catch_up_limit,
            "payload": payload,
            "put": put,
        }
        schedule = _checked(name, queue, when, settings)
        run(self._changes.add(schedule))

    def list(self) -> list[ScheduleInfo]:
        """Return all schedules of the collection, at most 10,000, in the order of their names."""
        return run(self._changes.all())

    def remove(self, name: str) -> None:
        """Take a schedule away; jobs that it has put stay.

        Raises:
            ScheduleNotFound: there is none of this name.
            ConfigurationError: a worker that runs declares it in its code.
            PyMongoError: the server.
        """
        run(self._changes.remove(name))

    def pause(self, name: str) -> None:
        """Let a schedule fire no more, in any process, until :meth:`resume`; also over restarts.

        When this returns, no tick that comes is put. To pause a paused one changes nothing.

        Raises:
            ScheduleNotFound: there is none of this name.
            PyMongoError: the server.
        """
        run(self._changes.pause(name))

    def resume(self, name: str, *, catch_up: CatchUp | None = None) -> None:
        """Let a paused schedule fire again, from its next tick on.

        Args:
            catch_up: which ticks of the pause are put after all: ``"one"`` or ``"all"``; None, the
                default, and ``"none"``: none.

        One that is not paused stays as it is. Raises as :meth:`pause` does.
        """
        catch_up = _catch_up(catch_up)
        run(self._changes.resume(name, catch_up))

    def run_now(self, name: str) -> ObjectId:
        """Put a job of a schedule now, paused or not, and return its id; its ticks stay.

        Raises:
            ScheduleNotFound: there is none of this name.
            ConfigurationError: what is stored of it cannot be put.
            DuplicateJob: a job has the key that it puts with.
            PyMongoError: the server; after a timeout or a lost connection the job may be there.
        """
        return run(self._changes.run_now(name))


class AsyncSchedules:
    """The schedules that are stored for a collection of jobs, which any of its workers fires.

    Those that workers declare in their code (``@worker.schedule``) are listed, paused, resumed and
    run from here too.

    Args:
        collection: a pymongo ``AsyncCollection`` (or ``AsyncDatabase``: its ``jobs`` collection).
        registry: where the metrics of :meth:`run_now` are registered; None, the default, is
            prometheus_client's own.

    Raises:
        ConfigurationError: not such a collection.

    ::

        schedules = AsyncSchedules(AsyncMongoClient(uri).shop.jobs)
        await schedules.add("report", cron="0 3 * * *", timezone="Europe/Berlin", queue="reports")
    """

    def __init__(
        self, collection: AsyncCollection[Any], *, registry: CollectorRegistry | None = None
    ) -> None:
        self._changes = Changes(AsyncStore(collection), registry)

    async def add(
        self,
        name: str,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        offset: float | timedelta = 0,
        timezone: str = "UTC",
        queue: str = "default",
        payload: PayloadLike | None = None,
        catch_up: CatchUp = "one",
        catch_up_limit: int = DEFAULT_LIMIT,
        spread: float | timedelta = 0,
        **put: Unpack[TickSettings],
    ) -> None:
        """Store a schedule, in the place of one of its name; it holds in all workers at once.

        With a new or changed rule it fires from now on: nothing is caught up. With the same rule
        it goes on where it was, and one that is paused stays so.

        Args:
            name: 1-64 letters, digits, ``_ . -``.
            cron: a line of five fields, or one of @hourly, @daily, @weekly, @monthly, @yearly.
            every: in the place of `cron`: seconds (or a timedelta), at least 1, on the grid of the
                Unix epoch.
            offset: seconds by which the ticks of `every` are moved.
            timezone: the zone that `cron` is read in, such as ``"Europe/Berlin"``.
            queue: the queue that its jobs go to.
            payload: of its jobs, or a call of a task in that queue; default an empty one.
            catch_up: which ticks are put that were missed by more than a minute because no worker
                ran: ``"none"``, the latest ``"one"``, or ``"all"``, the oldest first.
            catch_up_limit: how many missed ticks ``"all"`` puts at the most.
            spread: seconds over which schedules begin that fire at the same moments.
            put: settings of ``put``, such as `priority`, `key`, `group`, `expires`, `keep`,
                `max_attempts`.

        Raises:
            ConfigurationError: a rule that cannot be read or never fires, an unknown zone, a
                setting out of its range or not for schedules; cronsim is not installed; or a
                worker declares a schedule of this name in its code.
            PayloadError: the payload cannot be stored.
            PyMongoError: the server; after a timeout or a lost connection it may be stored.
        """
        when = {"cron": cron, "every": every, "offset": offset, "timezone": timezone}
        settings: dict[str, Any] = {
            "spread": spread,
            "catch_up": catch_up,
            "catch_up_limit": catch_up_limit,
            "payload": payload,
            "put": put,
        }
        schedule = _checked(name, queue, when, settings)
        await run_async(self._changes.add(schedule), CancelScope(shield=True))

    async def list(self) -> list[ScheduleInfo]:
        """Return all schedules of the collection, at most 10,000, in the order of their names."""
        return await run_async(self._changes.all(), CancelScope(shield=True))

    async def remove(self, name: str) -> None:
        """Take a schedule away; jobs that it has put stay.

        Raises:
            ScheduleNotFound: there is none of this name.
            ConfigurationError: a worker that runs declares it in its code.
            PyMongoError: the server.
        """
        await run_async(self._changes.remove(name), CancelScope(shield=True))

    async def pause(self, name: str) -> None:
        """Let a schedule fire no more, in any process, until :meth:`resume`; also over restarts.

        When this returns, no tick that comes is put. To pause a paused one changes nothing.

        Raises:
            ScheduleNotFound: there is none of this name.
            PyMongoError: the server.
        """
        await run_async(self._changes.pause(name), CancelScope(shield=True))

    async def resume(self, name: str, *, catch_up: CatchUp | None = None) -> None:
        """Let a paused schedule fire again, from its next tick on.

        Args:
            catch_up: which ticks of the pause are put after all: ``"one"`` or ``"all"``; None, the
                default, and ``"none"``: none.

        One that is not paused stays as it is. Raises as :meth:`pause` does.
        """
        catch_up = _catch_up(catch_up)
        await run_async(self._changes.resume(name, catch_up), CancelScope(shield=True))

    async def run_now(self, name: str) -> ObjectId:
        """Put a job of a schedule now, paused or not, and return its id; its ticks stay.

        Raises:
            ScheduleNotFound: there is none of this name.
            ConfigurationError: what is stored of it cannot be put.
            DuplicateJob: a job has the key that it puts with.
            PyMongoError: the server; after a timeout or a lost connection the job may be there.
        """
        return await run_async(self._changes.run_now(name), CancelScope(shield=True))
