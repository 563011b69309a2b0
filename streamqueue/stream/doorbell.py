"""The blocking shell's change stream: a thread waits on it for jobs that became claimable.

One reader at a time: of the threads that wait, one has the turn and reads the stream, and wakes the
others. Only who has the turn touches the stream and its client, so they are shut by whoever has it
when the queue is closed, and by ``close`` itself only if nobody has.

``close`` takes no lock that somebody may hold for long, because it may be called by a signal
handler that has interrupted the very thread that reads: it counts, and tries to get the turn
without waiting. Whoever gives up the turn looks at that count afterwards. All waits are short ones
behind each other, so the count is noticed even when nobody could be woken.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from typing import TYPE_CHECKING, Any

import pymongo
from pymongo.errors import PyMongoError

from .. import plain
from ..clock import monotonic
from ..outage import Outage
from ..protocol import operations
from ..protocol.document import BARE_CODEC
from .verdict import (
    INVALIDATED,
    READ_ERRORS,
    WAIT_MARGIN,
    Pace,
    Verdict,
    buffered,
    classify,
    client_settings,
    is_bell,
    log_broken,
    log_reopened,
    passes,
    set_max_await,
    watched,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pymongo.synchronous.change_stream import ChangeStream
    from pymongo.synchronous.collection import Collection
    from pymongo.synchronous.mongo_client import MongoClient

logger = plain.logger("streamqueue.doorbell")

MAX_AWAIT = 0.25
"""Seconds one read may stay silent: how late a wait may notice that the queue was closed."""


class Doorbell:
    """Rings when there may be something to claim in these queues.

    Args:
        ended: called when the stream just ended, as it does when its collection is dropped.

    Attributes:
        closings: another number each time it is closed. What waits when it changes stops waiting.
        pace: when to listen, or look, again after a failure.
        broken: whether the stream could not be read or opened; that is logged.
        refused: whether the first stream could not be opened for a reason that does not pass.
        bells: another number each time that the settings of a queue may have been changed: the bell
            among the jobs has rung, or may have, while no stream was open.
        heard_at: :func:`monotonic` time at which the stream last gave a sign of life.
    """

    def __init__(
        self, jobs: Collection[Any], queues: Sequence[str], ended: Callable[[], None]
    ) -> None:
        self._jobs = jobs
        self._queues = list(queues)
        self._ended = ended
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._news = threading.Condition()  # (its lock may be taken twice by the same thread)
        self._client: MongoClient[Any] | None = None
        self._stream: ChangeStream[Any] | None = None
        self._rings = 0
        self._was_open = False
        self._outage = Outage()
        self.pace = Pace()
        self.broken = self.refused = False
        self.bells = 0
        self.heard_at = -math.inf
        self._count = itertools.count(1)  # threads that add 1 to the same number may count once
        self.closings = 0
        self._shut_at = 0  # what `closings` was when the stream was last shut

    def listen(self, closings: int, patience: float) -> int:
        """Open the stream if it is not open; return a mark for :meth:`wait`.

        What becomes claimable from now on is noticed by a wait from this mark on, so look for jobs
        after this call. Returns early when the bell is closed, after `closings` times.

        Raises:
            PyMongoError: it could not be opened (within `patience` seconds and a little).
        """
        while True:
            mark = self._rings  # first: if the stream breaks after that, it has rung since
            if self._stream is not None or self.closings != closings:
                return mark
            if self._turn.acquire(timeout=MAX_AWAIT):
                try:
                    if self._stream is None:
                        self._open(patience)
                finally:
                    self._pass_turn()

    def wait(self, mark: int, timeout: float, closings: int) -> bool:
        """Return True when it has rung since the mark, or when in doubt; False after `timeout`
        seconds, or when the bell is closed."""
        deadline = monotonic() + timeout
        while self.closings == closings:
            if self._rings != mark:
                return True
            left = deadline - monotonic()
            if left <= 0:
                break
            if self._turn.acquire(blocking=False):
                rang = True  # whatever goes wrong below is a reason to look
                try:
                    rang = self._read(min(left, MAX_AWAIT))
                finally:
                    self._rings += rang
                    self._pass_turn()
            else:
                self._wait_for_news(left)
        return False

    def rest(self, closings: int, deadline: float) -> None:
        """Wait until it is time to try again, the deadline has come or the bell is closed."""
        while self.closings == closings:
            left = min(self.pace.again_at, deadline) - monotonic()
            if left <= 0:
                return
            with self._news:
                self._news.wait(min(left, MAX_AWAIT))

    def close(self) -> None:
        """End the waits under way, and shut the stream and its client, now or within a moment."""
        self.closings = next(self._count)
        if os.getpid() == self._pid:  # else they are the parent's, as is whoever has the turn
            self._shut_if_closed()

    def _wait_for_news(self, left: float) -> None:
        with self._news:
            if self._turn.locked():  # else nobody reads any more
                self._news.wait(min(left, MAX_AWAIT))

    def _pass_turn(self) -> None:
        self._turn.release()
        with self._news:
            self._news.notify_all()
        self._shut_if_closed()

    def _shut_if_closed(self) -> None:
        # Either we get the turn, or whoever has it comes here when it gives it up.
        while self._shut_at != self.closings and self._turn.acquire(blocking=False):
            try:
                closings = self.closings
                self._shut()
                if self._client is not None:
                    self._client.close()
                    self._client = None
                self._shut_at = closings
            finally:
                self._turn.release()

    # for whoever has the turn

    def _open(self, patience: float) -> None:
        try:
            with within(patience):
                if self._client is None:
                    settings = client_settings("streamqueue-stream")
                    self._client = self._jobs.database.client._duplicate(**settings)
                jobs = watched(self._client, self._jobs.with_options(codec_options=BARE_CODEC))
                self._stream = jobs.watch(
                    operations.stream_pipeline(self._queues),
                    max_await_time_ms=int(MAX_AWAIT * 1000),
                )
        except READ_ERRORS as error:
            self.refused = not (self._was_open or passes(error))
            self._note_broken(classify(error), error)
            raise
        self._was_open = True
        self.bells += 1  # it may have rung before
        self.broken = self.refused = False
        self.pace.opened()
        log_reopened(logger, self._outage.succeeded())

    def _read(self, longest: float) -> bool:
        """Wait for one event and take in those that came with it; True also for a broken stream."""
        stream = self._stream
        if stream is None:
            return True
        try:
            set_max_await(stream, longest)
            with pymongo.timeout(longest + WAIT_MARGIN):
                event = last = stream.try_next()
                while last is not None:
                    self.bells += is_bell(last)
                    last = stream.try_next() if buffered(stream) else None
        except READ_ERRORS as error:
            verdict = classify(error)
            self._note_broken(verdict, error)
        except BaseException:  # an interruption, perhaps in the middle of a reply
            self._shut()
            raise
        else:
            if stream.alive:
                self.heard_at = monotonic()
                log_reopened(logger, self._outage.succeeded())
                return event is not None
            verdict = INVALIDATED
            self._note_broken(verdict, None)
            self._ended()
        # Opened afresh, without the token: whoever waits looks for jobs after it is open again.
        self._shut()
        self.pace.failed(verdict)
        return True

    def _note_broken(self, verdict: Verdict, error: Exception | None) -> None:
        self.broken = True
        if self._outage.failed():
            log_broken(logger, verdict, error)

    def _shut(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._rings += 1  # for whoever relies on it
            try:
                with pymongo.timeout(WAIT_MARGIN):
                    stream.close()
            except PyMongoError:
                pass  # the server forgets the cursor by itself
