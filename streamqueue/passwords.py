"""Passwords, and how they are kept out of what is shown: MongoDB addresses, tracebacks.

In a line of the log there is a password where there is an address. A traceback of somebody's module
shows more: the line of the code that has it, the text of an error that took the address apart, the
notes and causes of that. So a password is looked for in each of its forms there.
"""

from __future__ import annotations

import os
import re
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

MASK = "***"
SHORTEST, SHORTEST_NAMED = 3, 4
"""Characters of a password that is looked for everywhere: one of an address, and a value that is
only called so. A shorter one would mask half of a text; where it is given it is masked all the
same."""
NO_PASSWORDS = {"true", "false", "none", "null"}

# Up to the last '@' of the word, whatever stands before it: a password that was not percent-encoded
# may hold any character.
_ADDRESS = re.compile(r"(mongodb(?:\+srv)?://[^\s:]*):((?:(?!mongodb(?:\+srv)?://)\S)*)@")
_OPTION = re.compile(
    r"((?:tlsCertificateKeyFilePassword|proxyPassword)=|AWS_SESSION_TOKEN:)([^&\s]+)",
    re.IGNORECASE,
)
_NAMED_SO = re.compile("password|passwd|pwd|passphrase|secret", re.IGNORECASE)
# As an argument or an item: password="...", 'password': '...', DB_PASSWORD = b"...".
_NAME = rf"(?:{_NAMED_SO.pattern})\w{{0,40}}[\"']?\s{{0,4}}"
_TEXT = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_GIVEN = re.compile(rf"({_NAME}[:=]\s{{0,4}}[bruf]{{0,2}})({_TEXT})", re.IGNORECASE)
_GIVEN_BARE = re.compile(rf"({_NAME}=\s{{0,4}})(?![\"'])[^\s\"'&,;(){{}}\[\]]+", re.IGNORECASE)


def hide_password(text: str) -> str:
    """Return the text without the passwords of any MongoDB addresses in it."""
    return _OPTION.sub(rf"\1{MASK}", _ADDRESS.sub(rf"\1:{MASK}@", text))


def hide_passwords(text: str, known: Iterable[str] = ()) -> str:
    """Return a traceback without any password, in whatever form: of addresses, of arguments that
    are called so, and those that are known. What the environment holds is known, and what was
    remembered."""
    found = {*known, *_remembered, *_of_values(os.environ), *passwords_in(text)}
    found.update(filter(_is_one, (match[2][1:-1] for match in _GIVEN.finditer(text))))
    text = _GIVEN.sub(rf"\1'{MASK}'", _GIVEN_BARE.sub(rf"\1{MASK}", hide_password(text)))
    forms = {form for password in found for form in _forms(password)}
    # The longest first: one form may be a part of another.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def remember_passwords(uri: str) -> None:
    """Let the passwords of this address be known from now on."""
    _remembered.update(passwords_in(uri))


_remembered: set[str] = set()


def passwords_in(text: str) -> set[str]:
    """Return the passwords of the addresses in a text."""
    return {match[2] for pattern in (_ADDRESS, _OPTION) for match in pattern.finditer(text)}


def passwords_of(error: BaseException) -> set[str]:
    """Return the passwords that the code an exception came through had at hand: those of the
    addresses, and of what is called so, among its variables and its constants."""
    found: set[str] = set()
    with suppress(Exception):  # somebody's namespace may raise anything; what was found counts
        for trace in _tracebacks(error):
            for frame, _ in traceback.walk_tb(trace):
                found |= _of_values(frame.f_globals) | _of_values(frame.f_locals)
                if "site-packages" not in frame.f_code.co_filename:  # examples in docstrings
                    found |= _of_values(dict(enumerate(frame.f_code.co_consts)))
    return found


def _tracebacks(error: BaseException) -> Iterator[TracebackType | None]:
    """Yield that of an exception, and of all that led to it."""
    left, seen = [error], set[int]()
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        # Not by its attributes: a class of somebody's may raise where they are looked at.
        kept = {
            name: BaseException.__dict__[name].__get__(found)
            for name in ("__traceback__", "__cause__", "__context__")
        }
        yield kept.pop("__traceback__")
        left += [other for other in kept.values() if other is not None]
        if issubclass(type(found), BaseExceptionGroup):
            left += BaseExceptionGroup.__dict__["exceptions"].__get__(found)


def _of_values(values: Mapping[Any, object]) -> set[str]:
    """Return the passwords among values that have names."""
    found: set[str] = set()
    for name, value in list(values.items()):
        text = value.decode(errors="replace") if type(value) is bytes else value
        if type(text) is not str or len(text) > 10_000:
            continue
        if isinstance(name, str) and _NAMED_SO.search(name) and _is_one(text.strip()):
            found.add(text.strip())
        if "://" in text:
            found |= passwords_in(text)
    return found


def _is_one(value: str) -> bool:
    """Whether a value that is called a password may be one."""
    long_enough = len(value) >= SHORTEST_NAMED and value == value.strip()
    return long_enough and value.lower() not in NO_PASSWORDS and not value.startswith("/")


def _forms(password: str) -> Iterator[str]:
    """Yield how a password may be written: encoded, decoded, and as Python shows a string."""
    for plain in {password, unquote(password), unquote_plus(password)}:
        encoded = plain.encode("utf-8", "replace")
        for form in {plain, quote(encoded, safe=""), quote(encoded), quote_plus(encoded)}:
            if len(form) >= SHORTEST:
                yield form
                yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), form)
                yield repr(form)[1:-1]
                yield ascii(form)[1:-1]
