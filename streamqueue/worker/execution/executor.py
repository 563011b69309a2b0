"""Running attempts: each from its claim to the end of its handler, and of its slot.

Each attempt has a task, a copy of the context and a cancel scope of its own, and its task runs the
handler and nothing else. Whatever a handler does to them (a cancel scope that it leaves open, a
task that somebody cancels later, a decimal context) is over with the attempt. What its end means is
settled outside of that task, by the callback that tells of it, and by tasks of our own.
"""

from __future__ import annotations

import contextvars
import decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, get_cancelled_exc_class
from anyio.lowlevel import checkpoint_if_cancelled, current_token

from ...clock import monotonic
from ...errors import JobCancelled, LeaseLost, PayloadError
from ...protocol.fitting.kinds import Misfit
from ...protocol.operations import MISFIT_ERROR
from ...protocol.trace import trace_id
from ...queue.job import Job
from ...queue.outcome import End
from ...running import Running, running
from ...tracebacks import describe, forget
from .batches import Batches
from .begun import not_begun
from .blocked import TICK, BlockedLoop
from .middleware import Around
from .outcomes import CANCELLED, INTERRUPTED, TOO_LATE, Outcomes
from .processes import run_in_child, warm_up
from .tasks import Task, begin
from .threads import FromThread, Threads
from .time_limits import TimeLimits
from .unbegun import Unbegun

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from anyio.abc import TaskGroup

    from ...health.health import Health
    from ...store.asynchronous import AsyncStore
    from ..completer import Completer
    from ..leases import Leases
    from ..slots import Slots
    from .attempt import Attempt, Observer
    from .middleware import Middleware

GRACE = 5.0
"""Seconds the handlers of a run that was cancelled have to end."""


