"""Several consumer processes of one worker, kept running: one Python process is one core.

The process that was started, their supervisor, runs no handler and talks to no server. Each of the
others is a fresh interpreter, because by then the supervisor has imported pymongo and started
threads, and a fork takes over locks that nobody will release; in a session of its own, so that
Ctrl-C in the terminal reaches the supervisor alone.

A socket pair joins the supervisor to each (``supervised``). One process more deals out the jobs to
the others (``dealer``): it is started first and ends last, and the supervisor gives each of them a
connection with it, and another when it had to be replaced.

Who is started again:

- A process that dies, with any exit code or by any signal, once it has been ready: after a pause
  that grows while it keeps dying soon, at once when it had run for a while.
- One whose event loop stands still, when the service manager has a watchdog: it is killed, as the
  service manager, which sees the supervisor alone, would kill a worker without one.
- Nobody who ends by itself before it was ever ready: the worker is named wrongly, or there is no
  server. All are stopped, and the supervisor ends with that exit code. The first process is started
  alone, so that such an error is said once.
- The dealer, however it ends before the others have.
- Nobody who was told to stop and ended in order (exit code 0), by whomever it was told.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from ..backoff import Backoff
from ..health import Health
from .supervised import HURRY, JOIN, READY, STOP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import Process, TaskStatus

logger = logging.getLogger("streamqueue.worker")

FINE, FAILED = 0, 1
DEALER = -1
"""The number of the process that deals out jobs to the others."""

PAUSES = Backoff(initial=1, maximum=30, jitter=0.25)
A_WHILE = 30.0
"""Seconds of being ready after which a death says nothing about the next start."""
ABORT_SECONDS = 5.0
"""How long a process may take to die of SIGABRT, writing down where it stood, before SIGKILL."""
DEALER_SECONDS = 5.0
"""How long the dealer may take to end once all others have, before SIGKILL."""


class Processes:
    """A number of consumer processes, from the first start to the last end.

    Args:
        command: takes the number of a process, from 0, and the descriptor of its end of the socket
            pair; returns the program and its arguments. The program calls
            :func:`~.supervised.run_supervised`.
        count: how many.
        deals: also start the process :data:`DEALER`, which runs a :class:`~.dealer.Dealer`, before
            all others, and connect each with it.
        pauses: before a process that died soon is started again: after the first such death in a
            row, the second, and so on.
        a_while: seconds a process must have been ready for its death not to be a soon one.
        silence: seconds without a beat of a process's event loop, once it was ready, after which it
            is killed: SIGABRT, for the sake of Python's faulthandler, and then SIGKILL. At least 2;
            None, the default, waits for ever.

    Attributes:
        health: ready once every process has been, and again whenever all are.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        count: int,
        *,
        deals: bool = False,
        pauses: Backoff = PAUSES,
        a_while: float = A_WHILE,
        silence: float | None = None,
    ) -> None:
        self._command = command
        self._count = count
        self._deals = deals
        self._pauses = pauses
        self._a_while = a_while
        self._silence = silence
        self._running: dict[int, _Running] = {}
        self._were_ready: set[int] = set()
        self.health = Health()
        self._look()
        self._dealer: _Running | None = None
        self._dealer_is_ready = anyio.Event()
        self._one_is_ready = anyio.Event()
        self._stop = anyio.Event()
        self._exit_code = FINE

    async def run(self) -> int:
        """Keep them running until SIGTERM or SIGINT, and wait for all to end.

        A second signal ends the drain time of them all.

        Returns:
            The exit code: 0 when all ended in order, that of the process that could not start, or
            1 when one died while it was draining.
        """
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._obey_signals)
            tasks.start_soon(self.health.keep_beating)
            async with anyio.create_task_group() as dealing:
                if self._deals:
                    dealing.start_soon(self._keep, DEALER)
                    await self._dealer_is_ready.wait()
                async with anyio.create_task_group() as places:
                    places.start_soon(self._keep, 0)
                    await self._one_is_ready.wait()
                    for number in range(1, self._count):
                        places.start_soon(self._keep, number)
                self._stop.set()
                if self._dealer is not None:  # last: without it, each would open a stream
                    await self._see_off(self._dealer)
            tasks.cancel_scope.cancel()
        if self._were_ready:
            logger.info(
                "All %d processes have ended",
                self._count,
                extra={
                    "event": "supervisor_stopped",
                    "count": self._count,
                    "exit_code": self._exit_code,
                },
            )
        return self._exit_code

    def _look(self) -> None:
        """Note how many are ready; before all were, a death does not count against it."""
        ready = len(self._were_ready)
        if ready == self._count:
            ready = sum(running.ready_at is not None for running in self._running.values())
        if ready < self._count:
            self.health.not_ready("processes", f"{ready} of {self._count} processes are ready")
        else:
            self.health.clear("processes")

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            order = STOP
            async for received in signals:
                name = signal.Signals(received).name
                logger.info(
                    "Received %s: %d processes %s",
                    name,
                    len(self._running),
                    "drain" if order == STOP else "hurry",
                    extra={
                        "event": "signal_received",
                        "signal": name,
                        "count": len(self._running),
                    },
                )
                self._tell(order)
                order = HURRY

    def _tell(self, order: bytes) -> None:
        self._stop.set()
        self.health.draining()
        self._dealer_is_ready.set()
        self._one_is_ready.set()  # or nobody starts the others, to find that they need not
        for running in self._running.values():
            running.tell(order)

    async def _see_off(self, dealer: _Running) -> None:
        """Stop the dealer, and kill it if it does not end: it holds nothing."""
        dealer.tell(STOP)
        with anyio.move_on_after(DEALER_SECONDS) as patience:
            await dealer.process.wait()
        if patience.cancelled_caught:
            dealer.process.kill()

    async def _keep(self, number: int) -> None:
        """Have a process with this number, and after its death another one, until the stop."""
        was_ready, deaths = False, 0
        end: _End | None = None
        while not self._stop.is_set():
            end = await self._run_one(number, again=end is not None)
            was_ready = was_ready or end.ready_for is not None
            if self._stop.is_set():
                # One that was not ready yet was ended with a signal: it held nothing. Nor does the
                # dealer ever.
                if number != DEALER and end.ready_for is not None and end.code != FINE:
                    logger.warning(
                        "%s while it was draining",
                        end.account,
                        extra={"event": "process_died", **end.facts(), "reason": "draining"},
                    )
                    self._exit_code = self._exit_code or FAILED
            elif not was_ready and end.code >= 0:
                if self._running or end.pid is None:  # else it has said all there is to say
                    logger.error(
                        "%s and was never ready: all are stopped",
                        end.account,
                        extra={"event": "process_died", **end.facts(), "reason": "never ready"},
                    )
                self._exit_code = end.code
                self._tell(STOP)
            elif end.code == FINE and number != DEALER:
                logger.info(
                    "%s: somebody else told it to stop; it is not started again",
                    end.account,
                    extra={"event": "process_ended", **end.facts()},
                )
                return
            else:
                if number == DEALER:  # the others can do without it
                    self._dealer_is_ready.set()
                soon = end.ready_for is None or end.ready_for < self._a_while
                deaths = deaths + 1 if soon else 0
                pause = self._pauses.delay(deaths) if soon else 0.0
                when = f"in {pause:.1f} s" if soon else "at once"
                logger.warning(
                    "%s; it is started again %s",
                    end.account,
                    when,
                    extra={"event": "process_died", **end.facts(), "seconds": round(pause, 3)},
                )
                with anyio.move_on_after(pause):
                    await self._stop.wait()

    async def _run_one(self, number: int, *, again: bool) -> _End:
        """Start a process, `again` in place of another, and attend to it until its end."""
        began = anyio.current_time()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                descriptor = theirs.fileno()
                try:
                    process = await anyio.open_process(
                        self._command(number, descriptor),
                        stdin=subprocess.DEVNULL,
                        stdout=None,
                        stderr=None,
                        pass_fds=(descriptor,),
                        start_new_session=True,
                    )
                except OSError as error:
                    account = f"{_name(number)} could not be made ({error})"
                    return _End(account, number, None, FAILED, None)
            running = _Running(process, ours)
            if number == DEALER:
                self._dealer = running
            else:
                self._running[number] = running
                self._introduce(running)
            if self._stop.is_set():  # since we began to start it
                running.tell(STOP)
            async with anyio.create_task_group() as attention:
                attention.start_soon(self._listen, number, running, ours, began, again)
                code = await process.wait()
                attention.cancel_scope.cancel()
            if number == DEALER:
                self._dealer = None
            else:
                del self._running[number]
            running.listen()  # it may have said so just before its end
            self._look()
        ready_for = None
        if running.ready_at is not None:
            ready_for = anyio.current_time() - running.ready_at
        account = f"{_name(number)} (pid {process.pid}) {_how(code)}"
        return _End(account, number, process.pid, code, ready_for)

    async def _listen(
        self, number: int, running: _Running, channel: socket.socket, began: float, again: bool
    ) -> None:
        """Note when a process is ready, and kill it when it falls silent after that."""
        while True:
            was_ready = running.ready_at is not None
            with anyio.move_on_after(self._silence if was_ready else None) as patience:
                await anyio.wait_readable(channel)
            # Also when the time is over: it may be us who stood still, and the beats are there.
            heard = running.listen()
            if running.ready_at is not None and not was_ready:
                took = running.ready_at - began
                if number == DEALER:
                    logger.info(
                        "The dealer (pid %d) is ready",
                        running.process.pid,
                        extra={
                            "event": "dealer_ready",
                            "pid": running.process.pid,
                            "seconds": round(took, 3),
                        },
                    )
                    self._dealer_is_ready.set()
                    for other in self._running.values():
                        self._introduce(other)
                else:
                    logger.info(
                        "Process %d (pid %d) is ready",
                        number,
                        running.process.pid,
                        extra={
                            "event": "process_restarted" if again else "process_started",
                            "process_number": number,
                            "pid": running.process.pid,
                            "seconds": round(took, 3),
                        },
                    )
                    self._were_ready.add(number)
                    self._one_is_ready.set()
                    self._look()
            if running.left:
                return
            if patience.cancelled_caught and not heard:
                break
        logger.error(
            "%s (pid %d) is killed: its event loop has stood still for %.0f s; a handler "
            "must not block it",
            _name(number),
            running.process.pid,
            self._silence,
            extra={
                "event": "process_killed",
                "process_number": number,
                "pid": running.process.pid,
                "seconds": self._silence,
            },
        )
        running.process.send_signal(signal.SIGABRT)
        await anyio.sleep(ABORT_SECONDS)
        running.process.kill()

    def _introduce(self, running: _Running) -> None:
        """Connect a process with the dealer, if there is one."""
        if self._dealer is not None and self._dealer.ready_at is not None:
            # What does not arrive is closed here, which its other end takes for an answer.
            one, other = socket.socketpair()
            with one, other:
                self._dealer.join(one)
                running.join(other)


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended.

    Attributes:
        account: which one, and what happened: the beginning of a sentence.
        number: its place among the processes.
        pid: None when there was no process at all.
        code: its exit code, or the negative number of the signal that killed it.
        ready_for: seconds, or None when it never was.
    """

    account: str
    number: int
    pid: int | None
    code: int
    ready_for: float | None

    def facts(self) -> dict[str, object]:
        """Return what a line of the log says of it."""
        killed = self.code < 0
        return {
            "process_number": self.number,
            "pid": self.pid,
            "exit_code": None if killed else self.code,
            "signal": _signal(-self.code) if killed else None,
        }


class _Running:
    """A process that runs, and the supervisor's end of its socket pair."""

    def __init__(self, process: Process, channel: socket.socket) -> None:
        self.process = process
        self._channel = channel
        self._channel.setblocking(False)
        self.ready_at: float | None = None
        self.left = False

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
        return bool(said)

    def tell(self, order: bytes) -> None:
        """Send an order. One that is not ready obeys no order yet and holds no job: it is ended."""
        try:
            self._channel.send(order)
            if self.ready_at is None:
                self.process.terminate()
        except OSError:
            pass  # it has just ended

    def join(self, channel: socket.socket) -> None:
        """Give it one end of a connection with the dealer, or the dealer one with a process."""
        with suppress(OSError):  # it has just ended
            socket.send_fds(self._channel, [JOIN], [channel.fileno()])


def _name(number: int) -> str:
    return "The dealer" if number == DEALER else f"Process {number}"


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {_signal(-code)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
