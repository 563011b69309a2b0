"""Documents of newer versions and of other programs: old and new run side by side on them.

What is *wrong* in a document is in test_queue_damage.py; here nothing is, it is only unknown.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob
from streamqueue.protocol.schema import EARLIER_KEY_INDEX
from tests.contract.looks import document, let_lease_run_out
from tests.contract.shells import Shell

NEWER: dict[str, Any] = {
    "v": 2,
    "group": "tenant-7",
    "trace": {"id": b"\x01" * 16, "flags": {"sampled": True}},
    "tags": ["a", {"$b": "c.d"}],
    "result_for": None,
    "$odd.name": 1,
}
"""Fields that this version does not know; the last two no later one should have."""
KNOWN = {"queue": "default", "state": "ready", "payload": {"n": 1}}


def insert(jobs: Collection[Any], **fields: Any) -> Any:
    """Insert a job of a newer version, with some of its fields changed."""
    return jobs.insert_one({**KNOWN, **NEWER, **fields}).inserted_id


def unknown(jobs: Collection[Any], job_id: Any) -> dict[str, Any]:
    """What is stored of the fields that this version does not know."""
    stored = document(jobs, job_id)
    return {name: stored.get(name, "is gone") for name in NEWER}


async def claim(queue: Any) -> Any:
    job = await queue.next()
    assert job is not None
    return job


async def errors(queue: Any, jobs: Collection[Any]) -> None:
    await (await claim(queue)).error("why", delay=0)


async def errors_to_death(queue: Any, jobs: Collection[Any]) -> None:
    for _ in range(3):
        await errors(queue, jobs)
    assert (await queue.stats())["errors"] == 1


async def releases(queue: Any, jobs: Collection[Any]) -> None:
    await (await claim(queue)).release()


async def postpones(queue: Any, jobs: Collection[Any]) -> None:
    await (await claim(queue)).release(delay=60)


async def notes_progress(queue: Any, jobs: Collection[Any]) -> None:
    await (await claim(queue)).progress(50)


async def is_lost_and_repaired(queue: Any, jobs: Collection[Any]) -> None:
    await claim(queue)
    let_lease_run_out(jobs)
    assert await queue.repair() == 1


async def dies_and_is_requeued(queue: Any, jobs: Collection[Any]) -> None:
    await errors_to_death(queue, jobs)
    assert await queue.requeue() == 1


Way = Callable[[Any, Collection[Any]], Awaitable[None]]
WAYS: list[Way] = [
    *(errors, errors_to_death, releases, postpones, notes_progress),
    *(is_lost_and_repaired, dies_and_is_requeued),
]


@pytest.mark.parametrize("way", WAYS)
async def test_unknown_fields_are_as_they_were_after_a_job(
    queue: Any, jobs: Collection[Any], way: Way
) -> None:
    job_id = insert(jobs)

    await way(queue, jobs)

    assert unknown(jobs, job_id) == NEWER


async def test_unknown_fields_stay_when_a_job_falls_due(queue: Any, jobs: Collection[Any]) -> None:
    job_id = insert(jobs, state="scheduled")

    job = await claim(queue)

    assert job.id == job_id
    assert unknown(jobs, job_id) == NEWER


async def test_a_job_of_a_newer_version_is_run_like_any_other(
    queue: Any, jobs: Collection[Any]
) -> None:
    insert(jobs, priority=3, max_attempts=7, created_by="another program")

    job = await claim(queue)
    seen = (job.data, job.priority, job.attempts, job.max_attempts)
    await job.complete()

    assert seen == ({"n": 1}, 3, 1, 7)
    assert await queue.size() == 0


async def test_old_and_new_jobs_are_claimed_in_one_batch_in_their_order(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 0})
    insert(jobs, priority=5)
    await queue.put({"n": 2}, priority=9)

    claimed = await queue.claim(10)

    assert [job.priority for job in claimed] == [9, 5, 0]


async def test_a_key_is_unique_across_versions(queue: Any, jobs: Collection[Any]) -> None:
    earlier = {"key": {"$exists": True}, "state": {"$gte": "ready"}}
    jobs.create_index(
        ["queue", "key"],
        name=EARLIER_KEY_INDEX,
        unique=True,
        partialFilterExpression=earlier,
    )
    job_id = insert(jobs, key="k")

    with pytest.raises(DuplicateJob) as raised:
        await queue.put({}, key="k")

    assert raised.value.job_id == job_id


async def test_a_job_in_a_state_of_a_newer_version_is_counted_and_left_alone(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = insert(jobs, state="paused")
    before = document(jobs, job_id)

    found = await queue.next()
    repaired, requeued = await queue.repair(), await queue.requeue()
    stats = await queue.stats()

    assert (found, repaired, requeued) == (None, 0, 0)
    assert document(jobs, job_id) == before
    assert (stats["total"], sum(stats.values())) == (1, 1)


async def test_a_job_with_nothing_but_what_it_must_have_lives_its_whole_life(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(max_attempts=2)
    jobs.insert_one(dict(KNOWN))

    await releases(queue, jobs)
    await is_lost_and_repaired(queue, jobs)
    await errors(queue, jobs)
    dead = await queue.stats()
    await queue.requeue()
    await (await claim(queue)).complete()

    assert dead["errors"] == 1
    assert await queue.size() == 0


async def test_what_is_put_has_no_field_that_an_older_version_would_trip_over(
    queue: Any, jobs: Collection[Any]
) -> None:
    # Fields are only ever added: these are the ones of version 1, which a reader of it knows, and
    # one that it passes over.
    job_id = await queue.put({"n": 1}, key="k", delay=60, priority=2, max_attempts=4)

    stored = document(jobs, job_id)

    assert {name: type(value).__name__ for name, value in stored.items()} == {
        "_id": "ObjectId",
        "v": "int",
        "queue": "str",
        "state": "str",
        "priority": "int",
        "seq": "Timestamp",
        "run_at": "datetime",
        "created_at": "datetime",
        "attempts": "int",
        "max_attempts": "int",
        "key": "str",
        "held_key": "str",
        "payload": "dict",
    }
