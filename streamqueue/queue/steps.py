"""Steps: the parts of a handler whose stored results later attempts are given, for both shells."""

from __future__ import annotations

import hashlib
import inspect
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVarTuple

import bson
from pymongo.errors import OperationFailure

from ..durations import shown
from ..errors import ConfigurationError, LeaseLost, PayloadError
from ..failures import failure_name
from ..options import step_name
from ..protocol.document import CODEC, bare_id
from ..protocol.operations import is_refusal
from ..protocol.result import decode_result, encode_step
from ..protocol.steps import steps_of, used_twice
from .flow import run, run_async
from .outcome import End
from .view import Data, JobView

if TYPE_CHECKING:
    from collections.abc import Callable

    from bson.raw_bson import RawBSONDocument
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.synchronous.client_session import ClientSession

    from ..protocol.steps import StepResult, Steps
    from .flow import Flow
    from .holder import AsyncHolder, Holder

Arguments = TypeVarTuple("Arguments")

_inside: ContextVar[tuple[tuple[Any, bytes], ...]] = ContextVar("streamqueue_steps", default=())
"""The attempts whose steps this is called in: id and token, which a claim has for many jobs."""


class StepsView(JobView[Data]):
    """A held job that has steps."""

    __slots__ = ()

    def step_id(self, name: str) -> str:
        """Return a text that stands for a step of this job, the same in every attempt.

        Hand it to whom the step calls, as the idempotency key: a consumer that is killed when the
        other side has done its part, and before the result is stored, asks for the same again.

        Args:
            name: of the step, 1-64 letters, digits, ``_ . -``.

        Returns 24 hex digits (the job's id, if it is an ObjectId, else a digest of it), a colon and
        the name: at most 89 characters of ASCII. It is made of nothing else, so a job that is
        requeued has the same ones, also with ``fresh=True``.

        Raises:
            ConfigurationError: no valid name.
        """
        name, job_id = step_name(name), self._record.id
        if isinstance(job_id, bson.ObjectId):
            return f"{job_id}:{name}"
        encoded = bson.encode({"_id": bare_id(job_id)}, codec_options=CODEC)
        return f"{hashlib.sha256(encoded).hexdigest()[:24]}:{name}"

    def _step(self, name: str, call: Callable[[], Any], session: Any) -> Flow[Any]:
        """Return the stored result of a step; run it first if there is none."""
        record, holder = self._record, self._holder
        name = step_name(name)
        self._check_step(name, session)
        with self._noting_end():
            yield holder.begin_step(record, session)
        steps = steps_of(record)
        first = steps.use(name, in_transaction=session is not None)
        if not first and (yield holder.is_step_stored(record, name, session)):
            raise used_twice(name)  # its transaction was committed, or is this one
        if name in steps:
            holder.count_step("replayed")
            return steps.result(name)
        came_to: StepResult = "failed"
        try:
            encoded = yield from self._run_step(steps, name, call, session)
            came_to = "run"
        finally:
            holder.count_step(came_to)
        return decode_result(bytes(encoded.raw))

    def _run_step(
        self, steps: Steps, name: str, call: Callable[[], Any], session: Any
    ) -> Flow[RawBSONDocument]:
        """Run a step, and store its result."""
        yield from self._unless_dead(partial(steps.check_room, name), session)
        if session is not None:
            self._step_session = session
        before = _inside.set((*_inside.get(), (self._record.id, self._record.token)))
        try:
            value = yield call()
        finally:
            _inside.reset(before)
        encode = partial(_encoded, steps, name, value)
        encoded: RawBSONDocument = yield from self._unless_dead(encode, session)
        try:
            with self._noting_end():
                yield self._holder.store_step(self._record, name, encoded, session)
        except OperationFailure as error:
            if not is_refusal(error):
                raise
            refused = partial(_refuse, name, len(encoded.raw), error)
            yield from self._unless_dead(refused, session)
        return encoded

    def _check_step(self, name: str, session: Any) -> None:
        """Raise if a step may not begin here, or now."""
        if (self._record.id, self._record.token) in _inside.get():
            raise ConfigurationError(
                f"step {name!r} is called inside another step of the job, which would run again "
                "as a whole: call them one after the other, or at the same time"
            )
        if session is None:
            self._check_beside_transaction(ends=False)
        else:
            self._check_beside_step(session)
            if not session.in_transaction:
                raise ConfigurationError(
                    "step(session=) needs an open transaction: start one in the session first"
                )
        if self._ended:
            raise LeaseLost(self._record.id)

    def _unless_dead(self, make: Callable[[], Any], session: Any) -> Flow[Any]:
        """Return what a function makes; what it says cannot be stored makes the job dead, for to
        run the step again would come to the same. Of its transaction nothing is left then."""
        try:
            return make()
        except PayloadError as problem:
            if session is not None and session.in_transaction:
                yield session.abort_transaction()
            with self._noting_end():
                yield self._holder.end(self._record, End("discarded", str(problem)))
            self._ended = True
            raise


