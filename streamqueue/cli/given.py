"""The payloads that ``streamqueue put`` is given: as arguments, or a line each on standard input.

JSON as RFC 8259 has it. What Python's reader takes beyond that (NaN, Infinity, numbers too large
for a double) would be stored as something else than what stands there, and of a key that is there
twice one value would be lost without a word.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from ..errors import ConfigurationError

MOST_DIGITS = 20
"""Of a whole number: one of 64 bits has no more, with its sign."""


def read_payloads(given: list[str]) -> list[dict[str, Any]]:
    """Return the payloads; none given, or ``-``, reads them from standard input.

    Raises:
        ConfigurationError: one of them, which the message numbers, is no JSON object.
    """
    lines = _lines() if given in ([], ["-"]) else given
    return [_parse(line, number) for number, line in enumerate(lines, 1) if line.strip()]


def _lines() -> list[str]:
    if sys.stdin is None:
        raise ConfigurationError(
            "standard input is closed: give payloads as arguments, or a file with `< FILE`"
        )
    try:
        # The bytes: what the locale makes of them is not what stands there.
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigurationError(f"standard input cannot be read: {error.strerror}") from error
    lines = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigurationError(
                f"payload {number} is not UTF-8 (byte {error.start + 1} of its line); nothing was "
                "put"
            ) from None
    return lines


def _parse(text: str, number: int) -> dict[str, Any]:
    try:
        payload = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as error:
        reason = str(error)
    else:
        if isinstance(payload, dict):
            return payload
        raise ConfigurationError(
            f"payload {number} is JSON, but must be an object, such as {{}}; nothing was put"
        )
    raise ConfigurationError(f"payload {number} is not JSON ({reason}); nothing was put")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return made


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no number in JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large for a double")
    return value


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError("a whole number is beyond 64 bits")
    return int(text)
