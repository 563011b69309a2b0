"""Looking after a queue: counts, stale locks, dead jobs, removal."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from bson import Code, Decimal128, ObjectId, Regex
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, JobNotFound
from streamqueue.protocol.document import CODEC
from streamqueue.store.flows.timers import BATCH
from tests.contract.looks import document, let_lease_run_out
from tests.contract.shells import Shell
from tests.waiting import wait_until_async


async def bury(queue: Any, payload: Any = None, **settings: Any) -> Any:
    """Put a job and let its only attempt fail; return its id."""
    job_id = await queue.put(payload or {}, max_attempts=1, priority=1000, **settings)
    await (await queue.next()).error("oops")
    return job_id


async def one_in_each_state(queue: Any) -> None:
    """A dead, a running, a scheduled and a ready job."""
    await bury(queue)
    await queue.put({})
    await queue.next()
    await queue.put({}, delay=60)
    await queue.put({})


COUNTED = ("available", "scheduled", "waiting", "locked", "errors", "done", "cancelled", "total")
NOTHING = dict.fromkeys(COUNTED, 0)
ONE_OF_EACH = NOTHING | {"available": 1, "scheduled": 1, "locked": 1, "errors": 1, "total": 4}


# Counts.


async def test_an_empty_queue_counts_nothing(queue: Any) -> None:
    assert await queue.size() == 0
    assert await queue.stats() == NOTHING


async def test_stats_count_each_state(queue: Any) -> None:
    await one_in_each_state(queue)

    assert await queue.stats() == ONE_OF_EACH


async def test_the_size_is_that_of_all_states(queue: Any) -> None:
    await one_in_each_state(queue)

    assert await queue.size() == 4


async def test_the_total_includes_states_nobody_knows(queue: Any, jobs: Collection[Any]) -> None:
    jobs.insert_one({"queue": "default", "state": "paused", "payload": {}})

    assert await queue.stats() == NOTHING | {"total": 1}


@pytest.mark.parametrize("state", ["waiting", "done", "dead", "cancelled"])
async def test_the_size_is_also_that_of_states_of_other_versions(
    queue: Any, jobs: Collection[Any], state: str
) -> None:
    jobs.insert_one({"queue": "default", "state": state, "payload": {}})

    assert await queue.size() == 1
    assert (await queue.stats())["total"] == 1
    assert await queue.clear() == 1


STATES = ("ready", "scheduled", "running", "dead", "done", "cancelled", "waiting")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("operation", "fetched"), [("size", 0), ("stats", 0), ("clear", 7), ("drop_max_attempts", 1)]
)
async def test_jobs_are_counted_from_indexes_alone_and_only_those_that_go_are_read(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any], operation: str, fetched: int
) -> None:
    await queue.size()  # makes the indexes
    jobs.insert_many([{"queue": "default", "state": state, "payload": {}} for state in STATES])
    others = [state for state in STATES if state != "running"]  # those of all queues are read
    jobs.insert_many(
        {"queue": f"other-{n % 7}", "state": others[n % 6], "payload": {}} for n in range(20_000)
    )
    client.admin.command("profile", 0)
    jobs.database.system.profile.drop()
    jobs.database.command("profile", 2)

    await getattr(queue, operation)()

    done = list(jobs.database.system.profile.find({"ns": jobs.full_name}))
    assert done
    assert sum(entry.get("docsExamined", 0) for entry in done) == fetched
    assert sum(entry.get("keysExamined", 0) for entry in done) < 100


@pytest.mark.parametrize("operation", ["size", "stats", "clear", "drop_max_attempts", "repair"])
async def test_the_jobs_of_another_queue_are_left_alone(shell: Shell, operation: str) -> None:
    one, other = shell.queue(name="one"), shell.queue(name="other")
    await one_in_each_state(one)

    result = await getattr(other, operation)()

    assert result in (0, NOTHING)
    assert await one.stats() == ONE_OF_EACH


# Stale locks.


async def test_repair_returns_every_stale_lock_and_how_many(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put_many([{"n": n} for n in range(5)])
    await queue.claim(5)
    let_lease_run_out(jobs)

    repaired = await queue.repair()

    assert repaired == 5
    assert (await queue.stats())["available"] == 5


async def test_repair_does_not_stop_after_one_batch(queue: Any, jobs: Collection[Any]) -> None:
    stale = {"queue": "default", "state": "running", "payload": {}}
    jobs.insert_many([dict(stale) for _ in range(BATCH + 1)])

    assert await queue.repair() <= BATCH + 1  # a slow server may not say of all

    assert jobs.count_documents({"state": "ready"}) == BATCH + 1


async def test_repair_leaves_live_locks_alone(queue: Any, jobs: Collection[Any]) -> None:
    await queue.put_many([{"n": n} for n in range(3)])
    stale, *_ = await queue.claim(3)
    let_lease_run_out(jobs, stale.id)

    repaired = await queue.repair()

    assert repaired == 1
    assert (await queue.stats())["locked"] == 2


async def test_repair_of_nothing_is_nothing(queue: Any) -> None:
    assert await queue.repair() == 0


async def test_a_repaired_job_has_used_an_attempt_and_says_why(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(consumer_id="consumer-1")
    job_id = await queue.put({})
    await queue.next()
    let_lease_run_out(jobs)

    await queue.repair()

    stored = document(jobs, job_id)
    assert stored["attempts"] == stored["errors"][0]["attempt"] == 1
    assert stored["last_error"] == "lease ran out: consumer consumer-1 was lost"


async def test_a_repaired_job_keeps_its_place_in_the_queue(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1})
    await queue.put({"n": 2})
    await queue.next()
    let_lease_run_out(jobs)

    await queue.repair()

    assert (await queue.next()).data == {"n": 1}


async def test_repair_buries_jobs_whose_attempts_are_used_up(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, max_attempts=1)
    await queue.next()
    let_lease_run_out(jobs)

    repaired = await queue.repair()

    assert repaired == 1
    assert (await queue.stats())["errors"] == 1


async def test_a_job_that_kills_its_consumers_dies_in_the_end(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, max_attempts=3)
    for _ in range(3):
        await queue.next()
        let_lease_run_out(jobs)
        await queue.repair()

    assert await queue.stats() == NOTHING | {"errors": 1, "total": 1}


async def test_a_job_is_claimed_again_without_anybody_calling_repair(shell: Shell) -> None:
    await shell.queue().put({"n": 1})
    lost = await shell.queue(timeout=0.05).next()

    async def claimed_again() -> Any:
        return await shell.queue().next()

    job: Any = await wait_until_async(claimed_again, "the stale lock is returned")
    assert (job.id, job.attempts) == (lost.id, 2)


# Dead jobs.


async def test_a_dead_job_is_not_claimed(queue: Any) -> None:
    await bury(queue)

    assert await queue.next() is None


async def test_a_requeued_job_has_all_its_attempts(queue: Any) -> None:
    job_id = await bury(queue, {"n": 1})

    requeued = await queue.requeue(job_id)

    job = await queue.next()
    assert (requeued, job.id, job.data, job.attempts) == (1, job_id, {"n": 1}, 1)


async def test_a_requeued_job_remembers_its_error(queue: Any) -> None:
    job_id = await bury(queue)

    await queue.requeue(job_id)

    assert (await queue.next()).last_error == "oops"


async def test_a_requeued_job_is_not_finished_any_more(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await bury(queue)

    await queue.requeue(job_id)

    assert "finished_at" not in document(jobs, job_id)


async def test_requeueing_one_leaves_the_other_dead(queue: Any) -> None:
    one = await bury(queue)
    await bury(queue)

    await queue.requeue(one)

    stats = await queue.stats()
    assert (stats["available"], stats["errors"]) == (1, 1)


async def test_all_dead_jobs_can_be_requeued_at_once(queue: Any) -> None:
    for _ in range(3):
        await bury(queue)

    requeued = await queue.requeue()

    stats = await queue.stats()
    assert requeued == 3
    assert (stats["available"], stats["errors"]) == (3, 0)


async def test_with_none_dead_none_is_requeued(queue: Any) -> None:
    await queue.put({})

    assert await queue.requeue() == 0


async def test_a_dead_job_can_be_named_by_text(queue: Any) -> None:
    job_id = await bury(queue)

    assert await queue.requeue(str(job_id)) == 1


@pytest.mark.parametrize("how", [ObjectId, str])
async def test_a_job_that_is_not_there_cannot_be_requeued(queue: Any, how: type) -> None:
    job_id = ObjectId()

    with pytest.raises(JobNotFound, match="no dead job") as caught:
        await queue.requeue(how(job_id))

    assert caught.value.job_id == job_id


async def test_a_job_that_is_not_dead_cannot_be_requeued(queue: Any) -> None:
    job_id = await queue.put({})

    with pytest.raises(JobNotFound):
        await queue.requeue(job_id)


async def test_a_dead_job_of_another_queue_cannot_be_requeued(shell: Shell) -> None:
    job_id = await bury(shell.queue(name="one"))

    with pytest.raises(JobNotFound):
        await shell.queue(name="other").requeue(job_id)


@pytest.mark.parametrize(
    "job_id",
    [{"$ne": None}, [{"$ne": None}], re.compile("."), Regex("."), Code("true"), object(), 2**64],
    ids=lambda job_id: type(job_id).__name__,
)
async def test_what_is_no_id_is_refused(queue: Any, job_id: Any) -> None:
    await bury(queue)

    with pytest.raises(ConfigurationError, match="a job id is a single value"):
        await queue.requeue(job_id)


IDS: list[Any] = [17, "17", "order-17", "$x", "6" * 24, UUID(int=17), 2.5, Decimal128("17"), b"17"]


@pytest.mark.parametrize("job_id", IDS, ids=repr)
async def test_an_id_of_any_type_can_be_requeued(
    queue: Any, jobs: Collection[Any], job_id: Any
) -> None:
    """As another program may have chosen it: what ``job.id`` was names the job."""
    stored = jobs.with_options(codec_options=CODEC)
    stored.insert_one({"_id": job_id, "queue": "default", "state": "ready", "payload": {}})
    job = await queue.next()
    jobs.update_one({}, {"$set": {"state": "dead"}})
    other = await bury(queue)

    assert await queue.requeue(job.id) == 1

    assert [found["_id"] for found in stored.find({"state": "ready"})] == [job_id]
    assert document(jobs, other)["state"] == "dead"


async def test_a_string_comes_before_the_object_id_it_may_stand_for(
    queue: Any, jobs: Collection[Any]
) -> None:
    for job_id in (text := "6" * 24, ObjectId(text)):
        jobs.insert_one({"_id": job_id, "queue": "default", "state": "dead", "payload": {}})

    assert await queue.requeue(text) == 1

    assert document(jobs, text)["state"] == "ready"
    assert document(jobs, ObjectId(text))["state"] == "dead"


@pytest.mark.parametrize("how", [ObjectId, str])
async def test_a_dead_job_whose_key_was_taken_cannot_be_requeued(queue: Any, how: type) -> None:
    other = await queue.put({}, delay=60)  # has no key: it is not the one to be named
    dead = await bury(queue, key="k")
    live = await queue.put({}, key="k")

    with pytest.raises(DuplicateJob) as caught:
        await queue.requeue(how(dead))

    assert other != live
    assert (caught.value.key, caught.value.job_id) == ("k", live)


async def test_requeueing_all_passes_over_those_whose_key_was_taken(queue: Any) -> None:
    await bury(queue, key="k")
    await bury(queue, key="other")
    await queue.put({}, key="k")

    requeued = await queue.requeue()

    assert requeued == 1
    assert (await queue.stats())["errors"] == 1


async def test_dropping_removes_the_dead_and_only_them(queue: Any) -> None:
    await one_in_each_state(queue)
    await bury(queue)

    dropped = await queue.drop_max_attempts()

    assert dropped == 2
    assert await queue.stats() == ONE_OF_EACH | {"errors": 0, "total": 3}


# Removal.


async def test_clearing_removes_jobs_in_every_state(queue: Any) -> None:
    await one_in_each_state(queue)

    cleared = await queue.clear()

    assert cleared == 4
    assert await queue.size() == 0


async def test_clearing_an_empty_queue_removes_nothing(queue: Any) -> None:
    assert await queue.clear() == 0
