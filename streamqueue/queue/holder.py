"""What a held job asks of whoever holds it: the writes that end its attempt, or note its progress.

A queue object is asked by the jobs taken from it, and in a worker an attempt by its one job. Every
call raises LeaseLost, and changes nothing, when the job is no longer held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.synchronous.client_session import ClientSession

    from ..protocol.document import JobRecord
    from .outcome import End


class Holder(Protocol):
    """Writes what a :class:`~streamqueue.Job` says; the record carries the claim's token."""

    def complete(self, record: JobRecord, result: object, session: ClientSession | None) -> None:
        """End the job as done, in the session's transaction if there is one.

        Raises:
            PayloadError: the result cannot be stored; the job is dead.
        """

    def end(self, record: JobRecord, end: End) -> None:
        """End the attempt in any other way: failed, given back, discarded or cancelled."""

    def cancelled(self, record: JobRecord) -> bool:
        """Whether somebody has asked to cancel the job, as far as is known; then every other call
        raises JobCancelled."""
        ...

    def progress(self, record: JobRecord, count: int | None, note: str | None) -> None:
        """Store the count and the note (None: keep the last one), now or with a later write, and
        renew the lease; with neither it is renewed now."""

    def parents(
        self, record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Sequence[RawBSONDocument]:
        """Return those of some parents of the job that are there, with their results, or whole, as
        the majority has them."""
        ...


class AsyncHolder(Protocol):
    """Writes what an :class:`~streamqueue.AsyncJob` says: as :class:`Holder`, to be awaited."""

    def complete(
        self, record: JobRecord, result: object, session: AsyncClientSession | None
    ) -> Awaitable[None]: ...

    def end(self, record: JobRecord, end: End) -> Awaitable[None]: ...

    def cancelled(self, record: JobRecord) -> bool: ...

    def progress(
        self, record: JobRecord, count: int | None, note: str | None
    ) -> Awaitable[None]: ...

    def parents(
        self, record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Awaitable[Sequence[RawBSONDocument]]: ...
