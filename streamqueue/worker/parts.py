"""The parts of a run of a worker, and how they know each other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .. import plain
from ..exporter.exporter import Exporter
from ..metrics.series import AttemptOutcome
from ..protocol.document import BARE_CODEC
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
    from collections.abc import Callable, Collection, Mapping

    from ..health.health import Health
    from ..metrics.series import Metrics
    from ..protocol.fitting.kinds import LeftReason
    from .settings import Settings
    from .until_empty import Remaining

logger = plain.logger("streamqueue.worker")


class Parts:
    """What a run of a worker is made of, in its event loop.

    Args:
        context: what the worker's lifespan has opened for all handlers.
        on_empty: told when there is nothing left to do, and has to stop it then; None, to go on.
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
                begun=[self._schedules.declared, self._misfits.looked],
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
