"""Looking: what became of jobs, and how many there are; the flows of both shells.

Nothing here changes a job, and nobody who consumes is in the way of it: pages and counts are read
from the indexes that the states have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from ..errors import ConfigurationError, JobNotFound
from ..options import MAX_BATCH, group_name, whole_number
from ..protocol import operations
from ..protocol.document import BARE_CODEC, CODEC, ids_meant
from ..protocol.operations import LISTED, Wanted
from .info import RAW_JOBS, JobInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson import CodecOptions
    from bson.raw_bson import RawBSONDocument

    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


class Looking:
    """Looks at the jobs of one queue, or of any.

    Args:
        name: the queue; None is any, for a look at one job by its id.
    """

    def __init__(self, store: Store | AsyncStore, name: str | None) -> None:
        self._store = store
        self._name = name

    def get(self, job_id: Any) -> Flow[JobInfo]:
        """Return the job with this id, or raise JobNotFound."""
        ids = ids_meant(job_id)
        yield self._store.prepare()
        return (yield from self.first_of(ids))

    def first_of(self, ids: Sequence[Any], *, data: bool = True) -> Flow[JobInfo]:
        """Return the job with the first of these ids that one has, or raise JobNotFound."""
        found = yield from self.some_of(ids, data=data)
        for meant in ids:
            for info in found:
                if info.id == meant:
                    return info
        if not found:
            raise JobNotFound(ids[-1])
        return found[0]  # by a number of another type, which the server takes for the same

    def some_of(self, ids: Sequence[Any], *, data: bool = True) -> Flow[list[JobInfo]]:
        """Return the jobs that have one of these ids."""
        command = operations.by_id(self._name, ids, data=data)
        raw: list[RawBSONDocument] = yield self._store.find(command, RAW_JOBS)
        return [*map(JobInfo.from_raw, raw)]

    def jobs(
        self,
        state: str | None,
        group: str | None,
        limit: int,
        start_after: Any,
        data: bool,
    ) -> Flow[list[JobInfo]]:
        """Return up to `limit` jobs behind another one, state after state, or in one state."""
        whole_number(limit, "limit", 1, MAX_BATCH)
        if state is not None and state not in LISTED:
            raise ConfigurationError(f"state must be one of {', '.join(LISTED)}, not {state!r}")
        if group is not None:
            group_name(group)
        yield self._store.prepare()
        after: JobInfo | None = None
        if start_after is not None:
            after = yield from self._place_of(start_after, state)
        states = [*LISTED] if state is None else [state]
        if after is not None:
            states = states[states.index(after.state) :]
        found: list[JobInfo] = []
        for each in states:
            wanted = Wanted(str(self._name), each, group, data)
            found += yield from self._page(wanted, after, limit - len(found))
            after = None
            if len(found) == limit:
                break
        return found

    def _place_of(self, start_after: Any, state: str | None) -> Flow[JobInfo]:
        """Return the job behind which a page begins, as it was when it was seen, or is now."""
        if isinstance(start_after, JobInfo):
            found = start_after
        else:
            found = yield from self.first_of(ids_meant(start_after), data=False)
        if found.queue != self._name or found.state not in ({state} if state else LISTED):
            of_state = "" if state is None else f"{state} "
            raise ConfigurationError(
                f"start_after must be a {of_state}job of queue {self._name}, whose place in their "
                f"order is known; {found.id} was {found.state or 'in no state'} in {found.queue}"
            )
        return found

    def _page(self, wanted: Wanted, after: JobInfo | None, limit: int) -> Flow[list[JobInfo]]:
        """Return up to `limit` jobs of a state, behind another one if there is one."""
        if after is None or after._place is None:
            return (yield from self._ordered(wanted, None, limit))
        found: list[JobInfo] = []
        for equal in reversed(range(1, len(wanted.order.keys))):
            command = operations.next_page(wanted, after._place, equal, limit - len(found))
            found += yield from self._read(command)
            if len(found) == limit:
                return found
        found += yield from self._ordered(wanted, after._place, limit - len(found))
        return found

    def _ordered(
        self, wanted: Wanted, place: Sequence[Any] | None, limit: int
    ) -> Flow[list[JobInfo]]:
        """Return the first jobs of a state, those whose first value is beyond that of a place.

        Where the index says nothing of the ids, those with one value at the end of the page are
        read again, by their ids: of ten thousand that ended with one write it may have any.
        """
        ties = wanted.order.ties
        many = limit + ties
        if place is None:
            command = operations.first_page(wanted, many)
        else:
            command = operations.next_page(wanted, place, 0, many)
        found = yield from self._read(command)
        if not ties or len(found) <= limit:
            return found
        last, cut = found[limit - 1]._place, found[limit]._place
        if last is None or cut is None or last[0] != cut[0]:
            return found[:limit]
        kept = [info for info in found if info._place is None or info._place[0] != cut[0]]
        rest = yield from self._read(operations.tied(wanted, cut, limit - len(kept)))
        return kept + rest

    def _read(self, command: operations.Pipeline) -> Flow[list[JobInfo]]:
        raw: list[RawBSONDocument] = yield self._store.aggregate(command, codec=RAW_JOBS)
        return [*map(JobInfo.from_raw, raw)]

    def counts(self) -> Flow[dict[str, dict[str, int]]]:
        """Count the jobs of every queue of the collection by state."""
        pipeline = operations.counts(self._store.jobs.name)
        return operations.read_counts((yield from self._at_one_moment(pipeline, BARE_CODEC)))

    def size(self) -> Flow[int]:
        """Count the jobs of the queue."""
        pipeline = operations.size(str(self._name), self._store.jobs.name)
        return operations.read_size((yield from self._at_one_moment(pipeline)))

    def stats(self) -> Flow[dict[str, int]]:
        """Count the jobs of the queue by state."""
        pipeline = operations.stats(str(self._name), self._store.jobs.name)
        return operations.read_stats((yield from self._at_one_moment(pipeline)))

    def _at_one_moment(
        self, pipeline: operations.Pipeline, codec: CodecOptions[Any] = CODEC
    ) -> Flow[list[Any]]:
        """Aggregate what all jobs are at one moment.

        The parts of a count are read one after the other, each from an index: without this a job
        that changes its state meanwhile is counted twice or, as one that is retried, not at all.
        """
        yield self._store.prepare()
        try:
            rows: list[Any] = yield self._store.aggregate(
                pipeline, codec, read_concern=ReadConcern("snapshot")
            )
        except OperationFailure as error:
            if error.code not in operations.SNAPSHOT_GONE:
                raise
            rows = yield self._store.aggregate(pipeline, codec)
        return rows
