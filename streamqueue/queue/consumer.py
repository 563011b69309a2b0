"""Consumer: how jobs are taken from a queue, and waited for; the flows of both shells."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, TypeVar

from pymongo.errors import PyMongoError

from .. import plain
from ..clock import LONGEST_SLEEP, monotonic
from ..failures import failure_facts, failure_name
from ..outage import LoggedOutage
from ..protocol import operations
from ..protocol.document import JobRecord
from ..store.given_up import GivenUp
from ..store.lines import log_expired, log_reaped
from ..store.turns import BY_CHANCE
from ..stream.verdict import READ_ERRORS, classify, is_final, passes, within
from .lines import facts
from .steering.present_settings import PresentSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from ..options import QueueOptions
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from ..stream.async_doorbell import AsyncDoorbell
    from ..stream.doorbell import Doorbell
    from .flow import Flow

    Claimed = TypeVar("Claimed")

logger = plain.logger("streamqueue.queue")

PROMOTE_EVERY = 1.0
"""Seconds between two looks for due jobs and expired leases while there is other work to claim.
With none, every claim looks."""
CONTENDED_WINDOW = 16
"""Candidates read beyond those wanted, to step aside into when another consumer was faster."""
MOST_CONTENDED = 8
"""Times that window grows, claim lost after claim lost."""
MOST_LATE = 3
"""Claims in a row that may take longer than their lease, until a call returns without a job: one is
an election, and for several the lease is too short."""
ELSEWHERE_EVERY = 5.0
"""Seconds between two looks by those that wait for leases that ended in any queue: what a dead
consumer held is back within its timeout and these. Costs 0.2 reads of an index a second."""
ELSEWHERE_PAUSE = 0.1
RULED_EVERY = 5.0
"""Seconds between two looks by those that wait for jobs which are held back by the rules of their
queue: whoever had to say that one may start may have been killed."""
EXPIRED = 0.001
"""The largest ``seconds_to_expiry`` that means that a lease has ended."""


class Look:
    """What a look for jobs has seen that are held back by rules. Several wait in one queue object,
    and each goes by its own.

    Attributes:
        held_by_rules: whether jobs wait none of which may start.
        starts_at: when a start of them may come, by a rate.
    """

    __slots__ = ("held_by_rules", "starts_at")

    def __init__(self) -> None:
        self.held_by_rules = False
        self.starts_at = math.inf

    @property
    def starts_soon(self) -> bool:
        """Whether jobs wait for a start that a rate lets come before time is passed again."""
        return self.held_by_rules and self.starts_at < monotonic() + PROMOTE_EVERY


class Consumer:
    """Claims the jobs of one queue, and returns what dead consumers held.

    Args:
        doorbell: rings when a job may have become ready.
    """

    def __init__(
        self, store: Store | AsyncStore, doorbell: Doorbell | AsyncDoorbell, options: QueueOptions
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._options = options
        self._queues = [options.name]
        self._settings = PresentSettings(store, doorbell, options.name)
        self._passed_time = -math.inf
        self._unplaced = False  # jobs without a priority are left
        self._some_expired = False  # of those that the last claim took
        self._passing = LoggedOutage(logger, "promote", "Passing time")
        self._looked = False  # a look for jobs has succeeded before
        self._elsewhere_at = -math.inf
        self._some_parked = False  # by the last claim
        self._some_wait = False  # for others, by which they could not be claimed
        self._held_back_at = -math.inf  # when to look for jobs that wait for others
        store.parked = self._look_for_held_back_soon
        self._others_were_faster = False
        store.turns = lambda: BY_CHANCE if self._others_were_faster else None
        self._waiting = LoggedOutage(logger, "wait", "Looking for jobs")

    def claim(self, limit: int, look: Look | None = None) -> Flow[list[JobRecord]]:
        """Claim up to `limit` ready jobs, the most urgent first; return none if there is none, or
        the queue is paused. What it has seen of others is left in `look`."""
        look = look or Look()
        if self._options.keep is not None:
            yield self._store.require_index("keep", "a queue with keep=")
        yield self._store.untake_again()
        yield self._store.say_unsaid_room()
        if (yield from self._settings.paused()):
            while (yield from self._pass_time()):  # nobody else may be left to do so
                pass
            return []
        timeout = self._options.timeout
        passing = monotonic() - self._passed_time > PROMOTE_EVERY
        if passing:
            # Jobs that other programs inserted without a priority are given their place.
            self._unplaced = yield self._store.adopt(self._queues)
        contended = late = 0
        while late < MOST_LATE:
            found = yield from self._find(limit, limit + CONTENDED_WINDOW * contended, look)
            if not found:
                if look.starts_soon and not passing:
                    return []
                if (yield from self._pass_time()):
                    continue
                return []
            if contended and not self._ruled:
                # Somebody was faster: step aside instead of racing for the head again.
                found = random.sample(found, min(limit, len(found)))
            sent = monotonic()
            records = yield from self._take(found[:limit])
            if records and passing:
                passing = False
                yield from self._pass_time_meanwhile()
                if monotonic() - sent > timeout / 2:  # that has used up their leases
                    yield self._store.untake(given_up(records))
                    continue
            if records:
                return records
            if self._some_expired or self._some_parked:
                continue  # nobody was faster, and what comes next may be in time, and free
            late = late + 1 if self._store.late else 0
            if contended == MOST_CONTENDED and self._ruled:
                return []  # others are faster to take the slots there are, again and again
            if contended == MOST_CONTENDED and self._store.unclaimable.full:
                return []  # what can be seen are stuck ones, more than can be left out
            contended = min(contended + 1, MOST_CONTENDED)
        return []

    @property
    def _ruled(self) -> bool:
        """Whether the queue has rules."""
        return self._options.name in self._store.ruled

    def _find(self, limit: int, window: int, look: Look) -> Flow[Sequence[dict[str, Any]]]:
        """Return what may be claimed: in a window of what waits or, of a queue that has rules, what
        those let start."""
        look.held_by_rules, look.starts_at = False, math.inf
        self._others_were_faster = window > limit
        if not self._ruled:
            found: Sequence[dict[str, Any]] = yield self._store.candidates(self._queues, window)
            return found
        chosen = yield self._store.choose(self._options.name, limit)
        look.held_by_rules, look.starts_at = chosen.held_back, chosen.again_at
        return chosen.jobs  # type: ignore[no-any-return]

    def _take(self, found: Sequence[dict[str, Any]]) -> Flow[list[JobRecord]]:
        options, records = self._options, []
        self._some_parked = False
        documents = yield self._store.take(
            found, options.consumer_id, options.timeout, self._limit_of, self._keep_of
        )
        late: list[tuple[Any, bytes]] = []
        room = False  # for others, by those
        for document in documents:
            record = JobRecord.from_document(document, max_attempts=options.max_attempts)
            self._store.expiring = self._store.expiring or record.expires_at is not None
            self._store.keyed = self._store.keyed or record.lets_go
            if record.damage is not None:
                yield from self._discard_damaged(record, record.damage)
                room = room or bool(record.slots)
            elif record.too_late(self._store.clock.now):
                late.append((record.id, record.token))
                room = room or bool(record.slots)
                if record.lets_go:  # and another one may have been parked for it already
                    self._look_for_held_back_soon()
            else:
                records.append(record)
            if record.stays or record.holds_on:
                self._store.indexes.want("keep")
        self._some_expired = bool(late)
        if late:
            yield from self._expire_claimed(late)
        if room:
            yield self._store.say_room()
        return records

    def _expire_claimed(self, late: Sequence[tuple[Any, bytes]]) -> Flow[None]:
        """End claimed jobs that are not begun in time, and all that wait and are too late as well;
        if that fails, their leases will return them."""
        try:
            ended = yield self._store.expire_held(late, kept=self._options.keep is not None)
            log_expired({self._queues[0]: ended})
            yield from self._expire()
        except PyMongoError as error:
            self._passing.failed(error, "Jobs that have expired are left for later: %s")

    def _expire(self) -> Flow[int]:
        expired = yield self._store.expire(self._queues, self._keep_of)
        log_expired(expired)
        return int(expired.total())

    def _discard_damaged(self, record: JobRecord, damage: str) -> Flow[None]:
        """Bury a claimed job that cannot be run; if that fails, its lease will return it: what was
        claimed with it must not be lost over it."""
        logger.error(
            "Buried job %s of queue %s: %s",
            record.id,
            record.queue,
            damage,
            extra={"event": "job_dead", **facts(record), "reason": damage},
        )
        command = operations.discard(record.id, record.token, damage)
        try:
            yield self._store.jobs.update_one(*command)
            self._store.buried("payload", 1)
            yield self._store.tell_dependents([record.id])
            if record.lets_go:
                self._look_for_held_back_soon()
        except PyMongoError as error:
            logger.warning(
                "Job %s could not be buried: %s",
                record.id,
                failure_name(error),
                extra={"event": "claim_left", **facts(record), **failure_facts(error)},
            )

    def wait(
        self,
        claim: Callable[[int, Look], list[Claimed] | Awaitable[list[Claimed]]],
        limit: int,
        patience: float,
        closings: int,
    ) -> Flow[list[Claimed]]:
        """Claim jobs; while there is none, wait for some, through outages too.

        Args:
            claim: runs :meth:`claim` the way that the shell does.
            patience: how many seconds to wait for the first job.
            closings: the doorbell's count of them when the call began; one more ends the wait.
        """
        if not self._store.clock.known:
            yield self._store.prepare()
        bell, deadline = self._doorbell, monotonic() + patience
        mark: int | None = None
        # The first look needs no stream, nor does any while there is work. But where no server is
        # in reach, what opens a stream cannot take as long as what claims.
        listening = bell.broken or not self._store.in_reach
        look, due_at, seen = True, math.inf, Look()
        while bell.closings == closings:
            yield bell.rest(closings, deadline)
            left = deadline - monotonic()
            try:
                self._store.check_place()
                if listening:
                    # Listen first, then look: a job put in between rings.
                    heard = yield bell.listen(closings, left)
                    look, mark = look or heard != mark, heard
                    if bell.closings != closings:
                        break
                yield self._store.prepare()
                if look:
                    jobs: list[Claimed] = yield claim(limit, seen)
                    self._looked = True
                    if jobs or left <= 0:
                        return jobs
                if listening:
                    with within(left):
                        if look:
                            due_in = PROMOTE_EVERY
                            if not seen.starts_soon:
                                due_in = yield self._store.seconds_to_next(self._queues)
                            if self._settings.known_as_paused:  # what is stuck is not tried again
                                due_in = max(due_in, PROMOTE_EVERY)
                            due_at = monotonic() + min(due_in, LONGEST_SLEEP)
                            if self._some_wait or self._store.depended or self._store.keyed:
                                due_at = min(due_at, self._held_back_at)
                            if seen.held_by_rules:
                                due_at = min(due_at, seen.starts_at, monotonic() + RULED_EVERY)
                        expired = yield from self._expired_elsewhere()
                    if expired:
                        yield from self._reap(None)
            except READ_ERRORS as error:
                if monotonic() >= deadline or not self._outlasts(error):
                    raise  # an outage is not the same as no job
                look = True
                bell.pace.failed(classify(error))
                if not bell.broken:
                    self._waiting.failed(error, "Looking for jobs failed, trying again: %s")
                continue
            bell.pace.worked()
            self._waiting.succeeded()
            if mark is None:
                listening = True
                continue
            left = min(deadline, due_at, self._elsewhere_at) - monotonic()
            rang = yield bell.wait(mark, left, closings)
            look = rang or monotonic() >= min(deadline, due_at)
        return []

    def _outlasts(self, error: Exception) -> bool:
        """Return whether a wait goes on after an error: not after one of the first contact."""
        if is_final(error) or self._doorbell.refused:
            return False
        return self._store.clock.known if passes(error) else self._looked

    def _expired_elsewhere(self) -> Flow[bool]:
        """Return whether a lease has ended in any queue of the collection; look now and then only.

        The stream shows nothing of other queues, and this may be the last consumer of all. (A job
        that does not say how many attempts it has is judged by what this queue allows.)
        """
        if monotonic() < self._elsewhere_at:
            return False
        self._elsewhere_at = monotonic() + ELSEWHERE_EVERY  # for the others that wait
        left: float = yield self._store.seconds_to_expiry(None)
        self._elsewhere_at = monotonic() + min(ELSEWHERE_EVERY, max(left, ELSEWHERE_PAUSE))
        return left <= EXPIRED

    def _pass_time(self) -> Flow[bool]:
        """Promote due jobs, reap expired leases and end what is too late, some of them; return
        whether there were any."""
        self._passed_time = -math.inf if self._unplaced else monotonic()
        promoted = yield self._store.promote(self._queues)
        reaped = yield from self._reap(self._queues)
        expired = (yield from self._expire()) if self._store.expiring else 0
        let_through = yield from self._look_for_held_back()
        return bool(reaped or promoted or expired or let_through)

    def _look_for_held_back(self) -> Flow[int]:
        """Let jobs be claimed that wait for others which have ended; look whenever there is nothing
        else while some wait, and when none is known of no more than once in the time of a lease.
        (Who waits for jobs is woken for that where jobs let go of their keys.)"""
        if monotonic() < self._held_back_at and not self._some_wait:
            return 0
        self._held_back_at = monotonic() + self._options.timeout
        self._some_wait = False
        look = yield self._store.look_for_held_back(self._queues)
        self._store.depended = self._store.depended or look.dependents > 0
        self._some_wait = self._some_wait or look.waiting > look.dependents
        return int(look.let_through)

    def _look_for_held_back_soon(self) -> None:
        self._some_wait = self._some_parked = True

    def _pass_time_meanwhile(self) -> Flow[None]:
        """Pass time while there is always something to claim: after a claim, so that it stands in
        front of none, and an error of it is not the caller's."""
        try:
            yield from self._pass_time()
        except PyMongoError as error:
            self._passing.failed(error, "Due jobs and expired leases are left for later: %s")
        else:
            self._passing.succeeded()

    def change_settings(
        self, command: operations.Update, features: Iterable[str] = (), use: str = ""
    ) -> Flow[None]:
        """Change the settings of the queue, for all processes.

        Args:
            features: what they need the indexes of, which are there before they are stored.
            use: what was called, for the error if they are not.
        """
        yield self._store.prepare()
        for feature in features:
            yield self._store.require_index(feature, use, sure=True)
        try:
            yield self._store.change_settings(command)
        finally:
            self._settings.changed()

    def is_paused(self) -> Flow[bool]:
        """Return whether the queue is paused."""
        yield self._store.prepare()
        paused: bool = yield self._store.is_paused(self._options.name)
        return paused

    def repair(self) -> Flow[int]:
        """Return every stale lock of the queue; return how many there were."""
        yield self._store.prepare()
        self._store.try_stuck_again()
        total = 0
        while count := (yield from self._reap(self._queues)):
            total += count
        return total

    def _reap(self, queues: Sequence[str] | None) -> Flow[int]:
        holders: set[str] = set()
        reaped = yield self._store.reap(queues, self._limit_of, holders)
        log_reaped(reaped, holders)
        return int(reaped.total())

    def _limit_of(self, _queue: str) -> int:
        """Return how many attempts a job has that does not say, of whichever queue."""
        return self._options.max_attempts

    def _keep_of(self, _queue: str) -> float | None:
        """Return how long a job stays that does not say, when it has ended."""
        return self._options.keep


def given_up(records: Sequence[JobRecord]) -> GivenUp:
    """Return these claims as what is to be undone."""
    return GivenUp.of((record.id, record.token) for record in records)