class BlockingSteps(StepsView[Data]):
    """The calls of Job about steps."""

    __slots__ = ()
    _holder: Holder

    def step(
        self,
        name: str,
        function: Callable[[*Arguments], Any],
        *arguments: *Arguments,
        session: ClientSession | None = None,
    ) -> Any:
        """Run a part of the work once, and return its stored result; later attempts return that.

        The function runs at least once: again if its result could not be stored, as when the
        process is killed in between. What it raises is not stored. The result is by the time that
        this returns: fenced by the claim, and on a majority of the servers. The write starts the
        lock timeout again. It stays through errors, releases, lost leases and ``requeue``, until
        the job is removed, replaced, or requeued with ``fresh=True``.

        Args:
            name: what the result is stored under, 1-64 letters, digits, ``_ . -``. Once in an
                attempt. Results are found by name: steps may be added, left out and reordered.
            function: a blocking function; called with the arguments, and in this thread.
            arguments: not compared: with others than at the time, the stored result is returned.
            session: store the result in this session's open transaction, with what the function
                writes there: exactly once in effect. The function is called inside the
                transaction; whoever calls ``step`` passes the session on, as one of the arguments.
                What is aborted is not stored, and may be called again. The transaction must fit
                into the lease, which a worker does not renew meanwhile; until it has ended, every
                other call of the job raises ConfigurationError, if not in the same session.

        Returns what is stored, through BSON and back, also the first time: tuples are lists, and
        times are aware, in UTC, with milliseconds.

        Raises:
            LeaseLost: the job is no longer held; nothing was stored. Unless that was known before,
                the function has run.
            JobCancelled: somebody has asked for that.
            PayloadError: the result is not BSON, or too large: over 256 kB, 4 MB with those of all
                steps of the job, or of a thousand steps. The job is dead: to run it again would
                come to the same. Without `session`, what the function did stands.
            ConfigurationError: no valid name, one that the attempt has used, a step inside a step,
                or no open transaction; nothing was run.
            PyMongoError: the server, for as long as the lease lasts; or an error of the
                transaction. (Else the write is sent again until its outcome is known.)
        """
        if _is_async(function):
            raise ConfigurationError(
                f"the step {shown(name)} of a Job has an async function, which only AsyncJob awaits"
            )
        return run(self._step(name, partial(_called, function, arguments), session))


class AsyncSteps(StepsView[Data]):
    """The calls of AsyncJob about steps."""

    __slots__ = ()
    _holder: AsyncHolder

    async def step(
        self,
        name: str,
        function: Callable[[*Arguments], Any],
        *arguments: *Arguments,
        session: AsyncClientSession | None = None,
    ) -> Any:
        """Run a part of the work once, and return its stored result; later attempts return that.

        The function runs at least once: again if its result could not be stored, as when the
        process is killed in between. What it raises is not stored. The result is by the time that
        this returns: fenced by the claim, and on a majority of the servers. The write starts the
        lock timeout again. It stays through errors, releases, lost leases and ``requeue``, until
        the job is removed, replaced, or requeued with ``fresh=True``.

        Args:
            name: what the result is stored under, 1-64 letters, digits, ``_ . -``. Once in an
                attempt. Results are found by name: steps may be added, left out and reordered.
            function: an async function, which is awaited, or a blocking one, which is called in a
                thread (and which a cancelled handler waits for: a thread cannot be stopped).
            arguments: not compared: with others than at the time, the stored result is returned.
            session: store the result in this session's open transaction, with what the function
                writes there: exactly once in effect. The function is called inside the
                transaction; whoever calls ``step`` passes the session on, as one of the arguments.
                What is aborted is not stored, and may be called again. The transaction must fit
                into the lease, which a worker does not renew meanwhile; until it has ended, every
                other call of the job raises ConfigurationError, if not in the same session.

        Returns what is stored, through BSON and back, also the first time: tuples are lists, and
        times are aware, in UTC, with milliseconds.

        Raises:
            LeaseLost: the job is no longer held; nothing was stored. Unless that was known before,
                the function has run.
            JobCancelled: somebody has asked for that.
            PayloadError: the result is not BSON, or too large: over 256 kB, 4 MB with those of all
                steps of the job, or of a thousand steps. The job is dead: to run it again would
                come to the same. Without `session`, what the function did stands.
            ConfigurationError: no valid name, one that the attempt has used, a step inside a step,
                or no open transaction; nothing was run.
            PyMongoError: the server, for as long as the lease lasts; or an error of the
                transaction. (Else the write is sent again until its outcome is known.)
        """
        call = partial(_awaited, self._holder, function, arguments)
        return await run_async(self._step(name, call, session))


def _encoded(steps: Steps, name: str, value: object) -> RawBSONDocument:
    encoded = encode_step(name, value)
    steps.keep(name, len(encoded.raw))
    return encoded


def _refuse(name: str, size: int, refusal: OperationFailure) -> None:
    raise PayloadError(
        f"the server does not store the job with the result of step {name!r}, of {size:,} bytes: "
        f"{failure_name(refusal)}"
    ) from refusal


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    value = function(*arguments)
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError("the function of a step has returned an awaitable, which nobody awaits")
    return value


async def _awaited(
    holder: AsyncHolder, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    if _is_async(function):
        return await function(*arguments)
    value = await holder.in_thread(partial(function, *arguments))
    return await value if inspect.isawaitable(value) else value


def _is_async(function: object) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004 - of an object it may be async
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
