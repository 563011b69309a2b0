"""ShieldedEnds: ends of attempts for the async shell, awaited to their end, cancelled or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import CancelScope
from anyio.lowlevel import checkpoint

from .flow import run_async

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..protocol.document import JobRecord
    from .ends import Ends


class ShieldedEnds:
    """The :class:`~.holder.AsyncHolder` of the jobs that a queue object has claimed."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def complete(
        self, record: JobRecord, result: object, session: AsyncClientSession | None
    ) -> Awaitable[None]:
        return run_async(self._ends.complete(record, result, session), _shield())

    def error(self, record: JobRecord, message: str | None, delay: float | None) -> Awaitable[None]:
        return run_async(self._ends.error(record, message, delay), _shield())

    def discard(self, record: JobRecord, message: str) -> Awaitable[None]:
        return run_async(self._ends.discard(record, message), _shield())

    async def progress(self, record: JobRecord, count: int | None, note: str | None) -> None:
        await run_async(self._ends.progress(record, count, note), _shield())
        await checkpoint()  # most of them wait for nothing, and must not keep out all others

    def release(self, record: JobRecord, delay: float | None) -> Awaitable[None]:
        return run_async(self._ends.release(record, delay), _shield())


def _shield() -> CancelScope:
    return CancelScope(shield=True)
