"""The jobs collection, checked and ready: right server, right process, indexes, the server's time.

What both the queue object and anybody else who works on the collection needs; no policy.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from bson.errors import BSONError
from pymongo import ReturnDocument
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.synchronous.collection import Collection

from . import operations
from .clock import ServerClock, monotonic
from .document import BARE_CODEC, CODEC, INDEXES
from .errors import ForkedProcess
from .options import MAX_BATCH
from .outage import Outage
from .server import UNAUTHORIZED, check_hello, jobs_collection
from .stuck import StuckJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bson import ObjectId

logger = logging.getLogger("streamqueue.store")
reaper_logger = logging.getLogger("streamqueue.reaper")

INDEX_NAMES = {index.document["name"] for index in INDEXES}
TIME_BATCH = 1000
"""Jobs promoted or reaped in one update: a million due together take turns with other work."""


class Indexes:
    """What became of the wish for indexes, for the log: once for each answer, however often it is
    asked."""

    def __init__(self) -> None:
        self._refused = False

    def log_made(self, reply: Mapping[str, Any]) -> None:
        """Log how many there are now that were not there before; mongos does not say."""
        count = reply.get("numIndexesAfter", 0) - reply.get("numIndexesBefore", 0)
        if count > 0:
            logger.info(
                "Created %d indexes", count, extra={"event": "indexes_created", "count": count}
            )

    def log_refused(self, there: Iterable[str] | None) -> None:
        """Log that the user's role does not include it: at INFO if some are known to be missing.

        `there` has the names of those that are there, None when the role does not include to look.
        """
        if self._refused:
            return
        self._refused = True
        missing = 0 if there is None else len(INDEX_NAMES - set(there))
        logger.log(
            logging.INFO if missing else logging.DEBUG,
            "No right to create indexes%s: `streamqueue init`, run by somebody who has it, does",
            f", and {missing} are missing" if missing else "",
            extra={"event": "indexes_refused", "code": UNAUTHORIZED, "count": missing},
        )


def log_reaped(reaped: Mapping[tuple[str, str], int], holders: Iterable[str]) -> None:
    """Log what was taken from dead consumers, by queue and result."""
    names = sorted(holders)
    for (queue, result), count in reaped.items():
        if count:
            reaper_logger.log(
                logging.ERROR if result == "dead" else logging.WARNING,
                "Reaped %d jobs of queue %s: %s (held by %s)",
                count,
                queue,
                result,
                ", ".join(names) or "nobody by name",
                extra={
                    "event": "jobs_reaped",
                    "queue": queue,
                    "result": result,
                    "count": count,
                    "consumers": names,
                },
            )


class Store:
    """The collection and the server's clock.

    Attributes:
        jobs: the collection, with majority writes and local reads on the primary.
        clock: the server's time; known once :meth:`prepare` has returned.
        unclaimable: ready jobs that the server refuses to have claimed.
    """

    def __init__(self, collection: object) -> None:
        self.jobs: Collection[Any] = jobs_collection(collection, Collection)
        self._bare = self.jobs.with_options(codec_options=BARE_CODEC)
        self.clock = ServerClock()
        self._pid = os.getpid()
        self._indexed = False
        self._indexes = Indexes()
        self.unclaimable = StuckJobs("cannot be claimed, nor be buried")
        self._unpromotable = StuckJobs("cannot be promoted")
        self._unreapable = StuckJobs("cannot be taken from the consumer that lost it")
        self._untaking = Outage()

    def check_place(self) -> None:
        """Raise if this is not the process whose connections these are."""
        if os.getpid() != self._pid:
            raise ForkedProcess

    def prepare(self) -> None:
        """Check what must hold before anything is sent; nearly free after the first time.

        Raises:
            ReplicaSetRequired: a standalone server.
            ForkedProcess: made before a fork.
        """
        self.check_place()
        if self.clock.stale:
            sent = monotonic()
            hello = self.jobs.database.client.admin.command("hello", codec_options=CODEC)
            received = monotonic()
            check_hello(hello)
            self.clock.observe(hello["localTime"], sent, received)
        if not self._indexed:
            try:
                command = operations.create_indexes(
                    self.jobs.name, self.jobs.write_concern.document
                )
                self._indexes.log_made(self.jobs.database.command(command))
            except OperationFailure as error:
                # A consumer's role need not include createIndex: `streamqueue init` is run by
                # somebody whose role does.
                if error.code != UNAUTHORIZED:
                    raise
                self._indexes.log_refused(self._indexes_there())
            self._indexed = True

    def _indexes_there(self) -> list[str] | None:
        try:
            return [index["name"] for index in self.jobs.list_indexes()]
        except PyMongoError:  # no right to that either, most likely
            return None

    def find(self, command: operations.Find) -> list[dict[str, Any]]:
        """Send a read and return all of its answer, in one batch: by itself the first has 101."""
        with (self._bare if command.bare else self.jobs).find(
            command.filter,
            command.projection,
            sort=command.sort,
            limit=command.limit,
            batch_size=command.limit or MAX_BATCH,
        ) as cursor:
            return list(cursor)

    def look_up(self, command: operations.Find) -> list[dict[str, Any]]:
        """The same for what only says more of an error: a producer's role need not include find."""
        try:
            return self.find(command)
        except OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            return []

    def candidates(
        self, queues: Sequence[str], limit: int, *, carry: bool = False
    ) -> list[dict[str, Any]]:
        """Return what waits at the head of the queues, past the jobs that cannot be claimed.

        `carry` as in :func:`operations.candidates`.
        """
        stuck = self.unclaimable
        many = limit + len(stuck)
        try:
            found = self.find(operations.candidates(queues, many, carry=carry))
        except BSONError:
            # One that another program stored cannot be decoded; its claim finds out which.
            found = self.find(operations.candidates(queues, many, bare=True))
        return stuck.sift(found)[:limit]

    def adopt(self, queues: Sequence[str]) -> None:
        """Give ready jobs inserted without a priority their place in the claim order."""
        try:
            self.jobs.update_many(*operations.adopt(queues))
        except OperationFailure as error:
            if error.code not in operations.DOCUMENT_ERRORS:
                raise
            stuck = self.unclaimable  # what cannot be given a place cannot be claimed either
            while True:
                limit = TIME_BATCH + len(stuck)
                found = self.find(operations.unplaced(queues, limit))
                ids = [job["_id"] for job in stuck.sift(found)]
                command = partial(operations.adopt, queues)
                placed = self._update_each(ids, command, stuck)
                if len(found) < limit or (stuck.full and not placed):
                    return

    def take(
        self, ids: Sequence[ObjectId], consumer: str, token: bytes, timeout: float
    ) -> list[dict[str, Any]]:
        """Claim those of the jobs that are still ready; return them as they are now."""
        command = operations.claim(ids, consumer, token, timeout)
        try:
            return self._claim(command, ids, token)
        except OperationFailure as error:
            self.untake(ids, token)
            if error.code not in operations.DOCUMENT_ERRORS:
                raise
            if len(ids) == 1:
                self.quarantine(ids[0], f"error {error.code}")
                return []
        except BSONError as error:  # claimed, but what another program stored cannot be decoded
            self.untake(ids, token)
            if len(ids) == 1:
                self.quarantine(ids[0], type(error).__name__)
                return []
        except BaseException:
            self.untake(ids, token)
            raise
        # One document spoils it for all that are in the same command: halve it, then.
        return [
            document
            for half in operations.halves(ids)
            for document in self.take(half, consumer, token, timeout)
        ]

    def _claim(
        self, command: operations.Update, ids: Sequence[ObjectId], token: bytes
    ) -> list[dict[str, Any]]:
        if len(ids) == 1:
            after = ReturnDocument.AFTER
            document = self.jobs.find_one_and_update(*command, return_document=after)
            return [] if document is None else [document]
        if not self.jobs.update_many(*command).modified_count:
            return []
        return self.find(operations.claimed(ids, token))

    def quarantine(self, job_id: Any, reason: str) -> None:
        """Bury a ready job whose document cannot be claimed, so that it stops nobody else."""
        try:
            self.jobs.update_one(*operations.bury(job_id, f"cannot be claimed: {reason}"))
        except OperationFailure:
            try:
                self.jobs.update_one(*operations.quarantine(job_id))
            except OperationFailure as refusal:  # a validator that takes nothing
                self.unclaimable.refused(job_id, refusal)
                return
        logger.error(
            "Buried job %s, which cannot be claimed: %s",
            job_id,
            reason,
            extra={"event": "job_dead", "job_id": str(job_id), "reason": reason},
        )

    def untake(self, ids: Sequence[ObjectId], token: bytes) -> None:
        """Give back what a claim may have taken; its token finds it. Never raises."""
        try:
            self.jobs.update_many(*operations.unclaim(ids, token))
        except PyMongoError as error:
            # The class only: the text of a refusal may quote the document.
            name = type(error).__name__
            if self._untaking.failed():
                logger.warning(
                    "A claim with an unknown outcome is left to its lease: %s",
                    name,
                    extra={"event": "claim_left", "count": len(ids), "error": name},
                )
        else:
            self._untaking.succeeded()

    def promote(self, queues: Sequence[str]) -> int:
        """Make due jobs ready; return how many."""
        total = 0
        stuck = self._unpromotable
        while True:
            limit = TIME_BATCH + len(stuck)
            found = self.find(operations.due(queues, limit))
            before = total
            for jobs in stuck.divide(found):
                ids = [document["_id"] for document in jobs]
                total += self._update_each(ids, operations.promote, stuck)
            stuck.settle()
            if len(found) < limit or (stuck.full and total == before):
                return total

    def reap(
        self,
        queues: Sequence[str] | None,
        limit_of: Callable[[str], int],
        holders: set[str] | None = None,
    ) -> Counter[tuple[str, str]]:
        """Return or bury jobs whose lease ran out; count them by queue and result.

        `queues` None means all of the collection; `limit_of` says, for a queue, how many attempts
        a job has that does not say; `holders` is given the names of the consumers that held them.
        """
        reaped: Counter[tuple[str, str]] = Counter()
        stuck = self._unreapable
        while True:
            limit = TIME_BATCH + len(stuck)
            found = self.find(operations.expired(queues, limit))
            before = reaped.total()
            for jobs in stuck.divide(found):
                if holders is not None:
                    names = (document.get("locked_by") for document in jobs)
                    holders.update(name for name in names if isinstance(name, str))
                for group, ids in operations.group_expired(jobs, limit_of).items():
                    command = partial(operations.reap, max_attempts=limit_of(group[0]))
                    reaped[group] += self._update_each(ids, command, stuck)
            stuck.settle()
            if len(found) < limit or (stuck.full and reaped.total() == before):
                return reaped

    def _update_each(
        self,
        ids: Sequence[ObjectId],
        command: Callable[[Sequence[ObjectId]], operations.Update],
        stuck: StuckJobs,
    ) -> int:
        """Send one update for all, or, when a document spoils it, for ever smaller parts of them;
        count changes."""
        if not ids:
            return 0
        try:
            return self.jobs.update_many(*command(ids)).modified_count
        except OperationFailure as error:
            if error.code not in operations.DOCUMENT_ERRORS:
                raise
            if len(ids) == 1:
                stuck.refused(ids[0], error)
                return 0
        halves = operations.halves(ids)
        return sum([self._update_each(half, command, stuck) for half in halves])

    def try_stuck_again(self) -> None:
        """Leave no job out next time: somebody wants to see all of them tried."""
        for stuck in (self.unclaimable, self._unpromotable, self._unreapable):
            stuck.forget()

    def seconds_to_next(self, queues: Sequence[str]) -> float:
        """Return the time until there is something to do: a job is due, a lease ends, or one that
        could not be changed is to be tried again; infinity for nothing."""
        return min(
            self.seconds_to_due(queues),
            self.seconds_to_expiry(queues),
            self.unclaimable.wait(),
        )

    def seconds_to_due(self, queues: Sequence[str]) -> float:
        """Return the time until the next job is due, or one is to be tried again."""
        return self._seconds_to(partial(operations.next_due, queues), self._unpromotable)

    def seconds_to_expiry(self, queues: Sequence[str] | None) -> float:
        """Return the time until the next lease ends, or a job is to be tried again."""
        return self._seconds_to(partial(operations.next_expiry, queues), self._unreapable)

    def _seconds_to(self, look: Callable[[int], operations.Find], stuck: StuckJobs) -> float:
        wait = stuck.wait()
        if not stuck.full:  # else what comes next may be one of them, for ever
            for document in self.find(look(1 + len(stuck))):
                if document["_id"] not in stuck:
                    if document["due_in"] is not None:
                        wait = min(wait, max(0, document["due_in"]) / 1000)
                    break
        return wait + 0.001  # the server compares whole milliseconds
