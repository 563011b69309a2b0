"""The job document: its fields, states, indexes, validator, and how it is written and read.

Fields are only ever added, so old and new versions run side by side; a field that is absent has its
default, so any program may insert ``{queue, state: "ready", payload}`` and nothing else::

    _id, v, queue, state, priority, run_at, created_at, attempts, max_attempts, payload
    key, traceparent                                 while it was put with one
    locked_by, locked_at, locked_until, lease        while running (lease: the claim's token)
    last_error, errors, progress                     once there was one
    result, finished_at, expires_at                  once ended
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import bson
from bson import Binary, Code, ObjectId, Timestamp
from bson.binary import UUID_SUBTYPE, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import ASCENDING, DESCENDING, IndexModel

from .errors import PayloadError
from .options import MAX_PRIORITY

VERSION = 1
MAX_PAYLOAD_BYTES = 15 * 1024 * 1024
"""A document may have 16 MiB; the rest is room for what claims and errors add (a job that cannot
take them could never be claimed: error 17419)."""
UUID_BYTES = 16
SMALLEST_ELEMENT_BYTES = 3  # a type, a one-letter or index key and its end; null has no more
MAX_PAYLOAD_DEPTH = 100
"""The server stores 180 levels (error 15), and its change events add some of their own."""
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


class State(StrEnum):
    """Where a job is in its life.

    ``ready``, ``running`` and ``scheduled`` are the live ones, and sort after the ended ones: the
    index that keeps keys unique relies on it (a partial filter takes ``$gte``, but ``$in`` only
    from MongoDB 6.0 on).
    """

    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


CLAIM_ORDER = [("priority", DESCENDING), ("run_at", ASCENDING), ("_id", ASCENDING)]
"""Higher priority first, then first in, first out (``run_at`` is the server's time)."""

# Each index is partial on one state, so a job has an entry in one of them at a time. The state is
# in the keys although the filter fixes it: 6.0 cannot count or read ids from the index alone
# otherwise (SERVER-28889).
INDEXES = [
    IndexModel(
        [("queue", ASCENDING), ("state", ASCENDING), *CLAIM_ORDER],
        name="streamqueue_ready",
        partialFilterExpression={"state": "ready"},
    ),
    IndexModel(
        [("state", ASCENDING), ("locked_until", ASCENDING), ("queue", ASCENDING)],
        name="streamqueue_running",
        partialFilterExpression={"state": "running"},
    ),
    IndexModel(
        [("queue", ASCENDING), ("state", ASCENDING), ("run_at", ASCENDING)],
        name="streamqueue_scheduled",
        partialFilterExpression={"state": "scheduled"},
    ),
    IndexModel(
        [("queue", ASCENDING), ("state", ASCENDING), ("finished_at", ASCENDING)],
        name="streamqueue_dead",
        partialFilterExpression={"state": "dead"},
    ),
    IndexModel(
        [("queue", ASCENDING), ("key", ASCENDING)],
        name="streamqueue_key",
        unique=True,
        partialFilterExpression={"key": {"$exists": True}, "state": {"$gte": "ready"}},
    ),
]

VALIDATOR: dict[str, Any] = {
    "$jsonSchema": {
        "bsonType": "object",
        "required": ["queue", "state", "payload"],
        "properties": {
            "queue": {"bsonType": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"},
            "state": {"enum": [str(state) for state in State]},
            "payload": {"bsonType": "object"},
            "priority": {
                "bsonType": ["int", "long"],
                "minimum": -MAX_PRIORITY,
                "maximum": MAX_PRIORITY,
            },
            "run_at": {"bsonType": "date"},
            "created_at": {"bsonType": "date"},
            "attempts": {"bsonType": ["int", "long"], "minimum": 0},
            "max_attempts": {"bsonType": ["int", "long"], "minimum": 1},
            "key": {"bsonType": "string"},
            "locked_until": {"bsonType": "date"},
        },
    }
}


def encode_payload(payload: object) -> bytes:
    """Return the payload as it will be stored, or raise PayloadError saying what is wrong with it.

    Checked before any I/O: a mapping with string keys and BSON values, at most 100 levels deep and
    15 MiB large, that reads back as it was written. As in all of BSON, tuples come back as lists,
    datetimes as aware UTC with milliseconds, and subclasses as their base types.
    """
    flat = False
    if type(payload) is dict:
        # Most are flat: for those the one test replaces a walk that costs as much as all else.
        flat = _PLAIN_VALUES.issuperset(map(type, payload.values()))
    elif not isinstance(payload, Mapping):
        raise PayloadError(
            f"a payload must be a mapping such as a dict, not {type(payload).__name__}"
        )
    try:
        plain = (flat and "$ref" not in payload) or _check_values(payload)
        # Not at the top, where BSON would put a key named _id before the others.
        encoded = bson.encode({"p": payload}, codec_options=CODEC)[7:-1]
        if not plain:
            bson.decode(encoded, CODEC)  # what is stored must be readable: a UUID of 3 bytes is not
    except PayloadError:
        raise
    except _ENCODING_ERRORS as error:
        raise PayloadError(f"this payload cannot be stored as BSON: {_culprit(payload)}") from error
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise PayloadError(
            f"this payload has {len(encoded):,} bytes as BSON; the limit is {MAX_PAYLOAD_BYTES:,}. "
            "Put large data elsewhere (GridFS, an object store) and its address in the job"
        )
    return encoded


_ENCODING_ERRORS = (
    *(BSONError, OverflowError, UnicodeError, ValueError, TypeError, RecursionError),
    *(AttributeError, KeyError, IndexError),  # from a mapping that is not quite one
)


def _culprit(payload: Mapping[Any, Any]) -> str:
    """Say which kind of value is to blame, without showing what is in the payload."""
    pending: list[Any] = [payload]
    while pending:
        value = pending.pop()
        try:
            if isinstance(value, Mapping):
                if any(not isinstance(key, str) for key in value):
                    return "it has a key that is not a string"
                bson.encode(dict.fromkeys(value), codec_options=CODEC)  # NUL or broken text in keys
                pending += value.values()
            elif isinstance(value, (list, tuple)):
                pending += value
            else:
                bson.decode(bson.encode({"v": value}, codec_options=CODEC), CODEC)
        except OverflowError:
            return "it holds an int beyond 64 bits"
        except UnicodeError:
            return "it holds text that is not valid Unicode"
        except _ENCODING_ERRORS:
            kind = type(value)
            if isinstance(value, Mapping):
                return "it has a key that is not valid in BSON"
            return f"it holds a {kind.__module__}.{kind.__qualname__}"[:200]
    return "a value in it has no BSON form"


_PLAIN_VALUES = frozenset({str, int, float, bool, type(None), bytes, datetime, ObjectId})
_PLAIN_CONTAINERS = frozenset({dict, list, tuple})


def _check_values(payload: Mapping[Any, Any]) -> bool:
    """Refuse what BSON would accept and change, and nesting that would exhaust the stack.

    Returns whether it holds nothing but values that are read as they are written.
    """
    plain = type(payload) is dict
    pending: list[tuple[Any, int]] = [(payload, 1)]
    elements = 0
    while pending:
        value, depth = pending.pop()
        elements += len(value)
        if elements > MAX_PAYLOAD_BYTES // SMALLEST_ELEMENT_BYTES:
            # Before encoding: a list that holds one list twice, and so on, doubles at each level.
            raise PayloadError(f"this payload has more than {MAX_PAYLOAD_BYTES:,} bytes as BSON")
        if depth > MAX_PAYLOAD_DEPTH:
            raise PayloadError(
                f"this payload is nested more than {MAX_PAYLOAD_DEPTH} levels deep "
                "(or contains itself)"
            )
        if isinstance(value, Mapping):
            if "$ref" in value and "$id" in value:
                raise PayloadError(
                    "a mapping with both '$ref' and '$id' would come back as a DBRef: rename one"
                )
            children: Any = value.values()
        else:
            children = value
        for child in children:
            kind = type(child)
            if kind in _PLAIN_VALUES:
                continue
            if kind in _PLAIN_CONTAINERS:
                pending.append((child, depth + 1))
                continue
            plain = False
            if isinstance(child, (Mapping, list, tuple)):
                pending.append((child, depth + 1))
            elif isinstance(child, Code) and child.scope:
                pending.append((child.scope, depth + 1))
            elif isinstance(child, Timestamp) and child.time == 0 and child.inc == 0:
                raise PayloadError("Timestamp(0, 0) would be replaced by the server's clock")
    return plain


def split_priority(payload: object) -> tuple[object, int | None]:
    """Take the priority out of a payload that carries one, as mongoqueue allowed.

    Returns the payload without it (a copy; the caller's is not changed) and the priority, or the
    payload itself and None when it has no integer ``priority``.
    """
    if type(payload) is dict or isinstance(payload, Mapping):
        value = payload.get("priority")
        if isinstance(value, int) and not isinstance(value, bool):
            return {key: item for key, item in payload.items() if key != "priority"}, value
    return payload, None


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
    max_attempts: int,
    run_at: datetime | None = None,
    key: str | None = None,
    job_id: ObjectId | None = None,
    traceparent: str | None = None,
) -> RawBSONDocument:
    """Return a job as it is inserted: scheduled if it is to run later than now, else ready."""
    fields = encode_fields(queue, now, priority, max_attempts, run_at, key, traceparent)
    return join_document(job_id or ObjectId(), fields, payload)


def encode_fields(
    queue: str,
    now: datetime,
    priority: int,
    max_attempts: int,
    run_at: datetime | None = None,
    key: str | None = None,
    traceparent: str | None = None,
) -> bytes:
    """Return what stands between the id and the payload, which is the same for many jobs."""
    later = run_at is not None and run_at > now
    fields: dict[str, Any] = {
        "v": VERSION,
        "queue": queue,
        "state": "scheduled" if later else "ready",
        "priority": priority,
        "run_at": run_at if later else now,
        "created_at": now,
        "attempts": 0,
        "max_attempts": max_attempts,
    }
    if key is not None:
        fields["key"] = key
    if traceparent is not None:
        fields["traceparent"] = traceparent
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

    Damaged fields read as absent ones; ``damage`` says what makes the job impossible to run.
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

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, max_attempts: int) -> JobRecord:
        """Read a stored document; `max_attempts` is for one that does not say."""
        get = document.get
        payload = get("payload")
        token = get("lease")
        return cls(
            id=document["_id"],
            queue=_text(get("queue")) or "",
            data=Payload(payload) if isinstance(payload, dict) else Payload(),
            priority=_whole(get("priority"), 0),
            attempts=max(0, _whole(get("attempts"), 0)),
            max_attempts=max(0, _whole(get("max_attempts"), max_attempts)),
            locked_by=_text(get("locked_by")),
            locked_at=_date(get("locked_at")),
            last_error=_text(get("last_error")),
            key=_text(get("key")),
            run_at=_date(get("run_at")),
            traceparent=_text(get("traceparent")),
            token=token if isinstance(token, bytes) else b"",
            damage=None if isinstance(payload, dict) else "its payload is not a mapping",
        )


def _whole(value: object, default: int) -> int:
    if isinstance(value, float) and value.is_integer():  # mongosh writes 1 as a double
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _date(value: object) -> datetime | None:
    return value if isinstance(value, datetime) and value.tzinfo is not None else None


def cut_error(message: str) -> str:
    """Return an error text that can be stored: its end is kept, where a traceback says most."""
    message = message.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(message) <= MAX_ERROR_CHARACTERS:
        return message
    return "…" + message[1 - MAX_ERROR_CHARACTERS :]
