"""Ends: how a queue object writes what its held jobs say; the flows of both shells.

Each of these writes matches the claim's token. In a worker, ``worker.ends`` and the completer do
this, which try again while the lease lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure

from ..errors import LeaseLost
from ..protocol import operations
from .job import log_shortened

if TYPE_CHECKING:
    from ..options import QueueOptions
    from ..protocol.document import JobRecord
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


class Ends:
    """The flows behind a :class:`~.holder.Holder`; each raises LeaseLost as that does."""

    def __init__(self, store: Store | AsyncStore, options: QueueOptions) -> None:
        self._store = store
        self._options = options

    def complete(self, record: JobRecord, session: Any) -> Flow[None]:
        self._store.check_place()
        wanted = operations.held(record.id, record.token)
        result = yield self._store.jobs.delete_one(wanted, session=session)
        if not result.deleted_count:
            raise LeaseLost(record.id)

    def error(self, record: JobRecord, message: str | None, delay: float | None) -> Flow[None]:
        wait = self._options.backoff.delay(record.attempts) if delay is None else delay
        return self._end(
            record, operations.error(record.id, record.token, message, wait, record.max_attempts)
        )

    def discard(self, record: JobRecord, message: str) -> Flow[None]:
        return self._end(record, operations.discard(record.id, record.token, message))

    def progress(self, record: JobRecord, count: int | None) -> Flow[None]:
        self._store.check_place()
        wanted = operations.held(record.id, record.token)
        command = operations.renew(wanted, self._options.timeout, count)
        result = yield self._store.jobs.update_one(*command)
        if not result.matched_count:
            raise LeaseLost(record.id)

    def release(self, record: JobRecord, delay: float | None) -> Flow[None]:
        return self._end(record, operations.release(record.id, record.token, delay))

    def _end(self, record: JobRecord, command: operations.Update) -> Flow[None]:
        """Write the end of an attempt; shorten one that the server refuses, as far as it can be."""
        self._store.check_place()
        try:
            result = yield self._store.jobs.update_one(*command)
        except OperationFailure as error:
            if not operations.is_refusal(error):
                raise
            result = yield from self._end_shortened(record, command, error)
        if not result.matched_count:
            raise LeaseLost(record.id)

    def _end_shortened(
        self, record: JobRecord, command: operations.Update, refusal: OperationFailure
    ) -> Flow[Any]:
        for smaller in operations.smaller(command):
            try:
                result = yield self._store.jobs.update_one(*smaller)
            except OperationFailure as error:
                if not operations.is_refusal(error):
                    raise
            else:
                log_shortened(record, refusal)
                return result
        raise refusal
