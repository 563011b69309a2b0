"""The claim, what goes before it, and how it is undone."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from bson import Decimal128, Int64
from bson.timestamp import Timestamp

from ..document import UNNUMBERED
from ..schema import CLAIM_ORDER, INDEXES
from ..terms import ByTask
from .attempts import held_any
from .commands import Document, Find, Update
from .expressions import count_of, is_date, is_timestamp, later, literal, one_of, one_of_ids
from .keys.holding import LET_GO, LET_GO_AT_START
from .transitions import answered, failed, released

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from bson import ObjectId

    from ..terms import KeepOf, LimitOf


def new_token() -> bytes:
    """Return the identity of one claim: 16 random bytes, never used twice."""
    return os.urandom(16)


_NOT_ASKED_FOR: Document = dict.fromkeys(
    ("v", "state", "seq", "created_at", "locked_until", "progress"), 0
)
_PLACE: Document = dict.fromkeys(("_id", "queue", "priority", "seq"), 1)


RULED_BY = ("task", "group")
"""What the rules of a queue go by."""


def candidates(
    queues: Sequence[str],
    limit: int,
    *,
    bare: bool = False,
    ruled: bool = False,
    tasks: Mapping[str, Collection[str | None]] | None = None,
    known: bool = False,
) -> Find:
    """What waits at the head of the queues: ids and order, read from the index alone.

    Nothing else of a job is read ahead: whoever edits it afterwards changes nothing here, and what
    runs is what the claim returns. But for what the rules of its queue go by, if it is `ruled`; and
    for its task, where only some `tasks` of a queue are known. With `known` those of others are
    passed over.
    """
    fields = RULED_BY if ruled else ("task",) if tasks else ()
    place: Document = {**_PLACE, **dict.fromkeys(fields, 1)} if fields else _PLACE
    wanted: Document = {"queue": one_of(queues), "state": "ready"}
    if tasks and known:
        wanted["$nor"] = [
            {"queue": {"$eq": queue}, "task": {"$nin": list(tasks[queue])}}
            for queue in queues
            if queue in tasks
        ] or [{"queue": None}]
    return Find(wanted, place, CLAIM_ORDER, -limit, bare)


MERGED_QUEUES = 200
"""Of so many queues the server merges what it reads in order, and of more it reads and sorts all
that waits (``internalQueryMaxScansToExplode``; 6.0.5: 45 ms for 30,000 jobs, instead of 3)."""


def merged_parts(queues: Sequence[str]) -> list[Sequence[str]]:
    """Return the queues in parts of so many; of few it is one part."""
    return [queues[at : at + MERGED_QUEUES] for at in range(0, len(queues), MERGED_QUEUES)]


def queues_with_work(collection: str, queues: Sequence[str]) -> Document:
    """Ask which of many queues have ready jobs: the server jumps from one to the next in the index,
    which is named, because it would not by itself (14 ms for 2,000 of them)."""
    return {
        "aggregate": collection,
        "pipeline": [
            {"$match": {"queue": one_of(queues), "state": "ready"}},
            {"$sort": {"queue": 1, "state": 1}},
            {"$group": {"_id": "$queue"}},
        ],
        "hint": INDEXES[0].document["key"],
        "cursor": {"batchSize": 2 * len(queues)},
    }


def claim_order_of(job: Mapping[str, Any]) -> tuple[float, Timestamp]:
    """Return what sorts jobs, as :func:`candidates` reads them, as the server does but for those
    that became ready together; those that have no place come first there too."""
    if not is_placed(job):
        return -math.inf, UNNUMBERED
    priority = job.get("priority")
    if priority is None:
        return math.inf, job["seq"]
    if isinstance(priority, Decimal128):
        priority = priority.to_decimal()
        no_number = priority.is_nan()  # also of the kind that cannot be compared
    else:
        no_number = math.isnan(priority)
    return (math.inf if no_number else -float(priority)), job["seq"]


def not_kept(_queue: str) -> float | None:
    """Say that the jobs of a queue are removed at their end."""
    return None


def claim(
    ids: Sequence[ObjectId],
    queues: Sequence[str],
    consumer: str,
    token: bytes,
    timeout: float,
    until: datetime,
    limit_of: LimitOf,
    keep_of: KeepOf = not_kept,
    slots: Any = None,
) -> Update:
    """Take those of the jobs that are still ready in these queues.

    Each is told how many attempts it is allowed, so that whoever returns it later, from a consumer
    that died, judges it by that: its own number, else what `limit_of` says of its queue, or of its
    task there. And so it is told how long it stays when it has ended, where `keep_of` says that.

    A command that reaches the server after `until`, its time, changes nothing: so there is a moment
    from which on it is known that a claim that was given up will never be applied.

    `slots` is an expression: those that each of them is to have.
    """
    fields = {
        "state": "running",
        "locked_by": {"$literal": consumer},
        "locked_at": "$$NOW",
        "locked_until": later(timeout),
        "lease": token,
        "attempts": {"$add": [count_of("attempts", 0), 1]},
        "allowed": count_of("max_attempts", _by_queue(queues, limit_of)),
        "held_key": LET_GO_AT_START,
    }
    if slots is not None:
        fields["slots"] = slots
    if any(keep_of(queue) is not None for queue in queues):
        fields["kept"] = _by_queue(queues, keep_of)
    return Update(
        {
            "_id": one_of(ids),
            "state": "ready",
            "queue": one_of(queues),
            "$expr": {"$lt": ["$$NOW", until]},
        },
        [{"$set": fields}],
    )


def _by_queue(queues: Sequence[str], value_of: KeepOf | LimitOf) -> Any:
    """What is said of a job by its queue, and there maybe by its task: a number where they agree on
    it; no field for None."""
    by_value: dict[Any, list[str]] = {}
    cases: list[Document] = []
    for queue in queues:
        said = value_of(queue)
        if isinstance(said, ByTask):
            cases += _by_task(queue, said)
            said = said.others
        by_value.setdefault(_or_removed(said), []).append(queue)
    (last, _), *others = by_value.items()
    cases += [{"case": {"$in": ["$queue", names]}, "then": value} for value, names in others]
    return {"$switch": {"branches": cases, "default": last}} if cases else last


def _by_task(queue: str, said: ByTask[Any]) -> list[Document]:
    """The cases of a queue's tasks, those of which the same is said in one."""
    by_value: dict[Any, list[str]] = {}
    for task, value in said.tasks.items():
        if value != said.others:
            by_value.setdefault(_or_removed(value), []).append(task)
    of_queue = {"$eq": ["$queue", queue]}
    return [
        {"case": {"$and": [of_queue, {"$in": ["$task", literal(tasks)]}]}, "then": value}
        for value, tasks in by_value.items()
    ]


