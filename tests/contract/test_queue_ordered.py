"""The order of a group: who is next, whatever becomes of the head, for whoever takes jobs by hand.

Law: a limit is a limit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from pymongo.synchronous.collection import Collection

from tests.contract.shells import Shell
from tests.contract.test_queue_limits import put_all, rule, taken


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with ordered groups; and with no settings left behind."""
    rule(jobs, declared={"ordered": True})
    yield jobs
    jobs.database[f"{jobs.name}.settings"].delete_many({})


async def test_a_head_that_fails_and_is_due_again_comes_before_all_that_waited_behind_it(
    jobs: Collection[Any], shell: Shell
) -> None:
    put_all(jobs, "a" * 11)
    queue = shell.queue(max_attempts=5)
    ran = []

    while (job := await queue.next(wait=0.2)) is not None:
        ran.append(job.data["n"])
        if job.attempts == 1 and job.data["n"] % 5 == 0:
            await job.error("again", delay=0.05)
        else:
            await job.complete()

    assert ran == [0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]


async def test_one_that_is_put_for_later_holds_nobody_up_and_one_that_is_to_be_tried_again_does(
    jobs: Collection[Any], shell: Shell
) -> None:
    queue = shell.queue()
    await queue.put({"n": "tomorrow"}, group="a", delay=86_400)
    await queue.put({"n": "now"}, group="a")
    await queue.put({"n": "next"}, group="a")

    job = await queue.next()
    assert job.data["n"] == "now"
    await job.error("again", delay=86_400)

    assert await queue.next() is None


async def test_a_job_that_was_put_for_later_is_the_last_of_its_group_when_it_is_due(
    jobs: Collection[Any], shell: Shell
) -> None:
    queue = shell.queue()
    await queue.put({"n": 0}, group="a", delay=60)
    await queue.put({"n": 1}, group="a")
    held = await queue.next()
    assert held.data["n"] == 1
    await queue.put({"n": 2}, group="a")
    jobs.update_one({"payload.n": 0}, {"$set": {"run_at": datetime(2000, 1, 1, tzinfo=UTC)}})
    assert await queue.next() is None  # which promotes it

    await held.complete()

    assert [(await queue.next()).data["n"]] == [2]


async def test_within_a_group_order_beats_priority_and_its_head_is_as_urgent_as_it_is_itself(
    jobs: Collection[Any], shell: Shell
) -> None:
    queue = shell.queue()
    for n, (group, priority) in enumerate([("a", 0), ("a", 9), ("b", 5), ("c", 7), ("c", 1)]):
        await queue.put({"n": n}, group=group, priority=priority)

    assert await taken(queue) == [3, 2, 0]


async def test_neither_ids_nor_the_clocks_of_those_who_put_decide_the_order(
    jobs: Collection[Any], shell: Shell
) -> None:
    queue = shell.queue()
    now = datetime.now(UTC)
    for n in range(5):
        job_id = ObjectId.from_datetime(now - timedelta(hours=n))
        await queue.put({"n": n}, group="a", job_id=job_id)
    jobs.update_many({}, [{"$set": {"created_at": {"$subtract": ["$$NOW", 1]}}}])

    for n in range(5):
        (job,) = await queue.claim(10)
        assert job.data["n"] == n
        await job.complete()


async def test_the_same_group_in_two_queues_is_two(jobs: Collection[Any], shell: Shell) -> None:
    rule(jobs, "other", declared={"ordered": True})
    queue, other = shell.queue(), shell.queue(name="other")
    for n in range(2):
        await queue.put({"n": n}, group="a")
        await other.put({"n": n}, group="a")

    assert await taken(queue) == [0]
    assert await taken(other) == [0]


async def test_jobs_without_a_group_are_in_no_order(jobs: Collection[Any], shell: Shell) -> None:
    put_all(jobs, "--a-a")

    assert await taken(shell.queue()) == [0, 1, 2, 3]


# ends of a head


async def complete(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.complete()


async def die(queue: Any, jobs: Collection[Any], job: Any) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"max_attempts": 1}})
    await job.error("no more")


