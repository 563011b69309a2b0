"""Jobs that wait are moved to another time or place, and dead ones put back, as many as asked."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, JobNotFound
from tests.contract.looks import document, server_time
from tests.contract.shells import Shell

# another time


async def order(queue: Any) -> list[Any]:
    """Take all that is ready."""
    taken = []
    while job := await queue.next():
        taken.append(job.id)
    return taken


@pytest.mark.parametrize("delay", [60, timedelta(minutes=1)])
async def test_a_ready_job_can_be_put_off(queue: Any, jobs: Collection[Any], delay: Any) -> None:
    job_id = await queue.put({"n": 1})

    await queue.reschedule(job_id, delay=delay)

    stored = document(jobs, job_id)
    left = stored["run_at"] - server_time(jobs)
    assert stored["state"] == "scheduled"
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)


async def test_a_scheduled_job_can_be_given_another_moment(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({"n": 1}, delay=60)
    moment = datetime(2126, 5, 1, tzinfo=UTC)

    await queue.reschedule(job_id, run_at=moment)

    stored = document(jobs, job_id)
    assert (stored["state"], stored["run_at"]) == ("scheduled", moment)


@pytest.mark.parametrize(
    "when", [{"delay": 0}, {"run_at": datetime(2020, 1, 1, tzinfo=UTC)}], ids=["now", "past"]
)
async def test_a_time_that_has_come_makes_a_job_the_last_of_those_that_are_ready(
    queue: Any, when: dict[str, Any]
) -> None:
    scheduled = await queue.put({}, delay=60)
    ready, other = await queue.put({}), await queue.put({})

    await queue.reschedule(scheduled, **when)
    await queue.reschedule(ready, **when)

    assert await order(queue) == [other, scheduled, ready]


async def test_a_job_that_is_rescheduled_wakes_who_waits(shell: Shell) -> None:
    queue, other = shell.queue(), shell.queue()
    job_id = await queue.put({}, delay=60)
    assert await other.next() is None

    await queue.reschedule(job_id, delay=0.2)

    assert (await other.next(wait=10)).id == job_id


async def test_with_another_priority_a_job_keeps_its_place_among_those_that_have_it(
    queue: Any,
) -> None:
    first, second, third = [await queue.put({}, priority=p) for p in (0, 5, 5)]

    await queue.reschedule(first, priority=5)

    assert await order(queue) == [first, second, third]


async def test_a_scheduled_job_with_another_priority_keeps_its_time(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, delay=60)
    before = document(jobs, job_id)

    await queue.reschedule(job_id, priority=7)

    assert document(jobs, job_id) == before | {"priority": 7}


@pytest.mark.parametrize("end", [None, "error", "complete"], ids=["runs", "is dead", "is gone"])
async def test_only_what_waits_can_be_rescheduled(queue: Any, end: str | None) -> None:
    job_id = await queue.put({}, max_attempts=1)
    job = await queue.next()
    if end is not None:
        await getattr(job, end)()

    with pytest.raises(JobNotFound, match=f"no waiting job {job_id}"):
        await queue.reschedule(job_id, delay=5)


async def test_a_job_of_another_queue_is_not_rescheduled(shell: Shell) -> None:
    job_id = await shell.queue().put({})

    with pytest.raises(JobNotFound):
        await shell.queue(name="other").reschedule(job_id, delay=5)


@pytest.mark.parametrize("kind", [str, lambda _: "an-id-of-its-own"], ids=["text", "own"])
async def test_an_id_is_whatever_the_job_has(queue: Any, jobs: Collection[Any], kind: Any) -> None:
    named = {"_id": "an-id-of-its-own", "queue": "default", "state": "ready", "payload": {}}
    jobs.insert_one(named)
    job_id = await queue.put({})

    await queue.reschedule(kind(job_id), delay=60)

    meant = job_id if kind is str else named["_id"]
    assert [job["_id"] for job in jobs.find({"state": "scheduled"})] == [meant]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give delay, run_at or priority"),
        ({"delay": 1, "run_at": datetime.now(UTC)}, "not both"),
        ({"delay": -1}, "delay must be"),
        ({"run_at": datetime(2030, 1, 1)}, "time zone"),
        ({"priority": 2**31}, "priority must be"),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    queue: Any, settings: dict[str, Any], said: str
) -> None:
    job_id = await queue.put({})

    with pytest.raises(ConfigurationError, match=said):
        await queue.reschedule(job_id, **settings)


# many dead ones


def bury(jobs: Collection[Any], **fields: Any) -> Any:
    dead = {
        "queue": "default",
        "state": "dead",
        "payload": {},
        "attempts": 3,
        "priority": 0,
        "finished_at": server_time(jobs),
    }
    return jobs.insert_one(dead | fields).inserted_id


def in_state(jobs: Collection[Any], state: str) -> set[Any]:
    return {job["_id"] for job in jobs.find({"state": state})}


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py"\nConnectError: refused\n'


async def test_those_whose_error_begins_so_are_requeued(queue: Any, jobs: Collection[Any]) -> None:
    meant = {
        bury(jobs, last_error="ConnectError: no route"),
        bury(jobs, last_error=TRACEBACK),
    }
    bury(jobs, last_error="no ConnectError")
    bury(jobs, last_error="Connect")
    bury(jobs, last_error=None)
    bury(jobs, queue="other", last_error="ConnectError")

    assert await queue.requeue(error="ConnectError") == 2
    assert in_state(jobs, "ready") == meant


async def test_an_error_is_text_and_no_pattern(queue: Any, jobs: Collection[Any]) -> None:
    meant = bury(jobs, last_error="a.b*: [x] $")
    bury(jobs, last_error="aab: x")

    assert await queue.requeue(error="a.b*: [x] $") == 1
    assert in_state(jobs, "ready") == {meant}


async def test_those_of_a_group_are_requeued(queue: Any, jobs: Collection[Any]) -> None:
    meant = bury(jobs, group="ada")
    bury(jobs, group="bob")
    bury(jobs)

    assert await queue.requeue(group="ada") == 1
    assert in_state(jobs, "ready") == {meant}


@pytest.mark.parametrize("age", [3600, timedelta(hours=1)])
async def test_those_that_died_long_ago_are_requeued(
    queue: Any, jobs: Collection[Any], age: Any
) -> None:
    now = server_time(jobs)
    meant = {
        bury(jobs, finished_at=now - timedelta(hours=2)),
        bury(jobs, finished_at=now - timedelta(days=9)),
    }
    bury(jobs, finished_at=now - timedelta(minutes=50))
    bury(jobs, finished_at=now)

    assert await queue.requeue(older_than=age) == 2
    assert in_state(jobs, "ready") == meant


async def test_many_can_be_spread_over_a_time(queue: Any, jobs: Collection[Any]) -> None:
    before = server_time(jobs)
    ids = [bury(jobs, finished_at=before - timedelta(seconds=60 - n)) for n in range(10)]

    assert await queue.requeue(spread=100) == 10

    dates = [document(jobs, job_id)["run_at"] for job_id in ids]
    steps = {(later - earlier).total_seconds() for earlier, later in pairwise(dates)}
    assert in_state(jobs, "scheduled") == set(ids)
    assert steps == {10.0}
    assert abs(dates[0] - before) < timedelta(seconds=5)


async def test_the_first_of_a_spread_is_ready_at_once(queue: Any, jobs: Collection[Any]) -> None:
    first = bury(jobs, finished_at=server_time(jobs) - timedelta(seconds=9))
    bury(jobs)

    await queue.requeue(spread=600)

    assert (await queue.next(wait=5)).id == first


async def test_of_many_one_whose_key_is_taken_stays_dead_and_is_not_counted(
    queue: Any, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    await queue.put({}, key="taken")
    [dead, free] = [bury(jobs, key=key) for key in ("taken", "free")]

    with caplog.at_level(logging.WARNING):
        assert await queue.requeue(spread=60) == 1

    assert in_state(jobs, "dead") == {dead}
    assert in_state(jobs, "scheduled") == {free}
    [line] = [line for line in caplog.records if line.name == "streamqueue.store"]
    assert (line.event, line.job_id) == ("job_stays_dead", str(dead))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "filters", [{"error": "x"}, {"group": "x"}, {"older_than": 1}, {"spread": 1}]
)
async def test_what_is_for_many_does_not_go_with_an_id(
    queue: Any, jobs: Collection[Any], filters: dict[str, Any]
) -> None:
    job_id = bury(jobs)

    with pytest.raises(ConfigurationError, match="for many jobs"):
        await queue.requeue(job_id, **filters)


@pytest.mark.parametrize(
    "filters",
    [
        *({"error": value} for value in ("", "x" * 1001, 5, {"$ne": 1}, "a\x00b")),
        *({"group": value} for value in ("", 5, {"$ne": 1})),
        *({"older_than": -1}, {"spread": -1}, {"spread": "an hour"}),
    ],
)
async def test_a_filter_that_cannot_be_meant_is_refused(
    queue: Any, jobs: Collection[Any], filters: dict[str, Any]
) -> None:
    bury(jobs)

    with pytest.raises(ConfigurationError):
        await queue.requeue(**filters)

    assert in_state(jobs, "ready") == set()
