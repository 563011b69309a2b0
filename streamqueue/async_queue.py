"""AsyncMongoQueue and AsyncJob: the async shell, with the same methods as ``queue.py``.

Concurrent puts share their writes (``group_commit.py``), and whatever has been sent is awaited to
its end, cancelled or not: a cancelled write has usually been applied.
"""

from __future__ import annotations

import logging
import math
import random
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from anyio import CancelScope, create_task_group
from anyio.lowlevel import checkpoint_if_cancelled
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from . import operations
from .async_doorbell import AsyncDoorbell
from .async_store import AsyncStore
from .backoff import Backoff
from .clock import monotonic
from .document import JobRecord
from .durations import seconds
from .errors import (
    ConfigurationError,
    Discard,
    DuplicateJob,
    JobNotFound,
    LeaseLost,
    Retry,
    Snooze,
)
from .group_commit import GroupCommit
from .job import JobView, describe, facts, outcome_of
from .options import MAX_BATCH, QueueOptions, whole_number
from .put import check_put, check_puts
from .queue import CONTENDED_WINDOW, LATE_CLAIM, MOST_CONTENDED, PROMOTE_EVERY
from .server import object_id
from .store import log_reaped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from types import TracebackType

    from bson import ObjectId
    from prometheus_client import CollectorRegistry
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection

    from .metrics import Metrics, ProducerMetrics


logger = logging.getLogger("streamqueue.queue")


