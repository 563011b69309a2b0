"""Threads for blocking handlers, which end with the process and not the other way round.

A blocking handler cannot be stopped. The interpreter waits at its end for the threads of anyio's
(and the standard library's) pool, so one handler that outlives the drain time would keep the whole
process; these are daemons instead. Their number is bounded by the slots.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from typing import TYPE_CHECKING, Any

import anyio
from anyio import from_thread
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Callable


class _Call:
    """A function, and what came of it once `done` is set."""

    def __init__(self, function: Callable[..., Any], argument: object) -> None:
        self.function = function
        self.argument = argument
        self.context = contextvars.copy_context()
        self.token = current_token()
        self.done = anyio.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.context.run(self.function, self.argument)
        except BaseException as error:
            self.error = error
        try:
            from_thread.run_sync(self.done.set, token=self.token)
        except RuntimeError:
            pass  # the loop is gone: the drain time was over, and nobody waits any more


class Threads:
    """Daemon threads that are made when they are needed and kept for the next call."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._count = 0
        self._busy = 0  # written in the event loop only

    async def run(self, function: Callable[..., Any], argument: object) -> Any:
        """Call the function in a thread; cancelled, leave it behind and return."""
        call = _Call(function, argument)
        self._busy += 1
        if self._busy > self._count:
            self._count += 1
            name = f"streamqueue handler {self._count}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        self._calls.put(call)
        await call.done.wait()  # one that was left behind stays busy for good
        self._busy -= 1
        if call.error is not None:
            raise call.error
        return call.result

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        for _ in range(self._count):
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
