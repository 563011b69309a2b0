"""One run of a worker: one task group that holds all the parts of a consumer process.

Start: the server was checked → open the stream → then look at what is waiting (what comes in
between is an event) → serve. Stop: claim and fire nothing more, keep renewing → let handlers
finish → after ``drain_timeout`` cancel and release the rest, and leave what does not end → close
the stream.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, get_cancelled_exc_class

from .. import plain, signals
from ..clock import monotonic
from ..errors import StreamQueueError
from ..running import in_attempt
from .execution.runners import Runners
from .execution.tasks import contained_exits, loop_library
from .parts import Parts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from anyio.abc import TaskStatus

    from ..health.health import Health
    from ..metrics.series import Metrics
    from .settings import Settings
    from .until_empty import Remaining

logger = plain.logger("streamqueue.worker")

NOT_TOLD = "the worker's run ended though nobody told it to stop"
LOOP_TICK = 0.5
"""Seconds between two beats of the event loop, for its lag and ``/healthz``."""


class Run(Parts):
    """One run of a worker, gone with its event loop.

    Args:
        context: what the worker's lifespan has opened for all handlers.
        on_empty: told when there is nothing left to do, and has to stop it then; None, to go on.

    Attributes:
        ready: whether its stream is open and it claims, or did.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        metrics: Metrics,
        context: Mapping[str, Any],
        on_empty: Callable[[Remaining], None] | None = None,
    ) -> None:
        super().__init__(settings, health, metrics, context, on_empty)
        self.ready = False
        self._began = monotonic()
        self._stopping_at: float | None = None

    @property
    def left(self) -> int:
        """How many handlers were still at it when the run ended."""
        return self._drain.left

    async def serve(
        self, stop: anyio.Event, hurry: anyio.Event, *, task_status: TaskStatus[None]
    ) -> None:
        """Work until `stop` is set, and drain; `hurry` ends the drain time.

        Started once the change stream is open.

        Raises:
            StreamQueueError: it ended though `stop` was not set.
        """
        loop = loop_library()
        self._metrics.runs_on(loop)
        logger.info(
            "Starting consumer %s on %s: %d jobs at a time of queues: %s",
            self._consumer,
            loop,
            self._slots.concurrency,
            ", ".join(self._handlers),
            extra={
                "event": "worker_started",
                "consumer": self._consumer,
                "queues": list(self._handlers),
                "concurrency": self._slots.concurrency,
                "loop": loop,
            },
        )
        failed = False
        try:
            with contained_exits(in_attempt):
                await self._serve(stop, hurry, task_status)
            if not stop.is_set():
                # As a task group ends without a word when a task of it was cancelled by itself.
                raise StreamQueueError(NOT_TOLD)
        except get_cancelled_exc_class():
            raise
        except BaseException:
            failed = True
            raise
        finally:
            self._drain.given_back += await self._leases.give_back(begun=not failed)
            await self._store.untake_again()
            if self.ready and stop.is_set():
                self._log_stopped()

    async def _serve(
        self, stop: anyio.Event, hurry: anyio.Event, task_status: TaskStatus[None]
    ) -> None:
        async with anyio.create_task_group() as parts:

            async def part(
                run: Callable[..., Awaitable[None]], **started: TaskStatus[None]
            ) -> None:
                """Run a part of the worker, which ends at the stop or never."""
                try:
                    await run(**started)
                except (SystemExit, KeyboardInterrupt) as error:
                    raise StreamQueueError(f"{NOT_TOLD}: {error!r} was raised in it") from error
                cancelled = anyio.current_effective_deadline() == -math.inf
                if not stop.is_set() and not cancelled and not self._drain.closing:
                    name = getattr(run, "__qualname__", type(run).__name__)
                    raise StreamQueueError(f"{NOT_TOLD}: {name} returned")

            parts.start_soon(part, self._beat)
            runners = Runners()
            self._execution.open(await runners.open(), processes=self._processes)
            self._deaths.open()
            try:
                parts.start_soon(part, runners.wait)
                await parts.start(part, self._source.run)
                await self._partition.join()
                parts.start_soon(part, self._partition.run)
                await parts.start(part, self._settings.run)
                passing = (
                    self._timers,
                    self._expiries,
                    self._held_back,
                    self._misfits,
                    self._ruled,
                )
                for each in (
                    self._leases,
                    self._completer,
                    *passing,
                    self._reaper,
                    self._schedules,
                ):
                    parts.start_soon(part, each.run)
                parts.start_soon(part, self._store.keep_untaking)
                for optional in (self._sweep, self._exporter, self._until_empty):
                    if optional is not None:
                        parts.start_soon(part, optional.run)
                parts.start_soon(part, self._claimer.run)
                logger.info(
                    "Working on queues: %s",
                    ", ".join(self._handlers),
                    extra={
                        "event": "worker_ready",
                        "consumer": self._consumer,
                        "queues": list(self._handlers),
                        "seconds": round(monotonic() - self._began, 3),
                    },
                )
                self.ready = True
                ending = signals.ending()
                if ending is not None:
                    ending.allow(self._drain.seconds, self._drain.names_of_running)
                task_status.started()
                try:
                    await stop.wait()
                finally:
                    # Also when this task was cancelled: a claim under way is shielded, and what it
                    # brings must not go to runners that are gone.
                    self._claimer.stop()
                await self._stop(hurry)
            finally:
                with CancelScope(shield=True):
                    # (A part that failed has cancelled the others.)
                    await self._drain.close(runners, failed=parts.cancel_scope.cancel_called)
                    await self._deaths.close()
            parts.cancel_scope.cancel()

    async def _stop(self, hurry: anyio.Event) -> None:
        self._stopping_at = began = monotonic()
        running = sum(attempt.begun for attempt in self._leases.under_way())
        logger.info(
            "Stopping: claiming nothing more, %d jobs are running",
            running,
            extra={
                "event": "worker_stopping",
                "consumer": self._consumer,
                "count": running,
            },
        )
        self._health.draining()
        self._claimer.stop()
        self._schedules.stop()
        self._source.stop()
        with CancelScope(shield=True):
            self._drain.given_back += await self._execution.give_back_unbegun()
            await self._claimer.stopped.wait()
        await self._partition.leave()
        await self._drain.run(began, hurry)
        await self._ruled.say_room()

    def _log_stopped(self) -> None:
        now = monotonic()
        drained = now - (now if self._stopping_at is None else self._stopping_at)
        logger.info(
            "Stopped: drained for %.1f s, gave %d jobs back",
            drained,
            self._drain.given_back,
            extra={
                "event": "worker_stopped",
                "consumer": self._consumer,
                "seconds": round(drained, 3),
                "count": self._drain.given_back,
            },
        )

    async def _beat(self) -> None:
        """Note that the event loop turns, and how late it is."""
        while True:
            self._health.beat()
            due = anyio.current_time() + LOOP_TICK
            await anyio.sleep(LOOP_TICK)
            self._metrics.worker.event_loop_lag.observe(max(0.0, anyio.current_time() - due))
