"""The jobs collection for the async shell and the worker: the same as ``store.py``, awaited.

Writes are shielded: what has been sent is awaited to its end, cancelled or not, because a cancelled
write has usually been applied.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pymongo
from anyio import CancelScope
from anyio.lowlevel import current_token
from bson import ObjectId
from bson.errors import BSONError
from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure, PyMongoError

from . import operations
from .clock import ServerClock, monotonic
from .document import BARE_CODEC, CODEC
from .errors import ForeignLoop, ForkedProcess
from .options import MAX_BATCH
from .outage import Outage
from .server import UNAUTHORIZED, check_hello, jobs_collection
from .store import TIME_BATCH, Indexes
from .stuck import StuckJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from bson.codec_options import CodecOptions

logger = logging.getLogger("streamqueue.store")


class AsyncStore:
    """The collection and the server's clock.

    Args:
        patience: seconds a command may take. A connection can be wedged, alive and silent for ever:
            without a limit so is whoever waits. None leaves it to the client's settings.

    Attributes:
        jobs: the collection, with majority writes and local reads on the primary.
        clock: the server's time; known once :meth:`prepare` has returned.
        unclaimable: ready jobs that the server refuses to have claimed.
    """

    def __init__(self, collection: object, *, patience: float | None = None) -> None:
        self._patience = patience
        self.jobs: AsyncCollection[Any] = jobs_collection(collection, AsyncCollection)
        self._bare = self.jobs.with_options(codec_options=BARE_CODEC)
        self.clock = ServerClock()
        self._pid = os.getpid()
        self._loop: object = None
        self._indexed = False
        self._indexes = Indexes()
        self.unclaimable = StuckJobs("cannot be claimed, nor be buried")
        self._unpromotable = StuckJobs("cannot be promoted")
        self._unreapable = StuckJobs("cannot be taken from the consumer that lost it")
        self._untaking = Outage()

    def check_place(self) -> None:
        """Raise if this is not the process and event loop whose connections these are."""
        if os.getpid() != self._pid:
            raise ForkedProcess
        loop = current_token()
        if loop != self._loop:
            if self._loop is not None:
                raise ForeignLoop
            self._loop = loop

    def limit(self) -> AbstractContextManager[object]:
        """Return a context in which no command waits for ever."""
        return nullcontext() if self._patience is None else pymongo.timeout(self._patience)

    async def prepare(self) -> None:
        """Check what must hold before anything is sent; nearly free after the first time.

        Raises:
            ReplicaSetRequired: a standalone server.
            ForkedProcess: made before a fork.
            ForeignLoop: used in another event loop before.
        """
        self.check_place()
        if self.clock.stale:
            sent = monotonic()
            # The first time it may have to sit out an election.
            with self.limit() if self.clock.known else nullcontext():
                hello = await self.jobs.database.client.admin.command("hello", codec_options=CODEC)
            received = monotonic()
            check_hello(hello)
            self.clock.observe(hello["localTime"], sent, received)
        if not self._indexed:
            self._indexed = True  # before the wait: several parts prepare at the same time
            try:
                database, concern = self.jobs.database, self.jobs.write_concern.document
                # It may say that they are there and not yet safe, as during a step-down: that is
                # part of the reply, and no reason to stop; a majority will follow.
                command = operations.create_indexes(self.jobs.name, concern)
                self._indexes.log_made(await database.command(command))
            except BaseException as error:
                # A consumer's role need not include createIndex: `streamqueue init` is run by
                # somebody whose role does.
                if isinstance(error, OperationFailure) and error.code == UNAUTHORIZED:
                    self._indexes.log_refused(await self._indexes_there())
                    return
                self._indexed = False
                raise

    async def _indexes_there(self) -> list[str] | None:
        try:
            with self.limit():
                return [index["name"] async for index in await self.jobs.list_indexes()]
        except PyMongoError:  # no right to that either, most likely
            return None

    async def check_rights(self) -> None:
        """Try what a worker does to its jobs, on one that does not exist.

        A worker without these rights would start, and fail with the jobs: one that may not remove
        them would run each until its attempts are used up.

        Raises:
            OperationFailure: the user has no right to it. Other troubles show, and pass, later.
        """
        no_job = operations.held(ObjectId(), operations.new_token())
        for attempt in (
            partial(self.jobs.find_one, no_job, {"_id": 1}),
            partial(self.jobs.update_one, no_job, [{"$set": {"state": "ready"}}]),
            partial(self.jobs.delete_one, no_job),
        ):
            try:
                with CancelScope(shield=True), self.limit():
                    await attempt()
            except OperationFailure as error:
                if error.code == UNAUTHORIZED:
                    raise
            except PyMongoError:
                pass

    def recheck_indexes(self) -> None:
        """Make the next :meth:`prepare` create the indexes again: the collection may be new."""
        self._indexed = False

    async def find(
        self, command: operations.Find, codec: CodecOptions[Any] | None = None
    ) -> list[dict[str, Any]]:
        """Send a read and return all of its answer, decoded with `codec` if one is given.

        Asked for in one batch (by itself the first has 101 documents): that is one round trip, and
        leaves no cursor behind on the server when the reader is cancelled between two.
        """
        with self.limit():
            jobs = self._bare if command.bare else self.jobs
            async with (jobs if codec is None else jobs.with_options(codec_options=codec)).find(
                command.filter,
                command.projection,
                sort=command.sort,
                limit=command.limit,
                batch_size=command.limit or MAX_BATCH,
            ) as cursor:
                return await cursor.to_list()

    async def look_up(self, command: operations.Find) -> list[dict[str, Any]]:
        """The same for what only says more of an error: a producer's role need not include find."""
        try:
            return await self.find(command)
        except OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            return []

    async def candidates(
        self,
        queues: Sequence[str],
        limit: int,
        *,
        carry: bool = False,
        codec: CodecOptions[Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return what waits at the head of the queues, past the jobs that cannot be claimed.

        `carry` as in :func:`operations.candidates`, `codec` as in :meth:`find`.
        """
        stuck = self.unclaimable
        many = limit + len(stuck)
        try:
            found = await self.find(operations.candidates(queues, many, carry=carry), codec)
            for job in found if codec is not None else ():
                job["_id"]  # what is read raw is decoded now
        except BSONError:
            # One that another program stored cannot be decoded; its claim finds out which.
            found = await self.find(operations.candidates(queues, many, bare=True))
        return stuck.sift(found)[:limit]

    async def adopt(self, queues: Sequence[str]) -> None:
        """Give ready jobs inserted without a priority their place in the claim order."""
        try:
            with CancelScope(shield=True), self.limit():
                await self.jobs.update_many(*operations.adopt(queues))
        except OperationFailure as error:
            if error.code not in operations.DOCUMENT_ERRORS:
                raise
            stuck = self.unclaimable  # what cannot be given a place cannot be claimed either
            while True:
                limit = TIME_BATCH + len(stuck)
                found = await self.find(operations.unplaced(queues, limit))
                ids = [job["_id"] for job in stuck.sift(found)]
                command = partial(operations.adopt, queues)
                placed = await self._update_each(ids, command, stuck)
                if len(found) < limit or (stuck.full and not placed):
                    return

    async def take(
        self, ids: Sequence[ObjectId], consumer: str, token: bytes, timeout: float
    ) -> list[dict[str, Any]]:
        """Claim those of the jobs that are still ready; return them as they are now."""
        command = operations.claim(ids, consumer, token, timeout)
        with CancelScope(shield=True):
            try:
                with self.limit():
                    return await self._claim(command, ids, token)
            except OperationFailure as error:
                await self.untake(ids, token)
                if error.code not in operations.DOCUMENT_ERRORS:
                    raise
                if len(ids) == 1:
                    await self.quarantine(ids[0], f"error {error.code}")
                    return []
            except BSONError as error:  # claimed, but what another program stored cannot be decoded
                await self.untake(ids, token)
                if len(ids) == 1:
                    await self.quarantine(ids[0], type(error).__name__)
                    return []
            except BaseException:
                await self.untake(ids, token)
                raise
            # One document spoils it for all that are in the same command: halve it, then.
            documents = []
            for half in operations.halves(ids):
                documents += await self.take(half, consumer, token, timeout)
        return documents

    async def _claim(
        self, command: operations.Update, ids: Sequence[ObjectId], token: bytes
    ) -> list[dict[str, Any]]:
        if len(ids) == 1:
            after = ReturnDocument.AFTER
            document = await self.jobs.find_one_and_update(*command, return_document=after)
            return [] if document is None else [document]
        if not (await self.jobs.update_many(*command)).modified_count:
            return []
        return await self.find(operations.claimed(ids, token))

    async def quarantine(self, job_id: Any, reason: str) -> None:
        """Bury a ready job whose document cannot be claimed, so that it stops nobody else."""
        try:
            await self.jobs.update_one(*operations.bury(job_id, f"cannot be claimed: {reason}"))
        except OperationFailure:
            try:
                await self.jobs.update_one(*operations.quarantine(job_id))
            except OperationFailure as refusal:  # a validator that takes nothing
                self.unclaimable.refused(job_id, refusal)
                return
        logger.error(
            "Buried job %s, which cannot be claimed: %s",
            job_id,
            reason,
            extra={"event": "job_dead", "job_id": str(job_id), "reason": reason},
        )

    async def untake(self, ids: Sequence[ObjectId], token: bytes) -> None:
        """Give back what a claim may have taken; its token finds it. Never raises."""
        try:
            with CancelScope(shield=True), self.limit():
                await self.jobs.update_many(*operations.unclaim(ids, token))
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

    async def promote(self, queues: Sequence[str]) -> int:
        """Make due jobs ready; return how many."""
        total = 0
        stuck = self._unpromotable
        while True:
            limit = TIME_BATCH + len(stuck)
            found = await self.find(operations.due(queues, limit))
            before = total
            for jobs in stuck.divide(found):
                ids = [document["_id"] for document in jobs]
                total += await self._update_each(ids, operations.promote, stuck)
            stuck.settle()
            if len(found) < limit or (stuck.full and total == before):
                return total

    async def reap(
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
            found = await self.find(operations.expired(queues, limit))
            before = reaped.total()
            for jobs in stuck.divide(found):
                if holders is not None:
                    names = (document.get("locked_by") for document in jobs)
                    holders.update(name for name in names if isinstance(name, str))
                for group, ids in operations.group_expired(jobs, limit_of).items():
                    command = partial(operations.reap, max_attempts=limit_of(group[0]))
                    reaped[group] += await self._update_each(ids, command, stuck)
            stuck.settle()
            if len(found) < limit or (stuck.full and reaped.total() == before):
                return reaped

    async def _update_each(
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
            with CancelScope(shield=True), self.limit():
                result = await self.jobs.update_many(*command(ids))
            return result.modified_count
        except OperationFailure as error:
            if error.code not in operations.DOCUMENT_ERRORS:
                raise
            if len(ids) == 1:
                stuck.refused(ids[0], error)
                return 0
        halves = operations.halves(ids)
        return sum([await self._update_each(half, command, stuck) for half in halves])

    def try_stuck_again(self) -> None:
        """Leave no job out next time: somebody wants to see all of them tried."""
        for stuck in (self.unclaimable, self._unpromotable, self._unreapable):
            stuck.forget()

    async def seconds_to_next(self, queues: Sequence[str]) -> float:
        """Return the time until there is something to do: a job is due, a lease ends, or one that
        could not be changed is to be tried again; infinity for nothing."""
        return min(
            await self.seconds_to_due(queues),
            await self.seconds_to_expiry(queues),
            self.unclaimable.wait(),
        )

    async def seconds_to_due(self, queues: Sequence[str]) -> float:
        """Return the time until the next job is due, or one is to be tried again."""
        return await self._seconds_to(partial(operations.next_due, queues), self._unpromotable)

    async def seconds_to_expiry(self, queues: Sequence[str] | None) -> float:
        """Return the time until the next lease ends, or a job is to be tried again."""
        return await self._seconds_to(partial(operations.next_expiry, queues), self._unreapable)

    async def _seconds_to(self, look: Callable[[int], operations.Find], stuck: StuckJobs) -> float:
        wait = stuck.wait()
        if not stuck.full:  # else what comes next may be one of them, for ever
            for document in await self.find(look(1 + len(stuck))):
                if document["_id"] not in stuck:
                    if document["due_in"] is not None:
                        wait = min(wait, max(0, document["due_in"]) / 1000)
                    break
        return wait + 0.001  # the server compares whole milliseconds
