"""What people and other programs do to a queue besides: edits by hand, and open transactions.

All of it is acknowledged by a majority and written down, so that the checker knows what a job was
at every time. Nothing here goes by way of the queue, but for ``requeue``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
from bson import ObjectId
from pymongo import MongoClient, WriteConcern
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import PyMongoError

from drills.history import History, digest_of
from streamqueue import MongoQueue, StreamQueueError
from streamqueue.clock import monotonic

MAJORITY = WriteConcern("majority", wtimeout=10_000)
PATIENCE = 1.0
"""Seconds an operator waits for one write: the document may be in somebody's transaction."""
FAR = 3600.0
ATTEMPTS = 20

Job = Mapping[str, Any]


class NotThere(StreamQueueError):
    """The document is not, or no longer, as the edit asks for: nothing was changed."""


class Operator:
    """Edits documents by hand.

    Args:
        jobs: the collection, read as the majority has it.
        queues: between which jobs are moved; all of them are served.
        avoided: jobs that nobody can change for the moment.

    Attributes:
        done: how often what was done, by name.
    """

    def __init__(
        self,
        jobs: Collection[dict[str, Any]],
        history: History,
        queues: tuple[str, str],
        avoided: Callable[[], list[Any]] = list,
    ) -> None:
        self._jobs = jobs.with_options(write_concern=MAJORITY)
        self._history = history
        self._queues = queues
        self._avoided = avoided
        self._shells = {name: MongoQueue(self._jobs, name=name) for name in queues}
        self._number = 0
        self._far: list[Job] = []
        self._buried: list[Job] = []
        self._own: list[dict[str, Any]] = []
        self.done: Counter[str] = Counter()

    def act(self) -> None:
        """Do one thing, at random."""
        self.do(random.choice([*DEEDS, *SLOW]))

    def do(self, name: str) -> None:
        """Do one of ``DEEDS``, if it can be done now."""
        try:
            self.done[name] += DEEDS[name](self)
        except PyMongoError:
            pass  # no server to look at for the moment

    def settle(self) -> bool:
        """Bring what was put off or buried back to work; return whether all of it is."""
        try:
            self._far = [job for job in self._far if not self._brought_near(job)]
            self._buried = [job for job in self._buried if not self._requeue(job)]
        except PyMongoError:
            return False
        return not self._far and not self._buried

    def close(self) -> None:
        for shell in self._shells.values():
            shell.close()

    # deeds: each returns how many documents it changed, 0 or 1

    def payload(self) -> bool:
        """Change one field of a payload, as long as nobody has taken the job."""
        job = self._pick(state="ready")
        if job is None:
            return False
        self._number += 1
        payload = {**job["payload"], "edited": self._number}
        return self._edit(
            job,
            "payload",
            {"$set": {"payload.edited": self._number}},
            {"state": "ready", "payload.edited": job["payload"].get("edited")},
            digest=digest_of(payload),
        )

    def priority(self) -> bool:
        """Move a waiting job forward or back."""
        job = self._pick(state="ready")
        change = {"$set": {"priority": random.randint(-5, 5)}}
        return job is not None and self._edit(job, "priority", change, {"state": "ready"})

    def queue(self) -> bool:
        """Move a waiting job to another queue."""
        job = self._pick(state="ready")
        if job is None:
            return False
        there = self._queues[job["queue"] == self._queues[0]]
        wanted = {"state": "ready", "queue": job["queue"]}
        return self._edit(job, "queue", {"$set": {"queue": there}}, wanted, queue=there)

    def run_at(self) -> bool:
        """Move a job that is due in an hour to where nobody's timer expects it."""
        if not self._far:
            job = self._new(state="scheduled", run_at=datetime.now(UTC) + timedelta(seconds=FAR))
            self._insert(job, delay=FAR)
            self._far.append(job)  # also when nobody answered: it may be there
            return False
        farthest = self._far[0]
        moved = self._move(farthest, random.choice([0.0, 0.2, 1.0]))
        if moved:
            self._far.remove(farthest)
        return moved

    def _move(self, job: Job, delay: float) -> bool:
        due: Any = datetime.now(UTC) + timedelta(seconds=delay)
        change: Any = {"$set": {"run_at": due}}
        if random.random() < 0.5:  # as a pipeline, which surfaces as another kind of event
            change = [{"$set": {"run_at": {"$add": ["$$NOW", round(1000 * delay)]}}}]
        return self._edit(job, "run_at", change, {"state": "scheduled"}, delay=delay)

    def _brought_near(self, job: Job) -> bool:
        """Have it due now, unless it is already by an edit that was made and not answered."""
        found = self._jobs.find_one({"_id": job["_id"], "state": "scheduled"})
        return found is None or _near(found) or self._move(job, 0.0)

    def lease(self) -> bool:
        """End the lease of a running job now."""
        job = self._pick(state="running")
        if job is None or "lease" not in job:
            return False
        change: Any = {"$set": {"locked_until": datetime.now(UTC)}}
        if random.random() < 0.5:
            change = [{"$set": {"locked_until": "$$NOW"}}]
        return self._edit(job, "locked_until", change, {"state": "running", "lease": job["lease"]})

    def bury(self) -> bool:
        """Make a job dead that waits or runs, and requeue it."""
        job = self._pick(state=random.choice(["ready", "ready", "running"]))
        if job is None:
            return False
        buried = self._edit(job, "state", {"$set": {"state": "dead"}}, {"state": job["state"]})
        self._buried.append(job)
        if buried:
            self._buried = [job for job in self._buried if not self._requeue(job)]
        return buried

    def _requeue(self, job: Job) -> bool:
        """Return whether it is certain that this job is not dead by our hand."""
        found = self._jobs.find_one({"_id": job["_id"], "state": "dead"}, {"queue": 1})
        if found is None:
            return True
        try:
            with pymongo.timeout(PATIENCE), self._history.call("requeue", job=str(job["_id"])):
                self._shells[found["queue"]].requeue(job["_id"])
        except StreamQueueError:
            return False  # it is another's by now, or in another queue: look again
        except PyMongoError:
            return False
        return True

    def again(self) -> bool:
        """Insert a document as any program may; and once its job is gone, the same one again."""
        for job in self._own:
            if self._jobs.find_one({"_id": job["_id"]}) is None:
                self._own.remove(job)
                return self._insert(job, again=True)
        if len(self._own) < 5:
            job = self._new(state="ready", run_at=datetime.now(UTC))
            if random.random() < 0.5:
                job["priority"] = 5
            if self._insert(job):
                self._own.append(job)
        return False

    # how

    def _new(self, **fields: Any) -> dict[str, Any]:
        payload = {"n": 0, "does": "complete", "seconds": 0.01}
        about = {"queue": self._queues[0], "payload": payload, "max_attempts": ATTEMPTS}
        return {"_id": ObjectId(), **about, **fields}

    def _insert(self, job: Mapping[str, Any], **more: Any) -> bool:
        said = {"job": str(job["_id"]), "digest": digest_of(job["payload"]), "queue": job["queue"]}
        try:
            with pymongo.timeout(PATIENCE), self._history.call("put", **said, **more):
                self._jobs.insert_one(dict(job))
        except PyMongoError:
            return False
        return True

    def _pick(self, **wanted: Any) -> Job | None:
        mine = {"queue": {"$in": list(self._queues)}, "_id": {"$nin": self._avoided()}}
        sample = [{"$match": {**mine, **wanted}}, {"$sample": {"size": 1}}]
        return next(iter(self._jobs.aggregate(sample)), None)

    def _edit(
        self, job: Job, field: str, change: Any, wanted: Mapping[str, Any], **becomes: Any
    ) -> bool:
        said = {"job": str(job["_id"]), "field": field, **becomes}
        try:
            with pymongo.timeout(PATIENCE), self._history.call("edit", **said):
                done = self._jobs.update_one({"_id": job["_id"], **wanted}, change)
                if not done.matched_count:
                    raise NotThere
        except (NotThere, PyMongoError):
            return False
        return True


