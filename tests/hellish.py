"""Exceptions that raise when somebody looks at them."""

from __future__ import annotations

import sys
from typing import Any, NoReturn, cast


class NotesMissing(Exception):
    """As an error of a client's that reads its fields from a body."""

    def __init__(self) -> None:
        self.body: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return self.body[name]


class TextThatExits(Exception):
    def __str__(self) -> str:
        sys.exit("no text")


class TextThatNeverEnds(Exception):
    def __str__(self) -> str:
        return str(self)


class NotesThatRaise(Exception):
    @property
    def __notes__(self) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("no notes")


class CauseThatRaises(Exception):
    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]
        raise OSError("no cause")


class ClassThatRaises(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> NoReturn:  # type: ignore[override]
        raise LookupError("no class")


class TextOfHalfACharacter(Exception):
    def __str__(self) -> str:
        return "half a character: \ud83d"


class TextOfAnotherKind(Exception):
    def __str__(self) -> str:
        return type("Text", (str,), {"__str__": lambda self: 1 / 0, "__iter__": None})("text")


class LongText(Exception):
    def __str__(self) -> str:
        return "long " * 1_000_000


class NameThatRaises(type):
    @property
    def __name__(cls) -> NoReturn:  # type: ignore[override]
        raise ValueError("no name")


HELLISH: list[type[BaseException]] = [
    NotesMissing,
    TextThatExits,
    TextThatNeverEnds,
    NotesThatRaise,
    CauseThatRaises,
    ClassThatRaises,
    TextOfHalfACharacter,
    TextOfAnotherKind,
]
"""Each is stored with its name, whatever else cannot be."""

ALSO_HELLISH: list[type[BaseException]] = [
    *HELLISH,
    LongText,
    cast("type[BaseException]", NameThatRaises("Nameless", (Exception,), {})),
]
