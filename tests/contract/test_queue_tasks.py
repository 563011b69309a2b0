"""Calls of tasks, put in every way there is; and keys, which are unique in their task."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, NewJob, Task
from tests.contract.looks import document
from tests.contract.shells import Shell

RESIZE = Task("resize")
SEND = Task("$send")
ALL = ["raise", "skip", "replace", "earlier"]


async def test_a_call_is_put_as_a_job_of_its_task(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put(RESIZE.call(width=3))

    stored = document(jobs, job_id)
    assert (stored["task"], stored["payload"]) == ("resize", {"width": 3})


async def test_a_job_without_a_task_has_no_such_field(queue: Any, jobs: Collection[Any]) -> None:
    ids = await queue.put_many([{"a": 1}, RESIZE.call()])

    assert "task" not in document(jobs, ids[0])


async def test_a_held_job_and_its_info_say_which_task_it_is_of(queue: Any) -> None:
    job_id = await queue.put(RESIZE.call(width=3))

    assert (await queue.get(job_id)).task == "resize"
    job = await queue.next()
    assert (job.task, job.data) == ("resize", {"width": 3})


async def test_an_argument_called_priority_is_no_priority(
    queue: Any, jobs: Collection[Any]
) -> None:
    ids = [await queue.put(RESIZE.call(priority=7))]
    ids += await queue.put_many([RESIZE.call(priority=7), NewJob(RESIZE.call(priority=7))])

    stored = [document(jobs, job_id) for job_id in ids]
    assert [job["priority"] for job in stored] == [0, 0, 0]
    assert [job["payload"] for job in stored] == [{"priority": 7}] * 3


async def test_many_calls_and_payloads_are_put_together(queue: Any, jobs: Collection[Any]) -> None:
    ids = await queue.put_many(
        [
            RESIZE.call(n=0),
            {"n": 1, "priority": 2},
            NewJob(SEND.call(n=2), priority=4),
            SEND.call(n=3),
        ],
        group="ada",
    )

    stored = [document(jobs, job_id) for job_id in ids]
    assert [job.get("task") for job in stored] == ["resize", None, "$send", "$send"]
    assert [job["payload"]["n"] for job in stored] == [0, 1, 2, 3]
    assert [job["priority"] for job in stored] == [0, 2, 4, 0]
    assert [job["group"] for job in stored] == ["ada"] * 4


async def test_one_call_is_not_many(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match="for one payload use put"):
        await queue.put_many(RESIZE.call(n=0))


async def test_a_call_put_in_a_transaction_is_there_once_that_commits(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    await queue.size()
    async with shell.transaction() as session:
        job_id = await queue.put(RESIZE.call(n=1), session=session)
        await queue.put_many([SEND.call(n=2)], session=session)
        assert jobs.count_documents({}) == 0

    assert document(jobs, job_id)["task"] == "resize"
    assert jobs.count_documents({"task": "$send"}) == 1


@pytest.mark.parametrize("many", [False, True], ids=["put", "put_many"])
async def test_a_call_of_a_task_of_another_queue_is_refused(
    shell: Shell, jobs: Collection[Any], many: bool
) -> None:
    emails, call = shell.queue(name="emails"), RESIZE.call(width=3)

    with pytest.raises(ConfigurationError, match=r"in queue 'default'.*put into 'emails'"):
        await (emails.put_many([{"a": 1}, call]) if many else emails.put(call))
    assert jobs.count_documents({}) == 0


async def test_a_request_of_a_call_of_another_queue_is_refused(shell: Shell) -> None:
    with pytest.raises(ConfigurationError, match="in queue 'default'"):
        await shell.queue(name="emails").request(RESIZE.call(width=3), timeout=1)


async def test_a_published_call_is_of_its_task_in_every_queue(
    shell: Shell, jobs: Collection[Any]
) -> None:
    topic = shell.topic("orders")
    await topic.subscribe("billing")
    await topic.subscribe("mails")

    try:
        await topic.publish(RESIZE.call(width=3))
    finally:
        jobs.database[f"{jobs.name}.settings"].delete_many({})

    stored = list(jobs.find({"state": "ready"}).sort("queue"))
    assert [(job["queue"], job["task"]) for job in stored] == [
        ("billing", "resize"),
        ("mails", "resize"),
    ]


# keys


@pytest.mark.parametrize("on_conflict", ALL)
async def test_a_key_of_one_task_is_not_that_of_another(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    calls = [RESIZE.call(n=0), SEND.call(n=1), {"n": 2}]

    ids = [await queue.put(call, key="ada", on_conflict=on_conflict) for call in calls]

    assert len(set(ids)) == 3
    stored = [document(jobs, job_id) for job_id in ids]
    assert [job.get("task") for job in stored] == ["resize", "$send", None]
    assert [job["payload"]["n"] for job in stored] == [0, 1, 2]


@pytest.mark.parametrize("on_conflict", ["skip", "replace", "earlier"])
async def test_a_call_meets_the_job_of_its_task_that_has_the_key(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    await queue.put({"n": 0}, key="ada")
    first = await queue.put(SEND.call(n=1), key="ada")

    again = await queue.put(SEND.call(n=2), key="ada", on_conflict=on_conflict)

    stored = document(jobs, first)
    assert (again, stored["task"]) == (first, "$send")
    assert stored["payload"] == {"n": 2 if on_conflict == "replace" else 1}


async def test_a_duplicate_is_that_of_its_task(queue: Any) -> None:
    await queue.put({"n": 0}, key="ada")
    first = await queue.put(SEND.call(n=1), key="ada")

    with pytest.raises(DuplicateJob) as raised:
        await queue.put(SEND.call(n=2), key="ada")
    assert (raised.value.key, raised.value.job_id) == ("ada", first)


@pytest.mark.parametrize("on_conflict", ["raise", "skip"])
async def test_of_many_calls_with_one_key_those_of_one_task_meet(
    queue: Any, on_conflict: str
) -> None:
    calls = [RESIZE.call(n=0), SEND.call(n=1), RESIZE.call(n=2), {"n": 3}]

    try:
        ids = await queue.put_many(calls, keys=["ada"] * 4, on_conflict=on_conflict)
        existing = ids.existing if hasattr(ids, "existing") else [2]
    except DuplicateJob as error:
        ids, existing = list(error.ids), list(error.existing)

    assert existing == [2]
    assert ids[2] == ids[0]
    assert len(set(ids)) == 3


async def test_a_key_that_a_call_held_for_a_time_is_free_for_the_next_one(queue: Any) -> None:
    await queue.put(SEND.call(n=1), key="ada", unique_for=0.01)
    await (await queue.next()).complete()

    await queue.put(SEND.call(n=2), key="ada")

    assert (await queue.next()).data == {"n": 2}


async def test_two_calls_of_one_key_do_not_run_at_once(queue: Any) -> None:
    for n in range(2):
        await queue.put(SEND.call(n=n), key="ada", key_until="start")
        if n == 0:
            running = await queue.next()
    await queue.put(RESIZE.call(n=2), key="ada")

    assert (await queue.next()).task == "resize"
    assert await queue.next() is None
    await running.complete()
    assert (await queue.next(wait=5)).data == {"n": 1}


async def test_a_dead_call_whose_key_is_taken_names_the_job_of_its_task(queue: Any) -> None:
    await queue.put({"n": 0}, key="ada")
    dead = await queue.put(SEND.call(n=1), key="ada", max_attempts=1, priority=1)
    await (await queue.next()).error("no")
    newer = await queue.put(SEND.call(n=2), key="ada")

    with pytest.raises(DuplicateJob) as raised:
        await queue.requeue(dead)
    assert raised.value.job_id == newer


# schedules


async def test_a_stored_schedule_puts_calls(shell: Shell, jobs: Collection[Any]) -> None:
    schedules = shell.schedules()
    try:
        await schedules.add("nightly", every=3600, payload=RESIZE.call(priority=3))

        job_id = await schedules.run_now("nightly")

        stored = document(jobs, job_id)
        assert (stored["task"], stored["payload"]) == ("resize", {"priority": 3})
        assert stored["priority"] == 0
        [info] = await schedules.list()
        assert info.task == "resize"
    finally:
        jobs.database[f"{jobs.name}.settings"].delete_many({})


async def test_a_schedule_that_puts_payloads_again_puts_calls_no_more(
    shell: Shell, jobs: Collection[Any]
) -> None:
    schedules = shell.schedules()
    try:
        await schedules.add("nightly", every=3600, payload=RESIZE.call())
        await schedules.add("nightly", every=3600, payload={"a": 1})

        assert "task" not in document(jobs, await schedules.run_now("nightly"))
    finally:
        jobs.database[f"{jobs.name}.settings"].delete_many({})


async def test_a_schedule_of_another_queue_takes_no_call(shell: Shell) -> None:
    with pytest.raises(ConfigurationError, match=r"in queue 'default'.*put into 'images'"):
        await shell.schedules().add("s", every=60, queue="images", payload=RESIZE.call())
