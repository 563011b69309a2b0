"""Members of a dispatcher, of whose queues some have rules: each chooses for itself what may start.

Laws: nobody polls; nothing is stuck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, Limit, MongoQueue
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import StartedWorker

SOON = 5.0
"""Seconds: long before any lease ends."""

Add = Callable[[StartedWorker], None]


class Held:
    """A handler that lets nothing end, and counts the jobs of each queue that have begun."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.go_on = anyio.Event()

    async def __call__(self, job: AsyncJob) -> None:
        self.begun[job.queue] += 1
        await self.go_on.wait()

    async def until_begun(self, **wanted: int) -> None:
        await wait_until_async(lambda: self.begun == wanted, f"{wanted} have begun", SOON)


@pytest.fixture
async def held() -> AsyncIterator[Held]:
    handler = Held()
    yield handler
    handler.go_on.set()


@pytest.fixture
def queues(jobs: Collection[Any]) -> Iterator[Callable[[str], MongoQueue]]:
    """Makes queue objects."""
    made: list[MongoQueue] = []

    def make(name: str) -> MongoQueue:
        made.append(MongoQueue(jobs, name=name))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


async def start(members: Members, add: Add, count: int, concurrency: int) -> None:
    """Start a dispatcher and so many members, all with these handlers."""
    host = members.prepare(concurrency=concurrency)
    add(host)
    await members.open_for(host)
    for _ in range(count):
        worker = members.prepare(concurrency=concurrency)
        add(worker)
        members.connect(worker)
        await members.begin(worker)


def of_one_queue(held: Held) -> Add:
    def add(worker: StartedWorker) -> None:
        worker.worker.handler("a")(held)

    return add


async def test_members_ask_for_nothing_while_all_that_waits_is_held_back(
    members: Members, held: Held, queues: Callable[[str], MongoQueue]
) -> None:
    queue = queues("a")
    queue.limit(running=1)
    await start(members, of_one_queue(held), 2, concurrency=2)

    queue.put_many([{}] * 4)
    await held.until_begun(a=1)

    await members.until_idle()


async def test_a_job_starts_at_a_member_that_has_room_for_its_queue(
    members: Members, held: Held, queues: Callable[[str], MongoQueue]
) -> None:
    def add(worker: StartedWorker) -> None:
        worker.worker.handler("a", concurrency=1, limits=Limit(10))(held)
        worker.worker.handler("b")(held)

    await start(members, add, 2, concurrency=4)

    for begun in (1, 2):
        queues("a").put({})
        await held.until_begun(a=begun)


async def test_those_that_one_member_has_no_room_for_start_at_others(
    members: Members, held: Held, queues: Callable[[str], MongoQueue]
) -> None:
    def add(worker: StartedWorker) -> None:
        worker.worker.handler("a", concurrency=1, limits=Limit(10))(held)
        worker.worker.handler("b")(held)

    queues("a").put_many([{}] * 3)  # of which no event tells

    await start(members, add, 3, concurrency=4)

    await held.until_begun(a=3)


async def test_what_waits_starts_when_the_rules_are_taken_away(
    members: Members, held: Held, queues: Callable[[str], MongoQueue]
) -> None:
    queue = queues("a")
    queue.limit(running=1)
    await start(members, of_one_queue(held), 2, concurrency=2)
    queue.put_many([{}] * 4)
    await held.until_begun(a=1)
    await members.until_idle()

    queue.limit(running=None)

    await held.until_begun(a=4)


async def test_a_foreign_job_without_a_priority_gets_its_place_there_too(
    members: Members, held: Held, queues: Callable[[str], MongoQueue], jobs: Collection[Any]
) -> None:
    queue = queues("a")
    queue.limit(running=1)
    await start(members, of_one_queue(held), 1, concurrency=2)
    queue.put({})
    await held.until_begun(a=1)
    await members.until_idle()

    jobs.insert_one({"queue": "a", "state": "ready", "payload": {}})

    await wait_until_async(
        lambda: jobs.count_documents({"state": "ready", "priority": 0}) == 1, "it has one", SOON
    )
