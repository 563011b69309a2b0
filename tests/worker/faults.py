"""Errors that the server makes on purpose: its ``failCommand`` failpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient

CONNECTION_CUT = {"closeConnection": True}
SHUTTING_DOWN = {"errorCode": 11600}
INTERRUPTED = {"errorCode": 11601}
"""As by ``killOp``; the driver does not try again by itself."""
TIME_LIMIT = {"errorCode": 50}
REPLICATION_TIMED_OUT: dict[str, Any] = {
    "writeConcernError": {
        "code": 64,
        "codeName": "WriteConcernFailed",
        "errmsg": "waiting for replication timed out",
        "errInfo": {"wtimeout": True},
    }
}
"""Applied, and perhaps not durable: what was asked for has happened here."""
APPLIED_THEN_SHUTTING_DOWN = {
    "writeConcernError": {"code": 91, "errmsg": "the server is shutting down"}
}

WRITE_FAULTS = {
    "the connection is cut": CONNECTION_CUT,
    "the server shuts down": SHUTTING_DOWN,
    "the time limit is exceeded": TIME_LIMIT,
    "replication times out": REPLICATION_TIMED_OUT,
    "applied, then the server shuts down": APPLIED_THEN_SHUTTING_DOWN,
}
"""Errors of a write that may have been applied all the same, by what happens."""


class Fault:
    """A failpoint while it is set. There is one per server: setting another replaces it."""

    def __init__(self, client: MongoClient[Any]) -> None:
        self._client = client
        self._before = 0
        self._ended: int | None = None

    def hits(self) -> int:
        """Return how many commands it has struck."""
        return (self._count() if self._ended is None else self._ended) - self._before

    def _count(self) -> int:
        reply = self._client.admin.command({"getParameter": 1, "failpoint.failCommand": 1})
        return int(reply["failpoint.failCommand"]["timesEntered"])


DONE_AND_NOT_HEARD: dict[str, Any] = {
    "writeConcernError": {"code": 262, "errmsg": "operation exceeded time limit"},
    "errorLabels": ["RetryableWriteError"],
}
"""For :func:`failing`: what is written is there, and the driver asks for it once more."""


@contextmanager
def failing(
    client: MongoClient[Any],
    *commands: str,
    app: str | None,
    times: int | None = None,
    skip: int | None = None,
    mode: Any = "alwaysOn",
    **data: Any,
) -> Iterator[Fault]:
    """Make these commands of an application fail: the first `times`, those after `skip`, or all.

    `app` None means those of every application.
    `mode` is any other of the server's, such as ``{"activationProbability": 0.5}``.

    Other data as the server takes it: ``errorCode``, ``errorLabels``, ``closeConnection``,
    ``blockConnection`` with ``blockTimeMS``, ``writeConcernError``.
    """
    if times is not None:
        mode = {"times": times}
    if skip is not None:
        mode = {"skip": skip}
    fault = Fault(client)
    fault._before = fault._count()
    if app is not None:
        data["appName"] = app
    client.admin.command(
        "configureFailPoint",
        "failCommand",
        mode=mode,
        data={"failCommands": list(commands), **data},
    )
    try:
        yield fault
    finally:
        client.admin.command("configureFailPoint", "failCommand", mode="off")
        fault._ended = fault._count()
