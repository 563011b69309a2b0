"""Time for tests: what is stored moves back, since the server's clock cannot be moved forward."""

from __future__ import annotations

import sys
import time
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from .. import plain
from ..durations import milliseconds, seconds
from ..protocol import operations
from ..store.asynchronous import AsyncStore
from ..store.collection import rates_beside, settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pymongo.asynchronous.collection import AsyncCollection

logger = plain.logger("streamqueue.testing")


async def advance(jobs: AsyncCollection[Any], by: float | timedelta) -> None:
    """Let time pass for all jobs of a collection: what is stored moves back by so much.

    That is when jobs are to run, when they expire, when leases end, until when keys are held and
    ended jobs kept, when schedules are to fire, and what rates have counted. What is kept no longer
    is removed at once. Workers that run hear of it; those that run a job have lost its lease, if it
    is over by then.

    Args:
        jobs: an ``AsyncCollection`` (or ``AsyncDatabase``: its ``jobs`` collection).
        by: seconds, or a timedelta.

    Raises:
        ConfigurationError: not a duration, or one below zero.
    """
    span = milliseconds(seconds(by, "by"))
    say_if_time_is_patched()
    store = AsyncStore(jobs)
    settings = settings_of(store.jobs)
    rates = store.jobs.database[rates_beside(store.jobs.name)]
    await store.jobs.update_many(*operations.move_jobs_back(span))
    await store.jobs.delete_many(operations.over_by_now())
    await rates.update_many(*operations.move_rates_back(span))
    await settings.update_many(*operations.move_subscriptions_back(span))
    moved = await settings.update_many(*operations.move_schedules_back(span))
    if moved.modified_count:
        await store.ring()  # running workers read when they fire


async def make_due(store: AsyncStore, queues: Sequence[str]) -> bool:
    """Make due what is to run later in these queues; return whether there was any."""
    return bool((await store.jobs.update_many(*operations.make_due(queues))).matched_count)


def say_if_time_is_patched() -> None:
    """Say in a line that the clock of this process was replaced, which moves no job."""
    by = None
    travel = getattr(sys.modules.get("time_machine"), "escape_hatch", None)
    if travel is not None and travel.is_travelling():
        by = "time_machine"
    elif not isinstance(time.time, BuiltinFunctionType):
        by = "freezegun" if "freezegun" in sys.modules else "somebody"
    if by is not None:
        logger.warning(
            "The time of this process is patched (%s): jobs go by the clock of MongoDB, which is "
            "not; advance(jobs, seconds) moves them",
            by,
            extra={"event": "time_patched", "reason": by},
        )
