"""A producer of jobs that come after others: diamonds, and now and then one job after many. Puts
each family in one call, for ever, and cancels some of their members; and writes it down.

What is kept is put again, with the same ids, until that is acknowledged. What is not may have ended
and be gone by then, so that is put once, whatever comes of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
from bson import ObjectId
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from drills.history import History, digest_of
from drills.programs.consumer import QUEUE
from streamqueue import AsyncMongoQueue, JobNotFound, NewJob

DEEDS: Mapping[str, float] = {
    "complete": 50,
    "return": 20,
    "falter": 15,
    "error": 5,
    "raise": 5,
    "snooze": 5,
    "cancel": 3,
}
"""What the jobs do, by weight. None is dead for ever: what it holds would wait for ever."""
OF_MANY: Mapping[str, float] = {"return": 90, "falter": 9, "error": 1}
"""The same of those after which one comes, of which none may be cancelled for it ever to run."""
RULES = ("hold", "hold", "cancel", "run", "run")
SIDES = (1, 2, 2, 3, 5, 8)
"""Jobs between the first and the last of a diamond."""
KEEP = 86_400.0
"""Seconds: longer than any drill."""
MAX_ATTEMPTS = 3
PAUSE = 0.1
"""Seconds between two tries."""


def run(
    *,
    uri: str,
    database: str,
    directory: Path,
    collection: str = "jobs",
    queue: str = QUEUE,
    many: Sequence[int] = (),
    tasks: int = 2,
    pause: float = 0.15,
    seconds: float = 0.02,
    client: dict[str, Any] | None = None,
) -> None:
    """Put families until it is killed.

    Args:
        many: first of all put one job each after so many others, by ``hold``, ``run``, …
        tasks: families at the same time.
        pause: the mean seconds between two of a task.
        seconds: how long a job takes on average.
        client: further settings of its MongoClient.
    """
    history = History(directory, "families")

    async def main() -> None:
        async with AsyncMongoClient(uri, **(client or {})) as own:
            target = AsyncMongoQueue(own[database][collection], name=queue)
            families = Families(history, target, seconds)
            for number, size in enumerate(many):
                await families.put(families.fan_in(size, ("hold", "run")[number % 2]), keep=True)
            async with anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(families.put_some, pause)

    anyio.run(main)
    history.close()


class Families:
    """Puts families, and cancels some of their members."""

    def __init__(self, history: History, queue: AsyncMongoQueue, seconds: float) -> None:
        self._history = history
        self._queue = queue
        self._seconds = seconds

    async def put_some(self, pause: float) -> None:
        """Put diamonds for ever, and cancel one job of every fourth."""
        while True:
            family = self.diamond()
            await self.put(family, keep=random.random() < 0.6)
            if random.random() < 0.25:
                await anyio.sleep(random.expovariate(10))
                await self.cancel(family)
            await anyio.sleep(random.expovariate(1 / pause))

    def diamond(self) -> list[NewJob]:
        """Return a job, some that come after it, and one that comes after those."""
        first = self._job(DEEDS)
        sides = [self._job(DEEDS, [first.job_id]) for _ in range(random.choice(SIDES))]
        last = self._job(DEEDS, [side.job_id for side in sides])
        family = [first, *sides, last]
        random.shuffle(family)  # the put sorts them
        return family

    def fan_in(self, size: int, rule: str) -> list[NewJob]:
        """Return so many jobs, and one that comes after them."""
        many = [self._job(OF_MANY, seconds=0.001) for _ in range(size)]
        return [*many, self._job(OF_MANY, [job.job_id for job in many], rule=rule)]

    def _job(
        self,
        deeds: Mapping[str, float],
        after: Sequence[Any] | None = None,
        *,
        rule: str | None = None,
        seconds: float | None = None,
    ) -> NewJob:
        mean = seconds or self._seconds
        does = random.choices(list(deeds), list(deeds.values()))[0]
        payload: dict[str, Any] = {"seconds": round(random.expovariate(1 / mean), 4)}
        if after is None:
            return NewJob({**payload, "does": does}, job_id=ObjectId(), max_attempts=MAX_ATTEMPTS)
        chosen: Any = rule or random.choice(RULES)
        return NewJob(
            {**payload, "does": "gather", "then": does},
            job_id=ObjectId(),
            max_attempts=MAX_ATTEMPTS,
            after=after,
            if_parent_fails=chosen,
        )

    async def put(self, family: Sequence[NewJob], *, keep: bool) -> None:
        """Put a family; one that is kept until that is acknowledged."""
        said = [
            {
                "job": str(job.job_id),
                "queue": self._queue.name,
                "digest": digest_of(payload),
                "payload": payload,
                "priority": 0,
                "delay": None,
                "max_attempts": job.max_attempts,
                "keep": KEEP if keep else None,
                "after": [str(one) for one in job.after or ()],
                "if_parent_fails": job.if_parent_fails,
            }
            for job in family
            if isinstance(payload := job.payload, dict)
        ]
        while True:
            try:
                with ExitStack() as calls:
                    for each in said:
                        calls.enter_context(self._history.call("put", **each))
                    await self._queue.put_many(family, keep=KEEP if keep else None)
                return
            except PyMongoError:
                if not keep:
                    return
                await anyio.sleep(PAUSE)

    async def cancel(self, family: Sequence[NewJob]) -> None:
        """Cancel one of a family, or that and all that comes after it."""
        job = random.choice(family)
        tree = below(family, job) if random.random() < 0.5 else []
        with suppress(PyMongoError), ExitStack() as calls:
            for one in tree:
                calls.enter_context(self._history.call("cancel", job=str(one), by="dependents"))
            answer = calls.enter_context(self._history.call("cancel", job=str(job.job_id)))
            try:
                told = await self._queue.cancel(job.job_id, dependents=bool(tree))
                answer["told"] = told or "ended"
            except JobNotFound:
                answer["told"] = "not found"


def below(family: Sequence[NewJob], job: NewJob) -> list[Any]:
    """Return the ids of all that comes after a job."""
    found: list[Any] = []
    level = {job.job_id}
    while level:
        level = {one.job_id for one in family if level & set(one.after or ())}
        found += [one for one in level if one not in found]
    return found
