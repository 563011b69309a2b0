"""Limiting how many jobs of a queue run or start, in all processes: the methods of both shells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ...durations import shown
from ...errors import ConfigurationError
from ...protocol import operations
from ...protocol.limits import Rate, Rule, Rules, rate_limit, running_limit
from ..flow import run, run_async

if TYPE_CHECKING:
    from types import EllipsisType

    from ..consumer import Consumer
    from ..flow import Flow

PerQueueOrGroup = Literal["queue", "group"]


class BlockingLimiting:
    """What :class:`~streamqueue.MongoQueue` has to set limits with."""

    _name: str
    _consumer: Consumer

    def limit(
        self,
        *,
        running: int | EllipsisType | None = ...,
        rate: Rate | int | EllipsisType | None = ...,
        per: PerQueueOrGroup = "queue",
    ) -> None:
        """Set how many jobs of this queue may run at once, or start in a time, in all processes.

        It is stored, and wins over what a handler declares (``@worker.handler(limits=)``), also of
        workers that are started later. When this returns, a majority of the servers has it; workers
        learn of it within milliseconds, and nobody claims by an older one after two seconds. What
        runs goes on to its end: under a lower limit nothing starts until enough has ended. What is
        held back stays ready.

        What is not given stays as it is; ``None`` takes away what was set here, and then what the
        handler declares holds again.

        Args:
            running: how many may run at once, from 1 to a million; it counts leases. Needs an
                index.
            rate: how many may start in a time: a :class:`~streamqueue.Rate`, or a whole number of
                starts in a second, spread over it.
            per: whether all jobs of the queue are meant together, ``"queue"``, the default, or
                those of each ``"group"``, every one of which may have as many. Needs indexes.

        Raises:
            ConfigurationError: an argument out of its range, or none; an index that it needs is not
                there, and cannot be made. Nothing was changed. Or it is stored, but the collection
                refuses the document by which others learn of it, as with :meth:`pause`.
            PyMongoError: the server, or the user has no right to it; after a timeout or a lost
                connection the limit may be set, or some may not know of it: repeat it.
        """
        run(_limit(self._consumer, self._name, running, rate, per))


class AsyncLimiting:
    """What :class:`~streamqueue.AsyncMongoQueue` has to set limits with."""

    _name: str
    _consumer: Consumer

    async def limit(
        self,
        *,
        running: int | EllipsisType | None = ...,
        rate: Rate | int | EllipsisType | None = ...,
        per: PerQueueOrGroup = "queue",
    ) -> None:
        """Set how many jobs of this queue may run at once, or start in a time, in all processes.

        It is stored, and wins over what a handler declares (``@worker.handler(limits=)``), also of
        workers that are started later. When this returns, a majority of the servers has it; workers
        learn of it within milliseconds, and nobody claims by an older one after two seconds. What
        runs goes on to its end: under a lower limit nothing starts until enough has ended. What is
        held back stays ready.

        What is not given stays as it is; ``None`` takes away what was set here, and then what the
        handler declares holds again.

        Args:
            running: how many may run at once, from 1 to a million; it counts leases. Needs an
                index.
            rate: how many may start in a time: a :class:`~streamqueue.Rate`, or a whole number of
                starts in a second, spread over it.
            per: whether all jobs of the queue are meant together, ``"queue"``, the default, or
                those of each ``"group"``, every one of which may have as many. Needs indexes.

        Raises:
            ConfigurationError: an argument out of its range, or none; an index that it needs is not
                there, and cannot be made. Nothing was changed. Or it is stored, but the collection
                refuses the document by which others learn of it, as with :meth:`pause`.
            PyMongoError: the server, or the user has no right to it; after a timeout or a lost
                connection the limit may be set, or some may not know of it: repeat it.
        """
        await run_async(_limit(self._consumer, self._name, running, rate, per))


def _limit(
    consumer: Consumer, queue: str, running: object, rate: object, per: object
) -> Flow[None]:
    if per not in ("queue", "group") or not isinstance(per, str):
        raise ConfigurationError(
            f'per must be "queue" or "group", not {shown(per)}; a limit of a task is declared '
            "where the task is"
        )
    changes: dict[str, Any] = {}
    if running is not ...:
        changes["running"] = None if running is None else running_limit(running)
    if rate is not ...:
        changes["rate"] = None if rate is None else rate_limit(rate)
    if not changes:
        raise ConfigurationError("give running or rate: what is to change")
    scope: PerQueueOrGroup = "group" if per == "group" else "queue"
    rule = Rule(scope, None, changes.get("running"), changes.get("rate"))
    needed = Rules((rule,)).features if rule.running or rule.rate else set()
    stored = rule.stored()
    command = operations.limit(queue, scope, {name: stored.get(name) for name in changes})
    yield from consumer.change_settings(command, sorted(needed), "limit(...)")
