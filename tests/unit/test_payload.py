"""What a payload may be: refused before anything is sent, or back as it was."""

from __future__ import annotations

import array
import collections
import dataclasses
import decimal
import enum
import math
import re
import types
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any

import bson
import pymongo
import pytest
from bson import (
    Binary,
    Code,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import MongoClient

from streamqueue import MongoQueue, PayloadError
from streamqueue.protocol.document import CODEC
from streamqueue.protocol.payload import (
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_DEPTH,
    culprit,
    encode_payload,
)


def stored(payload: object) -> dict[str, Any]:
    """What a consumer gets of a payload."""
    return bson.decode(encode_payload(payload), codec_options=CODEC)


class Text(str):
    __slots__ = ()


class Count(int):
    pass


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    RED = "red"


class Plain(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int = 1


def broken_bson() -> RawBSONDocument:
    encoded = bytearray(bson.encode({"outer": {"key": "hello"}}))
    encoded[encoded.index(b"key")] = 0xFF
    return RawBSONDocument(bytes(encoded))


# What is refused.


@pytest.mark.parametrize(
    "payload",
    [None, 5, "text", b"bytes", [("a", 1)], ("a",), {"a"}, dict, print, ObjectId()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_a_mapping_is_refused(payload: object) -> None:
    with pytest.raises(PayloadError, match=r"must be a mapping such as a dict, or .*, not"):
        encode_payload(payload)


UNSTORABLE = {
    "an int above 64 bits": 2**63,
    "an int below 64 bits": -(2**63) - 1,
    "an int too large to be printed": 10**5000,
    "Decimal": decimal.Decimal("1.1"),
    "a set": {1},
    "a frozenset": frozenset({1}),
    "a bytearray": bytearray(b"x"),
    "a memoryview": memoryview(b"x"),
    "an array": array.array("i", [1]),
    "a deque": collections.deque([1]),
    "a UserList": collections.UserList([1]),
    "a date": date(2020, 1, 1),
    "a time": time(12),
    "a timedelta": timedelta(1),
    "an enum": Plain.RED,
    "a dataclass": Point(),
    "an object": object(),
    "a function": stored,
    "a class": dict,
    "a module": bson,
    "a complex number": 1j,
    "a generator": (number for number in [0]),
    "dict keys": {}.keys(),
    "a range": range(3),
    "a namespace": types.SimpleNamespace(a=1),
    "a lone surrogate": "\ud800",
    "a pattern with NUL": Regex("a\0b"),
    "a datetime before year 1 in UTC": datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
    "a datetime after year 9999 in UTC": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    "the Timestamp the server fills in": Timestamp(0, 0),
    "a mapping that would become a DBRef": {"$ref": "users", "$id": 1},
    "such a mapping with more in it": {"a": 1, "$id": None, "$ref": "", "$db": "d"},
    "a UUID of another length": Binary(b"short", 4),
    "broken BSON": broken_bson(),
}


@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE)
@pytest.mark.parametrize(
    "place",
    [lambda value: {"v": value}, lambda value: {"a": [{"b": (value,)}]}],
    ids=["at the top", "inside"],
)
def test_a_value_that_would_not_come_back_is_refused(
    value: object, place: Callable[[object], dict[str, Any]]
) -> None:
    with pytest.raises(PayloadError):
        encode_payload(place(value))


@pytest.mark.parametrize(
    "key",
    [1, 1.5, None, b"a", True, ("a",), ObjectId(b"a" * 12), Plain.RED, "a\0b", "\ud800"],
    ids=ascii,
)
@pytest.mark.parametrize(
    "place",
    [lambda key: {key: 1}, lambda key: {"a": [{"b": {key: 1}}]}],
    ids=["at the top", "inside"],
)
def test_a_key_that_bson_has_not_is_refused(
    key: object, place: Callable[[object], dict[str, Any]]
) -> None:
    with pytest.raises(PayloadError):
        encode_payload(place(key))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"$ref": "users", "$id": 1}, id="a reference as the payload"),
        pytest.param(broken_bson(), id="broken BSON as the payload"),
    ],
)
def test_a_mapping_that_cannot_be_a_payload_is_refused(payload: object) -> None:
    with pytest.raises(PayloadError):
        encode_payload(payload)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(Code("f", {"r": {"$ref": "users", "$id": 1}}), id="a reference"),
        pytest.param(Code("f", {"u": Binary(b"short", 4)}), id="a UUID of another length"),
    ],
)
def test_what_hides_in_the_scope_of_code_is_refused(value: Code) -> None:
    with pytest.raises(PayloadError):
        encode_payload({"v": value})


