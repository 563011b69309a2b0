"""A user's own unique index, whatever its shape: what it refuses waits, and keeps no other from
anything; it is not buried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from pymongo.errors import DuplicateKeyError
from pymongo.synchronous.collection import Collection

from streamqueue import DuplicateJob, NewJob
from streamqueue.store.flows import claims
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell
from tests.waiting import wait_until_async

Rule = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def rule(jobs: Collection[Any]) -> Rule:
    """At most one job of a customer may be in that state."""

    @contextmanager
    def rule(state: str, *fields: str) -> Iterator[None]:
        name = jobs.create_index(
            [(field, 1) for field in fields or ("payload.customer",)],
            name="of the user",
            unique=True,
            partialFilterExpression={"state": state},
        )
        try:
            yield
        finally:
            jobs.drop_index(name)

    return rule


def states(jobs: Collection[Any]) -> list[str]:
    return sorted(job["state"] for job in jobs.find())


async def test_of_many_claimed_at_once_only_the_forbidden_ones_wait(
    queue: Any, jobs: Collection[Any], rule: Rule
) -> None:
    with rule("running"):
        await queue.put_many([{"customer": n % 9} for n in range(18)])

        claimed = await queue.claim(18)

        assert sorted(job.data["customer"] for job in claimed) == list(range(9))
        assert states(jobs) == ["ready"] * 9 + ["running"] * 9
        assert jobs.count_documents({"state": "ready", "attempts": 0}) == 9


async def test_a_due_job_that_may_not_be_ready_keeps_no_other_from_it(
    shell: Shell, jobs: Collection[Any], rule: Rule
) -> None:
    queue, other = shell.queue(), shell.queue(name="other")
    with rule("ready"):
        await other.put({"customer": "ada"})
        forbidden = await queue.put({"customer": "ada"}, delay=3600)
        await queue.put({"customer": "ben"}, delay=3600)
        due = {"$set": {"run_at": server_time(jobs)}}
        jobs.update_many({"state": "scheduled"}, due)

        assert [job.data["customer"] for job in await queue.claim(2)] == ["ben"]
        assert document(jobs, forbidden)["state"] == "scheduled"

        await other.next()
        assert (await queue.next(wait=10)).id == forbidden


async def test_a_lost_job_that_may_not_be_ready_keeps_no_other_from_it(
    queue: Any, jobs: Collection[Any], rule: Rule
) -> None:
    ids = await queue.put_many([{"customer": "ada"}, {"customer": "ben"}])
    await queue.claim(2)
    let_lease_run_out(jobs)
    with rule("ready"):
        waiting = await queue.put({"customer": "ada"}, delay=3600)
        jobs.update_one({"_id": waiting}, {"$set": {"state": "ready"}})

        assert await queue.repair() == 1

        assert document(jobs, ids[0])["state"] == "running"
        assert document(jobs, ids[1])["state"] == "ready"


async def test_a_lost_job_that_may_not_be_dead_keeps_no_other_from_it(
    shell: Shell, jobs: Collection[Any], rule: Rule
) -> None:
    queue = shell.queue(max_attempts=1)
    with rule("dead"):
        jobs.insert_one({"state": "dead", "payload": {"customer": "ada"}})
        ids = await queue.put_many([{"customer": "ada"}, {"customer": "ben"}])
        await queue.claim(2)
        let_lease_run_out(jobs)

        assert await queue.repair() == 1

        assert document(jobs, ids[0])["state"] == "running"
        assert document(jobs, ids[1])["state"] == "dead"


async def test_a_foreign_job_whose_place_another_has_keeps_none_from_theirs(
    queue: Any, jobs: Collection[Any], rule: Rule
) -> None:
    with rule("ready", "priority", "payload.customer"):
        await queue.put({"customer": "ada"}, delay=3600)
        jobs.update_one({}, {"$set": {"state": "ready"}})
        foreign = {"queue": "default", "state": "ready"}
        jobs.insert_one({**foreign, "payload": {"customer": "ada"}})
        jobs.insert_one({**foreign, "payload": {"customer": "ben"}})

        assert {job.data["customer"] for job in await queue.claim(3)} == {"ada", "ben"}
        assert len(states(jobs)) == 3
        assert "dead" not in states(jobs)


async def test_a_release_that_is_refused_keeps_no_other_from_being_given_back(
    shell: Shell, jobs: Collection[Any], rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a claim that came too late are given back together."""
    queue = shell.queue(timeout=0.001)
    await queue.put_many([{"customer": "ada"}, {"customer": "ben"}, {"customer": "eve"}])
    with rule("ready", "attempts", "payload.customer"):
        taken: list[Any] = []

        def occupy() -> None:
            """Somebody takes the place in which one of them was."""
            if taken:
                return
            job = {
                "queue": "other",
                "state": "ready",
                "attempts": 0,
                "payload": {"customer": "ada"},
            }
            taken.append(jobs.insert_one(job).inserted_id)

        claim = claims.claim_once

        def late(*arguments: Any) -> Any:
            found = yield from claim(*arguments)
            occupy()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(claims, "claim_once", late)
            assert await queue.claim(3) == []

        given_back = jobs.count_documents({"queue": "default", "state": "ready"})
        assert given_back == 2
        jobs.delete_many({"_id": {"$in": taken}})


