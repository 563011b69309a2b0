"""Jobs that the server refuses to change: calls neither hang on them nor try without end."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Timer
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue.store import refused
from streamqueue.store.flows import timers

PAST = datetime(2020, 1, 1, tzinfo=UTC)
STUCK: dict[str, dict[str, Any]] = {
    "scheduled": {"state": "scheduled", "run_at": PAST},
    "running": {"state": "running", "locked_until": PAST, "lease": b"a", "attempts": 1},
    "ready": {"state": "ready", "run_at": PAST, "priority": 9},
}
every_kind = pytest.mark.parametrize("kind", STUCK)


def insert_stuck(jobs: Collection[Any], kind: str) -> None:
    """Insert a job that the server lets nobody change, because a validator came after it."""
    jobs.insert_one({"queue": "default", "payload": {"bad": True}, "priority": 0} | STUCK[kind])
    refuse(jobs, {"payload.bad": {"$exists": False}})


def refuse(jobs: Collection[Any], validator: dict[str, Any]) -> None:
    jobs.database.command("collMod", jobs.name, validator=validator)


def updates(client: MongoClient[Any]) -> int:
    """How many commands that change documents the server has had."""
    commands = client.admin.command("serverStatus")["metrics"]["commands"]
    return int(commands["update"]["total"] + commands["findAndModify"]["total"])


@every_kind
async def test_a_stuck_job_does_not_keep_the_next_from_being_taken(
    queue: Any, jobs: Collection[Any], kind: str
) -> None:
    insert_stuck(jobs, kind)
    good = await queue.put({"n": 1})

    with anyio.fail_after(5):
        job = await queue.next()

    assert job.id == good


@every_kind
async def test_a_job_that_is_known_to_be_stuck_does_not_hide_the_next(
    queue: Any, jobs: Collection[Any], kind: str
) -> None:
    insert_stuck(jobs, kind)
    await queue.next()
    good = await queue.put({"n": 1})

    with anyio.fail_after(5):
        job = await queue.next()

    assert job is not None
    assert job.id == good


@every_kind
async def test_with_nothing_but_a_stuck_job_there_is_none_to_take(
    queue: Any, jobs: Collection[Any], kind: str
) -> None:
    insert_stuck(jobs, kind)

    with anyio.fail_after(5):
        assert await queue.next() is None


@pytest.mark.few(2)
@every_kind
async def test_waiting_beside_a_stuck_job_tries_it_a_few_times_only(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any], kind: str
) -> None:
    insert_stuck(jobs, kind)
    await queue.next()
    before = updates(client)

    with anyio.fail_after(8):
        assert await queue.next(wait=2.5) is None

    assert updates(client) - before < 40


@pytest.mark.few(2)
@every_kind
async def test_a_job_that_was_stuck_is_taken_by_those_who_wait(
    queue: Any, jobs: Collection[Any], kind: str
) -> None:
    insert_stuck(jobs, kind)
    await queue.next()
    refuse(jobs, {})

    with anyio.fail_after(8):
        job = await queue.next(wait=5)

    assert job.data == {"bad": True}


async def test_a_stuck_job_keeps_no_other_from_being_given_its_place(
    queue: Any, jobs: Collection[Any]
) -> None:
    """Without a priority they would stand behind every job that has one."""
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"bad": True}})
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": 1}})
    refuse(jobs, {"payload.bad": {"$exists": False}})
    await queue.put({"n": 2}, priority=-1)

    with anyio.fail_after(5):
        taken = [await queue.next(), await queue.next()]

    assert [job.data["n"] for job in taken] == [1, 2]


async def test_of_more_jobs_than_are_read_at_a_time_all_are_given_their_place(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "BATCH", 2)
    foreign = {"queue": "default", "state": "ready"}
    jobs.insert_many({**foreign, "payload": {"bad": True}} for _ in range(3))
    jobs.insert_many({**foreign, "payload": {"n": n}} for n in range(5))
    refuse(jobs, {"payload.bad": {"$exists": False}})

    taken = [await queue.next() for _ in range(5)]

    assert None not in taken
    assert jobs.count_documents({"priority": None}) == 3


async def test_more_stuck_jobs_than_can_be_remembered_do_not_keep_a_call_for_ever(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused, "MOST_STUCK", 3)
    for _ in range(5):
        insert_stuck(jobs, "ready")
        refuse(jobs, {})
    refuse(jobs, {"payload.bad": {"$exists": False}})

    # A call that goes on for ever cannot be cancelled: claims are shielded.
    way_out = Timer(5, refuse, (jobs, {}))
    way_out.start()
    try:
        assert await queue.next() is None
    finally:
        way_out.cancel()


async def test_a_repair_tries_what_was_stuck_at_once(queue: Any, jobs: Collection[Any]) -> None:
    insert_stuck(jobs, "running")
    assert await queue.repair() == 0
    refuse(jobs, {})

    assert await queue.repair() == 1
