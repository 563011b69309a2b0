"""What an instance of a class is stored as: its dict."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from decimal import Decimal
from enum import Enum
from typing import Any

from bson import Decimal128

from .kinds import is_dataclass, is_model, is_struct


def stored_form(payload: object) -> Mapping[str, Any] | None:
    """Return the mapping that an instance of one of these classes is stored as; None for any other
    value. (What a ``TypedDict`` is called with is a mapping already.)"""
    kind = type(payload)
    if is_model(kind):
        model: Any = payload
        return typing.cast("Mapping[str, Any]", _storable(model.model_dump(by_alias=True)))
    if is_struct(kind) or is_dataclass(kind):
        fields = _storable(payload)
        return fields if isinstance(fields, Mapping) else None
    return None


def _storable(value: Any) -> Any:
    """Return a value of a class as BSON has it; what has no such form stays, and is refused by who
    encodes it."""
    kind = type(value)
    if isinstance(value, Enum):
        return _storable(value.value)
    if is_model(kind):
        return _storable(value.model_dump(by_alias=True))
    if is_struct(kind):
        return _of_struct(value)
    if dataclasses.is_dataclass(kind):
        return {
            field.name: _storable(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Decimal):
        return Decimal128(value)
    if isinstance(value, Mapping):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, AbstractSet)):
        return [_storable(item) for item in value]
    return value


def _of_struct(value: Any) -> Any:
    """Return what msgspec makes of a struct. (Its own function takes no ObjectId in one.)"""
    import msgspec

    config = value.__struct_config__
    fields = {} if config.tag is None else {config.tag_field: config.tag}
    for field in msgspec.structs.fields(value):
        item = getattr(value, field.name)
        if item is not msgspec.UNSET:
            fields[field.encode_name] = _storable(item)
    return list(fields.values()) if config.array_like else fields
