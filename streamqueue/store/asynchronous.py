"""The jobs collection for the async shell and the worker: how it sends, and how it waits.

Writes are shielded: what has been sent is awaited to its end, cancelled or not, because a cancelled
write has usually been applied.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import anyio
import pymongo
from anyio import CancelScope, Lock
from anyio.lowlevel import current_token
from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern

from .. import driver
from ..clock import LONGEST_SLEEP
from ..durations import milliseconds
from ..errors import ForeignLoop
from ..options import MAX_BATCH
from ..protocol import foreign, operations
from ..protocol.document import CODEC
from .answered import answered_within
from .collection import jobs_collection, settings_of
from .flows import (
    changes,
    claims,
    dependencies,
    head,
    held_back,
    misfits,
    rates,
    ruled,
    setting_up,
    settings,
    steps,
    stored_steps,
    timers,
    unique,
)
from .moments import ReadsOfMoments
from .state import StoreState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
    from contextlib import AbstractContextManager

    from bson import Timestamp
    from bson.codec_options import CodecOptions
    from pymongo import UpdateOne

    from .flows.steps import Flow, Result

driver.bear_cancellation()

REPLY_GRACE = 0.5
"""Seconds that the answer of a write with a limit may take beyond the limit, which is the server's:
whoever stops waiting at the same moment closes the connection, and learns less."""

Arguments = ParamSpec("Arguments")


def _driven(
    flow: Callable[Concatenate[StoreState, Arguments], Flow[Result]],
) -> Callable[Concatenate[AsyncStore, Arguments], Coroutine[Any, Any, Result]]:
    """Return the method that drives a flow to its end."""

    @wraps(flow)
    def method(
        self: AsyncStore, /, *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Coroutine[Any, Any, Result]:
        return self._drive(flow(self, *arguments, **options))

    return method


class AsyncStore(StoreState, ReadsOfMoments):
    """The collection and the server's clock.

    Args:
        patience: seconds a command may take. A connection can be wedged, alive and silent for ever:
            without a limit so is whoever waits. None leaves it to the client's settings.
    """

    def __init__(self, collection: object, *, patience: float | None = None) -> None:
        super().__init__()
        self._patience = patience
        self.jobs: AsyncCollection[Any] = jobs_collection(collection, AsyncCollection)
        self._raw = self.jobs.with_options(codec_options=foreign.RAW_CODEC)
        self._safe = self.jobs.with_options(read_concern=ReadConcern("majority"))
        self._settings = settings_of(self.jobs)
        self._committed = self._raw.with_options(read_concern=ReadConcern("majority"))
        self._loop: object = None
        self._building = Lock()
        self._claim_given_up = anyio.Event()

    prepare = _driven(setting_up.prepare)
    require_key_index = _driven(setting_up.require_key_index)
    require_index = _driven(setting_up.require_index)
    look_up = _driven(setting_up.look_up)
    hold_earlier_keys = _driven(unique.hold_earlier_keys)
    candidates = _driven(head.candidates)
    with_work = _driven(head.with_work)
    adopt = _driven(head.adopt)
    choose = _driven(ruled.choose)
    with_room = _driven(ruled.with_room)
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
    declare_rules = _driven(settings.declare_rules)
    ring = _driven(settings.ring)
    reserve = _driven(rates.reserve)
    let_through = _driven(held_back.let_through)
    look_for_held_back = _driven(held_back.look_for_held_back)
    look_for_left = _driven(misfits.look_for_left)
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

    async def _drive(self, flow: Flow[Result]) -> Result:
        try:
            step = next(flow)
            while True:
                try:
                    answer = await _ANSWERS[type(step)](self, *step)
                except BaseException as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def check_place(self) -> None:
        """Raise if this is not the process and event loop whose connections these are."""
        super().check_place()
        loop = current_token()
        if loop != self._loop:
            if self._loop is not None:
                raise ForeignLoop
            self._loop = loop

    def limit(self) -> AbstractContextManager[object]:
        """Return a context in which no command waits for ever."""
        return nullcontext() if self._patience is None else pymongo.timeout(self._patience)

    async def pieces(self, command: operations.Find) -> AsyncGenerator[list[dict[str, Any]]]:
        """Yield the answer to a read in pieces of a thousand, each of which may be changed then."""
        some: list[dict[str, Any]] = []
        async with self._raw.find(
            *command[:2], sort=command.sort, limit=command.limit, batch_size=timers.BATCH
        ) as cursor:
            async for found in cursor:
                some.append(self.read(found))
                if len(some) == timers.BATCH:
                    yield some
                    some = []
        if some:
            yield some

    async def find(
        self,
        command: operations.Find,
        codec: CodecOptions[Any] | None = None,
        committed: bool = False,
        session: Any = None,
    ) -> list[dict[str, Any]]:
        """Send a read and return all of its answer, decoded with `codec` if one is given; in one
        batch, so that no cursor is left behind when the reader is cancelled between two."""
        jobs = self._safe if committed else self._raw if command.bare else self.jobs
        with self.limit():
            async with (jobs if codec is None else jobs.with_options(codec_options=codec)).find(
                command.filter,
                command.projection,
                sort=command.sort,
                limit=command.limit,
                batch_size=abs(command.limit) or MAX_BATCH,
                hint=command.hint,
                session=session,
            ) as cursor:
                found: list[Any] = await cursor.to_list()
                return list(map(self.read, found)) if command.bare else found

    async def aggregate(
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
        with self.limit():
            async with await jobs.aggregate(
                pipeline, allowDiskUse=True, batchSize=MAX_BATCH, **options
            ) as cursor:
                return await cursor.to_list()

    async def change_one(
        self, command: operations.Update, hidden: Sequence[str], codec: CodecOptions[Any]
    ) -> tuple[Any, Timestamp | None]:
        """Update a document; return what it is then, without some fields, and when that was so.
        The former is None if there is none."""
        jobs = self.jobs.with_options(codec_options=codec)
        client = self.jobs.database.client
        with CancelScope(shield=True), self.limit():
            async with client.start_session(causal_consistency=False) as session:
                document = await jobs.find_one_and_update(
                    *command,
                    projection=dict.fromkeys(hidden, 0),
                    return_document=ReturnDocument.AFTER,
                    session=session,
                )
                moment = session.operation_time
        return document, moment

    async def aggregate_committed(self, pipeline: operations.Pipeline, session: Any) -> list[Any]:
        """Send an aggregation of what the majority has, or of what the session's transaction sees,
        and return all of its answer."""
        jobs = self._committed if session is None else self._raw
        with self.limit():
            async with await jobs.aggregate(
                pipeline, batchSize=MAX_BATCH, session=session
            ) as cursor:
                return list(map(self.read, await cursor.to_list()))

    async def _update_in(self, command: operations.Update, session: Any) -> None:
        await self.jobs.update_many(*command, session=session)

    async def _command(self, document: operations.Document, limited: bool) -> dict[str, Any]:
        limit: AbstractContextManager[object] = self.limit() if limited else nullcontext()
        with limit:
            reply: dict[str, Any] = await self.jobs.database.command(document, codec_options=CODEC)
        return reply

    async def _hello(self, limit: float | None) -> dict[str, Any]:
        with nullcontext() if limit is None else pymongo.timeout(limit):
            return await self.jobs.database.client.admin.command("hello", codec_options=CODEC)

    async def _read_settings(self, command: operations.Find) -> list[dict[str, Any]]:
        with self.limit():
            async with self._settings.find(
                command.filter,
                command.projection,
                sort=command.sort,
                limit=command.limit,
                batch_size=MAX_BATCH,
            ) as cursor:
                return await cursor.to_list()

    async def _upsert(self, command: operations.Update, settings: bool) -> None:
        with CancelScope(shield=True), self.limit():
            await (self._settings if settings else self.jobs).update_one(*command, upsert=True)

    async def _update_and_get(
        self,
        command: operations.Update,
        limit: float,
        shown: operations.Document | None = None,
        session: Any = None,
    ) -> dict[str, Any] | None:
        # (Under ``pymongo.timeout(0)`` the driver would try a write like this one again for ever.)
        change = self.jobs.find_one_and_update(
            *command,
            projection=shown,
            return_document=ReturnDocument.AFTER,
            session=session,
            maxTimeMS=milliseconds(limit),
        )
        document: dict[str, Any] | None = await answered_within(change, limit, self._patience)
        return document

    async def _update_many(self, command: operations.Update, limit: float) -> tuple[int, int]:
        return await self.update_within(command, limit, grace=self._patience)

    async def _update_without_limit(self, command: operations.Update) -> None:
        with self.limit():
            await self.jobs.update_one(*command)

    async def _update_each(self, changes: Sequence[UpdateOne]) -> int:
        return (await self.jobs.bulk_write(changes, ordered=False)).modified_count

    async def _pause(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def _in_turn(self, flow: Flow[Result], wait: bool) -> Result | None:
        if not wait and self._building.locked():
            return None
        async with self._building:
            return await self._drive(flow)

    async def _shielded(self, flow: Flow[Result]) -> Result:
        with CancelScope(shield=True):
            result: Result = await self._drive(flow)
        return result  # pyright: ignore[reportReturnType]

    def claim_given_up(self) -> None:
        """Make :meth:`keep_untaking` look."""
        self._claim_given_up.set()

    async def keep_untaking(self) -> None:
        """Do so whenever it is time to, for ever."""
        while True:
            with anyio.move_on_after(min(self.given_up.wait(), LONGEST_SLEEP)):
                self._claim_given_up = anyio.Event()
                await self._claim_given_up.wait()
            await self.untake_again()

    # writes for many, with a limit of the server's

    async def update_within(
        self, command: operations.Update, limit: float, *, grace: float | None = REPLY_GRACE
    ) -> tuple[int, int]:
        """Update the documents of a filter; return how many matched, and how many were changed.

        A document that somebody's open transaction has changed makes a write wait inside the
        server, and with it all that share the write. So the server gives up after `limit` seconds;
        then some of the documents may have been changed, and whoever asked sends smaller parts.

        The call is shielded, and obeys no ``pymongo.timeout``, which would take the limit's place.
        Its answer may take `grace` seconds more; None leaves that to the client's settings.

        Raises:
            ExecutionTimeout: the limit was met. (A limit met while the majority was waited for is a
                WriteConcernError: then all of it was applied.)
            WriteConcernError: it was applied, and is not known to be safe.
            WriteError: a document cannot be changed so; those before it may have been.
            NetworkTimeout: no answer, not even a while after the limit.
        """
        reply = await self._command_within(operations.update_within, command, limit, grace)
        return reply["n"], reply["nModified"]

    async def update_each_within(self, updates: Sequence[operations.Update], limit: float) -> int:
        """Send an update of one document each; return how many matched. Else the same."""
        make = operations.update_each_within
        matched: int = (await self._command_within(make, updates, limit))["n"]
        return matched

    async def delete_within(self, wanted: dict[str, Any], limit: float) -> int:
        """Delete the documents of a filter; return how many. Else like :meth:`update_within`."""
        deleted: int = (await self._command_within(operations.delete_within, wanted, limit))["n"]
        return deleted

    async def _try_each(
        self, updates: Sequence[operations.Update], limit: float
    ) -> tuple[int, list[Exception | None]]:
        terms = (operations.update_each_within, updates, limit, self._patience, False)
        reply = await self._command_within(*terms)
        return reply["nModified"], operations.each_of(reply, len(updates))

    async def _command_within(
        self,
        make: Callable[..., dict[str, Any]],
        what: object,
        limit: float,
        grace: float | None = REPLY_GRACE,
        check: bool = True,
    ) -> dict[str, Any]:
        command = make(self.jobs.name, what, limit, self.jobs.write_concern.document)
        with pymongo.timeout(0):
            sent = self.jobs.database.command(command, codec_options=CODEC)
            reply = await answered_within(sent, limit, grace)
        if check:
            operations.check_reply(reply)
        return reply


_ANSWERS: dict[type, Callable[..., Awaitable[Any]]] = {
    steps.Read: AsyncStore.find,
    steps.Aggregate: AsyncStore.aggregate_committed,
    steps.UpdateIn: AsyncStore._update_in,
    steps.Command: AsyncStore._command,
    steps.Hello: AsyncStore._hello,
    steps.ReadSettings: AsyncStore._read_settings,
    steps.Upsert: AsyncStore._upsert,
    steps.UpdateMany: AsyncStore._update_many,
    steps.TryEach: AsyncStore._try_each,
    steps.DeleteMany: AsyncStore.delete_within,
    steps.UpdateAndGet: AsyncStore._update_and_get,
    steps.UpdateWithoutLimit: AsyncStore._update_without_limit,
    steps.UpdateEach: AsyncStore._update_each,
    steps.Pause: AsyncStore._pause,
    steps.InTurn: AsyncStore._in_turn,
    steps.Shielded: AsyncStore._shielded,
}
