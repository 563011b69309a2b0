"""What a held job asks of whoever holds it: the writes that end its attempt, note its progress or
store the results of its steps.

A queue object is asked by the jobs taken from it, and in a worker an attempt by its one job. Every
call raises LeaseLost, and changes nothing, when the job is no longer held.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.synchronous.client_session import ClientSession

    from ..protocol.document import JobRecord
    from ..protocol.steps import StepResult
    from .outcome import End


NO_CONTEXT: Mapping[str, Any] = MappingProxyType({})


class Holder(Protocol):
    """Writes what a :class:`~streamqueue.Job` says; the record carries the claim's token."""

    @property
    def context(self) -> Mapping[str, Any]:
        """What the lifespan of the job's worker has opened for all handlers."""
        return NO_CONTEXT

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

    def begin_step(self, record: JobRecord, session: ClientSession | None) -> None:
        """Raise if the job is known to be held no longer, or to be cancelled; renew nothing beside
        the session's transaction from now on."""

    def is_step_stored(self, record: JobRecord, name: str, session: ClientSession) -> bool:
        """Whether the result of a step is stored, as the session's transaction sees it."""
        ...

    def store_step(
        self, record: JobRecord, name: str, result: RawBSONDocument, session: ClientSession | None
    ) -> None:
        """Store the result of a step, in the session's transaction if there is one; else until that
        is certain, and renew the lease.

        Raises:
            JobCancelled: somebody has asked for that; the result is stored.
        """

    def count_step(self, result: StepResult) -> None:
        """Count a step that was run or not, where such things are counted."""


class AsyncHolder(Protocol):
    """Writes what an :class:`~streamqueue.AsyncJob` says: as :class:`Holder`, to be awaited."""

    @property
    def context(self) -> Mapping[str, Any]: ...

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

    def begin_step(
        self, record: JobRecord, session: AsyncClientSession | None
    ) -> Awaitable[None]: ...

    def is_step_stored(
        self, record: JobRecord, name: str, session: AsyncClientSession
    ) -> Awaitable[bool]: ...

    def store_step(
        self,
        record: JobRecord,
        name: str,
        result: RawBSONDocument,
        session: AsyncClientSession | None,
    ) -> Awaitable[None]: ...

    def count_step(self, result: StepResult) -> None: ...

    def in_thread(self, function: Callable[[], Any]) -> Awaitable[Any]:
        """Call a blocking function in a thread; cancelled, wait for it all the same."""
        ...