class AsyncMongoQueue:
    """A queue in a MongoDB collection.

    Several queues, told apart by `name`, may share a collection. Safe to use from many tasks of one
    event loop. Nothing is sent before the first call; that one also checks the server and, where
    the user may, creates the indexes.

    Args:
        collection: a pymongo ``AsyncCollection`` (or ``AsyncDatabase``: its ``jobs``
            collection) on a replica set. Its concerns are not inherited: writes wait for the
            majority.
        consumer_id: a name stored as ``locked_by``. By default unique to this object.
        timeout: seconds (or a timedelta) a job may be held before others may take it; ``progress``
            starts it again. Default 300.
        max_attempts: claims a job may use up, unless put with its own. Default 3.
        name: the queue, 1-64 letters, digits, ``_ . -``.
        backoff: the wait after a failed attempt.
        registry: where the metrics of its puts are registered, at the first put; None, the default,
            is prometheus_client's own.

    Raises:
        ConfigurationError: an argument out of its range.

    ::

        queue = AsyncMongoQueue(AsyncMongoClient(uri).shop.jobs)
        await queue.put({"to": "ada@example.org"})
        async for job in queue:
            async with job as data:
                await send(data["to"])
    """

    def __init__(
        self,
        collection: AsyncCollection[Any],
        consumer_id: str | None = None,
        timeout: float | timedelta = 300,
        max_attempts: int = 3,
        *,
        name: str = "default",
        backoff: Backoff | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._options = QueueOptions(name, consumer_id, timeout, max_attempts, backoff or Backoff())
        self._store = AsyncStore(collection)
        self._jobs = self._store.jobs
        self._registry = registry
        self._name = self._options.name
        self._timeout = float(self._options.timeout)  # type: ignore[arg-type]
        self._passed_time = -math.inf
        self._closings = 0  # calls of close: what waits when it grows stops waiting
        self._doorbell = AsyncDoorbell(self._jobs, [self._name])
        self._puts = GroupCommit(self._insert)

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._name

    @cached_property
    def _metrics(self) -> Metrics:
        from .metrics import Metrics  # not before it is needed: half of what this module costs

        return Metrics.of(self._registry)

    @cached_property
    def _producer(self) -> ProducerMetrics:
        return self._metrics.producer(self._name)

    async def put(
        self,
        payload: Mapping[str, Any],
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        key: str | None = None,
        max_attempts: int | None = None,
        session: AsyncClientSession | None = None,
        job_id: ObjectId | None = None,
    ) -> ObjectId:
        """Place a job in the queue; when this returns, a majority of the servers has it.

        Args:
            payload: a mapping with string keys and BSON values. Without `priority`, an integer
                ``priority`` key in it is the priority and not part of the job's data.
            priority: higher runs first; default 0.
            delay: seconds (or a timedelta) until it is ready.
            run_at: the moment it is ready (aware datetime); one that has passed means now.
            key: at most one live job of the queue has it.
            max_attempts: claims it may use up; default the queue's.
            session: put in this session's transaction: seen if and when that commits.
            job_id: the job's id. Repeating a put whose outcome is unknown, with the same id, is
                safe while the job is in the queue.

        Raises:
            PayloadError: it cannot be stored as it is. Nothing was sent.
            DuplicateJob: a live job has the key.
            PyMongoError: the server; after a timeout or a lost connection the job may be there.
        """
        put = check_put(
            payload,
            priority=priority,
            delay=delay,
            run_at=run_at,
            key=key,
            max_attempts=self._options.max_attempts if max_attempts is None else max_attempts,
            job_id=None if job_id is None else object_id(job_id),
        )
        await self._store.prepare()
        document = put.document(self._name, self._store.clock.now())
        with self._producer:
            try:
                if session is None:
                    await self._puts.submit(document)
                else:
                    with self._metrics.timed("put"):
                        await self._jobs.insert_one(document, session=session)
            except DuplicateKeyError as error:
                if operations.is_duplicate_job(error.details):
                    raise DuplicateJob(str(put.key), await self._holder_of(put.key)) from error
                repeated = operations.is_repeated_put(error.details)
                stored = operations.find_job(self._name, put.id)
                if not repeated or not await self._store.look_up(stored):
                    raise
        return put.id

    async def put_many(
        self,
        payloads: Iterable[Mapping[str, Any]],
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        session: AsyncClientSession | None = None,
    ) -> list[ObjectId]:
        """Place many jobs in the queue at once, in order, and return their ids.

        All are checked first: with one bad payload nothing is put. Arguments and errors as in
        :meth:`put`; after an error of the server some may be there.
        """
        puts = check_puts(
            payloads,
            priority=priority,
            delay=delay,
            run_at=run_at,
            key=None,
            max_attempts=self._options.max_attempts if max_attempts is None else max_attempts,
        )
        if puts is None:
            return []
        await self._store.prepare()
        documents = puts.documents(self._name, self._store.clock.now())
        counted = self._producer.many(len(puts.ids))
        with counted, self._metrics.timed("put"), CancelScope(shield=True):
            await self._jobs.insert_many(documents, session=session)
        return puts.ids

    async def next(self, wait: float | timedelta | None = None) -> AsyncJob | None:
        """Take the most urgent ready job, or return None when there is none.

        Args:
            wait: block on the change stream for up to this many seconds. None does not block.

        Raises:
            PyMongoError: the server. A job claimed with an unknown outcome is given back, at the
                latest when its lease runs out.
        """
        jobs = await self.claim(1, wait)
        return jobs[0] if jobs else None

    async def claim(self, limit: int, wait: float | timedelta | None = None) -> list[AsyncJob]:
        """Take up to `limit` ready jobs, the most urgent first, in one atomic update.

        As :meth:`next`; an empty list when there is none (after `wait` seconds). Does not wait to
        fill up: one job is enough to return.
        """
        limit = whole_number(limit, "limit", 1, MAX_BATCH)
        patience = 0.0 if wait is None else seconds(wait, "wait")
        await self._store.prepare()
        return await self._claim(limit) or (
            await self._wait_and_claim(limit, patience) if patience else []
        )

    async def __aiter__(self) -> AsyncIterator[AsyncJob]:
        """Yield jobs until the queue is closed, blocking on its stream while there is none."""
        await self._store.prepare()
        closings = self._closings
        while self._closings == closings:
            for job in await self._claim(1) or await self._wait_and_claim(1, math.inf):
                yield job

    async def requeue(self, job_id: ObjectId | None = None) -> int:
        """Make a dead job ready again with all its attempts, or every dead one; return how many.

        One whose key a live job has by now stays dead.

        Raises:
            JobNotFound: no dead job has this id.
            DuplicateJob: a live job has this one's key.
        """
        await self._store.prepare()
        if job_id is None:
            return await self._requeue_all()
        job_id = object_id(job_id)
        command = operations.requeue(self._name, job_id)
        try:
            if not (await self._jobs.update_one(*command)).modified_count:
                raise JobNotFound(job_id, "dead")
        except DuplicateKeyError as error:
            if not operations.is_duplicate_job(error.details):
                raise
            key = (await self._jobs.find_one({"_id": job_id}, {"key": 1}) or {}).get("key")
            raise DuplicateJob(str(key), await self._holder_of(key)) from error
        return 1

    async def size(self) -> int:
        """Return how many documents this queue has, whatever their state."""
        await self._store.prepare()
        return await self._jobs.count_documents(operations.of_queue(self._name))

    async def stats(self) -> dict[str, int]:
        """Return the numbers of ``available``, ``scheduled``, ``locked`` and dead (``errors``)
        jobs, and the ``total`` of all documents."""
        await self._store.prepare()
        pipeline = operations.stats(self._name, self._jobs.name)
        async with await self._jobs.aggregate(pipeline) as counts:
            return operations.read_stats(await counts.to_list())

    async def repair(self) -> int:
        """Return every stale lock now: jobs whose lease ran out are ready again, or dead when their
        attempts are used up. Returns how many. Consumers that wait do this by themselves."""
        await self._store.prepare()
        self._store.try_stuck_again()
        return await self._reap()

    async def clear(self) -> int:
        """Remove every job of this queue, running ones too; return how many."""
        await self._store.prepare()
        return (await self._jobs.delete_many(operations.of_queue(self._name))).deleted_count

    async def drop_max_attempts(self) -> int:
        """Remove the jobs whose attempts are used up (the dead); return how many."""
        await self._store.prepare()
        dead = operations.of_queue(self._name, "dead")
        return (await self._jobs.delete_many(dead)).deleted_count

    async def close(self) -> None:
        """Close the change stream, if one was opened, and end the waits and iterations under way.

        The collection's client stays open, and the queue can be used again.
        """
        self._closings += 1
        await self._doorbell.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # internals

    async def _insert(self, documents: Sequence[Mapping[str, Any]]) -> list[Exception | None]:
        """Write a group of puts; return what went wrong for each."""
        with self._metrics.timed("put"):
            if len(documents) == 1:
                await self._jobs.insert_one(documents[0])
                return [None]
            try:
                await self._jobs.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                return operations.errors_of_each(error, len(documents))
            return [None] * len(documents)

    async def _claim(self, limit: int) -> list[AsyncJob]:
        jobs: list[AsyncJob] = []
        failures: list[Exception] = []

        async def claim() -> None:
            with CancelScope(shield=True):
                try:
                    jobs.extend(await self._claim_to_the_end(limit))
                except Exception as error:
                    failures.append(error)

        try:
            # In a task of its own, because a shield does not stop asyncio's own cancellation (such
            # as wait_for's), and a claim that is given up half-way may yet be applied.
            async with create_task_group() as group:
                group.start_soon(claim)
            await checkpoint_if_cancelled()
        except BaseException:
            # Nobody will receive these: they go back at once instead of when their lease runs out.
            with CancelScope(shield=True):
                for job in jobs:
                    await self._store.untake([job.id], job._record.token)
            raise
        if failures:
            raise failures[0]
        return jobs

    async def _claim_to_the_end(self, limit: int) -> list[AsyncJob]:
        if monotonic() - self._passed_time > PROMOTE_EVERY:
            await self._pass_time()
        contended = 0
        while True:
            window = limit + CONTENDED_WINDOW * contended
            found = await self._store.candidates([self._name], window)
            if not found:
                if await self._pass_time():
                    continue
                return []
            ids = [document["_id"] for document in found]
            if contended:  # somebody was faster: step aside instead of racing for the head again
                ids = random.sample(ids, min(limit, len(ids)))
            jobs = await self._take(ids[:limit])
            if jobs:
                return jobs
            if contended == MOST_CONTENDED and self._store.unclaimable.full:
                return []  # what can be seen are stuck ones, more than can be left out
            contended = min(contended + 1, MOST_CONTENDED)

    async def _take(self, ids: list[ObjectId]) -> list[AsyncJob]:
        token = operations.new_token()
        consumer = str(self._options.consumer_id)
        sent = monotonic()
        documents = await self._store.take(ids, consumer, token, self._timeout)
        if documents and monotonic() - sent > max(self._timeout, LATE_CLAIM):
            # As after an election: the lease is over, and the jobs may be somebody else's by now.
            await self._store.untake(ids, token)
            return []
        jobs = []
        for document in documents:
            record = JobRecord.from_document(document, max_attempts=self._options.max_attempts)
            if record.damage is None:
                jobs.append(AsyncJob(record, self))
            else:
                logger.error(
                    "Buried job %s of queue %s: %s",
                    record.id,
                    record.queue,
                    record.damage,
                    extra={"event": "job_dead", **facts(record), "reason": record.damage},
                )
                await self._jobs.update_one(*operations.discard(record.id, token, record.damage))
        return jobs

    async def _wait_and_claim(self, limit: int, patience: float) -> list[AsyncJob]:
        deadline = monotonic() + patience
        closings = self._closings
        while self._closings == closings:
            # Listen first, then look: a job put in between rings.
            heard = await self._doorbell.listen()
            jobs = await self._claim(limit)
            remaining = deadline - monotonic()
            if jobs or remaining <= 0:
                return jobs
            timer = await self._store.seconds_to_next([self._name])
            await self._doorbell.wait(heard, min(remaining, timer))
        return []

    async def _pass_time(self) -> bool:
        """Promote due jobs and reap expired leases; return whether there were any.

        Also gives jobs that other programs inserted without a priority their place.
        """
        self._passed_time = monotonic()
        await self._store.adopt([self._name])
        promoted = await self._store.promote([self._name])
        return bool(await self._reap()) or bool(promoted)

    async def _reap(self) -> int:
        holders: set[str] = set()
        reaped = await self._store.reap([self._name], lambda _: self._options.max_attempts, holders)
        log_reaped(reaped, holders)
        return reaped.total()

    async def _requeue_all(self) -> int:
        total = 0
        async for document in self._jobs.find(operations.of_queue(self._name, "dead"), {"_id": 1}):
            command = operations.requeue(self._name, document["_id"])
            try:
                total += (await self._jobs.update_one(*command)).modified_count
            except DuplicateKeyError:
                logger.warning(
                    "Job %s stays dead: a live job has its key",
                    document["_id"],
                    extra={
                        "event": "job_stays_dead",
                        "queue": self._name,
                        "job_id": str(document["_id"]),
                    },
                )
        return total

    async def _holder_of(self, key: str | None) -> ObjectId | None:
        command = operations.live_with_key(self._name, key)
        found = await self._store.look_up(command)
        return found[0]["_id"] if found else None

    # the held job; every one of these matches the claim's token

    async def _complete(self, record: JobRecord, session: AsyncClientSession | None) -> None:
        self._store.check_place()
        wanted = operations.held(record.id, record.token)
        with CancelScope(shield=True):
            result = await self._jobs.delete_one(wanted, session=session)
        if not result.deleted_count:
            raise LeaseLost(record.id)

    async def _error(self, record: JobRecord, message: str | None, delay: float | None) -> None:
        wait = self._options.backoff.delay(record.attempts) if delay is None else delay
        await self._end(
            record,
            operations.error(record.id, record.token, message, wait, self._options.max_attempts),
        )

    async def _discard(self, record: JobRecord, message: str) -> None:
        await self._end(record, operations.discard(record.id, record.token, message))

    async def _progress(self, record: JobRecord, count: int | None) -> None:
        wanted = operations.held(record.id, record.token)
        await self._end(record, operations.renew(wanted, self._timeout, count))

    async def _release(self, record: JobRecord, delay: float | None) -> None:
        await self._end(record, operations.release(record.id, record.token, delay))

    async def _end(self, record: JobRecord, command: operations.Update) -> None:
        self._store.check_place()
        with CancelScope(shield=True):
            result = await self._jobs.update_one(*command)
        if not result.matched_count:
            raise LeaseLost(record.id)


class AsyncJob(JobView):
    """A job this consumer holds. Made by :meth:`AsyncMongoQueue.next` and its like.

    As a context manager it gives the payload; a clean exit completes the job, an exception is
    stored with its traceback and raised again. What the block itself ended stays as it is.
    """

    __slots__ = ("_holder",)

    def __init__(self, record: JobRecord, holder: Any) -> None:
        super().__init__(record)
        self._holder = holder

    async def complete(self, *, session: AsyncClientSession | None = None) -> None:
        """Say it is done: the job is removed from the queue.

        Args:
            session: complete in this session's transaction, with what else it writes.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        await self._holder._complete(self._record, session)
        self._ended = True
        self._session = session

    async def error(
        self, message: str | None = None, *, delay: float | timedelta | None = None
    ) -> None:
        """Say this attempt failed: the job comes back later, or is dead with no attempts left.

        Args:
            message: stored as ``last_error`` (its last 4096 characters).
            delay: seconds (or a timedelta) until it is ready; 0 is at once, None the backoff.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        await self._holder._error(self._record, None if message is None else str(message), wait)
        self._ended = True

    async def progress(self, count: int | None = None) -> None:
        """Note progress and start the lock timeout again from now.

        Args:
            count: a whole number, stored as ``progress``; None keeps the last one.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        if count is not None:
            count = whole_number(count, "count", -(2**63), 2**63 - 1)
        await self._holder._progress(self._record, count)

    async def release(self, *, delay: float | timedelta | None = None) -> None:
        """Give the job back without blame: its attempts are as they were before the claim.

        Args:
            delay: seconds (or a timedelta) until it is ready; at once by default.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        await self._holder._release(self._record, wait)
        self._ended = True

    async def __aenter__(self) -> dict[str, Any]:
        return self.data

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ended and not self._was_aborted(error):
            return
        try:
            if error is None:
                await self.complete()
            else:
                await self._fail(error)
        except LeaseLost:
            logger.warning(
                "Job %s was no longer held at the end of its block",
                self.id,
                extra={"event": "lease_lost", **facts(self._record), "reason": "taken"},
            )
        except PyMongoError as problem:
            if error is None:
                raise
            # The block's own exception matters more; the lease gives the job back. Without a
            # traceback: it would show that exception too, whose message may quote the payload.
            logger.error(
                "The error of job %s could not be stored: %s",
                self.id,
                type(problem).__name__,
                extra={
                    "event": "claim_left",
                    **facts(self._record),
                    "error": type(problem).__name__,
                },
            )

    async def _fail(self, error: BaseException) -> None:
        try:
            await self._end_as(error)
        except ConfigurationError as problem:  # Retry(delay="soon")
            await self.error(describe(problem))

    async def _end_as(self, error: BaseException) -> None:
        match outcome_of(error):
            case Retry(delay=delay):
                await self.error(describe(error), delay=delay)
            case Snooze(delay=delay):
                await self.release(delay=delay)
            case Discard(reason=reason):
                await self._holder._discard(self._record, str(reason))
                self._ended = True
            case _:
                await self.error(describe(error))
