"""Canceller: how jobs are ended by somebody who does not hold them; the flows of both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pymongo import ReturnDocument, UpdateMany
from pymongo.errors import OperationFailure

from ...errors import ConfigurationError, JobNotFound
from ...protocol import operations
from ...protocol.document import JobRecord
from ..dependencies import BATCH, Dependents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...store.asynchronous import AsyncStore
    from ...store.blocking import Store
    from ..flow import Flow


Cancelled = Literal["cancelled", "asked"]

PATIENCE_MS = 5000
"""How long the server may take over a request, as with a job that is in an open transaction."""


class Canceller:
    """Ends the jobs of one queue from outside.

    Args:
        keep: how long a cancelled job stays that nobody has claimed and that does not say.
    """

    def __init__(self, store: Store | AsyncStore, name: str, keep: float | None) -> None:
        self._store = store
        self._name = name
        self._keep = keep

    def cancel(self, ids: Sequence[Any], dependents: bool = False) -> Flow[Cancelled | None]:
        """Cancel the job with one of these ids; return what has become of it, None if it had ended.

        Args:
            dependents: and all that comes after it.

        Raises:
            JobNotFound: there is none.
        """
        yield self._store.prepare()
        live = True
        while live:
            for job_id in ids:
                cancelled = yield from self._cancel_one(job_id, dependents)
                if cancelled is not None:
                    return cancelled
            found = yield from self._states(ids)
            if not found:
                raise JobNotFound(ids[-1])
            # One that lives was put, or requeued, between the two.
            live = any(map(operations.can_be_cancelled, found))
        if dependents:
            yield from self._cancel_tree([job["_id"] for job in found])
        return None

    def _cancel_tree(self, roots: Sequence[Any]) -> Flow[None]:
        """Cancel all that comes after these jobs, and then see to what their ends mean to others:
        they are told of none before all are cancelled."""
        for root in roots:
            try:
                yield self._store.require_index("after", "cancel(dependents=True)")
            except ConfigurationError:
                return  # without it nobody has put any
            cancelled = yield from Dependents(self._store).tree(root)
            for start in range(0, len(cancelled), BATCH):
                some = cancelled[start : start + BATCH]
                yield from self._ended(some)

    def _ended(self, ids: Sequence[Any]) -> Flow[None]:
        found = yield self._store.find(operations.parents_of(ids))
        yield self._store.tell_dependents(ids)
        yield self._store.remove_cancelled(ids)
        yield self._store.release_of(
            [JobRecord.from_document(job, max_attempts=0) for job in found]
        )

    def _states(self, ids: Sequence[Any]) -> Flow[list[dict[str, Any]]]:
        found = []
        for job_id in ids:
            found += yield self._store.look_up(operations.states_of(self._name, job_id))
        return found

    def _cancel_one(self, job_id: Any, dependents: bool) -> Flow[Cancelled | None]:
        jobs = self._store.jobs
        removed = yield jobs.find_one_and_delete(
            operations.cancel_waiting(self._name, job_id, self._keep), projection={"group": 1}
        )
        if removed is not None:
            yield from self._make_room(removed)
            return "cancelled"  # nobody needs it, so nothing comes after it
        # Whoever ends a job that was asked for may not know of it, and leave it to the server to
        # remove it. Where that index cannot be, the job is as cancelled as ever, and stays.
        try:
            yield self._store.require_index("keep", "cancel()")
        except ConfigurationError:
            pass
        command = operations.cancel(self._name, job_id, self._keep)
        try:
            found = yield from self._change(command)
        except OperationFailure as error:
            if not operations.is_refusal(error):
                raise
            # A validator may want all that a job has, also of what only holds a key.
            as_job = operations.cancel(self._name, job_id, self._keep, as_job=True)
            found = yield from self._change(as_job)
        if found is None:
            return None
        if dependents:
            yield from self._cancel_tree([job_id])
        if found.get("state") == "running":
            return "asked"
        if found.get("needed") is not None:
            yield self._store.tell_dependents([job_id], needed=True)
        yield self._store.remove_cancelled([job_id])
        if found.get("after"):
            record = JobRecord.from_document(found, max_attempts=0)
            yield self._store.release_of([record])
        yield from self._make_room(found)
        return "cancelled"

    def _make_room(self, ended: dict[str, Any]) -> Flow[None]:
        """Let the next of its group start, before which a job came that has ended."""
        if "group" in ended:
            yield self._store.say_room_in(self._name)

    def _change(self, command: operations.Update) -> Flow[dict[str, Any] | None]:
        found: dict[str, Any] | None = yield self._store.jobs.find_one_and_update(
            *command,
            projection={"state": 1, "group": 1, "needed": 1, "after": 1},
            return_document=ReturnDocument.AFTER,
            # A job that somebody's open transaction has changed would be waited for until its end.
            maxTimeMS=PATIENCE_MS,
        )
        return found

    def clear(self) -> Flow[int]:
        """Remove every job of the queue; return how many."""
        yield self._store.prepare()
        needed = yield from self._needed()
        removed = yield from self._clear()
        if needed:
            yield self._store.tell_dependents(needed, needed=True)
        return removed

    def _needed(self, *states: str) -> Flow[list[Any]]:
        """Return the ids of those jobs of the queue that others come after."""
        try:
            found = yield self._store.find(operations.needed_of_queue(self._name, *states))
        except OperationFailure as error:
            if error.code not in operations.NOT_THERE:
                raise
            return []  # without that index nobody has put any
        return [job["_id"] for job in found]

    def _clear(self) -> Flow[int]:
        """Remove every job of the queue; return how many.

        Those that somebody waits for are ended before, so that who waits hears of it: of what is
        gone nobody is told whose it was. What holds a key for longer stays, and is no job.
        """
        jobs, removed = self._store.jobs, 0
        for wanted in operations.all_of_queue(self._name):
            result = yield jobs.delete_many(operations.removable(wanted))
            removed += int(result.deleted_count)
        awaited = operations.give_up_awaited(self._name)
        yield jobs.bulk_write([UpdateMany(*update) for update in awaited], ordered=False)
        holders = [UpdateMany(*update) for update in operations.clear_to_holders(self._name)]
        removed += int((yield jobs.bulk_write(holders, ordered=False)).modified_count)
        for wanted in operations.moved_back(self._name):
            removed += int((yield jobs.delete_many(wanted)).deleted_count)
        if removed:
            yield self._store.say_room_in(self._name)
        return removed

    def drop_dead(self) -> Flow[int]:
        """Remove the dead jobs of the queue, but for what holds a key for longer; return how
        many."""
        yield self._store.prepare()
        needed = yield from self._needed("dead")
        jobs, dead = self._store.jobs, operations.of_queue(self._name, "dead")
        removed = (yield jobs.delete_many(operations.not_holding_on(dead))).deleted_count
        left = (yield jobs.update_many(*operations.to_holders(dead))).modified_count
        if removed or left:
            yield self._store.say_room_in(self._name)
        if needed:
            yield self._store.tell_dependents(needed, needed=True)
        return int(removed + left)
