"""Reads that say when it was so: for who compares what was read at two moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio import CancelScope
from bson import Timestamp

from ..options import MAX_BATCH
from ..protocol import operations
from ..protocol.document import BARE_CODEC

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.collection import AsyncCollection


class ReadsOfMoments:
    """The part of an async store that reads what the majority has, with the moment of it."""

    jobs: AsyncCollection[Any]
    _committed: AsyncCollection[Any]

    def limit(self) -> AbstractContextManager[object]:
        """Return a context in which no command waits for ever."""
        raise NotImplementedError

    def read(self, raw: RawBSONDocument) -> dict[str, Any]:
        """Return a document of anybody's."""
        raise NotImplementedError

    async def find_committed(
        self, command: operations.Find
    ) -> tuple[list[dict[str, Any]], Timestamp]:
        """Read what the majority has; return all of it, and the moment at which it was so."""
        client = self.jobs.database.client
        with self.limit():
            async with (
                client.start_session(causal_consistency=False) as session,
                self._committed.find(
                    command.filter,
                    command.projection,
                    sort=command.sort,
                    limit=command.limit,
                    batch_size=abs(command.limit) or MAX_BATCH,
                    session=session,
                ) as cursor,
            ):
                found = list(map(self.read, await cursor.to_list()))
                return found, session.operation_time or Timestamp(0, 0)

    async def changed_between(
        self, ids: Sequence[Any], first: Timestamp, last: Timestamp
    ) -> list[Any]:
        """Return the ids of those jobs that were written to after one moment and by another."""
        after = Timestamp(first.time, first.inc + 1)
        changed = []
        with CancelScope(shield=True), self.limit():  # the read of a stream must not be cancelled
            jobs = self._committed.with_options(codec_options=BARE_CODEC)
            async with await jobs.watch(
                operations.changes(ids, last), start_at_operation_time=after, max_await_time_ms=100
            ) as stream:
                while (event := await stream.try_next()) is not None:
                    changed.append(event["documentKey"]["_id"])
        return changed
