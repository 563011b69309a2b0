"""The blocking shell's stream of ends: read by one of the threads that wait, for all of them.

Who waits, and for what, is in ``queue/waits.py``; here is how a thread opens the stream, reads it,
and sleeps until another one has read what it waits for. Only who has the turn touches the stream.
"""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from .. import plain
from ..clock import monotonic
from ..outage import Outage
from ..protocol.document import CODEC
from .doorbell import MAX_AWAIT
from .verdict import (
    INVALIDATED,
    PROGRAM_ERRORS,
    READ_ERRORS,
    WAIT_MARGIN,
    Pace,
    Verdict,
    buffered,
    classify,
    client_settings,
    log_broken,
    log_reopened,
    passes,
    set_max_await,
    watched,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bson.codec_options import CodecOptions
    from bson.timestamp import Timestamp
    from pymongo.synchronous.change_stream import ChangeStream
    from pymongo.synchronous.collection import Collection
    from pymongo.synchronous.mongo_client import MongoClient

    from ..protocol.operations import Pipeline

logger = plain.logger("streamqueue.ends")

LONGEST_WAIT = 5.0
"""Seconds after which a thread that sleeps looks up: a signal handler that woke it may have done so
in the moment before it slept."""
RAW_EVENTS: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)


_LOST = ("history_lost", "not_resumable")


class StreamState:
    """What both streams of ends know of themselves.

    Attributes:
        closings: another number each time it is closed. What waits when it changes stops waiting.
        pace: when to open it, or to look, again after a failure.
        refused: why the first stream could not be opened, if that does not pass by itself.
        lost: events may have been missed since the documents were last looked at.
    """

    _stream: Any
    _client: Any

    def __init__(self) -> None:
        self.closings = self._shut_at = 0
        self.pace = Pace()
        self.refused: Exception | None = None
        self.lost = False
        self._token: Any = None
        self._was_open = False
        self._outage = Outage()

    @property
    def open_now(self) -> bool:
        """Whether it is open."""
        return self._stream is not None

    @property
    def in_use(self) -> bool:
        """Whether it has a connection, open or not."""
        return self._client is not None

    @property
    def to_be_shut(self) -> bool:
        """Whether it was closed, and is still to be shut by whoever has the turn."""
        return self._shut_at != self.closings

    def _begins(self, since: Timestamp | None) -> dict[str, Any]:
        """Return where it opens: behind the last event that was read; with none, at a moment."""
        if self._token is not None:
            return {"resume_after": self._token}
        if since is not None and not self.lost:
            return {"start_at_operation_time": since}
        self.lost = True  # from now on, which is later than when somebody began to wait
        return {}

    def _opened(self) -> None:
        self._was_open = True
        self.refused = None
        self.pace.opened()
        log_reopened(logger, self._outage.succeeded())

    def _failed_to_open(self, error: Exception) -> None:
        verdict = classify(error)  # type: ignore[arg-type]
        # A place that is lost is looked for anew.
        may_open = self._was_open or passes(error) or verdict.reason in _LOST
        final = isinstance(error, PROGRAM_ERRORS) or not may_open
        self.refused = error if final else None
        self._failed(verdict, error)

    def _failed(self, verdict: Verdict, error: Exception | None) -> None:
        if not verdict.resume:
            self._token, self.lost = None, True
        if self._outage.failed():
            log_broken(logger, verdict, error)
        self.pace.failed(verdict)

    def _read_well(self) -> None:
        log_reopened(logger, self._outage.succeeded())