def self_containing_dict() -> dict[str, Any]:
    payload: dict[str, Any] = {}
    payload["self"] = payload
    return payload


def self_containing_list() -> dict[str, Any]:
    endless: list[Any] = []
    endless += [endless, endless]
    return {"v": endless}


@pytest.mark.parametrize("make", [self_containing_dict, self_containing_list])
def test_a_payload_that_contains_itself_is_refused(make: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(PayloadError, match="contains itself"):
        encode_payload(make())


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "dicts": lambda inner: {"k": inner},
    "lists": lambda inner: [inner],
    "tuples": lambda inner: (inner,),
    "user dicts": lambda inner: collections.UserDict(k=inner),
    "raw documents": lambda inner: RawBSONDocument(bson.encode({"k": inner})),
}


def nested(levels: int, wrap: Callable[[Any], Any]) -> dict[str, Any]:
    """A payload of that many mappings and lists, itself included."""
    inner: Any = {}
    for _ in range(levels - 2):
        inner = wrap(inner)
    return {"v": inner}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_payload_at_the_depth_limit_comes_back(wrap: Callable[[Any], Any]) -> None:
    payload = nested(MAX_PAYLOAD_DEPTH, wrap)

    depth = 1
    value: Any = stored(payload)
    while value := next(iter(value.values() if isinstance(value, dict) else value), None):
        depth += 1

    assert depth == MAX_PAYLOAD_DEPTH - 1  # the innermost is empty, so it ends the loop


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("levels", [MAX_PAYLOAD_DEPTH + 1, 190])
def test_a_payload_beyond_the_depth_limit_is_refused(
    levels: int, wrap: Callable[[Any], Any]
) -> None:
    with pytest.raises(PayloadError, match="nested more than 100 levels"):
        encode_payload(nested(levels, wrap))


def test_a_payload_a_hundred_thousand_lists_deep_is_refused() -> None:
    payload = nested(100_000, WRAPPERS["lists"])

    with pytest.raises(PayloadError, match="nested more than 100 levels"):
        encode_payload(payload)


def sized(size: int) -> dict[str, bytes]:
    """A payload of exactly so many bytes."""
    return {"x": b"\0" * (size - len(bson.encode({"x": b""})))}


def test_a_payload_at_the_size_limit_is_accepted() -> None:
    assert len(encode_payload(sized(MAX_PAYLOAD_BYTES))) == MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("size", [MAX_PAYLOAD_BYTES + 1, 17 * 1024 * 1024])
def test_a_payload_over_the_size_limit_is_refused_with_both_numbers(size: int) -> None:
    with pytest.raises(PayloadError, match=f"{size:,} bytes as BSON; the limit is 15,728,640"):
        encode_payload(sized(size))


def test_where_each_value_alone_has_a_form_the_whole_is_to_blame() -> None:
    """As of two that are together larger than any document may be."""
    assert culprit({"a": [1, {"b": "x"}]}) == ("a value in it has no BSON form", ())


def test_a_refusal_is_one_short_line() -> None:
    with pytest.raises(PayloadError) as caught:
        encode_payload({"v": {"\n" * 1000}})

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_refusal_does_not_show_what_is_in_the_payload() -> None:
    with pytest.raises(PayloadError) as caught:
        encode_payload({"card": {"4000-0012-3456-7899"}})

    assert "4000-0012-3456-7899" not in str(caught.value)


def test_a_bad_payload_is_refused_without_a_server() -> None:
    with MongoClient("mongodb://nowhere.invalid/?replicaSet=rs0", connect=False) as client:
        queue = MongoQueue(client.db.jobs)

        with pytest.raises(PayloadError):
            queue.put({"v": {1}})


def test_one_bad_payload_of_many_is_refused_without_a_server() -> None:
    with MongoClient("mongodb://nowhere.invalid/?replicaSet=rs0", connect=False) as client:
        queue = MongoQueue(client.db.jobs)

        with pytest.raises(PayloadError):
            queue.put_many([{"v": 1}, {"v": {1}}])


