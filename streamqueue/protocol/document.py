"""The job document: its fields and states, and how it is written and read.

Fields are only ever added, so old and new versions run side by side; a field that is absent has its
default, so any program may insert ``{queue, state: "ready", payload}`` and nothing else::

    _id, v, queue, state, priority, seq, run_at, created_at, attempts, max_attempts, payload
    task, key, traceparent                           while it was put with one
    held_key                                         the key, exactly while the job holds it
    key_until                                        "start" if the claim is to let go of the key
    unique_until                                     until when the key is held at the least
    waits_for                                        while waiting: for what, and for whom
    misfit_at                                        since when it is left to others, until it fits
    locked_by, locked_at, locked_until, lease        while running (lease: the claim's token)
    allowed                                          while running: the attempts its claim goes by
    kept                                             while running: the keep its claim goes by
    keep                                             seconds, while it was put with one
    expires_at                                       while it was put with one
    awaited                                          true while somebody waits for its end
    after, if_parent_fails                           while it was put with them
    delay                                            seconds, while it waits for its parents
    needed                                           since when, while others come after it
    kept_until                                       its removed_at once it is not needed any more
    schedule, tick                                   while a schedule has put it
    group                                            while it was put with one
    slots                                            while running: one of each limit it is under
    cancel_requested_at                              since it was to be cancelled while it ran
    last_error, errors                               once there was one
    progress, note                                   of the present attempt, or the last one
    steps                                            once a step was done: name, at, result of each
    result, finished_at, removed_at                  once ended
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import bson
from bson import Binary, Code, ObjectId
from bson.binary import UUID_SUBTYPE, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.dbref import DBRef
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from bson.regex import Regex
from bson.timestamp import Timestamp

from ..durations import shown
from ..errors import ConfigurationError
from .steps import Steps
from .stored import date_of as _date
from .stored import list_in as _list
from .stored import seconds_in as _seconds
from .stored import text_in as _text
from .stored import texts_in as _texts
from .stored import whole_of as _whole

if TYPE_CHECKING:
    from datetime import datetime

    from .progress import Progress

VERSION = 1
UUID_BYTES = 16
AWAITED_SECONDS = 60.0
"""How long a job that somebody waited for stays when it has ended, at the least: long enough to be
read by whoever lost the stream meanwhile."""
MAX_ERRORS = 5
MAX_ERROR_CHARACTERS = 4096

# What another program stored must never stop the queue: a date beyond year 9999 or broken UTF-8 is
# read as well as it can be instead of failing the whole batch.
CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)


PLACE_CODEC: CodecOptions[dict[str, Any]] = CODEC.with_options(
    datetime_conversion=DatetimeConversion.DATETIME_MS
)
"""For ids and places in the claim order: dates are only compared, and as numbers they are decoded
in half the time."""

BARE_CODEC: CodecOptions[dict[str, Any]] = CODEC.with_options(
    uuid_representation=UuidRepresentation.UNSPECIFIED
)
"""For what was stored by anybody and is not handed on: it decodes whatever a server stores. (Only a
UUID that is not 16 bytes long makes the other one fail.)"""


def id_text(job_id: object) -> str:
    """Return an id for people to read, with whichever of the two codecs it was decoded."""
    if isinstance(job_id, Binary) and job_id.subtype == UUID_SUBTYPE and len(job_id) == UUID_BYTES:
        return str(job_id.as_uuid())
    return str(job_id)


def id_key(job_id: object) -> object:
    """Return what an id can be looked up by, the same however it was decoded, whatever it is."""
    if type(job_id) is ObjectId:
        return job_id
    return repr(bare_id(job_id))


def bare_id(job_id: Any) -> Any:
    """Return the same id as ``BARE_CODEC`` decodes it, which takes no other."""
    return Binary.from_uuid(job_id) if isinstance(job_id, UUID) else job_id


def ids_meant(value: object) -> list[Any]:
    """Return the ids that somebody may mean by this, or raise ConfigurationError if it is none.

    An id is whatever single value a job has as its ``_id``. A string may also be the text of an
    ObjectId; a job that has the string itself comes first.
    """
    if isinstance(value, str) and not isinstance(value, Code):
        return [value, ObjectId(value)] if ObjectId.is_valid(value) else [value]
    try:
        if isinstance(value, _NO_IDS):
            raise TypeError
        bson.encode({"": value}, codec_options=CODEC)
    except ENCODING_ERRORS:
        raise ConfigurationError(
            f"a job id is a single value, as job.id is, not {shown(value)}"
        ) from None
    return [value]


ENCODING_ERRORS = (
    *(BSONError, OverflowError, UnicodeError, ValueError, TypeError, RecursionError),
    *(AttributeError, KeyError, IndexError),  # from a mapping that is not quite one
    SystemError,  # pymongo before 4.20, of binary data of subtype 255
)

_NO_IDS = (type(None), Mapping, list, tuple, RawBSONDocument, re.Pattern, Regex, DBRef, Code)


def ids_of_text(text: str) -> list[Any]:
    """Return the ids that may be written like this where everything is text, as in a terminal."""
    ids = ids_meant(text)
    for kind in (int, UUID):
        try:
            ids += ids_meant(kind(text))
        except ValueError:  # also a number of more than 64 bits
            pass
    return ids


def object_id(value: object) -> ObjectId:
    """Return a job id, or raise ConfigurationError: nothing else may stand in a filter by id."""
    if isinstance(value, str) and ObjectId.is_valid(value):
        return ObjectId(value)
    if not isinstance(value, ObjectId):
        raise ConfigurationError(f"a job id is an ObjectId, not {shown(value)}")
    return value


class State(StrEnum):
    """Where a job is in its life.

    ``ready``, ``running``, ``scheduled`` and ``waiting`` are the live ones, and sort after those
    that have ended: the index that keeps keys unique relies on it, and so do those that count (a
    partial filter takes ``$gte``, but ``$in`` only from MongoDB 6.0 on).
    """

    SCHEDULED = "scheduled"
    READY = "ready"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


ENDED_STATES = frozenset({"done", "dead", "cancelled"})
"""Those of a job of which there is no more work, unless it is requeued."""

UNNUMBERED = Timestamp(0, 0)
"""What the server replaces by its logical clock where it is a field of an inserted document."""


class Payload(dict[str, Any]):
    """A job's payload; ``data["payload"]`` is the payload itself, as mongoqueue's documents had it
    (unless the payload has a key of that name)."""

    __slots__ = ()

    def __missing__(self, key: str) -> Any:
        if key == "payload":
            return self
        raise KeyError(key)


def new_document(
    payload: bytes,
    *,
    queue: str,
    now: datetime,
    priority: int,
    run_at: datetime | None = None,
    job_id: ObjectId | None = None,
    **settings: Any,
) -> RawBSONDocument:
    """Return a job as it is inserted: scheduled if it is to run later than now, else ready."""
    fields = encode_fields(queue, now, priority, run_at, **settings)
    return join_document(job_id or ObjectId(), fields, payload)


def fields_of(
    queue: str, now: datetime, priority: int, run_at: datetime | None = None, **settings: Any
) -> dict[str, Any]:
    """Return the fields that stand between the id and the payload.

    Args:
        settings: other fields, each of which is left out where it is None: ``max_attempts``, or
            ``keep``, is then for whoever claims the job to decide. With a ``group`` a job that is
            to run later has no place in the order yet: it joins its group when it is due.
    """
    later = run_at is not None and run_at > now
    waits = settings.get("waits_for") is not None  # it has its place when it waits no more
    fields: dict[str, Any] = {
        "v": VERSION,
        "queue": queue,
        "state": "waiting" if waits else "scheduled" if later else "ready",
        "priority": priority,
        **({} if waits else {"seq": UNNUMBERED}),
        "run_at": run_at if later else settings.get("tick") or now,
        "created_at": now,
        "attempts": 0,
    }
    fields |= {name: value for name, value in settings.items() if value is not None}
    if later and "group" in fields:
        fields.pop("seq", None)
    return fields


def encode_fields(
    queue: str, now: datetime, priority: int, run_at: datetime | None = None, **settings: Any
) -> bytes:
    """Return :func:`fields_of` these as they are stored: the same bytes for many jobs."""
    fields = fields_of(queue, now, priority, run_at, **settings)
    return bson.encode(fields, codec_options=CODEC)[4:-1]


def join_document(job_id: ObjectId, fields: bytes, payload: bytes) -> RawBSONDocument:
    """Return a document made of encoded parts.

    A BSON document is its length, its elements one after the other, and a zero byte; an element is
    its type, its name and its value. Joined, a thousand jobs are ready to be sent in half the time
    that encoding their fields again and again would take.
    """
    length = _LENGTH(len(fields) + len(payload) + _FIXED_BYTES)
    parts = (length, b"\x07_id\x00", job_id.binary, fields, b"\x03payload\x00", payload, b"\x00")
    return RawBSONDocument(b"".join(parts), _RAW_CODEC)


_LENGTH = struct.Struct("<i").pack
_FIXED_BYTES = 4 + 5 + 12 + 9 + 1  # the length, two types with names, the id, the end
_RAW_CODEC: CodecOptions[RawBSONDocument] = CODEC.with_options(document_class=RawBSONDocument)


@dataclass(slots=True)
class JobRecord:
    """A job as it was read, with its defaults filled in.

    Damaged fields read as absent ones; ``damage`` says what makes the job impossible to run, and
    ``progress`` is what its holder has said of that. It is ``asked`` for when somebody wants it to
    be cancelled; whoever holds it has no use in a look for that before ``look_at``. It ``lets_go``
    of its key when it is claimed, so that another one may wait for its end, or ``holds_on`` to that
    until a time, whatever becomes of it. Its ``steps`` are None while it has none.
    """

    id: ObjectId
    queue: str
    data: dict[str, Any]
    priority: int
    attempts: int
    max_attempts: int
    locked_by: str | None
    locked_at: datetime | None
    last_error: str | None
    key: str | None
    run_at: datetime | None
    traceparent: str | None
    token: bytes
    damage: str | None
    keep: float | None = None
    awaited: bool = False
    asked: bool = False
    look_at: float = -math.inf
    expires_at: datetime | None = None
    task: str | None = None
    lets_go: bool = False
    holds_on: bool = False
    progress: Progress | None = None
    steps: Steps | None = None
    tick: datetime | None = None
    group: str | None = None
    slots: Sequence[str] = ()
    after: Sequence[Any] = ()
    needed: bool = False

    @property
    def stays(self) -> bool:
        """Whether the job is not removed at its end, as far as its claim knew."""
        return bool(self.keep) or self.awaited

    def too_late(self, now: Callable[[], datetime]) -> bool:
        """Whether it is not to be begun any more; `now` is asked only if there is such a time."""
        return self.expires_at is not None and now() >= self.expires_at

    @property
    def unstored(self) -> dict[str, Any]:
        """The fields of its progress that are still to be stored, if there are any."""
        return {} if self.progress is None else self.progress.unstored

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, max_attempts: int) -> JobRecord:
        """Read a stored document; `max_attempts` is for one that does not say, and whose claim did
        not either."""
        get = document.get
        payload = get("payload")
        token = get("lease")
        return cls(
            id=document["_id"],
            queue=_text(get("queue")) or "",
            data=Payload(payload) if isinstance(payload, dict) else Payload(),
            priority=_whole(get("priority"), 0),
            attempts=max(0, _whole(get("attempts"), 0)),
            max_attempts=max(0, _whole(get("max_attempts"), _whole(get("allowed"), max_attempts))),
            locked_by=_text(get("locked_by")),
            locked_at=_date(get("locked_at")),
            last_error=_text(get("last_error")),
            key=_text(get("key")),
            run_at=_date(get("run_at")),
            traceparent=_text(get("traceparent")),
            token=token if isinstance(token, bytes) else b"",
            damage=None if isinstance(payload, dict) else "its payload is not a mapping",
            keep=_seconds(get("keep"), _seconds(get("kept"), None)),
            awaited=get("awaited") is True,
            asked=get("cancel_requested_at") is not None,
            expires_at=_date(get("expires_at")),
            steps=Steps.of_field(get("steps")),
            tick=_date(get("tick")),
            task=_text(get("task")),
            lets_go=get("key_until") == "start" and type(get("key")) is str,
            holds_on=get("unique_until") is not None,
            group=_text(get("group")),
            slots=_texts(get("slots")),
            after=_list(get("after")),
            needed=get("needed") is not None,
        )


def cut_error(message: str) -> str:
    """Return an error text that can be stored: its end is kept, where a traceback says most."""
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(message) <= MAX_ERROR_CHARACTERS:
        return message
    return "…" + message[1 - MAX_ERROR_CHARACTERS :]
