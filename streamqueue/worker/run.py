"""One run of a worker: one task group that holds all the parts of a consumer process.

Start: the server was checked → open the stream → then look at what is waiting (what comes in
between is an event) → serve. Stop: claim nothing more and keep renewing → let handlers finish →
after ``drain_timeout`` release the rest → close the stream.
"""

from __future__ import annotations

import logging
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope

from ..clock import monotonic
from ..exporter import Exporter
from ..metrics import AttemptOutcome
from ..stream import changed_state
from ..watcher import Watcher
from .claimer import Claimer
from .completer import Completer
from .execution import Execution
from .hand import Hand, Invitations
from .handler import RegisteredHandler
from .lease import Attempt, Leases
from .peers import Peers
from .reaper import Reaper
from .slots import Slots
from .timers import Sweep, Timers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyio.abc import TaskStatus

    from ..async_store import AsyncStore
    from ..health import Health
    from ..metrics import Metrics
    from ..options import WorkerOptions
    from ..stream import Reason
    from .handler import Handler

logger = logging.getLogger("streamqueue.worker")

LOOP_TICK = 0.5
"""Seconds between two beats of the event loop, for its lag and ``/healthz``."""


class Run:
    """One run of a worker: its parts, made in its event loop and gone with it.

    Also the listener of its hand: an event is passed to whoever has use for it.
    """

    def __init__(
        self,
        options: WorkerOptions,
        store: AsyncStore,
        handlers: Mapping[str, Handler],
        health: Health,
        metrics: Metrics,
        *,
        exports: bool,
        invitations: Invitations,
    ) -> None:
        timeout = float(options.timeout)  # type: ignore[arg-type]
        self._drain_timeout = float(options.drain_timeout)  # type: ignore[arg-type]
        queues = list(handlers)
        self._store = store
        self._health = health
        self._metrics = metrics
        self._consumer = str(options.consumer_id)
        self._ready = False
        self._began = monotonic()
        self._stopping_at: float | None = None
        self._given_back = 0
        self._opened_before = False
        self._handlers: Mapping[str, RegisteredHandler] = {
            queue: RegisteredHandler(handler, metrics.consumer(queue, handler.task))
            for queue, handler in handlers.items()
        }
        for registered in self._handlers.values():
            registered.metrics.limit.set(options.concurrency)
        self._slots = Slots(options.concurrency)
        self._leases = Leases(store, timeout, metrics)
        self._execution = Execution(store, self._leases, self._slots)
        self._completer = Completer(store, timeout, metrics, self._execution.ended)
        self._execution.completer = self._completer
        self._peers = Peers(store, self._consumer, queues, options.concurrency)
        watcher = partial(
            Watcher,
            store.jobs,
            queues,
            self,
            max_await=float(options.max_await),  # type: ignore[arg-type]
            metrics=metrics.stream,
            health=health,
        )
        self._hand = Hand(
            invitations, self._consumer, self, watcher, metrics=metrics.stream, health=health
        )
        self._claimer = Claimer(
            store,
            self._handlers,
            self._completer,
            self._slots,
            self._peers,
            options,
            metrics,
            self._start,
            self._hand,
        )
        self._timers = Timers(store, queues, metrics)
        self._reaper = Reaper(
            store,
            self._handlers,
            options.max_attempts,
            float(options.reap_interval),  # type: ignore[arg-type]
            self._peers,
            metrics,
        )
        self._sweep: Sweep | None = None
        if options.sweep_interval is not None:
            interval = float(options.sweep_interval)  # type: ignore[arg-type]
            self._sweep = Sweep(
                store,
                self._handlers,
                self._claimer,
                [self._timers, self._reaper],
                interval,
                float(options.max_await),  # type: ignore[arg-type]
                metrics,
                lambda: self._hand.signs,
            )
        self._exporter: Exporter | None = None
        if exports:
            self._exporter = Exporter(store, metrics.registry, candidate=self._consumer)

    async def serve(
        self,
        stop: anyio.Event,
        hurry: anyio.Event,
        *,
        handle_signals: bool,
        task_status: TaskStatus[None],
    ) -> None:
        """Work until `stop` is set, and drain; `hurry` ends the drain time.

        Started once the change stream is open.
        """
        logger.info(
            "Starting consumer %s: %d jobs at a time of queues: %s",
            self._consumer,
            self._slots.concurrency,
            ", ".join(self._handlers),
            extra={
                "event": "worker_started",
                "consumer": self._consumer,
                "queues": list(self._handlers),
                "concurrency": self._slots.concurrency,
            },
        )
        try:
            await self._serve(stop, hurry, handle_signals, task_status)
        finally:
            self._given_back += await self._leases.give_back()
            if self._ready:
                self._log_stopped()

    async def _serve(
        self,
        stop: anyio.Event,
        hurry: anyio.Event,
        handle_signals: bool,
        task_status: TaskStatus[None],
    ) -> None:
        async with anyio.create_task_group() as parts:
            if handle_signals and threading.current_thread() is threading.main_thread():
                await parts.start(_stop_on_signal, stop, hurry)
            parts.start_soon(self._beat)
            async with anyio.create_task_group() as runners:
                self._execution.open(runners)
                await parts.start(self._hand.run)
                await self._peers.join()
                parts.start_soon(self._peers.run)
                parts.start_soon(self._leases.run)
                parts.start_soon(self._completer.run)
                parts.start_soon(self._timers.run)
                parts.start_soon(self._reaper.run)
                if self._sweep is not None:
                    parts.start_soon(self._sweep.run)
                if self._exporter is not None:
                    parts.start_soon(self._exporter.run)
                parts.start_soon(self._claimer.run)
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
                self._ready = True
                task_status.started()
                try:
                    await stop.wait()
                finally:
                    # Also when this task was cancelled: a claim under way is shielded, and what it
                    # brings must not go to runners that are gone.
                    self._claimer.stop()
                await self._drain(hurry)
            parts.cancel_scope.cancel()

    async def _drain(self, hurry: anyio.Event) -> None:
        self._stopping_at = monotonic()
        logger.info(
            "Stopping: claiming nothing more, %d jobs are running",
            len(self._leases),
            extra={
                "event": "worker_stopping",
                "consumer": self._consumer,
                "count": len(self._leases),
            },
        )
        self._health.draining()
        self._claimer.stop()
        self._hand.stop()
        with CancelScope(shield=True):
            await self._claimer.stopped.wait()
        await self._peers.leave()
        async with anyio.create_task_group() as patience:

            async def give_up() -> None:
                with anyio.move_on_after(self._drain_timeout):
                    await hurry.wait()
                patience.cancel_scope.cancel()

            patience.start_soon(give_up)
            await self._until_nothing_is_held()
            patience.cancel_scope.cancel()
        self._completer.hurry()
        left = self._leases.held()
        for attempt in left:
            for scope in (attempt.scope, attempt.abandon):
                if scope is not None:
                    scope.cancel()
        with CancelScope(shield=True):
            await self._until_nothing_is_held()
        self._given_back = sum(attempt.outcome is AttemptOutcome.RELEASED for attempt in left)
        self._execution.close()

    def _log_stopped(self) -> None:
        now = monotonic()
        drained = now - (now if self._stopping_at is None else self._stopping_at)
        logger.info(
            "Stopped: drained for %.1f s, gave %d jobs back",
            drained,
            self._given_back,
            extra={
                "event": "worker_stopped",
                "consumer": self._consumer,
                "seconds": round(drained, 3),
                "count": self._given_back,
            },
        )

    async def _until_nothing_is_held(self) -> None:
        while self._slots.held:
            await self._slots.wait_for_change()

    def _start(self, attempt: Attempt) -> None:
        """Run a claimed job."""
        self._reaper.activity()
        self._execution.start(attempt)

    async def _beat(self) -> None:
        """Note that the event loop turns, and how late it is."""
        while True:
            self._health.beat()
            due = anyio.current_time() + LOOP_TICK
            await anyio.sleep(LOOP_TICK)
            self._metrics.worker.event_loop_lag.observe(max(0.0, anyio.current_time() - due))

    # the listener of a stream, its own or the dealer's

    def opened(self) -> None:
        if self._opened_before:
            self._store.recheck_indexes()  # a stream may break because its collection was dropped
        self._opened_before = True
        self._claimer.scan(adopt=True)
        self._timers.look()
        self._reaper.look()

    def broken(self, reason: Reason) -> None:
        """Nothing to do: it is noted already where people look."""

    @property
    def loaded(self) -> bool:
        return self._claimer.loaded

    @property
    def leisure(self) -> float:
        return self._claimer.leisure

    async def until_unloaded(self) -> None:
        await self._claimer.until_unloaded()

    def event(self, event: Mapping[str, Any]) -> None:
        document = event.get("fullDocument")
        state = changed_state(event)
        if state == "scheduled":
            fields = document or event.get("updateDescription", {}).get("updatedFields", {})
            self._timers.note(fields.get("run_at"))
        elif state == "ready":
            self._reaper.activity()
            if document is None or document.get("queue") not in self._handlers:
                self._claimer.scan("stream")  # a plain update does not say whose job it was
            else:
                inserted = event["operationType"] == "insert"
                self._claimer.announce(document, inserted=inserted)

    # and the hand's

    def dealt_to(self, yes: bool) -> None:
        self._peers.dealt_to(yes)

    def more(self, everything: bool) -> None:
        self._claimer.scan("stream")
        if everything:
            self._timers.look()
            self._reaper.look()

    def activity(self) -> None:
        self._reaper.activity()

    def stuck(self, job_ids: Sequence[Any]) -> None:
        self._store.unclaimable.hold_only(job_ids)


async def _stop_on_signal(
    stop: anyio.Event, hurry: anyio.Event, *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        again = False  # not whether it is stopping: it may have been told by something else
        async for received in signals:
            name = signal.Signals(received).name
            logger.info("Received %s", name, extra={"event": "signal_received", "signal": name})
            if again:
                hurry.set()
            stop.set()
            again = True
