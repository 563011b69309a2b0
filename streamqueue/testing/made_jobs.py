"""Jobs for handlers, made without a server: what they are asked to do is recorded."""

from __future__ import annotations

import difflib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import bson
from bson import ObjectId

from ..durations import shown
from ..errors import ConfigurationError, JobCancelled, LeaseLost
from ..options import queue_name
from ..protocol.document import CODEC, ENCODING_ERRORS, JobRecord
from ..protocol.payload import encode_payload, split_priority
from ..protocol.result import Result, decode_result
from ..queue.job import AsyncJob, Job

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bson.raw_bson import RawBSONDocument

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
        name: ``"complete"``, ``"error"``, ``"progress"`` or ``"release"``; ``"discard"`` or
            ``"cancel"`` where a ``with`` block of the job was left by such an exception.
        arguments: by their names; a result as it comes back from BSON.
    """

    name: str
    arguments: dict[str, Any]


class Recorder:
    """Holds a made job: does nothing but note what is asked for."""

    def __init__(self) -> None:
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

    def _check(self, record: JobRecord) -> None:
        if record.asked:
            raise JobCancelled(record.id)
        if self._ended:
            raise LeaseLost(record.id)


class AsyncRecorder:
    """The same for async jobs."""

    def __init__(self) -> None:
        self.recorder = Recorder()

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


class MadeJob(Job):
    """A :class:`Job` that :func:`make_job` has made."""

    __slots__ = ("_recorder",)
    _recorder: Recorder

    @property
    def calls(self) -> list[Call]:
        """What it was asked to do so far, in order."""
        return list(self._recorder.calls)

    def cancel(self) -> None:
        """Ask for it to be cancelled: ``job.cancelled`` is true from now on, and every call raises
        JobCancelled."""
        self._record.asked = True


class MadeAsyncJob(AsyncJob):
    """An :class:`AsyncJob` that :func:`make_job` has made."""

    __slots__ = ("_recorder",)
    _recorder: Recorder

    @property
    def calls(self) -> list[Call]:
        """What it was asked to do so far, in order."""
        return list(self._recorder.calls)

    def cancel(self) -> None:
        """Ask for it to be cancelled: ``job.cancelled`` is true from now on, and every call raises
        JobCancelled."""
        self._record.asked = True


@overload
def make_job(
    payload: Mapping[str, Any], *, blocking: Literal[False] = False, **fields: Any
) -> MadeAsyncJob: ...


@overload
def make_job(payload: Mapping[str, Any], *, blocking: Literal[True], **fields: Any) -> MadeJob: ...


def make_job(
    payload: Mapping[str, Any], *, blocking: bool = False, **fields: Any
) -> MadeAsyncJob | MadeJob:
    """Return a job for a handler, without a server; its ``calls`` are what the handler asked of it.

    Its payload has been through BSON and back, as every job's has: a tuple is a list, a datetime is
    aware and has milliseconds. A call after the job has ended raises LeaseLost.

    Args:
        payload: as for ``put``, also with its ``priority``.
        blocking: make a :class:`Job`, for a ``def``; default False: an :class:`AsyncJob`.
        fields: what the handler may read of it: id, queue ("default"), task, priority (0), attempts
            (1), max_attempts (3), key, group, last_error, run_at (now), locked_by, locked_at,
            traceparent.

    Raises:
        PayloadError: the payload cannot be stored.
        ConfigurationError: there is no such field, or it cannot have that value.
    """
    content, priority = split_priority(payload)
    for name in fields.keys() - FIELDS.keys():
        close = difflib.get_close_matches(name, FIELDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(FIELDS)}"
        raise ConfigurationError(f"a job has no field {name!r}: {hint}")
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
    record = JobRecord.from_document(stored, max_attempts=3)
    for name, value in given.items():
        kept = getattr(record, name)
        if kept is None or (not isinstance(value, datetime) and kept != value):
            raise ConfigurationError(f"a job cannot have {shown(value)} as its {name}")
    if blocking:
        recorder = Recorder()
        job = MadeJob(record, recorder)
        job._recorder = recorder
        return job
    holder = AsyncRecorder()
    async_job = MadeAsyncJob(record, holder)
    async_job._recorder = holder.recorder
    return async_job