# What comes back.

UNCHANGED: dict[str, Any] = {
    "nothing": None,
    "a bool": True,
    "zero": 0,
    "the largest int": 2**63 - 1,
    "the smallest int": -(2**63),
    "Int64": Int64(5),
    "a float": 1.5,
    "infinity": math.inf,
    "the smallest float": 5e-324,
    "text": "grüße 🎈",
    "NUL in text": "a\0b",
    "a direction mark": "\u202e",
    "text like an operator": "$$ROOT",
    "bytes": b"\x00\xff",
    "ObjectId": ObjectId(),
    "UUID": uuid.uuid4(),
    "Decimal128": Decimal128("1.10"),
    "Regex": Regex("^a", "i"),
    "Timestamp": Timestamp(1, 0),
    "an empty Timestamp with a count": Timestamp(0, 1),
    "MinKey": MinKey(),
    "MaxKey": MaxKey(),
    "Code": Code("f"),
    "Code with a scope": Code("f", {"a": 1}),
    "DBRef": DBRef("users", 1),
    "user-defined bytes": Binary(b"x", 128),
    "a UUID in the old format": Binary(b"x" * 16, 3),
    "a date beyond year 9999": DatetimeMS(2**60),
    "an empty mapping": {},
    "an empty list": [],
    "an aware datetime": datetime(2020, 1, 1, 12, tzinfo=UTC),
    "half a reference": {"$ref": "users"},
    "the other half": {"$id": 1},
}


@pytest.mark.parametrize("value", UNCHANGED.values(), ids=UNCHANGED)
def test_a_bson_value_comes_back_as_it_was(value: Any) -> None:
    assert stored({"v": value}) == {"v": value}


def test_not_a_number_comes_back() -> None:
    assert math.isnan(stored({"v": math.nan})["v"])


@pytest.mark.parametrize(
    "payload",
    [
        {"$a": 1},
        {"a.b": 1},
        {"": 1},
        {"$set": {"state": "dead"}},
        {"_id": 1},
        {"$ref": 1},
        {"a.b": {"$c": {"": {"d.e.f": []}}}},
        {"payload": {"payload": 1}},
        {"lease": 1, "state": "dead", "queue": "x"},
        {},
    ],
    ids=str,
)
def test_any_key_comes_back(payload: dict[str, Any]) -> None:
    assert stored(payload) == payload


CONVERTED: dict[str, tuple[Any, Any]] = {
    "a tuple": ((1, (2,)), [1, [2]]),
    "an OrderedDict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "a defaultdict": (collections.defaultdict(int, a=1), {"a": 1}),
    "a UserDict": (collections.UserDict(a=1), {"a": 1}),
    "a read-only mapping": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "a raw document": (RawBSONDocument(bson.encode({"a": 1})), {"a": 1}),
    "a str subclass": (Text("a"), "a"),
    "an int subclass": (Count(5), 5),
    "an int enum": (Number.ONE, 1),
    "a str enum": (Word.RED, "red"),
    "a compiled pattern": (re.compile("a", re.IGNORECASE), Regex("a", re.IGNORECASE | re.UNICODE)),
    "bytes as Binary": (Binary(b"x", 0), b"x"),
    "a naive datetime, taken for UTC": (
        datetime(2020, 1, 1, 12, 0, 0, 999_999),
        datetime(2020, 1, 1, 12, 0, 0, 999_000, UTC),
    ),
    "a datetime elsewhere": (
        datetime(2020, 1, 1, 12, tzinfo=timezone(timedelta(hours=5))),
        datetime(2020, 1, 1, 7, tzinfo=UTC),
    ),
    "microseconds before 1970": (
        datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC),
    ),
}


@pytest.mark.parametrize(("value", "expected"), CONVERTED.values(), ids=CONVERTED)
def test_a_value_bson_has_no_type_for_comes_back_as_documented(value: Any, expected: Any) -> None:
    back = stored({"v": value})["v"]

    assert back == expected
    assert type(back) is type(expected)


def test_a_datetime_comes_back_aware() -> None:
    back = stored({"v": datetime(2020, 1, 1)})["v"]

    assert back.utcoffset() == timedelta(0)


