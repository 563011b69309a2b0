"""What becomes of jobs: the calls of both shells that look at them, or wait for their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...protocol.put import check_put
from ..flow import run, run_async

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncIterator, Iterable, Iterator
    from datetime import datetime, timedelta

    from bson import ObjectId

    from ...protocol.dependencies import IfParentFails
    from ...protocol.fitting.kinds import PayloadLike
    from ...protocol.put import Put
    from ...protocol.unique import KeyUntil, OnConflict
    from ..info import JobInfo
    from ..looking import Looking
    from .waiting import Waiting


class BlockingAnswers:
    """The calls of MongoQueue that say what becomes of jobs."""

    _name: str
    _looking: Looking
    _waiting: Waiting

    def _put(self, put: Put, session: Any) -> ObjectId:
        """Put a job that was checked, or raise why it is not there for certain; return its id, or
        that of the job which has its key."""
        raise NotImplementedError

    def get(self, job_id: Any) -> JobInfo:
        """Return a job as it is now, of whichever state, payload and result included.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.

        Raises:
            ConfigurationError: `job_id` cannot be an id.
            JobNotFound: this queue has no such job: it has ended and was not kept, say.
        """
        return run(self._looking.get(job_id))

    def list(
        self,
        state: str | None = None,
        *,
        group: str | None = None,
        limit: int = 100,
        start_after: Any = None,
        data: bool = False,
    ) -> builtins.list[JobInfo]:
        """Return the jobs of a state, or of one state after the other, without payloads.

        Read from the state's index, in its order: ``ready`` jobs as they are claimed, ``running``
        ones by the end of their lease, ``scheduled`` and ``waiting`` ones by their time, and those
        that are ``dead``, ``done`` or ``cancelled`` by their end, the earliest first. What changes
        its state between two pages may be on both, or on none.

        Args:
            state: one of those; None, the default, is each of them, in the order ``running``,
                ``ready``, ``waiting``, ``scheduled``, ``dead``, ``cancelled``, ``done``.
            group: those of this group only. (No index has it: the server reads the state's jobs
                until enough were found.)
            limit: how many at most, 1 to 10,000; default 100.
            start_after: the job behind which to begin: the last one of the page before, or an id,
                which costs a look at that job.
            data: with payload and result, which may be megabytes each.

        Raises:
            ConfigurationError: an argument out of its range, or `start_after` is a job that has no
                place among those listed.
            JobNotFound: there is no job with the id `start_after`.
        """
        return run(self._looking.jobs(state, group, limit, start_after, data))

    def size(self) -> int:
        """Return how many jobs this queue has, whatever their state."""
        return run(self._looking.size())

    def stats(self) -> dict[str, int]:
        """Return the numbers of ``available``, ``scheduled``, ``waiting``, ``locked``, dead
        (``errors``), ``done`` and ``cancelled`` jobs, and the ``total`` of all states."""
        return run(self._looking.stats())

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of jobs of every queue of the collection, by queue and state.

        Costs as much as there are jobs to count, from indexes alone. A queue without jobs is
        absent, and so is a state that it has none in.
        """
        return run(self._looking.counts())

    def wait(self, job_id: Any, timeout: float | timedelta | None = None) -> JobInfo:
        """Return a job when it has ended: when it is done, dead or cancelled.

        Woken by a change stream, one for all that wait on this object; nothing polls. A job that is
        waited for stays a minute at the least when it has ended, whoever ends it. One that ended
        before, and was not kept, is not found.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.
            timeout: seconds (or a timedelta) to wait; 0 looks once. None, the default, is for as
                long as it takes, through any outage.

        Raises:
            ConfigurationError: an argument out of its range.
            JobNotFound: there is no such job in this queue, or it was removed meanwhile.
            TimeoutError: it has not ended in time. It may still, and can be waited for again.
            StreamQueueError: the queue object was closed meanwhile.
            PyMongoError: the server, at the first contact, or still at the end of the time.
        """
        return run(self._waiting.wait(job_id, timeout))

    def result(self, job_id: Any, wait: float | timedelta | None = None) -> Any:
        """Return what a job returned: the result that it was completed with, or None.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.
            wait: seconds (or a timedelta) to wait for its end. None, the default, looks once.

        Raises:
            JobFailed: it is dead; the error has its ``info``.
            JobCancelled: it was cancelled.
            TimeoutError: it has not ended (in time).
            JobNotFound: there is no such job in this queue: it was done and not kept, say.
        """
        return run(self._waiting.result(job_id, wait))

    def watch(self, job_id: Any) -> Iterator[JobInfo]:
        """Yield a job as it is now, and as it is after each change, until it has ended.

        Always the newest: changes in quick succession may come as one, never an older one after a
        newer. The last one yielded is the end. Waits, and raises, as :meth:`wait` does.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.
        """
        closings = self._waiting.closings
        wait = self._waiting.watching(job_id)
        try:
            while (info := run(self._waiting.next_change(wait, closings))) is not None:
                yield info
        finally:
            self._waiting.leave(wait)

    def request(
        self,
        payload: PayloadLike,
        *,
        timeout: float | timedelta | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        key: str | None = None,
        on_conflict: OnConflict = "raise",
        key_until: KeyUntil | None = None,
        unique_for: float | timedelta | None = None,
        max_delay: float | timedelta | None = None,
        group: str | None = None,
        after: Iterable[Any] | None = None,
        if_parent_fails: IfParentFails = "hold",
        max_attempts: int | None = None,
        expires: float | timedelta | datetime | None = None,
        keep: float | timedelta | None = None,
        job_id: ObjectId | None = None,
    ) -> Any:
        """Place a job in the queue, wait for its end, and return its result.

        Also where nothing is kept: the job is marked as waited for when it is put. Arguments and
        errors are those of ``put`` and of :meth:`result`, and:

        Args:
            timeout: seconds (or a timedelta) to wait for the end once the job is put. None, the
                default, is for as long as it takes. A job that takes longer stays, and can be
                waited for by the `job_id` that was given.
        """
        put = check_put(
            payload,
            priority=priority,
            delay=delay,
            run_at=run_at,
            key=key,
            on_conflict=on_conflict,
            key_until=key_until,
            unique_for=unique_for,
            max_delay=max_delay,
            group=group,
            after=after,
            if_parent_fails=if_parent_fails,
            max_attempts=max_attempts,
            expires=expires,
            keep=keep,
            job_id=job_id,
            awaited=True,
            queue=self._name,
        )
        return run(self._waiting.request(put, lambda: self._put(put, None), timeout))


