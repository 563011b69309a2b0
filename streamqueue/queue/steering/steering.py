"""Steering: jobs cancelled, moved to another time, and put back when dead; for both shells."""

from __future__ import annotations

from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from ... import options
from ...durations import point_in_time, seconds
from ...errors import ConfigurationError, DuplicateJob, JobNotFound
from ...protocol import operations
from ...protocol.document import ids_meant
from ...protocol.stored import text_in
from ...protocol.unique import TaskKey
from ...store.lines import log_stays_dead
from ..flow import run, run_async, shield
from ..unique import UniquePuts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ...store.asynchronous import AsyncStore
    from ...store.blocking import Store
    from ..flow import Flow
    from .canceller import Canceller

Duration = float | timedelta


class Spread:
    """Times for many jobs, evenly over some seconds.

    Args:
        start: the first of them.
        length: seconds from there to the end.
        count: how many there are to be.
    """

    def __init__(self, start: datetime, length: float, count: int) -> None:
        self._start = start
        self._length = length
        self._count = count
        self._given = 0

    def some(self, count: int) -> list[datetime]:
        """Return the next so many."""
        first, self._given = self._given, self._given + count
        # (Of more than were counted, because some died meanwhile, the rest has the last.)
        places = [min(place, self._count - 1) for place in range(first, self._given)]
        step = self._length / max(1, self._count)
        return [self._start + timedelta(seconds=step * place) for place in places]


class Steering:
    """Changes what becomes of the jobs of one queue."""

    def __init__(self, store: Store | AsyncStore, name: str) -> None:
        self._store = store
        self._name = name

    def reschedule(
        self,
        job_id: Any,
        delay: Duration | None,
        run_at: datetime | None,
        priority: int | None,
    ) -> Flow[None]:
        """Let a job that waits do so until another time, or in another place."""
        ids = ids_meant(job_id)
        if delay is not None and run_at is not None:
            raise ConfigurationError("give delay or run_at, not both")
        if delay is None and run_at is None and priority is None:
            raise ConfigurationError("give delay, run_at or priority: what is to change")
        change = operations.rescheduled(
            delay=None if delay is None else seconds(delay, "delay"),
            run_at=None if run_at is None else point_in_time(run_at, "run_at"),
            priority=None if priority is None else options.priority(priority),
        )
        yield self._store.prepare()
        for meant in ids:
            command = operations.Update(operations.that_waits(self._name, meant), change)
            if (yield self._store.jobs.update_one(*command)).matched_count:
                return
        raise JobNotFound(ids[-1], "waiting")

    def deaths(
        self, error: str | None, group: str | None, older_than: Duration | None
    ) -> operations.Deaths:
        """Return which of the dead jobs are meant."""
        return operations.Deaths(
            self._name,
            error=None if error is None else options.error_text(error),
            group=None if group is None else options.group_name(group),
            age=None if older_than is None else seconds(older_than, "older_than"),
        )

    def spread(self, deaths: operations.Deaths, length: Duration | None) -> Flow[Spread | None]:
        """Return the times for these jobs, over so many seconds from now; None: now."""
        length = None if length is None else seconds(length, "spread")
        yield self._store.prepare()
        if not length:
            return None
        count = yield self._store.jobs.count_documents(deaths.filter())
        return Spread(self._store.clock.now(), length, count)

    def requeue(self, job_id: Any, *, fresh: bool) -> Flow[int]:
        """Make one dead job ready again; return 1, or raise JobNotFound."""
        ids = ids_meant(job_id)
        yield self._store.prepare()
        for meant in ids:
            if (yield from self._requeue_one(meant, fresh)):
                return 1
        raise JobNotFound(ids[-1], "dead")

    def _requeue_one(self, job_id: Any, fresh: bool) -> Flow[bool]:
        command = operations.requeue(self._name, job_id, fresh=fresh)
        try:
            # In bulk, for the same reason as in Producer.insert().
            written = yield self._store.jobs.bulk_write([UpdateOne(*command)])
            if written.modified_count:
                yield self._store.look_at_requeued([job_id])
            return bool(written.modified_count)
        except BulkWriteError as error:
            (problem,) = operations.errors_of_each(error, 1)
            if not self._store.is_duplicate_job(problem):
                raise problem or error from None
            found = yield self._store.look_up(operations.key_of(job_id))
            [dead] = found or [{}]
            key = TaskKey(str(dead.get("key")), text_in(dead.get("task")))
            holders = yield from UniquePuts(self._store, self._name).holders([key])
            raise DuplicateJob(key.key, holders.get(key, {}).get("_id")) from problem

    def requeue_some(
        self, died: Sequence[dict[str, Any]], spread: Spread | None, *, fresh: bool
    ) -> Flow[int]:
        """Make the jobs of these deaths ready again, at once or each at its time; return how many
        that was."""
        times = None if spread is None else spread.some(len(died))
        count, refused = yield self._store.requeue(self._name, died, times, fresh)
        # Whether others come after them was read with them; but for those, nobody is to look.
        needed = [one["_id"] for one in died if one.get("needed") is not None]
        if needed:
            yield self._store.look_at_requeued(needed)
        for job_id, error in refused:
            taken = self._store.is_duplicate_job(error)
            log_stays_dead(self._name, job_id, error, key_taken=taken)
        return int(count)


