"""What reads a pydantic model or a msgspec struct: the library that it is of."""

from __future__ import annotations

import re
import typing
from typing import Any

from bson import Int64

from .kinds import ITEM, Misfit, Reader, is_model


def model(kind: Any) -> Reader:
    from pydantic import ValidationError

    names = _names_in(kind, set())

    def read(value: Any) -> Any:
        try:
            return kind.model_validate(_plain(value))
        except ValidationError as problem:
            first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
            places = [_place(part, names) for part in first["loc"]]
            raise Misfit(f"refused by {kind.__name__} ({first['type']})", *places) from None

    return read


def _place(part: str | int, names: set[str]) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if part in names else ITEM


def _names_in(kind: Any, seen: set[Any]) -> set[str]:
    """Return the names that fields have in a model and in those that are in it."""
    names: set[str] = set()
    if is_model(kind):
        if kind in seen:
            return names
        seen.add(kind)
        for name, field in kind.model_fields.items():
            aliases = (field.alias, field.validation_alias)
            names.update((name, *(alias for alias in aliases if isinstance(alias, str))))
            names |= _names_in(field.annotation, seen)
    for argument in typing.get_args(kind):
        names |= _names_in(argument, seen)
    return names


_AT = re.compile(r" - at `\$(?P<path>[^`]*)`\Z")
_EXPECTED = re.compile(r"Expected `(?P<type>[^`]*)`(?:, got `(?P<found>[^`]*)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def struct(kind: Any) -> Reader:
    import msgspec

    def read(value: Any) -> Any:
        try:
            return msgspec.convert(_plain(value), kind, dec_hook=_is_one_already)
        except msgspec.ValidationError as problem:
            raise _of_msgspec(kind, str(problem)) from None

    return read


def _is_one_already(kind: Any, value: Any) -> Any:
    """Return a value of a type that msgspec does not know: as it was stored, or none."""
    if not isinstance(kind, type) or not isinstance(value, kind):
        raise TypeError
    return value


def _of_msgspec(kind: Any, message: str) -> Misfit:
    """Return what the message of an error says that is no value."""
    at = _AT.search(message)
    path = "" if at is None else at["path"].replace("[...]", ITEM)
    if (missing := _MISSING.match(message)) is not None:
        return Misfit("missing", path, f".{missing['name']}")
    if (expected := _EXPECTED.match(message)) is not None:
        found = "" if expected["found"] is None else f", found {expected['found']}"
        return Misfit(f"expected {expected['type']}{found}", path)
    return Misfit(f"refused by {kind.__name__}", path)


def _plain(value: Any) -> Any:
    """Return a stored value without the subclasses that libraries take for something else."""
    kind = type(value)
    if kind is Int64:
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if kind is list:
        return [_plain(item) for item in value]
    return value