class AsyncAnswers:
    """The calls of AsyncMongoQueue that say what becomes of jobs."""

    _name: str
    _looking: Looking
    _waiting: Waiting

    async def _put(self, put: Put, session: Any) -> ObjectId:
        """Put a job that was checked, or raise why it is not there for certain; return its id, or
        that of the job which has its key."""
        raise NotImplementedError

    async def get(self, job_id: Any) -> JobInfo:
        """Return a job as it is now, of whichever state, payload and result included.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.

        Raises:
            ConfigurationError: `job_id` cannot be an id.
            JobNotFound: this queue has no such job: it has ended and was not kept, say.
        """
        return await run_async(self._looking.get(job_id))

    async def list(
        self,
        state: str | None = None,
        *,
        group: str | None = None,
        limit: int = 100,
        start_after: Any = None,
        data: bool = False,
    ) -> builtins.list[JobInfo]:
        """Return the jobs of a state, or of one state after the other, without payloads.

        Read from the state's index, in its order: ``ready`` jobs as they are claimed, ``running``
        ones by the end of their lease, ``scheduled`` and ``waiting`` ones by their time, and those
        that are ``dead``, ``done`` or ``cancelled`` by their end, the earliest first. What changes
        its state between two pages may be on both, or on none.

        Args:
            state: one of those; None, the default, is each of them, in the order ``running``,
                ``ready``, ``waiting``, ``scheduled``, ``dead``, ``cancelled``, ``done``.
            group: those of this group only. (No index has it: the server reads the state's jobs
                until enough were found.)
            limit: how many at most, 1 to 10,000; default 100.
            start_after: the job behind which to begin: the last one of the page before, or an id,
                which costs a look at that job.
            data: with payload and result, which may be megabytes each.

        Raises:
            ConfigurationError: an argument out of its range, or `start_after` is a job that has no
                place among those listed.
            JobNotFound: there is no job with the id `start_after`.
        """
        return await run_async(self._looking.jobs(state, group, limit, start_after, data))

    async def size(self) -> int:
        """Return how many jobs this queue has, whatever their state."""
        return await run_async(self._looking.size())

    async def stats(self) -> dict[str, int]:
        """Return the numbers of ``available``, ``scheduled``, ``waiting``, ``locked``, dead
        (``errors``), ``done`` and ``cancelled`` jobs, and the ``total`` of all states."""
        return await run_async(self._looking.stats())

    async def counts(self) -> dict[str, dict[str, int]]:
        """Return the numbers of jobs of every queue of the collection, by queue and state.

        Costs as much as there are jobs to count, from indexes alone. A queue without jobs is
        absent, and so is a state that it has none in.
        """
        return await run_async(self._looking.counts())

    async def wait(self, job_id: Any, timeout: float | timedelta | None = None) -> JobInfo:
        """Return a job when it has ended: when it is done, dead or cancelled.

        Woken by a change stream, one for all that wait on this object; nothing polls. A job that is
        waited for stays a minute at the least when it has ended, whoever ends it. One that ended
        before, and was not kept, is not found.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.
            timeout: seconds (or a timedelta) to wait; 0 looks once. None, the default, is for as
                long as it takes, through any outage.

        Raises:
            ConfigurationError: an argument out of its range.
            JobNotFound: there is no such job in this queue, or it was removed meanwhile.
            TimeoutError: it has not ended in time. It may still, and can be waited for again.
            StreamQueueError: the queue object was closed meanwhile.
            PyMongoError: the server, at the first contact, or still at the end of the time.
        """
        return await run_async(self._waiting.wait(job_id, timeout))

    async def result(self, job_id: Any, wait: float | timedelta | None = None) -> Any:
        """Return what a job returned: the result that it was completed with, or None.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.
            wait: seconds (or a timedelta) to wait for its end. None, the default, looks once.

        Raises:
            JobFailed: it is dead; the error has its ``info``.
            JobCancelled: it was cancelled.
            TimeoutError: it has not ended (in time).
            JobNotFound: there is no such job in this queue: it was done and not kept, say.
        """
        return await run_async(self._waiting.result(job_id, wait))

    async def watch(self, job_id: Any) -> AsyncIterator[JobInfo]:
        """Yield a job as it is now, and as it is after each change, until it has ended.

        Always the newest: changes in quick succession may come as one, never an older one after a
        newer. The last one yielded is the end. Waits, and raises, as :meth:`wait` does.

        Args:
            job_id: its id, of the type that ``job.id`` has; for an ObjectId also its text.
        """
        closings = self._waiting.closings
        wait = self._waiting.watching(job_id)
        try:
            while (info := await run_async(self._waiting.next_change(wait, closings))) is not None:
                yield info
        finally:
            self._waiting.leave(wait)

    async def request(
        self,
        payload: PayloadLike,
        *,
        timeout: float | timedelta | None = None,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        key: str | None = None,
        on_conflict: OnConflict = "raise",
        key_until: KeyUntil | None = None,
        unique_for: float | timedelta | None = None,
        max_delay: float | timedelta | None = None,
        group: str | None = None,
        after: Iterable[Any] | None = None,
        if_parent_fails: IfParentFails = "hold",
        max_attempts: int | None = None,
        expires: float | timedelta | datetime | None = None,
        keep: float | timedelta | None = None,
        job_id: ObjectId | None = None,
    ) -> Any:
        """Place a job in the queue, wait for its end, and return its result.

        Also where nothing is kept: the job is marked as waited for when it is put. Arguments and
        errors are those of ``put`` and of :meth:`result`, and:

        Args:
            timeout: seconds (or a timedelta) to wait for the end once the job is put. None, the
                default, is for as long as it takes. A job that takes longer stays, and can be
                waited for by the `job_id` that was given.
        """
        put = check_put(
            payload,
            priority=priority,
            delay=delay,
            run_at=run_at,
            key=key,
            on_conflict=on_conflict,
            key_until=key_until,
            unique_for=unique_for,
            max_delay=max_delay,
            group=group,
            after=after,
            if_parent_fails=if_parent_fails,
            max_attempts=max_attempts,
            expires=expires,
            keep=keep,
            job_id=job_id,
            awaited=True,
            queue=self._name,
        )
        return await run_async(self._waiting.request(put, lambda: self._put(put, None), timeout))
