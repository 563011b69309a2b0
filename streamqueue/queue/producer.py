"""Producer: how jobs come into a queue; the flows of both shells."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from ..errors import DuplicateJob, JobNotFound
from ..options import MAX_BATCH
from ..protocol import operations
from ..protocol.puts import PutIds
from .dependencies import Dependents
from .flow import in_transaction
from .unique import Placed, UniquePuts, tell_of_wait

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson import ObjectId
    from bson.raw_bson import RawBSONDocument
    from prometheus_client import CollectorRegistry

    from ..metrics.series import Metrics, ProducerMetrics
    from ..protocol.put import Put
    from ..protocol.puts import Puts
    from ..store.asynchronous import AsyncStore
    from ..store.blocking import Store
    from .flow import Flow


class Producer:
    """Puts the jobs of one queue, and says of each error whether the job is there.

    Args:
        registry: where its metrics are registered when the first of them is counted.
    """

    def __init__(
        self, store: Store | AsyncStore, name: str, registry: CollectorRegistry | None
    ) -> None:
        self._store = store
        self._name = name
        self._registry = registry
        self._unique = UniquePuts(store, name)
        self._dependents = Dependents(store)

    @cached_property
    def metrics(self) -> Metrics:
        """The metrics of this process."""
        from ..metrics.series import Metrics  # costs half of what importing a shell does

        return Metrics.of(self._registry)

    @cached_property
    def counting(self) -> ProducerMetrics:
        """What counts puts; as a context, the one within."""
        return self.metrics.producer(self._name)

    def prepare(self, put: Put, session: Any) -> Flow[RawBSONDocument]:
        """Check the server, and for a key its index; return the document to insert."""
        build = not in_transaction(session)
        yield self._store.prepare(build=build)
        if put.key is not None:
            yield self._store.require_key_index(self._name, build=build)
        yield from self._require(put.features, "put", build)
        if put.parents.ids:
            yield from self._prepare_parents(put, session)
        return put.document(self._name, self._store.clock.now())

    def _prepare_parents(self, put: Put, session: Any) -> Flow[None]:
        try:
            yield from self._dependents.prepare(put, session)
        except JobNotFound:
            # It may have ended, and let them go, if this one is put again by its id.
            if not (put.named and (yield from self._unique.known([put.id]))):
                raise

    def put(self, put: Put, document: RawBSONDocument, session: Any) -> Flow[ObjectId]:
        """Put a job, or raise why it is not there for certain; return the id of the one that is."""
        if put.parents.ids:
            return (yield from self._put_dependent(put, document, session))
        return (yield from self._put(put, document, session))

    def _put_dependent(self, put: Put, document: RawBSONDocument, session: Any) -> Flow[ObjectId]:
        try:
            job_id = yield from self._put(put, document, session)
        except DuplicateJob:
            yield from self._dependents.release(put.parents.ids, session)
            raise
        yield from self.look_at(put, [put.id], session)
        return job_id

    def look_at(self, put: Put, ids: Sequence[ObjectId], session: Any) -> Flow[None]:
        """Look how the parents of a put stand; by the ids of the jobs that it was."""
        yield from self._dependents.look(put, ids, session)

    def _put(self, put: Put, document: RawBSONDocument, session: Any) -> Flow[ObjectId]:
        if put.key is None:
            with self.counting:
                yield from self._insert_one(put, document, session)
            return put.id
        with self.counting.each(1) as counted:
            placed = yield from self.place(put, document, session)
            counted[placed.result] += 1
        return placed.id or put.id

    def place(self, put: Put, document: RawBSONDocument, session: Any) -> Flow[Placed]:
        """Do the same, and return what became of the put, for who counts it."""
        if put.upserts:
            with self.metrics.timed("put"):
                return (yield from self._unique.put(put, session))
        if put.key is not None and in_transaction(session):
            # A duplicate would end the transaction: what may let go of the key does so before.
            yield from self._unique.free([put.task_key], session)
        try:
            yield from self._insert_one(put, document, session)
        except PyMongoError as error:
            if put.key is not None:
                tell_of_wait(error, put.key)
            raise
        return Placed(put.id, "inserted")

    def _insert_one(self, put: Put, document: RawBSONDocument, session: Any) -> Flow[None]:
        (error,) = yield from self.insert([document], session, may_exist=put.may_exist)
        ended = in_transaction(session)
        if not ended and self._store.is_duplicate_job(error):
            key = put.task_key
            held = yield from self._unique.free([key])
            if key in held:
                raise DuplicateJob(key.key, held[key]) from error
            (error,) = yield from self.insert([document], may_exist=True)
        if error is not None:
            yield from self._accept(put, error, ended=ended)

    def insert(
        self,
        documents: Sequence[Mapping[str, Any]],
        session: Any = None,
        *,
        may_exist: bool = False,
    ) -> Flow[list[Exception | None]]:
        """Insert jobs; return what went wrong for each.

        A reply can say that a job is there already and that the majority is not known to have it.
        Of insert_one pymongo raises the first and drops the second, so it is for jobs that nothing
        can be in the way of; should something be, they are sent again the other way.
        """
        jobs = self._store.jobs
        with self.metrics.timed("put"):
            in_one = in_transaction(session)
            if len(documents) == 1 and (in_one or not may_exist):
                try:
                    yield jobs.insert_one(documents[0], session=session)
                except DuplicateKeyError as error:
                    if in_one:  # the server has ended it, and nothing can be proven in it
                        return [error]
                else:
                    return [None]
            try:
                yield jobs.insert_many(documents, ordered=False, session=session)
            except BulkWriteError as error:
                return operations.errors_of_each(error, len(documents))
            return [None] * len(documents)

    def _accept(self, put: Put, error: Exception, *, ended: bool) -> Flow[None]:
        """Return if the error says that the job is there already, and safe; else raise."""
        if self._store.is_duplicate_job(error):
            key = put.task_key
            holders = yield from self._unique.holders([key])
            holder = holders.get(key, {}).get("_id")
            raise DuplicateJob(key.key, holder, ended_transaction=ended) from error
        if ended or not operations.is_repeated_put(error):
            raise error
        if not (yield from self._unique.known([put.id])):
            raise error  # it is another queue's, or has ended just now

    def prepare_many(self, puts: Puts, session: Any) -> Flow[list[RawBSONDocument]]:
        """Check the server, and for keys their index; return the documents to insert."""
        build = not in_transaction(session)
        yield self._store.prepare(build=build)
        if puts.keyed:
            yield self._store.require_key_index(self._name, build=build)
        yield from self._require(puts.features, "put_many", build)
        if puts.depend:
            yield from self._dependents.prepare_many(puts, session)
        return puts.documents(self._name, self._store.clock.now())

    def _require(self, features: Iterable[str], call: str, build: bool) -> Flow[None]:
        for feature in features:
            yield self._store.require_index(feature, f"{call}({feature}=...)", build=build)
            if feature == "expires":
                self._store.expiring = True

    def put_many(
        self, puts: Puts, documents: Sequence[Mapping[str, Any]], session: Any
    ) -> Flow[PutIds]:
        """Put jobs, in order; return their ids, or raise DuplicateJob for keys that are taken once
        the rest has been put."""
        if not puts.depend:
            return (yield from self._put_many(puts, documents, session))
        try:
            ids = yield from self._put_many(puts, documents, session)
        except DuplicateJob:
            if not in_transaction(session):  # it has ended
                yield from self._dependents.look_at_many(puts, session)
                yield from self._dependents.release(puts.parents, session)
            raise
        yield from self._dependents.look_at_many(puts, session)
        return ids

    def _put_many(
        self, puts: Puts, documents: Sequence[Mapping[str, Any]], session: Any
    ) -> Flow[PutIds]:
        ids: list[ObjectId | None] = list(puts.ids)
        existing: list[int] = []
        refused: list[int] = []
        with self.counting.each(len(ids)) as counted:
            for upserts, positions in puts.runs():
                if upserts:
                    with self.metrics.timed("put"):
                        some = {position: puts.own[position] for position in positions}
                        placed = yield from self._unique.put_many(some, session)
                    for position in sorted(placed):
                        one = placed[position]
                        ids[position] = one.id
                        counted[one.result] += 1
                        existing += [position] if one.result != "inserted" else []
                        refused += [position] if one.refused else []
                elif puts.may_exist:
                    there = yield from self._insert_new(puts, positions, documents, session)
                    existing += [*there.ids, *there.holders]
                    refused += there.holders
                    for position, holder in there.holders.items():
                        ids[position] = holder
                    counted["inserted"] += len(positions) - len(there.holders)
                    counted["duplicate"] += len(there.holders)
                    if there.holders and in_transaction(session):
                        break  # it has ended
                else:
                    if puts.depths:
                        documents = [documents[position] for position in positions]
                    with self.metrics.timed("put"):
                        yield self._store.jobs.insert_many(documents, session=session)
                    counted["inserted"] += len(documents)
        if refused:
            first = min(refused)
            raise DuplicateJob(
                puts.task_key(first).key,
                ids[first],
                ids=ids,
                existing=sorted(existing),
                ended_transaction=in_transaction(session) and not puts.own[first].upserts,
            )
        return PutIds([job_id for job_id in ids if job_id is not None], sorted(existing))

    def _insert_new(
        self,
        puts: Puts,
        positions: Sequence[int],
        documents: Sequence[Mapping[str, Any]],
        session: Any,
    ) -> Flow[_There]:
        """Insert jobs some of which may be there already, and return which were, or raise.

        Not too many at a time: a reply has an error for each that was, and no room for 100,000.
        """
        there = _There([], {})
        keyed = {at: puts.task_key(at) for at in positions if at in puts.own and puts.own[at].key}
        if keyed and in_transaction(session):
            # As for one: what may let go of a key does so before.
            yield from self._unique.free(list(keyed.values()), session)
        for start in range(0, len(positions), MAX_BATCH):
            part = positions[start : start + MAX_BATCH]
            taken = yield from self._insert_part(puts, part, documents, there, session)
            keys = [keyed[at] for at in taken]
            if not keys:
                continue
            if in_transaction(session):
                there.holders.update(dict.fromkeys(taken))
                break  # it has ended
            held = yield from self._unique.free(keys)
            free = [at for at in taken if keyed[at] not in held]
            if free:
                again = yield from self._insert_part(puts, free, documents, there, session)
                held |= yield from self._unique.free([keyed[at] for at in again])
                taken = [at for at in taken if at in again or at not in free]
            there.holders.update({at: held.get(keyed[at]) for at in taken})
        if there.holders and in_transaction(session):
            holders = yield from self._unique.holders([keyed[at] for at in there.holders])
            for at in there.holders:
                there.holders[at] = holders.get(keyed[at], {}).get("_id")
        return there

    def _insert_part(
        self,
        puts: Puts,
        positions: Sequence[int],
        documents: Sequence[Mapping[str, Any]],
        there: _There,
        session: Any,
    ) -> Flow[list[int]]:
        """Insert some of them in one command; note which were there, and return those whose key was
        taken."""
        try:
            with self.metrics.timed("put"):
                some = [documents[at] for at in positions]
                yield self._store.jobs.insert_many(some, ordered=False, session=session)
        except BulkWriteError as error:
            clashes = self._store.clashes(operations.errors_of_each(error, len(positions)))
            if clashes is None or (clashes.ids and in_transaction(session)):
                raise
            repeated = [puts.ids[positions[at]] for at in clashes.ids]
            if len((yield from self._unique.known(repeated))) < len(repeated):
                raise  # one is another queue's, or has ended just now
            there.ids.extend(positions[at] for at in clashes.ids)
            return [positions[at] for at in clashes.keys]
        except PyMongoError as error:
            tell_of_wait(
                error, next((puts.own[at].key for at in positions if at in puts.own), None)
            )
            raise
        return []


class _There(NamedTuple):
    """What was there already of many jobs, by position: by id, or the holders of their keys."""

    ids: list[int]
    holders: dict[int, ObjectId | None]
