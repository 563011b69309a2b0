"""The blocking shell's ear: waits on a change stream for jobs that became claimable.

One reader at a time: of the threads that wait, the first reads the stream and wakes the others.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo.errors import PyMongoError

from . import operations
from .clock import monotonic
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

    from pymongo.synchronous.change_stream import ChangeStream
    from pymongo.synchronous.collection import Collection
    from pymongo.synchronous.mongo_client import MongoClient

logger = logging.getLogger("streamqueue.doorbell")

MAX_AWAIT = 0.25
"""Seconds one read may stay silent: how late a wait that finds nothing may return."""
REOPEN_CAP = 5.0


class Doorbell:
    """Rings when a job of these queues becomes ready or scheduled."""

    def __init__(self, jobs: Collection[Any], queues: Sequence[str]) -> None:
        self._jobs = jobs
        self._queues = list(queues)
        self._turn = threading.Condition()
        self._reading = False  # whoever set it is the only one to touch what follows
        self._client: MongoClient[Any] | None = None
        self._stream: ChangeStream[Any] | None = None
        self._rings = 0
        self._failures = 0
        self._outage = Outage()
        self._closed = False

    def listen(self) -> int:
        """Open the stream if it is not open; return a mark for :meth:`wait`.

        What becomes claimable from now on is noticed by a wait from this mark on, so look for jobs
        after this call. Raises what opening raises (a missing privilege, no server).
        """
        with self._turn:
            while self._reading:
                if self._stream is not None:
                    return self._rings
                self._turn.wait()
            if self._stream is not None:
                return self._rings
            self._reading = True
        try:
            self._open()
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()
        return self._rings

    def wait(self, mark: int, timeout: float) -> None:
        """Return when it has rung since the mark, or after `timeout` seconds, or when in doubt."""
        deadline = monotonic() + timeout
        while (remaining := deadline - monotonic()) > 0:
            with self._turn:
                if self._rings != mark or self._closed:
                    return
                if self._reading:
                    self._turn.wait(min(remaining, 1.0))
                    continue
                self._reading = True
            rang = True  # whatever goes wrong below is a reason to look
            try:
                rang = self._read()
            finally:
                with self._turn:
                    self._reading = False
                    self._rings += rang
                    self._turn.notify_all()

    def close(self) -> None:
        """Close the stream and its client; a wait under way returns within a moment."""
        with self._turn:
            self._closed = True
            while self._reading:
                self._turn.wait()
            self._shut()
            if self._client is not None:
                self._client.close()
                self._client = None
            self._closed = False

    def _open(self) -> None:
        if self._client is None:
            settings = client_settings("streamqueue-stream")
            self._client = self._jobs.database.client._duplicate(**settings)
        database = self._client[self._jobs.database.name]
        jobs = database.get_collection(self._jobs.name, codec_options=self._jobs.codec_options)
        pipeline = operations.stream_pipeline(self._queues)
        self._stream = jobs.watch(pipeline, max_await_time_ms=int(MAX_AWAIT * 1000))
        log_reopened(logger, self._outage.succeeded())

    def _read(self) -> bool:
        """Wait for one event and take in those that came with it; True also for a broken stream."""
        stream = self._stream
        if stream is None:
            return True
        try:
            with pymongo.timeout(MAX_AWAIT + WAIT_MARGIN):
                event = stream.try_next()
                while event is not None and buffered(stream):
                    stream.try_next()
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
        self._shut()
        if self._failures > 1:
            pause = min(REOPEN_CAP, 0.1 * 2**self._failures) * random.random()
            threading.Event().wait(pause)
        return True

    def _shut(self) -> None:
        if self._stream is not None:
            try:
                self._stream.close()
            except PyMongoError:
                pass  # the server forgets the cursor by itself
            self._stream = None
