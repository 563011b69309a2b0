"""What a worker has for each of its queues: handlers, and what holds for all jobs of the queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError
from ..protocol.limits import UNRULED, Rules
from ..protocol.terms import ByTask
from .handler import RegisteredHandler
from .sharing.fairness import Fairness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..metrics.series import ConsumerMetrics, Metrics
    from ..protocol.fitting.kinds import Reader
    from ..protocol.limits import Rule
    from ..protocol.terms import KeepOf, LimitOf, Said
    from .handler import Handler
    from .sharing.shares import Share

Value = TypeVar("Value")


@dataclass(slots=True)
class QueueHandlers:
    """What runs the jobs of a queue.

    Attributes:
        queue: the queue's name.
        handler: for jobs without a task, or for all, if there are no tasks; or None.
        tasks: for the jobs of each task, by its name and by its former ones.
        concurrency: how many of its jobs may run at a time in this process, or None for as many as
            the worker runs.
        weight: its share of the slots, beside other queues that have work.
        rules: how many of its jobs may run, or start, and in which order, over all processes.
    """

    queue: str
    handler: Handler | None = None
    tasks: dict[str, Handler] = field(default_factory=dict)
    concurrency: int | None = None
    weight: int = 1
    rules: Rules = UNRULED

    def __iter__(self) -> Iterator[Handler]:
        """Yield the handlers, each once."""
        if self.handler is not None:
            yield self.handler
        for name, handler in self.tasks.items():
            if name == handler.name:
                yield handler

    @property
    def known(self) -> frozenset[str | None] | None:
        """The tasks whose jobs it runs, None among them for jobs without one; or None for all."""
        if not self.tasks:
            return None
        return frozenset(self.tasks if self.handler is None else (None, *self.tasks))

    def reader(self, task: str | None) -> Reader | None:
        """Return what reads the payloads of jobs of a task, or without one; None takes any."""
        handler = self.handler if task is None else self.tasks.get(task, self.handler)
        return None if handler is None else handler.read

    def check_batch(self, concurrency: int) -> None:
        """Raise ConfigurationError if so many slots can never hold a whole batch of its handler."""
        most = min(concurrency, self.concurrency or concurrency)
        batch = None if self.handler is None else self.handler.batch
        if batch is not None and batch > most:
            raise ConfigurationError(
                f"batch={batch} of queue {self.queue!r} is more than the {most} jobs that may run "
                "at a time (concurrency=), and each job of a batch counts: take a smaller batch, "
                "or raise concurrency, to twice the batch if one is to gather while another runs"
            )

    def joined(self, concurrency: int | None, weight: int, rules: Rules) -> QueueHandlers:
        """Return the same with what is said of the queue where another function is registered.

        Raises:
            ConfigurationError: two of its functions say different things of it.
        """
        return QueueHandlers(
            self.queue,
            self.handler,
            self.tasks,
            self._agreed("concurrency", self.concurrency, concurrency, None),
            self._agreed("weight", self.weight, weight, 1),
            Rules(
                self._limits(rules.limits),
                self._agreed("ordered", self.rules.ordered, rules.ordered, False),
                self.rules.fair or rules.fair,
            ),
        )

    def _agreed(self, name: str, one: Value, other: Value, unsaid: object) -> Value:
        if other == unsaid or one == other:
            return one
        if one == unsaid:
            return other
        raise ConfigurationError(
            f"{name} is said of queue {self.queue!r} twice, as {one!r} and as {other!r}: it holds "
            "for all jobs of the queue, so say it at one of its functions"
        )

    def _limits(self, more: tuple[Rule, ...]) -> tuple[Rule, ...]:
        by_scope = {(rule.per, rule.task): rule for rule in self.rules.limits}
        for rule in more:
            known = by_scope.setdefault((rule.per, rule.task), rule)
            if known != rule:
                raise ConfigurationError(
                    f'two functions of queue {self.queue!r} have different limits with per="'
                    f'{rule.per}"' + (f" of task {rule.task!r}" if rule.task else "") + ": say it "
                    "at one of them"
                )
        return tuple(by_scope.values())


@dataclass(frozen=True, slots=True)
class RegisteredQueue:
    """The same while its worker runs.

    Attributes:
        all: what runs jobs of any task and of none, or None if `by_task` says what does.
        by_task: what runs the jobs of each task that is known here; under None, those without one.
        metrics: of one of these, for what is counted by queue alone.
    """

    all: RegisteredHandler | None
    by_task: Mapping[str | None, RegisteredHandler]
    metrics: ConsumerMetrics
    share: Share | None

    @classmethod
    def of(
        cls,
        queue: QueueHandlers,
        metrics: Metrics,
        share: Share | None,
        context: Mapping[str, Any],
    ) -> RegisteredQueue:
        """Return what runs the jobs of a queue, with its metrics."""
        registered = {
            handler.name: RegisteredHandler(
                handler, metrics.consumer(queue.queue, handler.task), share, context
            )
            for handler in queue
        }
        by_task: dict[str | None, RegisteredHandler] = {
            name: registered[handler.name] for name, handler in queue.tasks.items()
        }
        if queue.handler is not None:
            by_task[None] = registered[None]
        alone = None if queue.tasks else registered[None]
        return cls(alone, by_task, next(iter(registered.values())).metrics, share)

    def of_task(self, task: str | None) -> RegisteredHandler | None:
        """Return what runs a job of this task, or without one; None if that is for others to do."""
        return self.by_task.get(task) if self.all is None else self.all


def limited(queues: Mapping[str, QueueHandlers], concurrency: int) -> dict[str, int]:
    """Return how many slots each queue may have, of those that may not have all."""
    return {
        name: queue.concurrency
        for name, queue in queues.items()
        if queue.concurrency is not None and queue.concurrency < concurrency
    }


def share_slots(queues: Mapping[str, QueueHandlers], concurrency: int) -> bool:
    """Whether it matters how many slots each queue has: there are several, or one that may not have
    all."""
    return len(queues) > 1 or bool(limited(queues, concurrency))


def fairness_of(queues: Mapping[str, QueueHandlers], concurrency: int) -> Fairness:
    """Return what shares so many slots among the queues."""
    return Fairness(concurrency, {name: queue.weight for name, queue in queues.items()})


def limit_of(queues: Mapping[str, RegisteredQueue], default: int) -> LimitOf:
    """Return what says, for a queue, how many attempts a job has that does not say so itself."""
    limits = {
        name: _said(queue, default, lambda handler: handler.max_attempts)
        for name, queue in queues.items()
    }
    return lambda queue: limits.get(queue, default)


def keep_of(queues: Mapping[str, RegisteredQueue], default: float | None) -> KeepOf:
    """Return what says, for a queue, how long a job stays that does not say so itself."""
    kept = {
        name: _said(queue, default, lambda handler: handler.keep) for name, queue in queues.items()
    }
    return lambda queue: kept.get(queue)


def _said(
    queue: RegisteredQueue, default: Said, of: Callable[[Handler], Said]
) -> Said | ByTask[Said]:
    """Return what is said of the jobs of a queue: one value if all of its tasks have the same."""
    said = {task: of(registered.handler) for task, registered in queue.by_task.items()}
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    others = said.pop(None, default)
    return ByTask(others, {task: value for task, value in said.items() if task is not None})
