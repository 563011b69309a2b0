"""The bytes of HTTP that the server reads and writes: one request, one answer, and it is over."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from .health import Answer, Request, json_answer

if TYPE_CHECKING:
    from .connection import Connection

MAX_HEAD_BYTES = 8192


_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def read_request(connection: Connection, deadline: float) -> Request | HTTPStatus:
    """Return a client's request without its body, or the status that refuses it.

    Raises:
        OSError: the client left, or took longer than the deadline.
    """
    head = b""
    while (end := _BLANK_LINE.search(head)) is None:
        if len(head) >= MAX_HEAD_BYTES:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        received = connection.receive(deadline)
        if not received:
            raise ConnectionAbortedError("the client left within its request")
        head += received
    first, *lines = head[: end.start()].splitlines() or [b""]
    match first.decode("latin-1").split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0"]:
            pairs = (line.decode("latin-1").partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            return Request(method, target.partition("?")[0], headers)
    return HTTPStatus.BAD_REQUEST


def encoded(content: Answer, *, without_body: bool = False) -> tuple[bytes, bytes]:
    """Return the head and the body of an answer, apart, because many clients may share a body."""
    head = (
        f"HTTP/1.1 {content.status.value} {content.status.phrase}",
        *(f"{name}: {value}" for name, value in content.headers),
        "Connection: close",
        "\r\n",
    )
    return "\r\n".join(head).encode("latin-1"), b"" if without_body else content.body


def refusal(status: HTTPStatus, reason: str) -> tuple[bytes, bytes]:
    """Return the head and the body of an answer that says why there is no other."""
    return encoded(json_answer(status, {"error": reason}))
