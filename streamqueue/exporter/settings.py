"""What the settings of a collection say of its queues: pauses, rules, schedules, subscriptions to
topics.

Anybody who may pause a queue may have written anything there; what is not understood is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..names import is_name
from ..protocol.schedules import PREFIX as SCHEDULE
from ..protocol.settings import QueueSettings
from ..protocol.stored import seconds_in, text_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..protocol.limits import Rules
    from .counts import Census

    Rows = Iterable[Mapping[str, Any]]

LATE_AFTER = 5.0
"""Seconds after its tick from which a schedule is named as late: to fire one takes a moment."""
MOST_NAMED = 100
"""Schedules that are named as late, and as paused."""


def note_paused(census: Census, rows: Rows) -> None:
    """Note which queues are paused."""
    for row in rows:
        if is_name(row["_id"]) and row.get("paused") is True:
            census.queue(row["_id"]).paused = True


def rules_in(rows: Rows) -> dict[str, Rules]:
    """Return the rules of those queues that have some. (Of one that has nothing else, neither jobs
    nor consumers, there is nothing to be said.)"""
    found = {
        row["_id"]: QueueSettings.from_document(row).rules for row in rows if is_name(row["_id"])
    }
    return {name: rules for name, rules in found.items() if rules}


def note_schedules(census: Census, rows: Rows) -> None:
    """Note how late the schedules of each queue are, and name those that are late or paused."""
    late: dict[str, float] = {}
    paused: list[str] = []
    for row in rows:
        name = (text_in(row["_id"]) or "").removeprefix(SCHEDULE)
        if row.get("paused") is True:
            if is_name(name):
                paused.append(name)
            continue
        overdue = seconds_in(row.get("late", 0) / 1000, 0.0) or 0.0
        overdue -= seconds_in(row.get("spread"), 0.0) or 0.0
        if is_name(row.get("queue")):
            queue = census.queue(row["queue"])
            queue.has_schedules = True
            queue.schedules_late = max(queue.schedules_late, overdue)
        if is_name(name) and overdue > LATE_AFTER:
            late[name] = overdue
    latest_first = sorted(late.items(), key=lambda one: -one[1])
    census.late_schedules = dict(latest_first[:MOST_NAMED])
    census.paused_schedules = sorted(paused)[:MOST_NAMED]


def note_subscriptions(census: Census, rows: Rows) -> None:
    """Note to how many topics each queue subscribes."""
    for row in rows:
        if is_name(row["_id"]):
            census.queue(row["_id"]).subscriptions = row["count"]
