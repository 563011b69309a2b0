"""The async shell's change stream: a task waits on it for jobs that became claimable.

One reader at a time: of the tasks that wait, one has the turn and reads the stream, and wakes the
others. The same as ``doorbell.py``, but a read is shielded: pymongo closes a change stream when a
read of it is cancelled, and a scope that cancels again leaks the server's cursor for ten minutes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import pymongo
from anyio import CancelScope
from pymongo.errors import PyMongoError

from .. import plain
from ..clock import monotonic
from ..outage import Outage
from ..protocol import operations
from ..protocol.document import BARE_CODEC
from .doorbell import MAX_AWAIT
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

    from pymongo.asynchronous.change_stream import AsyncChangeStream
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.mongo_client import AsyncMongoClient

logger = plain.logger("streamqueue.doorbell")


class AsyncDoorbell:
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
        self, jobs: AsyncCollection[Any], queues: Sequence[str], ended: Callable[[], None]
    ) -> None:
        self._jobs = jobs
        self._queues = list(queues)
        self._ended = ended
        self._turn: anyio.Event | None = None  # while somebody has it; set when they are done
        self._closed = anyio.Event()  # the next time
        self._client: AsyncMongoClient[Any] | None = None
        self._stream: AsyncChangeStream[Any] | None = None
        self._rings = 0
        self._was_open = False
        self._outage = Outage()
        self.pace = Pace()
        self.broken = self.refused = False
        self.bells = 0
        self.heard_at = -math.inf
        self.closings = 0
        self._shut_at = 0  # what `closings` was when the stream was last shut

    async def listen(self, closings: int, patience: float) -> int:
        """Open the stream if it is not open; return a mark for :meth:`wait`.

        What becomes claimable from now on is noticed by a wait from this mark on, so look for jobs
        after this call. Returns early when the bell is closed, after `closings` times.

        Raises:
            PyMongoError: it could not be opened (within `patience` seconds and a little).
        """
        while self._stream is None and self.closings == closings:
            if self._turn is not None:
                await self._turn.wait()
                continue
            self._turn = anyio.Event()
            try:
                with CancelScope(shield=True):
                    await self._open(patience)
            finally:
                await self._pass_turn()
        return self._rings

    async def wait(self, mark: int, timeout: float, closings: int) -> bool:
        """Return True when it has rung since the mark, or when in doubt; False after `timeout`
        seconds, or when the bell is closed."""
        deadline = monotonic() + timeout
        while self.closings == closings:
            if self._rings != mark:
                return True
            left = deadline - monotonic()
            if left <= 0:
                break
            if self._turn is not None:
                with anyio.move_on_after(left):
                    await self._turn.wait()
                continue
            self._turn = anyio.Event()
            rang = True  # whatever goes wrong below is a reason to look
            try:
                with CancelScope(shield=True):
                    rang = await self._read(min(left, MAX_AWAIT))
            finally:
                self._rings += rang
                await self._pass_turn()
            await anyio.lowlevel.checkpoint_if_cancelled()
        return False

    async def rest(self, closings: int, deadline: float) -> None:
        """Wait until it is time to try again, the deadline has come or the bell is closed."""
        while self.closings == closings:
            left = min(self.pace.again_at, deadline) - monotonic()
            if left <= 0:
                return
            with anyio.move_on_after(left):
                await self._closed.wait()

    async def close(self) -> None:
        """End the waits under way, and shut the stream and its client."""
        self.closings += 1
        closings = self.closings
        self._closed.set()
        self._closed = anyio.Event()
        with CancelScope(shield=True):
            while self._shut_at < closings:
                if self._turn is not None:
                    await self._turn.wait()
                else:
                    self._turn = anyio.Event()
                    await self._pass_turn()

    async def _pass_turn(self) -> None:
        """Give up the turn; if the bell was closed meanwhile, shut the stream before that."""
        try:
            with CancelScope(shield=True):
                while self._shut_at != self.closings:
                    closings = self.closings
                    await self._shut()
                    if self._client is not None:
                        client, self._client = self._client, None
                        await client.close()
                    self._shut_at = closings
        finally:
            done, self._turn = self._turn, None
            if done is not None:
                done.set()

    # for whoever has the turn

    async def _open(self, patience: float) -> None:
        try:
            with within(patience):
                if self._client is None:
                    settings = client_settings("streamqueue-stream")
                    self._client = self._jobs.database.client._duplicate(**settings)
                jobs = watched(self._client, self._jobs.with_options(codec_options=BARE_CODEC))
                self._stream = await jobs.watch(
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

    async def _read(self, longest: float) -> bool:
        """Wait for one event and take in those that came with it; True also for a broken stream."""
        stream = self._stream
        if stream is None:
            return True
        try:
            set_max_await(stream, longest)
            with pymongo.timeout(longest + WAIT_MARGIN):
                event = last = await stream.try_next()
                while last is not None:
                    self.bells += is_bell(last)
                    last = await stream.try_next() if buffered(stream) else None
        except READ_ERRORS as error:
            verdict = classify(error)
            self._note_broken(verdict, error)
        except BaseException:  # cancelled past the shield, perhaps in the middle of a reply
            with CancelScope(shield=True):
                await self._shut()
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
        await self._shut()
        self.pace.failed(verdict)
        return True

    def _note_broken(self, verdict: Verdict, error: Exception | None) -> None:
        self.broken = True
        if self._outage.failed():
            log_broken(logger, verdict, error)

    async def _shut(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._rings += 1  # for whoever relies on it
            try:
                with pymongo.timeout(WAIT_MARGIN):
                    await stream.close()
            except PyMongoError:
                pass  # the server forgets the cursor by itself
