"""The options of the command line that may also be variables, and what their values must be."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LAST_PORT = 65535


class _Variable(str):
    """A value out of the environment, which knows the name it had there."""

    __slots__ = ("name",)

    def __new__(cls, name: str, value: str) -> _Variable:
        made = super().__new__(cls, value)
        made.name = name
        return made

    name: str


def setting(parser: Any, flag: str, *, empty_is_unset: bool = True, **keywords: Any) -> None:
    """Add an option whose default is taken from its variable, such as STREAMQUEUE_QUEUE.

    A variable that is empty is as good as none, unless `empty_is_unset` is false: then it is a
    value, to be refused where it is used.
    """
    if "choices" in keywords:
        keywords["type"] = partial(one_of, keywords["choices"])
    if "type" in keywords:
        keywords["type"] = partial(_convert, keywords["type"])
    name = "STREAMQUEUE_" + flag.lstrip("-").replace("-", "_").upper()
    value = os.environ.get(name)
    if value or (value is not None and not empty_is_unset):
        if keywords.get("action"):
            keywords["default"] = value.lower() in ("1", "true", "yes")
        else:
            # argparse converts a default that is a string as if it had been typed.
            keywords["default"] = _Variable(name, value)
    parser.add_argument(flag, **keywords)


def _convert(convert: Callable[[str], Any], text: str) -> Any:
    """Convert a value; when that fails, say so with the variable it came from."""
    try:
        return convert(str(text))
    except ArgumentTypeError as error:
        origin = f" (from the variable {text.name})" if isinstance(text, _Variable) else ""
        raise ArgumentTypeError(f"{error}{origin}") from None


def one_of(choices: Sequence[str], text: str) -> str:
    """Return the choice, however it was capitalised."""
    for choice in choices:
        if choice.lower() == text.lower():
            return choice
    raise ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")


def integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a number, not {text!r}") from None


def whole(text: str) -> int:
    value = integer(text)
    if value < 0:
        raise ArgumentTypeError(f"must not be negative, as {text} is")
    return value


def at_least_one(text: str) -> int:
    value = whole(text)
    if value == 0:
        raise ArgumentTypeError("must be at least 1")
    return value


def port(text: str) -> int:
    value = integer(text)
    if not 0 <= value <= LAST_PORT:
        raise ArgumentTypeError(f"must be 0 to {LAST_PORT}, not {text}")
    return value


def seconds(text: str) -> float:
    value = number(text)
    if not 0.1 <= value <= 3600:
        raise ArgumentTypeError(f"must be 0.1 to 3600 seconds, not {text}")
    return value
