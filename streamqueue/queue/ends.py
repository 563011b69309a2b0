"""Ends: how a queue object writes what its held jobs say; the flows of both shells.

Each of these writes matches the claim's token. In a worker, ``worker.ends`` and the completer do
this, which try again while the lease lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymongo import ReturnDocument
from pymongo.errors import OperationFailure, PyMongoError

from ..clock import monotonic
from ..errors import JobCancelled, LeaseLost, PayloadError
from ..failures import failure_name
from ..protocol import operations
from ..protocol.progress import QUIET, QUIET_SHARE, progress_of
from ..protocol.result import encode_result
from .flow import run
from .holder import NO_CONTEXT
from .info import RAW_JOBS
from .lines import log_shortened
from .outcome import End, write_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bson.raw_bson import RawBSONDocument
    from pymongo.synchronous.client_session import ClientSession

    from ..options import QueueOptions
    from ..protocol.document import JobRecord
    from ..protocol.steps import StepResult
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


LOOK_EVERY = 1.0
"""Seconds between two looks at whether somebody has asked to cancel a job."""


class Ends:
    """The flows behind a :class:`~.holder.Holder`; each raises LeaseLost as that does."""

    def __init__(self, store: Store | AsyncStore, options: QueueOptions) -> None:
        self._store = store
        self._options = options
        self._quiet = min(QUIET, options.timeout / QUIET_SHARE)

    def complete(self, record: JobRecord, result: object, session: Any) -> Flow[None]:
        yield from self._end_if_asked(record)
        self._store.check_place()
        _over(record)
        wanted = operations.held(record.id, record.token)
        if not record.stays:
            if (yield from self._remove(record, session)):
                yield from self._make_room(record, session)
                return
            found = yield self._store.jobs.find_one(wanted, {"needed": 1}, session=session)
            if not found:
                raise LeaseLost(record.id)
            record.needed = found.get("needed") is not None
        try:
            yield from self._done(record, encode_result(result), session)
            yield from self._make_room(record, session)
        except PayloadError as problem:
            # Beside the transaction, which ends with the error: to do the work again would come to
            # the same.
            buried = operations.discard(record.id, record.token, str(problem))
            yield from self._end(record, buried)
            raise

    def _remove(self, record: JobRecord, session: Any) -> Flow[int]:
        """Remove a job that nobody keeps or awaits, or leave what holds its key."""
        jobs, wanted = self._store.jobs, operations.held(record.id, record.token)
        if not record.holds_on:
            wanted = operations.removable(wanted)
        else:
            command = operations.done_but_for_its_key(record.id, record.token)
            try:
                if (yield jobs.update_one(*command, session=session)).matched_count:
                    return 1
            except OperationFailure as error:
                if session is not None or not operations.is_refusal(error):
                    raise
                return 0  # a validator wants all that a job has, so it stays one
            wanted = operations.held_for_long_enough(wanted)
        return int((yield jobs.delete_one(wanted, session=session)).deleted_count)

    def _let_through(self, record: JobRecord, session: Any = None) -> Flow[None]:
        """Let the jobs be claimed that wait for this one, which has ended, and let its parents go;
        in the transaction by which it ends. (If it waits again it has its key, so that nobody waits
        for that.)"""
        for key in operations.keys_let_go([record]):
            if session is None:
                yield self._store.let_through([key])
            else:
                yield self._store.jobs.update_one(*operations.let_through(key), session=session)
        if record.needed:
            yield self._store.tell_dependents([record.id], session, needed=True)
        if record.after and session is None:
            yield self._store.release_of([record])

    def _make_room(self, record: JobRecord, session: Any = None) -> Flow[None]:
        """Let those start that were held back by a job which has ended. The room that one leaves
        under the rules is there when its transaction is committed, of which nobody hears: others
        are told when this queue object claims again."""
        yield from self._let_through(record, session)
        if not self._store.makes_room(record.queue, record.slots):
            return
        ruled = self._store.ruled.get(record.queue)
        if ruled is not None:
            ruled.ended(record.slots)
        if session is None:
            yield self._store.say_room()
        else:
            self._store.room_unsaid = True

    def _done(self, record: JobRecord, result: Any, session: Any) -> Flow[None]:
        command = operations.done(record.id, record.token, result)
        command = operations.with_progress(command, record.unstored)
        try:
            yield from self._end_held(record, command, session)
        except OperationFailure as error:
            if result is None or session is not None or not operations.is_refusal(error):
                raise
            raise cannot_store(len(result.raw), error) from error

    def _end_held(
        self, record: JobRecord, command: operations.Update, session: Any = None
    ) -> Flow[None]:
        """Write an end. Somebody may have put a job meanwhile that comes after this one: whoever
        ends it has to know."""
        jobs = self._store.jobs
        if not record.needed:
            one = operations.if_unneeded(command)
            if (yield jobs.update_one(*one, session=session)).matched_count:
                return
            needed = operations.if_needed(command.filter)
            if not (yield jobs.find_one(needed, {"_id": 1}, session=session)):
                raise LeaseLost(record.id)
            record.needed = True
        if not (yield jobs.update_one(*command, session=session)).matched_count:
            raise LeaseLost(record.id)

    def end(self, record: JobRecord, end: End) -> Flow[None]:
        if end.kind != "cancelled":
            yield from self._end_if_asked(record)
        write = write_of(end, record, self._options.backoff)
        yield from self._end(record, write.command)
        if write.removes and not record.stays:
            yield self._store.remove_cancelled([record.id])

    def look(self, record: JobRecord) -> Flow[bool]:
        """Return whether somebody has asked to cancel the job; look, if the last one was a while
        ago."""
        if self.begin_look(record):
            yield from self.finish_look(record)
        return record.asked

    def begin_look(self, record: JobRecord) -> bool:
        """Return whether to look now; whoever asks does so, and nobody else for a while."""
        now = monotonic()
        if record.asked or now < record.look_at:
            return False
        record.look_at = now + LOOK_EVERY
        self._store.check_place()
        return True

    def finish_look(self, record: JobRecord) -> Flow[None]:
        """Look, as :meth:`begin_look` has said."""
        wanted = operations.held_asked_for(record.id, record.token)
        try:
            found = yield self._store.jobs.find_one(wanted, {"_id": 1})
            record.asked = found is not None
        except PyMongoError:
            pass  # as it was, as far as is known

    def parents(self, ids: Sequence[Any], whole: bool) -> Flow[Sequence[RawBSONDocument]]:
        """Read some parents of a job."""
        self._store.check_place()
        found: list[RawBSONDocument] = yield self._store.find(
            operations.results_of(ids, whole=whole), RAW_JOBS, committed=True
        )
        return found

    def _end_if_asked(self, record: JobRecord) -> Flow[None]:
        """Raise JobCancelled, and end the job, if it is known that somebody has asked for that."""
        if record.asked:
            try:
                yield from self.end(record, End("cancelled"))
            except LeaseLost:
                pass  # whoever has taken it has ended it
            raise JobCancelled(record.id)

    def begin_step(self, record: JobRecord) -> Flow[None]:
        """Raise if it is known that the job is to be cancelled."""
        yield from self._end_if_asked(record)
        self._store.check_place()

    def is_step_stored(self, record: JobRecord, name: str, session: Any) -> Flow[bool]:
        """Return whether a step is stored, as the session's transaction sees it."""
        command = operations.stored_step(record.id, record.token, name)
        stored: bool = yield self._store.is_step_stored(command, session)
        return stored

    def store_step(
        self, record: JobRecord, name: str, result: RawBSONDocument, session: Any
    ) -> Flow[None]:
        """Store the result of a step: until that is certain, or the lease ended long ago. That
        somebody has asked to cancel the job the next call says."""
        self._store.check_place()
        timeout = self._options.timeout
        step = (record.id, record.token, name, result)
        if session is not None:
            asked = yield self._store.store_step_in(operations.store_step(*step, None), session)
        else:
            command, until = operations.store_step(*step, timeout), monotonic() + timeout
            asked = yield self._store.store_step(command, lambda: until - monotonic(), _ignored)
        if asked is None:
            _over(record)
            raise LeaseLost(record.id)
        record.asked = asked

    def progress(self, record: JobRecord, count: int | None, note: str | None) -> Flow[None]:
        """Keep it, or write it with what was kept. Nobody else will, before the end of the
        attempt: a queue object has nothing that runs in the background."""
        yield from self._end_if_asked(record)
        self._store.check_place()
        said, now = progress_of(record, self._quiet), monotonic()
        said.say(count, note)
        renews = count is None and note is None
        if not renews and now < said.due_at:
            return
        fields, settled = said.begin(now), False
        wanted = operations.held(record.id, record.token)
        command = operations.renew(wanted, self._options.timeout, fields)
        try:
            renewed = yield self._store.jobs.find_one_and_update(
                *command, projection=_ASKED, return_document=ReturnDocument.AFTER
            )
            settled = True
        except OperationFailure as error:
            settled = operations.is_refusal(error)
            raise
        finally:
            said.end(fields, settled=settled)
        if renewed is None:
            said.over()
            raise LeaseLost(record.id)
        # The reply that is repeated to a driver that has sent it twice has all fields (6.0.5).
        record.asked = renewed.get(operations.ASKED_AT) is not None  # the next call says so

    def _end(self, record: JobRecord, command: operations.Update) -> Flow[None]:
        """Write the end of an attempt; shorten one that the server refuses, as far as it can be."""
        self._store.check_place()
        _over(record)
        command = operations.with_progress(command, record.unstored)
        if record.holds_on and not record.stays:
            command = operations.leaving_its_holder(command)
        try:
            yield from self._end_held(record, command)
        except OperationFailure as error:
            if self._store.is_duplicate_job(error):
                yield from self._superseded(record)
                return
            if not operations.is_refusal(error):
                raise
            yield from self._end_shortened(record, command, error)
        yield from self._make_room(record)

    def _superseded(self, record: JobRecord) -> Flow[None]:
        """End a job that cannot wait again, since another one has its key."""
        if not (yield self._store.supersede(operations.held(record.id, record.token))):
            raise LeaseLost(record.id)

    def _end_shortened(
        self, record: JobRecord, command: operations.Update, refusal: OperationFailure
    ) -> Flow[None]:
        for smaller in operations.smaller(command):
            try:
                yield from self._end_held(record, smaller)
            except OperationFailure as error:
                if not operations.is_refusal(error):
                    raise
            else:
                log_shortened(record, refusal)
                return
        raise refusal


