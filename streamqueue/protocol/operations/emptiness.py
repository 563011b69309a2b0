"""What is left in the queues of a worker that is to end when nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..document import State
from .commands import Document, Pipeline, union
from .expressions import one_of, past

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DUE, READY, RUNNING, READY_AGAIN = "due", "ready", "running", "ready again"
SCHEDULED, WAITING, PAUSED = "scheduled", "waiting", "paused"


def left_in(queues: Sequence[str], paused: Sequence[str], collection: str) -> Pipeline:
    """Count what is to be done in these queues, and what is not to be waited for: jobs that are
    scheduled or waiting in them or in the paused ones, and those that are ready in the latter.

    Rows ``{_id: <one of the names above>, count}``; what has none is absent.

    The parts are read one after the other, in the order of a job's life, so that one that goes on
    meanwhile is met on its way; and who goes back from running to ready is met by the last part.
    """
    every = [*queues, *paused]
    looks: list[tuple[str, Document]] = [
        (DUE, {**_of(queues, State.SCHEDULED), **past("run_at")}),
        (READY, _of(queues, State.READY)),
        (RUNNING, _of(queues, State.RUNNING)),
        (READY_AGAIN, _of(queues, State.READY)),
        (SCHEDULED, _of(every, State.SCHEDULED)),
        (WAITING, _of(every, State.WAITING)),
        (PAUSED, _of(paused, State.READY)),
    ]
    counts: Iterable[Pipeline] = (
        [{"$match": wanted}, {"$count": "count"}, {"$set": {"_id": name}}] for name, wanted in looks
    )
    return union(collection, counts)


def read_left(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Read the answer to :func:`left_in`."""
    names = (DUE, READY, RUNNING, SCHEDULED, WAITING, PAUSED)
    found = {row["_id"]: row["count"] for row in rows}
    ready = max(found.get(READY, 0), found.get(READY_AGAIN, 0))
    return {**{name: found.get(name, 0) for name in names}, READY: ready}


def ends_of_attempts() -> Pipeline:
    """What the server filters of events for whoever waits until nobody runs a job any more: a job
    was removed, or has another state. Of which queue is not known of most."""
    changed = {"updateDescription.updatedFields.state": {"$exists": True}}
    wanted = [{"operationType": {"$in": ["delete", "replace"]}}, changed]
    return [{"$match": {"$or": wanted}}, {"$project": {"documentKey": 1}}]


def _of(queues: Sequence[str], state: State) -> Document:
    return {"queue": one_of(queues), "state": str(state)}
