"""The jobs collection for the blocking shell: how it sends, and how it waits; no policy."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import pymongo
from pymongo import ReturnDocument
from pymongo.read_concern import ReadConcern
from pymongo.synchronous.collection import Collection

from ..durations import milliseconds
from ..options import MAX_BATCH
from ..protocol import foreign, operations
from ..protocol.document import CODEC
from .collection import jobs_collection, settings_of
from .flows import (
    changes,
    claims,
    dependencies,
    head,
    held_back,
    rates,
    ruled,
    setting_up,
    settings,
    steps,
    stored_steps,
    timers,
    unique,
)
from .state import StoreState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bson import Timestamp
    from bson.codec_options import CodecOptions
    from pymongo import UpdateOne

    from .flows.steps import Flow, Result

Arguments = ParamSpec("Arguments")


def _driven(
    flow: Callable[Concatenate[StoreState, Arguments], Flow[Result]],
) -> Callable[Concatenate[Store, Arguments], Result]:
    """Return the method that drives a flow to its end."""

    @wraps(flow)
    def method(self: Store, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        return self._drive(flow(self, *arguments, **options))

    return method


class Store(StoreState):
    """The collection and the server's clock."""

    def __init__(self, collection: object) -> None:
        super().__init__()
        self.jobs: Collection[Any] = jobs_collection(collection, Collection)
        self._raw = self.jobs.with_options(codec_options=foreign.RAW_CODEC)
        self._safe = self.jobs.with_options(read_concern=ReadConcern("majority"))
        self._committed = self._raw.with_options(read_concern=ReadConcern("majority"))
        self._settings = settings_of(self.jobs)
        self._building = threading.RLock()  # a signal handler may put, too

    prepare = _driven(setting_up.prepare)
    require_key_index = _driven(setting_up.require_key_index)
    require_index = _driven(setting_up.require_index)
    look_up = _driven(setting_up.look_up)
    hold_earlier_keys = _driven(unique.hold_earlier_keys)
    candidates = _driven(head.candidates)
    adopt = _driven(head.adopt)
    choose = _driven(ruled.choose)
    say_room = _driven(settings.say_room)
    say_room_in = _driven(settings.say_room_in)
    say_unsaid_room = _driven(settings.say_unsaid_room)
    take = _driven(claims.take)
    untake = _driven(claims.untake)
    untake_again = _driven(claims.untake_again)
    requeue = _driven(changes.requeue)
    settings_of = _driven(settings.settings_of)
    is_paused = _driven(settings.is_paused)
    queues_with_settings = _driven(settings.queues_with_settings)
    read_buckets = _driven(rates.read_buckets)
    read_settings = _driven(settings.read_settings)
    change_settings = _driven(settings.change_settings)
    ring = _driven(settings.ring)
    reserve = _driven(rates.reserve)
    let_through = _driven(held_back.let_through)
    look_for_held_back = _driven(held_back.look_for_held_back)
    supersede = _driven(held_back.supersede)
    tell_dependents = _driven(dependencies.tell_dependents)
    look_at_dependents = _driven(dependencies.look)
    look_at_requeued = _driven(dependencies.look_at_requeued)
    release = _driven(dependencies.release)
    release_of = _driven(dependencies.release_of)
    promote = _driven(timers.promote)
    reap = _driven(timers.reap)
    seconds_to_next = _driven(timers.seconds_to_next)
    seconds_to_due = _driven(timers.seconds_to_due)
    seconds_to_expiry = _driven(timers.seconds_to_expiry)
    seconds_to_too_late = _driven(timers.seconds_to_too_late)
    expire = _driven(timers.expire)
    expire_held = _driven(timers.expire_held)
    remove_cancelled = _driven(changes.remove_cancelled)
    store_step = _driven(stored_steps.store_step)
    store_step_in = _driven(stored_steps.store_step_in)
    is_step_stored = _driven(stored_steps.is_step_stored)

    def _drive(self, flow: Flow[Result]) -> Result:
        try:
            step = next(flow)
            while True:
                try:
                    answer = _ANSWERS[type(step)](self, *step)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def pieces(self, command: operations.Find) -> Iterator[list[dict[str, Any]]]:
        """Yield the answer to a read in pieces of a thousand, each of which may be changed then."""
        some: list[dict[str, Any]] = []
        with self._raw.find(
            *command[:2], sort=command.sort, limit=command.limit, batch_size=timers.BATCH
        ) as cursor:
            for found in cursor:
                some.append(self.read(found))
                if len(some) == timers.BATCH:
                    yield some
                    some = []
        if some:
            yield some

    def find(
        self,
        command: operations.Find,
        codec: CodecOptions[Any] | None = None,
        committed: bool = False,
        session: Any = None,
    ) -> list[dict[str, Any]]:
        """Send a read and return all of its answer, decoded with `codec` if one is given.

        Asked for in one batch: by itself the first has 101 documents.
        """
        jobs = self._safe if committed else self._raw if command.bare else self.jobs
        with (jobs if codec is None else jobs.with_options(codec_options=codec)).find(
            command.filter,
            command.projection,
            sort=command.sort,
            limit=command.limit,
            batch_size=abs(command.limit) or MAX_BATCH,
            hint=command.hint,
            session=session,
        ) as cursor:
            found = map(self.read, cursor) if command.bare else cursor
            return list(found)  # pyright: ignore[reportReturnType]

    def aggregate(
        self,
        pipeline: operations.Pipeline,
        codec: CodecOptions[Any] = CODEC,
        read_concern: ReadConcern | None = None,
        **options: Any,
    ) -> list[Any]:
        """Send an aggregation and return all of its answer, decoded with `codec`.

        Args:
            read_concern: default: that of the collection.
            options: of the command, such as a ``hint``.
        """
        jobs = self.jobs.with_options(codec_options=codec, read_concern=read_concern)
        with jobs.aggregate(pipeline, allowDiskUse=True, batchSize=MAX_BATCH, **options) as cursor:
            return list(cursor)

    def change_one(
        self, command: operations.Update, hidden: Sequence[str], codec: CodecOptions[Any]
    ) -> tuple[Any, Timestamp | None]:
        """Update a document; return what it is then, without some fields, and when that was so.
        The former is None if there is none."""
        jobs = self.jobs.with_options(codec_options=codec)
        with self.jobs.database.client.start_session(causal_consistency=False) as session:
            document = jobs.find_one_and_update(
                *command,
                projection=dict.fromkeys(hidden, 0),
                return_document=ReturnDocument.AFTER,
                session=session,
            )
            return document, session.operation_time

    def aggregate_committed(self, pipeline: operations.Pipeline, session: Any) -> list[Any]:
        """Send an aggregation of what the majority has, or of what the session's transaction sees,
        and return all of its answer."""
        jobs = self._committed if session is None else self._raw
        with jobs.aggregate(pipeline, batchSize=MAX_BATCH, session=session) as cursor:
            return list(map(self.read, cursor))

    def _update_in(self, command: operations.Update, session: Any) -> None:
        self.jobs.update_many(*command, session=session)

    def _command(self, document: operations.Document, _limited: bool) -> dict[str, Any]:
        return self.jobs.database.command(document, codec_options=CODEC)

    def _hello(self, limit: float | None) -> dict[str, Any]:
        with nullcontext() if limit is None else pymongo.timeout(limit):
            return self.jobs.database.client.admin.command("hello", codec_options=CODEC)

    def _read_settings(self, command: operations.Find) -> list[dict[str, Any]]:
        with self._settings.find(
            command.filter,
            command.projection,
            sort=command.sort,
            limit=command.limit,
            batch_size=MAX_BATCH,
        ) as cursor:
            return list(cursor)

    def _upsert(self, command: operations.Update, settings: bool) -> None:
        (self._settings if settings else self.jobs).update_one(*command, upsert=True)

    def _update_and_get(
        self,
        command: operations.Update,
        limit: float,
        shown: operations.Document | None = None,
        session: Any = None,
    ) -> dict[str, Any] | None:
        # (Under ``pymongo.timeout(0)`` the driver would try a write like this one again for ever.)
        document: dict[str, Any] | None = self.jobs.find_one_and_update(
            *command,
            projection=shown,
            return_document=ReturnDocument.AFTER,
            session=session,
            maxTimeMS=milliseconds(limit),
        )
        return document

    def _update_without_limit(self, command: operations.Update) -> None:
        self.jobs.update_one(*command)

    def _update_each(self, changes: Sequence[UpdateOne]) -> int:
        return self.jobs.bulk_write(changes, ordered=False).modified_count

    def _pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def _in_turn(self, flow: Flow[Result], wait: bool) -> Result | None:
        if not self._building.acquire(blocking=wait):
            return None
        try:
            return self._drive(flow)
        finally:
            self._building.release()

    # writes for many, with a limit of the server's

    def update_within(self, command: operations.Update, limit: float) -> tuple[int, int]:
        """Update the documents of a filter; return how many matched, and how many were changed.

        A document that somebody's open transaction has changed makes a write wait inside the
        server, and with it all that share the write. So the server gives up after `limit` seconds;
        then some of the documents may have been changed, and whoever asked sends smaller parts.

        The call obeys no ``pymongo.timeout``, which would take the limit's place.

        Raises:
            ExecutionTimeout: the limit was met. (A limit met while the majority was waited for is a
                WriteConcernError: then all of it was applied.)
            WriteConcernError: it was applied, and is not known to be safe.
            WriteError: a document cannot be changed so; those before it may have been.
        """
        reply = self._command_within(operations.update_within, command, limit)
        return reply["n"], reply["nModified"]

    def delete_within(self, wanted: dict[str, Any], limit: float) -> int:
        """Delete the documents of a filter; return how many. Else like :meth:`update_within`."""
        deleted: int = (self._command_within(operations.delete_within, wanted, limit))["n"]
        return deleted

    def _try_each(
        self, updates: Sequence[operations.Update], limit: float
    ) -> tuple[int, list[Exception | None]]:
        make = operations.update_each_within
        reply = self._command_within(make, updates, limit, check=False)
        return reply["nModified"], operations.each_of(reply, len(updates))

    def _command_within(
        self, make: Callable[..., dict[str, Any]], what: object, limit: float, check: bool = True
    ) -> dict[str, Any]:
        command = make(self.jobs.name, what, limit, self.jobs.write_concern.document)
        with pymongo.timeout(0):
            reply: dict[str, Any] = self.jobs.database.command(command, codec_options=CODEC)
            if check:
                operations.check_reply(reply)
            return reply


_ANSWERS: dict[type, Callable[..., Any]] = {
    steps.Read: Store.find,
    steps.Aggregate: Store.aggregate_committed,
    steps.UpdateIn: Store._update_in,
    steps.Command: Store._command,
    steps.Hello: Store._hello,
    steps.ReadSettings: Store._read_settings,
    steps.Upsert: Store._upsert,
    steps.UpdateMany: Store.update_within,
    steps.TryEach: Store._try_each,
    steps.DeleteMany: Store.delete_within,
    steps.UpdateAndGet: Store._update_and_get,
    steps.UpdateWithoutLimit: Store._update_without_limit,
    steps.UpdateEach: Store._update_each,
    steps.Pause: Store._pause,
    steps.InTurn: Store._in_turn,
    steps.Shielded: Store._drive,
}