async def be_reaped_dead(queue: Any, jobs: Collection[Any], job: Any) -> None:
    past = [{"$set": {"max_attempts": 1, "locked_until": {"$subtract": ["$$NOW", 1]}}}]
    jobs.update_one({"_id": job.id}, past)
    assert await queue.repair() == 1


async def be_cancelled_in_its_backoff(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("again", delay=60)
    assert await queue.cancel(job.id) == "cancelled"


async def be_cancelled_while_it_runs(queue: Any, jobs: Collection[Any], job: Any) -> None:
    assert await queue.cancel(job.id) == "asked"
    await job.error("stopped")


async def expire_in_its_backoff(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("again", delay=60)
    jobs.update_one({"_id": job.id}, [{"$set": {"expires_at": {"$subtract": ["$$NOW", 1]}}}])


async def be_put_off(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("again", delay=60)
    await queue.reschedule(job.id, delay=600)


async def be_removed_by_hand(queue: Any, jobs: Collection[Any], job: Any) -> None:
    jobs.delete_one({"_id": job.id})


End = Callable[[Any, Collection[Any], Any], Awaitable[None]]
ENDS = [
    *(complete, die, be_reaped_dead, be_cancelled_in_its_backoff, be_cancelled_while_it_runs),
    *(expire_in_its_backoff, be_put_off, be_removed_by_hand),
]


@pytest.mark.few(4)
@pytest.mark.parametrize("end", ENDS)
async def test_whatever_ends_a_head_the_next_one_can_be_taken(
    jobs: Collection[Any], shell: Shell, end: End
) -> None:
    queue = shell.queue()
    await queue.put({"n": 0}, group="a", expires=600)
    await queue.put({"n": 1}, group="a")
    head = await queue.next()

    await end(queue, jobs, head)

    assert await taken(queue) == [1]


# the dead


@pytest.mark.parametrize("ordered", [True, "strict"])
async def test_a_dead_head_that_is_requeued_is_the_next_one(
    jobs: Collection[Any], shell: Shell, ordered: object
) -> None:
    rule(jobs, declared={"ordered": ordered})
    put_all(jobs, "aaa")
    queue = shell.queue(max_attempts=1)
    head = await queue.next()
    await head.error("no more")
    running = await queue.next()
    assert (running is None) is (ordered == "strict")

    await queue.requeue(head.id)
    if running is not None:
        assert await queue.next() is None
        await running.complete()

    assert await taken(queue) == [0]


async def test_where_that_is_strict_a_group_goes_on_once_its_dead_are_purged(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, declared={"ordered": "strict"})
    put_all(jobs, "aab")
    queue = shell.queue(max_attempts=1)
    await (await queue.next()).error("no more")
    assert await taken(queue) == [2]

    await queue.drop_max_attempts()

    assert await taken(queue) == [1]


# places that are equal


@pytest.mark.parametrize("delay", [0, 60])
async def test_of_two_that_joined_at_the_same_moment_one_waits_for_the_other_through_its_attempts(
    jobs: Collection[Any], shell: Shell, delay: int
) -> None:
    """As of two that fell due together: one update gives them their places."""
    put_all(jobs, "aa")
    jobs.update_many({}, {"$set": {"seq": Timestamp(1, 1)}})
    queue = shell.queue()
    first = await queue.next()

    await first.error("again", delay=delay)

    assert await taken(queue) == ([] if delay else [first.data["n"]])


# what it costs


async def test_a_group_that_is_held_costs_as_much_with_many_jobs_as_with_few(
    jobs: Collection[Any], shell: Shell
) -> None:
    queue = shell.queue()
    looked_at = []
    for more in (300, 3000):
        put_all(jobs, "a" * more)
        if not looked_at:
            await queue.next()  # the head
        jobs.database.command("profile", 2)
        put_all(jobs, "b")

        job = await queue.next()

        jobs.database.command("profile", 0)
        assert job.data["n"] == 0
        await job.complete()
        profile = list(jobs.database.system.profile.find({"ns": jobs.full_name}))
        jobs.database.system.profile.drop()
        looked_at.append(sum(each.get("keysExamined", 0) for each in profile))
    few, many = looked_at
    assert many <= few + 10
