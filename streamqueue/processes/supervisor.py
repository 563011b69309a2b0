"""Several consumer processes of one worker, kept running: one Python process is one core.

The process that was started, their supervisor, runs no handler and talks to no server. Each of the
others is a fresh interpreter, because by then the supervisor has imported pymongo and started
threads, and a fork takes over locks that nobody will release; in a session of its own, so that
Ctrl-C in the terminal reaches the supervisor alone.

A socket pair joins the supervisor to each (``child``). One process more hands out the jobs
to the others (``dispatcher``): it is started first and ends last, and the supervisor gives each of
them a connection with it, and another when it had to be replaced.

Who is started again:

- A process that dies, with any exit code or by any signal, once it has been ready: after a pause
  that grows while it keeps dying soon, at once when it had run for a while.
- One whose event loop stands still, when the service manager has a watchdog: it is killed, as the
  service manager, which sees the supervisor alone, would kill a worker without one.
- Nobody who ends by itself before it was ever ready: the worker is named wrongly, or there is no
  server. All are stopped, and the supervisor ends with that exit code. The first process is started
  alone, so that such an error is said once.
- The dispatcher, however it ends before the others have.
- Nobody who was told to stop and ended in order (exit code 0), by whomever it was told: it says so.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from .. import plain, signals
from ..backoff import Backoff
from ..health.health import Health
from ..signals import CUT_SHORT, END, FAILED, FINE, stop_signals
from .messages import HURRY, STOP
from .process import DISPATCHER, ProcessEnd, RunningProcess, how, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import TaskStatus

logger = plain.logger("streamqueue.worker")

PAUSES = Backoff(initial=1, maximum=30, jitter=0.25)
A_WHILE = 30.0
"""Seconds of being ready after which a death says nothing about the next start."""
ABORT_SECONDS = 5.0
"""How long a process may take to die of SIGABRT, writing down where it stood, before SIGKILL."""
DISPATCHER_SECONDS = 5.0
"""How long the dispatcher may take to end once all others have, before SIGKILL."""


class Processes:
    """A number of consumer processes, from the first start to the last end.

    Args:
        command: takes the number of a process, from 0, and the descriptor of its end of the socket
            pair; returns the program and its arguments. The program calls
            :func:`~.child.run_supervised`.
        count: how many.
        dispatches: also start the process :data:`DISPATCHER` before all others, which runs a
            :class:`~.dispatcher.Dispatcher`, and connect each with it.
        pauses: before a process that died soon is started again: after the first such death in a
            row, the second, and so on.
        a_while: seconds a process must have been ready for its death not to be a soon one.
        silence: seconds without a beat of a process's event loop, once it was ready, after which it
            is killed: SIGABRT, for the sake of Python's faulthandler, and then SIGKILL. At least 2;
            None, the default, waits for ever.
        until_empty: they end by themselves when nothing is left to do; for the log.

    Attributes:
        health: ready once every process has been, and again whenever all are.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        count: int,
        *,
        dispatches: bool = False,
        pauses: Backoff = PAUSES,
        a_while: float = A_WHILE,
        silence: float | None = None,
        until_empty: bool = False,
    ) -> None:
        self._command = command
        self._count = count
        self._dispatches = dispatches
        self._pauses = pauses
        self._a_while = a_while
        self._silence = silence
        self._until_empty = until_empty
        self._running: dict[int, RunningProcess] = {}
        self._were_ready: set[int] = set()
        self.health = Health()
        self._look()
        self._dispatcher: RunningProcess | None = None
        self._dispatcher_is_ready = anyio.Event()
        self._one_is_ready = anyio.Event()
        self._stop = anyio.Event()
        self._exit_code = FINE

    async def run(self) -> int:
        """Keep them running until SIGTERM, SIGINT or SIGHUP, and wait for all to end.

        A second signal ends the drain time of them all, and a third kills them.

        Returns:
            The exit code: 0 when all ended in order, that of the process that could not start, 3
            when one had to leave handlers behind, or 1 when one died while it was draining.
        """
        ending = signals.ending()
        if ending is not None:
            ending.last(self._kill_all)
            ending.wait_for_others()
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._obey_signals)
            tasks.start_soon(self.health.keep_beating)
            async with anyio.create_task_group() as dispatching:
                if self._dispatches:
                    dispatching.start_soon(self._keep, DISPATCHER)
                    await self._dispatcher_is_ready.wait()
                async with anyio.create_task_group() as places:
                    places.start_soon(self._keep, 0)
                    await self._one_is_ready.wait()
                    for number in range(1, self._count):
                        places.start_soon(self._keep, number)
                self._stop.set()
                if self._dispatcher is not None:  # last: without it, each would open a stream
                    await self._see_off(self._dispatcher)
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
        """Note how many processes are ready; before all were, a death does not count against it."""
        ready = len(self._were_ready)
        if ready == self._count:
            ready = sum(running.ready_at is not None for running in self._running.values())
        if ready < self._count:
            self.health.not_ready("processes", f"{ready} of {self._count} processes are ready")
        else:
            self.health.clear("processes")

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        with stop_signals() as numbers:
            task_status.started()
            order, count = STOP, 0
            async for received in numbers:
                count += 1
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
                if count >= END:
                    self._kill_all()
                    signals.end(CUT_SHORT, f"Received {name} for the third time: all are killed")
                self._tell(order)
                order = HURRY

    def _kill_all(self) -> None:
        """Kill all processes: their leases return what they hold. From any thread."""
        dispatcher = [] if self._dispatcher is None else [self._dispatcher]
        for running in [*dispatcher, *self._running.values()]:
            with suppress(OSError):
                running.process.kill()

    def _tell(self, order: bytes) -> None:
        self._stop.set()
        self.health.draining()
        self._dispatcher_is_ready.set()
        self._one_is_ready.set()  # or nobody starts the others, to find that they need not
        for running in self._running.values():
            running.tell(order)

    async def _see_off(self, dispatcher: RunningProcess) -> None:
        """Stop the dispatcher, and kill it if it does not end: it holds nothing."""
        dispatcher.tell(STOP)
        with anyio.move_on_after(DISPATCHER_SECONDS) as patience:
            await dispatcher.process.wait()
        if patience.cancelled_caught:
            dispatcher.process.kill()

    async def _keep(self, number: int) -> None:
        """Have a process with this number, and after its death another one, until the stop."""
        was_ready, deaths = False, 0
        end: ProcessEnd | None = None
        while not self._stop.is_set():
            end = await self._run_one(number, again=end is not None)
            was_ready = was_ready or end.ready_for is not None
            if self._stop.is_set():
                # One that was not ready yet was ended with a signal: it held nothing. Nor does the
                # dispatcher ever.
                if number != DISPATCHER and end.ready_for is not None and end.code != FINE:
                    logger.warning(
                        "%s while it was draining",
                        end.account,
                        extra={"event": "process_died", **end.facts(), "reason": "draining"},
                    )
                    cut_short = end.code == CUT_SHORT
                    self._exit_code = self._exit_code or (CUT_SHORT if cut_short else FAILED)
            elif not was_ready and end.code >= 0 and not end.told:
                # Else it has said all there is to say.
                if self._running or end.pid is None or end.code == FINE:
                    logger.error(
                        "%s and was never ready: all are stopped",
                        end.account,
                        extra={"event": "process_died", **end.facts(), "reason": "never ready"},
                    )
                self._exit_code = end.code or FAILED
                self._tell(STOP)
            elif number != DISPATCHER and end.in_order:
                why = "somebody else told it to stop; it is not started again"
                logger.info(
                    "%s: %s",
                    end.account,
                    "nothing was left to do" if self._until_empty else why,
                    extra={"event": "process_ended", **end.facts()},
                )
                return
            else:
                if number == DISPATCHER:  # the others can do without it
                    self._dispatcher_is_ready.set()
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

    async def _run_one(self, number: int, *, again: bool) -> ProcessEnd:
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
                    account = f"{name_of(number)} could not be made ({error})"
                    return ProcessEnd(account, number, None, FAILED, None)
            running = RunningProcess(number, process, ours)
            if number == DISPATCHER:
                self._dispatcher = running
            else:
                self._running[number] = running
                self._introduce(running)
            if self._stop.is_set():  # since we began to start it
                running.tell(STOP)
            async with anyio.create_task_group() as attention:
                attention.start_soon(self._listen, running, ours, began, again)
                attention.start_soon(self._see_to_its_end, running)
                code = await process.wait()
                attention.cancel_scope.cancel()
            if number == DISPATCHER:
                self._dispatcher = None
            else:
                del self._running[number]
            running.listen()  # it may have said so just before its end
            self._look()
        ready_for = None
        if running.ready_at is not None:
            ready_for = anyio.current_time() - running.ready_at
        account = f"{running.name} (pid {process.pid}) {how(code)}"
        return ProcessEnd(account, number, process.pid, code, ready_for, told=running.was_told)

    async def _see_to_its_end(self, running: RunningProcess) -> None:
        """Kill a process that has not ended long after it was told to stop."""
        while (left := running.ends_by - anyio.current_time()) > 0:
            running.changed = anyio.Event()
            with anyio.move_on_after(left):
                await running.changed.wait()
        logger.error(
            "%s (pid %d) is killed: it was told to stop, and did not end",
            running.name,
            running.process.pid,
            extra={
                "event": "process_killed",
                "process_number": running.number,
                "pid": running.process.pid,
                "reason": "did not end",
            },
        )
        running.process.kill()

    async def _listen(
        self,
        running: RunningProcess,
        channel: socket.socket,
        began: float,
        again: bool,
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
                if running.number == DISPATCHER:
                    logger.info(
                        "The dispatcher (pid %d) is ready",
                        running.process.pid,
                        extra={
                            "event": "dispatcher_ready",
                            "pid": running.process.pid,
                            "seconds": round(took, 3),
                        },
                    )
                    self._dispatcher_is_ready.set()
                    for other in self._running.values():
                        self._introduce(other)
                else:
                    logger.info(
                        "Process %d (pid %d) is ready",
                        running.number,
                        running.process.pid,
                        extra={
                            "event": "process_restarted" if again else "process_started",
                            "process_number": running.number,
                            "pid": running.process.pid,
                            "seconds": round(took, 3),
                        },
                    )
                    self._were_ready.add(running.number)
                    self._one_is_ready.set()
                    self._look()
            if running.left:
                return
            if patience.cancelled_caught and not heard:
                break
        logger.error(
            "%s (pid %d) is killed: its event loop has stood still for %.0f s; a handler "
            "must not block it",
            running.name,
            running.process.pid,
            self._silence,
            extra={
                "event": "process_killed",
                "process_number": running.number,
                "pid": running.process.pid,
                "seconds": self._silence,
            },
        )
        running.process.send_signal(signal.SIGABRT)
        await anyio.sleep(ABORT_SECONDS)
        running.process.kill()

    def _introduce(self, running: RunningProcess) -> None:
        """Connect a process with the dispatcher, if there is one."""
        if self._dispatcher is not None and self._dispatcher.ready_at is not None:
            # What does not arrive is closed here, which its other end takes for an answer.
            one, other = socket.socketpair()
            with one, other:
                self._dispatcher.join(one)
                running.join(other)
