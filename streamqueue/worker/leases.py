"""What this process holds: its attempts (``attempt``), and the renewal of their leases.

There is at most one live attempt per job in a process: when a job is claimed again that an old
attempt still believes in, the old one is lost. So one update may match many jobs and many tokens.

While a handler's transaction is open that completes the job, nobody else may write to the document:
a renewal would wait for the transaction inside the server, or be the change behind its snapshot for
which it is refused. So from the first ``complete(session=)`` on, renewals are held back for as long
as that session is in a transaction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import pymongo
from pymongo.errors import PyMongoError

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic
from ..failures import failure_facts, failure_name
from ..metrics.series import AttemptOutcome
from ..outage import LoggedOutage
from ..protocol import operations
from ..queue.lines import log_refused
from ..store.write_limit import LONGEST_WRITE, WriteLimit
from .execution.attempt import LEAST_TIME, RENEWALS_PER_TIMEOUT
from .nearest import Nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup
    from bson import ObjectId

    from ..metrics.series import Metrics
    from ..options import WorkerOptions
    from ..store.asynchronous import AsyncStore
    from .execution.attempt import Attempt

logger = plain.logger("streamqueue.lease")

RETRY_SHARE = 10
"""A failed renewal is tried again after a tenth of the timeout, at most a second; and so often is
one looked at that is held back."""


class Leases:
    """The attempts this process holds; keeps them and says which were lost.

    Attributes:
        renewals: to be told of an attempt that is to be renewed earlier than was planned.
    """

    def __init__(self, store: AsyncStore, options: WorkerOptions, metrics: Metrics) -> None:
        self._store = store
        self._timeout = timeout = options.timeout
        self._metrics = metrics
        self._held: dict[ObjectId, Attempt] = {}
        self._under_way: set[Attempt] = set()
        self._deadlines, self.renewals = Nearest(), Nearest()
        self._doubt = anyio.Event()
        self._limit = WriteLimit.of_lease(timeout)
        pause = min(1.0, timeout / RETRY_SHARE)
        self._again = Backoff(initial=pause, maximum=pause, jitter=0.25)
        self._renewing = LoggedOutage(logger, "renew", "Renewing leases")

    def __len__(self) -> int:
        return len(self._held)

    def held(self) -> list[Attempt]:
        """Return the attempts that hold their job."""
        return list(self._held.values())

    def under_way(self) -> list[Attempt]:
        """Return the attempts that have not ended, also those that lost their job."""
        return list(self._under_way)

    def add(self, attempt: Attempt) -> None:
        """Hold a claimed job; an older attempt at the same job is lost by that.

        So is the new one if the reply to its claim took longer than its lease lasts. One whose
        reply was late may be due before all that is held already.
        """
        self._under_way.add(attempt)
        old = self._held.get(attempt.record.id)
        if old is not None:
            self.lose(old)
        if attempt.deadline <= monotonic():
            self.lose(attempt)
            return
        self._held[attempt.record.id] = attempt
        self._deadlines.note(attempt.deadline)
        self.renewals.note(attempt.renew_at)

    def remove(self, attempt: Attempt) -> None:
        """Forget an attempt that has ended."""
        self._under_way.discard(attempt)
        self._hold_no_more(attempt)

    def _hold_no_more(self, attempt: Attempt) -> None:
        if self._held.get(attempt.record.id) is attempt:
            del self._held[attempt.record.id]

    async def leave(self, attempts: Sequence[Attempt]) -> int:
        """Stop renewing attempts that go on, and release their jobs; return how many those were."""
        ours = [attempt for attempt in attempts if not attempt.lost and attempt.outcome is None]
        self.forget(attempts)
        return await self._give_back(ours) if ours else 0

    def forget(self, attempts: Sequence[Attempt]) -> None:
        """Renew the leases of these attempts no more: the leases return the jobs."""
        for attempt in attempts:
            attempt.lost = True  # whatever it still asks for is refused
            self._hold_no_more(attempt)

    async def give_back(self, *, begun: bool = True) -> int:
        """Release the jobs of attempts that never came to their end; return how many.

        Args:
            begun: also those whose handlers were called. A run that ends by an error may do so
                because of one of them, and for ever: so they have used an attempt.
        """
        left = [
            attempt
            for attempt in self.held()
            if attempt.outcome is None and (begun or not attempt.begun)
        ]
        return await self._give_back(left) if left else 0

    async def _give_back(self, left: Sequence[Attempt]) -> int:
        ids = [attempt.record.id for attempt in left]
        command = operations.release_many(ids, {attempt.record.token for attempt in left})
        try:
            await self._store.update_within(command, self._limit.seconds)
        except PyMongoError as error:
            if operations.is_spoiled(error) and len(left) > 1:
                parts = operations.parts(left)
                return sum([await self._give_back(part) for part in parts])
            if self._store.is_duplicate_job(error) and await self._superseded(left[0]):
                return 0
            logger.warning(
                "Leases are left to run out: %s",
                failure_name(error),
                extra={"event": "claim_left", "count": len(left), **failure_facts(error)},
            )
            return 0
        # (One that was asked for has ended by that, of which no event tells.)
        if any(attempt.record.slots and attempt.asked for attempt in left):
            await self._store.say_room()
        return len(left)

    async def _superseded(self, attempt: Attempt) -> bool:
        """Cancel a job that cannot wait again, since another one has its key."""
        wanted = operations.held(attempt.record.id, attempt.record.token)
        try:
            return await self._store.supersede(wanted)
        except PyMongoError:
            return False

    def lose(self, attempt: Attempt) -> None:
        """Note that the job may be somebody else's: cancel its handler, void its final write."""
        if attempt.lost or attempt.outcome is not None:
            return
        attempt.lost = True
        self._hold_no_more(attempt)
        attempt.registered.metrics.leases_lost.inc()
        reason = "taken"  # or removed: it is another's now, or nobody's
        if attempt.unknown is not None:
            refused = operations.is_refusal(attempt.unknown)
            reason = f"its end {'is refused' if refused else 'could not be written for certain'}"
        elif attempt.deadline <= monotonic():
            reason = "not renewed in time"
            if attempt.in_transaction:
                reason = "its transaction is open for longer than the lease lasts"
        logger.warning(
            "Lost the lease of job %s (attempt %d): %s",
            attempt.record.id,
            attempt.record.attempts,
            reason,
            extra={
                "event": "lease_lost",
                **attempt.facts(),
                "reason": reason,
                "error": None if attempt.unknown is None else type(attempt.unknown).__name__,
            },
        )
        if attempt.scope is not None:
            attempt.scope.cancel()

    def look(self) -> None:
        """Look whether somebody has asked to cancel a job that is held: an event says so, or may
        have been missed."""
        if self._held:
            self._doubt.set()

    async def _keep_looking(self) -> None:
        while True:
            await self._doubt.wait()
            self._doubt = anyio.Event()
            held = list(self._held)
            if not held:
                continue
            try:
                found = await self._store.find(operations.asked_for(held))
            except PyMongoError:
                continue  # the next renewal of each finds it
            for job in found:
                attempt = self._held.get(job["_id"])
                if attempt is not None and attempt.record.token == job.get("lease"):
                    attempt.ask()

    async def run(self) -> None:
        """Renew the leases of attempts that run long, for ever; send nothing while none does."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_looking)
            # Apart, because a renewal that gets no answer must hold up neither the deadlines nor
            # the next renewal.
            tasks.start_soon(self._keep_deadlines)
            await self._keep_renewing(tasks)

    async def _keep_deadlines(self) -> None:
        while True:
            self._lose_overdue()
            await self._deadlines.wait(attempt.deadline for attempt in self._held.values())

    def _lose_overdue(self) -> None:
        now = monotonic()
        for attempt in self.held():
            if attempt.deadline > now:
                continue
            if attempt.outcome is None:
                self.lose(attempt)
            else:  # its handler has ended it, and goes on
                attempt.deadline = math.inf

    async def _keep_renewing(self, tasks: TaskGroup) -> None:
        while True:
            await self.renewals.wait(attempt.renew_at for attempt in self._held.values())
            self._begin_renewals(tasks)

    def _begin_renewals(self, tasks: TaskGroup) -> None:
        shared = []
        for attempt in self._take_due():
            alone = attempt.completed or attempt.asked or attempt.record.unstored
            if attempt.apart is None and not alone:
                shared.append(attempt)
            else:
                tasks.start_soon(self._renew, tasks, [attempt])
        if shared:
            tasks.start_soon(self._renew, tasks, shared)

    def _take_due(self) -> list[Attempt]:
        """Return the attempts whose renewal is due, or nearly so unless it is to write progress;
        none is due again until that is answered."""
        now = monotonic()
        soon = now + self._timeout / (4 * RENEWALS_PER_TIMEOUT)
        due = [
            attempt
            for attempt in self._held.values()
            if attempt.renew_at <= (now if attempt.record.unstored else soon)
        ]
        for attempt in due:
            attempt.renew_at = math.inf
        return [attempt for attempt in due if self._may_be_renewed(attempt)]

    def _may_be_renewed(self, attempt: Attempt) -> bool:
        """Whether it is still held, and not held back by its transaction: then it is looked at
        again."""
        if self._held.get(attempt.record.id) is not attempt or attempt.outcome is not None:
            return False
        if attempt.in_transaction:
            self._renew_again(attempt)
            return False
        return True

    def _renew_again(self, attempt: Attempt) -> None:
        attempt.renew_at = monotonic() + self._again.delay(1)
        self.renewals.note(attempt.renew_at)

    async def _renew(self, tasks: TaskGroup, attempts: Sequence[Attempt]) -> None:
        """Extend the leases of attempts in one update, and in parts when one of them spoils it.

        One that is alone takes with it what is new of its progress.
        """
        due = [attempt for attempt in attempts if self._may_be_renewed(attempt)]
        if not due:
            return
        sent = monotonic()
        said = due[0].record.progress if len(due) == 1 and due[0].record.unstored else None
        fields, settled = {} if said is None else said.begin(sent), False
        left = max(LEAST_TIME, min(attempt.deadline for attempt in due) - sent)
        left = min(left, LONGEST_WRITE)
        limit = self._limit.seconds if due[0].apart is None else due[0].apart
        wanted = operations.held_any(
            [attempt.record.id for attempt in due], {attempt.record.token for attempt in due}
        )
        if not due[0].asked:  # else it is alone, and its handler has not ended yet
            wanted = operations.unasked(wanted)
        limit = min(limit, left)
        completed = due[0].completed  # then it is the only one
        renewed = False
        try:
            with self._metrics.timed("renew"), anyio.CancelScope(shield=True):
                command = operations.renew(wanted, self._timeout, fields)
                matched, _ = await self._store.update_within(command, limit)
                renewed, settled = True, bool(matched)
                left_out = await self._jobs_of(due, left) if matched < len(due) else None
        except PyMongoError as error:
            settled = operations.is_refusal(error)
            if fields and settled:
                log_refused(due[0].record, error, "the progress")
                self._renew_again(due[0])
            elif renewed or not operations.is_spoiled(error):
                # Unknown, so the deadlines stay where they are.
                self._limit.met()
                self._renewing.failed(error, "Leases could not be renewed: %s")
                for attempt in due:
                    self._renew_again(attempt)
            elif len(due) > 1:
                for part in operations.parts(due):
                    tasks.start_soon(self._renew, tasks, part)
            else:
                self._not_renewed(due[0], error, sent, limit)
            return
        finally:
            if said is not None:
                said.end(fields, settled=settled)
        self._renewing.succeeded()
        self._limit.kept(monotonic() - sent)
        for attempt in due:
            job = None if left_out is None else left_out.get(attempt.record.id)
            if left_out is not None and (job is None or job.get("lease") != attempt.record.token):
                if self._not_ours(attempt, gone=job is None):
                    await self._store.let_through(operations.keys_let_go([attempt.record]))
                continue
            if completed:  # its transaction was aborted
                attempt.completed = False
            if job is not None and job.get(operations.ASKED_AT) is not None:
                self._learn_asked(attempt)
                continue
            attempt.apart = None
            attempt.extend(sent, self._timeout)
            self.renewals.note(attempt.renew_at)
            attempt.registered.metrics.leases_renewed.inc()

    def _learn_asked(self, attempt: Attempt) -> None:
        """Cancel the handler of a job that a renewal has left out; until it has ended, the job is
        renewed all the same."""
        attempt.ask()
        if attempt.asked:
            attempt.renew_at = monotonic()
            self.renewals.note(attempt.renew_at)
        else:  # its end is on its way
            self._renew_again(attempt)

    async def _jobs_of(
        self, attempts: Sequence[Attempt], left: float
    ) -> dict[ObjectId, dict[str, Any]]:
        """Return the attempts' jobs that are there, and not completed."""
        command = operations.not_done([attempt.record.id for attempt in attempts])
        with pymongo.timeout(left):
            return {found["_id"]: found for found in await self._store.find(command)}

    def _not_ours(self, attempt: Attempt, *, gone: bool) -> bool:
        """Note that a job is held no more; return whether its handler has completed it."""
        if self._held.get(attempt.record.id) is not attempt or attempt.ending:
            return False  # its final write is under way, and may have ended it: that will tell
        if gone and attempt.completed:
            # Its transaction was committed. The handler may go on; there is nothing to hold.
            attempt.outcome = AttemptOutcome.COMPLETED
            return True
        self.lose(attempt)
        return False

    def _not_renewed(
        self, attempt: Attempt, error: PyMongoError, sent: float, limit: float
    ) -> None:
        """Renew a job by itself that is blocked, and no more one that is refused."""
        if operations.is_refusal(error):
            log_refused(attempt.record, error, "the renewal")
            return
        if attempt.apart is None:
            logger.warning(
                "The lease of job %s cannot be renewed yet: it was changed in an open transaction",
                attempt.record.id,
                extra={"event": "lease_blocked", **attempt.facts()},
            )
        attempt.apart = 2 * limit
        # At once, when the limit was used up: inside the server it waits for the transaction's end.
        attempt.renew_at = sent + limit
        self.renewals.note(attempt.renew_at)
