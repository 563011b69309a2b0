"""Jobs that this process leaves to others: those it found not to fit, and those of tasks it does
not know.

One that did not fit is parked; whoever can run it lets it through, and it is ready for everybody
again. So that it gets to those, whoever parked it leaves it out for a while.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from .. import plain
from ..clock import monotonic
from ..names import label_of
from ..protocol.document import id_key
from ..protocol.stored import text_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from ..protocol.fitting.kinds import LeftReason

logger = plain.logger("streamqueue.store")

AGAIN = 60.0
"""Seconds in which a process lets a job through at most once, which then came back."""
LEFT_SECONDS = 3 * AGAIN
"""Seconds for which a process leaves out what it has parked: longer than until it is let through a
second time, when all who have parked it leave it out. Then it is tried again, should whoever wanted
it be gone: a job that nobody claims would not be parked, and have no end."""
MOST = 10_000
"""Jobs remembered. Of more the first are forgotten, and may come back once more."""
MOST_LOGGED = 1000

Job = dict[str, Any]


class LeftToOthers:
    """What is left to others, as far as this process knows.

    Attributes:
        tasks: of a queue, the names of the tasks that are known here, with None for jobs without
            one; of a queue that is not there all are known.
        counted: told of jobs that are left, by their queue and why.
    """

    def __init__(self) -> None:
        self.tasks: Mapping[str, Collection[str | None]] = {}
        self.counted: Callable[[str, LeftReason, int], None] = lambda _queue, _reason, _count: None
        self._until: OrderedDict[object, float] = OrderedDict()
        self._let: OrderedDict[object, float] = OrderedDict()
        self._said: set[tuple[str, str]] = set()
        self._unknown: OrderedDict[object, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, job_id: object) -> bool:
        until = self._until.get(id_key(job_id)) if self._until else None
        return until is not None and monotonic() < until

    def add(self, job_id: object) -> None:
        """Leave out a job from now on, which does not fit."""
        self._until[id_key(job_id)] = monotonic() + LEFT_SECONDS
        self._until.move_to_end(id_key(job_id))
        if len(self._until) > MOST:
            self._until.popitem(last=False)

    def discard(self, job_id: object) -> None:
        """Leave out a job no longer."""
        self._until.pop(id_key(job_id), None)

    def wait(self) -> float:
        """Return the seconds until one of those is to be tried again; infinity with none."""
        first = next(iter(self._until.values()), math.inf)
        return max(0.0, first - monotonic())

    def over(self) -> None:
        """Forget those whose time is over."""
        now = monotonic()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)

    def takes(self, job: Mapping[str, Any]) -> bool:
        """Whether a job that is ready is one for this process, as far as its head says."""
        return job["_id"] not in self and (not self.tasks or self.knows(job))

    def knows(self, job: Mapping[str, Any]) -> bool:
        """Whether the task of a job is known."""
        queue = job.get("queue")
        known = self.tasks.get(queue) if isinstance(queue, str) else None
        return known is None or text_in(job.get("task")) in known

    def sift(self, found: list[Job]) -> list[Job]:
        """Return the jobs that are for this process, in the same order; their tasks were read."""
        if not (self._until or self.tasks):
            return found
        taken = [job for job in found if self.takes(job)]
        if self.tasks and len(taken) < len(found):
            self._note(job for job in found if not self.knows(job))
        return taken

    def let_through(self, job_ids: Iterable[object]) -> None:
        """Note that jobs were let through from here."""
        now = monotonic()
        for job_id in job_ids:
            self._let[id_key(job_id)] = now
        while self._let and (len(self._let) > MOST or next(iter(self._let.values())) < now - AGAIN):
            self._let.popitem(last=False)

    def let_lately(self, job_id: object) -> bool:
        """Whether a job was let through from here within a minute, and is there again."""
        return self._let.get(id_key(job_id), -math.inf) > monotonic() - AGAIN

    def misfit(self, queue: str, path: str, why: str) -> None:
        """Count a job that is left because of its payload; log that, once for each field."""
        self.counted(queue, "misfit", 1)
        if self._first("misfit " + path, queue):
            logger.warning(
                "Jobs of queue %s are left to other workers: their payload does not fit the types "
                "of its handler here: %s",
                queue,
                why,
                extra={"event": "jobs_left", "queue": queue, "reason": "misfit", "field": path},
            )

    def _note(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Count jobs of unknown tasks, each once; log that, once for each task."""
        for job in jobs:
            name = id_key(job["_id"])
            if name in self._unknown:
                continue
            self._unknown[name] = None
            if len(self._unknown) > MOST:
                self._unknown.popitem(last=False)
            queue, task = label_of(job.get("queue")), text_in(job.get("task"))
            self.counted(queue, "task", 1)
            named = "without a task" if task is None else f"of task {task[:100]!r}"
            if self._first(named, queue):
                logger.warning(
                    "Jobs %s in queue %s are left to other workers: none is registered here",
                    named,
                    queue,
                    extra={"event": "jobs_left", "queue": queue, "reason": "task"},
                )

    def _first(self, what: str, queue: str) -> bool:
        """Whether this is to be said of a queue for the first time."""
        if (queue, what) in self._said or len(self._said) >= MOST_LOGGED:
            return False
        self._said.add((queue, what))
        return True

    def known_of(self, queues: Sequence[str]) -> list[str] | None:
        """Return the names of the tasks that are known of some queues, as they are stored of jobs
        that are left; None for all."""
        names: set[str] = set()
        for queue in queues:
            known = self.tasks.get(queue)
            if known is None:
                return None
            names.update("" if task is None else task for task in known)
        return sorted(names)
