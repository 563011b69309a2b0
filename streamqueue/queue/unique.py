"""UniquePuts: puts whose key may be taken; the flows of both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
)

from ..errors import ConfigurationError, DuplicateJob
from ..options import MAX_BATCH
from ..protocol import operations
from ..protocol.schema import BY_BYTES, EARLIER_KEY_INDEX
from ..protocol.stored import text_in
from ..protocol.unique import TaskKey
from ..store.collection import UNAUTHORIZED
from .flow import in_transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson import ObjectId

    from ..metrics.bundles import PutResult
    from ..protocol.put import Put
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


class Placed(NamedTuple):
    """What became of a put.

    Attributes:
        id: of the job that has the key now; None where that is not known.
        result: ``inserted``, ``replaced``, or ``duplicate`` if that job was there and is as it was.
        refused: the put asked for something else, and cannot have it.
    """

    id: ObjectId | None
    result: PutResult
    refused: bool = False


class UniquePuts:
    """Puts jobs whose key may be taken: by one that waits, by one that has begun, or by what has
    ended and is to let go of it.

    Nothing here looks for the key first and writes then: what is decided is decided by the unique
    index, or within one upsert.
    """

    def __init__(self, store: Store | AsyncStore, name: str) -> None:
        self._store = store
        self._name = name

    # keys that are taken

    def holders(self, keys: Sequence[TaskKey]) -> Flow[dict[TaskKey, dict[str, Any]]]:
        """Return what holds these keys, as far as this user may know it."""
        found: list[dict[str, Any]] = []
        try:
            for start in range(0, len(keys), MAX_BATCH):
                some = keys[start : start + MAX_BATCH]
                found += yield self._store.look_up(operations.holders(self._name, *some))
        except PyMongoError:
            pass  # that they are taken is known, and matters more
        return _by_key(found)

    def free(self, keys: Sequence[TaskKey], session: Any = None) -> Flow[dict[TaskKey, Any]]:
        """Take these keys from what has ended and holds them for no longer; return the ids of those
        that are taken still, by key.

        The look is outside of a transaction that is open: of a user who may not look or write, as a
        producer, the server would end it.
        """
        if self._store.indexes.earlier_version:
            yield from self.hold_earlier(keys)
        holders = yield from self.holders(keys)
        outdated = [key for key, holder in holders.items() if holder.get("outdated")]
        if outdated:
            command = operations.free(self._name, outdated)
            try:
                yield self._store.jobs.update_many(*command, session=session, collation=BY_BYTES)
            except OperationFailure as error:
                if in_transaction(session) or error.code not in operations.NOT_ALLOWED:
                    raise
                outdated = []
        return {key: job["_id"] for key, job in holders.items() if key not in outdated}

    def hold_earlier(self, keys: Iterable[TaskKey]) -> Flow[int]:
        """Have those jobs hold these keys that a process of an earlier version has put, while there
        is one beside this; return how many do so from now on. (Such have no tasks.)"""
        updates = [
            UpdateOne(*operations.hold_this_key(self._name, key.key))
            for key in dict.fromkeys(keys)
            if key.task is None
        ]
        changed = 0
        for start in range(0, len(updates), MAX_BATCH):
            some = updates[start : start + MAX_BATCH]
            try:
                changed += (yield self._store.jobs.bulk_write(some, ordered=False)).modified_count
            except BulkWriteError as error:  # what has ended holds it, and for longer
                changed += (error.details or {}).get("nModified", 0)
            except OperationFailure as error:
                if error.code not in operations.NOT_ALLOWED:
                    raise
        return changed

    def _meet_earlier(self, met: Mapping[TaskKey, Exception], session: Any) -> Flow[None]:
        """Do the same with keys whose puts the index of an earlier version has refused; raise
        ConfigurationError if that is not why."""
        if met and (in_transaction(session) or not (yield from self.hold_earlier(met))):
            raise ConfigurationError(
                f"the index {EARLIER_KEY_INDEX} of an earlier version lets no job have the key of "
                "one that runs: run `streamqueue init`, which drops it"
            ) from next(iter(met.values()))

    def _hold_before(self, puts: Iterable[Put], session: Any) -> Flow[None]:
        """Do the same before they are part of a transaction, which a refusal would end."""
        if in_transaction(session) and self._store.indexes.earlier_version:
            yield from self.hold_earlier(put.task_key for put in puts)

    def known(self, ids: Sequence[ObjectId]) -> Flow[set[ObjectId]]:
        """Return which of these ids a job of the queue has, as far as this user may know it.

        Who repeats a put by its id does not know whether it is there. If it is, and another job has
        the key by now, that one is newer, and not to be given this payload.
        """
        found: list[dict[str, Any]] = []
        for start in range(0, len(ids), MAX_BATCH):
            command = operations.find_jobs(self._name, ids[start : start + MAX_BATCH])
            found += yield self._store.look_up(command)
        return {job["_id"] for job in found}

    # one put

    def put(self, put: Put, session: Any) -> Flow[Placed]:
        """Put a job by an upsert, or change the one that has its key as the put says.

        Raises:
            DuplicateJob: a job that has begun, or has ended and holds the key for longer, has it,
                and the put was to change it.
        """
        if put.named and (yield from self.known([put.id])):
            return Placed(put.id, "duplicate")
        update = operations.put_unique(self._name, put)
        yield from self._hold_before([put], session)
        while True:
            try:
                found = yield self._store.jobs.find_one_and_update(
                    *update,
                    projection=operations.PLACED,
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                    session=session,
                    collation=BY_BYTES,
                )
            except DuplicateKeyError as error:
                yield from self._meet(put, error, session)
                if operations.is_repeated_put(error):
                    return Placed(put.id, "duplicate")
            except PyMongoError as error:
                tell_of_wait(error, put.key)
                _tell_of_rights(error)
                raise
            else:
                placed = _read(put, found)
                if placed is not None:
                    break
        if placed.refused:
            raise DuplicateJob(str(put.key), placed.id)
        return placed

    def _meet(self, put: Put, error: DuplicateKeyError, session: Any) -> Flow[None]:
        """Return if the put can be sent again, or is there already; else raise."""
        if operations.is_earlier_key(error):
            yield from self._meet_earlier({put.task_key: error}, session)
        elif in_transaction(session):
            raise error
        elif operations.is_repeated_put(error):
            if not (yield from self.known([put.id])):
                raise error  # it is another queue's, or has ended just now
        elif not self._store.is_duplicate_job(error):
            raise error
        # Two upserts have met: now there is something to find.

    # many puts

    def put_many(self, puts: Mapping[int, Put], session: Any) -> Flow[dict[int, Placed]]:
        """Do the same with many, by position; what is refused is for the caller to raise."""
        known = yield from self.known([put.id for put in puts.values() if put.named])
        placed = {
            position: Placed(put.id, "duplicate")
            for position, put in puts.items()
            if put.id in known
        }
        left = [position for position in puts if position not in placed]
        yield from self._hold_before([puts[position] for position in left], session)
        while left:
            again: list[int] = []
            for start in range(0, len(left), MAX_BATCH):
                some = {position: puts[position] for position in left[start : start + MAX_BATCH]}
                done = yield from self._send(some, session)
                placed |= done
                again += [position for position in some if position not in done]
            left = again
        return placed

    def _send(self, puts: Mapping[int, Put], session: Any) -> Flow[dict[int, Placed]]:
        """Send upserts in one command; return what became of those of which that is known."""
        positions = list(puts)
        upserts = [
            UpdateOne(*operations.put_unique(self._name, put), upsert=True, collation=BY_BYTES)
            for put in puts.values()
        ]
        placed: dict[int, Placed] = {}
        look: list[int] = []
        try:
            reply = yield self._store.jobs.bulk_write(upserts, ordered=False, session=session)
            new = set(reply.upserted_ids or ())
            errors: Sequence[Exception | None] = [None] * len(positions)
        except BulkWriteError as error:
            errors = operations.errors_of_each(error, len(positions))
            new = {each["index"] for each in (error.details or {}).get("upserted", ())}
            met = {
                puts[position].task_key: problem
                for position, problem in zip(positions, errors, strict=True)
                if problem is not None and operations.is_earlier_key(problem)
            }
            yield from self._meet_earlier(met, session)
            clashes = self._store.clashes(errors)
            if clashes is None or in_transaction(session):
                raise
            repeated = {positions[at]: puts[positions[at]].id for at in clashes.ids}
            if len((yield from self.known(list(repeated.values())))) < len(repeated):
                raise  # one is another queue's, or has ended just now
            placed |= {at: Placed(job_id, "duplicate") for at, job_id in repeated.items()}
        except PyMongoError as error:
            tell_of_wait(error, next(iter(puts.values())).key)
            _tell_of_rights(error)
            raise
        for at, position in enumerate(positions):
            if at in new:
                placed[position] = Placed(puts[position].id, "inserted")
            elif errors[at] is None:
                look.append(position)
        there = yield from self._there([puts[position].task_key for position in look], session)
        for position in look:
            found = there.get(puts[position].task_key)
            # One that is not there has let go of its key since, and is none that this put is of.
            known = None if found is None else _read(puts[position], found, inserted="duplicate")
            if known is not None:
                placed[position] = known
        return placed

    def _there(self, keys: Sequence[TaskKey], session: Any) -> Flow[dict[TaskKey, dict[str, Any]]]:
        if not keys:
            return {}
        command = operations.holders(self._name, *dict.fromkeys(keys))
        if in_transaction(session):
            found = yield self._store.jobs.find(*command[:2], session=session).to_list()
        else:
            # By majority: what the upserts met is safe by now, what came after it may not be.
            found = yield self._store.find(command, committed=True)
        return _by_key(found)


def _by_key(holders: Iterable[dict[str, Any]]) -> dict[TaskKey, dict[str, Any]]:
    """Return them by the keys that they hold: one each, but for what another program stored as a
    list, each part of which the index takes for a key."""
    by_key: dict[TaskKey, dict[str, Any]] = {}
    for holder in holders:
        held = holder["held_key"]
        parts = held if isinstance(held, list) else [held]
        task = text_in(holder.get("task"))
        by_key.update((TaskKey(key, task), holder) for key in parts if isinstance(key, str))
    return by_key


def _read(put: Put, found: Mapping[str, Any], inserted: PutResult = "inserted") -> Placed | None:
    """Read what an upsert left; None if what had the key has let go of it, and the put is to be
    sent again."""
    if found["_id"] == put.id:
        return Placed(put.id, inserted)
    if "held_key" not in found:
        return None
    how = put.unique.on_conflict
    unbegun = found.get("state") in operations.UNBEGUN_STATES
    result: PutResult = "replaced" if how == "replace" and unbegun else "duplicate"
    return Placed(found["_id"], result, refused=how != "skip" and not unbegun)


def tell_of_wait(error: PyMongoError, key: str | None) -> None:
    """Raise the same error in words that say for what a put with a key may have waited, if its time
    was up."""
    text = (
        f"the time was up before the put with the key {key!r} was through: a put waits for as long "
        f"as another one of its key is part of a transaction that is open ({error})"
    )
    if isinstance(error, ExecutionTimeout):
        raise ExecutionTimeout(text, error.code, error.details) from error
    if isinstance(error, NetworkTimeout):
        raise NetworkTimeout(text, error.errors) from error


def _tell_of_rights(error: PyMongoError) -> None:
    """Raise the same error in words that say which rights an upsert needs, if that is it: those of
    the server quote the whole command, and with it the payload."""
    if isinstance(error, OperationFailure) and error.code == UNAUTHORIZED:
        raise OperationFailure(
            "not authorized to put with on_conflict other than 'raise', which looks for the job "
            "that has the key and may change it: that needs find, insert and update on the jobs",
            error.code,
        ) from None
