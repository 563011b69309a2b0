"""What a queue has: its jobs by state, by id and by key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..document import State
from .commands import Document, Find, Pipeline, Update, union
from .expressions import one_of
from .keys.holding import BARE_HOLDER, holding_on, not_holding_on
from .transitions import CANCELLED, UNLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bson import ObjectId


def of_queue(queue: str, *states: str) -> Document:
    """The filter for every job of a queue, or those in some states."""
    wanted: Document = {"queue": {"$eq": queue}}
    if states:
        wanted["state"] = one_of(states)
    return wanted


COUNTED_STATES: Mapping[str, str] = {
    "available": State.READY,
    "scheduled": State.SCHEDULED,
    "waiting": State.WAITING,
    "locked": State.RUNNING,
    "errors": State.DEAD,
    "done": State.DONE,
    "cancelled": State.CANCELLED,
}
"""What ``stats()`` calls a state: mongoqueue's words."""


def find_jobs(queue: str, ids: Sequence[ObjectId]) -> Find:
    """Which of these jobs this queue has."""
    return Find({"_id": one_of(ids), "queue": {"$eq": queue}}, {"_id": 1}, None, len(ids))


def queue_of(ids: Sequence[Any]) -> Find:
    """The queues of the jobs that have one of these ids."""
    return Find({"_id": one_of(ids)}, {"queue": 1}, None, len(ids))


def key_of(job_id: ObjectId) -> Find:
    """The key of a job, and its task, whatever its state."""
    return Find({"_id": {"$eq": job_id}}, {"key": 1, "task": 1}, None, 1)


_ALL_STATES: Mapping[str, Any] = {
    "not yet": {"$gte": "scheduled"},
    "ready": "ready",
    "running": "running",
    "ended": {"$lt": "ready"},
}
"""All states there are, in the parts that have an index each, and in the order of a job's life.
(The names that are no state's are none that ``stats()`` has.)"""


def all_of_queue(queue: str) -> list[Document]:
    """Filters that together are every job of a queue, each answered from an index.

    To find them by the queue alone the server would read the whole collection. (A state between
    those of two parts, such as ``"recalled"``, is none: no job of any version has it.)
    """
    return [{"queue": {"$eq": queue}, "state": state} for state in _ALL_STATES.values()]


def moved_back(queue: str) -> list[Document]:
    """The same for those that may have gone back past the filter that was to meet them, and for
    those that :func:`give_up_awaited` has ended."""
    return [not_holding_on(wanted) for wanted in all_of_queue(queue)]


def clear_to_holders(queue: str) -> list[Update]:
    """Leave of the jobs of a queue what holds their keys, where those are held for longer."""
    return [to_holders(wanted) for wanted in all_of_queue(queue)]


def to_holders(wanted: Document) -> Update:
    """The same of other jobs."""
    return Update(holding_on(wanted), [BARE_HOLDER])


def give_up_awaited(queue: str) -> list[Update]:
    """End the live jobs of a queue that somebody waits for, since they are about to be removed: who
    waits can tell it from another end, after which the job stays for a while."""
    fields = {**CANCELLED, "removed_at": "$$NOW", **UNLOCK}
    *live, _ = all_of_queue(queue)
    return [Update({**wanted, "awaited": True}, [{"$set": fields}]) for wanted in live]


def size(queue: str, collection: str) -> Pipeline:
    """Count all jobs of a queue, each part from its own index."""
    return union(collection, map(_counted, _ALL_STATES, all_of_queue(queue)))


def read_size(counts: Iterable[Mapping[str, Any]]) -> int:
    """Read the answer to :func:`size`, or the part of that to :func:`stats`."""
    return sum(count["count"] for count in counts if count["_id"] in _ALL_STATES)


def stats(queue: str, collection: str) -> Pipeline:
    """Count a queue's jobs by state, and all of them, each from its own index."""
    states = [
        _counted(name, of_queue(queue, state))
        for name, state in COUNTED_STATES.items()
        if state not in _ALL_STATES
    ]
    return union(collection, [*map(_counted, _ALL_STATES, all_of_queue(queue)), *states])


def _counted(name: str, wanted: Document) -> Pipeline:
    return [{"$match": wanted}, {"$count": "count"}, {"$set": {"_id": name}}]


def read_stats(counts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Read the answer to :func:`stats`; what has no jobs is absent in it."""
    counts = list(counts)
    found = {count["_id"]: count["count"] for count in counts}
    names = {
        name: found.get(name, found.get(str(state), 0)) for name, state in COUNTED_STATES.items()
    }
    return {**names, "total": read_size(counts)}


def stats_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the same numbers of a queue whose jobs were counted by their states."""
    names = {name: counts.get(state, 0) for name, state in COUNTED_STATES.items()}
    return {**names, "total": sum(counts.values())}