class EndStream(StreamState):
    """A change stream that one thread at a time opens and reads.

    Args:
        ended: called when the stream just ended, as it does when its collection is dropped.
    """

    def __init__(self, jobs: Collection[Any], ended: Callable[[], None]) -> None:
        super().__init__()
        self._jobs = jobs
        self._ended = ended
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._count = itertools.count(1)  # threads that add 1 to the same number may count once
        self._client: MongoClient[Any] | None = None
        self._stream: ChangeStream[Any] | None = None
        self._timer: threading.Timer | None = None

    def take_turn(self) -> bool:
        """Take the turn, or return False if somebody has it."""
        return self._turn.acquire(blocking=False)

    def pass_turn(self) -> None:
        """Give it back."""
        self._turn.release()

    @property
    def taken(self) -> bool:
        """Whether somebody has the turn."""
        return self._turn.locked()

    @property
    def ours(self) -> bool:
        """Whether this is the process that made it, and not a fork of that."""
        return os.getpid() == self._pid

    def signal(self) -> Signal:
        """Return what a thread sleeps on."""
        return Signal()

    def count_closing(self) -> None:
        """Note that it is closed."""
        self.closings = next(self._count)

    def checkpoint(self) -> None:
        """Between two reads an async call may be cancelled."""

    def later(self, seconds: float, run: Callable[[], None]) -> None:
        """Run something in so many seconds, unless something is to be run by then already."""
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._run, [run])
            self._timer.daemon = True
            self._timer.start()

    def _run(self, run: Callable[[], None]) -> None:
        self._timer = None
        run()

    def not_later(self) -> None:
        """Do not run it."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # for whoever has the turn

    def open(self, pipeline: Pipeline, since: Timestamp | None, patience: float) -> None:
        """Open the stream, or open it anew for another pipeline; errors are kept for the pace."""
        self._drop_stream()
        try:
            with within(patience):
                if self._client is None:
                    settings = client_settings("streamqueue-ends")
                    self._client = self._jobs.database.client._duplicate(**settings)
                jobs = watched(self._client, self._jobs.with_options(codec_options=RAW_EVENTS))
                self._stream = jobs.watch(
                    pipeline,
                    full_document="updateLookup",
                    max_await_time_ms=int(MAX_AWAIT * 1000),
                    **self._begins(since),
                )
        except READ_ERRORS as error:
            self._failed_to_open(error)
        else:
            self._opened()

    def read(self, longest: float) -> list[RawBSONDocument]:
        """Wait for an event, and return it with those that came with it."""
        stream, events = self._stream, []
        if stream is None:
            return []
        try:
            set_max_await(stream, longest)
            with pymongo.timeout(longest + WAIT_MARGIN):
                event = stream.try_next()
                while event is not None:
                    events.append(event)
                    event = stream.try_next() if buffered(stream) else None
        except READ_ERRORS as error:
            self._failed(classify(error), error)
        except BaseException:  # an interruption, perhaps in the middle of a reply
            self.lost = True
            self._drop_stream()
            raise
        else:
            self._token = stream.resume_token
            if stream.alive:
                self._read_well()
                return events
            self._failed(INVALIDATED, None)
            self._ended()
        self._drop_stream()
        return events

    def shut(self) -> None:
        """Shut the stream and its client."""
        closings = self.closings
        self._drop_stream()
        self._token, self.lost = None, False
        if self._client is not None:
            self._client.close()
            self._client = None
        self._shut_at = closings

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                with pymongo.timeout(WAIT_MARGIN):
                    stream.close()
            except PyMongoError:
                pass  # the server forgets the cursor by itself


class Signal:
    """Wakes a thread that sleeps. May be set by a signal handler that interrupted that thread."""

    def __init__(self) -> None:
        self._condition = threading.Condition()  # its lock may be taken twice by the same thread
        self._is_set = False

    def set(self) -> None:
        """Wake it, or let its next sleep be none."""
        with self._condition:
            self._is_set = True
            self._condition.notify_all()

    def sleep(self, seconds: float) -> None:
        """Sleep until it is set, or for so many seconds, or for a while."""
        deadline = monotonic() + min(seconds, LONGEST_WAIT)
        with self._condition:
            while not self._is_set and (left := deadline - monotonic()) > 0:
                self._condition.wait(left)
            self._is_set = False