async def test_requeue_of_all_passes_over_what_is_refused(
    queue: Any, jobs: Collection[Any], rule: Rule, caplog: pytest.LogCaptureFixture
) -> None:
    with rule("ready"):
        await queue.put({"customer": "ada"})
        for customer in ("ada", "ben"):
            dead = {"queue": "default", "state": "dead", "payload": {"customer": customer}}
            jobs.insert_one(dead)

        assert await queue.requeue() == 1

    assert states(jobs) == ["dead", "ready", "ready"]
    assert "stays dead: the server refuses it: DuplicateKey (11000)" in caplog.text


async def test_a_damaged_job_that_may_not_be_buried_keeps_no_other_from_being_claimed(
    queue: Any, jobs: Collection[Any], rule: Rule
) -> None:
    with rule("dead", "queue"):
        foreign = {"queue": "default", "priority": 0, "run_at": server_time(jobs)}
        jobs.insert_one({**foreign, "state": "dead", "payload": {}})
        jobs.insert_one({**foreign, "state": "ready", "payload": "damaged", "priority": 1})
        await queue.put({"n": 1})

        assert [job.data for job in await queue.claim(2)] == [{"n": 1}]


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_clash_in_a_users_index_of_the_same_fields_is_no_duplicate_job(
    queue: Any, jobs: Collection[Any], key: str | None
) -> None:
    """One that takes in the dead, and jobs without a key."""
    dead = {"queue": "default", "state": "dead", "payload": {}}
    jobs.insert_one(dead if key is None else {**dead, "key": key})
    name = jobs.create_index([("queue", 1), ("key", 1)], unique=True, name="of the user")
    try:
        with pytest.raises(DuplicateKeyError) as caught:
            await queue.put({}, key=key)
        assert not isinstance(caught.value, DuplicateJob)
        with pytest.raises(Exception, match="dup key") as many:
            await queue.put_many([NewJob({}, key=key)])
        assert not isinstance(many.value, DuplicateJob)
    finally:
        jobs.drop_index(name)


async def test_an_attempt_whose_release_is_refused_is_returned_when_it_may_be(
    shell: Shell, jobs: Collection[Any], rule: Rule
) -> None:
    queue = shell.queue(timeout=0.5)
    with rule("ready"):
        await queue.put({"customer": "ada"})
        held = await queue.next()
        await queue.put({"customer": "ada"})

        with pytest.raises(DuplicateKeyError):
            await held.release()

        assert states(jobs) == ["ready", "running"]
        await (await queue.next()).complete()
        await wait_until_async(queue.repair, "it is returned when its lease is over")
        assert states(jobs) == ["ready"]
