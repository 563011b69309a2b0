"""Batches: the attempts of a handler that takes several jobs in one call.

Claimed jobs gather until there are enough of them, or the first has waited for long enough. They
hold slots meanwhile, but are not begun, and can be given back. Then each of them is an attempt like
any other, with a task in which its middleware runs. In place of its handler it comes to a call,
which is made once those that were begun together have come, or have ended without. The call has a
task and a cancel scope of its own: it is cancelled when none of its jobs is left to work on.
"""

from __future__ import annotations

import contextvars
import decimal
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from anyio import CancelScope, get_cancelled_exc_class
from anyio.lowlevel import current_token

from ...clock import monotonic
from ...errors import JobCancelled, LeaseLost, type_name
from ...queue.job import Job
from ...running import Running, running
from ...tracebacks import whole
from .begun import not_begun
from .tasks import begin, call_later
from .threads import FromThread

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextvars import Context

    from ..handler import Handler
    from ..leases import Leases
    from ..slots import Slots
    from .attempt import Attempt
    from .tasks import Task, Timer
    from .threads import Threads
    from .time_limits import TimeLimits


class Gathering(NamedTuple):
    """The attempts of a queue that wait for others, and what ends their wait."""

    attempts: list[Attempt]
    timer: Timer


class Batches:
    """Gathers the attempts of handlers that take several jobs, and calls those handlers.

    Args:
        begin: begins an attempt, in a task of its own.
    """

    def __init__(
        self,
        leases: Leases,
        slots: Slots,
        limits: TimeLimits,
        threads: Threads,
        begin: Callable[[Attempt], None],
    ) -> None:
        self._leases = leases
        self._slots = slots
        self._limits = limits
        self._threads = threads
        self._begin = begin
        self._context = contextvars.copy_context()
        self._decimals = False
        self._gathering: dict[str, Gathering] = {}
        self._begun: dict[Attempt, _Begun] = {}
        self._calls: dict[Task[None], _Call] = {}

    def open(self, context: Context, *, decimals: bool) -> None:
        """Call handlers in copies of this context from now on.

        Args:
            decimals: it has a decimal context.
        """
        self._context = context
        self._decimals = decimals

    def close(self) -> None:
        """Begin none of those that gather; they stay among the leases."""
        for gathering in self._gathering.values():
            gathering.timer.cancel()
        self._gathering.clear()

    def gather(self, attempt: Attempt) -> None:
        """Begin an attempt, which has its slot, together with others of its queue."""
        handler = attempt.registered.handler
        gathering = self._gathering.get(handler.queue)
        if gathering is None:
            begin_all = partial(self._begin_all, handler)
            timer = call_later(handler.batch_wait, begin_all, self._context)
            self._gathering[handler.queue] = gathering = Gathering([], timer)
        gathering.attempts.append(attempt)
        if len(gathering.attempts) == handler.batch:
            self._begin_all(handler)

    def take_out(self, queues: Collection[str] | None = None) -> list[Attempt]:
        """Return those that gather, of some queues or of all, as attempts without a slot."""
        names = [name for name in self._gathering if queues is None or name in queues]
        taken: list[Attempt] = []
        for name in names:
            gathering = self._gathering.pop(name)
            gathering.timer.cancel()
            taken += gathering.attempts
        for attempt in taken:
            self._slots.handler_waits()
            if attempt.registered.share is not None:
                attempt.registered.share.waits()
        return taken

    def attempt_of(self, task: Task[Any]) -> Attempt | None:
        """Return an attempt of the call that runs in a task, or None."""
        call = self._calls.get(task)
        return None if call is None else call.attempts[0]

    async def call(self, attempt: Attempt) -> None:
        """Have a handler called with the job of this attempt, in whose task this is awaited, and
        with those of others; return when it has, or raise what it raised."""
        await self._begun.pop(attempt).come(attempt).wait(attempt)

    def ended(self, attempt: Attempt) -> None:
        """Wait no more for an attempt that has ended."""
        begun = self._begun.pop(attempt, None)
        if begun is not None:
            begun.wait_no_more(attempt)

    def _begin_all(self, handler: Handler) -> None:
        gathering = self._gathering.pop(handler.queue)
        gathering.timer.cancel()
        later = partial(call_later, handler.batch_wait, context=self._context)
        begun = _Begun(gathering.attempts, partial(_Call, handler), later, self._start)
        for attempt in gathering.attempts:
            self._begun[attempt] = begun
            self._begin(attempt)

    # a call

    def _start(self, call: _Call) -> None:
        """Call the handler with those of the jobs that are still ours."""
        for attempt in call.attempts:
            if attempt.deadline <= monotonic():
                self._leases.lose(attempt)
        call.leave_out_lost()
        if not call.attempts:
            call.end()
            return
        for attempt in call.attempts:
            self._limits.begin(attempt, self._context)
        handle = partial(self._handle, call.handler, call.attempts)
        task = begin(self._run(call, handle), self._over, self._context)
        self._calls[task] = call

    async def _run(self, call: _Call, handle: Callable[[], Any]) -> None:
        if self._decimals:
            decimal.setcontext(decimal.getcontext().copy())  # as for each attempt
        running.set(Running(call.handler.queue, None, None))
        await call.run(handle)

    async def _handle(self, handler: Handler, attempts: Sequence[Attempt]) -> Any:
        if handler.run_in == "loop":
            return await handler.called([attempt.job for attempt in attempts])
        token = current_token()
        jobs = [Job(attempt.record, FromThread(attempt, token)) for attempt in attempts]
        return await self._threads.run(handler.called, jobs)

    def _over(self, task: Task[None]) -> None:
        call = self._calls.pop(task)
        if task.cancelled() or task.exception() is not None:
            call.end(RuntimeError("the task of its batch could not come to its end"))


