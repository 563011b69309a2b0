"""What a worker was made with; read when it runs, and by the command line, which may change it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..durations import shown
from ..errors import ConfigurationError
from .schedules.declared import schedules_of, stands_above
from .source import OwnStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from ..health.server import MetricsAddress
    from ..options import WorkerOptions
    from ..protocol.schedules import Schedule
    from ..store.asynchronous import AsyncStore
    from .execution.attempt import Observer
    from .execution.middleware import Middleware
    from .handler import OnDead
    from .lifespan import Factory
    from .queues import QueueHandlers
    from .schedules.declared import Declared
    from .source import Source, SourceSettings


@dataclass(slots=True)
class Settings:
    """The settings and handlers of a worker.

    Attributes:
        exports: whether it is a candidate for counting how the queues stand.
        lifespan: makes what is open while it runs, or None.
        middleware: what is called around every handler, outermost first.
        on_dead: told of dead jobs, where a handler does not say.
        handlers: what runs the jobs of each queue.
        make_source: makes what tells it of jobs, for each run.
        observer: told of each attempt, for tests; None, the default, costs nothing.
        make_due: for tests: makes due what is scheduled in these queues, and returns whether there
            was any.
    """

    store: AsyncStore
    options: WorkerOptions
    metrics_address: MetricsAddress
    registry: CollectorRegistry | None
    exports: bool
    lifespan: Factory | None = None
    middleware: tuple[Middleware, ...] = ()
    on_dead: OnDead | None = None
    handlers: dict[str, QueueHandlers] = field(default_factory=dict)
    schedules: list[Declared] = field(default_factory=list)
    make_source: Callable[[SourceSettings], Source] = OwnStream
    observer: Observer | None = None
    make_due: Callable[[Sequence[str]], Awaitable[bool]] | None = None

    @property
    def known_tasks(self) -> Mapping[str, Collection[str | None]]:
        """Of a queue, the names of the tasks that are known here, with None for jobs without one;
        of a queue that is not there, all are."""
        known = {name: queue.known for name, queue in self.handlers.items()}
        return {name: tasks for name, tasks in known.items() if tasks is not None}

    def check_handlers(self) -> None:
        """Raise ConfigurationError when no handler is registered, or one cannot run, or a schedule
        stands above none."""
        if not self.handlers:
            raise ConfigurationError(
                "this worker has no handler: register one per queue, or tasks, first"
            )
        for queue in self.handlers.values():
            for handler in queue:
                handler.check()
            queue.check_batch(self.options.concurrency)
        self.declared_schedules()

    def keep_only(self, queues: Sequence[str]) -> None:
        """Forget the handlers of all other queues, and their schedules.

        Raises:
            ConfigurationError: it has no handler of one of these; or as of :meth:`check_handlers`.
        """
        if unknown := [queue for queue in queues if queue not in self.handlers]:
            raise ConfigurationError(
                f"this worker has no queue {', '.join(map(shown, unknown))}; it has: "
                f"{', '.join(self.handlers)}"
            )
        self.check_handlers()  # what is wrong with the others is so all the same
        self.handlers = {queue: self.handlers[queue] for queue in self.handlers if queue in queues}
        left = [handler for queue in self.handlers.values() for handler in queue]
        self.schedules = [
            one for one in self.schedules if any(stands_above(each, one.function) for each in left)
        ]

    def declared_schedules(self) -> list[Schedule]:
        """Return the schedules that stand above its handlers, or raise ConfigurationError."""
        return schedules_of(self.schedules, self.handlers)
