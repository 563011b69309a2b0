"""A put whose key is taken: skipped, replaced, brought forward or refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pymongo
import pytest
from anyio import create_task_group
from anyio.abc import TaskGroup
from bson import ObjectId
from pymongo.errors import PyMongoError
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob
from tests.contract.looks import document, server_time
from tests.contract.shells import Shell
from tests.waiting import wait_until_async

UPSERTS = ["skip", "replace", "earlier"]
ALL = ["raise", *UPSERTS]
UNBEGUN = ["scheduled", "ready", "waiting"]
BEGUN = ["running", "dead"]
HELD = timedelta(hours=1)


def change(jobs: Collection[Any], job_id: ObjectId, **fields: Any) -> None:
    jobs.update_one({"_id": job_id}, {"$set": fields})


@pytest.fixture
def now(jobs: Collection[Any]) -> datetime:
    return server_time(jobs)


# A free key.


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_with_a_free_key_the_job_is_put_as_any_other(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    given = {"priority": 5, "max_attempts": 7, "keep": 9}
    plain = document(jobs, await queue.put({"foobar": 1}, key="a", key_until="start", **given))

    job_id = await queue.put(
        {"foobar": 1}, key="k", key_until="start", on_conflict=on_conflict, **given
    )

    stored = document(jobs, job_id)
    own = {"_id", "created_at", "run_at", "seq", "key", "held_key"}
    assert {name: value for name, value in stored.items() if name not in own} == {
        name: value for name, value in plain.items() if name not in own
    }
    assert (stored["key"], stored["held_key"]) == ("k", "k")
    assert stored["created_at"] == stored["run_at"]
    assert stored["seq"] > plain["seq"]


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_with_a_free_key_a_delay_holds(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    stored = document(jobs, await queue.put({}, key="k", on_conflict=on_conflict, delay=60))

    assert stored["state"] == "scheduled"
    assert stored["run_at"] - stored["created_at"] == timedelta(seconds=60)


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_any_payload_is_stored_as_it_is(queue: Any, on_conflict: str) -> None:
    payload = {"$a": "$$ROOT", "a.b": 1, "": 1, "a": [{"$b": {}}]}
    await queue.put({"n": 0}, key="k", on_conflict="replace")

    if on_conflict != "replace":
        await (await queue.next()).complete()
    await queue.put(payload, key="k", on_conflict=on_conflict)

    assert (await queue.next()).data == payload


async def test_any_text_is_a_key(queue: Any) -> None:
    keys = ["$k", "$$ROOT", "a.b", "k\0l", "ä" * 128]

    first = [await queue.put({}, key=key, on_conflict="skip") for key in keys]

    assert [await queue.put({}, key=key, on_conflict="skip") for key in keys] == first
    assert [job.key for job in await queue.claim(9)] == keys


async def test_keys_that_differ_in_a_byte_differ(queue: Any) -> None:
    keys = ["k", "K", "k ", "ä", "a\u0308", "a"]

    await queue.put_many([{}] * 6, keys=keys)

    assert await queue.size() == 6


@pytest.mark.parametrize(
    ("on_conflict", "until"),
    [
        *((on_conflict, None) for on_conflict in ALL),
        *product(["raise", "replace"], ["start", "end"]),
    ],
)
async def test_what_comes_too_late_for_one_that_has_begun_lets_go_of_the_key_at_the_start(
    queue: Any, jobs: Collection[Any], on_conflict: str, until: str | None
) -> None:
    job_id = await queue.put({}, key="k", on_conflict=on_conflict, key_until=until)

    expected = until or ("end" if on_conflict in ("raise", "skip") else "start")
    assert document(jobs, job_id).get("key_until", "end") == expected


# Skip.


@pytest.mark.parametrize("state", [*UNBEGUN, *BEGUN])
async def test_skip_returns_the_id_of_the_job_that_has_the_key_and_leaves_it_as_it_is(
    queue: Any, jobs: Collection[Any], state: str, now: datetime
) -> None:
    job_id = await queue.put({"n": 1}, key="k")
    change(jobs, job_id, state=state, unique_until=now + HELD)
    before = document(jobs, job_id)

    found = await queue.put({"n": 2}, key="k", on_conflict="skip", priority=9, keep=5)

    assert found == job_id
    assert document(jobs, job_id) == before
    assert await queue.size() == 1


# Replace.


async def test_replace_gives_what_waits_the_new_payload_and_settings(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({"n": 1}, key="k", priority=1, keep=60, expires=60, max_attempts=9)

    found = await queue.put({"n": 2}, key="k", on_conflict="replace", priority=2, max_attempts=4)

    stored = document(jobs, job_id)
    assert found == job_id
    assert (stored["payload"], stored["priority"], stored["max_attempts"]) == ({"n": 2}, 2, 4)
    assert not {"keep", "expires_at"} & stored.keys()


async def test_replace_clears_what_earlier_attempts_left_and_nothing_else(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({"n": 1}, key="k")
    old = {"attempts": 2, "errors": [{}], "last_error": "no", "progress": 3, "note": "so"}
    stays = {"after": [1], "awaited": True}
    change(jobs, job_id, **old, steps={"a": 1}, **stays)
    before = document(jobs, job_id)

    await queue.put({"n": 1}, key="k", on_conflict="replace")

    stored = document(jobs, job_id)
    assert stored["attempts"] == 0
    assert not {"errors", "last_error", "progress", "note", "steps"} & stored.keys()
    kept = ("after", "awaited", "created_at", "seq", "key", "held_key", "queue", "v")
    assert {name: stored[name] for name in kept} == {name: before[name] for name in kept}


async def test_replace_starts_the_delay_again(queue: Any, jobs: Collection[Any]) -> None:
    job_id = await queue.put({}, key="k", delay=60)
    change(jobs, job_id, run_at=datetime(2000, 1, 1, tzinfo=UTC))

    await queue.put({}, key="k", on_conflict="replace", delay=60)

    assert document(jobs, job_id)["run_at"] > server_time(jobs) + timedelta(seconds=30)
    assert await queue.next() is None


async def test_replace_puts_off_a_job_that_is_ready(queue: Any) -> None:
    await queue.put({}, key="k")

    await queue.put({}, key="k", on_conflict="replace", delay=60)

    assert await queue.next() is None
    assert (await queue.stats())["scheduled"] == 1


async def test_replace_without_a_delay_makes_the_job_ready_behind_those_that_are(
    queue: Any,
) -> None:
    await queue.put({"n": 1}, key="k", delay=60)
    await queue.put({"n": 2})

    await queue.put({"n": 3}, key="k", on_conflict="replace")

    assert [job.data["n"] for job in await queue.claim(3)] == [2, 3]


async def test_a_ready_job_keeps_its_place_however_often_it_is_replaced(queue: Any) -> None:
    await queue.put({"n": 1}, key="k")
    await queue.put({"n": 2})

    await queue.put({"n": 3}, key="k", on_conflict="replace")

    assert [job.data["n"] for job in await queue.claim(3)] == [3, 2]


async def test_a_job_that_is_held_back_stays_so_when_it_is_replaced(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({"n": 1}, key="k")
    change(jobs, job_id, state="waiting")

    await queue.put({"n": 2}, key="k", on_conflict="replace")

    stored = document(jobs, job_id)
    assert (stored["state"], stored["payload"]) == ("waiting", {"n": 2})


async def test_however_often_it_is_replaced_a_job_is_due_once_its_longest_delay_is_over(
    queue: Any, jobs: Collection[Any]
) -> None:
    given = {"key": "k", "on_conflict": "replace", "delay": 60, "max_delay": 100}
    job_id = await queue.put({"n": 1}, **given)
    long_ago = server_time(jobs) - timedelta(seconds=99)
    change(jobs, job_id, created_at=long_ago)

    await queue.put({"n": 2}, **given)
    soon = document(jobs, job_id)["run_at"]
    change(jobs, job_id, created_at=long_ago - timedelta(seconds=2))
    await queue.put({"n": 3}, **given)

    assert soon == long_ago + timedelta(seconds=100)
    assert (await queue.next()).data == {"n": 3}


# Earlier.


@pytest.mark.parametrize("state", ["scheduled", "waiting"])
async def test_earlier_keeps_the_earlier_time_and_the_higher_priority_and_nothing_else(
    queue: Any, jobs: Collection[Any], state: str
) -> None:
    job_id = await queue.put({"n": 1}, key="k", delay=600, priority=1)
    change(jobs, job_id, state=state)
    before = document(jobs, job_id)
    at = before["run_at"] - timedelta(seconds=60)

    for run_at, priority in ((at, 0), (before["run_at"], 5), (at + HELD, -1)):
        put = queue.put({"n": 2}, key="k", on_conflict="earlier", run_at=run_at, priority=priority)
        assert await put == job_id

    assert document(jobs, job_id) == {**before, "run_at": at, "priority": 5}


async def test_earlier_makes_a_job_ready_whose_time_has_come_by_it(queue: Any) -> None:
    await queue.put({"n": 1}, key="k", delay=60)
    await queue.put({"n": 2})

    await queue.put({"n": 3}, key="k", on_conflict="earlier")

    assert [job.data["n"] for job in await queue.claim(3)] == [2, 1]


@pytest.mark.parametrize("state", ["ready", "waiting"])
async def test_a_job_brought_forward_to_a_moment_that_is_over_was_not_due_then(
    queue: Any, jobs: Collection[Any], state: str, now: datetime
) -> None:
    job_id = await queue.put({}, key="k")
    change(jobs, job_id, state=state)
    before = document(jobs, job_id)

    await queue.put({}, key="k", on_conflict="earlier", run_at=now - timedelta(days=365))

    assert document(jobs, job_id) == before


# What has begun.


@pytest.mark.parametrize("state", BEGUN)
@pytest.mark.parametrize("on_conflict", ["raise", "replace", "earlier"])
async def test_what_has_begun_and_holds_the_key_is_not_changed(
    queue: Any, jobs: Collection[Any], on_conflict: str, state: str, now: datetime
) -> None:
    job_id = await queue.put({"n": 1}, key="k")
    change(jobs, job_id, state=state, unique_until=now + HELD)
    before = document(jobs, job_id)

    with pytest.raises(DuplicateJob) as refused:
        await queue.put({"n": 2}, key="k", on_conflict=on_conflict)

    assert (refused.value.key, refused.value.job_id) == ("k", job_id)
    assert document(jobs, job_id) == before
    assert await queue.size() == 1


@pytest.mark.parametrize("on_conflict", ALL)
async def test_a_job_that_has_let_go_of_its_key_is_none_that_has_it(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    job_id = await queue.put({"n": 1}, key="k")
    jobs.update_one({"_id": job_id}, {"$set": {"state": "running"}, "$unset": {"held_key": ""}})

    other = await queue.put({"n": 2}, key="k", on_conflict=on_conflict)

    assert other != job_id
    assert document(jobs, other)["held_key"] == "k"


# What has ended, and holds its key still: an earlier version ended it, or it was to.

Many = Callable[..., Any]
WAYS = ["put", "put_many", "in a transaction", "many in a transaction"]
every_way = pytest.mark.parametrize(
    ("put", "on_conflict"),
    [*product(WAYS, ["raise", "skip"]), ("put", "replace"), ("put_many", "earlier")],
    indirect=["put"],
)
"""The ways to put a job: each with an insert, and with an upsert."""


@pytest.fixture
def put(request: pytest.FixtureRequest, shell: Shell, queue: Any) -> Many:
    """One of the ways to put a job; returns its id."""

    async def put_one(payload: dict[str, Any], *, key: str, **settings: Any) -> Any:
        if "many" in request.param:
            (job_id,) = await queue.put_many([payload], keys=[key], **settings)
            return job_id
        return await queue.put(payload, key=key, **settings)

    async def put_in_transaction(payload: dict[str, Any], **settings: Any) -> Any:
        async with shell.transaction() as session:
            return await put_one(payload, session=session, **settings)

    return put_in_transaction if "transaction" in request.param else put_one


@pytest.mark.few(5)
@every_way
async def test_what_has_ended_lets_go_of_a_key_that_it_is_to_hold_no_longer(
    queue: Any, jobs: Collection[Any], put: Many, on_conflict: str, now: datetime
) -> None:
    dead = await queue.put({"n": 1}, key="k")
    change(jobs, dead, state="dead", unique_until=now - timedelta(seconds=1))
    past = now - timedelta(milliseconds=1)
    bare = {"queue": "default", "key": "l", "held_key": "l", "unique_until": past}
    bare_id = jobs.insert_one(bare).inserted_id

    ids = [await put({"n": 2}, key=key, on_conflict=on_conflict) for key in "kl"]

    assert not {dead, bare_id} & set(ids)
    held = {job["held_key"]: job["_id"] for job in jobs.find({"held_key": {"$exists": True}})}
    assert held == dict(zip("kl", ids, strict=True))


@every_way
async def test_a_key_that_is_held_for_a_time_is_taken_until_then(
    queue: Any, jobs: Collection[Any], put: Many, on_conflict: str
) -> None:
    bare = {
        "queue": "default",
        "key": "k",
        "held_key": "k",
        "unique_until": server_time(jobs) + HELD,
    }
    await queue.put({}, key="other")  # the index is there
    holder = jobs.insert_one(bare).inserted_id

    try:
        found = await put({}, key="k", on_conflict=on_conflict)
    except DuplicateJob as error:
        found = error.job_id

    assert found == holder
    assert await queue.size() == 1


@every_way
async def test_unique_for_counts_from_the_put(
    queue: Any, jobs: Collection[Any], put: Many, on_conflict: str
) -> None:
    await queue.put({}, key="other")

    job_id = await put({}, key="k", on_conflict=on_conflict, unique_for=timedelta(seconds=30))

    stored = document(jobs, job_id)
    assert stored["unique_until"] - stored["created_at"] == timedelta(seconds=30)


async def test_a_key_that_was_taken_for_a_moment_is_free_after_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, key="k", unique_for=0.3)
    change(jobs, job_id, state="dead")
    until = document(jobs, job_id)["unique_until"]

    async def is_free() -> Any:
        try:
            await queue.put({}, key="k")
        except DuplicateJob:
            return False
        return True

    await wait_until_async(is_free, "the key is free")

    (second,) = jobs.find({"held_key": "k"})
    # (The time of an insert is what the client takes the server's to be.)
    assert timedelta(seconds=-0.2) <= second["created_at"] - until < timedelta(seconds=2)


# Tasks.


@pytest.mark.few(3)
@pytest.mark.parametrize("on_conflict", ALL)
async def test_a_key_belongs_to_one_task(
    queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    of_a_task = await queue.put({}, key="k")
    change(jobs, of_a_task, task="resize")

    job_id = await queue.put({}, key="k", on_conflict=on_conflict)

    assert job_id != of_a_task
    assert "task" not in document(jobs, job_id)


# By its id.


@pytest.mark.parametrize("on_conflict", ALL)
async def test_a_put_that_is_repeated_by_its_id_is_there_once(queue: Any, on_conflict: str) -> None:
    job_id = ObjectId()
    given = {"key": "k", "on_conflict": on_conflict, "job_id": job_id}

    assert [await queue.put({}, **given) for _ in range(2)] == [job_id, job_id]

    assert await queue.size() == 1


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_the_id_of_another_queue_is_refused(
    shell: Shell, jobs: Collection[Any], on_conflict: str
) -> None:
    theirs = await shell.queue(name="theirs").put({})

    with pytest.raises(PyMongoError, match="duplicate key"):
        await shell.queue().put({}, key="k", on_conflict=on_conflict, job_id=theirs)


# Transactions.


@pytest.mark.parametrize("on_conflict", UPSERTS)
async def test_an_order_and_a_put_whose_key_is_taken_commit_together(
    shell: Shell, queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    job_id = await queue.put({"n": 1}, key="k")

    async with shell.transaction() as session:
        await queue.put({"order": 5}, session=session)
        assert await queue.put({}, key="k", on_conflict=on_conflict, session=session) == job_id

    assert jobs.count_documents({"payload.order": 5}) == 1
    assert await queue.size() == 2


async def test_a_refused_put_in_a_transaction_that_ended_nothing_does_not_say_so(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({}, key="k")
    change(jobs, job_id, state="running")

    async with shell.transaction() as session:
        await queue.put({"order": 5}, session=session)
        with pytest.raises(DuplicateJob) as refused:
            await queue.put({}, key="k", on_conflict="replace", session=session)

    assert "transaction" not in str(refused.value)
    assert jobs.count_documents({"payload.order": 5}) == 1


async def test_a_duplicate_that_ends_a_transaction_says_so(shell: Shell, queue: Any) -> None:
    await queue.put({}, key="k")

    async with shell.transaction() as session:
        with pytest.raises(DuplicateJob, match="ended the transaction"):
            await queue.put({}, key="k", session=session)
        await session.abort_transaction() if shell.is_async else session.abort_transaction()


class RolledBack(Exception):
    pass


@pytest.mark.parametrize("on_conflict", ALL)
async def test_of_two_puts_of_a_key_the_first_of_which_is_undone_one_is_there(
    shell: Shell, queue: Any, jobs: Collection[Any], on_conflict: str
) -> None:
    await queue.put({}, key="other")
    put: list[Any] = []

    async def put_second() -> None:
        put.append(await queue.put({"n": 2}, key="k", on_conflict=on_conflict))

    async def put_first(tasks: TaskGroup) -> None:
        async with shell.transaction() as session:
            await queue.put({"n": 1}, key="k", on_conflict=on_conflict, session=session)
            tasks.start_soon(put_second)
            await wait_until_async(lambda: waits(jobs), "the second waits for the first")
            raise RolledBack

    async with create_task_group() as tasks:
        with pytest.raises(RolledBack):
            await put_first(tasks)

    assert [job["_id"] for job in jobs.find({"key": "k"})] == put


def waits(jobs: Collection[Any]) -> int:
    """Writes that wait for another's transaction, which they try for again and again."""
    stage = {"ns": jobs.full_name, "writeConflicts": {"$gt": 0}}
    admin = jobs.database.client.admin
    return len(list(admin.aggregate([{"$currentOp": {}}, {"$match": stage}])))


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("on_conflict", ["raise", "replace"])
async def test_a_put_waits_for_an_open_transaction_as_long_as_its_caller_says_and_tells_why(
    shell: Shell, queue: Any, on_conflict: str, many: bool
) -> None:
    await queue.put({}, key="other")

    async def put(on_conflict: str) -> None:
        if many:
            await queue.put_many([{}], keys=["k"], on_conflict=on_conflict)
        else:
            await queue.put({}, key="k", on_conflict=on_conflict)

    async with shell.transaction() as session:
        await queue.put({}, key="k", session=session)
        with pymongo.timeout(0.25), pytest.raises(PyMongoError) as late:
            await put(on_conflict)

    assert late.value.timeout
    assert "key 'k'" in str(late.value)
    assert "transaction that is open" in str(late.value)


# What does not go together.


async def test_what_does_not_go_together_is_not_put(queue: Any, jobs: Collection[Any]) -> None:
    with pytest.raises(ConfigurationError, match="on_conflict is 'raise', 'skip'"):
        await queue.put({}, key="k", on_conflict="ignore")

    assert jobs.count_documents({}) == 0
