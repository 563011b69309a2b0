"""Several consumer processes of one worker, kept running: one Python process is one core.

The process that was started, their supervisor, runs no handler and talks to no server. Each of the
others is a fresh interpreter, because by then the supervisor has imported pymongo and started
threads, and a fork takes over locks that nobody will release; in a session of its own, so that
Ctrl-C in the terminal reaches the supervisor alone.

A socket pair joins the supervisor to each. The process says when it is ready, and from then on that
its event loop turns. The supervisor says to stop, and to hurry, here and not with a signal: service
managers send theirs to every process of a service, and one passed on as well would count as the
second. When the supervisor is gone, killed even, its end is closed, and that is an order to stop.

Who is started again:

- A process that dies, with any exit code or by any signal, once it has been ready: after a pause
  that grows while it keeps dying soon, at once when it had run for a while.
- One whose event loop stands still, when the service manager has a watchdog: it is killed, as the
  service manager, which sees the supervisor alone, would kill a worker without one.
- Nobody who ends by itself before it was ever ready: the worker is named wrongly, or there is no
  server. All are stopped, and the supervisor ends with that exit code. The first process is started
  alone, so that such an error is said once.
- Nobody who was told to stop and ended in order (exit code 0), by whomever it was told.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from ..backoff import Backoff
from ..errors import only_one
from ..health import Health

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import Process, TaskStatus

    from .runtime import Worker

logger = logging.getLogger("streamqueue.worker")

READY, BEAT, STOP, HURRY = b"r", b"b", b"s", b"h"
FINE, FAILED = 0, 1

PAUSES = Backoff(initial=1, maximum=30, jitter=0.25)
A_WHILE = 30.0
"""Seconds of being ready after which a death says nothing about the next start."""
ABORT_SECONDS = 5.0
"""How long a process may take to die of SIGABRT, writing down where it stood, before SIGKILL."""


class Processes:
    """A number of consumer processes, from the first start to the last end.

    Args:
        command: takes the number of a process, from 0, and the descriptor of its end of the socket
            pair; returns the program and its arguments. The program calls :func:`run_supervised`.
        count: how many.
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
        pauses: Backoff = PAUSES,
        a_while: float = A_WHILE,
        silence: float | None = None,
    ) -> None:
        self._command = command
        self._count = count
        self._pauses = pauses
        self._a_while = a_while
        self._silence = silence
        self._running: dict[int, _Running] = {}
        self._were_ready: set[int] = set()
        self.health = Health()
        self._look()
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
            async with anyio.create_task_group() as places:
                places.start_soon(self._keep, 0)
                await self._one_is_ready.wait()
                for number in range(1, self._count):
                    places.start_soon(self._keep, number)
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
        self._one_is_ready.set()  # or nobody starts the others, to find that they need not
        for running in self._running.values():
            running.tell(order)

    async def _keep(self, number: int) -> None:
        """Have a process with this number, and after its death another one, until the stop."""
        was_ready, deaths = False, 0
        end: _End | None = None
        while not self._stop.is_set():
            end = await self._run_one(number, again=end is not None)
            was_ready = was_ready or end.ready_for is not None
            if self._stop.is_set():
                # One that was not ready yet was ended with a signal: it held nothing.
                if end.ready_for is not None and end.code != FINE:
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
            elif end.code == FINE:
                logger.info(
                    "%s: somebody else told it to stop; it is not started again",
                    end.account,
                    extra={"event": "process_ended", **end.facts()},
                )
                return
            else:
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
                    account = f"Process {number} could not be made ({error})"
                    return _End(account, number, None, FAILED, None)
            running = self._running[number] = _Running(process, ours)
            if self._stop.is_set():  # since we began to start it
                running.tell(STOP)
            async with anyio.create_task_group() as attention:
                attention.start_soon(self._listen, number, running, ours, began, again)
                code = await process.wait()
                attention.cancel_scope.cancel()
            del self._running[number]
            running.listen()  # it may have said so just before its end
            self._look()
        ready_for = None
        if running.ready_at is not None:
            ready_for = anyio.current_time() - running.ready_at
        account = f"Process {number} (pid {process.pid}) {_how(code)}"
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
                logger.info(
                    "Process %d (pid %d) is ready",
                    number,
                    running.process.pid,
                    extra={
                        "event": "process_restarted" if again else "process_started",
                        "process_number": number,
                        "pid": running.process.pid,
                        "seconds": round(running.ready_at - began, 3),
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
            "Process %d (pid %d) is killed: its event loop has stood still for %.0f s; a handler "
            "must not block it",
            number,
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


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {_signal(-code)}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


async def run_supervised(worker: Worker, channel: socket.socket) -> None:
    """Run a worker as one of several processes, until it, or its supervisor, is told to stop.

    Args:
        channel: this process's end of the socket pair. It stays open.

    Raises:
        Whatever :meth:`Worker.run` raises.
    """
    channel.setblocking(False)
    worker.health.observe(partial(_say, channel, BEAT))
    try:
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: TaskStatus[None]) -> None:
                await worker.run(task_status=task_status)
                tasks.cancel_scope.cancel()

            await tasks.start(run)
            await _obey(worker, channel)
    except BaseExceptionGroup as group:
        raise only_one(group) from None


async def _obey(worker: Worker, channel: socket.socket) -> None:
    _say(channel, READY)
    orders = READY
    while orders:
        await anyio.wait_readable(channel)
        try:
            orders = channel.recv(16)
        except OSError:
            orders = b""
        if not orders:
            logger.warning("The supervisor is gone", extra={"event": "supervisor_gone"})
        if not worker.stopping:  # it may have had a signal of its own
            worker.stop()
        if HURRY in orders:
            worker.stop()


def _say(channel: socket.socket, what: bytes) -> None:
    try:
        channel.send(what)
    except OSError:
        pass  # the supervisor is gone, as the next read will say, or has not listened for hours