def check_many(job_id: Any, *filters: object) -> None:
    """Raise if one job is meant, and something is said of many."""
    if job_id is not None and any(given is not None for given in filters):
        raise ConfigurationError(
            "error, group, older_than and spread are for many jobs: leave them out with a job_id"
        )


class BlockingSteering:
    """The calls of MongoQueue that change what becomes of jobs."""

    _store: Store
    _steering: Steering
    _canceller: Canceller

    def cancel(
        self, job_id: Any, *, dependents: bool = False
    ) -> Literal["cancelled", "asked"] | None:
        """End a job that waits, or have one that runs stopped.

        Returns ``"cancelled"`` when it waited, and has ended; ``"asked"`` when it runs: whoever
        holds it stops it, a worker within milliseconds. A completion that comes before it knows of
        that stands; else the job ends as cancelled whatever its handler does, and never waits
        again. None when it had ended before.

        A cancelled job is removed, unless it is kept, or somebody waits for its end.

        Args:
            job_id: the id of a job, of the type that ``job.id`` has; for an ObjectId also its text.
            dependents: cancel all that comes after it as well, and after that, in whatever queue,
                also when it had ended. By default each goes by its `if_parent_fails`.

        Raises:
            ConfigurationError: `job_id` cannot be an id.
            JobNotFound: no job of this queue has this id.
            PyMongoError: the server; after a timeout or a lost connection it may be cancelled.
                ExecutionTimeout after 5 seconds, when an open transaction has changed the job, as
                one that completes it: nothing was changed, so call again.
        """
        return run(self._canceller.cancel(ids_meant(job_id), dependents))

    def reschedule(
        self,
        job_id: Any,
        *,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
    ) -> None:
        """Let a job that waits, ready or scheduled, do so until another time, or in another place.

        A time that has come makes it ready, behind those of its priority that are; with another
        priority alone it keeps its time, and its place among those that have the same. One with a
        group keeps its place there, unless it is put off: then it holds nobody up, and takes a new
        one when it is due.

        Args:
            job_id: the id of a job, of the type that ``job.id`` has; for an ObjectId also its text.
            delay: seconds (or a timedelta) from now until it is ready.
            run_at: the moment it is ready (aware datetime).
            priority: higher runs first.

        Raises:
            ConfigurationError: an argument out of its range; nothing, or both of `delay` and
                `run_at`, were given.
            JobNotFound: no job that waits has this id: it runs, has ended, or never was.
        """
        run(self._steering.reschedule(job_id, delay, run_at, priority))

    def requeue(
        self,
        job_id: Any = None,
        *,
        error: str | None = None,
        group: str | None = None,
        older_than: float | timedelta | None = None,
        fresh: bool = False,
        spread: float | timedelta | None = None,
    ) -> int:
        """Make a dead job ready again with all its attempts, or many; return how many.

        Of many, one whose key a live job has by now stays dead, which is logged.

        Args:
            job_id: the id of a dead job, or of a cancelled one that was kept (as one that has
                expired, which is then never too late), of the type that ``job.id`` has; for an
                ObjectId also its text. None, the default, is every dead job that the following ask
                for.
            error: those whose last error begins with this, or has a line that does, as the last one
                of a traceback: ``"TimeoutError"``.
            group: those of this group.
            older_than: those that died so many seconds (or a timedelta) ago, or earlier.
            fresh: without its steps: the results that earlier attempts have stored are gone, and
                all is run again. By default they stay, and what was done is not repeated.
            spread: make them ready over so many seconds (or a timedelta), evenly, those that died
                first before the others; by default all at once.

        Raises:
            ConfigurationError: `job_id` cannot be an id, or an argument is out of its range.
            JobNotFound: no dead job has this id.
            DuplicateJob: a live job has the key of this one.
        """
        check_many(job_id, error, group, older_than, spread)
        if job_id is not None:
            return run(self._steering.requeue(job_id, fresh=fresh))
        deaths = self._steering.deaths(error, group, older_than)
        times = run(self._steering.spread(deaths, spread))
        pieces = self._store.pieces(operations.dead_by_now(deaths))
        return sum(run(self._steering.requeue_some(some, times, fresh=fresh)) for some in pieces)