class _Begun:
    """Attempts that were begun together, and have not all come to a call yet.

    A middleware may hold some of them back, even until others have ended. So the first to come
    waits for the rest as long as the first to gather may wait, and no longer; who comes later comes
    to another call.
    """

    def __init__(
        self,
        attempts: Sequence[Attempt],
        make_call: Callable[[], _Call],
        later: Callable[[Callable[[], object]], Timer],
        start: Callable[[_Call], None],
    ) -> None:
        self._awaited = set(attempts)
        self._make_call = make_call
        self._later = later
        self._start = start
        self._call: _Call | None = None
        self._timer: Timer | None = None

    def come(self, attempt: Attempt) -> _Call:
        """Return the call that an attempt is part of."""
        call = self._call
        if call is None:
            self._call = call = self._make_call()
            self._timer = self._later(self._start_call)
        call.attempts.append(attempt)
        self.wait_no_more(attempt)
        return call

    def wait_no_more(self, attempt: Attempt) -> None:
        """Make the call if this was the last one that it waits for."""
        self._awaited.discard(attempt)
        if not self._awaited and self._call is not None:
            self._start_call()

    def _start_call(self) -> None:
        call, self._call = self._call, None
        if self._timer is not None:
            self._timer.cancel()
        if call is not None:
            self._start(call)


class _Call:
    """A call of a handler with several jobs.

    Attributes:
        attempts: at these jobs.
    """

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.attempts: list[Attempt] = []
        self._lost: set[Attempt] = set()
        self._stopped: set[Attempt] = set()
        self._scope = CancelScope()
        self._started = False
        self._over = anyio.Event()
        self._waiting = 0
        self._error: BaseException | None = None
        self._restore: Callable[[], None] | None = None
        self._cancelled = False

    def leave_out_lost(self) -> None:
        """Leave those out that are held no more, or are to be cancelled."""
        self._started = True
        self._lost = {attempt for attempt in self.attempts if attempt.lost or attempt.asked}
        if self._lost:
            self.attempts = [one for one in self.attempts if one not in self._lost]

    async def run(self, handle: Callable[[], Any]) -> None:
        """Call the handler, and say what it has come to."""
        error: BaseException | None = None
        try:
            with self._scope:
                try:
                    result = await handle()
                    if result is not None:
                        error = _returned(result, self.handler.task)
                except get_cancelled_exc_class() as cancellation:
                    self._cancelled = self._scope.cancel_called
                    error = cancellation
                except BaseException as raised:  # also SystemExit, as of any handler
                    error = raised
        except BaseException:  # the handler left a scope of its own open: it ends here
            self._scope.cancel()
        try:
            self.end(error)
        finally:
            del error  # or its traceback would hold this frame, and that the jobs

    def end(self, error: BaseException | None = None) -> None:
        """Let all attempts go on; `error` is what the handler raised."""
        if self._over.is_set():
            return
        if error is not None:
            self._error, self._restore = error, whole(error)
        self._over.set()

    async def wait(self, attempt: Attempt) -> None:
        """Return, or raise, what the call means for one of its attempts, once it is over.

        Not before, also if it was cancelled: the job is given back, or ends, when nobody works on
        it any more. What it has ended itself stays as it is, whatever the handler raises.
        """
        self._waiting += 1
        try:
            try:
                await self._over.wait()
            except get_cancelled_exc_class() as cancellation:
                if not self._started:
                    self.attempts.remove(attempt)
                    raise
                if attempt in self._lost:
                    raise
                self._stop(attempt)
                with CancelScope(shield=True):
                    await self._over.wait()
                if self._cancelled and self._error is not None:
                    cancellation.__cause__ = self._whole(self._error)  # where the handler was
                if self._cancelled or attempt.lost or attempt.asked:
                    raise
            if attempt in self._lost:
                raise (JobCancelled if attempt.asked else LeaseLost)(attempt.record.id)
            if self._error is not None and attempt.outcome is None:
                raise self._whole(self._error)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._error = self._restore = None

    def _stop(self, attempt: Attempt) -> None:
        """Note that one is lost or cancelled; cancel the handler once that is so of all that it has
        not ended itself."""
        self._stopped.add(attempt)
        if all(one in self._stopped or one.outcome is not None for one in self.attempts):
            self._scope.cancel()

    def _whole(self, error: BaseException) -> BaseException:
        """Return what the handler raised, with its traceback: the attempt before has taken that."""
        if self._restore is not None:
            self._restore()
        return error


def _returned(result: object, task: str) -> TypeError:
    return not_begun(result, task) or TypeError(
        f"handler {task} returned a {type_name(result)}, which is the result of none of its jobs: "
        "complete each with its own, job.complete(result), and return nothing"
    )
