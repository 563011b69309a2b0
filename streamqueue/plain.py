"""How text of others goes out: to a terminal, into a line of the log, as JSON.

Whoever may insert a job chooses its id, its queue, its error and the name of its holder. On a
terminal a control character in one of them is a command, and a newline in the log begins a line
that nobody wrote. So each way out has one function here, and everything that goes that way goes
through it.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any

from .errors import text_of

REPLACEMENT = "·"
_DEEPEST = 20
_NUMBERS = (int, float, type(None))


def printable(text: str) -> str:
    """Return the text on one line, with nothing in it that a terminal would obey.

    Each character that is not to be seen becomes one dot, so that columns stay where they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else REPLACEMENT for c in text)


def printable_lines(text: str) -> str:
    """Return the same of each of the text's lines, for what has several, such as a traceback."""
    return "\n".join(map(printable, text.split("\n")))


def escaped(text: str) -> str:
    r"""Return the text on one line of the log: what is not printable as Python writes it, ``\n``.

    A log is looked into for what exactly was there, and has no columns.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def escaped_lines(text: str) -> str:
    """Return the same of several lines; each but the first is indented.

    No line of an exception's message can then be taken for the first line of another record.
    """
    return "\n  ".join(map(escaped, text.split("\n")))


def as_json(value: object) -> str:
    """Return one line of JSON, of printable ASCII alone, which no terminal and no locale can break.

    A time is ``2026-11-29T01:31:48.272Z``. What else JSON has no form for, and what is nested very
    deep, is the text that ``str`` gives of it.
    """
    # json escapes all that is not ASCII, and the control characters but for the last of them.
    return json.dumps(_plain(value), default=_text, allow_nan=False).replace("\x7f", "\\u007f")


def _text(value: object) -> str:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text_of(value)


def _plain(value: object, depth: int = 1) -> object:
    """Return the same without numbers that are none, keys that are no text, and great depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (Mapping, list, tuple, AbstractSet)):
        if depth > _DEEPEST:
            return text_of(value)
        if isinstance(value, Mapping):
            return {text_of(key): _plain(item, depth + 1) for key, item in value.items()}
        return [_plain(item, depth + 1) for item in value]
    return value


def logger(name: str) -> logging.Logger:
    """Return the logger of that name, whose lines are one line each, whatever is said in them.

    Who formats them does not matter then: with a program's own formatter too, no id and no name
    that somebody has stored can begin another line.
    """
    found = logging.getLogger(name)
    if _one_line not in found.filters:
        found.addFilter(_one_line)
    return found


def _one_line(record: logging.LogRecord) -> bool:
    """Take what a terminal or a reader of lines would obey out of the arguments of a message."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(_argument, record.args))
    return True


def _argument(value: Any) -> Any:
    if isinstance(value, _NUMBERS):
        return value
    return escaped(text_of(value))
