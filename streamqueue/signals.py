"""SIGTERM, SIGINT and SIGHUP: the first is an order to stop, the second to hurry, the third to end.

In a program of somebody's own, the event loop takes them while a worker runs there. The commands
that run until they are told to stop (``streamqueue worker`` and the like) call :func:`take` first
of all. Then a thread takes them, also while a module is imported or a handler blocks the loop, also
as process 1, for which the kernel knows no default action; and it ends the process when that does
not end by itself: because of tasks that swallow their cancellation, threads, or what runs at exit.

A process that is forked off has nothing of this: it is not to take signals in our place.

Imports the standard library, and anyio when it is needed: it must be there before all else is.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import FrameType

from . import plain

logger = plain.logger("streamqueue.signals")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOP, HURRY, END = 1, 2, 3
"""What the first, the second and the third signal say."""

FINE, FAILED, CUT_SHORT = 0, 1, 3
"""Exit codes: the last is of a process that left something running when it ended."""

GRACE = 5.0
"""Seconds a handler may take to end once it is cancelled."""
CLOSING = 8.0
"""Seconds for the last writes, and for what closes the rest. With the default drain time and the
grace it is less than the 45 s that our units allow a stop."""
AT_EXIT = 5.0
"""Seconds the interpreter may take for its end."""
AT_FAILURE = 30.0
"""The same after an error of the server or of the network: why it failed is said at the end, and a
name that cannot be resolved may hold that up for long."""
FLUSH_SECONDS = 1.0
"""A log that nobody reads blocks who writes to it."""


class Ending:
    """The thread that takes the signals of a process, and ends it if it does not end by itself."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._count = 0
        self._listener: socket.socket | None = None
        self._last: Callable[[], None] = _nothing
        self._deadline = math.inf
        self._ready = False
        self._drain, self._hurry = 0.0, 0.0
        self._holding: Callable[[], list[str]] = list
        self._ending = False
        self._code = FINE
        self._why = ""

    def take(self) -> None:
        """Take the signals from now on; in the main thread."""
        # Not first when one arrives: the main thread may hold a lock of the threading module then.
        threading.Thread(target=self._watch, name="streamqueue signals", daemon=True).start()
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _to_take():
            signal.signal(number, self._received)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on, unless the kernel's part of Python has done so already."""
        # It writes the number as soon as the signal arrives, whatever the main thread does; but
        # event loops put a descriptor of their own in the place of ours.
        before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if before != self._write:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
            self._tell(number)

    def _tell(self, number: int) -> None:
        with suppress(OSError):
            os.write(self._write, bytes([number]))

    # what is known of the process's work

    def last(self, act: Callable[[], None]) -> None:
        """Call `act` in the thread when that is about to end the process."""
        self._last = act

    def allow(self, drain: float, holding: Callable[[], list[str]]) -> None:
        """Allow so many seconds for a drain, from the order to stop; a hurried one has none.

        Until this is called, the process holds nothing that it would have to wait for.

        Args:
            holding: names the handlers that still run; called from the thread.
        """
        self._ready, self._code = True, CUT_SHORT
        self._drain, self._hurry = drain + GRACE + CLOSING, GRACE + CLOSING
        self._holding = holding

    def wait_for_others(self) -> None:
        """Let a stop take as long as others need, whose ends have limits of their own."""
        self._ready, self._code = True, CUT_SHORT
        self._drain = self._hurry = math.inf

    def told(self, order: int) -> None:
        """End the process when it has not ended that long after an order. From any thread."""
        allowed = self._drain if order == STOP else self._hurry
        self._within(allowed if self._ready else AT_EXIT)

    def closing(self, code: int) -> None:
        """End the process with this code unless it does so soon: its work is done."""
        self._ending, self._code = True, code
        self._within(AT_EXIT)

    def failed(self, why: str, *, ours: bool) -> None:
        """End the process unless it does so by itself: its work has failed.

        Args:
            why: for the log, if nobody else comes to say it.
            ours: whether nothing of the network is involved.
        """
        self._ending, self._code, self._why = True, FAILED, f"; it had failed: {why}"
        self._within(AT_EXIT if ours else AT_FAILURE)

    def end_now(self) -> None:
        """End the process: it leaves handlers behind, which would hold it."""
        self._end(CUT_SHORT, "Ended without the handlers that are left")

    def _within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, monotonic() + seconds)
        self._tell(0)

    @contextmanager
    def receive(self) -> Iterator[AsyncIterator[int]]:
        """Have the signals as an iterator in the event loop."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            self._listener = theirs
            try:
                yield _read_signals(ours)
            finally:
                self._listener = None
                self._ending = True

    # the thread

    def _watch(self) -> None:
        while True:
            left = self._deadline - monotonic()
            if left <= 0:
                self._overdue()
            wait = None if left == math.inf else left
            ready, _, _ = select.select([self._read], [], [], wait)
            for number in os.read(self._read, 64) if ready else b"":
                if number in STOP_SIGNALS:
                    self._one_more(number)

    def _one_more(self, number: int) -> None:
        self._count += 1
        name = signal.Signals(number).name
        listener = self._listener
        if self._count >= END:
            self._end(CUT_SHORT, f"Received {name} for the third time: ended now")
        if self._ending:
            self._end(self._code, f"Received {name} at the end: ended now")
        if listener is None:
            self._end(FINE, f"Received {name} before it was ready: ended")
            return
        self.told(self._count)
        with suppress(OSError):
            listener.send(bytes([number]))

    def _overdue(self) -> None:
        names = [*self._holding(), *_threads()]
        held = ", ".join(names) or "something that runs at the end"
        self._end(self._code, f"The process did not end by itself; held by {held}{self._why}")

    def _end(self, code: int, sentence: str) -> None:
        with suppress(Exception):
            self._last()
        end(code, sentence)


def _nothing() -> None:
    pass


def _to_take() -> list[signal.Signals]:
    """Return the signals to take: not SIGHUP where it is to be ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignored]