class AsyncSteering:
    """The calls of AsyncMongoQueue that change what becomes of jobs."""

    _store: AsyncStore
    _steering: Steering
    _canceller: Canceller

    async def cancel(
        self, job_id: Any, *, dependents: bool = False
    ) -> Literal["cancelled", "asked"] | None:
        """End a job that waits, or have one that runs stopped.

        Returns ``"cancelled"`` when it waited, and has ended; ``"asked"`` when it runs: whoever
        holds it stops it, a worker within milliseconds. A completion that comes before it knows of
        that stands; else the job ends as cancelled whatever its handler does, and never waits
        again. None when it had ended before.

        A cancelled job is removed, unless it is kept, or somebody waits for its end.

        Args:
            job_id: the id of a job, of the type that ``job.id`` has; for an ObjectId also its text.
            dependents: cancel all that comes after it as well, and after that, in whatever queue,
                also when it had ended. By default each goes by its `if_parent_fails`.

        Raises:
            ConfigurationError: `job_id` cannot be an id.
            JobNotFound: no job of this queue has this id.
            PyMongoError: the server; after a timeout or a lost connection it may be cancelled.
                ExecutionTimeout after 5 seconds, when an open transaction has changed the job, as
                one that completes it: nothing was changed, so call again.
        """
        return await run_async(self._canceller.cancel(ids_meant(job_id), dependents), shield())

    async def reschedule(
        self,
        job_id: Any,
        *,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
    ) -> None:
        """Let a job that waits, ready or scheduled, do so until another time, or in another place.

        A time that has come makes it ready, behind those of its priority that are; with another
        priority alone it keeps its time, and its place among those that have the same. One with a
        group keeps its place there, unless it is put off: then it holds nobody up, and takes a new
        one when it is due.

        Args:
            job_id: the id of a job, of the type that ``job.id`` has; for an ObjectId also its text.
            delay: seconds (or a timedelta) from now until it is ready.
            run_at: the moment it is ready (aware datetime).
            priority: higher runs first.

        Raises:
            ConfigurationError: an argument out of its range; nothing, or both of `delay` and
                `run_at`, were given.
            JobNotFound: no job that waits has this id: it runs, has ended, or never was.
        """
        await run_async(self._steering.reschedule(job_id, delay, run_at, priority))

    async def requeue(
        self,
        job_id: Any = None,
        *,
        error: str | None = None,
        group: str | None = None,
        older_than: float | timedelta | None = None,
        fresh: bool = False,
        spread: float | timedelta | None = None,
    ) -> int:
        """Make a dead job ready again with all its attempts, or many; return how many.

        Of many, one whose key a live job has by now stays dead, which is logged.

        Args:
            job_id: the id of a dead job, or of a cancelled one that was kept (as one that has
                expired, which is then never too late), of the type that ``job.id`` has; for an
                ObjectId also its text. None, the default, is every dead job that the following ask
                for.
            error: those whose last error begins with this, or has a line that does, as the last one
                of a traceback: ``"TimeoutError"``.
            group: those of this group.
            older_than: those that died so many seconds (or a timedelta) ago, or earlier.
            fresh: without its steps: the results that earlier attempts have stored are gone, and
                all is run again. By default they stay, and what was done is not repeated.
            spread: make them ready over so many seconds (or a timedelta), evenly, those that died
                first before the others; by default all at once.

        Raises:
            ConfigurationError: `job_id` cannot be an id, or an argument is out of its range.
            JobNotFound: no dead job has this id.
            DuplicateJob: a live job has the key of this one.
        """
        check_many(job_id, error, group, older_than, spread)
        if job_id is not None:
            return await run_async(self._steering.requeue(job_id, fresh=fresh))
        deaths = self._steering.deaths(error, group, older_than)
        times = await run_async(self._steering.spread(deaths, spread))
        async with aclosing(self._store.pieces(operations.dead_by_now(deaths))) as pieces:
            counts = [
                await run_async(self._steering.requeue_some(some, times, fresh=fresh))
                async for some in pieces
            ]
        return sum(counts)
