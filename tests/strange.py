"""Documents such as no driver would make: every BSON type in every field, byte by byte."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
from bson import CodecOptions, Decimal128, ObjectId
from bson.raw_bson import RawBSONDocument

Value = tuple[int, bytes]
"""A BSON type, and the bytes of a value of it."""

RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)


def text(value: bytes) -> bytes:
    """A BSON string, whether it is UTF-8 or not."""
    return struct.pack("<i", len(value) + 1) + value + b"\0"


def encoded(*fields: tuple[str, Value]) -> bytes:
    """A document of these fields, in this order, twice if they are there twice."""
    body = b"".join(
        bytes((kind,)) + name.encode() + b"\0" + value for name, (kind, value) in fields
    )
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def value_of(value: object) -> Value:
    """An ordinary value in the same form."""
    data = bson.encode({"": value})
    return data[4], data[6:-1]


def _binary(subtype: int, data: bytes) -> Value:
    return 5, struct.pack("<iB", len(data), subtype) + data


def _code_with_scope(code: bytes) -> Value:
    data = text(code) + encoded(("a", value_of(1)))
    return 15, struct.pack("<i", len(data) + 4) + data


def _nested(levels: int) -> Value:
    data = encoded()
    for _ in range(levels):
        data = encoded(("a", (3, data)))
    return 3, data


_OID = ObjectId("65f0c0ffee65f0c0ffee65f0").binary
VALUES: Mapping[str, Value] = {
    "double": (1, struct.pack("<d", 1.5)),
    "huge double": (1, struct.pack("<d", 1e308)),
    "NaN": (1, struct.pack("<d", float("nan"))),
    "infinity": (1, struct.pack("<d", float("-inf"))),
    "text": (2, text(b"text")),
    "empty text": (2, text(b"")),
    "text that is not UTF-8": (2, text(b"\xff\xfe")),
    "text with a NUL": (2, text(b"a\0b")),
    "text for a terminal": (2, text("\x1b]0;owned\x07\x1b[2J\r\n\u202e\x9b31m".encode())),
    "long text": (2, text(b"x" * 100_000)),
    "empty document": (3, encoded()),
    "document with a field twice": (3, encoded(("a", value_of(1)), ("a", value_of(2)))),
    "operator": (3, encoded(("$gt", (2, text(b""))))),
    "DBRef": (3, encoded(("$ref", (2, text(b"c"))), ("$id", (7, _OID)))),
    "DBRef of a document": (3, encoded(("$ref", (2, text(b"c"))), ("$id", (3, encoded())))),
    "no DBRef": (3, encoded(("$ref", value_of(1)), ("$id", (7, _OID)))),
    "deep document": _nested(150),
    "empty array": (4, encoded()),
    "array of text": (4, encoded(("0", (2, text(b"emails"))))),
    "binary": _binary(0, b"ab"),
    "old binary": _binary(2, struct.pack("<i", 2) + b"ab"),
    "old UUID": _binary(3, b"a" * 16),
    "UUID": _binary(4, b"a" * 16),
    "short UUID": _binary(4, b"ab"),
    "short old UUID": _binary(3, b"ab"),
    "encrypted": _binary(6, b"ab"),
    "vector": _binary(9, b"ab"),
    "user's binary": _binary(128, b"ab"),
    "undefined": (6, b""),
    "ObjectId": (7, _OID),
    "true": (8, b"\1"),
    "date": (9, struct.pack("<q", 1_600_000_000_000)),
    "last date": (9, struct.pack("<q", 2**63 - 1)),
    "first date": (9, struct.pack("<q", -(2**63))),
    "null": (10, b""),
    "regex": (11, b"a\0i\0"),
    "regex that is none": (11, b"\xff(\0zz\0"),
    "DBPointer": (12, text(b"c") + _OID),
    "DBPointer that is not UTF-8": (12, text(b"\xff") + _OID),
    "code": (13, text(b"f")),
    "code that is not UTF-8": (13, text(b"\xff")),
    "symbol": (14, text(b"symbol")),
    "symbol that is not UTF-8": (14, text(b"\xff")),
    "code with a scope": _code_with_scope(b"g"),
    "code with a scope, not UTF-8": _code_with_scope(b"\xff"),
    "int": (16, struct.pack("<i", -5)),
    "timestamp": (17, struct.pack("<II", 1, 1)),
    "zero timestamp": (17, b"\0" * 8),
    "long": (18, struct.pack("<q", 2**62)),
    "decimal": (19, Decimal128("7").bid),
    "decimal NaN": (19, Decimal128("NaN").bid),
    "largest decimal": (19, Decimal128("9.999999999999999999999999999999999E+6144").bid),
    "MinKey": (255, b""),
    "MaxKey": (127, b""),
}
"""At least one value of each type there is, those included that are of no use any more."""

STORED_AS_ID = [
    name
    for name, (kind, _) in VALUES.items()
    if kind not in {4, 6, 11} and name not in {"operator", "no DBRef"}
]
"""What a server takes as an ``_id``."""

PAST = datetime(2020, 1, 1, tzinfo=UTC)
STATES: Mapping[str, Mapping[str, Any]] = {
    "ready": {"priority": 0, "run_at": PAST},
    "scheduled": {"priority": 0, "run_at": PAST},
    "running": {"locked_until": PAST, "attempts": 1, "locked_by": "a consumer that died"},
    "dead": {"finished_at": PAST, "attempts": 3, "last_error": "boom"},
    "done": {"finished_at": PAST},
    "cancelled": {"finished_at": PAST},
}
FIELDS = [
    *("_id", "queue", "state", "priority", "run_at", "created_at", "payload", "attempts"),
    *("max_attempts", "allowed", "key", "traceparent", "locked_by", "locked_at", "locked_until"),
    *("lease", "last_error", "errors", "progress", "result", "finished_at", "v", "of nobody"),
]


def job(
    state: str, values: Mapping[str, Value], *, queue: str, twice: str | None = None
) -> RawBSONDocument:
    """A job with these values in place of its own; `twice`: with this field a second time."""
    own: dict[str, object] = {"queue": queue, "state": state, "payload": {"odd": True}}
    own |= STATES[state]
    fields = {**{name: value_of(value) for name, value in own.items()}, **values}
    fields = {"_id": fields.pop("_id", value_of(ObjectId())), **fields}
    listed = list(fields.items())
    if twice is not None:
        listed.append((twice, values.get(twice, VALUES["text"])))
    return RawBSONDocument(encoded(*listed), RAW)


def random_job(source: random.Random, queue: str) -> RawBSONDocument:
    """A job that is wrong in one to three fields, of any state."""
    state = source.choice(list(STATES))
    fields = source.sample(FIELDS, source.choice([1, 1, 2, 3]))
    values = {}
    for field in fields:
        names = STORED_AS_ID if field == "_id" else list(VALUES)
        kind, data = VALUES[source.choice(names)]
        if field == "_id":
            kind, data = _another(source, kind, data)
        values[field] = (kind, data)
    # Not a field that an update sets: of a document that has one twice a server of version 6.0.5
    # makes a change that it cannot write down, and ends.
    twice = source.choice(["queue", "payload", "of nobody"]) if source.random() < 0.1 else None
    return job(state, values, queue=queue, twice=twice)


def _another(source: random.Random, kind: int, data: bytes) -> Value:
    """A value of the same type that was not there before, where the type has many."""
    number = source.getrandbits(62)
    make: Mapping[int, Callable[[], bytes]] = {
        1: lambda: struct.pack("<d", source.random()),
        9: lambda: struct.pack("<q", number),
        17: lambda: struct.pack("<Q", number),
        18: lambda: struct.pack("<q", number),
        19: lambda: Decimal128(str(number)).bid,
    }
    if kind in {2, 13, 14}:
        return kind, text(data[4:-1] + str(number).encode())
    return kind, make[kind]() if kind in make else data


def later(seconds: float) -> Value:
    """A date that many seconds from now."""
    return value_of(datetime.now(UTC) + timedelta(seconds=seconds))
