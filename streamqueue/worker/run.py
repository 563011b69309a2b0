"""One run of a worker: one task group that holds all the parts of a consumer process.

Start: the server was checked → open the stream → then look at what is waiting (what comes in
between is an event) → serve. Stop: claim and fire nothing more, keep renewing → let handlers
finish → after ``drain_timeout`` cancel and release the rest, and leave what does not end → close
the stream.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio import CancelScope, get_cancelled_exc_class

from .. import plain, signals
from ..clock import monotonic
from ..errors import StreamQueueError
from ..exporter.exporter import Exporter
from ..metrics.series import AttemptOutcome
from ..protocol.document import BARE_CODEC
from ..running import in_attempt
from ..store.lines import log_expired
from ..store.present_settings import PresentSettings
from ..stream.watcher import Watcher
from .backlog import Backlog
from .claimer import Claimer
from .completer import Completer
from .deaths import Deaths
from .delivery import Delivery
from .drain import Drain
from .execution.executor import Execution
from .execution.runners import Runners
from .execution.tasks import contained_exits, loop_library
from .leases import Leases
from .listener import WorkerListener
from .misfits import Misfits
from .partition import Partition
from .queues import (
    RegisteredQueue,
    fairness_of,
    keep_of,
    limit_of,
    limited,
    share_slots,
)
from .reaper import Reaper
from .rules.declaration import RuleDeclaration
from .rules.queues import RuledQueues
from .scheduler import Expiries, HeldBack, Looks, Sweep, Timers
from .schedules.schedules import Schedules
from .sharing.lanes import Lanes
from .sharing.shares import Shares
from .slots import Slots
from .source import SourceSettings
from .until_empty import UntilEmpty

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from anyio.abc import TaskStatus

    from ..health.health import Health
    from ..metrics.series import Metrics
    from ..protocol.fitting.kinds import LeftReason
    from .settings import Settings
    from .until_empty import Remaining

logger = plain.logger("streamqueue.worker")

NOT_TOLD = "the worker's run ended though nobody told it to stop"
LOOP_TICK = 0.5
"""Seconds between two beats of the event loop, for its lag and ``/healthz``."""


class Run:
    """One run of a worker: its parts, made in its event loop and gone with it.

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
        options, store, queues = settings.options, settings.store, list(settings.handlers)
        self._store = store
        store.buried = metrics.buried
        self._health = health
        self._metrics = metrics
        self._consumer = consumer = str(options.consumer_id)
        self.ready = False
        self._began = monotonic()
        self._stopping_at: float | None = None
        self._slots = slots = Slots(options.concurrency)
        shares = None
        if share_slots(settings.handlers, options.concurrency):
            shares = Shares(slots, limited(settings.handlers, options.concurrency))
        self._handlers: Mapping[str, RegisteredQueue] = {
            name: RegisteredQueue.of(
                queue, metrics, None if shares is None else shares.share(name), context
            )
            for name, queue in settings.handlers.items()
        }
        for registered in self._handlers.values():
            registered.metrics.limit.set(options.concurrency)
        self._processes = any(
            handler.run_in == "process" for queue in settings.handlers.values() for handler in queue
        )
        self._leases = Leases(store, options, metrics)
        parts = (store, self._leases, slots, health)
        self._execution = execution = Execution(
            *parts,
            middleware=settings.middleware,
            misfit_grace=options.misfit_grace,
            log_tracebacks=options.log_tracebacks,
            observer=settings.observer,
        )
        store.left.tasks, store.left.counted = settings.known_tasks, self._count_left
        self._deaths = Deaths()
        self._completer = Completer(
            store, options, metrics, self._leases.renewals, execution.ended, self._deaths
        )
        execution.completer = self._completer
        self._completer.run_in_thread = execution.threads.run_to_its_end
        self._ruled = RuledQueues(store, slots, options.timeout)
        execution.made_room = self._ruled.ended
        self._drain = Drain(self._leases, slots, execution, self._completer, options)
        declared = settings.declared_schedules()
        self._partition = Partition(
            store,
            consumer,
            queues,
            options.concurrency,
            schedules=[schedule.name for schedule in declared],
        )
        self._settings = present = PresentSettings(store, queues)
        listener = WorkerListener(store, queues, present, self._partition, metrics)
        watcher = partial(
            Watcher,
            # So that no event fails, which would break the stream for all others.
            store.jobs.with_options(codec_options=BARE_CODEC),
            queues,
            listener,
            max_await=options.max_await,
            metrics=metrics.stream,
            health=health,
        )
        self._source = settings.make_source(
            SourceSettings(consumer, listener, watcher, metrics.stream, health)
        )
        self._queues, self._keep_of = queues, keep_of(self._handlers, options.keep)
        self._expiries = Expiries(store, queues, self._end_expired)
        rooms = {
            queue: registered.share
            for queue, registered in self._handlers.items()
            if registered.share is not None
        }
        lanes = Lanes(rooms, present, fairness_of(settings.handlers, options.concurrency))
        backlog = Backlog(
            store,
            present,
            self._partition,
            source=self._source,
            lanes=lanes,
            holder=shares,
            ruled=self._ruled,
        )
        self._claimer = Claimer(
            store,
            self._handlers,
            slots,
            backlog,
            self._source,
            Delivery(
                store,
                self._handlers,
                present,
                self._completer,
                execution.start,
                self._expiries.note,
                self._deaths,
                options,
                metrics,
            ),
            self._ruled,
            options,
            metrics,
        )
        self._timers = Timers(store, queues, metrics)
        self._held_back = HeldBack(store, queues, options.timeout, metrics)
        readers = {name: queue.reader for name, queue in settings.handlers.items()}
        let = partial(self._claimer.scan, "stream")
        self._misfits = Misfits(store, readers, options.misfit_grace, metrics, let)
        self._reaper = Reaper(
            store,
            limit_of(self._handlers, options.max_attempts),
            options,
            self._partition,
            metrics,
        )
        self._schedules = Schedules(
            store,
            consumer,
            declared,
            self._partition,
            metrics,
            changed=present.rang,
        )
        declares = RuleDeclaration(store, consumer, settings.handlers)
        present.connect(self._source, self._settings_read, self._schedules.read, declares)
        listener.connect(
            self._claimer,
            self._timers,
            self._reaper,
            self._leases,
            self._expiries,
            self._held_back,
            self._misfits,
        )
        self._sweep: Sweep | None = None
        if options.sweep_interval is not None:
            self._sweep = Sweep(
                store,
                self._handlers,
                present,
                self._claimer,
                Looks(self._timers, self._held_back),
                options,
                metrics,
                self._source,
            )
        self._exporter: Exporter | None = None
        if settings.exports:
            self._exporter = Exporter(store, metrics.registry, candidate=consumer)
        self._until_empty: UntilEmpty | None = None
        if on_empty is not None:
            self._until_empty = UntilEmpty(
                store,
                present,
                self._claimer,
                slots,
                self._completer,
                max_await=options.max_await,
                declared=self._schedules.declared,
                then=on_empty,
                make_due=settings.make_due,
            )

    def _count_left(self, queue: str, reason: LeftReason, count: int) -> None:
        if queue in self._handlers:
            self._handlers[queue].metrics.left[reason].inc(count)

    async def _end_expired(self) -> float:
        """End jobs that wait and are too late; return the seconds until the next one is."""
        with self._metrics.timed("promote"):
            expired = await self._store.expire(self._queues, self._keep_of)
            log_expired(expired)
            for queue, count in expired.items():
                self._handlers[queue].metrics.outcome[AttemptOutcome.EXPIRED].inc(count)
            return await self._store.seconds_to_too_late(self._queues)

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

    async def _settings_read(self, paused: Collection[str], resumed: Collection[str]) -> None:
        for queue in sorted(paused):
            logger.info(
                "Queue %s is paused: claiming none of its jobs",
                queue,
                extra={"event": "queue_paused", "consumer": self._consumer, "queue": queue},
            )
        for queue in sorted(resumed):
            logger.info(
                "Queue %s is not paused any more",
                queue,
                extra={"event": "queue_resumed", "consumer": self._consumer, "queue": queue},
            )
        self._claimer.settings_read(paused, resumed)
        if paused:
            await self._execution.give_back_unbegun_of(paused)

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
