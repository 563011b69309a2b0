"""Threads for blocking handlers, which end with the process and not the other way round.

A blocking handler cannot be stopped. The interpreter waits at its end for the threads of anyio's
(and the standard library's) pool, so one handler that outlives the drain time would keep the whole
process; these are daemons instead. Their number is bounded by the slots.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from functools import partial
from operator import call
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, from_thread
from anyio.lowlevel import current_token

from ...errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.lowlevel import EventLoopToken
    from bson.raw_bson import RawBSONDocument

    from ...protocol.document import JobRecord
    from ...protocol.steps import StepResult
    from ...queue.outcome import End
    from .attempt import Attempt

KEPT_SECONDS = 10.0
"""How long a thread waits for another call. What handlers keep in ``threading.local`` stays while
there is work, and goes with the thread when there is none."""


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

    def outcome(self) -> Any:
        """Return or raise what came of it, and keep nothing of it.

        Raised from here, an exception would hold this frame by its traceback, and be held by it.
        """
        error, self.error = self.error, None
        result, self.result = self.result, None
        if error is None:
            return result
        try:
            raise error
        finally:
            del error


class Threads:
    """Daemon threads that are made when they are needed and kept for a while."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # a call must not be left to a thread that is about to end
        self._count = 0
        self._made = 0
        self._busy = 0

    async def run(self, function: Callable[..., Any], argument: object) -> Any:
        """Call the function in a thread; cancelled, leave it behind and return."""
        call = _Call(function, argument)
        with self._lock:
            self._busy += 1
            if self._busy > self._count:
                self._count += 1
                self._made += 1
                name = f"streamqueue handler {self._made}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
            self._calls.put(call)
        await call.done.wait()  # one that was left behind stays busy for good
        with self._lock:
            self._busy -= 1
        return call.outcome()

    async def run_to_its_end(self, function: Callable[[], Any]) -> Any:
        """Call the function in a thread; cancelled, wait for it all the same."""
        with CancelScope(shield=True):
            return await self.run(call, function)

    def close(self) -> None:
        """Let the threads end when they have nothing to do."""
        with self._lock:
            for _ in range(self._count):
                self._calls.put(None)

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=KEPT_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._calls.empty():
                        self._count -= 1
                        return
                continue
            if call is None:
                return
            call.run()
            del call  # it has the job, and what came of it


class FromThread:
    """The holder of a blocking handler's job: makes the calls of the attempt in the event loop."""

    def __init__(self, attempt: Attempt, loop: EventLoopToken) -> None:
        self._attempt = attempt
        self.context = attempt.context
        self._run = partial(from_thread.run, token=loop)

    def complete(self, record: JobRecord, result: object, session: Any) -> None:
        if session is not None:
            raise _needs_async_handler("complete")
        self._run(self._attempt.complete, record, result, None)

    def end(self, record: JobRecord, end: End) -> None:
        self._run(self._attempt.end, record, end)

    def cancelled(self, _record: JobRecord) -> bool:
        return self._attempt.asked

    def progress(self, _record: JobRecord, count: int | None, note: str | None) -> None:
        if self._attempt.says(count, note):
            self._run(self._attempt.write_progress, count, note)

    def parents(
        self, record: JobRecord, ids: Sequence[Any], whole: bool
    ) -> Sequence[RawBSONDocument]:
        found: Sequence[RawBSONDocument] = self._run(self._attempt.parents, record, ids, whole)
        return found

    def begin_step(self, _record: JobRecord, session: Any) -> None:
        if session is not None:
            raise _needs_async_handler("step")
        self._attempt.check_held()

    def is_step_stored(self, record: JobRecord, name: str, session: Any) -> bool:
        return bool(self._run(self._attempt.is_step_stored, record, name, session))

    def store_step(
        self, record: JobRecord, name: str, result: RawBSONDocument, session: Any
    ) -> None:
        self._run(self._attempt.store_step, record, name, result, session)

    def count_step(self, result: StepResult) -> None:
        self._attempt.count_step(result)


def _needs_async_handler(call: str) -> ConfigurationError:
    return ConfigurationError(
        f"{call}(session=) in a worker needs an async handler: the worker's client is async, and a "
        "session belongs to one client"
    )
