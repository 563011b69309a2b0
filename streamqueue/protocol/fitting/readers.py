"""What reads a payload as an instance of a class: made once, when its handler is registered."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, Literal, NotRequired, Required, Union
from uuid import UUID

from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.dbref import DBRef

from ...durations import shown
from ...errors import ConfigurationError
from .kinds import WRAPPERS, Reader, is_dataclass, is_model, is_struct, is_typed_dict, named
from .libraries import model, struct
from .values import (
    NUMBERS,
    as_it_is,
    dataclass,
    enum,
    exactly,
    items_of,
    list_of,
    literal,
    mapping_of,
    typed_dict,
    union,
)


def reader_of(kind: Any) -> Reader:
    """Return what reads payloads as instances of this class.

    Raises:
        ConfigurationError: it is of none of the four kinds, or has a field of a type that no stored
            value can be.
    """
    if not (is_model(kind) or is_struct(kind) or is_dataclass(kind) or is_typed_dict(kind)):
        raise ConfigurationError(
            "payload= must be a dataclass, a TypedDict, a pydantic model or a msgspec struct, not "
            f"{shown(kind)}"
        )
    return _reader_of(kind)


@cache
def _reader_of(kind: Any) -> Reader:
    return _Readers().of(kind)


_SCALARS: Mapping[Any, tuple[type, ...]] = {
    **{kind: (kind,) for kind in (str, bytes, bool, datetime, UUID, ObjectId, Decimal128)},
    **{kind: (kind,) for kind in (Timestamp, Binary, Regex, Code, DBRef, MinKey, MaxKey, Int64)},
}
"""Types whose values are stored as they are."""
_LISTS: Mapping[Any, Callable[[list[Any]], Any]] = {
    **dict.fromkeys((list, Sequence, MutableSequence, Iterable), list),
    **dict.fromkeys((set, AbstractSet), set),
    frozenset: frozenset,
}
"""Types that are stored as lists, and what makes them of one."""
_MAPPINGS = frozenset({dict, Mapping, MutableMapping})


class _Readers:
    """Makes the readers of a class and of all that is in it; of one that contains itself, once."""

    def __init__(self) -> None:
        self._made: dict[Any, Reader] = {}

    def of(self, kind: Any) -> Reader:
        """Return the reader of a type."""
        while True:
            if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
                return as_it_is
            if isinstance(kind, typing.NewType):
                kind = kind.__supertype__
            elif hasattr(kind, "__value__"):  # type Name = ...
                kind = kind.__value__
            elif typing.get_origin(kind) in WRAPPERS:
                kind = typing.get_args(kind)[0]
            else:
                break
        origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
        if origin in (Union, types.UnionType):
            return union(kind, [self.of(each) for each in arguments], arguments)
        if origin is Literal:
            return literal(kind, arguments)
        if kind is None or kind is type(None):
            return exactly(type(None), "None")
        if origin in _LISTS:
            return list_of(_LISTS[origin], self.of(arguments[0]) if arguments else as_it_is)
        if origin is tuple:
            return self._tuple(arguments)
        if origin in _MAPPINGS:
            if arguments and arguments[0] not in (str, Any):
                raise _unreadable(kind, "the keys of a stored mapping are strings")
            return mapping_of(self.of(arguments[1]) if arguments else as_it_is)
        if is_model(kind):
            return model(kind)
        if is_struct(kind):
            return struct(kind)
        if is_dataclass(kind) or is_typed_dict(kind):
            return self._class(kind, origin)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return enum(kind)
        if kind in _SCALARS:
            return exactly(kind, kind.__name__)
        if kind in NUMBERS:
            return NUMBERS[kind]
        raise _unreadable(kind, "no value of BSON is one")

    def _class(self, kind: Any, origin: Any) -> Reader:
        if kind in self._made:
            return self._made[kind]
        self._made[kind] = lambda value: self._made[kind](value)  # it may contain itself
        try:
            hints = typing.get_type_hints(origin, include_extras=True)
        except (NameError, TypeError, AttributeError) as problem:
            raise _unreadable(
                kind, f"a type in it cannot be found ({problem}): define it in a module"
            ) from None
        readers: dict[str, Reader] = {}
        if is_typed_dict(kind):
            for name, hint in hints.items():
                readers[name] = self._field(kind, name, hint)
            names = {name: named(hint) for name, hint in hints.items()}
            made = typed_dict(readers, names, _required(origin, hints))
        else:
            fields = [field for field in dataclasses.fields(origin) if field.init]
            for field in fields:
                readers[field.name] = self._field(kind, field.name, hints[field.name])
            names = {field.name: named(hints[field.name]) for field in fields}
            made = dataclass(origin, readers, names, frozenset(map(_name, filter(_open, fields))))
        self._made[kind] = made
        return made

    def _field(self, kind: Any, name: str, hint: Any) -> Reader:
        try:
            return self.of(hint)
        except ConfigurationError as problem:
            raise ConfigurationError(f"field {name} of {named(kind)}: {problem}") from None

    def _tuple(self, arguments: Sequence[Any]) -> Reader:
        if not arguments:
            return list_of(tuple, as_it_is)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return list_of(tuple, self.of(arguments[0]))
        return items_of([self.of(each) for each in arguments])


def _required(kind: Any, hints: Mapping[str, Any]) -> frozenset[str]:
    """Return the names that a ``TypedDict`` must have. (It knows them itself only where its
    annotations are no strings.)"""
    origins = {name: typing.get_origin(hint) for name, hint in hints.items()}
    said = {name for name, origin in origins.items() if origin in (Required, NotRequired)}
    required = {name for name, origin in origins.items() if origin is Required}
    return frozenset(required | (kind.__required_keys__ - said))


def _name(field: dataclasses.Field[Any]) -> str:
    return field.name


def _open(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _unreadable(kind: Any, why: str) -> ConfigurationError:
    return ConfigurationError(f"{named(kind)} cannot be the type of a payload, or in one: {why}")
