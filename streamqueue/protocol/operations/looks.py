"""Looks that change nothing: a job by its id, jobs in pages, how many all queues have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..schema import CLAIM_ORDER, INDEXES
from .awaited import NOT_SHOWN
from .commands import Document, Find, Pipeline, union
from .expressions import literal, one_of_ids
from .keys.holding import IS_A_JOB
from .queues import of_queue

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Keys = Sequence[tuple[str, int]]


class Order(NamedTuple):
    """The order in which the jobs of a state are listed: that of the index which has them.

    Attributes:
        keys: what they are sorted by, the id last.
        ties: the index does not have the id, and says nothing of those that are equal else.
    """

    keys: Keys
    ties: bool


_BY_RUN_AT = Order([("run_at", 1), ("_id", 1)], ties=True)
_BY_END = Order([("finished_at", 1), ("_id", 1)], ties=True)
LISTED: Mapping[str, Order] = {
    "running": Order([("locked_until", 1), ("_id", 1)], ties=True),
    "ready": Order(CLAIM_ORDER, ties=False),
    "waiting": _BY_RUN_AT,
    "scheduled": _BY_RUN_AT,
    "dead": _BY_END,
    "cancelled": _BY_END,
    "done": _BY_END,
}
"""The states a job can be in, as they are listed one after the other: what happens now comes first,
what is over last."""

_LARGE = ("payload", "result")


class Wanted(NamedTuple):
    """Which jobs are listed, and what of them.

    Attributes:
        queue: their queue.
        state: their state.
        group: their group; None is any, or none.
        data: with payload and result, which may be megabytes.
    """

    queue: str
    state: str
    group: str | None = None
    data: bool = False

    @property
    def order(self) -> Order:
        """The order in which they are listed."""
        return LISTED[self.state]

    def _filter(self) -> Document:
        group = {} if self.group is None else {"group": {"$eq": self.group}}
        return {**of_queue(self.queue, self.state), **group}

    def _shown(self) -> Document:
        return {"$project": _shown(data=self.data)}


def by_id(queue: str | None, ids: Sequence[Any], *, data: bool = True) -> Find:
    """The jobs with these ids, in a queue or in any."""
    wanted: Document = {"_id": one_of_ids(ids), **IS_A_JOB}
    if queue is not None:
        wanted["queue"] = {"$eq": queue}
    return Find(wanted, _shown(data=data), None, len(ids))


def _shown(*, data: bool) -> Document:
    return dict.fromkeys(NOT_SHOWN if data else NOT_SHOWN + _LARGE, 0)


def first_page(wanted: Wanted, limit: int) -> Pipeline:
    """The first jobs of a state in its order."""
    return _page(wanted, {}, 0, limit)


def next_page(wanted: Wanted, place: Sequence[Any], equal: int, limit: int) -> Pipeline:
    """The first jobs behind a place that have its first `equal` values, and not the one after.

    Those with all but the id come first, those with none last: each is one range of the index,
    which the server does not find by itself in an ``$or`` of them. The values are compared as the
    index does it, of whatever type they are.
    """
    field, direction = wanted.order.keys[equal]
    value: Any = f"${field}"
    if place[equal] is None:
        # For an expression a missing field is less than null, for an index it is the same.
        value = {"$ifNull": [value, None]}
    behind = {"$gt" if direction > 0 else "$lt": [value, literal(place[equal])]}
    return _page(wanted, {**_equal(wanted, place, equal), "$expr": behind}, equal, limit)


def tied(wanted: Wanted, place: Sequence[Any], limit: int) -> Pipeline:
    """The first jobs that differ from a place in the id alone, if at all."""
    equal = len(wanted.order.keys) - 1
    return _page(wanted, _equal(wanted, place, equal), equal, limit)


def _equal(wanted: Wanted, place: Sequence[Any], equal: int) -> Document:
    return {
        field: {"$eq": value}
        for (field, _), value in zip(wanted.order.keys[:equal], place, strict=False)
    }


def _page(wanted: Wanted, which: Document, equal: int, limit: int) -> Pipeline:
    match = {"$match": {**wanted._filter(), **which}}
    keys, ties = wanted.order
    rest = dict(keys[equal:])
    if not ties:
        return [match, {"$sort": rest}, {"$limit": limit}, wanted._shown()]
    if len(rest) == 1:  # sorted by hand; without their payloads, if those are not asked for
        return [match, wanted._shown(), {"$sort": rest}, {"$limit": limit}]
    by_index = {"$sort": dict(keys[:-1])}
    return [match, by_index, {"$limit": limit}, wanted._shown(), {"$sort": rest}]


def counts(collection: str) -> Pipeline:
    """Count the jobs of all queues by queue and state, each part from its index alone.

    (Without the condition on the queue the server reads the whole collection for it.)
    """
    by_state = {"$group": {"_id": {"queue": "$queue", "state": "$state"}, "count": {"$sum": 1}}}
    parts = [index.document["partialFilterExpression"] for index in INDEXES]
    return union(
        collection, ([{"$match": {**part, "queue": {"$gte": ""}}}, by_state] for part in parts)
    )


def read_counts(counts: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Read the answer to :func:`counts`: the queues by name, and of each the states it has jobs
    in. What is no queue, or in no state, is left out."""
    found: dict[str, dict[str, int]] = {}
    for row in counts:
        queue, state = row["_id"].get("queue"), row["_id"].get("state")
        if type(queue) is str and type(state) is str and state in LISTED:
            found.setdefault(queue, {})[state] = row["count"]
    return {
        queue: {state: found[queue][state] for state in LISTED if state in found[queue]}
        for queue in sorted(found)
    }
