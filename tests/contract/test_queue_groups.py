"""Jobs that belong to a group: how they are put, and that each keeps its place in the order of its
group, however often it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, ConfigurationError, MongoQueue, NewJob
from streamqueue.protocol import operations
from tests.contract.looks import document, let_lease_run_out
from tests.contract.shells import Shell
from tests.waiting import wait_until_async

LATER = datetime(2126, 5, 1, tzinfo=UTC)
INDEXES = {"streamqueue_group", "streamqueue_dead_group"}


class Customer(str, Enum):  # noqa: UP042 (whose text is not its value)
    ADA = "ada"


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no settings left behind."""
    yield jobs
    jobs.database[f"{jobs.name}.settings"].delete_many({})


def let_time_come(jobs: Collection[Any]) -> None:
    """Make what is scheduled due a second ago."""
    past = {"$subtract": ["$$NOW", 1000]}
    jobs.update_many({"state": "scheduled"}, [{"$set": {"run_at": past}}])


def place(jobs: Collection[Any], job_id: Any) -> Any:
    """A job's place in the order; None if it has none yet."""
    return document(jobs, job_id).get("seq")


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


# when a place is taken


@pytest.mark.parametrize("when", [{"delay": 60}, {"run_at": LATER}], ids=["delay", "moment"])
async def test_what_is_put_for_later_has_no_place_yet(
    queue: Any, jobs: Collection[Any], when: dict[str, Any]
) -> None:
    one = await queue.put({}, group="ada", **when)
    several = await queue.put_many([{}, NewJob({})], group="ada", **when)

    stored = [document(jobs, job_id) for job_id in (one, *several)]
    assert {job["state"] for job in stored} == {"scheduled"}
    assert not any("seq" in job for job in stored)


async def test_without_a_group_it_has_one_from_the_put_on(
    queue: Any, jobs: Collection[Any]
) -> None:
    assert place(jobs, await queue.put({}, delay=60))


async def test_a_job_joins_its_group_when_it_is_due(queue: Any, jobs: Collection[Any]) -> None:
    delayed = await queue.put({}, group="ada", delay=60)
    first = await queue.put({}, group="ada")
    let_time_come(jobs)

    taken = [job.id for job in await queue.claim(1)]  # which has the others become ready
    await wait_until_async(lambda: place(jobs, delayed), "it is due")

    assert taken == [first]
    assert place(jobs, delayed) > place(jobs, first)


async def test_what_another_program_has_put_without_a_place_is_given_one(
    queue: Any, jobs: Collection[Any]
) -> None:
    plain = {"queue": queue.name, "payload": {}, "group": "ada"}
    ready = jobs.insert_one({**plain, "state": "ready"}).inserted_id
    scheduled = jobs.insert_one({**plain, "state": "scheduled", "run_at": LATER}).inserted_id

    await queue.next()

    assert place(jobs, ready)
    assert place(jobs, scheduled) is None


# places are kept


