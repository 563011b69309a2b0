"""Jobs that belong to a group: how they are put, and found."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, MongoQueue, NewJob
from streamqueue.protocol import operations
from tests.contract.looks import document
from tests.contract.shells import Shell

LATER = datetime(2126, 5, 1, tzinfo=UTC)
INDEXES = {"streamqueue_group", "streamqueue_dead_group"}


class Customer(str, Enum):  # noqa: UP042 (whose text is not its value)
    ADA = "ada"


# putting


async def test_a_group_is_stored_and_shown(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, group="ada")

    job = await queue.next()

    assert document(jobs, job_id)["group"] == "ada"
    assert job.group == "ada"
    assert (await queue.get(job_id)).group == "ada"


async def test_a_job_without_has_no_such_field(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({})

    assert "group" not in document(jobs, job_id)
    assert (await queue.next()).group is None


async def test_of_many_each_has_its_own_or_that_of_all(queue: Any, jobs: Collection[Any]) -> None:
    ids = await queue.put_many([NewJob({}, group="bob"), NewJob({}), {}], group="ada")

    assert [document(jobs, job_id)["group"] for job_id in ids] == ["bob", "ada", "ada"]


async def test_a_message_has_its_group_in_each_queue(shell: Shell, jobs: Collection[Any]) -> None:
    topic = shell.topic("orders")
    await topic.subscribe("billing")
    await topic.subscribe("mails")

    ids = await topic.publish({}, group="ada")

    assert [document(jobs, job_id)["group"] for job_id in ids] == ["ada", "ada"]


async def test_a_schedule_puts_its_jobs_into_a_group(shell: Shell, jobs: Collection[Any]) -> None:
    schedules = shell.schedules()
    await schedules.add("report", every=3600, queue="reports", group="ada")

    job_id = await schedules.run_now("report")

    assert document(jobs, job_id)["group"] == "ada"


async def test_a_member_of_an_enumeration_stands_for_its_text(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, group=Customer.ADA)

    assert document(jobs, job_id)["group"] == "ada"


@pytest.mark.parametrize("group", ["", "x" * 513, 7, {"$ne": 1}, b"ada", ["ada"], "\ud800"])
async def test_what_is_no_group_is_refused(queue: Any, jobs: Collection[Any], group: Any) -> None:
    with pytest.raises(ConfigurationError, match="group must be"):
        await queue.put({}, group=group)

    assert jobs.count_documents({}) == 0


async def test_its_indexes_are_made_for_the_first_job_that_has_one(
    shell: Shell, jobs: Collection[Any]
) -> None:
    jobs.drop_indexes()
    queue = shell.queue()
    await queue.put({})
    before = set(jobs.index_information())

    await queue.put({}, group="ada")

    assert not INDEXES & before
    assert set(jobs.index_information()) >= INDEXES


async def test_in_a_transaction_nothing_is_made_and_nothing_put(
    shell: Shell, jobs: Collection[Any]
) -> None:
    jobs.drop_indexes()

    async with shell.transaction() as session:
        with pytest.raises(ConfigurationError, match="streamqueue_group"):
            await shell.queue().put({}, group="ada", session=session)

    assert jobs.count_documents({}) == 0


# looking


async def test_a_listing_is_of_the_group_that_is_asked_for(queue: Any) -> None:
    await queue.put_many([{}] * 5, group="bob")
    ids = await queue.put_many([{}] * 3, group="ada")

    assert [info.id for info in await queue.list(group="ada")] == ids


@pytest.mark.parametrize("state", ["ready", "scheduled", "running", "dead"])
def test_jobs_of_a_group_are_found_by_its_index_among_those_of_others(
    jobs: Collection[Any], state: str
) -> None:
    queue = MongoQueue(jobs)
    queue.put_many([{}] * 400, group="bob")
    queue.put_many([{}] * 3, group="ada")
    jobs.update_many({}, {"$set": {"state": state, "finished_at": LATER, "locked_until": LATER}})
    page = operations.first_page(operations.Wanted(queue.name, state, "ada"), 100)

    reply = jobs.database.command(
        "explain",
        {"aggregate": jobs.name, "pipeline": page, "cursor": {}},
        verbosity="executionStats",
    )

    assert executed(reply)["nReturned"] == 3
    assert executed(reply)["totalKeysExamined"] < 10


def executed(plan: dict[str, Any]) -> dict[str, Any]:
    """What it took to read, as the server explains an aggregation."""
    read = plan["stages"][0]["$cursor"] if "stages" in plan else plan
    stats: dict[str, Any] = read["executionStats"]
    return stats
