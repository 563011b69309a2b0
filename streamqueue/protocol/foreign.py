"""What other programs stored: which documents no consumer can run, and how any of them is named.

Whoever may insert may insert anything. Most of it reads as absent (``document.JobRecord``); a few
kinds of ``_id`` and of queue no consumer can do with, and a job with one of those is buried when it
is first seen. For that its id must be said exactly as it is stored, which of some kinds the driver
cannot do once it has decoded them: text that is not UTF-8, a field twice, a DBPointer. So what may
be anybody's is read raw, and such an id stays as it came: a :class:`StrangeId`.
"""

from __future__ import annotations

import hashlib
import struct
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args
from uuid import UUID

import bson
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import UUID_SUBTYPE
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from .document import BARE_CODEC, CODEC, UUID_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bson.codec_options import CodecOptions

BuryReason = Literal["id", "queue", "payload", "undecodable", "refused", "damaged", "misfit"]
"""Why a job is buried by who was to run it; the metric's label."""
REASONS: tuple[BuryReason, ...] = get_args(BuryReason)

BAD_ID: BuryReason = "id"
BAD_QUEUE: BuryReason = "queue"
ODDITIES: Mapping[BuryReason, str] = {
    BAD_ID: "its _id is not a plain value of at most 1024 bytes",
    BAD_QUEUE: "its queue is not a name",
}
"""What is said of a job that is seen to be odd before it is claimed."""

MAX_ID_LENGTH = 1024
"""Characters or bytes of an id: as many as an index took when jobs had ids of their own. Claimed
ids are remembered by the thousand."""

PLAIN_IDS = frozenset(
    {
        *(ObjectId, str, int, Int64, float, UUID, bytes, Binary, datetime, DatetimeMS),
        *(Timestamp, MinKey, MaxKey, type(None)),
    }
)
"""What an id may be: what can be looked up, is written as it is read, and equals what the server
takes for equal. (Not bool: for Python ``True`` is 1.)"""
OTHER_IDS = frozenset({dict, Decimal128})
"""What may be an id besides, where it is decoded to what it was."""
_SIZED = (str, bytes)
_NUMBERS = frozenset({int, float, Int64, type(None)})
_PLACES = frozenset({Timestamp, type(None)})

RAW_CODEC: CodecOptions[RawBSONDocument] = BARE_CODEC.with_options(document_class=RawBSONDocument)


class StrangeId:
    """An ``_id`` that no job may have, as it is stored; it can be named to the server with
    :func:`among` only."""

    __slots__ = ("element",)

    def __init__(self, element: bytes) -> None:
        self.element = element  # its type, and its value in BSON

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StrangeId) and self.element == other.element

    def __hash__(self) -> int:
        return hash(self.element)

    def __repr__(self) -> str:
        # Short, though it may have megabytes; and without a character that is not ours.
        digest = hashlib.sha256(self.element).hexdigest()[:16]
        return f"<id of BSON type {self.element[0]}, {len(self.element) - 1} bytes, {digest}>"


def is_plain_id(job_id: object) -> bool:
    """Whether a job may have this as its id."""
    kind = type(job_id)
    if kind is ObjectId:
        return True
    if kind not in PLAIN_IDS or job_id != job_id:  # NaN, which no look-up finds
        return False
    if isinstance(job_id, _SIZED):
        # What is not UTF-8 was decoded to that character, and cannot be written back.
        return len(job_id) <= MAX_ID_LENGTH and not (isinstance(job_id, str) and "\ufffd" in job_id)
    return True


def oddness_of(job: Mapping[str, Any], *, any_id: bool = False) -> BuryReason | None:
    """Say what makes a document impossible to run here, whatever else is in it.

    With `any_id`, as in a shell, which remembers no ids, one may be whatever can be said again: see
    :func:`read`.
    """
    if not is_plain_id(job["_id"]) and (not any_id or type(job["_id"]) not in OTHER_IDS):
        return BAD_ID
    if type(job.get("queue")) is not str:  # a list with the name in it matches the name
        return BAD_QUEUE
    return None


def by_oddness(
    jobs: Iterable[Mapping[str, Any]], *, any_id: bool = False
) -> dict[BuryReason, list[Any]]:
    """Return the ids of jobs that are odd, by what makes them so."""
    found: dict[BuryReason, list[Any]] = {}
    for job in jobs:
        reason = oddness_of(job, any_id=any_id)
        if reason is not None:
            found.setdefault(reason, []).append(job["_id"])
    return found


