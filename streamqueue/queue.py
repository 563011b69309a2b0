"""MongoQueue and Job: the blocking shell. Each method builds a command, sends it, reads the answer.

The async shell (``async_queue.py``) has the same methods in the same order. What the commands mean
is in ``operations.py``.
"""

from __future__ import annotations

import logging
import math
import random
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from pymongo.errors import DuplicateKeyError, PyMongoError

from . import operations
from .backoff import Backoff
from .clock import monotonic
from .document import JobRecord
from .doorbell import Doorbell
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
from .job import JobView, describe, facts, outcome_of
from .options import MAX_BATCH, QueueOptions, whole_number
from .put import check_put, check_puts
from .server import object_id
from .store import Store, log_reaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime, timedelta
    from types import TracebackType

    from bson import ObjectId
    from prometheus_client import CollectorRegistry
    from pymongo.synchronous.client_session import ClientSession
    from pymongo.synchronous.collection import Collection

    from .metrics import Metrics, ProducerMetrics


logger = logging.getLogger("streamqueue.queue")

PROMOTE_EVERY = 1.0
"""Seconds between two looks for due jobs and expired leases while there is other work to claim.
With none, every claim looks."""
CONTENDED_WINDOW = 16
"""Candidates read beyond those wanted, to step aside into when another consumer was faster."""
MOST_CONTENDED = 8
"""Times that window grows, claim lost after claim lost."""
LATE_CLAIM = 1.0
"""Seconds a claim may take whatever the lease: one that is shorter yet is over before its jobs can
be looked at, and to claim them anew would change nothing."""


