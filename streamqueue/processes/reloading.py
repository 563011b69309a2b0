"""A worker that is started again when its code changes: for whoever writes that code.

It runs in a process of its own, since a module that was imported cannot be forgotten. A change
stops it as SIGTERM does, so its handlers finish, and the next one begins when it has ended. One
that ends by itself with an error, because its module is broken, is not started before the next
change.
"""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

from .. import plain, signals
from ..signals import FAILED, FINE, stop_signals
from .process import how

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from anyio.abc import Process, TaskStatus

logger = plain.logger("streamqueue.worker")


class Reloading:
    """Runs a worker, and another one after each change.

    Args:
        command: the program and its arguments.
        changes: returns an iterator that yields whenever code has changed.
    """

    def __init__(
        self, command: Sequence[str], changes: Callable[[], AsyncIterator[object]]
    ) -> None:
        self._command = list(command)
        self._changes = changes
        self._process: Process | None = None
        self._stopping = self._has_changed = False
        self._moved = anyio.Event()

    async def run(self) -> int:
        """Run it until SIGTERM, SIGINT or SIGHUP, or until it ends in order by itself.

        A second signal is passed on as well, and a third kills it.

        Returns:
            The exit code of the last one; 1 for one that a signal has killed.
        """
        ending = signals.ending()
        if ending is not None:
            ending.last(self._kill)
            ending.wait_for_others()
        code = FINE
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._obey_signals)
            tasks.start_soon(self._watch)
            await checkpoint()  # what changes from now on is seen
            while not self._stopping:
                self._has_changed = False
                code = await self._run_one()
                if self._to_begin_anew:
                    continue
                if code != FINE and not self._stopping:
                    logger.error(
                        "The worker %s: it is started again when its code changes",
                        how(code),
                        extra={"event": "reload_waits", "exit_code": code},
                    )
                    await self._until_moved()
                    continue
                break
            tasks.cancel_scope.cancel()
        return code if code >= 0 else FAILED

    @property
    def _to_begin_anew(self) -> bool:
        return self._has_changed and not self._stopping

    async def _run_one(self) -> int:
        process = await anyio.open_process(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=None,
            stderr=None,
            start_new_session=True,  # Ctrl-C is for us alone, who pass it on
        )
        self._process = process
        try:
            async with anyio.create_task_group() as attention:
                attention.start_soon(self._end_when_moved)
                code = await process.wait()
                attention.cancel_scope.cancel()
        finally:
            self._process = None
        return code

    async def _end_when_moved(self) -> None:
        await self._until_moved()
        self._send(signal.SIGTERM)

    async def _until_moved(self) -> None:
        """Return when the code has changed, or the end was ordered."""
        while not (self._stopping or self._has_changed):
            self._moved = anyio.Event()
            await self._moved.wait()

    async def _watch(self) -> None:
        async for _ in self._changes():
            logger.info("The code has changed: starting again", extra={"event": "code_changed"})
            self._has_changed = True
            self._moved.set()

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        with stop_signals() as numbers:
            task_status.started()
            async for number in numbers:
                name = signal.Signals(number).name
                logger.info("Received %s", name, extra={"event": "signal_received", "signal": name})
                if self._stopping:
                    self._send(signal.SIGTERM)
                self._stopping = True
                self._moved.set()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            with suppress(OSError):
                process.kill()
