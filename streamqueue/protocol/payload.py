"""The payload: checked before any I/O, and encoded as it will be stored."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import bson
from bson import Code, ObjectId, Timestamp

from ..errors import PayloadError
from .document import CODEC, ENCODING_ERRORS
from .fitting.stored import stored_form

MAX_PAYLOAD_BYTES = 15 * 1024 * 1024
"""A document may have 16 MiB; the rest is room for what claims and errors add (a job that cannot
take them could never be claimed: error 17419)."""
SMALLEST_ELEMENT_BYTES = 3  # a type, a one-letter or index key and its end; null has no more
MAX_PAYLOAD_DEPTH = 100
"""The server stores 180 levels (error 15), and its change events add some of their own."""


def encode_payload(payload: object) -> bytes:
    """Return the payload as it will be stored, or raise PayloadError saying what is wrong with it.

    Checked before any I/O: a mapping with string keys and BSON values, or an instance of a class
    that is stored as one (``fitting``), at most 100 levels deep and 15 MiB large, that reads back
    as it was written. As in all of BSON, tuples come back as lists,
    datetimes as aware UTC with milliseconds, and subclasses as their base types.
    """
    flat = False
    if type(payload) is dict:
        # Most are flat: for those the one test replaces a walk that costs as much as all else.
        flat = _PLAIN_VALUES.issuperset(map(type, payload.values()))
    elif not isinstance(payload, Mapping):
        payload = _mapping_of(payload)
    try:
        plain = (flat and "$ref" not in payload) or check_values(payload)
        # Not at the top, where BSON would put a key named _id before the others.
        encoded = bson.encode({"p": payload}, codec_options=CODEC)[7:-1]
        if not plain:
            bson.decode(encoded, CODEC)  # what is stored must be readable: a UUID of 3 bytes is not
    except PayloadError:
        raise
    except ENCODING_ERRORS as error:
        raise PayloadError(f"this payload cannot be stored as BSON: {_culprit(payload)}") from error
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise PayloadError(
            f"this payload has {len(encoded):,} bytes as BSON; the limit is {MAX_PAYLOAD_BYTES:,}. "
            "Put large data elsewhere (GridFS, an object store) and its address in the job"
        )
    return encoded


def _mapping_of(payload: object) -> Mapping[str, Any]:
    """Return what an instance of a class is stored as, or raise PayloadError."""
    try:
        form = stored_form(payload)
    except RecursionError:
        raise PayloadError("this payload contains itself") from None
    if form is None:
        raise PayloadError(
            "a payload must be a mapping such as a dict, or an instance of a dataclass, a pydantic "
            f"model or a msgspec struct, not {type(payload).__name__}"
        )
    return form


def _culprit(payload: Mapping[Any, Any]) -> str:
    """Say which kind of value is to blame, without showing what is in the payload."""
    return culprit(payload)[0]


def culprit(whole: object) -> tuple[str, Place]:
    """Say which kind of value of a whole has no BSON form, and its place in it."""
    pending: list[tuple[Any, Place]] = [(whole, ())]
    while pending:
        value, place = pending.pop()
        try:
            if isinstance(value, Mapping):
                if any(not isinstance(key, str) for key in value):
                    return "it has a key that is not a string", place
                bson.encode(dict.fromkeys(value), codec_options=CODEC)  # NUL or broken text in keys
                pending += ((child, (*place, key)) for key, child in value.items())
            elif isinstance(value, (list, tuple)):
                pending += ((child, (*place, at)) for at, child in enumerate(value))
            else:
                bson.decode(bson.encode({"v": value}, codec_options=CODEC), CODEC)
        except OverflowError:
            return "it holds an int beyond 64 bits", place
        except UnicodeError:
            return "it holds text that is not valid Unicode", place
        except ENCODING_ERRORS:
            kind = type(value)
            if isinstance(value, Mapping):
                return "it has a key that is not valid in BSON", place
            return f"it holds a {kind.__module__}.{kind.__qualname__}"[:200], place
    return "a value in it has no BSON form", ()


Place = tuple[Any, ...]
"""Where a value is in another: the keys of the mappings, and the positions in the lists, on the way
to it."""
SHOWN_KEY, SHOWN_STEPS = 40, 8


def steps_to(place: Place) -> str:
    """Return a place in the words of Python, cut where it is deep, or a key long."""
    steps = [
        f"[{step}]" if isinstance(step, int) else f"[{str.__repr__(step[:SHOWN_KEY])}]"
        for step in place[:SHOWN_STEPS]
    ]
    return "".join(steps) + ("[…]" if len(place) > SHOWN_STEPS else "")


_PLAIN_VALUES = frozenset({str, int, float, bool, type(None), bytes, datetime, ObjectId})
_PLAIN_CONTAINERS = frozenset({dict, list, tuple})


def check_values(
    payload: Mapping[Any, Any], name: str = "payload", most: int = MAX_PAYLOAD_BYTES
) -> bool:
    """Refuse what BSON would accept and change, and nesting that would exhaust the stack.

    Args:
        name: what it is, for the error.
        most: the bytes that it may have.

    Returns whether it holds nothing but values that are read as they are written.
    """
    plain = type(payload) is dict
    pending: list[tuple[Any, int]] = [(payload, 1)]
    elements = 0
    while pending:
        value, depth = pending.pop()
        elements += len(value)
        if elements > most // SMALLEST_ELEMENT_BYTES:
            # Before encoding: a list that holds one list twice, and so on, doubles at each level.
            raise PayloadError(f"this {name} has more than {most:,} bytes as BSON")
        if depth > MAX_PAYLOAD_DEPTH:
            raise PayloadError(
                f"this {name} is nested more than {MAX_PAYLOAD_DEPTH} levels deep "
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
