"""ScheduleInfo: a schedule as it was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import bson

from ...protocol.document import BARE_CODEC, CODEC, ENCODING_ERRORS
from ...protocol.ticks import three_ticks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from ...protocol.schedules import CatchUp, Source, StoredSchedule


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule as it was when it was looked at. Reading it sends nothing.

    Times are aware, in UTC, and by the server's clock.

    Attributes:
        name: its name.
        queue: the name of the queue that its jobs go to.
        cron: its line of cron, or None.
        every: seconds from one tick to the next, or None.
        offset: seconds by which the ticks of `every` are moved.
        timezone: the zone that `cron` is read in.
        next: its next three ticks; empty while it is paused, or where its rule cannot be read.
        last_tick: the moment up to which its ticks were put or left out: the last tick, or when it
            was declared or resumed.
        last_job: the id of the job of the last tick, or None.
        paused: whether it does not fire, because somebody has said so.
        source: ``"code"`` for one that workers declare, ``"stored"`` for one that was added.
        declared_by: the consumer, or the process, that said so last.
        declared_at: when.
        spread: seconds over which schedules of the same moments begin.
        catch_up: what becomes of ticks that were missed.
        catch_up_limit: how many of them are put at the most.
        payload: of its jobs.
        put: the settings that they are put with.
        task: the name of the task that they are calls of, or None.
    """

    name: str
    queue: str
    cron: str | None
    every: float | None
    offset: float
    timezone: str
    next: tuple[datetime, ...]
    last_tick: datetime | None
    last_job: Any
    paused: bool
    source: Source
    declared_by: str | None
    declared_at: datetime | None
    spread: float
    catch_up: CatchUp
    catch_up_limit: int
    payload: Mapping[str, Any]
    put: Mapping[str, Any]
    task: str | None

    @classmethod
    def from_stored(cls, stored: StoredSchedule, now: datetime) -> ScheduleInfo:
        """Return what is shown of a stored schedule at this time of the server."""
        rule = stored.rule
        coming: tuple[datetime, ...] = ()
        if rule is not None and not stored.paused:
            coming = tuple(three_ticks(rule, max(now, stored.last_tick or now)))
        return cls(
            name=stored.name,
            queue=stored.queue,
            cron=rule.cron if rule else None,
            every=rule.every if rule else None,
            offset=rule.offset if rule else 0.0,
            timezone=rule.timezone if rule else "UTC",
            next=coming,
            last_tick=stored.last_tick,
            last_job=stored.last_job,
            paused=stored.paused,
            source=stored.source,
            declared_by=stored.declared_by,
            declared_at=stored.declared_at,
            spread=stored.spread,
            catch_up=stored.catch_up,
            catch_up_limit=stored.catch_up_limit,
            payload=_as_of_a_job(stored.payload),
            put=stored.put,
            task=stored.task,
        )


def _as_of_a_job(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a payload that was read as anybody's, as its jobs show it: with UUIDs."""
    try:
        return bson.decode(bson.encode(payload, codec_options=BARE_CODEC), CODEC)
    except ENCODING_ERRORS:  # a UUID of three bytes
        return payload
