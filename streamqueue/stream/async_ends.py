"""The async shell's stream of ends: read by one of the tasks that wait, for all of them.

The same as ``ends.py``, but a read is shielded: pymongo closes a change stream when a read of it is
cancelled, and a scope that cancels again leaks the server's cursor for ten minutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pymongo
from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled
from pymongo.errors import PyMongoError

from ..driver import Later
from .doorbell import MAX_AWAIT
from .ends import RAW_EVENTS, StreamState
from .verdict import (
    INVALIDATED,
    READ_ERRORS,
    WAIT_MARGIN,
    buffered,
    classify,
    client_settings,
    set_max_await,
    watched,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from bson.raw_bson import RawBSONDocument
    from bson.timestamp import Timestamp
    from pymongo.asynchronous.change_stream import AsyncChangeStream
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.mongo_client import AsyncMongoClient

    from ..protocol.operations import Pipeline


class AsyncEndStream(StreamState):
    """A change stream that one task at a time opens and reads.

    Args:
        ended: called when the stream just ended, as it does when its collection is dropped.
    """

    ours = True

    def __init__(self, jobs: AsyncCollection[Any], ended: Callable[[], None]) -> None:
        super().__init__()
        self._jobs = jobs
        self._ended = ended
        self.taken = False
        self._client: AsyncMongoClient[Any] | None = None
        self._stream: AsyncChangeStream[Any] | None = None
        self._later: Later | None = None

    def take_turn(self) -> bool:
        """Take the turn, or return False if somebody has it."""
        if self.taken:
            return False
        self.taken = True
        return True

    def pass_turn(self) -> None:
        """Give it back."""
        self.taken = False

    def signal(self) -> AsyncSignal:
        """Return what a task sleeps on."""
        return AsyncSignal()

    def count_closing(self) -> None:
        """Note that it is closed."""
        self.closings += 1

    async def checkpoint(self) -> None:
        """Raise if the call was cancelled: between two reads it may be."""
        await checkpoint_if_cancelled()

    def later(self, seconds: float, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something in so many seconds, unless something is to be run by then already."""
        if self._later is None:
            self._later = Later(run)
        self._later.begin(seconds)

    def not_later(self) -> None:
        """Do not run it."""
        if self._later is not None:
            self._later.call_off()

    # for whoever has the turn

    async def open(self, pipeline: Pipeline, since: Timestamp | None, patience: float) -> None:
        """Open the stream, or open it anew for another pipeline; errors are kept for the pace."""
        with CancelScope(shield=True):
            await self._drop_stream()
            try:
                with within(patience):
                    if self._client is None:
                        settings = client_settings("streamqueue-ends")
                        self._client = self._jobs.database.client._duplicate(**settings)
                    jobs = watched(self._client, self._jobs.with_options(codec_options=RAW_EVENTS))
                    self._stream = await jobs.watch(
                        pipeline,
                        full_document="updateLookup",
                        max_await_time_ms=int(MAX_AWAIT * 1000),
                        **self._begins(since),
                    )
            except READ_ERRORS as error:
                self._failed_to_open(error)
            else:
                self._opened()

    async def read(self, longest: float) -> list[RawBSONDocument]:
        """Wait for an event, and return it with those that came with it."""
        with CancelScope(shield=True):
            events: list[RawBSONDocument] = await self._read(longest)
        return events

    async def _read(self, longest: float) -> list[RawBSONDocument]:
        stream, events = self._stream, []
        if stream is None:
            return []
        try:
            set_max_await(stream, longest)
            with pymongo.timeout(longest + WAIT_MARGIN):
                event = await stream.try_next()
                while event is not None:
                    events.append(event)
                    event = await stream.try_next() if buffered(stream) else None
        except READ_ERRORS as error:
            self._failed(classify(error), error)
        except BaseException:  # cancelled past the shield, perhaps in the middle of a reply
            self.lost = True
            await self._drop_stream()
            raise
        else:
            self._token = stream.resume_token
            if stream.alive:
                self._read_well()
                return events
            self._failed(INVALIDATED, None)
            self._ended()
        await self._drop_stream()
        return events

    async def shut(self) -> None:
        """Shut the stream and its client."""
        with CancelScope(shield=True):
            closings = self.closings
            await self._drop_stream()
            self._token, self.lost = None, False
            if self._client is not None:
                client, self._client = self._client, None
                await client.close()
            self._shut_at = closings

    async def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                with CancelScope(shield=True), pymongo.timeout(WAIT_MARGIN):
                    await stream.close()
            except PyMongoError:
                pass  # the server forgets the cursor by itself


class AsyncSignal:
    """Wakes a task that sleeps."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake it, or let its next sleep be none."""
        self._event.set()

    async def sleep(self, seconds: float) -> None:
        """Sleep until it is set, or for so many seconds."""
        with anyio.move_on_after(seconds):
            await self._event.wait()
        if self._event.is_set():
            self._event = anyio.Event()