async def _read_signals(line: socket.socket) -> AsyncIterator[int]:
    import anyio

    while True:
        await anyio.wait_readable(line)
        with suppress(BlockingIOError):
            yield line.recv(1)[0]


def _threads() -> list[str]:
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    return [
        f"the thread {thread.name!r}"
        for thread in others
        if thread is not threading.main_thread() and thread.is_alive()
    ]


def end(code: int, sentence: str) -> None:
    """End the process now, with a last line in the log; nothing can hold it."""

    def say() -> None:
        logger.log(
            logging.INFO if code == FINE else logging.ERROR,
            "%s",
            sentence,
            extra={"event": "process_ended_at_once", "exit_code": code},
        )
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    try:
        thread = threading.Thread(target=say, daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)
    except RuntimeError:
        pass  # the interpreter makes no more threads: it has flushed its log already
    os._exit(code)


_ours: Ending | None = None
_receivers = 0


def take() -> Ending:
    """Take the signals of this process, which runs until it is told to stop. In the main thread."""
    global _ours
    if _ours is None:
        _ours = Ending()
        _ours.take()
    return _ours


def ending() -> Ending | None:
    """Return what sees to the end of this process; None in a program of somebody's own."""
    return _ours


@contextmanager
def stop_signals() -> Iterator[AsyncIterator[int]]:
    """Have the signals as an iterator in the event loop of the main thread."""
    global _receivers
    import anyio

    _receivers += 1
    try:
        if _ours is not None:
            with _ours.receive() as numbers:
                yield numbers
        else:
            with anyio.open_signal_receiver(*_to_take()) as signals:
                yield signals
    finally:
        _receivers -= 1


# What is forked off shares the descriptor that the number of a signal is written to: without this,
# a signal to the child is one to the worker too, and none to the child. They are held back from
# before the fork until the child has its own handling.

_masks = threading.local()


def _before_fork() -> None:
    if _ours is not None or _receivers:
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _after_fork_in_parent() -> None:
    before = _masks.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_fork_in_child() -> None:
    global _ours, _receivers
    if _ours is None and not _receivers:
        return
    _ours, _receivers = None, 0
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    _after_fork_in_parent()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
