"""Both shells behind one interface, so that each behaviour is written down once.

The blocking shell is called in threads; what its calls return is wrapped in the same way.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import (
    AsyncMongoQueue,
    AsyncSchedules,
    AsyncTopic,
    Job,
    MongoQueue,
    Parents,
    Schedules,
    Topic,
)


class InThreads:
    """A blocking queue or job with the methods of its async twin."""

    def __init__(self, target: Any, threads: CapacityLimiter) -> None:
        self._target = target
        self._threads = threads

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return partial(self._call, value) if inspect.ismethod(value) else self._wrap(value)

    def __repr__(self) -> str:
        return repr(self._target)

    async def __aiter__(self) -> AsyncIterator[Any]:
        jobs, end = iter(self._target), object()
        while (job := await self._call(partial(next, jobs, end))) is not end:
            yield job

    async def __aenter__(self) -> Any:
        return await self._call(self._target.__enter__)

    async def __aexit__(self, *raised: object) -> None:
        await self._call(self._target.__exit__, *raised)

    async def _call(self, method: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        return self._wrap(await run_sync(partial(method, *args, **settings), limiter=self._threads))

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, (Job, MongoQueue, Parents)):
            return InThreads(value, self._threads)
        return [self._wrap(item) for item in value] if type(value) is list else value


class BlockingShell:
    """``MongoQueue`` and ``Job``."""

    is_async = False

    def __init__(
        self, jobs: Collection[Any], client: MongoClient[Any], _: AsyncMongoClient[Any]
    ) -> None:
        self._client = client
        self._jobs = jobs
        self._threads = CapacityLimiter(40)
        self._queues: list[MongoQueue] = []

    def queue(self, *args: Any, **settings: Any) -> Any:
        """Make a queue on the test's collection."""
        self._queues.append(MongoQueue(self._jobs, *args, **settings))
        return InThreads(self._queues[-1], self._threads)

    def topic(self, *args: Any, **settings: Any) -> Any:
        """Make a topic on the test's collection."""
        return InThreads(Topic(self._jobs, *args, **settings), self._threads)

    def session(self) -> Any:
        """A session without a transaction."""
        return self._client.start_session()

    def schedules(self) -> Any:
        """The schedules of the test's collection."""
        return InThreads(Schedules(self._jobs), self._threads)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A session with a transaction: committed at the end, aborted by an exception."""
        with self._client.start_session() as session, session.start_transaction():
            yield session

    async def close(self) -> None:
        for queue in self._queues:
            await run_sync(queue.close)


class AsyncShell:
    """``AsyncMongoQueue`` and ``AsyncJob``."""

    is_async = True

    def __init__(
        self, jobs: Collection[Any], _: MongoClient[Any], client: AsyncMongoClient[Any]
    ) -> None:
        self._client = client
        self._jobs = client[jobs.database.name][jobs.name]
        self._queues: list[AsyncMongoQueue] = []

    def queue(self, *args: Any, **settings: Any) -> Any:
        """Make a queue on the test's collection."""
        self._queues.append(AsyncMongoQueue(self._jobs, *args, **settings))
        return self._queues[-1]

    def topic(self, *args: Any, **settings: Any) -> Any:
        """Make a topic on the test's collection."""
        return AsyncTopic(self._jobs, *args, **settings)

    def session(self) -> Any:
        """A session without a transaction."""
        return self._client.start_session()

    def schedules(self) -> Any:
        """The schedules of the test's collection."""
        return AsyncSchedules(self._jobs)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A session with a transaction: committed at the end, aborted by an exception."""
        async with self._client.start_session() as session, await session.start_transaction():
            yield session

    async def close(self) -> None:
        for queue in self._queues:
            await queue.close()


Shell = BlockingShell | AsyncShell
Transaction = AbstractAsyncContextManager[Any]
