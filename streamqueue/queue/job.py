"""Job and AsyncJob: what its consumer can say of a held job, beside what it shows (``view``) and
its steps (``steps``).

The job's holder (``holder.py``) writes what is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import PyMongoError

from ..durations import seconds
from ..errors import JobCancelled, LeaseLost, text_of
from .flow import run, run_async
from .outcome import End
from .parents import AsyncParents, Parents
from .steps import AsyncSteps, BlockingSteps
from .view import Data

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType

    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.synchronous.client_session import ClientSession

    from .holder import AsyncHolder, Holder


class Job(BlockingSteps[Data]):
    """A job this consumer holds. Made by :meth:`MongoQueue.next` and its like.

    Annotations may say the type of its payload, as in ``Job[Email]``; by default it is a dict.

    As a context manager it gives the payload; a clean exit completes the job, an exception is
    stored with its traceback and raised again. What the block itself ended stays as it is.
    """

    __slots__ = ()
    _holder: Holder

    @property
    def parents(self) -> Parents:
        """The jobs that it came after: their results, read as they are iterated over."""
        return Parents(self._record, self._holder)

    def complete(self, result: Any = None, *, session: ClientSession | None = None) -> None:
        """Complete the job: it is removed from the queue, or kept as done with its result.

        Args:
            result: what the job has come to, any BSON value of up to 1 MiB. Stored if the job is
                kept or somebody waits for its end, and not looked at otherwise.
            session: complete in this session's transaction, with what else it writes. Make it the
                transaction's last statement; the whole of it must fit into the lease, which a
                worker does not renew meanwhile. Until it has ended, every other call of the job
                raises ConfigurationError.

        Raises:
            LeaseLost: the job is no longer held, or not for long enough; nothing was changed.
            PayloadError: the result cannot be stored. The job is dead, not completed: to do its
                work again would come to the same. (Nothing of that is in the transaction.)
        """
        self._begin_complete(session)
        with self._noting_end():
            self._holder.complete(self._record, result, session)
        self._ended = True

    def error(self, message: str | None = None, *, delay: float | timedelta | None = None) -> None:
        """Fail this attempt: the job comes back later, or is dead with no attempts left.

        Args:
            message: stored as ``last_error`` (its last 4096 characters).
            delay: seconds (or a timedelta) until it is ready; 0: at once, None: by the backoff.

        Raises:
            LeaseLost: the job is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        self._check_beside_transaction(ends=True)
        text = None if message is None else text_of(message)
        with self._noting_end():
            self._holder.end(self._record, End("failed", text, wait))
        self._ended = True

    def progress(self, count: int | None = None, note: str | None = None) -> None:
        """Note progress of the job, and start its lock timeout again from now.

        The first call, and one after a quiet second, is written at once, as is one without
        arguments; more within a second share a write of the newest. A worker writes that when the
        second is over; of a job that ``next`` returned the next call does (with a `timeout` below
        ten seconds, after a tenth of that), or its end.

        Args:
            count: a whole number, stored as ``progress``; None keeps the last one.
            note: a text of at most 1 kB (1,024 bytes of UTF-8), stored as ``note``; None keeps the
                last one. Both are gone when the job waits again.

        Raises:
            LeaseLost: the job is no longer held; nothing was changed.
        """
        count, note = self._begin_progress(count, note)
        with self._noting_end():
            self._holder.progress(self._record, count, note)

    def release(self, *, delay: float | timedelta | None = None) -> None:
        """Give the job back without blame: its attempts are as they were before the claim.

        Args:
            delay: seconds (or a timedelta) until the job is ready; at once by default.

        Raises:
            LeaseLost: the job is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        self._check_beside_transaction(ends=True)
        with self._noting_end():
            self._holder.end(self._record, End("released", delay=wait))
        self._ended = True

    def __enter__(self) -> Data:
        return self.data

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_over(error):
            return
        try:
            if error is None:
                self.complete()
            else:
                run(self._fail(error))
        except JobCancelled:
            pass  # it is, whatever came of the block
        except (LeaseLost, PyMongoError) as problem:
            if not self._is_left(problem, error):
                raise


class AsyncJob(AsyncSteps[Data]):
    """A job this consumer holds. Made by :meth:`AsyncMongoQueue.next` and its like.

    Annotations may say the type of its payload, as in ``AsyncJob[Email]``; by default it is a dict.

    As a context manager it gives the payload; a clean exit completes the job, an exception is
    stored with its traceback and raised again. What the block itself ended stays as it is.
    """

    __slots__ = ()
    _holder: AsyncHolder

    @property
    def parents(self) -> AsyncParents:
        """The jobs that it came after: their results, read as they are iterated over."""
        return AsyncParents(self._record, self._holder)

    async def complete(
        self, result: Any = None, *, session: AsyncClientSession | None = None
    ) -> None:
        """Complete the job: it is removed from the queue, or kept as done with its result.

        Args:
            result: what the job has come to, any BSON value of up to 1 MiB. Stored if the job is
                kept or somebody waits for its end, and not looked at otherwise.
            session: complete in this session's transaction, with what else it writes. Make it the
                transaction's last statement; the whole of it must fit into the lease, which a
                worker does not renew meanwhile. Until it has ended, every other call of the job
                raises ConfigurationError.

        Raises:
            LeaseLost: the job is no longer held, or not for long enough; nothing was changed.
            PayloadError: the result cannot be stored. The job is dead, not completed: to do its
                work again would come to the same. (Nothing of that is in the transaction.)
        """
        self._begin_complete(session)
        with self._noting_end():
            await self._holder.complete(self._record, result, session)
        self._ended = True

    async def error(
        self, message: str | None = None, *, delay: float | timedelta | None = None
    ) -> None:
        """Fail this attempt: the job comes back later, or is dead with no attempts left.

        Args:
            message: stored as ``last_error`` (its last 4096 characters).
            delay: seconds (or a timedelta) until it is ready; 0: at once, None: by the backoff.

        Raises:
            LeaseLost: the job is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        self._check_beside_transaction(ends=True)
        text = None if message is None else text_of(message)
        with self._noting_end():
            await self._holder.end(self._record, End("failed", text, wait))
        self._ended = True

    async def progress(self, count: int | None = None, note: str | None = None) -> None:
        """Note progress of the job, and start its lock timeout again from now.

        The first call, and one after a quiet second, is written at once, as is one without
        arguments; more within a second share a write of the newest. A worker writes that when the
        second is over; of a job that ``next`` returned the next call does (with a `timeout` below
        ten seconds, after a tenth of that), or its end.

        Args:
            count: a whole number, stored as ``progress``; None keeps the last one.
            note: a text of at most 1 kB (1,024 bytes of UTF-8), stored as ``note``; None keeps the
                last one. Both are gone when the job waits again.

        Raises:
            LeaseLost: the job is no longer held; nothing was changed.
        """
        count, note = self._begin_progress(count, note)
        with self._noting_end():
            await self._holder.progress(self._record, count, note)

    async def release(self, *, delay: float | timedelta | None = None) -> None:
        """Give the job back without blame: its attempts are as they were before the claim.

        Args:
            delay: seconds (or a timedelta) until the job is ready; at once by default.

        Raises:
            LeaseLost: the job is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        self._check_beside_transaction(ends=True)
        with self._noting_end():
            await self._holder.end(self._record, End("released", delay=wait))
        self._ended = True

    async def __aenter__(self) -> Data:
        return self.data

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_over(error):
            return
        try:
            if error is None:
                await self.complete()
            else:
                await run_async(self._fail(error))
        except JobCancelled:
            pass  # it is, whatever came of the block
        except (LeaseLost, PyMongoError) as problem:
            if not self._is_left(problem, error):
                raise
