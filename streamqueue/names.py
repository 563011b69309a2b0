"""Queue names: what is one, what stands for all that are none, and which ones may come next.

Whoever may insert a job may store anything as its queue: a megabyte, a line break, a number, bytes
that are no text. What is shown to others, as a label, in a log line or in a list, goes through
:func:`label_of` first.
"""

from __future__ import annotations

import re
import string

LONGEST = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.\-]{{0,{LONGEST - 1}}}", re.ASCII)
_FIRST = "".join(sorted(string.ascii_letters + string.digits))
_LATER = "".join(sorted(_FIRST + "_.-"))

INVALID = "(invalid)"
"""What all queues without a valid name are called together; it is none itself."""


def is_name(value: object) -> bool:
    """Say whether a value is a valid name of a queue."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def label_of(value: object) -> str:
    """Return a stored name if it is valid, and ``(invalid)`` for whatever else there is."""
    return str(value) if is_name(value) else INVALID


def name_after(text: str) -> str | None:
    """Return the first valid name that sorts after a text which is none; None when no name does.

    The server compares bytes, and what is not ASCII comes after all letters of names, so this holds
    for bytes that were no text and were read with replacements as well.
    """
    if not text:
        return _FIRST[0]
    match = _NAME.match(text)
    begins = match.group() if match else ""
    rest = text[len(begins) :]
    letter = _letter_after(rest[0], len(begins)) if rest and len(begins) < LONGEST else ""
    while not letter and begins:
        begins, last = begins[:-1], begins[-1]
        letter = _letter_after(last, len(begins))
    return begins + letter if letter else None


def _letter_after(letter: str, place: int) -> str:
    """Return the next letter that a name may have in this place, or nothing."""
    return next((other for other in (_LATER if place else _FIRST) if other > letter), "")