def is_ordinary(head: Mapping[str, Any]) -> bool:
    """Whether what an event says of a ready job is all as it should be. Of any other job nothing is
    kept: it is looked at first, where it is found."""
    return (
        type(head.get("priority")) in _NUMBERS
        and type(head.get("seq")) in _PLACES
        and oddness_of(head) is None
    )


def with_plain_id(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the head of a job with its id as any other codec decodes it: a UUID and no binary."""
    job_id = job["_id"]
    if type(job_id) is Binary and job_id.subtype == UUID_SUBTYPE and len(job_id) == UUID_BYTES:
        return {**job, "_id": job_id.as_uuid()}
    return job


def is_unplaced(head: Mapping[str, Any]) -> bool:
    """Whether an ordinary one comes from a program that gave it no place in the order."""
    return head.get("priority") is None or head.get("seq") is None


def read(
    raw: RawBSONDocument, *, any_id: bool = False, codec: CodecOptions[Any] = BARE_CODEC
) -> dict[str, Any]:
    """Return a document of anybody's: every field that can be decoded, and the id as it is.

    With `any_id` an id of another kind is decoded too, if that loses nothing of it.
    """
    data = bytes(raw.raw)
    try:
        document: dict[str, Any] = bson.decode(data, codec)
    except BSONError:
        document = _what_can_be_read(data)
    job_id = document.get("_id")
    if type(job_id) is not ObjectId and not is_plain_id(job_id) and "_id" in document:
        strange = _strange_id(data)
        if not (any_id and type(job_id) in OTHER_IDS and strange == _strange_id(_encoded(job_id))):
            document["_id"] = strange
    return document


def _encoded(job_id: object) -> bytes:
    return bytes(bson.encode({"_id": job_id}, codec_options=CODEC))


def _what_can_be_read(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = {"_id": None}
    for name, kind, value in _elements(data):
        try:
            document |= bson.decode(_document(_element(kind, name, value)), BARE_CODEC)
        except BSONError:
            document.setdefault(name.decode("utf-8", "replace"), None)
    return document


def _strange_id(data: bytes) -> StrangeId:
    """Return the id of an encoded document that has one, as it is there."""
    return next(
        StrangeId(bytes((kind,)) + value) for name, kind, value in _elements(data) if name == b"_id"
    )


def among(ids: Iterable[Any]) -> RawBSONDocument:
    """Return the condition of a filter that these, of whatever kind, are the ids that are meant."""
    elements = []
    for number, job_id in enumerate(ids):
        if isinstance(job_id, StrangeId):
            element = job_id.element
        else:
            encoded = bson.encode({"": job_id}, codec_options=CODEC)
            element = encoded[4:5] + encoded[6:-1]
        elements.append(_element(element[0], str(number).encode(), element[1:]))
    array = _element(_ARRAY, b"$in", _document(*elements))
    return RawBSONDocument(_document(array), RAW_CODEC)


def literal(job_id: StrangeId) -> RawBSONDocument:
    """Return the expression that is this id, as it is stored."""
    return RawBSONDocument(
        _document(_element(job_id.element[0], b"$literal", job_id.element[1:])), RAW_CODEC
    )


# BSON, as far as it takes to find the end of an element


_ARRAY = 4
_INT32 = struct.Struct("<i")
_FIXED = {
    1: 8,
    6: 0,
    7: 12,
    8: 1,
    9: 8,
    10: 0,
    16: 4,
    17: 8,
    18: 8,
    19: 16,
    127: 0,
    255: 0,
}
_TEXT = {2, 13, 14}
_WITH_LENGTH = {3, 4, 15}  # the length is that of all of it
_BINARY, _REGEX, _POINTER = 5, 11, 12


def _elements(data: bytes) -> Iterable[tuple[bytes, int, bytes]]:
    """Return name, type and value of each element of an encoded document."""
    at = _INT32.size
    while (kind := data[at]) != 0:
        end = data.index(0, at + 1)
        name, at = data[at + 1 : end], end + 1
        size = _size(data, at, kind)
        yield name, kind, data[at : at + size]
        at += size


def _size(data: bytes, at: int, kind: int) -> int:
    length: int
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == _REGEX:
        return data.index(0, data.index(0, at) + 1) + 1 - at
    (length,) = _INT32.unpack_from(data, at)
    if kind in _TEXT:
        return _INT32.size + length
    if kind in _WITH_LENGTH:
        return length
    if kind == _BINARY:
        return _INT32.size + 1 + length
    if kind == _POINTER:
        return _INT32.size + length + 12
    raise BSONError(f"BSON has no type {kind}")


def _element(kind: int, name: bytes, value: bytes) -> bytes:
    return bytes((kind,)) + name + b"\0" + value


def _document(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return _INT32.pack(len(body) + 5) + body + b"\0"