class MongoQueue:
    """A queue in a MongoDB collection.

    Several queues, told apart by `name`, may share a collection. Safe to use from many threads.
    Nothing is sent before the first call; that one also checks the server and, where the user may,
    creates the indexes.

    Args:
        collection: a pymongo ``Collection`` (or ``Database``: its ``jobs`` collection) on a replica
            set. Its concerns are not inherited: writes wait for the majority.
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

        queue = MongoQueue(MongoClient("mongodb://localhost/?replicaSet=rs0").shop.jobs)
        queue.put({"to": "ada@example.org"})
        for job in queue:
            with job as data:
                send(data["to"])
    """

    def __init__(
        self,
        collection: Collection[Any],
        consumer_id: str | None = None,
        timeout: float | timedelta = 300,
        max_attempts: int = 3,
        *,
        name: str = "default",
        backoff: Backoff | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._options = QueueOptions(name, consumer_id, timeout, max_attempts, backoff or Backoff())
        self._store = Store(collection)
        self._jobs = self._store.jobs
        self._registry = registry
        self._name = self._options.name
        self._timeout = float(self._options.timeout)  # type: ignore[arg-type]
        self._passed_time = -math.inf
        self._closings = 0  # calls of close: what waits when it grows stops waiting
        self._doorbell = Doorbell(self._jobs, [self._name])

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

    def put(
        self,
        payload: Mapping[str, Any],
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        key: str | None = None,
        max_attempts: int | None = None,
        session: ClientSession | None = None,
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
        self._store.prepare()
        document = put.document(self._name, self._store.clock.now())
        with self._producer:
            try:
                with self._metrics.timed("put"):
                    self._jobs.insert_one(document, session=session)
            except DuplicateKeyError as error:
                if operations.is_duplicate_job(error.details):
                    raise DuplicateJob(str(put.key), self._holder_of(put.key)) from error
                repeated = operations.is_repeated_put(error.details)
                stored = operations.find_job(self._name, put.id)
                if not repeated or not self._store.look_up(stored):
                    raise
        return put.id

    def put_many(
        self,
        payloads: Iterable[Mapping[str, Any]],
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        max_attempts: int | None = None,
        session: ClientSession | None = None,
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
        self._store.prepare()
        documents = puts.documents(self._name, self._store.clock.now())
        counted = self._producer.many(len(puts.ids))
        with counted, self._metrics.timed("put"):
            self._jobs.insert_many(documents, session=session)
        return puts.ids

    def next(self, wait: float | timedelta | None = None) -> Job | None:
        """Take the most urgent ready job, or return None when there is none.

        Args:
            wait: block on the change stream for up to this many seconds. None does not block.

        Raises:
            PyMongoError: the server. A job claimed with an unknown outcome is given back, at the
                latest when its lease runs out.
        """
        jobs = self.claim(1, wait)
        return jobs[0] if jobs else None

    def claim(self, limit: int, wait: float | timedelta | None = None) -> list[Job]:
        """Take up to `limit` ready jobs, the most urgent first, in one atomic update.

        As :meth:`next`; an empty list when there is none (after `wait` seconds). Does not wait to
        fill up: one job is enough to return.
        """
        limit = whole_number(limit, "limit", 1, MAX_BATCH)
        patience = 0.0 if wait is None else seconds(wait, "wait")
        self._store.prepare()
        return self._claim(limit) or (self._wait_and_claim(limit, patience) if patience else [])

    def __iter__(self) -> Iterator[Job]:
        """Yield jobs until the queue is closed, blocking on its stream while there is none."""
        self._store.prepare()
        closings = self._closings
        while self._closings == closings:
            yield from self._claim(1) or self._wait_and_claim(1, math.inf)

    def requeue(self, job_id: ObjectId | None = None) -> int:
        """Make a dead job ready again with all its attempts, or every dead one; return how many.

        One whose key a live job has by now stays dead.

        Raises:
            JobNotFound: no dead job has this id.
            DuplicateJob: a live job has this one's key.
        """
        self._store.prepare()
        if job_id is None:
            return self._requeue_all()
        job_id = object_id(job_id)
        command = operations.requeue(self._name, job_id)
        try:
            if not self._jobs.update_one(*command).modified_count:
                raise JobNotFound(job_id, "dead")
        except DuplicateKeyError as error:
            if not operations.is_duplicate_job(error.details):
                raise
            key = (self._jobs.find_one({"_id": job_id}, {"key": 1}) or {}).get("key")
            raise DuplicateJob(str(key), self._holder_of(key)) from error
        return 1

    def size(self) -> int:
        """Return how many documents this queue has, whatever their state."""
        self._store.prepare()
        return self._jobs.count_documents(operations.of_queue(self._name))

    def stats(self) -> dict[str, int]:
        """Return the numbers of ``available``, ``scheduled``, ``locked`` and dead (``errors``)
        jobs, and the ``total`` of all documents."""
        self._store.prepare()
        with self._jobs.aggregate(operations.stats(self._name, self._jobs.name)) as counts:
            return operations.read_stats(counts)

    def repair(self) -> int:
        """Return every stale lock now: jobs whose lease ran out are ready again, or dead when their
        attempts are used up. Returns how many. Consumers that wait do this by themselves."""
        self._store.prepare()
        self._store.try_stuck_again()
        return self._reap()

    def clear(self) -> int:
        """Remove every job of this queue, running ones too; return how many."""
        self._store.prepare()
        return self._jobs.delete_many(operations.of_queue(self._name)).deleted_count

    def drop_max_attempts(self) -> int:
        """Remove the jobs whose attempts are used up (the dead); return how many."""
        self._store.prepare()
        return self._jobs.delete_many(operations.of_queue(self._name, "dead")).deleted_count

    def close(self) -> None:
        """Close the change stream, if one was opened, and end the waits and iterations under way.

        The collection's client stays open, and the queue can be used again.
        """
        self._closings += 1
        self._doorbell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # internals

    def _claim(self, limit: int) -> list[Job]:
        if monotonic() - self._passed_time > PROMOTE_EVERY:
            self._pass_time()
        contended = 0
        while True:
            window = limit + CONTENDED_WINDOW * contended
            found = self._store.candidates([self._name], window)
            if not found:
                if self._pass_time():
                    continue
                return []
            ids = [document["_id"] for document in found]
            if contended:  # somebody was faster: step aside instead of racing for the head again
                ids = random.sample(ids, min(limit, len(ids)))
            jobs = self._take(ids[:limit])
            if jobs:
                return jobs
            if contended == MOST_CONTENDED and self._store.unclaimable.full:
                return []  # what can be seen are stuck ones, more than can be left out
            contended = min(contended + 1, MOST_CONTENDED)

    def _take(self, ids: list[ObjectId]) -> list[Job]:
        token = operations.new_token()
        consumer = str(self._options.consumer_id)
        sent = monotonic()
        documents = self._store.take(ids, consumer, token, self._timeout)
        if documents and monotonic() - sent > max(self._timeout, LATE_CLAIM):
            # As after an election: the lease is over, and the jobs may be somebody else's by now.
            self._store.untake(ids, token)
            return []
        jobs = []
        for document in documents:
            record = JobRecord.from_document(document, max_attempts=self._options.max_attempts)
            if record.damage is None:
                jobs.append(Job(record, self))
            else:
                logger.error(
                    "Buried job %s of queue %s: %s",
                    record.id,
                    record.queue,
                    record.damage,
                    extra={"event": "job_dead", **facts(record), "reason": record.damage},
                )
                self._jobs.update_one(*operations.discard(record.id, token, record.damage))
        return jobs

    def _wait_and_claim(self, limit: int, patience: float) -> list[Job]:
        deadline = monotonic() + patience
        closings = self._closings
        while self._closings == closings:
            # Listen first, then look: a job put in between rings.
            heard = self._doorbell.listen()
            jobs = self._claim(limit)
            remaining = deadline - monotonic()
            if jobs or remaining <= 0:
                return jobs
            timer = self._store.seconds_to_next([self._name])
            self._doorbell.wait(heard, min(remaining, timer))
        return []

    def _pass_time(self) -> bool:
        """Promote due jobs and reap expired leases; return whether there were any.

        Also gives jobs that other programs inserted without a priority their place.
        """
        self._passed_time = monotonic()
        self._store.adopt([self._name])
        promoted = self._store.promote([self._name])
        return bool(self._reap()) or bool(promoted)

    def _reap(self) -> int:
        holders: set[str] = set()
        reaped = self._store.reap([self._name], lambda _: self._options.max_attempts, holders)
        log_reaped(reaped, holders)
        return reaped.total()

    def _requeue_all(self) -> int:
        total = 0
        for document in self._jobs.find(operations.of_queue(self._name, "dead"), {"_id": 1}):
            command = operations.requeue(self._name, document["_id"])
            try:
                total += self._jobs.update_one(*command).modified_count
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

    def _holder_of(self, key: str | None) -> ObjectId | None:
        command = operations.live_with_key(self._name, key)
        return next((document["_id"] for document in self._store.look_up(command)), None)

    # the held job; every one of these matches the claim's token

    def _complete(self, record: JobRecord, session: ClientSession | None) -> None:
        self._store.check_place()
        wanted = operations.held(record.id, record.token)
        if not self._jobs.delete_one(wanted, session=session).deleted_count:
            raise LeaseLost(record.id)

    def _error(self, record: JobRecord, message: str | None, delay: float | None) -> None:
        wait = self._options.backoff.delay(record.attempts) if delay is None else delay
        self._end(
            record,
            operations.error(record.id, record.token, message, wait, self._options.max_attempts),
        )

    def _discard(self, record: JobRecord, message: str) -> None:
        self._end(record, operations.discard(record.id, record.token, message))

    def _progress(self, record: JobRecord, count: int | None) -> None:
        wanted = operations.held(record.id, record.token)
        self._end(record, operations.renew(wanted, self._timeout, count))

    def _release(self, record: JobRecord, delay: float | None) -> None:
        self._end(record, operations.release(record.id, record.token, delay))

    def _end(self, record: JobRecord, command: operations.Update) -> None:
        self._store.check_place()
        if not self._jobs.update_one(*command).matched_count:
            raise LeaseLost(record.id)


class Job(JobView):
    """A job this consumer holds. Made by :meth:`MongoQueue.next` and its like.

    As a context manager it gives the payload; a clean exit completes the job, an exception is
    stored with its traceback and raised again. What the block itself ended stays as it is.
    """

    __slots__ = ("_holder",)

    def __init__(self, record: JobRecord, holder: Any) -> None:
        super().__init__(record)
        self._holder = holder

    def complete(self, *, session: ClientSession | None = None) -> None:
        """Say it is done: the job is removed from the queue.

        Args:
            session: complete in this session's transaction, with what else it writes.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        self._holder._complete(self._record, session)
        self._ended = True
        self._session = session

    def error(self, message: str | None = None, *, delay: float | timedelta | None = None) -> None:
        """Say this attempt failed: the job comes back later, or is dead with no attempts left.

        Args:
            message: stored as ``last_error`` (its last 4096 characters).
            delay: seconds (or a timedelta) until it is ready; 0 is at once, None the backoff.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        self._holder._error(self._record, None if message is None else str(message), wait)
        self._ended = True

    def progress(self, count: int | None = None) -> None:
        """Note progress and start the lock timeout again from now.

        Args:
            count: a whole number, stored as ``progress``; None keeps the last one.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        if count is not None:
            count = whole_number(count, "count", -(2**63), 2**63 - 1)
        self._holder._progress(self._record, count)

    def release(self, *, delay: float | timedelta | None = None) -> None:
        """Give the job back without blame: its attempts are as they were before the claim.

        Args:
            delay: seconds (or a timedelta) until it is ready; at once by default.

        Raises:
            LeaseLost: it is no longer held; nothing was changed.
        """
        wait = None if delay is None else seconds(delay, "delay")
        self._holder._release(self._record, wait)
        self._ended = True

    def __enter__(self) -> dict[str, Any]:
        return self.data

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ended and not self._was_aborted(error):
            return
        try:
            if error is None:
                self.complete()
            else:
                self._fail(error)
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

    def _fail(self, error: BaseException) -> None:
        try:
            self._end_as(error)
        except ConfigurationError as problem:  # Retry(delay="soon")
            self.error(describe(problem))

    def _end_as(self, error: BaseException) -> None:
        match outcome_of(error):
            case Retry(delay=delay):
                self.error(describe(error), delay=delay)
            case Snooze(delay=delay):
                self.release(delay=delay)
            case Discard(reason=reason):
                self._holder._discard(self._record, str(reason))
                self._ended = True
            case _:
                self.error(describe(error))