def _or_removed(value: float | None) -> Any:
    return "$$REMOVE" if value is None else value


def claimed(ids: Sequence[ObjectId], token: bytes) -> Find:
    """The jobs that a claim took, as they are now: as many as fit into one reply of 16 MB.

    Without what nobody asks a claimed job for: half of a small one, and the dates are the dear part
    of it for the driver.

    In no order, because the server would sort the documents themselves, in a memory of 100 MB.
    """
    return Find({"_id": one_of(ids), "lease": token}, _NOT_ASKED_FOR, limit=-len(ids))


def unclaim(ids: Sequence[ObjectId], tokens: Iterable[bytes]) -> Update:
    """Undo claims whose outcome is unknown; also when they were never applied."""
    return Update(held_any(ids, tokens), released(None))


def bury(ids: Sequence[Any], message: str) -> Update:
    """Make ready jobs dead that nobody could run."""
    return Update({"_id": one_of_ids(ids), "state": "ready"}, failed(message, 0, True))


def quarantine(ids: Sequence[Any]) -> Update:
    """The same for those that take no such change, with a write that does not make them larger.

    A document near 16 MB takes no new fields (error 17419), so there is no room to say why.
    """
    fields = {"state": "dead", **answered(), "held_key": LET_GO}
    return Update({"_id": one_of_ids(ids), "state": "ready"}, [{"$set": fields}])


def adopt(ids: Sequence[ObjectId]) -> Update:
    """Give ready jobs that other programs inserted without it their place in the claim order.

    An absent priority sorts behind every number: behind a backlog such a job would wait for ever.
    What is no timestamp sorts before all of them (but for code and a few others, which no program
    stores there), and what is no number before all numbers: such a job would come before every
    other.
    """
    fields = {
        "priority": {"$cond": [{"$isNumber": "$priority"}, "$priority", 0]},
        "seq": {"$cond": [is_timestamp("seq"), "$seq", "$$CLUSTER_TIME"]},
        "run_at": {"$cond": [is_date("run_at"), "$run_at", "$$NOW"]},
    }
    return Update({"_id": one_of_ids(ids), "state": "ready"}, [{"$set": fields}])


def unplaced(queues: Sequence[str], limit: int) -> Find:
    """The ready jobs behind all others, for want of a priority. (Those that come before all others
    are seen when what waits is read.)"""
    wanted = {"queue": one_of(queues), "state": "ready", "priority": None}
    return Find(wanted, {"_id": 1}, None, -limit, bare=True)


def is_placed(job: Mapping[str, Any]) -> bool:
    """Whether a ready job comes before no other that it should not come before."""
    priority = job.get("priority", 0)
    return type(job.get("seq")) is Timestamp and (priority is None or type(priority) in _NUMBERS)


_NUMBERS = {int, float, Int64, Decimal128}
