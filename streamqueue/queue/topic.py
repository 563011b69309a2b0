"""Topic and AsyncTopic: a name whose messages go to every queue that subscribes; both shells.

Their methods check their arguments and run the flows of ``publisher.py``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope

from .. import options
from ..protocol.put import check_put
from ..store.asynchronous import AsyncStore
from ..store.blocking import Store
from .flow import run, run_async
from .publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from bson import ObjectId
    from prometheus_client import CollectorRegistry
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.synchronous.client_session import ClientSession
    from pymongo.synchronous.collection import Collection

    from ..protocol.dependencies import IfParentFails
    from ..protocol.fitting.kinds import PayloadLike
    from ..protocol.unique import KeyUntil, OnConflict


class Topic:
    """A name whose messages go to every queue that subscribes to it.

    A queue shares its jobs out among its consumers; a topic gives each of its queues a job of its
    own. The queues are ordinary ones, in the same collection: their jobs wait, are claimed, retried
    and buried as any others, whatever becomes of the same message elsewhere. Safe to use from many
    threads.

    Args:
        collection: a pymongo ``Collection`` (or ``Database``: its ``jobs`` collection) on a
            replica set, the same as that of the queues.
        name: the topic, 1-64 letters, digits, ``_ . -``.
        registry: where the metrics of what is published are registered, at the first publish; None,
            the default, is prometheus_client's own.

    Raises:
        ConfigurationError: an argument out of its range.

    ::

        orders = Topic(MongoClient("mongodb://localhost/?replicaSet=rs0").shop.jobs, "orders")
        orders.subscribe("billing")
        orders.subscribe("mails")
        orders.publish({"order": 17})   # a job in the queue billing, and one in mails
    """

    def __init__(
        self,
        collection: Collection[Any],
        name: str,
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._name = options.topic_name(name)
        self._publisher = Publisher(Store(collection), self._name, registry, threading.Event().wait)

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._name

    def subscribe(self, queue: str, *, expires: float | timedelta | datetime | None = None) -> None:
        """Let a queue have every message that is published from now on.

        When this returns, a publish that begins, in any process, goes to it. What was published
        before does not. It is stored, and lasts until it expires or is taken back, whether anybody
        works on the queue or not; a queue that nobody works on fills up. To subscribe again changes
        nothing but when it expires.

        Args:
            queue: the name of a queue; nobody needs to have used it before.
            expires: seconds (or a timedelta) from now, or the moment (aware datetime), after which
                it no longer counts, by the server's clock. None, the default, is never.

        Raises:
            ConfigurationError: an argument out of its range, or a topic with 1,000 subscribers,
                which is as many as one may have.
            PyMongoError: the server, or the user has no right to it; after a timeout or a lost
                connection the queue may be subscribed: repeat it.
        """
        run(self._publisher.subscribe(queue, expires))

    def unsubscribe(self, queue: str) -> None:
        """Let a queue have no more messages; those that it has stay.

        A queue that does not subscribe stays as it is. What is published in a transaction that is
        open meanwhile may still come. Raises as :meth:`subscribe` does.
        """
        run(self._publisher.unsubscribe(queue))

    def subscribers(self) -> list[str]:
        """Return the names of the queues that subscribe, in order.

        Raises:
            PyMongoError: the server, or the user has no right to know.
        """
        return run(self._publisher.subscribers())

    def publish(
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
    ) -> list[ObjectId]:
        """Put a job into the queue of every subscriber, or into none; return their ids.

        All of it is one transaction, which also reads who subscribes: three round trips. The ids
        are in the order of :meth:`subscribers`. When nobody subscribes nothing is stored, and the
        list is empty; that is counted (``streamqueue_topic_published_total``, ``unread``).

        The arguments are those of ``put``, and hold for each of the jobs. A call of a task is for
        the task of that name in each of the queues, whichever its own is. A `key` is one of each
        queue: where a job of one of them holds it, nothing is put into any, unless `on_conflict`
        says otherwise; then the id is that of the job that is there.

        Args:
            session: publish in this session's transaction, which ends with DuplicateJob or an error
                of the server. In a session without one, a transaction of the call's own.
            job_id: an id of the message, with which it can be published again after an error that
                leaves open whether it was: each job has an id that is computed from this one and
                the name of its queue, and is not put where it is already. Where it has ended in
                between, and was removed, the repetition is a new job, and the work is done twice,
                unless it is kept (`keep`) for as long as somebody may repeat it.

        An election, a lost connection or a conflict is no error before half a minute is over: the
        transaction is begun anew, or its commit asked for again, and no queue gets a second copy.

        Raises:
            PayloadError: the payload cannot be stored as it is. Nothing was sent.
            ConfigurationError: an argument out of its range; a key, `group`, `expires` or `keep`
                whose index is not there; or too much: all copies together may have 128 MiB. Nothing
                was put.
            DuplicateJob: a job of a subscriber holds the key. Nothing was put.
            PyMongoError: the server; after a timeout or a lost connection all of the jobs may be
                there, or none.
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
        )
        return run(self._publisher.publish(put, session))


