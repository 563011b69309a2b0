"""Schedules: declared, read, taken and changed, all in the collection of settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...schedules import KIND, PREFIX, Source
from ...schema import FIRST_DATE, LAST_DATE
from ..commands import Document, Find, Update
from ..expressions import is_date, milliseconds_since, one_of
from .queues import OBEYED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ...schedules import CatchUp, Schedule, Step, StoredSchedule

MOST_SCHEDULES = 10_000
"""Schedules that are read of a collection."""

_ALL: Document = {"_id": {"$gte": PREFIX, "$lt": PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)}}


_HAS_LAST_TICK: Document = {
    "$and": [
        is_date("last_tick"),
        {"$gte": ["$last_tick", FIRST_DATE]},
        {"$lte": ["$last_tick", LAST_DATE]},
    ]
}
"""An expression: the last tick is one that every program can read."""

_TIMES = ("queue", "rule", "spread", "digest", "source", "declared_by", "last_tick")
"""What says when a schedule fires, and who, beside whether it is paused. Payloads may be
megabytes."""


def schedules() -> Find:
    """All schedules of a collection, in the order of their names."""
    return Find(_ALL, None, [("_id", 1)], MOST_SCHEDULES)


def settings_and_schedules(queues: Sequence[str]) -> Find:
    """What is stored of these queues, and when which schedule fires."""
    wanted = {"$or": [{"_id": one_of(queues)}, _ALL]}
    fields: Document = dict.fromkeys((*_TIMES, *OBEYED), 1)
    return Find(wanted, fields, limit=MOST_SCHEDULES + len(queues))


def every_schedule() -> Document:
    """The filter for the schedules among the settings."""
    return dict(_ALL)


def is_schedule(document: Mapping[str, Any]) -> bool:
    """Whether a document of the settings is a schedule."""
    name = document.get("_id")
    return isinstance(name, str) and name.startswith(PREFIX)


def schedules_late() -> Find:
    """How many milliseconds ago each schedule should have fired, and which are paused."""
    late = milliseconds_since("next_tick", no_date=0)
    paused = {"$eq": ["$paused", True]}
    projection = {"queue": 1, "spread": 1, "late": late, "paused": paused}
    return Find(_ALL, projection, [("_id", 1)], MOST_SCHEDULES)


def schedules_named(names: Sequence[str]) -> Find:
    """All that is stored of these, as ``found``, with the server's time as ``now``."""
    wanted = {"_id": one_of([PREFIX + name for name in names])}
    return Find(wanted, {"found": "$$ROOT", "now": "$$NOW"})


def digests_of(names: Sequence[str]) -> Find:
    """Which texts of these are stored."""
    return Find({"_id": one_of([PREFIX + name for name in names])}, {"digest": 1})


def declare(schedule: Schedule, source: Source, by: str, next_tick: datetime | None) -> Update:
    """Store what was said of a schedule. An upsert, which a duplicate key fails when there is one
    of that name from another source.

    A new rule fires from now on; another text of the same rule goes on where it was, and so does a
    pause in both cases.
    """
    same = {"$and": [{"$eq": ["$rule", {"$literal": schedule.rule.document()}]}, _HAS_LAST_TICK]}
    of_rule = {"last_tick": "$$NOW", "next_tick": {"$literal": next_tick}, "behind": "$$REMOVE"}
    other: Source = "stored" if source == "code" else "code"
    return Update(
        {"_id": {"$eq": PREFIX + schedule.name}, "source": {"$ne": other}},
        [
            {"$set": {name: {"$cond": [same, f"${name}", new]} for name, new in of_rule.items()}},
            {
                "$set": {
                    "kind": KIND,
                    "name": {"$literal": schedule.name},
                    "task": "$$REMOVE",  # of an earlier text
                    **{name: {"$literal": value} for name, value in schedule.said().items()},
                    "digest": {"$literal": schedule.digest},
                    "source": source,
                    "declared_by": {"$literal": by},
                    "declared_at": "$$NOW",
                }
            },
        ],
    )


def take(
    schedule: StoredSchedule, step: Step, next_tick: datetime | None, job_id: Any = None
) -> Update:
    """Move the last tick of a schedule forward, which only one can, and none before it is due, or
    for a schedule that is paused or says something else by now.

    Args:
        job_id: of the job that is put with it.
    """
    due = step.tick + schedule.delay
    change: Document = {
        "last_tick": step.tick,
        "next_tick": {"$literal": next_tick},
        "behind": {"$literal": step.behind._asdict()} if step.behind else "$$REMOVE",
    }
    if job_id is not None:
        change["last_job"] = {"$literal": job_id}
    return Update(
        {
            **_as_read(schedule),
            "last_tick": {"$lt": step.tick},
            "$expr": {"$gte": ["$$NOW", due]},
        },
        [{"$set": change}],
    )


def begin_anew(schedule: StoredSchedule, next_tick: datetime | None) -> Update:
    """Have a schedule fire from now on, as a new one does: its last tick is lost."""
    return Update(
        {**_as_read(schedule), "$expr": {"$not": [_HAS_LAST_TICK]}},
        [
            {"$set": {"last_tick": "$$NOW", "next_tick": {"$literal": next_tick}}},
            {"$unset": "behind"},
        ],
    )


def _as_read(schedule: StoredSchedule) -> Document:
    """A filter: the schedule says what was read, and is not paused. (What another program has
    damaged of its digest is none; whoever changes a schedule stores a text.)"""
    digest: Document = {"digest": {"$eq": schedule.digest}}
    if schedule.digest is None:  # (a list of texts is of the type string, too)
        no_text = {"$not": {"$type": "string"}}
        digest = {"$or": [{"digest": {"$type": "array"}}, {"digest": no_text}]}
    return {"_id": {"$eq": PREFIX + schedule.name}, "paused": {"$ne": True}, **digest}


def note_last_job(name: str, job_id: Any) -> Update:
    """Say that the last tick's job is another one, or none was put for it."""
    return Update({"_id": {"$eq": PREFIX + name}}, [{"$set": {"last_job": {"$literal": job_id}}}])


def pause_schedule(name: str) -> Update:
    """Pause a schedule; one that is paused stays so since then."""
    since = {"$cond": [{"$eq": ["$paused", True]}, "$paused_at", "$$NOW"]}
    return Update({"_id": {"$eq": PREFIX + name}}, [{"$set": {"paused": True, "paused_at": since}}])


def resume_schedule(name: str, catch_up: CatchUp | None, next_tick: datetime | None) -> Update:
    """Let a schedule go on; one that is not paused stays as it is.

    Args:
        catch_up: which ticks of the pause are put; None: all of them are over.
    """
    change: Document = {
        "last_tick": "$$NOW",
        "behind": "$$REMOVE",
        "next_tick": {"$literal": next_tick},
    }
    if catch_up is not None:
        left = {"$ifNull": ["$catch_up_limit", 1]}
        change = {"behind": {"until": "$$NOW", "left": left, "catch_up": catch_up}}
    paused = {"$eq": ["$paused", True]}
    return Update(
        {"_id": {"$eq": PREFIX + name}},
        [
            {
                "$set": {
                    field: {"$cond": [paused, new, f"${field}"]} for field, new in change.items()
                }
            },
            {"$unset": ["paused", "paused_at"]},
        ],
    )


def schedule_at(name: str) -> Document:
    """The filter for a schedule."""
    return {"_id": {"$eq": PREFIX + name}}
