"""ShieldedEnds: ends of attempts for the async shell, awaited to their end, cancelled or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import NoEventLoopError, to_thread
from anyio.lowlevel import checkpoint, current_token

from .flow import run_async, shield
from .holder import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..protocol.document import JobRecord
    from ..protocol.steps import StepResult
    from .ends import Ends
    from .outcome import End


class ShieldedEnds:
    """The :class:`~.holder.AsyncHolder` of the jobs that a queue object has claimed."""

    context = NO_CONTEXT

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._looks: set[Any] = set()

    def complete(
        self, record: JobRecord, result: object, session: AsyncClientSession | None
    ) -> Awaitable[None]:
        return run_async(self._ends.complete(record, result, session), shield())

    def end(self, record: JobRecord, end: End) -> Awaitable[None]:
        return run_async(self._ends.end(record, end), shield())

    def cancelled(self, record: JobRecord) -> bool:
        """Return what is known, and look again beside the caller, who does not wait for it. In
        another thread there is nothing to look with."""
        try:
            loop: Any = current_token().native_token
        except NoEventLoopError:
            return record.asked
        if self._ends.begin_look(record):
            # Not in a task group: there is none that is open for as long as a job is held.
            task = loop.create_task(run_async(self._ends.finish_look(record)))
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)
        return record.asked

    async def progress(self, record: JobRecord, count: int | None, note: str | None) -> None:
        await run_async(self._ends.progress(record, count, note), shield())
        await checkpoint()  # most of them wait for nothing, and must not keep out all others

    def parents(
        self, _record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Awaitable[Sequence[RawBSONDocument]]:
        return run_async(self._ends.parents(ids, whole))

    def begin_step(self, record: JobRecord, _session: AsyncClientSession | None) -> Awaitable[None]:
        return run_async(self._ends.begin_step(record), shield())

    def is_step_stored(
        self, record: JobRecord, name: str, session: AsyncClientSession
    ) -> Awaitable[bool]:
        return run_async(self._ends.is_step_stored(record, name, session))

    def store_step(
        self,
        record: JobRecord,
        name: str,
        result: RawBSONDocument,
        session: AsyncClientSession | None,
    ) -> Awaitable[None]:
        # Each write is shielded by itself, and no pause between two is.
        return run_async(self._ends.store_step(record, name, result, session))

    def count_step(self, result: StepResult) -> None:
        pass  # a queue object counts nothing of attempts

    def in_thread(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return to_thread.run_sync(function)
