"""Jobs for handlers, made without a server: what they are asked to do is recorded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import anyio.to_thread
import bson
from bson import ObjectId

from ..durations import shown
from ..errors import ConfigurationError, JobCancelled, LeaseLost
from ..options import queue_name
from ..protocol.calls import Call as TaskCall
from ..protocol.document import CODEC, ENCODING_ERRORS, JobRecord
from ..protocol.fitting.readers import reader_of
from ..protocol.payload import encode_payload, split_priority
from ..protocol.result import Result, decode_result, encode_step
from ..queue.holder import NO_CONTEXT
from ..queue.job import AsyncJob, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bson.raw_bson import RawBSONDocument

    from ..protocol.fitting.kinds import PayloadLike
    from ..protocol.steps import StepResult
    from ..queue.outcome import End

FIELDS = {
    "id": "_id",
    "queue": "queue",
    "task": "task",
    "priority": "priority",
    "attempts": "attempts",
    "max_attempts": "max_attempts",
    "key": "key",
    "group": "group",
    "last_error": "last_error",
    "run_at": "run_at",
    "locked_by": "locked_by",
    "locked_at": "locked_at",
    "traceparent": "traceparent",
}
"""What a job may be made with, and the field of its document."""
ENDS = {"failed": "error", "released": "release", "discarded": "discard", "cancelled": "cancel"}


class Call(NamedTuple):
    """What a job was asked to do. It equals a plain pair of the two.

    Attributes:
        name: ``"complete"``, ``"error"``, ``"progress"``, ``"release"`` or ``"step"`` (that was
            run); ``"discard"`` or ``"cancel"`` where a ``with`` block of the job was left by such
            an exception.
        arguments: by their names; a result as it comes back from BSON.
    """

    name: str
    arguments: dict[str, Any]


class Recorder:
    """Holds a made job: does nothing but note what is asked for."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        self.context = context
        self.calls: list[Call] = []
        self._ended = False

    def complete(self, record: JobRecord, result: object, session: object) -> None:
        self._check(record)
        self._ended = True
        encoded = Result(result).encoded()  # raises as a worker does, where the job is dead then
        result = None if encoded is None else decode_result(bytes(encoded.raw))
        arguments = (
            {"result": result} if session is None else {"result": result, "session": session}
        )
        self.calls.append(Call("complete", arguments))

    def end(self, record: JobRecord, end: End) -> None:
        if end.kind != "cancelled":
            self._check(record)
        self._ended = True
        arguments: dict[str, dict[str, Any]] = {
            "failed": {"message": end.message, "delay": end.delay},
            "released": {"delay": end.delay},
        }
        self.calls.append(Call(ENDS[end.kind], arguments.get(end.kind, {"reason": end.message})))

    def cancelled(self, record: JobRecord) -> bool:
        return record.asked

    def progress(self, record: JobRecord, count: int | None, note: str | None) -> None:
        self._check(record)
        self.calls.append(Call("progress", {"count": count, "note": note}))

    def parents(
        self, record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Sequence[RawBSONDocument]:
        return []

    def begin_step(self, record: JobRecord, session: object) -> None:
        self._check(record)

    def is_step_stored(self, record: JobRecord, name: str, session: object) -> bool:
        return False

    def store_step(
        self, record: JobRecord, name: str, result: RawBSONDocument, session: object
    ) -> None:
        self._check(record)
        arguments = {"name": name, "result": decode_result(bytes(result.raw))}
        self.calls.append(Call("step", arguments))

    def count_step(self, result: StepResult) -> None: ...

    def _check(self, record: JobRecord) -> None:
        if record.asked:
            raise JobCancelled(record.id)
        if self._ended:
            raise LeaseLost(record.id)


class AsyncRecorder:
    """The same for async jobs."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.context = recorder.context

    async def complete(self, record: JobRecord, result: object, session: object) -> None:
        self.recorder.complete(record, result, session)

    async def end(self, record: JobRecord, end: End) -> None:
        self.recorder.end(record, end)

    def cancelled(self, record: JobRecord) -> bool:
        return self.recorder.cancelled(record)

    async def progress(self, record: JobRecord, count: int | None, note: str | None) -> None:
        self.recorder.progress(record, count, note)

    async def parents(
        self, record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Sequence[RawBSONDocument]:
        return self.recorder.parents(record, ids, whole)

    async def begin_step(self, record: JobRecord, session: object) -> None:
        self.recorder.begin_step(record, session)

    async def is_step_stored(self, record: JobRecord, name: str, session: object) -> bool:
        return self.recorder.is_step_stored(record, name, session)

    async def store_step(
        self, record: JobRecord, name: str, result: RawBSONDocument, session: object
    ) -> None:
        self.recorder.store_step(record, name, result, session)

    def count_step(self, result: StepResult) -> None:
        self.recorder.count_step(result)

    async def in_thread(self, function: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(function)


class Made:
    """What a job of :func:`make_job` has beside what every job has."""

    __slots__ = ()
    _record: JobRecord
    _recorder: Recorder

    @property
    def calls(self) -> list[Call]:
        """What it was asked to do so far, in order."""
        return list(self._recorder.calls)

    def cancel(self) -> None:
        """Ask for it to be cancelled: ``job.cancelled`` is true from now on, and every call raises
        JobCancelled."""
        self._record.asked = True


class MadeJob(Made, Job):
    """A :class:`Job` that :func:`make_job` has made."""

    __slots__ = ("_recorder",)


class MadeAsyncJob(Made, AsyncJob):
    """An :class:`AsyncJob` that :func:`make_job` has made."""

    __slots__ = ("_recorder",)


@overload
def make_job(
    payload: PayloadLike,
    *,
    blocking: Literal[False] = False,
    context: Mapping[str, Any] = ...,
    steps: Mapping[str, Any] = ...,
    **fields: Any,
) -> MadeAsyncJob: ...


@overload
def make_job(
    payload: PayloadLike,
    *,
    blocking: Literal[True],
    context: Mapping[str, Any] = ...,
    steps: Mapping[str, Any] = ...,
    **fields: Any,
) -> MadeJob: ...


def make_job(
    payload: PayloadLike,
    *,
    blocking: bool = False,
    context: Mapping[str, Any] = NO_CONTEXT,
    steps: Mapping[str, Any] = NO_CONTEXT,
    **fields: Any,
) -> MadeAsyncJob | MadeJob:
    """Return a job for a handler, without a server; its ``calls`` are what the handler asked of it.

    Its payload has been through BSON and back, as every job's has: a tuple is a list, a datetime is
    aware and has milliseconds. Made of an instance of a class, such as ``Email(to="ada")``, its
    ``data`` is an instance of that class again, as in a handler with ``payload=Email``. A call
    after the job has ended raises LeaseLost.

    Args:
        payload: as for ``put``, also with its ``priority``. A call of a task sets `task` and
            `queue` too.
        blocking: make a :class:`Job`, for a ``def``; default False: an :class:`AsyncJob`.
        context: what the lifespan of its worker would have opened, as ``job.context``; default
            empty.
        steps: what earlier attempts have stored, by the names of the steps; default none. A step
            that is not among them is run, and noted with its result.
        fields: what the handler may read of it: id, queue ("default"), task, priority (0), attempts
            (1), max_attempts (3), key, group, last_error, run_at (now), locked_by, locked_at,
            traceparent.

    Raises:
        PayloadError: the payload, or the result of a step, cannot be stored.
        ConfigurationError: there is no such field, or it cannot have that value.
    """
    content, priority = split_priority(payload)
    for name in fields.keys() - FIELDS.keys():
        close = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(FIELDS)}"
        raise ConfigurationError(f"a job has no field {name!r}: {hint}")
    if isinstance(payload, TaskCall):
        fields = {"task": payload.task, "queue": payload.queue, **fields}
    now = datetime.now(UTC)
    given = {
        "id": ObjectId(),
        "queue": "default",
        "priority": priority or 0,
        "attempts": 1,
        "max_attempts": 3,
        "run_at": now,
        "locked_by": "make_job",
        "locked_at": now,
        **{name: value for name, value in fields.items() if value is not None},
    }
    queue_name(given["queue"])
    document = {FIELDS[name]: value for name, value in given.items()}
    try:
        stored = bson.decode(bson.encode(document, codec_options=CODEC), CODEC)
    except ENCODING_ERRORS as error:
        raise ConfigurationError("a field of this job cannot be stored as BSON") from error
    stored["payload"] = bson.decode(encode_payload(content), CODEC)
    stored["steps"] = [
        {"name": name, "result": decode_result(bytes(encode_step(name, result).raw))}
        for name, result in steps.items()
    ]
    record = JobRecord.from_document(stored, max_attempts=3)
    for name, value in given.items():
        kept = getattr(record, name)
        if kept is None or (not isinstance(value, datetime) and kept != value):
            raise ConfigurationError(f"a job cannot have {shown(value)} as its {name}")
    if not isinstance(payload, Mapping):
        record.data = reader_of(type(payload))(record.data)
    recorder = Recorder(context)
    if blocking:
        job = MadeJob(record, recorder)
        job._recorder = recorder
        return job
    holder = AsyncRecorder(recorder)
    async_job = MadeAsyncJob(record, holder)
    async_job._recorder = holder.recorder
    return async_job
