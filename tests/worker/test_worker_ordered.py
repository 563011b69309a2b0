"""Workers whose groups are ordered: whatever ends a head, the next one of its group starts at once.

The leases are of five minutes, and once in that time a worker looks by itself: what starts within
seconds does so because somebody has said so.

Laws: a limit is a limit; nobody polls; the document is the truth.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff, Discard, Retry
from tests.contract.looks import kill_streams
from tests.contract.test_queue_limits import put_all, rule
from tests.waiting import wait_until_async
from tests.worker.members import Members
from tests.worker.started import StartedWorker, WorkerStarter

SOON = 10.0
LEASE = 300.0


class Ran:
    """A handler that notes which jobs ran; `ends`: by which exception some of them end first."""

    def __init__(self, ends: dict[int, Callable[[], Exception]] | None = None) -> None:
        self.seen: list[int] = []
        self._ends = ends or {}

    async def __call__(self, job: AsyncJob) -> None:
        self.seen.append(job.data["n"])
        if job.attempts == 1 and job.data["n"] in self._ends:
            raise self._ends[job.data["n"]]()

    async def until_seen(self, *wanted: int) -> None:
        await wait_until_async(lambda: self.seen == list(wanted), f"{wanted} have run", SOON)


def prepared(start: Any, handler: Ran, ordered: Any = True) -> StartedWorker:
    worker: StartedWorker = start.prepare(
        timeout=LEASE, sweep_interval=None, backoff=Backoff(initial=0.05, jitter=0)
    )
    worker.worker.handler("default", ordered=ordered)(handler)
    return worker


async def test_a_head_is_tried_again_before_those_behind_it_run(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    handler = Ran({0: ValueError, 5: lambda: Retry(0.02)})
    await start.begin(prepared(start, handler))

    put_all(jobs, "a" * 11)

    await handler.until_seen(0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize(("ordered", "seen"), [(True, [0, 1, 2]), ("strict", [0, 2])])
async def test_a_head_that_is_discarded_lets_the_next_one_pass_unless_that_is_strict(
    start: WorkerStarter, jobs: Collection[Any], ordered: object, seen: list[int]
) -> None:
    handler = Ran({0: lambda: Discard("no use")})
    worker = prepared(start, handler, ordered)
    await start.begin(worker)

    put_all(jobs, "aab")

    await wait_until_async(lambda: sorted(handler.seen) == seen, f"{seen} have run", SOON)


async def test_the_next_one_starts_when_a_head_is_too_late_to_be_tried_again(
    start: WorkerStarter, queue: AsyncMongoQueue
) -> None:
    handler = Ran({0: lambda: Retry(600)})
    await start.begin(prepared(start, handler))

    await queue.put({"n": 0}, group="a", expires=0.5)
    await queue.put({"n": 1}, group="a")

    await handler.until_seen(0, 1)


@pytest.mark.slow
async def test_several_workers_get_in_each_others_way_seldom(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    """Each goes for groups of its own first; else nearly half of all claims were lost."""
    handler = Ran()
    workers = [prepared(start, handler) for _ in range(3)]
    for worker in workers:
        await start.begin(worker)

    put_all(jobs, "".join(map(chr, range(0x100, 0x100 + 60))) * 5)
    await wait_until_async(lambda: len(handler.seen) == 300, "all have run", SOON)

    lost = sum(w.metric("streamqueue_claims_total", result="lost") for w in workers)
    assert lost < 0.25 * 300


# ends by others


async def complete(queue: AsyncMongoQueue, jobs: Collection[Any], job: AsyncJob) -> None:
    await job.complete()


async def die(queue: AsyncMongoQueue, jobs: Collection[Any], job: AsyncJob) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"max_attempts": 1}})
    await job.error("no more")


async def be_reaped_dead(queue: AsyncMongoQueue, jobs: Collection[Any], job: AsyncJob) -> None:
    past = [{"$set": {"max_attempts": 1, "locked_until": {"$subtract": ["$$NOW", 1]}}}]
    jobs.update_one({"_id": job.id}, past)


async def be_cancelled(queue: AsyncMongoQueue, jobs: Collection[Any], job: AsyncJob) -> None:
    await queue.cancel(job.id)


async def be_cancelled_while_it_runs(
    queue: AsyncMongoQueue, jobs: Collection[Any], job: AsyncJob
) -> None:
    await queue.cancel(job.id)
    await job.error("stopped")


async def be_put_off(queue: AsyncMongoQueue, jobs: Collection[Any], job: AsyncJob) -> None:
    await queue.reschedule(job.id, delay=600)


End = Callable[[AsyncMongoQueue, Collection[Any], AsyncJob], Awaitable[None]]
ENDS = [complete, die, be_reaped_dead, be_cancelled_while_it_runs]
ENDS_IN_ITS_BACKOFF = [be_cancelled, be_put_off]


async def held_head(queue: AsyncMongoQueue, jobs: Collection[Any]) -> AsyncJob:
    """Put a head and the one behind it, and hold the head."""
    rule(jobs, declared={"ordered": True})
    for n in range(2):
        await queue.put({"n": n}, group="a")
    head = await queue.next()
    assert head is not None
    return head


@pytest.mark.parametrize("end", ENDS)
async def test_whatever_ends_a_head_the_next_one_starts_at_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], end: End
) -> None:
    head = await held_head(queue, jobs)
    handler = Ran()
    worker = prepared(start, handler)
    await start.begin(worker)
    await worker.until_idle(0.1)

    await end(queue, jobs, head)

    await handler.until_seen(1)


@pytest.mark.parametrize("end", ENDS_IN_ITS_BACKOFF)
async def test_whatever_ends_a_head_in_its_backoff_the_next_one_starts_at_once(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any], end: End
) -> None:
    head = await held_head(queue, jobs)
    await head.error("again", delay=600)
    handler = Ran()
    worker = prepared(start, handler)
    await start.begin(worker)
    await worker.until_idle(0.1)

    await end(queue, jobs, head)

    await handler.until_seen(1)


async def test_the_next_one_starts_also_if_nobody_hears_of_the_end(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    head = await held_head(queue, jobs)
    handler = Ran()
    worker = prepared(start, handler)
    await start.begin(worker)
    await worker.until_idle(0.1)

    kill_streams(jobs)
    await head.complete()
    kill_streams(jobs)

    await handler.until_seen(1)


async def test_where_that_is_strict_the_next_one_starts_when_the_dead_are_purged(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Ran({0: lambda: Discard("no use")})
    worker = prepared(start, handler, "strict")
    await start.begin(worker)
    put_all(jobs, "aa")
    await wait_until_async(lambda: jobs.count_documents({"state": "dead"}), "it is dead", SOON)
    await worker.until_idle(0.1)

    await queue.drop_max_attempts()

    await handler.until_seen(0, 1)


async def test_a_dead_one_that_is_requeued_starts_before_those_behind_it(
    start: WorkerStarter, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    handler = Ran({0: lambda: Discard("no use")})
    worker = prepared(start, handler, "strict")
    await start.begin(worker)
    put_all(jobs, "aaa")
    dead = await wait_until_async(lambda: jobs.find_one({"state": "dead"}), "it is dead", SOON)
    jobs.update_one({"_id": dead["_id"]}, {"$set": {"payload.n": -1}})

    await queue.requeue(dead["_id"])

    await handler.until_seen(0, -1, 1, 2)


async def test_members_of_a_dispatcher_start_the_next_one_when_somebody_else_has_ended_the_head(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    head = await held_head(queue, jobs)
    handler = Ran()
    host = prepared(members, handler)
    await members.open_for(prepared(members, handler))
    members.connect(host)
    await members.begin(host)
    await members.until_idle(0.1)

    await head.complete()

    await handler.until_seen(1)


async def test_members_of_a_dispatcher_send_nothing_while_all_that_waits_is_held_back(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await held_head(queue, jobs)
    await members.open_for(prepared(members, Ran()))
    for host in [prepared(members, Ran()) for _ in range(2)]:
        members.connect(host)
        await members.begin(host)

    await members.until_idle(0.5)


async def test_members_of_a_dispatcher_run_what_another_program_has_put_without_a_place(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    """Also behind more than is read, where it is seen by nobody before it has one."""
    await held_head(queue, jobs)
    put_all(jobs, "a" * 100)
    handler = Ran()
    host = prepared(members, handler)
    await members.open_for(prepared(members, handler))
    members.connect(host)
    await members.begin(host)
    await members.until_idle(0.1)

    job = {"queue": "default", "group": "b", "state": "ready", "payload": {"n": -1}}
    jobs.insert_one(job)

    await handler.until_seen(-1)
