"""Jobs that the server lets nobody change, such as under a validator that came after them.

They stand in everybody's way: first in their order for ever, and in an update for many they fail
it. So they are left out, and tried again at intervals that grow. They are never given up: what
refuses them today may be repaired tomorrow.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import plain
from ..backoff import Backoff
from ..clock import monotonic
from ..failures import failure_facts, failure_name
from ..protocol.document import id_key, id_text
from ..protocol.foreign import StrangeId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pymongo.errors import OperationFailure

logger = plain.logger("streamqueue.store")

AGAIN = Backoff(initial=1, maximum=60, factor=2, jitter=0.5)
"""The wait between two tries. A minute: that is how long a repair may go unnoticed."""
TRIED_AT_ONCE = 100
"""Stuck jobs that are tried again at a time, so that many of them stay as cheap as one."""
MOST_STUCK = 10_000
"""Stuck jobs remembered. Whoever reads past them reads so many ids more."""
MOST_LOGGED = 1000
"""Jobs that are logged as stuck before that is given up."""

Job = dict[str, Any]


class StuckJobs:
    """The jobs that refused one kind of change, and when it is tried again.

    Reads must ask for ``len(stuck)`` jobs more than they want, and :meth:`sift` what they found.

    Args:
        what: what cannot be done with them, for the log: once for each job, however often it is
            tried.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._logged: set[object] = set()
        # Ids by their keys, because an id may be of any kind. The longest untried comes first.
        self._held: dict[object, Any] = {}
        self._trying: dict[object, Any] = {}
        self._news: deque[Any] = deque(maxlen=MOST_LOGGED)
        self._tries = 0
        self._again_at = -math.inf

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, job_id: object) -> bool:
        """Whether a job is left out, or was until a moment ago and is being tried."""
        name = id_key(job_id)
        return name in self._held or name in self._trying

    @property
    def full(self) -> bool:
        """Whether there are more of them than can be remembered."""
        return len(self._held) >= MOST_STUCK

    def wait(self) -> float:
        """Return the seconds until some of them are to be tried again; infinity with none."""
        return max(0.0, self._again_at - monotonic()) if self._held else math.inf

    def refused(self, job_id: object, error: OperationFailure) -> None:
        """Leave a job out from now on, which the server refused to change."""
        self.hold(job_id)
        self._news.append(job_id)
        name = id_key(job_id)
        if name not in self._logged and len(self._logged) < MOST_LOGGED:
            self._logged.add(name)
            logger.error(
                "Job %s %s: %s",
                id_text(job_id),
                self._what,
                failure_name(error),
                extra={
                    "event": "job_stuck",
                    "job_id": id_text(job_id),
                    "reason": self._what,
                    **failure_facts(error),
                },
            )

    def pass_on(self, job_id: object) -> None:
        """Have whoever hands out the jobs leave one out, which is not for this process."""
        self._news.append(job_id)

    def hold(self, job_id: object) -> None:
        """Leave a job out from now on, which somebody was refused."""
        name = id_key(job_id)
        self._trying.pop(name, None)
        if not self._held and self._again_at <= monotonic():
            self._plan()
        if not self.full:
            self._held[name] = job_id

    def hold_only(self, job_ids: Iterable[object]) -> None:
        """Leave out these jobs and no others, as somebody found who tries them again."""
        self._held = {id_key(job_id): job_id for job_id in job_ids}
        self._trying = {}

    def ids(self) -> list[Any]:
        """Return the ids of those that are left out or being tried again, but for those that no
        other process could be told of, and that it sees to itself."""
        held = [*self._held.values(), *self._trying.values()]
        return [job_id for job_id in held if type(job_id) is not StrangeId]

    def news(self) -> list[Any]:
        """Return the ids of the latest that were refused, once."""
        news = [job_id for job_id in self._news if type(job_id) is not StrangeId]
        self._news.clear()
        return news

    def sift(self, found: list[Job]) -> list[Job]:
        """Return the jobs that are to be tried now, in the same order."""
        if not self._held:
            return found
        names = [id_key(job["_id"]) for job in found]
        if self._again_at <= monotonic():
            self._try_again(set(names))
        return [job for name, job in zip(names, found, strict=True) if name not in self._held]

    def divide(self, found: list[Job]) -> tuple[list[Job], list[Job]]:
        """The same in two parts, which do not belong in the same update: the jobs that were never
        refused, and those that are tried again."""
        jobs = self.sift(found)
        if not self._trying:
            return jobs, []
        again = [job for job in jobs if id_key(job["_id"]) in self._trying]
        return [job for job in jobs if id_key(job["_id"]) not in self._trying], again

    def settle(self) -> None:
        """Note that all were tried that were let through."""
        if self._trying:  # somebody got through: it may be over for the others too
            self._trying = {}
            self._tries = 0
            self._plan()

    def forget(self) -> None:
        """Try all of them next time."""
        self._held, self._trying = {}, {}
        self._tries, self._again_at = 0, -math.inf

    def _plan(self) -> None:
        self._tries += 1
        self._again_at = monotonic() + AGAIN.delay(self._tries)

    def _try_again(self, there: set[object]) -> None:
        """Let some through; those that are not there any more are nobody's concern."""
        self.settle()
        held = [(name, job_id) for name, job_id in self._held.items() if name in there]
        self._trying = dict(held[:TRIED_AT_ONCE])
        self._held = dict(held[TRIED_AT_ONCE:])
        self._plan()
