"""What is asked of MongoDB to know how the limits of a queue stand, as plain data; it changes
nothing.

Of running jobs the documents are read, as many as there are; groups are looked up in the indexes of
groups alone, each at the cost of a key or two, and of no more than :data:`MOST_GROUPS`. The indexes
are named, so that nothing is read from the whole collection where they are missing: that is an
error (2) instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from bson import Int64

from ..protocol.document import State
from ..protocol.operations import Find, of_queue, union
from ..protocol.operations.limits import JOINED
from ..protocol.rates import MILLISECOND, bucket_id, pace_of
from ..protocol.schema import DEAD_GROUP_INDEX, GROUP_INDEX, TASK_INDEX
from ..protocol.slots import scope_of
from .queries import short_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..protocol.limits import Rate, Rule
    from ..protocol.operations import Document, Pipeline
    from ..protocol.slots import Scope

MOST_GROUPS = 1000
"""Groups, or tasks, of a limit that are looked at."""
MOST_AHEAD = 100
"""Ready jobs of a group, of those that come first, among which one of a task is looked for."""
LONGEST_GROUP = 2048
"""Bytes of a group: 512 characters."""

BY_GROUP: Mapping[str, Any] = GROUP_INDEX["key"]
BY_DEAD_GROUP: Mapping[str, Any] = DEAD_GROUP_INDEX["key"]
BY_TASK: Mapping[str, Any] = TASK_INDEX["key"]

_ANY_GROUP: Document = {"group": {"$gte": ""}}


def of_task(task: str | None) -> Document:
    """The condition that jobs are of a task; none for None."""
    return {} if task is None else {"task": {"$eq": task}}


def running_under(queue: str, collection: str, rules: Sequence[Rule]) -> Pipeline:
    """Count the running jobs of a queue under each of these limits: those of each task or group
    apart, the fullest first, of no more than :data:`MOST_GROUPS`.

    Rows ``{rule: <its place>, of: <task or group, "" for the queue>, running}``.
    """
    return union(collection, [_running(queue, place, rule) for place, rule in enumerate(rules)])


def _running(queue: str, place: int, rule: Rule) -> Pipeline:
    wanted = {**of_queue(queue, State.RUNNING), **of_task(rule.task)}
    whose: Any = {"$literal": ""}
    if rule.per == "group":
        wanted |= _ANY_GROUP
        whose = short_text("$group", LONGEST_GROUP)
    elif rule.per == "task":
        whose = {"$ifNull": [short_text("$task", LONGEST_GROUP), ""]}
    return [
        {"$match": wanted},
        {"$group": {"_id": whose, "running": {"$sum": 1}}},
        {"$match": {"_id": {"$type": "string"}}},
        {"$sort": {"running": -1, "_id": 1}},
        {"$limit": MOST_GROUPS},
        {"$project": {"_id": 0, "rule": {"$literal": place}, "of": "$_id", "running": 1}},
    ]


def empty_buckets(queue: str, rule: Rule, rate: Rate) -> Find:
    """The buckets of a rate that have no start for now, no more than :data:`MOST_GROUPS`."""
    now = {"$multiply": [{"$toLong": "$$NOW"}, Int64(MILLISECOND)]}
    # The next start is planned an interval after the last one.
    used_up = {"$gt": ["$last", {"$subtract": [now, Int64(pace_of(rate).interval)]}]}
    wanted = {"_id": _buckets(queue, rule), "last": {"$type": "long"}, "$expr": used_up}
    return Find(wanted, {"_id": 1}, limit=MOST_GROUPS)


def _buckets(queue: str, rule: Rule) -> Document:
    prefix = bucket_prefix(queue, rule)
    if is_one(rule):
        return {"$eq": prefix}
    return {"$gte": prefix, "$lt": prefix[:-1] + chr(ord(prefix[-1]) + 1)}


def is_one(rule: Rule) -> bool:
    """Whether all the jobs under a limit are counted together."""
    return rule.per == "queue" or (rule.per == "task" and rule.task is not None)


def bucket_prefix(queue: str, rule: Rule) -> str:
    """Return what the ids of the buckets of a rate begin with; the id, if all share one."""
    scope = cast("Scope", scope_of(rule, rule.task, ""))  # a job of its task is under it
    return bucket_id(queue, scope.name)


def ready_in_groups(
    queue: str, collection: str, groups: Sequence[str], task: str | None
) -> Pipeline:
    """Which of these groups have a ready job that has taken its place, or one of a task among the
    first of them. Rows ``{group}``. To be sent with :data:`BY_GROUP` as its hint.

    The groups are laid beside a job of any group; where there is none, none of them has one.
    """
    ready = {**of_queue(queue, State.READY), **_ANY_GROUP, "seq": JOINED}
    of_its_task: Pipeline = [{"$limit": MOST_AHEAD}, {"$match": of_task(task)}]
    first_of_each = {
        "from": collection,
        "localField": "group",
        "foreignField": "group",
        "pipeline": [
            {"$match": ready},
            {"$sort": {"seq": 1}},
            *([] if task is None else of_its_task),
            {"$limit": 1},
            {"$project": {"_id": 0, "group": 1}},
        ],
        "as": "first",
    }
    return [
        {"$match": {"queue": {"$eq": queue}, **_ANY_GROUP, "state": {"$gte": "ready"}}},
        {"$limit": 1},
        {"$project": {"_id": 0, "group": {"$literal": list(groups)}}},
        {"$unwind": "$group"},
        {"$lookup": first_of_each},
        {"$match": {"first": {"$ne": []}}},
        {"$project": {"group": 1}},
    ]


def ready_tasks(queue: str) -> Pipeline:
    """The tasks that the ready jobs of a queue have, no more than :data:`MOST_GROUPS`. Rows
    ``{_id: <task>}``. To be sent with :data:`BY_TASK` as its hint.

    The server looks at one key for each task, if it is asked in this form.
    """
    return [
        {"$match": {**of_queue(queue, State.READY), "task": {"$gte": ""}}},
        {"$group": {"_id": "$task"}},
        {"$limit": MOST_GROUPS},
    ]


def dead_groups(queue: str) -> Pipeline:
    """The groups of a queue that have a dead job, no more than :data:`MOST_GROUPS`. Rows
    ``{_id: <group>}``. To be sent with :data:`BY_DEAD_GROUP` as its hint.

    The server looks at one key for each group, if it is asked in this form.
    """
    return [
        {"$match": {**of_queue(queue, State.DEAD), **_ANY_GROUP}},
        {"$group": {"_id": "$group"}},
        {"$limit": MOST_GROUPS},
    ]
