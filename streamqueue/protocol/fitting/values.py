"""What reads the values in a payload, one function for each kind of type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

from bson import Decimal128

from ...errors import type_name
from .kinds import ITEM, Misfit, Reader, found_instead, named


def as_it_is(value: Any) -> Any:
    return value


def exactly(kind: type, name: str) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise found_instead(name, value)
        return value

    return read


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise found_instead("int", value)
    return int(value)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise found_instead("float", value)
    return float(value)


def _decimal(value: Any) -> Decimal:
    if not isinstance(value, Decimal128):
        raise found_instead("Decimal", value)
    return value.to_decimal()


NUMBERS: Mapping[Any, Reader] = {int: _whole, float: _number, Decimal: _decimal}


def enum(kind: type[Enum]) -> Reader:
    def read(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise Misfit(f"expected a value of {kind.__name__}") from None

    return read


def literal(kind: Any, values: Sequence[Any]) -> Reader:
    meant = [value.value if isinstance(value, Enum) else value for value in values]

    def read(value: Any) -> Any:
        for one, stored in zip(values, meant, strict=True):
            if stored == value and isinstance(value, bool) == isinstance(stored, bool):
                return one
        raise Misfit(f"expected {named(kind)}")

    return read


def union(kind: Any, readers: Sequence[Reader], arguments: Sequence[Any]) -> Reader:
    each_with_its = zip(arguments, readers, strict=True)
    exact = {each: read for each, read in each_with_its if isinstance(each, type)}
    others = [each for each in arguments if each not in (None, type(None))]

    def read(value: Any) -> Any:
        if type(value) in exact:  # 1 is no 1.0 for float | int
            return exact[type(value)](value)
        problem: Misfit | None = None
        for each, reader in zip(arguments, readers, strict=True):
            try:
                return reader(value)
            except Misfit as misfit:
                if each not in (None, type(None)):
                    problem = misfit
        if len(others) == 1 and problem is not None and value is not None:
            raise problem
        raise found_instead(named(kind), value)

    return read


def list_of(make: Callable[[list[Any]], Any], read_item: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise found_instead("list", value)
        return make([_item(read_item, at, item) for at, item in enumerate(value)])

    return read


def _item(reader: Reader, at: int, item: Any) -> Any:
    try:
        return reader(item)
    except Misfit as misfit:
        raise misfit.within(f"[{at}]") from None


def items_of(readers: Sequence[Reader]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise found_instead("list", value)
        if len(value) != len(readers):
            raise Misfit(f"expected {len(readers)} items, found {len(value)}")
        pairs = enumerate(zip(readers, value, strict=True))
        return tuple([_item(reader, at, item) for at, (reader, item) in pairs])

    return read


def mapping_of(read_value: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise found_instead("dict", value)
        try:
            return {key: read_value(item) for key, item in value.items()}
        except Misfit as misfit:
            raise misfit.within(ITEM) from None

    return read


def typed_dict(
    readers: Mapping[str, Reader], names: Mapping[str, str], required: frozenset[str]
) -> Reader:
    read_fields = _fields(readers, names, required)

    def read(value: Any) -> Any:
        fields = read_fields(value)
        return {**value, **fields}

    return read


def dataclass(
    kind: Any, readers: Mapping[str, Reader], names: Mapping[str, str], required: frozenset[str]
) -> Reader:
    read_fields = _fields(readers, names, required)

    def read(value: Any) -> Any:
        fields = read_fields(value)
        try:
            return kind(**fields)
        except (ValueError, TypeError, AssertionError) as problem:  # of its __post_init__
            raise Misfit(f"refused by {kind.__name__} ({type_name(problem)})") from None

    return read


def _fields(
    readers: Mapping[str, Reader], names: Mapping[str, str], required: frozenset[str]
) -> Callable[[Any], dict[str, Any]]:
    """Return what reads the fields of a class that are there, and misses those that must be."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise found_instead("a mapping", value)
        fields: dict[str, Any] = {}
        for name, reader in readers.items():
            if name in value:
                try:
                    fields[name] = reader(value[name])
                except Misfit as misfit:
                    raise misfit.within(f".{name}") from None
            elif name in required:
                raise Misfit(f"missing, expected {names[name]}", f".{name}")
        return fields

    return read
