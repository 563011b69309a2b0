"""Storing what the code of a worker declares, when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import CancelScope
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from ... import plain
from ...errors import ConfigurationError
from ...protocol import operations
from ...protocol.schedules import PREFIX
from ...store.collection import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...protocol.schedules import Schedule
    from ...store.asynchronous import AsyncStore

logger = plain.logger("streamqueue.schedules")


class Declaration:
    """Stores the schedules that a worker declares.

    Args:
        changed: called when something was stored that this worker is to read.
    """

    def __init__(
        self,
        store: AsyncStore,
        consumer: str,
        declared: Sequence[Schedule],
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._consumer = consumer
        self._declared = list(declared)
        self._changed = changed
        self._settings = settings_of(store.jobs)

    async def store(self, *, again: bool) -> None:
        """Store them, and tell all workers if that was news.

        Args:
            again: an earlier try has failed, and may have stored them without telling.

        Raises:
            PyMongoError: they may not be stored, or not all of them.
        """
        await self._store.prepare()
        before = await self._digests()
        now = self._store.clock.now()
        changes = [
            UpdateOne(
                *operations.declare(one, "code", self._consumer, one.rule.next(now)), upsert=True
            )
            for one in self._declared
        ]
        with CancelScope(shield=True), self._store.limit():
            try:
                await self._settings.bulk_write(changes, ordered=False)
            except BulkWriteError as error:
                problems = operations.errors_of_each(error, len(changes))
                for one, problem in zip(self._declared, problems, strict=True):
                    if problem is not None:
                        _not_declared(one.name, problem)
        if again or any(before.get(one.name) != one.digest for one in self._declared):
            self._changed()
            await self._tell()

    async def _digests(self) -> dict[str, object]:
        """Return the digests of what is stored of them."""
        names = [one.name for one in self._declared]
        rows = await self._store.read_settings(operations.digests_of(names))
        return {row["_id"].removeprefix(PREFIX): row.get("digest") for row in rows}

    async def _tell(self) -> None:
        try:
            await self._store.ring()
        except ConfigurationError as error:  # the others read it with their safety sweeps
            logger.error(
                "Other workers may learn late of the schedules of this one: %s",
                error,
                extra={"event": "schedules_not_told", "consumer": self._consumer},
            )


def _not_declared(name: str, problem: Exception) -> None:
    if not operations.is_repeated_put(problem):
        raise problem
    logger.error(
        "Schedule %s is not declared: there is a stored one of that name, made with "
        "Schedules.add(), which goes on. Give one of them another name, or remove that one",
        name,
        extra={"event": "schedule_not_declared", "schedule": name},
    )