class AsyncTopic:
    """A name whose messages go to every queue that subscribes to it.

    A queue shares its jobs out among its consumers; a topic gives each of its queues a job of its
    own. The queues are ordinary ones, in the same collection: their jobs wait, are claimed, retried
    and buried as any others, whatever becomes of the same message elsewhere. Safe to use from many
    tasks of one event loop.

    Args:
        collection: a pymongo ``AsyncCollection`` (or ``AsyncDatabase``: its ``jobs`` collection)
            on a replica set, the same as that of the queues.
        name: the topic, 1-64 letters, digits, ``_ . -``.
        registry: where the metrics of what is published are registered, at the first publish; None,
            the default, is prometheus_client's own.

    Raises:
        ConfigurationError: an argument out of its range.

    ::

        orders = AsyncTopic(AsyncMongoClient(uri).shop.jobs, "orders")
        await orders.subscribe("billing")
        await orders.subscribe("mails")
        await orders.publish({"order": 17})   # a job in the queue billing, and one in mails
    """

    def __init__(
        self,
        collection: AsyncCollection[Any],
        name: str,
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._name = options.topic_name(name)
        self._publisher = Publisher(AsyncStore(collection), self._name, registry, anyio.sleep)

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._name

    async def subscribe(
        self, queue: str, *, expires: float | timedelta | datetime | None = None
    ) -> None:
        """Let a queue have every message that is published from now on.

        When this returns, a publish that begins, in any process, goes to it. What was published
        before does not. It is stored, and lasts until it expires or is taken back, whether anybody
        works on the queue or not; a queue that nobody works on fills up. To subscribe again changes
        nothing but when it expires.

        Args:
            queue: the name of a queue; nobody needs to have used it before.
            expires: seconds (or a timedelta) from now, or the moment (aware datetime), after which
                it no longer counts, by the server's clock. None, the default, is never.

        Raises:
            ConfigurationError: an argument out of its range, or a topic with 1,000 subscribers,
                which is as many as one may have.
            PyMongoError: the server, or the user has no right to it; after a timeout or a lost
                connection the queue may be subscribed: repeat it.
        """
        await run_async(self._publisher.subscribe(queue, expires))

    async def unsubscribe(self, queue: str) -> None:
        """Let a queue have no more messages; those that it has stay.

        A queue that does not subscribe stays as it is. What is published in a transaction that is
        open meanwhile may still come. Raises as :meth:`subscribe` does.
        """
        await run_async(self._publisher.unsubscribe(queue))

    async def subscribers(self) -> list[str]:
        """Return the names of the queues that subscribe, in order.

        Raises:
            PyMongoError: the server, or the user has no right to know.
        """
        return await run_async(self._publisher.subscribers())

    async def publish(
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
        session: AsyncClientSession | None = None,
        job_id: ObjectId | None = None,
    ) -> list[ObjectId]:
        """Put a job into the queue of every subscriber, or into none; return their ids.

        All of it is one transaction, which also reads who subscribes: three round trips. The ids
        are in the order of :meth:`subscribers`. When nobody subscribes nothing is stored, and the
        list is empty; that is counted (``streamqueue_topic_published_total``, ``unread``).

        The arguments are those of ``put``, and hold for each of the jobs. A call of a task is for
        the task of that name in each of the queues, whichever its own is. A `key` is one of each
        queue: where a job of one of them holds it, nothing is put into any, unless `on_conflict`
        says otherwise; then the id is that of the job that is there.

        Args:
            session: publish in this session's transaction, which ends with DuplicateJob or an error
                of the server. In a session without one, a transaction of the call's own.
            job_id: an id of the message, with which it can be published again after an error that
                leaves open whether it was: each job has an id that is computed from this one and
                the name of its queue, and is not put where it is already. Where it has ended in
                between, and was removed, the repetition is a new job, and the work is done twice,
                unless it is kept (`keep`) for as long as somebody may repeat it.

        An election, a lost connection or a conflict is no error before half a minute is over: the
        transaction is begun anew, or its commit asked for again, and no queue gets a second copy.

        Raises:
            PayloadError: the payload cannot be stored as it is. Nothing was sent.
            ConfigurationError: an argument out of its range; a key, `group`, `expires` or `keep`
                whose index is not there; or too much: all copies together may have 128 MiB. Nothing
                was put.
            DuplicateJob: a job of a subscriber holds the key. Nothing was put.
            PyMongoError: the server; after a timeout or a lost connection all of the jobs may be
                there, or none.
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
        )
        return await run_async(self._publisher.publish(put, session), CancelScope(shield=True))