def _near(job: Job) -> bool:
    return bool(job["run_at"] < datetime.now(UTC) + timedelta(seconds=FAR / 2))


DEEDS: dict[str, Callable[[Operator], bool]] = {
    "payloads edited": Operator.payload,
    "priorities edited": Operator.priority,
    "queues edited": Operator.queue,
    "times edited": Operator.run_at,
    "leases ended": Operator.lease,
    "buried and requeued": Operator.bury,
    "inserted again": Operator.again,
}


SLOW = ("inserted again", "inserted again", "times edited")
"""What takes several steps: each is done more often."""


class Stranger:
    """Keeps transactions open that touch jobs, as another program's might.

    Args:
        queues: whose jobs they touch.
        seconds: between which times one stays open.

    Attributes:
        done: how many have touched a job in which state, or one whose lease had run out.
    """

    MOST = 3

    def __init__(
        self,
        client: MongoClient[dict[str, Any]],
        jobs: Collection[dict[str, Any]],
        queues: tuple[str, str],
        seconds: tuple[float, float],
    ) -> None:
        self._client = client
        self._jobs = jobs
        self._queues = {"$in": list(queues)}
        self._seconds = seconds
        self._open: list[tuple[float, ClientSession, Any]] = []
        self.done: Counter[str] = Counter()

    def act(self) -> None:
        """End those whose time has come; open one if there are not enough."""
        for end, session, _ in self._open[:]:
            if end < monotonic():
                self._end(session)
        if len(self._open) < self.MOST:
            self._begin(random.choice(["ready", "running", "expired"]))

    def _begin(self, what: str) -> None:
        state = "ready" if what == "ready" else "running"
        wanted: dict[str, Any] = {"queue": self._queues, "state": state}
        if what == "expired":
            wanted["locked_until"] = {"$lt": datetime.now(UTC)}
        session = self._client.start_session()
        try:
            session.start_transaction(write_concern=MAJORITY)
            touch = {"$set": {"touched": random.random()}}
            job = self._jobs.find_one_and_update(wanted, touch, {"_id": 1}, session=session)
        except PyMongoError:
            job = None  # somebody else is changing it
        if job is not None:
            self.done[f"transactions on {what} jobs"] += 1
            end = monotonic() + random.uniform(*self._seconds)
            self._open.append((end, session, job["_id"]))
        else:
            self._give_up(session)

    def _end(self, session: ClientSession) -> None:
        self._open = [one for one in self._open if one[1] is not session]
        if random.random() < 0.5:
            try:
                session.commit_transaction()
            except PyMongoError:
                pass  # it touches nothing that matters
        self._give_up(session)

    def _give_up(self, session: ClientSession) -> None:
        try:
            session.end_session()  # aborts what is still open
        except PyMongoError:
            pass

    def touched(self) -> list[Any]:
        """Return the ids of the jobs that those that are open have touched."""
        return [job_id for _, _, job_id in self._open]

    def close(self) -> None:
        """End all of them."""
        for _, session, _ in self._open[:]:
            self._end(session)