class Execution:
    """Runs attempts.

    Args:
        health: is not ready while the handlers in all slots are over their time limits.
        middleware: what is called around every handler, outermost first.
        misfit_grace: seconds for which a job whose payload does not fit is left to others.
        log_tracebacks: log failures with their tracebacks, which may quote payloads.
        observer: told of each attempt; None for nobody.

    Attributes:
        completer: where finished attempts go; set before the first start.
        threads: of blocking handlers, and of the blocking steps of async ones.
        made_room: told of the queue and the slots of jobs that have ended; set likewise.
    """

    completer: Completer
    made_room: Callable[[str, Sequence[str]], None]
    _decimals: bool
    """Whether the context that attempts copy has a decimal context; from :meth:`open` on."""

    def __init__(
        self,
        store: AsyncStore,
        leases: Leases,
        slots: Slots,
        health: Health,
        *,
        middleware: Sequence[Middleware] = (),
        misfit_grace: float = 0.0,
        log_tracebacks: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._observer = observer
        self._around = Around(middleware) if middleware else None
        self._misfit_grace = misfit_grace
        self._leases = leases
        self._slots = slots
        self.threads = Threads()
        self._limits = TimeLimits(slots.concurrency, health)
        self._outcomes = Outcomes(leases, log_tracebacks)
        self._unbegun = Unbegun(store, leases, slots, self._begin)
        parts = (leases, slots, self._limits, self.threads)
        self._batches = Batches(*parts, self._begin_alone)
        self._under_way: dict[Task[None], Attempt] = {}
        self._abrupt = False
        self._closed = anyio.Event()
        self._all_over = anyio.Event()
        self._ends: TaskGroup | None = None
        self._context = contextvars.copy_context()
        self._blocked = BlockedLoop(
            lambda task: self._under_way.get(task) or self._batches.attempt_of(task)
        )

    def open(self, ends: TaskGroup, *, processes: bool = False) -> None:
        """Take attempts from now on, and write their ends in tasks of this group.

        Args:
            processes: some of the handlers run in child processes.
        """
        self._ends = ends
        self._context = contextvars.copy_context()
        self._decimals = any(var.name == "decimal_context" for var in self._context)
        self._unbegun.open(self._context)
        self._batches.open(self._context, decimals=self._decimals)
        ends.start_soon(self._keep)
        if processes:  # here, where the pool cannot take the context of an attempt for its own
            ends.start_soon(warm_up)

    def start(self, attempt: Attempt) -> None:
        """Run a claimed job as soon as the event loop gets to it."""
        self._slots.take()
        if attempt.registered.share is not None:
            attempt.registered.share.take()
        self._leases.add(attempt)
        self._unbegun.add(attempt)

    async def give_back_unbegun(self) -> int:
        """Release the claimed jobs whose handlers have not been called; return how many."""
        return await self._unbegun.give_back(self._batches.take_out())

    async def give_back_unbegun_of(self, queues: Collection[str]) -> int:
        """Release those of some queues; return how many."""
        return await self._unbegun.give_back_of(queues, self._batches.take_out(queues))

    def close(self) -> None:
        """Let the threads end, and the task that watches the event loop."""
        self.threads.close()
        self._limits.close()
        self._batches.close()
        self._closed.set()

    def ended(self, attempt: Attempt) -> None:
        """Note that an attempt had its final write, or never will."""
        if attempt.outcome is None:
            self._leases.lose(attempt)
        else:
            self.made_room(attempt.record.queue, attempt.record.slots)
        attempt.registered.metrics.outcome[attempt.result()].inc()
        self._leases.remove(attempt)
        if self._observer is not None:
            self._observer.ended(attempt)
        self._slots.ended()

    async def _keep(self) -> None:
        """Watch the event loop; when the run is cancelled, cancel the attempts and wait for them.

        Then nothing is written of those that were stopped: they stay among the leases, for
        whoever knows whether the run ends by an error.
        """
        with self._blocked:
            try:
                while not self._closed.is_set():
                    self._blocked.beat()
                    self._limits.look()
                    if self._ends is not None:
                        self._ends.start_soon(self._unbegun.give_back_overdue)
                    with anyio.move_on_after(TICK):
                        await self._closed.wait()
            finally:
                if not self._closed.is_set():
                    self._abrupt = True
                    self._unbegun.close()
                    self._batches.close()
                    with anyio.move_on_after(GRACE, shield=True):
                        await self._cancel_all()

    async def _cancel_all(self) -> None:
        for attempt in list(self._under_way.values()):
            for scope in (attempt.scope, attempt.abandon):
                if scope is not None:
                    scope.cancel()
        while self._under_way:
            self._all_over = anyio.Event()
            await self._all_over.wait()

    def _begin(self, attempt: Attempt) -> None:
        self._slots.handler_starts()
        if attempt.registered.share is not None:
            attempt.registered.share.start()
        if attempt.registered.handler.batch is None:
            self._begin_alone(attempt)
        else:
            self._batches.gather(attempt)

    def _begin_alone(self, attempt: Attempt) -> None:
        task = begin(self._run(attempt), self._over, self._context)
        self._under_way[task] = attempt

    # in the task of the attempt

    async def _run(self, attempt: Attempt) -> None:
        """Run the handler, and hand on what its end means."""
        metrics, record = attempt.registered.metrics, attempt.record
        attempt.begun = True
        if self._observer is not None:
            self._observer.begins(attempt)
        started = monotonic()
        trace = trace_id(record.traceparent)
        exemplar = None if trace is None else {"trace_id": trace}
        if record.run_at is not None:
            waited = (self._store.clock.now() - record.run_at).total_seconds()
            metrics.wait.observe(max(0.0, waited), exemplar)
        if self._decimals:
            # A copy of the context has the same one in it, which is no value but changes.
            decimal.setcontext(decimal.getcontext().copy())
        running.set(Running(record.queue, record.id, record.attempts))
        metrics.running.inc()
        end = await self._run_in_scope(attempt)
        metrics.running.dec()
        metrics.duration.observe(monotonic() - started, exemplar)
        # Here and not when the task is seen to be done, which is a turn of the event loop later:
        # whoever claims and completes should find all that ended in the same turn.
        self._context.run(self._settle, attempt, end)

    async def _run_in_scope(self, attempt: Attempt) -> End | None:
        if attempt.lost or monotonic() >= attempt.deadline:
            self._leases.lose(attempt)
            return INTERRUPTED
        if attempt.asked:
            return CANCELLED
        if attempt.record.too_late(self._store.clock.now):
            return TOO_LATE
        scope = CancelScope()
        end, returned = None, False
        try:
            with scope:
                end = await self._call(attempt, scope)
                returned = True
        except BaseException as problem:
            # The handler left a scope of its own open, such as that of an async generator it broke
            # out of: whatever runs in that ends with the attempt.
            scope.cancel()
            if not returned:
                return End("failed", describe(self._limits.over(attempt, problem) or problem))
        return end

    async def _call(self, attempt: Attempt, scope: CancelScope) -> End | None:
        handler = attempt.registered.handler
        limited = handler.time_limit is not None
        error: BaseException | None
        try:
            if handler.read is not None:
                attempt.record.data = handler.read(attempt.record.data)
            # (Of a child process once it is there, and of a batch once that is called.)
            if limited and handler.run_in != "process" and handler.batch is None:
                self._limits.begin(attempt, self._context)
            if self._around is not None:
                attempt.scope = scope
                handle = partial(self._handle, attempt, scope)
                result = await self._around.call(attempt, handle)
            elif handler.run_in == "loop" and handler.batch is None:
                # Here, and not by a call that would be one more to await.
                attempt.scope = scope
                result = await handler.called(attempt.job)
            else:
                result = await self._elsewhere(attempt, scope)
            error = None if result is None else not_begun(result, handler.task)
            attempt.returned = result
        except Misfit as misfit:
            return self._misfit(attempt, misfit)
        except get_cancelled_exc_class() as cancellation:
            if scope.cancel_called and not attempt.overdue:
                self._limits.over(attempt, None)
                return INTERRUPTED
            error = cancellation  # the handler's own: it awaited something that was cancelled
        except BaseException as raised:
            # Also SystemExit: a handler must not be able to end the process for all others.
            error = raised
        if limited:
            overdue = self._limits.over(attempt, error)
            if error is not None or self._around is None:  # else it had returned in time
                error = overdue
        try:
            return None if error is None else self._outcomes.of(attempt, error)
        finally:
            if error is not None:
                if self._observer is not None:
                    self._observer.raised(attempt, error)
                forget(error)
            del error  # or its traceback would hold this frame, and that the job

    async def _handle(self, attempt: Attempt, scope: CancelScope) -> Any:
        """Call the handler within its middleware, which may have taken its time until then."""
        if attempt.lost or monotonic() >= attempt.deadline:
            self._leases.lose(attempt)
            raise LeaseLost(attempt.record.id)
        if attempt.asked:
            raise JobCancelled(attempt.record.id)
        await checkpoint_if_cancelled()
        handler = attempt.registered.handler
        if handler.run_in == "loop" and handler.batch is None:
            return await handler.called(attempt.job)
        try:
            return await self._elsewhere(attempt, scope)
        finally:
            attempt.scope, attempt.abandon = scope, None

    async def _elsewhere(self, attempt: Attempt, scope: CancelScope) -> Any:
        """Call a handler that runs in a thread or in a child process, or that takes a batch."""
        handler = attempt.registered.handler
        if handler.batch is not None and handler.run_in == "loop":
            attempt.scope = scope
            return await self._batches.call(attempt)
        if handler.run_in == "process":
            attempt.scope = scope
            begin = partial(self._limits.begin, attempt, self._context)
            result = await run_in_child(handler, attempt.record.data, begin)
            if isinstance(result, PayloadError):
                attempt.unstorable, result = result, None
            return result
        # A thread cannot be cancelled. When the lease is lost it keeps its slot until it returns
        # (or the threads would pile up); only the end of the drain time leaves it behind.
        attempt.scope, attempt.abandon = None, scope
        if handler.batch is not None:
            return await self._batches.call(attempt)
        job = Job(attempt.record, FromThread(attempt, current_token()))
        return await self.threads.run(handler.called, job)

    def _misfit(self, attempt: Attempt, misfit: Misfit) -> End:
        """Return how an attempt ends whose payload does not fit: the job is left to others, if they
        are given time."""
        if not self._misfit_grace:
            text = f"{MISFIT_ERROR}{misfit}"
            return End("discarded", text, death="its payload does not fit")
        record, left = attempt.record, self._store.left
        left.add(record.id)
        left.misfit(record.queue, misfit.path, str(misfit))
        self._store.indexes.want("misfits")
        return End("left", str(misfit))

    # out of it again

    def _over(self, task: Task[None]) -> None:
        """Note that the task of an attempt is done; settle one that has not done so itself."""
        attempt = self._under_way.pop(task)
        if not self._under_way:
            self._all_over.set()
        if attempt.begun:
            if not task.cancelled() and task.exception() is None:
                return
            end = End("failed", "its task could not come to its end")
        else:  # cancelled before its first step
            end = INTERRUPTED
        self._settle(attempt, end)

    def _settle(self, attempt: Attempt, end: End | None) -> None:
        """Complete an attempt whose handler returned; have any other end written."""
        attempt.scope = attempt.abandon = None
        del attempt.job  # the two hold each other, and only a collection of garbage would end that
        self._slots.handler_over()
        if attempt.registered.share is not None:
            attempt.registered.share.over()
        if attempt.registered.handler.batch is not None:
            self._batches.ended(attempt)
        self._unbegun.slot_came_free()
        if attempt.asked:
            end = CANCELLED
        if end is None and not (attempt.outcome or attempt.lost or attempt.ending):
            self.completer.finish(attempt, attempt.returned)
        elif self._ends is not None and not (end is INTERRUPTED and self._abrupt):
            try:
                self._ends.start_soon(self._end, attempt, end)
            except RuntimeError:  # the run is over, and has left it: there is nothing to write
                self.ended(attempt)

    async def _end(self, attempt: Attempt, end: End | None) -> None:
        with CancelScope(shield=True):
            try:
                if attempt.settled is not None:
                    # A complete that was asked for, by a caller who was cancelled or is not the
                    # handler: it is on its way, and its outcome is the attempt's.
                    await attempt.settled.wait()
                    attempt.settled = None
                await self._outcomes.write(attempt, end, self.completer)
            finally:
                self.ended(attempt)
