"""No document stops ``next``, ``repair`` or ``requeue``, whatever it has in whichever field."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pymongo.errors import BulkWriteError
from pymongo.synchronous.collection import Collection

from tests.contract.shells import Shell
from tests.strange import STORED_AS_ID, VALUES, job


def insert(jobs: Collection[Any], state: str, field: str) -> None:
    """Jobs with a value of every type in a field; of those with equal ids one."""
    names = STORED_AS_ID if field == "_id" else VALUES
    with suppress(BulkWriteError):
        jobs.insert_many(
            [job(state, {field: VALUES[name]}, queue="default") for name in names], ordered=False
        )


@pytest.mark.parametrize("state", ["ready", "scheduled", "running"])
async def test_a_job_with_any_id_at_all_stops_nobody_who_takes_jobs(
    queue: Any, jobs: Collection[Any], state: str
) -> None:
    insert(jobs, state, "_id")
    good = await queue.put({"n": 1}, priority=-1)

    taken = []
    while batch := await queue.claim(10):
        taken += [job.id for job in batch]

    assert good in taken
    assert jobs.count_documents({"state": state}) == (len(taken) if state == "running" else 0)


@pytest.mark.parametrize("field", ["queue", "locked_by", "attempts", "locked_until", "lease"])
async def test_a_stale_job_with_any_value_in_a_field_stops_no_repair(
    queue: Any, jobs: Collection[Any], field: str
) -> None:
    insert(jobs, "running", field)
    jobs.insert_one(job("running", {}, queue="default"))

    await queue.repair()

    assert jobs.count_documents({"state": "ready", "attempts": 1}) > 0


async def test_a_dead_job_with_any_id_at_all_is_requeued_with_the_others(
    queue: Any, jobs: Collection[Any]
) -> None:
    insert(jobs, "dead", "_id")
    dead = jobs.count_documents({"state": "dead"})

    assert await queue.requeue() == dead


async def test_what_a_queue_buries_is_counted(shell: Shell, jobs: Collection[Any]) -> None:
    registry = CollectorRegistry()
    queue = shell.queue(registry=registry)
    for odd in ({"_id": VALUES["true"]}, {"payload": VALUES["int"]}):
        jobs.insert_one(job("ready", odd, queue="default"))

    assert await queue.next() is None

    for reason in ("id", "payload"):
        known = {"reason": reason}
        assert registry.get_sample_value("streamqueue_jobs_buried_total", known) == 1


async def test_a_job_that_the_server_refuses_to_have_claimed_counts_as_that(
    shell: Shell, jobs: Collection[Any]
) -> None:
    registry = CollectorRegistry()
    queue = shell.queue(registry=registry)
    await queue.put({})
    no_claims = {"locked_by": {"$exists": False}}
    jobs.database.command("collMod", jobs.name, validator=no_claims)

    assert await queue.next() is None

    known = {"reason": "refused"}
    assert registry.get_sample_value("streamqueue_jobs_buried_total", known) == 1
