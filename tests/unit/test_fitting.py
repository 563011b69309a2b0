"""Payloads with types: what is made of a stored one, and what is said of one that does not fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypedDict
from uuid import UUID, uuid4

import bson
import msgspec
import pydantic
import pytest
from bson import Decimal128, ObjectId
from typing_extensions import TypeAliasType

from streamqueue.errors import ConfigurationError, PayloadError
from streamqueue.protocol.document import CODEC, Payload
from streamqueue.protocol.fitting.kinds import Misfit
from streamqueue.protocol.fitting.readers import reader_of
from streamqueue.protocol.fitting.values import NUMBERS, exactly, union
from streamqueue.protocol.payload import encode_payload
from streamqueue.protocol.put import NewJob, check_put

SECRET = "4111-1111"
NOW = datetime(2026, 12, 1, 10, 30, tzinfo=UTC)
UserId = NewType("UserId", int)


class Colour(Enum):
    RED = "red"


@dataclass
class Address:
    city: str
    before: Address | None = None


@dataclass
class Order:
    to: Address
    lines: list[Address] = field(default_factory=list)
    count: int = 1
    price: float | None = None
    colour: Colour | None = None
    ref: UUID | None = None
    of: ObjectId | None = None
    exact: Decimal128 | None = None
    total: Decimal | None = None
    at: Optional[datetime] = None  # noqa: UP045 (written so, as many do)
    by_name: dict[str, int] = field(default_factory=dict)
    pair: tuple[int, str] | None = None
    tags: frozenset[str] = frozenset()
    kind: Literal["a", "b"] = "a"
    user: UserId | None = None
    note: Annotated[str | None, "for people"] = None
    any: Any = None


Cities = TypeAliasType("Cities", list[str])


@dataclass
class Tour:
    cities: Cities = field(default_factory=list)
    stops: tuple[int, ...] = ()
    bare: tuple = ()  # type: ignore[type-arg]
    lengths: int | str | None = None
    ends: tuple[str, str] | None = None


class Part(TypedDict):
    city: str
    zip: NotRequired[str]


class StructAddress(msgspec.Struct):
    city: str


class StructOrder(msgspec.Struct, rename="camel"):
    to: StructAddress
    of_whom: ObjectId | None = None
    colour: Colour | None = None
    count: int = 1
    at: datetime | None = None
    exact: Decimal128 | None = None
    seen: datetime | msgspec.UnsetType = msgspec.UNSET


class StructAny(msgspec.Struct):
    any: Any


class ModelAny(pydantic.BaseModel):
    any: Any


class ModelAddress(pydantic.BaseModel):
    city: str


class ModelOrder(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    to: ModelAddress
    of: ObjectId | None = None
    colour: Colour | None = None
    count: int = 1
    sender: str = pydantic.Field("", alias="from")
    by_name: dict[str, int] = {}
    lines: list[ModelAddress] = []
    kind: Literal["a", "b"] = "a"


class ModelTree(pydantic.BaseModel):
    name: str
    below: list[ModelTree] = []
    label: list[Annotated[str, {"for": "people"}]] = []


@dataclass
class Parcel:
    to: ModelAddress
    by: StructAddress


@dataclass
class Checked:
    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"{self.count} is below zero")


def stored(payload: Any) -> Payload:
    """Return a payload as a claim returns it."""
    return Payload(bson.decode(encode_payload(payload), CODEC))


def read(kind: Any, payload: Any) -> Any:
    return reader_of(kind)(stored(payload))


def misfit(kind: Any, payload: Any) -> str:
    with pytest.raises(Misfit) as caught:
        read(kind, payload)
    assert SECRET not in str(caught.value)
    return str(caught.value)


ORDERS = [
    Order(
        to=Address("Rome", before=Address("Bern")),
        lines=[Address("Oslo")],
        count=2**40,
        price=1.5,
        colour=Colour.RED,
        ref=uuid4(),
        of=ObjectId(),
        exact=Decimal128("1.10"),
        total=Decimal("2.20"),
        at=NOW,
        by_name={"a": 1},
        pair=(1, "x"),
        tags=frozenset({"t"}),
        kind="b",
        user=UserId(7),
        note="n",
        any=[{"x": 1}],
    ),
    StructOrder(StructAddress("Rome"), ObjectId(), Colour.RED, 2**40, NOW, Decimal128("1")),
    ModelOrder.model_validate(
        {
            "to": ModelAddress(city="Rome"),
            "of": ObjectId(),
            "colour": Colour.RED,
            "from": "me",
            "lines": [ModelAddress(city="Oslo")],
            "kind": "b",
        }
    ),
    Parcel(ModelAddress(city="Rome"), StructAddress("Bern")),
    Tour(cities=["Rome"], stops=(1, 2), bare=(1, "x"), lengths="long", ends=("Rome", "Bern")),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_what_is_put_comes_back_as_it_was(order: Any) -> None:
    assert read(type(order), order) == order


@pytest.mark.parametrize("kind", [StructAny, ModelAny], ids=lambda kind: kind.__name__)
def test_a_long_is_a_plain_int_for_a_library_wherever_it_stands(kind: Any) -> None:
    one, (inner,), named = read(kind, {"any": [2**40, [2**41], {"n": 2**42}]}).any

    assert (one, inner, named["n"]) == (2**40, 2**41, 2**42)
    assert {type(one), type(inner), type(named["n"])} == {int}


def test_a_field_that_is_not_set_is_not_stored() -> None:
    unset = StructOrder(StructAddress("Rome"))

    assert "seen" not in stored(unset)
    assert stored(StructOrder(StructAddress("Rome"), seen=NOW))["seen"] == NOW


def test_a_typed_dict_keeps_what_it_does_not_know() -> None:
    assert read(Part, {"city": "Rome", "more": 1}) == {"city": "Rome", "more": 1}


def test_a_dataclass_passes_over_what_it_does_not_know() -> None:
    assert read(Address, {"city": "Rome", "more": 1}) == Address("Rome")


def test_what_is_absent_has_its_default() -> None:
    assert read(Order, {"to": {"city": "Rome"}}) == Order(Address("Rome"))


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    price = read(Order, {"to": {"city": "Rome"}, "price": 2}).price
    assert (price, type(price)) == (2.0, float)


TO = {"city": "Rome"}


@pytest.mark.parametrize(
    ("kind", "payload", "said"),
    [
        (Order, {}, "to: missing, expected Address"),
        (Order, {"to": SECRET}, "to: expected a mapping, found str"),
        (Order, {"to": {}}, "to.city: missing, expected str"),
        (Order, {"to": TO, "lines": [TO, {"city": 1}]}, "lines[1].city: expected str, found int"),
        (Order, {"to": TO, "count": True}, "count: expected int, found bool"),
        (Order, {"to": TO, "price": SECRET}, "price: expected float, found str"),
        (Order, {"to": TO, "colour": SECRET}, "colour: expected a value of Colour"),
        (Order, {"to": TO, "by_name": {SECRET: "x"}}, "by_name[…]: expected int, found str"),
        (Order, {"to": TO, "pair": [1]}, "pair: expected 2 items, found 1"),
        (Order, {"to": TO, "kind": SECRET}, "kind: expected Literal['a', 'b']"),
        (Order, {"to": {"city": "x", "before": {}}}, "to.before.city: missing, expected str"),
        (Order, {"to": TO, "total": SECRET}, "total: expected Decimal, found str"),
        (Order, {"to": TO, "lines": SECRET}, "lines: expected list, found str"),
        (Order, {"to": TO, "pair": SECRET}, "pair: expected list, found str"),
        (Order, {"to": TO, "by_name": [SECRET]}, "by_name: expected dict, found list"),
        (Tour, {"cities": ["Rome", 4111]}, "cities[1]: expected str, found int"),
        (Tour, {"stops": [1, SECRET]}, "stops[1]: expected int, found str"),
        (Tour, {"bare": SECRET}, "bare: expected list, found str"),
        (Tour, {"lengths": [SECRET]}, "lengths: expected int | str | None, found list"),
        (Part, {}, "city: missing, expected str"),
        (Part, {"city": "x", "zip": 1}, "zip: expected str, found int"),
        (Checked, {"count": -4111}, "payload: refused by Checked (ValueError)"),
        (StructOrder, {}, "to: missing"),
        (StructOrder, {"to": {"city": 1}}, "to.city: expected str, found int"),
        (StructOrder, {"to": TO, "ofWhom": SECRET}, "ofWhom: refused by StructOrder"),
        (StructOrder, {"to": TO, "colour": SECRET}, "colour: refused by StructOrder"),
        (ModelOrder, {}, "to: refused by ModelOrder (missing)"),
        (ModelOrder, {"to": {"city": 1}}, "to.city: refused by ModelOrder (string_type)"),
        (
            ModelOrder,
            {"to": TO, "lines": [TO, {"city": 1}]},
            "lines[1].city: refused by ModelOrder (string_type)",
        ),
        (
            ModelTree,
            {"name": "x", "below": [{"name": "y", "below": [{"name": 1}]}]},
            "below[0].below[0].name: refused by ModelTree (string_type)",
        ),
        (
            ModelTree,
            {"name": "x", "label": [4111]},
            "label[0]: refused by ModelTree (string_type)",
        ),
        (
            ModelOrder,
            {"to": TO, "kind": SECRET},
            "kind: refused by ModelOrder (literal_error)",
        ),
        (
            ModelOrder,
            {"to": TO, "by_name": {SECRET: "x"}},
            "by_name[…]: refused by ModelOrder (int_parsing)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_misfit_names_the_field_and_no_value(kind: Any, payload: Any, said: str) -> None:
    assert misfit(kind, payload) == said


def test_what_is_noted_of_a_type_of_several_needs_no_hash() -> None:
    noted = Annotated[int, {"for": "people"}]  # which a union takes from Python 3.13 on
    read_one = union(int | str, [NUMBERS[int], exactly(str, "str")], [noted, str])

    assert (read_one(5), read_one("x")) == (5, "x")


@dataclass
class OfSets:
    bad: dict[int, str]


@dataclass
class OfClasses:
    bad: list[Misfit]


@dataclass
class OfNowhere:
    bad: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OfSets, "field bad of OfSets: dict.*the keys of a stored mapping are strings"),
        (OfClasses, "field bad of OfClasses: Misfit cannot be the type of a payload"),
        (OfNowhere, "a type in it cannot be found"),
        (Misfit, "payload= must be a dataclass, a TypedDict, a pydantic model or a msgspec struct"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_class_that_no_payload_can_be_is_refused(kind: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        reader_of(kind)


def test_a_reader_is_made_once() -> None:
    assert reader_of(Order) is reader_of(Order)


def test_an_instance_is_checked_like_any_payload() -> None:
    with pytest.raises(PayloadError, match="beyond 64 bits"):
        encode_payload(Order(Address("x"), count=2**70))


def test_an_instance_that_contains_itself_is_refused() -> None:
    address = Address("x")
    address.before = address
    with pytest.raises(PayloadError, match="contains itself"):
        encode_payload(address)


def test_a_class_is_no_instance() -> None:
    with pytest.raises(PayloadError, match="must be a mapping such as a dict, or an instance"):
        encode_payload(Order)


def test_the_field_priority_of_an_instance_stays_in_it() -> None:
    @dataclass
    class Urgent:
        priority: int

    put = check_put(Urgent(5), priority=None, delay=None, run_at=None, max_attempts=None)

    assert (put.priority, bson.decode(put.payload, CODEC)) == (0, {"priority": 5})


def test_a_new_job_is_no_payload() -> None:
    with pytest.raises(PayloadError, match="NewJob is for put_many"):
        check_put(NewJob({}), priority=None, delay=None, run_at=None, max_attempts=None)
