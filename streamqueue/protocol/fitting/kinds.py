"""Payloads with types: read into the class that a handler asks for, and stored from its instances.

A class is one of four kinds: a dataclass, a ``TypedDict``, a pydantic model or a msgspec struct. A
model or a struct is read, and stored, by the library that it is of. The other two are read by what
stands here, whatever is installed beside us: two machines of a deployment must not disagree about
what fits. No library is imported here but by a class of its own, which has done so before.

What is stored may quote people. So a :class:`Misfit` says where a payload does not fit, and what
was expected there, and neither a value nor the key of a mapping.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NotRequired, Protocol, Required, TypeAlias

from ...errors import type_name

Reader = Callable[[Any], Any]
"""Returns what a payload, or a value in it, is as a type; raises :class:`Misfit`."""

ReaderOf = Callable[[str | None], Reader | None]
"""Returns, for a task (None for jobs without one), what reads the payloads of its jobs; None takes
any."""


def unread(task: str | None) -> None:
    """Return that payloads are taken as they are, whatever the task."""


LeftReason = Literal["task", "misfit"]
"""Why a job is left to others by who cannot run it; the metric's label."""

ROOT = "payload"
"""What stands for the place of a whole payload."""
ITEM = "[…]"
"""What stands for a key of a mapping: that is somebody's value."""


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Struct(Protocol):
    __struct_fields__: ClassVar[tuple[str, ...]]


class _Model(Protocol):
    def model_dump(self) -> dict[str, Any]: ...


PayloadLike: TypeAlias = Mapping[str, Any] | _Dataclass | _Struct | _Model
"""What may be put: a mapping, or an instance of a class that is stored as one."""


class Misfit(Exception):
    """A payload does not fit its type.

    Attributes:
        path: where: the names of fields, and positions in lists.
        why: what is wrong there, without the value.
    """

    def __init__(self, why: str, *places: str) -> None:
        super().__init__(why, *places)
        self.why = why
        self._places = places

    @property
    def path(self) -> str:
        """Where it is, such as ``to[2].name``."""
        return "".join(self._places).removeprefix(".") or ROOT

    def within(self, place: str) -> Misfit:
        """The same of what it is a part of."""
        return Misfit(self.why, place, *self._places)

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


# which kind a class is


def _is_a(kind: Any, module: str, name: str) -> bool:
    """Whether it is a class of a library; if that is not imported, it is none."""
    base = getattr(sys.modules.get(module), name, None)
    return base is not None and isinstance(kind, type) and issubclass(kind, base)


def is_model(kind: Any) -> bool:
    return _is_a(kind, "pydantic", "BaseModel")


def is_struct(kind: Any) -> bool:
    return _is_a(kind, "msgspec", "Struct")


def is_dataclass(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and dataclasses.is_dataclass(origin)


def is_typed_dict(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    # Not typing.is_typeddict: one of typing_extensions is one as well.
    return isinstance(origin, type) and hasattr(origin, "__required_keys__")


# what is said of types


WRAPPERS = (typing.Annotated, Required, NotRequired)


def named(kind: Any) -> str:
    """Return what a type is called in messages."""
    while typing.get_origin(kind) in WRAPPERS:
        kind = typing.get_args(kind)[0]
    if isinstance(kind, type) and not typing.get_args(kind):
        return "None" if kind is type(None) else kind.__name__
    return re.sub(r"\b(?:\w+\.)+", "", str(kind))[:200]


def found_instead(expected: str, value: object) -> Misfit:
    found = "None" if value is None else type_name(value)
    return Misfit(f"expected {expected}, found {found}")
