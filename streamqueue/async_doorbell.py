"""The async shell's ear: waits on a change stream for jobs that became claimable.

One reader at a time: of the tasks that wait, the first reads the stream and wakes the others. The
same as ``doorbell.py``, but a read is shielded: pymongo closes a change stream when a read of it is
cancelled, and a scope that cancels again leaks the server's cursor for ten minutes.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import anyio
import pymongo
from pymongo.errors import PyMongoError

from . import operations
from .clock import monotonic
from .doorbell import MAX_AWAIT, REOPEN_CAP
from .outage import Outage
from .stream import (
    INVALIDATED,
    READ_ERRORS,
    WAIT_MARGIN,
    buffered,
    classify,
    client_settings,
    log_broken,
    log_reopened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymongo.asynchronous.change_stream import AsyncChangeStream
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.mongo_client import AsyncMongoClient

logger = logging.getLogger("streamqueue.doorbell")


class AsyncDoorbell:
    """Rings when a job of these queues becomes ready or scheduled."""

    def __init__(self, jobs: AsyncCollection[Any], queues: Sequence[str]) -> None:
        self._jobs = jobs
        self._queues = list(queues)
        self._read_done: anyio.Event | None = None  # while somebody reads; set when they are done
        self._client: AsyncMongoClient[Any] | None = None
        self._stream: AsyncChangeStream[Any] | None = None
        self._rings = 0
        self._failures = 0
        self._outage = Outage()
        self._closed = False

    async def listen(self) -> int:
        """Open the stream if it is not open; return a mark for :meth:`wait`.

        What becomes claimable from now on is noticed by a wait from this mark on, so look for jobs
        after this call. Raises what opening raises (a missing privilege, no server).
        """
        while self._stream is None:
            if self._read_done is not None:
                await self._read_done.wait()
                continue
            self._read_done = anyio.Event()
            try:
                with anyio.CancelScope(shield=True):
                    await self._open()
            finally:
                self._finish_read()
        return self._rings

    async def wait(self, mark: int, timeout: float) -> None:
        """Return when it has rung since the mark, or after `timeout` seconds, or when in doubt."""
        deadline = monotonic() + timeout
        while (remaining := deadline - monotonic()) > 0:
            if self._rings != mark or self._closed:
                return
            if self._read_done is not None:
                with anyio.move_on_after(remaining):
                    await self._read_done.wait()
                continue
            self._read_done = anyio.Event()
            rang = True  # whatever goes wrong below is a reason to look
            try:
                with anyio.CancelScope(shield=True):
                    rang = await self._read()
            finally:
                self._rings += rang
                self._finish_read()
            await anyio.lowlevel.checkpoint_if_cancelled()

    async def close(self) -> None:
        """Close the stream and its client; a wait under way returns within a moment."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            while self._read_done is not None:
                await self._read_done.wait()
            await self._shut()
            if self._client is not None:
                await self._client.close()
                self._client = None
        self._closed = False

    def _finish_read(self) -> None:
        done, self._read_done = self._read_done, None
        if done is not None:
            done.set()

    async def _open(self) -> None:
        if self._client is None:
            settings = client_settings("streamqueue-stream")
            self._client = self._jobs.database.client._duplicate(**settings)
        database = self._client[self._jobs.database.name]
        jobs = database.get_collection(self._jobs.name, codec_options=self._jobs.codec_options)
        pipeline = operations.stream_pipeline(self._queues)
        self._stream = await jobs.watch(pipeline, max_await_time_ms=int(MAX_AWAIT * 1000))
        log_reopened(logger, self._outage.succeeded())

    async def _read(self) -> bool:
        """Wait for one event and take in those that came with it; True also for a broken stream."""
        stream = self._stream
        if stream is None:
            return True
        try:
            with pymongo.timeout(MAX_AWAIT + WAIT_MARGIN):
                event = await stream.try_next()
                while event is not None and buffered(stream):
                    await stream.try_next()
        except READ_ERRORS as error:
            if self._outage.failed():
                log_broken(logger, classify(error), error)
            self._failures += 1
        else:
            if stream.alive:
                self._failures = 0
                log_reopened(logger, self._outage.succeeded())
                return event is not None
            if self._outage.failed():
                log_broken(logger, INVALIDATED, None)
        # Opened afresh, without the token: whoever waits looks for jobs after it is open again.
        await self._shut()
        if self._failures > 1:
            await anyio.sleep(min(REOPEN_CAP, 0.1 * 2**self._failures) * random.random())
        return True

    async def _shut(self) -> None:
        if self._stream is not None:
            try:
                await self._stream.close()
            except PyMongoError:
                pass  # the server forgets the cursor by itself
            self._stream = None