def test_keys_keep_their_order() -> None:
    payload = {"z": 1, "_id": 2, "a": 3}

    assert list(stored(payload)) == ["z", "_id", "a"]


# The same, for whatever Hypothesis thinks of.

HIGHEST_SUBTYPE = 255 if pymongo.version_tuple >= (4, 20) else 254  # older ones cannot encode it

MOMENTS = st.datetimes(  # pyright: ignore[reportCallIssue]
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 1, 1),
    timezones=st.sampled_from(  # pyright: ignore[reportArgumentType]
        [None, UTC, timezone(timedelta(hours=-11, minutes=-30))]
    ),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.uuids()
    | MOMENTS
    | st.binary(min_size=12, max_size=12).map(ObjectId)
    | st.builds(Binary, st.binary(), st.sampled_from([0, 2, 5, 9, 128, HIGHEST_SUBTYPE]))
    | st.builds(Timestamp, st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1))
    | st.decimals(places=3, min_value=-1000, max_value=1000).map(Decimal128)
    | st.sampled_from([MinKey(), MaxKey(), Regex("a", "im"), Code("f"), DatetimeMS(2**55)])
)
# Not "$id": with "$ref" beside it, it is refused.
# Not "$id": together with "$ref" it is refused.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
KEYS = TEXTS.filter(lambda key: key != "$id") | st.sampled_from(
    ["$a", "a.b", "$set", "$ref", "_id", "", "priority", "payload"]
)


def trees(scalars: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> Any:
    """Payloads with these values and keys."""
    values = st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )
    return st.dictionaries(keys, values, max_size=5)


UNRULY_SCALARS = (
    SCALARS
    | st.integers()
    | st.text(st.characters())
    | st.decimals()
    | st.dates()
    | st.timedeltas()
    | st.frozensets(st.integers(), max_size=2)
    | st.datetimes(timezones=st.just(timezone(timedelta(hours=14))))
    | st.builds(Binary, st.binary(max_size=20), st.integers(0, 255))
    | st.builds(Timestamp, st.integers(0, 1), st.integers(0, 1))
    | st.builds(Regex, st.text(st.sampled_from("a.\0"), max_size=3))
    | st.sampled_from([object(), print, Plain.RED, Word.RED, bytearray(b"a"), range(2), 1j])
)
UNRULY_KEYS = KEYS | st.sampled_from(
    ["$ref", "$id", "$db", "\0", "\ud800", 1, None, b"a", Word.RED]
)


def as_documented(value: Any) -> Any:
    """A value after it was stored, by the words of ``encode_payload``."""
    match value:
        case Mapping():
            return {str(key): as_documented(inner) for key, inner in value.items()}
        case list() | tuple():
            return [as_documented(inner) for inner in value]
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).replace(microsecond=value.microsecond // 1000 * 1000)
        case Binary() if value.subtype == 0:
            return bytes(value)
        case Binary() if value.subtype == 4:
            return value.as_uuid()
        case _:
            return value


def alike(one: Any, other: Any) -> bool:
    """Equality that takes NaN for NaN, and a bool for no number."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(alike(one[key], other[key]) for key in one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


@given(trees(SCALARS, KEYS))
@settings(max_examples=100)
def test_every_payload_of_bson_values_comes_back(payload: dict[str, Any]) -> None:
    assert alike(as_documented(payload), stored(payload))


@given(trees(UNRULY_SCALARS, UNRULY_KEYS))
@settings(max_examples=200)
def test_every_payload_is_refused_or_comes_back(payload: dict[Any, Any]) -> None:
    try:
        encoded = encode_payload(payload)
    except PayloadError:
        return

    assert alike(as_documented(payload), bson.decode(encoded, codec_options=CODEC))


@given(trees(UNRULY_SCALARS, UNRULY_KEYS))
@settings(max_examples=60)
def test_the_callers_dict_is_never_changed(payload: dict[Any, Any]) -> None:
    before = repr(payload)

    try:
        encode_payload(payload)
    except PayloadError:
        pass

    assert repr(payload) == before


@pytest.mark.slow
def test_a_list_that_holds_another_twice_and_so_on_is_refused_in_time() -> None:
    value: list[Any] = []
    for _ in range(40):  # 2 ** 40 elements, if anybody were to visit them
        value = [value, value]

    with pytest.raises(PayloadError, match="more than"):
        encode_payload({"value": value})
