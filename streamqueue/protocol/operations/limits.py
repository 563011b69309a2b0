"""Claims under a rule of their queue: what is looked at before them, and what they write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pymongo import ASCENDING

from ..document import UNNUMBERED
from ..schema import GROUP_INDEX, SLOTS_INDEX, TASK_INDEX
from .claims import RULED_BY
from .commands import Document, Find, Update
from .expressions import literal, one_of, one_of_ids
from .replies import clash

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLACE: Document = dict.fromkeys(("_id", "queue", "priority", "seq", *RULED_BY), 1)
JOINED: Document = {"$gt": UNNUMBERED}


def running_jobs(queues: Sequence[str]) -> Find:
    """The running jobs of these queues, with the slots that they have."""
    wanted = {"queue": one_of(queues), "state": "running"}
    return Find(wanted, dict.fromkeys(("_id", "queue", "slots", *RULED_BY), 1), bare=True)


def of_others(
    field: Literal["group", "task"], queue: str, passed: Sequence[str], after: str, limit: int
) -> Find:
    """Ready jobs of a queue that are of none of these groups, or tasks, in the order of those, from
    behind one on; the index is named, for the server would rather read them in the order of claims,
    and what is passed over with them."""
    name: Document = {"$gt": after} if after else {"$gte": ""}
    if passed:
        name["$nin"] = list(passed)
    index = GROUP_INDEX if field == "group" else TASK_INDEX
    return Find(
        {"queue": {"$eq": queue}, field: name, "seq": JOINED, "state": "ready"},
        _PLACE,
        [(field, ASCENDING), ("seq", ASCENDING)],
        -limit,
        True,
        list(index["key"].items()),
    )


SNAPSHOT_GONE = frozenset({239, 246})
"""Codes of the server: it has no snapshot to read from for the moment, as right after an index was
made."""


def heads_of(jobs: str, queue: str, groups: Sequence[str], *, strict: bool = False) -> Document:
    """The first of the live jobs of each of these groups, ready or not: a command, sent to the
    document that says the rules of the queue, which is there.

    What has a place in its group has a ``seq``: not one that waits for its time, or for others.

    If that is `strict`, a group with a dead job has no first one. Both are of one snapshot: else a
    job could be dead when the live ones are looked for, and requeued when the dead ones are.
    """
    member: Document = {
        "queue": {"$eq": queue},
        "group": {"$gte": ""},
        "state": {"$gte": "ready"},
        "seq": JOINED,
    }
    dead: Document = {"queue": {"$eq": queue}, "group": {"$gte": ""}, "state": "dead"}
    no_dead: list[Document] = [
        _look_up(jobs, [{"$match": dead}, {"$limit": 1}, {"$project": {"_id": 1}}], "dead"),
        {"$match": {"dead": []}},
    ]
    first: list[Document] = [
        {"$match": member},
        {"$sort": {"seq": 1, "state": -1}},  # as in the index
        {"$limit": 1},
        {"$project": {**_PLACE, "state": 1}},
    ]
    return {
        "aggregate": f"{jobs}.settings",
        "pipeline": [
            {"$match": {"_id": {"$eq": queue}}},
            {"$limit": 1},
            {"$project": {"_id": 0, "group": literal(list(groups))}},
            {"$unwind": "$group"},
            *(no_dead if strict else ()),
            _look_up(jobs, first, "head"),
            {"$unwind": "$head"},
            {"$replaceRoot": {"newRoot": "$head"}},
        ],
        "cursor": {"batchSize": len(groups) + 1},
        **({"readConcern": {"level": "snapshot"}} if strict else {}),
    }


def _look_up(jobs: str, pipeline: Sequence[Document], name: str) -> Document:
    """A stage: what a pipeline finds among the jobs of each group."""
    by = {"localField": "group", "foreignField": "group"}
    return {"$lookup": {"from": jobs, **by, "pipeline": list(pipeline), "as": name}}


def slots_of(ids: Sequence[Any], slots: Sequence[Sequence[str]]) -> Any:
    """An expression: the slots of the job that is claimed, which are in the place of its id. One
    without any has no such field: an empty list is a value of the index like any other."""
    texts = [literal(list(each)) if each else None for each in slots]
    if len(ids) == 1:
        return texts[0] or "$$REMOVE"
    place = {"$indexOfArray": [list(map(literal, ids)), "$_id"]}
    return {"$ifNull": [{"$arrayElemAt": [texts, place]}, "$$REMOVE"]}


def unslot(ids: Sequence[Any]) -> Update:
    """Take the slots from ready jobs, which have none unless another program wrote them."""
    return Update({"_id": one_of_ids(ids), "state": "ready"}, [{"$unset": "slots"}])


def is_slot_taken(error: BaseException | None) -> bool:
    """Whether it says of a claim that a running job has one of its slots."""
    return isinstance(error, Exception) and clash(error) == list(SLOTS_INDEX["key"])
