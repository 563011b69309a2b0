"""Dependents as they are put, and cancelled with all that comes after them; for both shells.

A put marks the parents first, by one update, so that none of them is removed from then on and
whoever ends one knows that somebody waits; reads whether they are all there, as the majority has
it; inserts; and looks how they stand, for one may have ended before it was marked, or before the
dependent was there to be found. Who is killed in between leaves parents that stay for longer than
they need to, or a dependent that waits: both are looked for (``store/flows/dependencies``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from ..errors import JobNotFound
from ..protocol import operations
from ..protocol.dependencies import key_of
from ..store.collection import UNAUTHORIZED
from ..store.lines import log_dependents_left
from .flow import in_transaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..protocol.put import Put
    from ..protocol.puts import Puts
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow

KEEP_IT = (
    "it has ended and was not kept, or never was there. Put it with keep=, or put both together: "
    "put_many() with NewJob(..., job_id=) for the one and NewJob(..., after=[...]) for the other"
)
MORE_RIGHTS = (
    "not authorized to put with after=, which marks the jobs that it names, and looks how they "
    "stand: that needs find, insert and update on the jobs"
)
BATCH = 1000


class Dependents:
    """Sees to it that the jobs that are put come after those that they name."""

    def __init__(self, store: Store | AsyncStore) -> None:
        self._store = store

    def mark(self, ids: Sequence[Any], session: Any) -> Flow[Any]:
        """Mark some jobs as parents; return one of them that lives, None if none does.

        Raises:
            JobNotFound: one of them is not there.
            OperationFailure: the user may not look for them or mark them, among others.
        """
        try:
            return (yield from self._mark(ids, session))
        except OperationFailure as error:
            if error.code == UNAUTHORIZED:
                # The text of the server quotes the whole command.
                raise OperationFailure(MORE_RIGHTS, error.code) from None
            raise

    def _mark(self, ids: Sequence[Any], session: Any) -> Flow[Any]:
        self._store.needless = False
        self._store.depended = True
        within = session if in_transaction(session) else None
        for start in range(0, len(ids), BATCH):
            # No limit is for this: a parent that is part of an open transaction is waited for.
            command = operations.mark_needed(ids[start : start + BATCH])
            try:
                yield self._store.jobs.update_many(*command, session=session)
            except AutoReconnect:  # the driver does not repeat a write of many, and this may be
                if within is not None:
                    raise
                yield self._store.jobs.update_many(*command, session=session)
        rows = yield self._store.aggregate_committed(operations.count_jobs(ids), within)
        count, last = (rows[0]["count"], rows[0]["last"]) if rows else (0, None)
        if count < len(ids):
            missing = yield from self._missing(ids, within)
            if missing:
                if within is None:
                    yield self._store.release(ids)
                raise JobNotFound(missing[0], where="in any queue", hint=KEEP_IT)
        return last

    def _missing(self, ids: Sequence[Any], within: Any) -> Flow[list[Any]]:
        there: set[object] = set()
        for start in range(0, len(ids), BATCH):
            found = yield self._store.aggregate_committed(
                operations.ids_of_jobs(ids[start : start + BATCH]), within
            )
            there.update(key_of(job["_id"]) for job in found)
        return [one for one in ids if key_of(one) not in there]

    def prepare(self, put: Put, session: Any) -> Flow[None]:
        """Mark the parents of a job that is to be put."""
        live = yield from self.mark(put.parents.ids, session)
        put.parents = put.parents._replace(witness=live)

    def prepare_many(self, puts: Puts, session: Any) -> Flow[None]:
        """Mark the parents of many jobs, those that are not among them."""
        if puts.parents:
            yield from self.mark(puts.parents, session)

    def release(self, ids: Sequence[Any], session: Any) -> Flow[None]:
        """Let the parents go of a job that was not put."""
        if not in_transaction(session):
            yield self._store.release(ids)

    def look(self, put: Put, ids: Sequence[Any], session: Any) -> Flow[None]:
        """Look how the parents stand of a job that was just put, or of copies of it."""
        found = [{"_id": job_id, "size": len(put.parents.ids)} for job_id in ids]
        yield from self._look(found, session)

    def look_at_many(self, puts: Puts, session: Any) -> Flow[None]:
        """The same of many: all their parents are read once, and where all live there is nothing to
        be done."""
        sizes = {
            put.id: len(put.parents.ids) for put in puts.own.values() if put.parents.ids
        } | dict.fromkeys(puts.plain_dependents(), len(puts.shared.parents.ids))
        try:
            if (yield from self._all_live(puts.all_parents(), session)):
                return
        except PyMongoError as error:
            self._left(error, session)
            return
        found = [{"_id": job_id, "size": size} for job_id, size in sizes.items()]
        yield from self._look(found, session)

    def _all_live(self, ids: Sequence[Any], session: Any) -> Flow[bool]:
        within = session if in_transaction(session) else None
        live = 0
        for start in range(0, len(ids), 10 * BATCH):
            some = operations.count_live_parents(ids[start : start + 10 * BATCH])
            rows = yield self._store.aggregate_committed(some, within)
            live += rows[0]["count"] if rows else 0
        return live == len(ids)

    def _look(self, found: Sequence[dict[str, Any]], session: Any) -> Flow[None]:
        within = session if in_transaction(session) else None
        try:
            looked_at = yield self._store.look_at_dependents(found, within)
        except PyMongoError as error:
            self._left(error, session)
            return
        if looked_at.cancelled:
            yield self._store.tell_dependents(looked_at.cancelled, within, needed=True)

    def _left(self, error: PyMongoError, session: Any) -> None:
        """The jobs are put; how their parents stand is looked at later. In a transaction they are
        not, unless it is repeated."""
        if in_transaction(session):
            raise error
        self._store.parked()
        log_dependents_left(error)

    # cancelled together

    def tree(self, root: Any) -> Flow[list[Any]]:
        """Cancel all that comes after a job, and after that, and so on; return the ids of what was
        there. Nobody is told of it meanwhile: one whose rule is to run would be run."""
        seen: dict[object, Any] = {key_of(root): root}
        level = [root]
        while level:
            below: dict[object, Any] = {}
            for start in range(0, len(level), BATCH):
                behind: Any = None
                while True:
                    some = level[start : start + BATCH]
                    found = yield self._store.find(operations.live_dependents(some, behind))
                    ids = [job["_id"] for job in found]
                    below |= {key_of(one): one for one in ids if key_of(one) not in seen}
                    if len(found) < operations.FOUND_AT_ONCE:
                        break
                    behind = ids[-1]
            level = list(below.values())
            seen |= below
            for start in range(0, len(level), BATCH):
                command = operations.cancel_tree(level[start : start + BATCH])
                yield self._store.jobs.update_many(*command)
        del seen[key_of(root)]
        return list(seen.values())