async def fail(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("broken", delay=0)


async def fail_and_wait(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("broken", delay=60)
    let_time_come(jobs)
    assert await queue.next()  # promotes, and claims
    let_lease_run_out(jobs, job.id)
    await queue.repair()


async def release(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.release()


async def release_for_later(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.release(delay=60)
    let_time_come(jobs)
    await (await queue.next()).release()


async def lose(queue: Any, jobs: Collection[Any], job: Any) -> None:
    let_lease_run_out(jobs, job.id)
    assert await queue.repair() == 1


async def die(queue: Any, jobs: Collection[Any], job: Any) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"max_attempts": 1}})
    await job.error("broken")
    assert await queue.requeue(job.id) == 1


async def die_with_others(queue: Any, jobs: Collection[Any], job: Any) -> None:
    jobs.update_one({"_id": job.id}, {"$set": {"max_attempts": 1}})
    await job.error("broken")
    assert await queue.requeue(group="ada", spread=60) == 1
    let_time_come(jobs)
    await (await queue.next()).release()


async def be_cancelled(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.release()
    jobs.update_one({"_id": job.id}, {"$set": {"keep": 60}})
    await queue.cancel(job.id)
    assert await queue.requeue(job.id) == 1


async def have_its_time_moved_up(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.error("broken", delay=60)
    await queue.reschedule(job.id, delay=0)


async def be_made_urgent(queue: Any, jobs: Collection[Any], job: Any) -> None:
    await job.release()
    await queue.reschedule(job.id, priority=7)


WAYS_BACK = [
    *(fail, fail_and_wait, release, release_for_later, lose, die, die_with_others),
    *(be_cancelled, have_its_time_moved_up, be_made_urgent),
]


@pytest.mark.parametrize("come_back", WAYS_BACK)
async def test_a_job_comes_back_to_its_place_in_its_group(
    shell: Shell, jobs: Collection[Any], come_back: Any
) -> None:
    queue = shell.queue(backoff=Backoff(initial=60, jitter=0))
    job_id = await queue.put({}, group="ada")
    before = place(jobs, job_id)

    await come_back(queue, jobs, await queue.next())

    stored = document(jobs, job_id)
    assert (stored["state"], stored["seq"]) == ("ready", before)


@pytest.mark.parametrize("come_back", [fail, fail_and_wait, die, have_its_time_moved_up])
async def test_without_a_group_it_comes_back_behind_the_others(
    shell: Shell, jobs: Collection[Any], come_back: Any
) -> None:
    queue = shell.queue(backoff=Backoff(initial=60, jitter=0))
    job_id = await queue.put({})
    before = place(jobs, job_id)

    await come_back(queue, jobs, await queue.next())

    assert place(jobs, job_id) > before


async def test_one_that_waits_for_its_backoff_keeps_its_place_meanwhile(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, group="ada")
    before = place(jobs, job_id)

    await (await queue.next()).error("broken", delay=60)

    stored = document(jobs, job_id)
    assert (stored["state"], stored["seq"]) == ("scheduled", before)


async def test_one_that_waited_for_the_running_one_of_its_key_keeps_its_place(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k", key_until="start")
    running = await queue.next()
    job_id = await queue.put({}, key="k", key_until="start", group="ada")
    before = place(jobs, job_id)
    assert await queue.next() is None
    assert document(jobs, job_id)["state"] == "waiting"

    await running.complete()

    stored = document(jobs, job_id)
    assert (stored["state"], stored["seq"]) == ("ready", before)


async def test_one_that_is_put_off_leaves_the_order_until_its_time(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, group="ada")
    other = await queue.put({}, group="ada")

    await queue.reschedule(job_id, delay=60)

    assert place(jobs, job_id) is None
    await queue.reschedule(job_id, delay=0)
    assert place(jobs, job_id) > place(jobs, other)


async def test_one_that_never_joined_and_is_requeued_for_later_still_has_no_place(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, group="ada", delay=600)
    jobs.update_one({"_id": job_id}, {"$set": {"state": "dead", "finished_at": LATER}})

    await queue.requeue(group="ada", spread=600)

    assert document(jobs, job_id)["state"] == "scheduled"
    assert place(jobs, job_id) is None


STEPS = st.sampled_from(
    ["fail", "fail later", "release", "snooze", "lose", "die", "put off", "call", "let it be due"]
)


@pytest.mark.few(1)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(later=st.booleans(), steps=st.lists(STEPS, max_size=8))
async def test_a_place_is_never_exchanged_for_another_but_where_it_was_left(
    shell: Shell, jobs: Collection[Any], later: bool, steps: list[str]
) -> None:
    """Whatever is done to a job, it has the place that it took when it was ready first; it gives it
    up only when somebody puts it off."""
    jobs.delete_many({})
    queue = shell.queue(max_attempts=1000)
    job_id = await queue.put({}, group="ada", delay=60 if later else None)
    known = place(jobs, job_id)
    for step in steps:
        left = await do(queue, jobs, job_id, step)
        stored = document(jobs, job_id)
        if left:
            assert "seq" not in stored
        elif known is not None:
            assert stored["seq"] == known
        if stored["state"] != "scheduled":
            assert "seq" in stored
        known = stored.get("seq")


async def do(queue: Any, jobs: Collection[Any], job_id: ObjectId, step: str) -> bool:
    """Do that, if it can be done; return whether the job has been put off by it."""
    match step:
        case "put off" | "call":
            await queue.reschedule(job_id, delay=60 if step == "put off" else 0)
            return step == "put off"
        case "let it be due":
            let_time_come(jobs)
    job = await queue.next()
    if job is None:
        return False
    match step:
        case "fail":
            await job.error("broken", delay=0)
        case "fail later":
            await job.error("broken", delay=60)
        case "snooze":
            await job.release(delay=timedelta(minutes=1))
        case "lose":
            let_lease_run_out(jobs)
            await queue.repair()
        case "die":
            jobs.update_one({"_id": job_id}, {"$set": {"max_attempts": 1}})
            await job.error("broken")
            jobs.update_one({"_id": job_id}, {"$unset": {"max_attempts": ""}})
            await queue.requeue(job_id)
        case _:
            await job.release()
    return False


# keys


@pytest.mark.parametrize("on_conflict", ["skip", "replace", "earlier"])
async def test_a_put_that_meets_nobody_has_its_group_and_its_place(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    put = {"group": "$ada", "on_conflict": on_conflict}

    ready = document(jobs, await queue.put({}, key="a", **put))
    later = document(jobs, await queue.put({}, key="b", delay=60, **put))

    assert (ready["group"], later["group"]) == ("$ada", "$ada")
    assert "seq" in ready
    assert "seq" not in later


async def test_the_group_of_the_newest_put_holds(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, key="k", group="ada", on_conflict="replace")

    await queue.put({}, key="k", group="bob", on_conflict="replace")
    assert document(jobs, job_id)["group"] == "bob"

    await queue.put({}, key="k", on_conflict="replace")
    assert "group" not in document(jobs, job_id)


@pytest.mark.parametrize("on_conflict", ["skip", "earlier"])
async def test_one_that_is_not_replaced_stays_in_its_group(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    job_id = await queue.put({}, key="k", group="ada", key_until="start")
    before = place(jobs, job_id)

    await queue.put({}, key="k", group="bob", on_conflict=on_conflict)

    stored = document(jobs, job_id)
    assert (stored["group"], stored["seq"]) == ("ada", before)


@pytest.mark.parametrize("state", ["ready", "scheduled", "waiting"])
async def test_one_that_is_replaced_within_its_group_keeps_its_place(
    queue: Any, jobs: Collection[Any], state: str
) -> None:
    job_id = await queue.put({}, key="k", group="ada", on_conflict="replace")
    before = place(jobs, job_id)
    jobs.update_one({"_id": job_id}, {"$set": {"state": state}})

    await queue.put({"n": 2}, key="k", group="ada", on_conflict="replace")

    assert place(jobs, job_id) == before


@pytest.mark.parametrize("state", ["ready", "scheduled", "waiting"])
async def test_one_that_is_moved_to_another_group_is_the_last_there(
    queue: Any, jobs: Collection[Any], state: str
) -> None:
    job_id = await queue.put({}, key="k", group="ada", on_conflict="replace")
    jobs.update_one({"_id": job_id}, {"$set": {"state": state}})
    other = await queue.put({}, group="bob")

    await queue.put({}, key="k", group="bob", on_conflict="replace")

    assert place(jobs, job_id) > place(jobs, other)


@pytest.mark.parametrize("state", ["ready", "scheduled", "waiting"])
async def test_one_that_is_replaced_for_later_leaves_the_order(
    queue: Any, jobs: Collection[Any], state: str
) -> None:
    job_id = await queue.put({}, key="k", group="ada", on_conflict="replace")
    jobs.update_one({"_id": job_id}, {"$set": {"state": state}})

    await queue.put({}, key="k", group="ada", on_conflict="replace", delay=60)

    assert place(jobs, job_id) is None


async def test_what_waits_and_has_no_place_is_given_none_by_a_put(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, key="k", group="ada", delay=60, on_conflict="replace")
    jobs.update_one({"_id": job_id}, {"$set": {"state": "waiting"}})

    await queue.put({}, key="k", group="ada", on_conflict="replace")

    assert place(jobs, job_id) is None


async def test_what_waited_and_has_no_place_takes_one_when_it_is_let_through(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k", key_until="start")
    running = await queue.next()
    job_id = await queue.put({}, key="k", group="ada", on_conflict="replace")
    assert await queue.next() is None
    await queue.put({}, key="k", group="ada", delay=60, on_conflict="replace")
    await queue.put({}, key="k", group="ada", on_conflict="replace")
    assert place(jobs, job_id) is None

    await running.complete()

    assert document(jobs, job_id)["state"] == "ready"
    assert place(jobs, job_id)


async def test_one_that_is_brought_forward_joins_its_group_and_one_that_had_keeps_its_place(
    queue: Any, jobs: Collection[Any]
) -> None:
    put = {"key": "k", "group": "ada", "on_conflict": "earlier"}
    job_id = await queue.put({}, delay=60, **put)

    await queue.put({}, **put)
    joined = place(jobs, job_id)
    jobs.update_one({"_id": job_id}, {"$set": {"state": "scheduled", "run_at": LATER}})
    await queue.put({}, **put)

    stored = document(jobs, job_id)
    assert joined
    assert (stored["state"], stored["seq"]) == ("ready", joined)


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
