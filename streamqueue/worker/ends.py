"""The writes that end an attempt, or note its progress: fenced, retried while the lease lasts.

Written one by one, by whoever asks. (Completes, which are most of them, are in ``completer``.) What
the server refuses for good is no doubt and not retried: it is written smaller, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pymongo
from anyio import CancelScope
from pymongo.errors import PyMongoError

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic
from ..errors import JobCancelled, LeaseLost, PayloadError
from ..metrics.series import AttemptOutcome
from ..outage import LoggedOutage
from ..protocol import operations
from ..protocol.progress import QUIET, progress_of
from ..protocol.result import Result
from ..queue.info import RAW_JOBS
from ..queue.lines import log_cancelled, log_refused, log_shortened
from ..queue.outcome import write_of
from ..store.write_limit import LONGEST_WRITE
from .execution.attempt import LEAST_TIME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession

    from ..metrics.series import Metrics, Operation
    from ..options import WorkerOptions
    from ..queue.outcome import End
    from ..store.asynchronous import AsyncStore
    from .deaths import Deaths
    from .execution.attempt import Attempt
    from .nearest import Nearest

logger = plain.logger("streamqueue.completer")

AGAIN = Backoff(initial=0.05, maximum=2, jitter=0.5)
"""The pause between two tries; never so long that a lease ends meanwhile."""


class Ends:
    """Ends attempts that were not completed. Raises LeaseLost for one that is no longer held.

    When the lease has run out over a write that may have been applied, nobody can tell any more: a
    job that is gone may have been completed by its next holder. Then the error of that write is
    raised, as for every write whose outcome is unknown.

    Args:
        renewals: told when progress is to be written by a renewal.
        deaths: told of jobs that are dead.
    """

    def __init__(
        self,
        store: AsyncStore,
        options: WorkerOptions,
        metrics: Metrics,
        renewals: Nearest,
        deaths: Deaths,
    ) -> None:
        self._store = store
        self._timeout = options.timeout
        self._metrics = metrics
        self._renewals = renewals
        self._deaths = deaths
        self._hurry = anyio.Event()
        self._writing = LoggedOutage(logger, "complete", "Writing the ends of jobs")

    def hurry(self) -> None:
        """Do not try again what fails from now on: its lease will return the job."""
        self._hurry.set()

    async def end(self, attempt: Attempt, end: End, reason: str | None = None) -> None:
        """Give the job back, or end it, as `end` says.

        Args:
            reason: why the job is dead, for the log, if that is more than `end` says.
        """
        record = attempt.record
        write = write_of(end, record, attempt.registered.handler.backoff)
        await self._end(attempt, write.outcome, write.operation, write.command)
        if write.death is not None:
            _log_death(attempt, reason or write.death)
            told = attempt.registered.handler.on_dead
            if told is not None:
                self._deaths.tell(told, record, end.message, end.error)
        if write.removes:
            log_cancelled(record, "asked for" if attempt.asked else "by its handler")
            if not record.stays:
                await self._store.remove_cancelled([record.id])

    async def expire(self, attempt: Attempt) -> None:
        """End the job as cancelled, because it was too late to begin it."""
        record = attempt.record
        command = operations.expire_held([record.id], [record.token])
        await self._end(attempt, AttemptOutcome.EXPIRED, "complete", command)
        logger.info(
            "Job %s of queue %s has expired before it was begun",
            record.id,
            record.queue,
            extra={"event": "job_expired", **attempt.facts()},
        )
        if not record.stays:
            await self._store.remove_cancelled([record.id])

    async def progress(self, attempt: Attempt, *, renews: bool) -> None:
        """Write what was said of progress and renew the lease, or leave it to the next renewal,
        which comes as soon as it may be written; to renew, write now."""
        self._check(attempt)
        said, sent = progress_of(attempt.record, QUIET), monotonic()
        if not renews and sent < said.due_at:
            attempt.renew_for_progress()
            self._renewals.note(attempt.renew_at)
            return
        fields, settled = said.begin(sent), False
        wanted = operations.held(attempt.record.id, attempt.record.token)
        limit = pymongo.timeout(time_left(attempt))
        renewed = operations.renew(operations.unasked(wanted), self._timeout, fields)
        asked = None
        try:
            with self._metrics.timed("renew"), CancelScope(shield=True), limit:
                result = await self._store.jobs.update_one(*renewed)
                settled = bool(result.matched_count)
                if not settled:
                    asked = await self._store.jobs.find_one(wanted, {"_id": 1})
        except PyMongoError as error:
            settled = operations.is_refusal(error)
            raise
        finally:
            said.end(fields, settled=settled)
        if asked is not None:
            attempt.ask()
            raise JobCancelled(attempt.record.id)
        if not settled:
            raise LeaseLost(attempt.record.id)
        attempt.extend(sent, self._timeout)
        self._renewals.note(attempt.renew_at)
        attempt.registered.metrics.leases_renewed.inc()

    async def parents(self, ids: Sequence[Any], whole: bool) -> list[RawBSONDocument]:
        """Read some parents of a job."""
        command = operations.results_of(ids, whole=whole)
        found: list[Any] = await self._store.find(command, RAW_JOBS, committed=True)
        return found

    def _check(self, attempt: Attempt) -> None:
        if attempt.lost or attempt.ending or attempt.outcome is not None:
            raise LeaseLost(attempt.record.id)

    async def _end(
        self,
        attempt: Attempt,
        outcome: AttemptOutcome,
        operation: Operation,
        command: operations.Update,
    ) -> None:
        """Send a final write until its outcome is known or the lease has run out.

        What the server refuses is sent again without all it can do without, and then no more.
        """
        self._check(attempt)
        attempt.ending = True
        command = operations.with_progress(command, attempt.record.unstored)
        if attempt.record.holds_on and not attempt.record.stays:
            command = operations.leaving_its_holder(command)
        tries = 0
        unknown: PyMongoError | None = None
        refused: PyMongoError | None = None
        needed = attempt.record.needed  # whoever ends a job that others come after has to know
        superseded = False  # another job has its key, so this one cannot wait again
        smaller = iter(operations.smaller(command))
        try:
            while True:
                limit = pymongo.timeout(time_left(attempt))
                one = command if needed else operations.if_unneeded(command)
                try:
                    with self._metrics.timed(operation), CancelScope(shield=True), limit:
                        result = await self._store.jobs.update_one(*one)
                        if not (result.matched_count or needed):
                            needed = await self._is_needed(command.filter)
                            if needed:
                                attempt.record.needed = True
                                continue
                except PyMongoError as error:
                    if self._store.is_duplicate_job(error) and not superseded:
                        superseded = True
                        command = operations.superseded(command.filter)
                        smaller = iter(operations.smaller(command))
                        continue
                    if operations.is_refusal(error):
                        refused = refused or error
                        shorter = next(smaller, None)
                        if shorter is None:
                            log_refused(attempt.record, refused, "the end")
                            raise
                        command = shorter
                        continue
                    unknown = error
                    self._writing.failed(
                        error,
                        "The end of job %s could not be written yet: %s",
                        attempt.record.id,
                    )
                    tries += 1
                    pause = AGAIN.delay(tries)
                    overdue = monotonic() + pause > attempt.deadline
                    if self._hurry.is_set() or attempt.lost or overdue:
                        raise
                    with anyio.move_on_after(pause):
                        await self._hurry.wait()
                else:
                    self._writing.succeeded()
                    # Not matched after a try with an unknown outcome, while the lease keeps
                    # everybody else away: that one was applied.
                    applied = unknown is not None and attempt.deadline > monotonic()
                    if not result.matched_count and not applied:
                        await self._note_if_committed(attempt)
                        raise unknown or LeaseLost(attempt.record.id)
                    if refused is not None:
                        log_shortened(attempt.record, refused)
                    attempt.outcome = AttemptOutcome.CANCELLED if superseded else outcome
                    break
        finally:
            attempt.ending = False
        if superseded:
            log_cancelled(attempt.record, "a newer job has its key")
            if not attempt.record.stays:
                await self._store.remove_cancelled([attempt.record.id])
        await self._let_through(attempt)

    async def _is_needed(self, wanted: operations.Document) -> bool:
        """Return whether a job is held still, and there are others by now that come after it."""
        return bool(await self._store.jobs.find_one(operations.if_needed(wanted), {"_id": 1}))

    async def _let_through(self, *ended: Attempt) -> None:
        """Let the jobs be claimed that wait for these, which have ended, and let their parents go.
        (If one waits again it has its key, so that nobody waits for that.)"""
        records = [attempt.record for attempt in ended]
        keys = operations.keys_let_go(records)
        needed = [record.id for record in records if record.needed]
        dependents = [record for record in records if record.after]
        with CancelScope(shield=True):
            if keys:
                await self._store.let_through(keys)
            if needed:
                await self._store.tell_dependents(needed, needed=True)
            if dependents:
                await self._store.release_of(dependents)

    async def _remove(self, attempt: Attempt, session: AsyncClientSession | None) -> int:
        """Remove a job that nobody keeps or awaits, or leave what holds its key; return whether
        that is done."""
        record, jobs = attempt.record, self._store.jobs
        wanted = operations.held(record.id, record.token)
        if not record.holds_on:
            wanted = operations.removable(wanted)
        else:
            command = operations.done_but_for_its_key(record.id, record.token)
            if (await jobs.update_one(*command, session=session)).matched_count:
                return 1
            wanted = operations.held_for_long_enough(wanted)
        return (await jobs.delete_one(wanted, session=session)).deleted_count

    async def _end_in(self, attempt: Attempt, result: object, session: AsyncClientSession) -> bool:
        """Write the complete of a job in a session; return whether it was ours."""
        wanted = operations.held(attempt.record.id, attempt.record.token)
        jobs = self._store.jobs
        if not attempt.kept:
            if await self._remove(attempt, session):
                return True
            if not await jobs.find_one(wanted, {"_id": 1}, session=session):
                return False
            self._keep([attempt])
        attempt.value = Result(result)
        if (await jobs.update_one(*done(attempt), session=session)).matched_count:
            return True
        needed = operations.if_needed(wanted)
        if attempt.record.needed or not await jobs.find_one(needed, {"_id": 1}, session=session):
            return False
        attempt.record.needed = True
        return bool((await jobs.update_one(*done(attempt), session=session)).matched_count)

    def _keep(self, attempts: Iterable[Attempt]) -> None:
        """End these jobs by updates, since somebody waits for them."""
        for attempt in attempts:
            attempt.kept = True
        self._store.indexes.want("keep")  # as whoever waits has wanted it, unless it may not

    async def _note_if_committed(self, attempt: Attempt) -> None:
        """Note that a job is gone because the transaction was committed that completed it."""
        if attempt.completed and not attempt.in_transaction:
            left = await self._left_of([attempt])
            if not any(left):
                attempt.outcome = AttemptOutcome.COMPLETED
                await self._let_through(attempt)

    async def _left_of(self, attempts: Sequence[Attempt]) -> Left:
        """Return which of some attempts are not ended by the writes that were to complete them.

        A job that is gone, or done, although our lease still held was ended by an earlier try of
        ours whose reply was lost: that one counts as ended.
        """
        command = operations.not_done([attempt.record.id for attempt in attempts])
        with pymongo.timeout(time_left(*attempts)):
            found = await self._store.find(command)
        tokens = {document["_id"]: document.get("lease") for document in found}
        needed = {document["_id"] for document in found if document.get("needed") is not None}
        now = monotonic()
        left = Left(set(), [])
        for attempt in attempts:
            if attempt.record.id in tokens:
                attempt.unknown = None  # no try has ended it
                held = tokens[attempt.record.id] == attempt.record.token
                found_needed = held and attempt.record.id in needed and not attempt.record.needed
                attempt.record.needed = attempt.record.needed or found_needed
                if held and (found_needed or not attempt.kept):
                    left.awaited.append(attempt)
                else:
                    left.lost.add(attempt)
            elif attempt.deadline <= now:
                left.lost.add(attempt)
        return left


class Left(NamedTuple):
    """What writes that were to complete jobs have not ended.

    Attributes:
        lost: attempts that hold their job no more.
        awaited: attempts that hold it still: it was left, since somebody waits for it, or since it
            has turned out only now that others come after it.
    """

    lost: set[Attempt]
    awaited: list[Attempt]


NONE_LEFT = Left(set(), [])


def done(attempt: Attempt) -> operations.Update:
    """Return what completes a job that stays."""
    record = attempt.record
    command = operations.done(record.id, record.token, attempt.value.encoded())
    command = operations.with_progress(command, record.unstored)
    return command if record.needed else operations.if_unneeded(command)


def is_storable(attempt: Attempt) -> bool:
    """Return whether the result of a job that stays can be stored; note why not."""
    try:
        attempt.value.encoded()
    except PayloadError as problem:
        attempt.unstorable = problem
    return attempt.unstorable is None


def _log_death(attempt: Attempt, reason: str) -> None:
    record = attempt.record
    logger.error(
        "Job %s of queue %s is dead after attempt %d of %d: %s",
        record.id,
        record.queue,
        record.attempts,
        record.max_attempts,
        reason,
        extra={"event": "job_dead", **attempt.facts(), "reason": reason},
    )


def time_left(*attempts: Attempt) -> float:
    """Return the seconds that a write may take: until the first of their leases ends."""
    left = min(attempt.deadline for attempt in attempts) - monotonic()
    return min(LONGEST_WRITE, max(LEAST_TIME, left))
