"""Canceller: how jobs are ended by somebody who does not hold them; the flows of both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo import UpdateMany

from ..protocol import operations

if TYPE_CHECKING:
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


class Canceller:
    """Ends the jobs of one queue from outside."""

    def __init__(self, store: Store | AsyncStore, name: str) -> None:
        self._store = store
        self._name = name

    def clear(self) -> Flow[int]:
        """Remove every job of the queue; return how many.

        Those that somebody waits for are ended before, so that who waits hears of it: of what is
        gone nobody is told whose it was.
        """
        yield self._store.prepare()
        jobs, removed = self._store.jobs, 0
        for wanted in operations.all_of_queue(self._name):
            result = yield jobs.delete_many(operations.unawaited(wanted))
            removed += result.deleted_count
        awaited = operations.give_up_awaited(self._name)
        yield jobs.bulk_write([UpdateMany(*update) for update in awaited], ordered=False)
        for wanted in operations.moved_back(self._name):
            removed += (yield jobs.delete_many(wanted)).deleted_count
        return removed
