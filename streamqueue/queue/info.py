"""JobInfo: a job as it was found, whether anybody holds it or it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..driver import RawReply
from ..errors import JobCancelled, JobFailed
from ..protocol.document import CODEC, ENDED_STATES, Payload
from ..protocol.foreign import read
from ..protocol.operations import LISTED
from ..protocol.stored import date_of, text_in, whole_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from bson.codec_options import CodecOptions
    from bson.raw_bson import RawBSONDocument

RAW_JOBS: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawReply)
"""For what :meth:`JobInfo.from_raw` reads."""


class PastError(NamedTuple):
    """An attempt that failed.

    Attributes:
        at: when, by the server's clock (aware, UTC).
        attempt: the number of the attempt.
        message: the message or traceback, its last 4096 characters.
    """

    at: datetime | None
    attempt: int | None
    message: str


class PastStep(NamedTuple):
    """A step whose result is stored.

    Attributes:
        name: its name, whether or not the present code has such a step.
        at: when it was stored, by the server's clock (aware, UTC).
    """

    name: str
    at: datetime | None


@dataclass(frozen=True, slots=True, repr=False)
class JobInfo:
    """A job as it was when it was looked at. Reading it sends nothing.

    What another program has stored and is no such value reads as absent. Times are aware, in UTC,
    and by the server's clock.

    Attributes:
        id: the job's id, as ``put`` returned it.
        queue: the name of its queue.
        task: the name of the task that it is a call of, or None.
        state: ``"scheduled"``, ``"ready"``, ``"waiting"``, ``"running"``, ``"done"``, ``"dead"`` or
            ``"cancelled"``.
        data: the payload; None where it was left out (``list`` without ``data=True``) or is none.
        priority: a higher one runs first.
        attempts: how often it was claimed, a claim that is under way included.
        max_attempts: how often it may be claimed before it is dead; None until a claim says, if the
            put did not.
        key: what makes it unique, or None.
        group: what it belongs to, or None.
        progress: the last count noted by the present attempt, or the last one of a job that has
            ended.
        note: what was noted with it.
        result: what a done job returned; None also where it was left out.
        created_at: when it was put.
        run_at: when it was to run, or became ready.
        started_at: when the present attempt was claimed; None while it does not run.
        finished_at: when it ended.
        locked_by: the name of the consumer that holds it. For people: it proves nothing.
        locked_until: when its lease ends, unless that is renewed.
        last_error: the message or traceback of the last attempt that failed.
        errors: the last few of them (:class:`PastError`), the latest last.
        steps: the steps that are done (:class:`PastStep`), the latest last; without their results.
        waits_for: what a ``waiting`` job waits for, and whom: ``{"key": <id of a job>}`` for the
            running job of its key, by which it could not be claimed; ``{"misfit": <field and what
            is wrong with it>}`` or ``{"task": <name>}`` for a worker that can run it.
    """

    id: Any
    queue: str
    task: str | None
    state: str
    data: dict[str, Any] | None = field(hash=False)
    priority: int
    attempts: int
    max_attempts: int | None
    key: str | None
    group: str | None
    progress: int | None
    note: str | None
    result: Any = field(hash=False)
    created_at: datetime | None
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    locked_by: str | None
    locked_until: datetime | None
    last_error: str | None
    errors: tuple[PastError, ...]
    steps: tuple[PastStep, ...]
    waits_for: Mapping[str, Any] | None = field(hash=False)
    _place: tuple[Any, ...] | None = field(compare=False)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> JobInfo:
        """Read a stored document, or a part of one."""
        get = document.get
        payload = get("payload")
        state = text_in(get("state")) or ""
        order = LISTED.get(state)
        attempts, allowed = whole_of(get("attempts"), 0), whole_of(get("allowed"), None)
        errors, steps = get("errors"), get("steps")
        return cls(
            id=document["_id"],
            queue=text_in(get("queue")) or "",
            task=text_in(get("task")),
            state=state,
            data=Payload(payload) if isinstance(payload, dict) else None,
            priority=whole_of(get("priority"), 0),
            attempts=max(0, attempts),
            max_attempts=whole_of(get("max_attempts"), allowed),
            key=text_in(get("key")),
            group=text_in(get("group")),
            progress=whole_of(get("progress"), None),
            note=text_in(get("note")),
            result=get("result"),
            created_at=date_of(get("created_at")),
            run_at=date_of(get("run_at")),
            started_at=date_of(get("locked_at")) if state == "running" else None,
            finished_at=date_of(get("finished_at")),
            locked_by=text_in(get("locked_by")),
            locked_until=date_of(get("locked_until")),
            last_error=text_in(get("last_error")),
            errors=tuple(_errors(errors)) if isinstance(errors, list) else (),
            steps=tuple(_steps(steps)) if isinstance(steps, list) else (),
            waits_for=_waits_for(get("waits_for")) if state == "waiting" else None,
            _place=order and tuple(get(name) for name, _ in order.keys),
        )

    @classmethod
    def from_raw(cls, raw: RawBSONDocument) -> JobInfo:
        """Read a document of anybody's, which may hold what cannot be decoded."""
        return cls.from_document(read(raw, any_id=True, codec=CODEC))

    @property
    def ended(self) -> bool:
        """Whether it is done, dead or cancelled."""
        return self.state in ENDED_STATES

    def __repr__(self) -> str:
        # No payload and no result: reprs end up in logs.
        most = "" if self.max_attempts is None else f" of {self.max_attempts}"
        attempt = f"attempt {self.attempts}{most}"
        return f"<JobInfo {self.id} of queue {self.queue!r}: {self.state}, {attempt}>"


def _waits_for(stored: object) -> Mapping[str, Any] | None:
    return stored if isinstance(stored, dict) and stored else None


def _errors(entries: list[Any]) -> list[PastError]:
    return [
        PastError(date_of(entry.get("at")), whole_of(entry.get("attempt"), None), message)
        for entry in entries
        if isinstance(entry, dict) and (message := text_in(entry.get("message"))) is not None
    ]


def _steps(entries: list[Any]) -> list[PastStep]:
    return [
        PastStep(name, date_of(entry.get("at")))
        for entry in entries
        if isinstance(entry, dict) and (name := text_in(entry.get("name"))) is not None
    ]


def value_of(info: JobInfo) -> Any:
    """Return the result of a job that has ended, or raise why it has none."""
    if info.state == "dead":
        raise JobFailed(info)
    if info.state == "cancelled":
        raise JobCancelled(info.id)
    return info.result
