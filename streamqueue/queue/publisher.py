"""Publisher: who subscribes to a topic, and how a message comes to all of them; for both shells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import ReturnDocument
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern

from .. import options
from ..durations import seconds_or_moment
from ..errors import ConfigurationError, DuplicateJob
from ..protocol import operations
from ..protocol.topics import (
    MAX_PUBLISHED_BYTES,
    MAX_SUBSCRIBERS,
    Subscriber,
    copy_id,
    subscribers_in,
    topic_name,
)
from ..store.collection import settings_of
from .producer import Producer
from .transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime, timedelta

    from bson import ObjectId
    from bson.raw_bson import RawBSONDocument
    from prometheus_client import CollectorRegistry

    from ..metrics.bundles import PutResult
    from ..protocol.put import Put
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


class Copies(NamedTuple):
    """What a message has become.

    Attributes:
        jobs: the queues of the subscribers, in their order, each with the id of its job.
        new: what became of the put into each of those queues whose job was not known to be there.
    """

    jobs: dict[str, ObjectId]
    new: dict[str, PutResult]


class Publisher:
    """Reads and changes who subscribes to one topic, and puts messages into their queues.

    Args:
        registry: where its metrics are registered when the first of them is counted.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        store: Store | AsyncStore,
        name: str,
        registry: CollectorRegistry | None,
        pause: Callable[[float], Any],
    ) -> None:
        self._store = store
        self._name = name
        self._registry = registry
        self._checks = Producer(store, name, registry)  # no job is put into this one
        jobs: Any = store.jobs
        self._settings = settings_of(jobs)
        self._transactions = Transactions(jobs.database.client, pause)

    def subscribe(self, queue: str, expires: float | timedelta | datetime | None) -> Flow[None]:
        """Let a queue subscribe."""
        queue, until = options.queue_name(queue), seconds_or_moment(expires, "expires")
        change = operations.subscribe(self._name, queue, until)
        yield self._store.prepare()
        try:
            topic = yield self._change(change)
        except DuplicateKeyError:  # of two first ones at the same moment one may fail
            topic = yield self._change(change)
        there = {one.queue for one in subscribers_in(topic)}
        if queue not in there:
            raise ConfigurationError(
                f"the topic {self._name} has {len(there):,} subscribers, and no topic has more: "
                "unsubscribe those that are no more, or let one queue pass messages on to others"
            )

    def _change(self, change: operations.Update) -> Any:
        return self._settings.find_one_and_update(
            *change, upsert=True, return_document=ReturnDocument.AFTER
        )

    def unsubscribe(self, queue: str) -> Flow[None]:
        """Let a queue subscribe no more."""
        change = operations.unsubscribe(self._name, options.queue_name(queue))
        yield self._store.prepare()
        yield self._settings.update_one(*change)

    def subscribers(self) -> Flow[list[str]]:
        """Return the names of the queues that subscribe."""
        yield self._store.prepare()
        return (yield from self._subscribers(self._settings))

    def _subscribers(self, settings: Any, session: Any = None) -> Flow[list[str]]:
        find = operations.subscribers_of(self._name)
        topic = yield settings.find_one(find.filter, find.projection, session=session)
        return [one.queue for one in subscribers_in(topic)]

    def publish(self, put: Put, session: Any) -> Flow[list[ObjectId]]:
        """Put a message into the queue of every subscriber, or into none; return the ids."""
        # An index is made outside of any transaction, and no queue needs one more than another.
        yield from self._checks.prepare(put, session)
        if session is not None and session.in_transaction:
            # Not in the transaction, whose state may be older than a subscription. A primary that
            # is none any more cannot commit what follows, and what others may undo is no harm.
            settings = self._settings.with_options(read_concern=ReadConcern("local"))
            queues = yield from self._subscribers(settings)
            try:
                copies = yield from self._insert(put, queues, session)
            except PyMongoError:
                self._count("error", queues)
                raise
        else:
            copies = yield from self._publish(put, session)
        for queue, result in copies.new.items():
            self._count(result, [queue])
        if put.parents.ids:
            yield from self._checks.look_at(put, list(copies.jobs.values()), session)
        self._checks.metrics.published(self._name, unread=not copies.jobs)
        return list(copies.jobs.values())

    def _publish(self, put: Put, session: Any) -> Flow[Copies]:
        """Publish in a transaction of our own.

        A message that may have been published before is there in some queues, perhaps: they are
        left out as soon as one was in the way and the majority is seen to have them.
        """
        there: set[ObjectId] = set()
        tried: dict[ObjectId, str] = {}

        def publish(session: Any) -> Flow[Copies]:
            queues = yield from self._subscribers(self._settings, session)
            jobs = {queue: copy_id(put.id, queue) for queue in queues}
            new = [queue for queue in queues if jobs[queue] not in there]
            tried.clear()
            tried.update((jobs[queue], queue) for queue in new)
            copies = yield from self._insert(put, new, session)
            return Copies({**jobs, **copies.jobs}, copies.new)

        while True:
            try:
                return (yield from self._transactions.run(publish, session))
            except DuplicateJob as error:
                raise DuplicateJob(error.key, error.job_id) from error  # the transaction was ours
            except PyMongoError as error:
                known = yield from self._known(error, tried)
                if not known:
                    self._count("error", tried.values())
                    raise
                there |= known

    def _known(self, error: PyMongoError, tried: dict[ObjectId, str]) -> Flow[set[ObjectId]]:
        """Return which of these jobs are there already and safe, if that is what the error says."""
        if not operations.is_repeated_put(error):
            return set()
        # None where they are something else's, have ended just now, or this user may not look.
        found = yield self._store.look_up(operations.queue_of(list(tried)))
        return {job["_id"] for job in found if job.get("queue") == tried.get(job["_id"])}

    def _insert(self, put: Put, queues: list[str], session: Any) -> Flow[Copies]:
        """Put the job of each of these queues, in an open transaction."""
        self._check_size(put, len(queues))
        jobs = {queue: copy_id(put.id, queue) for queue in queues}
        results: dict[str, PutResult] = dict.fromkeys(queues, "inserted")
        if not queues:
            return Copies(jobs, results)
        now = self._store.clock.now()
        copies = {queue: replace(put, id=job_id) for queue, job_id in jobs.items()}
        if put.key is None:
            documents = [copy.document(queue, now) for queue, copy in copies.items()]
            with self._checks.metrics.timed("put"):
                yield from self._insert_all(documents, session)
            return Copies(jobs, results)
        for queue, copy in copies.items():  # what a key means is said there
            producer = Producer(self._store, queue, self._registry)
            try:
                placed = yield from producer.place(copy, copy.document(queue, now), session)
            except DuplicateJob:
                self._count("duplicate", [queue])
                raise
            jobs[queue] = placed.id or copy.id
            results[queue] = placed.result
        return Copies(jobs, results)

    def _insert_all(self, documents: list[RawBSONDocument], session: Any) -> Flow[None]:
        try:
            yield self._store.jobs.insert_many(documents, session=session)
        except BulkWriteError as error:
            # As of one put: with what was sent in its text, and as a list, nobody wants it.
            for problem in filter(None, operations.errors_of_each(error, len(documents))):
                raise problem from None
            raise

    def _count(self, result: PutResult, queues: Iterable[str]) -> None:
        for queue in queues:
            self._checks.metrics.producer(queue).put[result].inc()

    def _check_size(self, put: Put, count: int) -> None:
        if count > MAX_SUBSCRIBERS:  # somebody else has stored them
            raise ConfigurationError(
                f"the topic {self._name} has {count:,} subscribers; the limit is "
                f"{MAX_SUBSCRIBERS:,}, and nothing was published"
            )
        if len(put.payload) * count > MAX_PUBLISHED_BYTES:
            raise ConfigurationError(
                f"this payload has {len(put.payload):,} bytes as BSON, for each of {count:,} "
                f"subscribers; the limit is {MAX_PUBLISHED_BYTES:,} for all, and nothing was "
                "published: store what is large elsewhere, and publish where it is"
            )


def all_topics(store: Store | AsyncStore, limit: int) -> Flow[dict[str, list[Subscriber]]]:
    """Return the topics of a collection with their subscribers, but no more than so many."""
    jobs: Any = store.jobs
    find = operations.all_topics(limit)
    yield store.prepare()
    found = yield (
        settings_of(jobs)
        .find(find.filter, find.projection, sort=find.sort, limit=find.limit)
        .to_list()
    )
    topics = {topic_name(document): subscribers_in(document) for document in found}
    return {name: subscribers for name, subscribers in topics.items() if name is not None}
