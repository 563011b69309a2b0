"""The jobs collection, checked and ready: right server, right process, indexes, the server's time.

What both the queue object and anybody else who works on the collection needs; no policy.
"""

from __future__ import annotations

import logging
import math
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
from .document import CODEC, INDEXES
from .errors import ForkedProcess
from .options import MAX_BATCH
from .server import UNAUTHORIZED, check_hello, jobs_collection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bson import ObjectId

logger = logging.getLogger("streamqueue.store")

TIME_BATCH = 1000
"""Jobs promoted or reaped in one update: a million due together take turns with other work."""


class Store:
    """The collection and the server's clock.

    Attributes:
        jobs: the collection, with majority writes and local reads on the primary.
        clock: the server's time; known once :meth:`prepare` has returned.
    """

    def __init__(self, collection: object) -> None:
        self.jobs: Collection[Any] = jobs_collection(collection, Collection)
        self.clock = ServerClock()
        self._pid = os.getpid()
        self._indexed = False

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
                self.jobs.create_indexes(INDEXES)
            except OperationFailure as error:
                # A consumer's role need not include createIndex: `streamqueue init` is run by
                # somebody whose role does.
                if error.code != UNAUTHORIZED:
                    raise
            self._indexed = True

    def find(self, command: operations.Find) -> list[dict[str, Any]]:
        """Send a read and return all of its answer, in one batch: by itself the first has 101."""
        with self.jobs.find(
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
        # One document spoils it for all that are in the same command: one by one, then.
        return [document for job in ids for document in self.take([job], consumer, token, timeout)]

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
        logger.error("Buried job %s, which cannot be claimed: %s", job_id, reason)
        try:
            self.jobs.update_one(*operations.bury(job_id, f"cannot be claimed: {reason}"))
        except OperationFailure:
            try:
                self.jobs.update_one(*operations.quarantine(job_id))
            except OperationFailure as refusal:  # a validator that takes nothing
                logger.error("Job %s cannot be buried either: error %s", job_id, refusal.code)

    def untake(self, ids: Sequence[ObjectId], token: bytes) -> None:
        """Give back what a claim may have taken; its token finds it. Never raises."""
        try:
            self.jobs.update_many(*operations.unclaim(ids, token))
        except PyMongoError as error:
            # The class only: the text of a refusal may quote the document.
            name = type(error).__name__
            logger.warning("A claim with an unknown outcome is left to its lease: %s", name)

    def promote(self, queues: Sequence[str]) -> int:
        """Make due jobs ready; return how many."""
        total = 0
        while found := self.find(operations.due(queues, TIME_BATCH)):
            ids = [document["_id"] for document in found]
            promoted = self._update_each(ids, operations.promote)
            total += promoted
            if len(found) < TIME_BATCH or not promoted:
                break
        return total

    def reap(
        self, queues: Sequence[str] | None, limit_of: Callable[[str], int]
    ) -> Counter[tuple[str, str]]:
        """Return or bury jobs whose lease ran out; count them by queue and result.

        `queues` None means all of the collection; `limit_of` says, for a queue, how many attempts
        a job has that does not say.
        """
        reaped: Counter[tuple[str, str]] = Counter()
        while found := self.find(operations.expired(queues, TIME_BATCH)):
            before = reaped.total()
            for group, ids in operations.group_expired(found, limit_of).items():
                command = partial(operations.reap, max_attempts=limit_of(group[0]))
                reaped[group] += self._update_each(ids, command)
            if len(found) < TIME_BATCH or reaped.total() == before:
                break
        return reaped

    def _update_each(
        self,
        ids: Sequence[ObjectId],
        command: Callable[[Sequence[ObjectId]], operations.Update],
    ) -> int:
        """Send one update for all, or, when a document spoils it, one for each; count changes."""
        try:
            return self.jobs.update_many(*command(ids)).modified_count
        except OperationFailure as error:
            if error.code not in operations.DOCUMENT_ERRORS:
                raise
            if len(ids) == 1:
                logger.error("Job %s cannot be changed: error %s", ids[0], error.code)
                return 0
        return sum(self._update_each([job], command) for job in ids)

    def seconds_to_next(self, *looks: operations.Find) -> float:
        """Return the time until the first of what the looks find; infinity for nothing."""
        waits = [math.inf]
        for look in looks:
            for document in self.find(look):
                if document["due_in"] is not None:
                    waits.append(max(0, document["due_in"]) / 1000)
        return min(waits) + 0.001  # the server compares whole milliseconds
