"""Claiming jobs that are there: which, how many, and for whom."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from anyio import create_task_group
from bson import Decimal128, ObjectId
from pymongo import MongoClient
from pymongo.errors import WTimeoutError
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError
from streamqueue.protocol.document import CODEC
from tests.contract.looks import document, server_time
from tests.contract.shells import Shell
from tests.worker.faults import REPLICATION_TIMED_OUT, failing


async def test_an_empty_queue_has_no_next_job(queue: Any) -> None:
    assert await queue.next() is None


async def test_a_claimed_job_is_not_claimed_again(queue: Any) -> None:
    await queue.put({})
    await queue.next()

    assert await queue.next() is None


async def test_a_claim_counts_as_an_attempt(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put({})

    job = await queue.next()

    assert job.attempts == document(jobs, job.id)["attempts"] == 1


async def test_a_claim_says_by_whom_and_when(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue(consumer_id="consumer-1")
    await queue.put({})

    job = await queue.next()

    assert job.locked_by == document(jobs, job.id)["locked_by"] == "consumer-1"
    assert abs(job.locked_at - server_time(jobs)) < timedelta(seconds=10)


async def test_a_claim_holds_for_the_timeout(shell: Shell, jobs: Collection[Any]) -> None:
    queue = shell.queue(timeout=timedelta(minutes=5))
    await queue.put({})

    stored = document(jobs, (await queue.next()).id)

    assert stored["locked_until"] - stored["locked_at"] == timedelta(seconds=300)


async def test_every_claim_has_a_token_of_its_own(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({})
    tokens = set()
    for _ in range(3):
        job = await queue.next()
        tokens.add(document(jobs, job_id)["lease"])
        await job.release()

    assert len(tokens) == 3


async def test_a_job_shows_what_it_is(shell: Shell) -> None:
    queue = shell.queue(name="emails", max_attempts=4)
    job_id = await queue.put({"to": "ada"}, priority=7)

    job = await queue.next()

    assert (job.id, job.queue, job.data, job.payload) == (
        job_id,
        "emails",
        {"to": "ada"},
        {"to": "ada"},
    )
    assert (job.priority, job.attempts, job.max_attempts) == (7, 1, 4)
    assert (job.last_error, job.key) == (None, None)


async def test_the_repr_of_a_job_does_not_show_its_payload(queue: Any) -> None:
    await queue.put({"card": "4000-0012-3456-7899"})

    shown = repr(await queue.next())

    assert "4000-0012" not in shown
    assert "attempt 1 of 3" in shown


async def test_several_jobs_are_claimed_at_once_in_order(queue: Any) -> None:
    await queue.put_many([{"n": n} for n in range(5)])
    await queue.put({"n": "urgent"}, priority=1)

    jobs = await queue.claim(4)

    assert [job.data["n"] for job in jobs] == ["urgent", 0, 1, 2]


async def test_what_was_put_first_is_first_whatever_the_clocks_of_those_who_put_said(
    queue: Any, jobs: Collection[Any]
) -> None:
    for n in range(3):
        await queue.put({"n": n})
    jobs.update_one({"payload.n": 0}, [{"$set": {"run_at": {"$add": ["$run_at", 3_600_000]}}}])

    assert [job.data["n"] for job in await queue.claim(3)] == [0, 1, 2]


async def test_what_becomes_ready_again_comes_behind_what_is_ready(queue: Any) -> None:
    await queue.put({"n": 0})
    failed = await queue.next()
    await queue.put({"n": 1})

    await failed.error("later", delay=0)

    assert [job.data["n"] for job in await queue.claim(2)] == [1, 0]


async def test_what_was_requeued_comes_behind_what_is_ready(queue: Any) -> None:
    dead = await queue.put({"n": 0}, max_attempts=1)
    await (await queue.next()).error("dies")
    await queue.put({"n": 1})

    await queue.requeue(dead)

    assert [job.data["n"] for job in await queue.claim(2)] == [1, 0]


async def test_what_was_released_keeps_its_place(queue: Any) -> None:
    await queue.put({"n": 0})
    released = await queue.next()
    await queue.put({"n": 1})

    await released.release()

    assert [job.data["n"] for job in await queue.claim(2)] == [0, 1]


async def test_jobs_that_become_due_together_come_in_the_order_of_their_times(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue()
    for n in (2, 0, 1):
        await queue.put({"n": n}, delay=60 + n)
    later = {"$set": {"run_at": {"$add": ["$run_at", -70_000]}}}
    jobs.update_many({}, [later])

    assert [job.data["n"] for job in await queue.claim(3)] == [0, 1, 2]


async def test_a_claim_takes_what_there_is(queue: Any) -> None:
    await queue.put_many([{"n": n} for n in range(3)])

    assert len(await queue.claim(10)) == 3


async def test_a_claim_of_an_empty_queue_is_empty(queue: Any) -> None:
    assert await queue.claim(5) == []


async def test_jobs_claimed_together_are_held_one_by_one(queue: Any) -> None:
    await queue.put_many([{"n": n} for n in range(3)])
    jobs = await queue.claim(3)

    await jobs[0].complete()
    await jobs[1].error("oops", delay=0)

    stats = await queue.stats()
    assert (stats["total"], stats["available"], stats["locked"]) == (2, 1, 1)


@pytest.mark.parametrize("limit", [0, -1, 10_001, 2.0, True, None, "5"])
async def test_a_bad_limit_is_refused(queue: Any, limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="limit must be"):
        await queue.claim(limit)


@pytest.mark.parametrize("wait", [-1, float("nan"), True, "5"])
async def test_a_bad_wait_is_refused(queue: Any, wait: Any) -> None:
    with pytest.raises(ConfigurationError, match="wait must be"):
        await queue.next(wait=wait)


# Queues in one collection.


async def test_queues_in_one_collection_do_not_see_each_others_jobs(shell: Shell) -> None:
    one, other = shell.queue(name="one"), shell.queue(name="other")
    await one.put({"n": 1}, priority=5)
    await other.put({"n": 2})

    job = await other.next()

    assert job.data == {"n": 2}
    assert await other.next() is None


async def test_a_name_is_not_taken_for_a_pattern(shell: Shell) -> None:
    await shell.queue(name="axb").put({})

    assert await shell.queue(name="a.b").next() is None


# Jobs of other programs.


async def test_a_job_of_another_program_has_the_defaults(queue: Any, jobs: Collection[Any]) -> None:
    job_id = jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": 1}})

    job = await queue.next()

    assert (job.id, job.data) == (job_id.inserted_id, {"n": 1})
    assert (job.priority, job.attempts, job.max_attempts) == (0, 1, 3)


@pytest.mark.parametrize("ending", ["complete", "error", "release", "progress"])
async def test_a_job_of_another_program_can_be_held(
    queue: Any, jobs: Collection[Any], ending: str
) -> None:
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {}})

    job = await queue.next()

    await getattr(job, ending)()


async def test_a_job_of_another_program_dies_when_the_default_attempts_are_used_up(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(max_attempts=2)
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {}})

    for _ in range(2):
        await (await queue.next()).error("oops", delay=0)

    assert (await queue.stats())["errors"] == 1


async def test_a_job_without_a_priority_comes_before_those_below_the_default(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1}, priority=-1)
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": 2}})

    job = await queue.next()

    assert job.data == {"n": 2}


async def test_a_job_without_a_priority_comes_behind_urgent_ones(
    queue: Any, jobs: Collection[Any]
) -> None:
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": 2}})
    await queue.put({"n": 1}, priority=1)

    job = await queue.next()

    assert job.data == {"n": 1}


@pytest.mark.parametrize(
    "job_id",
    [5, "text", {"a": 1}, Decimal128("1.5"), ObjectId("6b047ca649993ecb424f6c2f"), b"x"],
    ids=str,
)
async def test_a_job_of_another_program_may_have_any_id(
    queue: Any, jobs: Collection[Any], job_id: Any
) -> None:
    jobs.insert_one({"_id": job_id, "queue": "default", "state": "ready", "payload": {}})

    job = await queue.next()
    await job.complete()

    assert job.id == job_id
    assert await queue.size() == 0


# A claim that fails.


async def test_a_claim_that_may_not_be_durable_is_given_back_at_once(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """It was applied, and the majority did not answer in time."""
    await queue.put({})

    fault = failing(client, "findAndModify", app=None, times=1, **REPLICATION_TIMED_OUT)
    with fault, pytest.raises(WTimeoutError):
        await queue.next()

    [stored] = jobs.find()
    assert (stored["state"], stored["attempts"]) == ("ready", 0)
    assert "lease" not in stored


# Many consumers.


@pytest.mark.few(1)
async def test_no_two_of_many_consumers_get_the_same_job(
    shell: Shell, jobs: Collection[Any]
) -> None:
    ids = await shell.queue().put_many([{"n": n} for n in range(200)])
    claimed: list[Any] = []

    async def consume(consumer: Any) -> None:
        while job := await consumer.next():
            claimed.append(job.id)
            await job.complete()

    async with create_task_group() as tasks:
        consumers = [shell.queue(), shell.queue()]
        for n in range(20):
            tasks.start_soon(consume, consumers[n % 2])

    assert sorted(claimed) == sorted(ids)
    assert jobs.count_documents({}) == 0


async def test_no_two_of_many_batches_share_a_job(shell: Shell) -> None:
    ids = await shell.queue().put_many([{"n": n} for n in range(200)])
    claimed: list[Any] = []

    async def consume(consumer: Any) -> None:
        while batch := await consumer.claim(7):
            claimed.extend(job.id for job in batch)

    async with create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(consume, shell.queue())

    assert sorted(claimed) == sorted(ids)


async def test_a_batch_shares_one_claim(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put_many([{"n": n} for n in range(5)])

    await queue.claim(5)

    stored = list(jobs.with_options(codec_options=CODEC).find())
    assert len({job["lease"] for job in stored}) == 1
    assert {job["attempts"] for job in stored} == {1}


@pytest.mark.few(1)
async def test_a_claim_that_was_answered_after_its_lease_is_made_anew(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    queue = shell.queue(timeout=1)
    assert await queue.next() is None  # what is due and expired was looked for
    await queue.put_many([{}, {}])

    # The two reads of a claim: what there is, and what was won.
    with failing(client, "find", app=None, times=2, blockConnection=True, blockTimeMS=1200):
        claimed = await queue.claim(2)

    assert {job.attempts for job in claimed} == {1}
    for job in claimed:
        assert document(jobs, job.id)["locked_until"] > server_time(jobs)
