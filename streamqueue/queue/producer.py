"""Producer: how jobs come into a queue; the flows of both shells."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError

from ..errors import DuplicateJob
from ..options import MAX_BATCH
from ..protocol import operations
from ..protocol.put import PutIds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson import ObjectId
    from bson.raw_bson import RawBSONDocument
    from prometheus_client import CollectorRegistry

    from ..metrics.series import Metrics, ProducerMetrics
    from ..protocol.put import Put, Puts
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

    @cached_property
    def metrics(self) -> Metrics:
        """The metrics of this process."""
        from ..metrics.series import Metrics  # costs half of what importing a shell does

        return Metrics.of(self._registry)

    @cached_property
    def counting(self) -> ProducerMetrics:
        """The context that counts the put within."""
        return self.metrics.producer(self._name)

    def prepare(self, put: Put, session: Any) -> Flow[RawBSONDocument]:
        """Check the server, and for a key its index; return the document to insert."""
        build = not _in_transaction(session)
        yield self._store.prepare(build=build)
        if put.key is not None:
            yield self._store.require_key_index(self._name, build=build)
        yield from self._require(put.features, "put", build)
        return put.document(self._name, self._store.clock.now())

    def put(self, put: Put, document: RawBSONDocument, session: Any) -> Flow[None]:
        """Insert a job, or raise why it is not there for certain."""
        (error,) = yield from self.insert([document], session, may_exist=put.may_exist)
        if error is not None:
            yield from self._accept(put, error, in_transaction=_in_transaction(session))

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
            in_transaction = _in_transaction(session)
            if len(documents) == 1 and (in_transaction or not may_exist):
                try:
                    yield jobs.insert_one(documents[0], session=session)
                except DuplicateKeyError as error:
                    if in_transaction:  # the server has ended it, and nothing can be proven in it
                        return [error]
                else:
                    return [None]
            try:
                yield jobs.insert_many(documents, ordered=False, session=session)
            except BulkWriteError as error:
                return operations.errors_of_each(error, len(documents))
            return [None] * len(documents)

    def _accept(self, put: Put, error: Exception, *, in_transaction: bool) -> Flow[None]:
        """Return if the error says that the job is there already, and safe; else raise."""
        if self._store.is_duplicate_job(error):
            key = str(put.key)
            holders = yield from holders_of(self._store, self._name, [key])
            raise DuplicateJob(key, holders.get(key), ended_transaction=in_transaction) from error
        if in_transaction or not operations.is_repeated_put(error):
            raise error
        found = yield self._store.look_up(operations.find_jobs(self._name, [put.id]))
        if not found:
            raise error  # it is another queue's, or has ended just now

    def prepare_many(self, puts: Puts, session: Any) -> Flow[list[RawBSONDocument]]:
        """Check the server, and for keys their index; return the documents to insert."""
        build = not _in_transaction(session)
        yield self._store.prepare(build=build)
        if puts.keys:
            yield self._store.require_key_index(self._name, build=build)
        yield from self._require(puts.features, "put_many", build)
        return puts.documents(self._name, self._store.clock.now())

    def _require(self, features: Iterable[str], call: str, build: bool) -> Flow[None]:
        for feature in features:
            yield self._store.require_index(feature, f"{call}({feature}=...)", build=build)
            if feature == "expires":
                self._store.expiring = True

    def put_many(
        self, puts: Puts, documents: Sequence[Mapping[str, Any]], session: Any
    ) -> Flow[PutIds]:
        """Insert jobs, in order; return their ids, or raise DuplicateJob for keys that are taken
        once the rest has been put."""
        there = operations.Clashes([], [])
        if puts.may_exist:
            there = yield from self._insert_new(puts.ids, documents, session)
        else:
            with self.metrics.timed("put"):
                yield self._store.jobs.insert_many(documents, session=session)
        if there.keys:
            taken = [puts.keys[at] for at in there.keys]
            holders = yield from holders_of(self._store, self._name, taken)
            raise puts.duplicates(
                there.ids, there.keys, holders, ended_transaction=_in_transaction(session)
            )
        return PutIds(puts.ids, there.ids)

    def _insert_new(
        self, ids: Sequence[ObjectId], documents: Sequence[Mapping[str, Any]], session: Any
    ) -> Flow[operations.Clashes]:
        """Insert jobs some of which may be there already, and return which were, or raise.

        Not too many at a time: a reply has an error for each that was, and no room for 100,000.
        """
        all_there = operations.Clashes([], [])
        for start in range(0, len(ids), MAX_BATCH):
            part = slice(start, start + MAX_BATCH)
            in_transaction = _in_transaction(session)
            try:
                with self.metrics.timed("put"):
                    yield self._store.jobs.insert_many(
                        documents[part], ordered=False, session=session
                    )
            except BulkWriteError as error:
                errors = operations.errors_of_each(error, len(ids[part]))
                there = self._store.clashes(errors)
                if there is None or (there.ids and in_transaction):
                    raise
                repeated = [ids[start + at] for at in there.ids]
                if repeated:
                    command = operations.find_jobs(self._name, repeated)
                    found = yield self._store.look_up(command)
                    if len(found) < len(repeated):
                        raise  # one is another queue's, or has ended just now
                all_there.ids.extend(start + at for at in there.ids)
                all_there.keys.extend(start + at for at in there.keys)
                if in_transaction:
                    break  # it has ended
        return all_there


def holders_of(
    store: Store | AsyncStore, queue: str, keys: Sequence[str]
) -> Flow[dict[str, ObjectId]]:
    """Return the ids of what holds these keys, as far as this user may know them."""
    found: list[dict[str, Any]] = []
    try:
        for start in range(0, len(keys), MAX_BATCH):
            some = keys[start : start + MAX_BATCH]
            found += yield store.look_up(operations.holders(queue, *some))
    except PyMongoError:
        pass  # that they are taken is known, and matters more
    return {job["held_key"]: job["_id"] for job in found}


def _in_transaction(session: Any) -> bool:
    return session is not None and session.in_transaction