_ASKED = {"_id": 0, operations.ASKED_AT: 1}


def _ignored(_error: PyMongoError) -> None:
    """Take note of nothing."""


def _over(record: JobRecord) -> None:
    if record.progress is not None:
        record.progress.over()


def cannot_store(size: int, refusal: PyMongoError) -> PayloadError:
    """Return what is raised for a result that the server refuses, with all that the job has."""
    return PayloadError(
        f"the server does not store the job with this result of {size:,} bytes: "
        f"{failure_name(refusal)}"
    )


class BlockingEnds:
    """The :class:`~.holder.Holder` of the jobs that a queue object has claimed."""

    context = NO_CONTEXT

    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def complete(self, record: JobRecord, result: object, session: ClientSession | None) -> None:
        run(self._ends.complete(record, result, session))

    def end(self, record: JobRecord, end: End) -> None:
        run(self._ends.end(record, end))

    def cancelled(self, record: JobRecord) -> bool:
        return run(self._ends.look(record))

    def progress(self, record: JobRecord, count: int | None, note: str | None) -> None:
        run(self._ends.progress(record, count, note))

    def parents(
        self, _record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Sequence[RawBSONDocument]:
        return run(self._ends.parents(ids, whole))

    def begin_step(self, record: JobRecord, _session: ClientSession | None) -> None:
        run(self._ends.begin_step(record))

    def is_step_stored(self, record: JobRecord, name: str, session: ClientSession) -> bool:
        return run(self._ends.is_step_stored(record, name, session))

    def store_step(
        self, record: JobRecord, name: str, result: RawBSONDocument, session: ClientSession | None
    ) -> None:
        run(self._ends.store_step(record, name, result, session))

    def count_step(self, result: StepResult) -> None:
        pass  # a queue object counts nothing of attempts
