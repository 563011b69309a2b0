"""MongoDB's wire protocol, as far as a proxy must read it: who speaks, and what is asked for."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

import bson

from drills.commands import ENDINGS, Kind, kind_of
from drills.plans import Command

_OP_QUERY, OP_MSG = 2004, 2013
HEADER = struct.Struct("<iiii")
HELLO = {"hello", "ismaster"}
LOOKED_AT = {"insert", "update", "delete", "findAndModify", "find", *ENDINGS}
"""The commands that are read; the others only pass."""
_NOT_OK = b"\x01ok\0" + bytes(8)
_CODE = re.compile(rb"\x10code\0(.{4})", re.DOTALL)
_LONGEST_ERROR = 10_000


def length_at(received: bytearray, start: int) -> int | None:
    """Return the length of the message that starts there, or None while it is incomplete."""
    if len(received) < start + 4:
        return None
    length = int(struct.unpack_from("<i", received, start)[0])
    return length if len(received) >= start + length else None


def sections(message: memoryview) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the body of an OP_MSG and its document sequences, by name."""
    flags = struct.unpack_from("<I", message, 16)[0]
    end = len(message) - (4 if flags & 1 else 0)  # a checksum
    body: dict[str, Any] = {}
    sequences: dict[str, list[Any]] = {}
    at = 20
    while at < end:
        kind = message[at]
        (size,) = struct.unpack_from("<i", message, at + 1)
        section = bytes(message[at + 1 : at + 1 + size])
        if kind == 0:
            body = bson.decode(section)
        else:
            name, _, documents = section[4:].partition(b"\0")
            sequences[name.decode()] = bson.decode_all(documents)
        at += 1 + size
    return body, sequences


def name_of(message: memoryview) -> str:
    """Return the first key of an OP_MSG's first section if that is its body: the command."""
    if message[20] != 0:
        return ""
    head = bytes(message[26:58])
    return head[: head.find(b"\0")].decode("ascii", "replace")


def error_code(message: memoryview) -> int | None:
    """Return the code of a reply that says that the command failed; None of any other message."""
    if len(message) >= _LONGEST_ERROR:
        return None
    text = bytes(message)
    code = _CODE.search(text) if _NOT_OK in text else None
    return None if code is None else int(struct.unpack("<i", code[1])[0])


def application(message: memoryview, opcode: int) -> str | None:
    """Return who a handshake is from: the application, or the name of a driver without one."""
    if opcode == _OP_QUERY:
        end = bytes(message[20:]).index(0) + 21
        hello = bson.decode(bytes(message[end + 8 :]))
    elif opcode == OP_MSG and name_of(message).lower() in HELLO:
        hello, _ = sections(message)
    else:
        return None
    client = hello.get("client")
    if client is None:
        return None
    application = client.get("application", {}).get("name")
    return str(application or client.get("driver", {}).get("name", ""))


def command_of(message: memoryview) -> Command:
    """Read a command: what the queue does by it, and how its second try will be known."""
    body, sequences = sections(message)
    body.update(sequences)
    kind = kind_of(body)
    retryable = None
    # In a transaction all statements have one number; of these only the end is tried again.
    if "txnNumber" in body and ("autocommit" not in body or kind in ENDINGS.values()):
        retryable = (bytes(body["lsid"]["id"]), int(body["txnNumber"]), kind)
    return Command(kind, retryable)


def did_something(kind: Kind | None, reply: Mapping[str, Any]) -> bool:
    """Whether a command of this kind had an effect, by its reply."""
    if kind == "untake":
        return True  # to learn that there was nothing to give back is to learn something
    if kind == "read":
        return bool(reply.get("cursor", {}).get("firstBatch"))
    if kind in ENDINGS.values():
        return bool(reply.get("ok"))
    return bool(reply.get("n") or reply.get("value"))
