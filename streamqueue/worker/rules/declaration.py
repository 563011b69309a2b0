"""Storing the rules that the handlers of a worker declare, before it claims anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymongo.errors import OperationFailure

from ... import plain
from ...errors import ConfigurationError
from ...protocol.settings import UNSET
from ...store.collection import UNAUTHORIZED, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...protocol.settings import QueueSettings
    from ...store.asynchronous import AsyncStore
    from ..queues import QueueHandlers

logger = plain.logger("streamqueue.worker")

USE = "@worker.handler(limits=..., ordered=..., fair=...)"


class RuleDeclaration:
    """Makes the rules that the handlers of a worker declare those that hold for their queues.

    A worker whose rules cannot be stored does not start: others would claim as if there were none.
    (Schedules that cannot be stored are left to other workers, since nothing is put by then. And
    so nothing stops one that declares none, and may not take away what an earlier one declared:
    that goes on to hold.)

    Args:
        handlers: by their queues.
    """

    def __init__(
        self, store: AsyncStore, consumer: str, handlers: Mapping[str, QueueHandlers]
    ) -> None:
        self._store = store
        self._consumer = consumer
        self._declared = {queue: handler.rules for queue, handler in handlers.items()}
        self._name = settings_of(store.jobs).full_name

    @property
    def needed(self) -> bool:
        """Whether there are any, without which nobody may claim."""
        return any(self._declared.values())

    async def store(self, settings: Mapping[str, QueueSettings] | None) -> bool:
        """Store them where these settings, which were just read, have others; return whether that
        was so. Nothing is sent if not.

        Args:
            settings: of the queues that have any; None is nothing that this user may know.

        Raises:
            ConfigurationError: they cannot be stored: an index that they need is not there, or the
                user has no right to it.
            PyMongoError: they may not be stored, or not all of them.
        """
        if settings is None:
            if self.needed:
                raise self._refusal("read")
            return False
        news = {
            queue: rules
            for queue, rules in self._declared.items()
            if (settings.get(queue, UNSET).declared or {}) != rules.declared()
        }
        if not news:
            return False
        try:
            await self._store.declare_rules(news, USE)
            await self._tell()
        except OperationFailure as error:
            if error.code != UNAUTHORIZED:
                raise
            if any(news.values()):
                raise self._refusal("change") from error
            for queue in news:
                logger.warning(
                    "Queue %s goes on by rules that no handler here declares: this user has no "
                    "right to change %s (give it the role streamqueueScheduler)",
                    queue,
                    self._name,
                    extra={"event": "rules_left", "consumer": self._consumer, "queue": queue},
                )
            return False
        for queue in news:
            logger.info(
                "Queue %s goes by the rules of its handler here from now on",
                queue,
                extra={"event": "rules_declared", "consumer": self._consumer, "queue": queue},
            )
        return True

    async def _tell(self) -> None:
        try:
            await self._store.ring()
        except ConfigurationError as error:  # the others read it with their safety sweeps
            logger.error(
                "Other consumers may learn late of the rules of this worker's queues: %s",
                error,
                extra={"event": "rules_not_told", "consumer": self._consumer},
            )

    def _refusal(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"{USE} is stored in {self._name} when a worker starts, and this user "
            f"has no right to {what} that: give it the roles streamqueueScheduler and "
            "streamqueueProducer beside streamqueueConsumer (see deploy/mongodb)"
        )
