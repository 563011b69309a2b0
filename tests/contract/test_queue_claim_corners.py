"""What a claim does when it is late, too large, unanswered, or stands behind somebody's lock."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect
from pymongo.synchronous.collection import Collection

from streamqueue import LeaseLost
from streamqueue.protocol import operations
from streamqueue.store.flows import timers
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell
from tests.worker.faults import failing

SOON = 5.0
"""Seconds, for what takes a fraction of one when it is not held up."""


async def test_no_claim_has_the_token_of_another(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    """One of these cannot be claimed, so the others are claimed again without it."""
    ids = await queue.put_many([{"n": n} for n in range(9)])
    jobs.update_one({"_id": ids[4]}, {"$set": {"priority": 1}})
    client.admin.command("profile", 0)
    jobs.database.system.profile.drop()
    jobs.database.command("profile", 2)
    rule = {"$or": [{"state": {"$ne": "running"}}, {"payload.n": {"$ne": 4}}]}
    jobs.database.command("collMod", jobs.name, validator=rule)

    claimed = await queue.claim(9)

    assert len(claimed) == 8
    sent = _claims(jobs)
    assert len(sent) > 1
    assert len(set(sent)) == len(sent)


def _claims(jobs: Collection[Any]) -> list[bytes]:
    profile = jobs.database.system.profile
    fields = (
        (entry["command"].get("u") or entry["command"].get("update"))[0]["$set"]
        for entry in profile.find({"ns": jobs.full_name, "op": {"$in": ["update", "command"]}})
        if isinstance(entry["command"].get("u") or entry["command"].get("update"), list)
    )
    return [bytes(field["lease"]) for field in fields if field.get("state") == "running"]


@pytest.mark.few(1)
async def test_what_could_not_be_given_back_is_given_back_by_the_next_call(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    queue = shell.queue(max_attempts=1)
    assert await queue.next() is None  # what is due and expired was looked for
    await queue.put_many([{}, {}])

    # The claim arrives; the read of what it took, and all that follows, do not.
    with (
        failing(client, "find", "update", app=None, skip=2, closeConnection=True),
        pytest.raises(AutoReconnect),
    ):
        await queue.claim(2)
    assert {job["state"] for job in jobs.find()} == {"running"}

    claimed = await queue.claim(2, wait=10)

    assert {job.attempts for job in claimed} == {1}


async def test_a_claim_that_takes_longer_than_its_lease_hands_out_nothing(
    shell: Shell, jobs: Collection[Any]
) -> None:
    queue = shell.queue(timeout=0.001)
    job_id = await queue.put({})

    with anyio.fail_after(SOON):
        assert await queue.next() is None

    assert document(jobs, job_id)["state"] == "ready"
    assert document(jobs, job_id)["attempts"] == 0


async def test_a_job_locked_by_a_transaction_keeps_no_other_from_being_claimed(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    ids = await queue.put_many([{}, {}, {}])

    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": ids[0]}, {"$set": {"touched": True}}, session=session)
        began = anyio.current_time()
        claimed = await queue.claim(3)
        assert anyio.current_time() - began < SOON
        session.abort_transaction()

    assert {job.id for job in claimed} == set(ids[1:])


async def test_a_job_that_was_locked_is_claimed_when_it_is_not_any_more(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    job_id = await queue.put({})
    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": job_id}, {"$set": {"touched": True}}, session=session)
        assert await queue.next() is None

    job = await queue.next(wait=10)

    assert job.id == job_id
    assert job.attempts == 1


async def test_a_job_that_a_users_own_index_forbids_to_claim_now_keeps_no_other_from_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    rule: dict[str, Any] = {"unique": True, "partialFilterExpression": {"state": "running"}}
    index = jobs.create_index("payload.customer", **rule)
    try:
        for customer in ("ada", "ada", "ben"):
            await queue.put({"customer": customer})
        held = await queue.next()

        assert (await queue.next()).data == {"customer": "ben"}
        assert await queue.next() is None

        await held.complete()
        assert (await queue.next(wait=10)).data == {"customer": "ada"}
    finally:
        jobs.drop_index(index)


async def test_an_expired_job_locked_by_a_transaction_keeps_no_other_from_being_returned(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    queue = shell.queue()
    ids = await queue.put_many([{} for _ in range(6)])
    held = await queue.claim(6)
    let_lease_run_out(jobs, *ids)

    async with shell.transaction() as session:
        await held[0].complete(session=session)
        began = anyio.current_time()
        claimed = await shell.queue().claim(6)
        assert anyio.current_time() - began < SOON

    assert {job.id for job in claimed} == set(ids[1:])


async def test_a_due_job_locked_by_a_transaction_keeps_no_other_from_being_promoted(
    queue: Any, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    ids = await queue.put_many([{}, {}, {}], delay=3600)
    jobs.update_many({}, {"$set": {"run_at": server_time(jobs)}})

    with client.start_session() as session, session.start_transaction():
        jobs.update_one({"_id": ids[0]}, {"$set": {"touched": True}}, session=session)
        began = anyio.current_time()
        claimed = await queue.claim(3)
        assert anyio.current_time() - began < SOON
        session.abort_transaction()

    assert {job.id for job in claimed} == set(ids[1:])


async def test_no_more_is_claimed_than_fits_into_a_reply(queue: Any, jobs: Collection[Any]) -> None:
    for n in range(18):
        await queue.put({"n": n, "x": "." * 1_000_000})

    claimed = await queue.claim(18)

    assert [job.data["n"] for job in claimed] == list(range(len(claimed)))
    assert 1 < len(claimed) < 18
    assert jobs.count_documents({"state": "ready", "attempts": 0}) == 18 - len(claimed)


async def test_due_jobs_do_not_stand_in_front_of_a_ready_one(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "BATCH", 10)
    await queue.put_many([{} for _ in range(100)], delay=3600)
    jobs.update_many({}, {"$set": {"run_at": server_time(jobs)}})
    await queue.put({"urgent": True}, priority=10)

    job = await queue.next()

    assert job.data == {"urgent": True}
    assert jobs.count_documents({"state": "scheduled"}) >= 90


@pytest.mark.few(1)
async def test_promotion_after_a_claim_does_not_use_up_its_lease(
    shell: Shell, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    queue = shell.queue(timeout=2)
    await shell.queue().put({})  # the indexes are there

    # The reads that follow the claim; those before it are for a place in the order, and the head.
    with failing(client, "find", app=None, skip=2, blockConnection=True, blockTimeMS=700):
        job = await queue.next()

    left = document(jobs, job.id)["locked_until"] - server_time(jobs)
    assert left > timedelta(seconds=1)
    assert job.attempts == 1


async def test_a_job_inserted_without_a_time_does_not_jump_the_line(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({"n": 1})
    jobs.insert_one({"queue": "default", "state": "ready", "priority": 0, "payload": {"n": 2}})

    assert [job.data["n"] for job in (await queue.next(), await queue.next())] == [1, 2]


async def test_ever_new_jobs_without_a_place_keep_nobody_from_claiming(
    queue: Any, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"queue": "default", "state": "ready", "priority": 0, "payload": {"n": 1}}
    jobs.insert_one(dict(job))
    adopt, adopted = operations.adopt, []

    def amid_producers(ids: Any) -> Any:
        adopted.append(ids)
        jobs.insert_one(dict(job))  # as fast as they are given one
        return adopt(ids)

    monkeypatch.setattr(operations, "adopt", amid_producers)

    assert (await queue.next()).data == {"n": 1}
    assert len(adopted) < 20


@pytest.mark.parametrize("priority", ["urgent", True, [9], {"$numberLong": "9"}])
async def test_a_job_inserted_with_an_odd_priority_does_not_jump_the_line(
    queue: Any, jobs: Collection[Any], priority: object
) -> None:
    await queue.put({"n": 1}, priority=1)
    jobs.insert_one(
        {"queue": "default", "state": "ready", "priority": priority, "payload": {"n": 2}}
    )

    assert [job.data["n"] for job in (await queue.next(), await queue.next())] == [1, 2]


async def test_requeue_is_for_what_is_dead_when_it_is_called(
    queue: Any, jobs: Collection[Any]
) -> None:
    """Or it would go on for as long as what it requeues dies again."""
    later = server_time(jobs) + timedelta(hours=1)
    for n, at in enumerate([server_time(jobs), later]):
        dead = {"state": "dead", "payload": {"n": n}, "attempts": 3, "finished_at": at}
        jobs.insert_one({"queue": "default", "priority": 0, "run_at": at, **dead})

    assert await queue.requeue() == 1

    assert [job["payload"]["n"] for job in jobs.find({"state": "ready"})] == [0]


async def test_requeue_is_also_for_what_was_made_dead_by_hand(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({})
    jobs.update_one({}, {"$set": {"state": "dead"}})

    assert await queue.requeue() == 1


async def test_who_held_a_job_that_was_made_dead_by_hand_does_not_end_it_after_its_requeue(
    queue: Any, jobs: Collection[Any]
) -> None:
    job_id = await queue.put({})
    held = await queue.next()
    jobs.update_one({"_id": job_id}, {"$set": {"state": "dead"}})
    await queue.requeue(job_id)

    with pytest.raises(LeaseLost):
        await held.complete()

    assert document(jobs, job_id)["state"] == "ready"


async def test_a_lease_is_taken_from_a_document_that_takes_no_word_about_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    """As one near 16 MB, which has no room for it."""
    await queue.put({})
    held = await queue.next()
    let_lease_run_out(jobs, held.id)
    jobs.database.command("collMod", jobs.name, validator={"errors": {"$exists": False}})

    assert await queue.repair() == 1

    assert document(jobs, held.id)["state"] == "ready"
