"""One process of a supervisor: while it runs, as the supervisor sees it, and how it ended."""

from __future__ import annotations

import math
import re
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from ..signals import CLOSING, CUT_SHORT, FINE, GRACE
from .messages import JOIN, LIMIT, READY, STOP, TOLD

if TYPE_CHECKING:
    from anyio.abc import Process

DISPATCHER = -1
"""The number of the dispatcher."""
SLACK = 5.0
"""Seconds beyond the end that a process has set itself before it is killed."""


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended.

    Attributes:
        account: which one, and what happened: the beginning of a sentence.
        number: its place among the processes.
        pid: None when there was no process at all.
        code: its exit code, or the negative number of the signal that killed it.
        ready_for: seconds, or None when it never was.
        told: whether somebody had told it to stop.
    """

    account: str
    number: int
    pid: int | None
    code: int
    ready_for: float | None
    told: bool = False

    @property
    def in_order(self) -> bool:
        """Whether it was ready, was told to stop and did; a start that was broken off is made
        again."""
        ended_itself = self.code in (FINE, CUT_SHORT)
        return self.told and ended_itself and self.ready_for is not None

    def facts(self) -> dict[str, object]:
        """Return what a line of the log says of it."""
        killed = self.code < 0
        return {
            "process_number": self.number,
            "pid": self.pid,
            "exit_code": None if killed else self.code,
            "signal": _signal(-self.code) if killed else None,
        }


class RunningProcess:
    """A process that runs, and the supervisor's end of its socket pair."""

    def __init__(self, number: int, process: Process, channel: socket.socket) -> None:
        self.number = number
        self.process = process
        self._channel = channel
        self._channel.setblocking(False)
        self.ready_at: float | None = None
        self.left = False
        self.was_told = False
        self._drain = math.inf
        self.ends_by = math.inf
        self.changed = anyio.Event()

    @property
    def name(self) -> str:
        """What it is called in the log, at the beginning of a sentence."""
        return name_of(self.number)

    def listen(self) -> bool:
        """Return whether it has said anything; note whether that was that it is ready."""
        try:
            said = self._channel.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            said = b""
        self.left = not said
        if READY in said and self.ready_at is None:
            self.ready_at = anyio.current_time()
        self.was_told = self.was_told or TOLD in said
        if limit := _LIMIT.search(said):
            self._drain = float(limit[1])
        return bool(said)

    def tell(self, order: bytes) -> None:
        """Send an order. One that is not ready obeys no order yet and holds no job: it is ended."""
        try:
            self._channel.send(order)
            drain = self._drain if order == STOP or self._drain == math.inf else 0.0
            allowed = drain + GRACE + CLOSING + SLACK
            self.ends_by = min(self.ends_by, anyio.current_time() + allowed)
            self.changed.set()
            if self.ready_at is None:
                self.process.terminate()
        except OSError:
            pass  # it has just ended

    def join(self, channel: socket.socket) -> None:
        """Pass it its end of a connection between the dispatcher and a member."""
        with suppress(OSError):  # it has just ended
            socket.send_fds(self._channel, [JOIN], [channel.fileno()])


_LIMIT = re.compile(LIMIT + rb"(\d+);")


def name_of(number: int) -> str:
    return "The dispatcher" if number == DISPATCHER else f"Process {number}"


def how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {_signal(-code)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
