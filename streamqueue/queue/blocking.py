"""MongoQueue: the blocking shell.

Its methods check their arguments and run flows: ``producer.py`` has those that put jobs,
``consumer.py`` those that claim and wait, ``ends.py`` those that end attempts. The async shell
(``asynchronous.py``) has the same methods in the same order, and runs the same flows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

from ..backoff import Backoff
from ..durations import seconds
from ..options import MAX_BATCH, QueueOptions, whole_number
from ..protocol.put import check_put
from ..protocol.puts import PutIds, check_puts
from ..store.blocking import Store
from ..stream.doorbell import Doorbell
from ..stream.ends import EndStream
from .answers.answers import BlockingAnswers
from .answers.waiting import Waiting
from .consumer import Consumer
from .ends import BlockingEnds, Ends
from .flow import run
from .job import Job
from .looking import Looking
from .producer import Producer
from .steering.canceller import Canceller
from .steering.limiting import BlockingLimiting
from .steering.pausing import BlockingPausing
from .steering.steering import BlockingSteering, Steering

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime, timedelta

    from bson import ObjectId
    from prometheus_client import CollectorRegistry
    from pymongo.synchronous.client_session import ClientSession
    from pymongo.synchronous.collection import Collection

    from ..protocol.dependencies import IfParentFails
    from ..protocol.fitting.kinds import PayloadLike
    from ..protocol.put import NewJob, Put
    from ..protocol.unique import KeyUntil, OnConflict
    from .consumer import Look


class MongoQueue(BlockingAnswers, BlockingSteering, BlockingPausing, BlockingLimiting):
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
        max_attempts: how often a job that is taken from this object may be claimed before it is
            dead, unless it was put with a number of its own. Default 3.
        name: the queue, 1-64 letters, digits, ``_ . -``.
        backoff: the wait after a failed attempt. Default: 1 s, doubled each time up to 300 s, of
            which a random part.
        keep: seconds (or a timedelta) that a job which is taken from this object stays when it is
            done, with its result, unless it was put with a number of its own. None, the default,
            removes it at once.
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
        keep: float | timedelta | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        backoff = backoff or Backoff()
        options = QueueOptions(name, consumer_id, timeout, max_attempts, backoff, keep)
        self._name = options.name
        self._store = Store(collection)
        self._store.any_id = True
        self._store.buried = lambda reason, count: self._producer.metrics.buried(reason, count)
        self._jobs = self._store.jobs
        self._looking = Looking(self._store, self._name)
        ended = self._store.recheck_indexes
        ends = EndStream(self._jobs, ended)
        self._waiting = Waiting(self._store, self._name, ends, run)
        self._doorbell = Doorbell(self._jobs, [self._name], ended)
        self._producer = Producer(self._store, self._name, registry)
        self._steering = Steering(self._store, self._name)
        self._canceller = Canceller(self._store, self._name, options.keep)
        self._consumer = Consumer(self._store, self._doorbell, options)
        self._holder = BlockingEnds(Ends(self._store, options))

    @property
    def name(self) -> str:
        """The queue's name."""
        return self._name

    def put(
        self,
        payload: PayloadLike,
        *,
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
        session: ClientSession | None = None,
        job_id: ObjectId | None = None,
    ) -> ObjectId:
        """Place a job in the queue; when this returns, a majority of the servers has it.

        Args:
            payload: a mapping with string keys and BSON values, a call of a task, or an instance of
                a dataclass, a pydantic model or a msgspec struct, which is stored as its dict.
                Without `priority`, an integer ``priority`` key in a mapping is the priority and not
                data.
            priority: higher runs first; default 0.
            delay: seconds (or a timedelta) until the job is ready; by default none.
            run_at: the moment the job is ready (aware datetime); one that has passed means now.
            key: a text of 1 to 256 bytes that one job of the queue and task at most holds. Costs a
                round trip more, for a look at the index that keeps keys unique.
            on_conflict: what to do when another job holds the key. ``"raise"``, the default, is
                DuplicateJob; ``"skip"`` returns the id of that job; ``"replace"`` gives it this
                payload and these settings, as if it was put now (its delay starts again); and
                ``"earlier"`` gives it the earlier time and the higher priority. A job that has
                begun is not changed: while one such holds the key, the last two raise DuplicateJob.
            key_until: until when the job holds its key: ``"end"``, or ``"start"``, that is until
                it is claimed; then a put during the run is a new job, which waits until the running
                one has ended. Default: ``"end"`` for raise and skip, ``"start"`` for the others.
            unique_for: seconds (or a timedelta) from the put for which the key stays taken at the
                least, whatever becomes of the job.
            max_delay: seconds (or a timedelta) from the first put after which the job is due,
                however often ``on_conflict="replace"`` starts its delay again.
            group: a text of 1 to 512 characters: what the job belongs to, such as a customer. Order
                and limits can be per group; by default none, which they leave alone. A job that is
                put for later, or after others, joins its group when it is due. Needs an index.
            after: ids of jobs that end first, which exist or come in the same ``put_many``.
            if_parent_fails: when one is dead, cancelled or gone, ``"hold"`` (the default) waits for
                a dead one to be requeued, else cancels it, as ``"cancel"`` does; or ``"run"`` it.
            max_attempts: how often the job may be claimed before it is dead; without it, whoever
                claims the job decides: its handler, else the worker, or the queue object.
            expires: seconds (or a timedelta) from the put, or the moment (aware datetime), after
                which no attempt begins, a retry neither: the job ends as cancelled, with
                ``expired`` as its last error. One that runs by then goes on. Needs an index.
            keep: seconds (or a timedelta) that the job stays when it is done, with its result; 0
                removes it at once. Without it, whoever claims the job decides. Needs an index,
                which is made when this is first used.
            session: put in this session's transaction: seen if and when that commits.
            job_id: the job's id, with which a put can be repeated.

        After an error that leaves the outcome unknown, a timeout or a lost connection, the job may
        be there or not, or may be undone by an election. Put it again with the same `job_id`: it
        is there once, and when this returns a majority has it. When its job has ended in between,
        and was removed, the repetition is a new job, and the work is done twice.

        Within a transaction nothing can be proven: there a repetition raises DuplicateKeyError,
        and that, or DuplicateJob, has ended the transaction.

        Raises:
            PayloadError: the payload cannot be stored as it is. Nothing was sent.
            ConfigurationError: an argument out of its range, a call for another queue, or a key
                without the index that keeps keys unique. Nothing was put.
            DuplicateJob: the key is taken.
            JobNotFound: a job of `after` is not there. Nothing was put.
            PyMongoError: the server; after a timeout or a lost connection the job may be there.
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
            queue=self._name,
        )
        return self._put(put, session)

    def put_many(
        self,
        payloads: Iterable[PayloadLike | NewJob],
        *,
        priority: int | None = None,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        keys: Sequence[str | None] | None = None,
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
        session: ClientSession | None = None,
    ) -> PutIds:
        """Place many jobs in the queue at once, in order, and return their ids.

        All are checked first: with one bad payload nothing is put. Arguments and errors as in
        :meth:`put`; after an error of the server some may be there.

        Args:
            payloads: payloads, calls, or :class:`NewJob` with settings of its own. A list of NewJob
                with a `job_id` each can be put again after such an error: the jobs that are there
                are left as they are, their positions are in ``existing`` of the returned list, and
                the rest is put.
            keys: a key for each payload, None for one that is to have none; what else is said of
                keys holds for all. Of two with one key the first is the job, and the second meets
                it, as in puts one after the other. Positions that met a job are in ``existing``,
                with its id in the list.

        Raises:
            DuplicateJob: the keys of some are taken; the rest has been put, see the error's ``ids``
                and ``existing``.
        """
        puts = check_puts(
            payloads,
            priority=priority,
            delay=delay,
            run_at=run_at,
            keys=keys,
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
            queue=self._name,
        )
        if puts is None:
            return PutIds([])
        documents = run(self._producer.prepare_many(puts, session))
        return run(self._producer.put_many(puts, documents, session))

    def next(self, wait: float | timedelta | None = None) -> Job | None:
        """Take the most urgent ready job, or return None when there is none.

        Args:
            wait: block on the change stream for up to this many seconds. None does not block.

        A wait lasts as long as it was told to, whatever the server does meanwhile; two seconds more
        at the most, but for a claim under way then, which has the client's timeouts. Every few
        seconds it also returns what dead consumers held in other queues of the collection, which
        nobody else may be left to do (one read of an index, at most every 5 s).

        Raises:
            PyMongoError: the server, without `wait`, or at the first contact, or still at the end
                of the wait. A job claimed with an unknown outcome is given back, at the latest when
                its lease runs out.
        """
        jobs = self.claim(1, wait)
        return jobs[0] if jobs else None

    def claim(self, limit: int, wait: float | timedelta | None = None) -> list[Job]:
        """Take up to `limit` ready jobs, the most urgent first, in one atomic update.

        Waits and raises as :meth:`next` does; returns an empty list when there is no job (after
        `wait` seconds). Does not wait for the list to fill up: one job is enough to return.
        """
        closings = self._doorbell.closings  # before all else: it may be closed from now on
        limit = whole_number(limit, "limit", 1, MAX_BATCH)
        patience = 0.0 if wait is None else seconds(wait, "wait")
        if patience:
            return self._wait(limit, patience, closings)
        self._store.prepare()
        return self._claim(limit)

    def __iter__(self) -> Iterator[Job]:
        """Yield jobs until the queue is closed, blocking on its stream while there is none.

        The wait outlasts any outage: only an error of the first contact is raised.
        """
        closings = self._doorbell.closings
        while self._doorbell.closings == closings:
            yield from self._wait(1, math.inf, closings)

    def repair(self) -> int:
        """Return every stale lock now: jobs whose lease ran out are ready again, or dead when their
        attempts are used up. Consumers that wait do this by themselves.

        Returns how many. On a server so slow that it cuts a write of many short, those that the
        write had changed by then are returned all the same, and are not in the number.
        """
        return run(self._consumer.repair())

    def clear(self) -> int:
        """Remove every job of this queue, running ones too; return how many."""
        return run(self._canceller.clear())

    def drop_max_attempts(self) -> int:
        """Remove the jobs whose attempts are used up (the dead); return how many."""
        return run(self._canceller.drop_dead())

    def close(self) -> None:
        """End the waits and iterations under way, and close the change stream, if one was opened.

        The collection's client stays open, and the queue can be used again. May be called from any
        thread, by a signal handler too; what it interrupts ends within a moment. In a process that
        was forked it ends only what that does with the queue.
        """
        self._doorbell.close()
        run(self._waiting.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # internals

    def _put(self, put: Put, session: Any) -> ObjectId:
        document = run(self._producer.prepare(put, session))
        return run(self._producer.put(put, document, session))

    def _wait(self, limit: int, patience: float, closings: int) -> list[Job]:
        return run(self._consumer.wait(self._claim, limit, patience, closings))

    def _claim(self, limit: int, look: Look | None = None) -> list[Job]:
        return [Job(record, self._holder) for record in run(self._consumer.claim(limit, look))]
