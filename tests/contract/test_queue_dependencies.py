"""Jobs that come after others: when they run, and what becomes of them when those fail."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from bson import ObjectId
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, Discard, DuplicateJob, JobNotFound, NewJob
from streamqueue.protocol.document import CODEC
from tests.contract.looks import document, let_lease_run_out
from tests.contract.shells import Shell

RULES = ("hold", "cancel", "run")


async def complete_next(queue: Any, result: Any = None) -> Any:
    """Take a job and complete it; return its id."""
    job = await queue.next()
    await job.complete(result)
    return job.id


async def state_of(queue: Any, job_id: Any) -> str | None:
    """The state of a job, None if it is gone."""
    try:
        return str((await queue.get(job_id)).state)
    except JobNotFound:
        return None


async def pair(queue: Any, **settings: Any) -> tuple[Any, Any]:
    """A parent, and a job that comes after it and is kept."""
    parent = await queue.put({"n": 1})
    return parent, await queue.put({"n": 2}, after=[parent], keep=60, **settings)


# run


async def test_a_dependent_runs_once_its_parent_is_done(queue: Any) -> None:
    parent, dependent = await pair(queue)
    assert await complete_next(queue) == parent

    assert (await queue.next()).id == dependent


async def test_a_dependent_is_not_to_be_had_before_its_parent_is_done(queue: Any) -> None:
    await pair(queue)
    job = await queue.next()

    assert await queue.next() is None
    await job.release()


async def test_a_dependent_says_for_whom_it_waits(queue: Any) -> None:
    parent, dependent = await pair(queue)

    info = await queue.get(dependent)

    assert (info.state, info.waits_for) == ("waiting", {"parents": parent})


async def test_a_dependent_of_many_runs_once_all_are_done(queue: Any) -> None:
    parents = list(await queue.put_many([{"n": n} for n in range(5)]))
    dependent = await queue.put({}, after=reversed(parents))
    for _ in parents:
        assert await state_of(queue, dependent) == "waiting"
        await complete_next(queue)

    assert await state_of(queue, dependent) == "ready"


async def test_a_dependent_of_a_parent_that_was_done_before_runs_at_once(queue: Any) -> None:
    parent = await queue.put({}, keep=60)
    await complete_next(queue)

    dependent = await queue.put({}, after=[parent])

    assert await state_of(queue, dependent) == "ready"


async def test_a_job_after_none_runs_at_once(queue: Any) -> None:
    assert await state_of(queue, await queue.put({}, after=[], if_parent_fails="run")) == "ready"


async def test_a_job_can_come_after_one_of_another_queue(shell: Shell) -> None:
    there, here = shell.queue(name="there"), shell.queue(name="here")
    dependent = await here.put({}, after=[await there.put({})])

    await complete_next(there)

    assert await state_of(here, dependent) == "ready"


async def test_a_dependent_takes_its_place_behind_those_put_before_its_parents_ended(
    queue: Any,
) -> None:
    _, dependent = await pair(queue)
    other = await queue.put({})
    await complete_next(queue)

    assert [(await queue.next()).id, (await queue.next()).id] == [other, dependent]


async def test_a_dependent_of_a_parent_that_was_marked_while_it_ran_runs(queue: Any) -> None:
    parent = await queue.put({})
    job = await queue.next()
    dependent = await queue.put({}, after=[parent])

    await job.complete()

    assert await state_of(queue, dependent) == "ready"


async def test_a_dependent_of_a_kept_parent_that_was_marked_while_it_ran_runs(queue: Any) -> None:
    parent = await queue.put({}, keep=60)
    job = await queue.next()
    dependent = await queue.put({}, after=[parent])

    await job.complete()

    assert await state_of(queue, dependent) == "ready"


async def test_the_end_of_a_parent_is_seen_when_its_dependent_starts(queue: Any) -> None:
    parent, _ = await pair(queue)
    await complete_next(queue, {"answer": 42})

    await queue.next()

    info = await queue.get(parent)
    assert (info.state, info.result) == ("done", {"answer": 42})


async def test_a_delay_counts_from_the_end_of_the_parents(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue, delay=100)
    jobs.update_one({"_id": parent}, [{"$set": {"created_at": {"$subtract": ["$$NOW", 10**6]}}}])
    await complete_next(queue)

    stored = document(jobs, dependent)
    ended = document(jobs, parent)["finished_at"]
    assert stored["state"] == "scheduled"
    assert 100 <= (stored["run_at"] - ended).total_seconds() < 110


async def test_a_dependent_that_has_expired_does_not_run(queue: Any, jobs: Collection[Any]) -> None:
    _, dependent = await pair(queue, expires=100)
    jobs.update_one({"_id": dependent}, [{"$set": {"expires_at": "$$NOW"}}])
    await complete_next(queue)

    assert await queue.next() is None
    assert (await queue.get(dependent)).last_error == "expired"


async def test_rescheduling_a_dependent_lets_it_pass_none_of_its_parents(queue: Any) -> None:
    _, dependent = await pair(queue)

    await queue.reschedule(dependent, delay=0)

    assert await state_of(queue, dependent) == "waiting"


async def test_a_dependent_whose_key_is_let_go_of_waits_for_its_parents(queue: Any) -> None:
    await queue.put({}, key="k", key_until="start")
    runs = await queue.next()
    parent = await queue.put({})
    dependent = await queue.put({}, key="k", key_until="start", after=[parent])

    await runs.complete()

    assert await state_of(queue, dependent) == "waiting"


@pytest.mark.parametrize("later", [{}, {"run_at": datetime(2126, 5, 1, tzinfo=UTC)}])
async def test_a_dependent_joins_its_group_when_it_is_let_run_and_due(
    queue: Any, jobs: Collection[Any], later: dict[str, Any]
) -> None:
    _, dependent = await pair(queue, group="ada", **later)
    before = document(jobs, dependent)
    await complete_next(queue)

    after = document(jobs, dependent)
    assert ("seq" in before, "seq" in after) == (False, not later)
    assert after["state"] == ("scheduled" if later else "ready")


async def test_a_requeued_dependent_that_waits_again_is_in_no_order(
    queue: Any, jobs: Collection[Any]
) -> None:
    parents = await queue.put_many([{}, {}])
    dependent = await queue.put({}, after=parents, group="ada", keep=60)
    await queue.cancel(parents[0])

    await queue.requeue(dependent)

    stored = document(jobs, dependent)
    assert (stored["state"], "seq" in stored) == ("waiting", False)


# failures


async def dead(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    for _ in range(3):
        await (await queue.next()).error("oops", delay=0)


async def discarded(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    with pytest.raises(Discard):
        async with await queue.next():
            raise Discard("never")


async def reaped(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    jobs.update_one({"_id": parent}, {"$set": {"max_attempts": 1}})
    await queue.next()
    let_lease_run_out(jobs, parent)
    await queue.repair()


async def cancelled(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    assert await queue.cancel(parent) == "cancelled"


async def cancelled_while_it_ran(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    job = await queue.next()
    assert await queue.cancel(parent) == "asked"
    await job.release()


async def expired(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    # (The put of one that expires has the index made.)
    await queue.put({}, expires=100, delay=100)
    jobs.update_one({"_id": parent}, [{"$set": {"expires_at": "$$NOW"}}])
    job = await queue.next()
    if job is not None:  # what runs all the same
        await job.release()


async def purged(queue: Any, jobs: Collection[Any], parent: Any) -> None:
    await discarded(queue, jobs, parent)
    assert await queue.drop_max_attempts() == 1


DIES = [dead, discarded, reaped]
ENDS_FOR_GOOD = [cancelled, cancelled_while_it_ran, expired, purged]
End = Callable[[Any, Collection[Any], Any], Awaitable[None]]


@pytest.mark.parametrize("end", DIES, ids=lambda end: end.__name__)
async def test_a_dependent_is_held_by_a_dead_parent(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    parent, dependent = await pair(queue)

    await end(queue, jobs, parent)

    info = await queue.get(dependent)
    assert (info.state, info.waits_for) == ("waiting", {"parents": parent, "failed": True})


@pytest.mark.parametrize("end", ENDS_FOR_GOOD, ids=lambda end: end.__name__)
async def test_what_would_hold_for_ever_is_cancelled(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    parent, dependent = await pair(queue)

    await end(queue, jobs, parent)

    info = await queue.get(dependent)
    assert (info.state, info.last_error) == ("cancelled", "a parent has failed, or is gone")


@pytest.mark.parametrize("end", DIES + ENDS_FOR_GOOD, ids=lambda end: end.__name__)
async def test_a_dependent_is_cancelled_with_its_parent_if_it_says_so(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    parent, dependent = await pair(queue, if_parent_fails="cancel")

    await end(queue, jobs, parent)

    assert await state_of(queue, dependent) == "cancelled"


@pytest.mark.parametrize("end", DIES + ENDS_FOR_GOOD, ids=lambda end: end.__name__)
async def test_a_dependent_runs_whatever_becomes_of_its_parent_if_it_says_so(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    parent, dependent = await pair(queue, if_parent_fails="run")

    await end(queue, jobs, parent)

    assert await state_of(queue, dependent) == "ready"


async def test_a_parent_that_was_cleared_counts_as_gone(shell: Shell) -> None:
    there, here = shell.queue(name="there"), shell.queue(name="here")
    dependent = await here.put({}, after=[await there.put({})], keep=60)

    assert await there.clear() == 1

    assert await state_of(here, dependent) == "cancelled"


async def test_one_failed_parent_of_many_cancels_at_once(queue: Any) -> None:
    parents = await queue.put_many([{"n": n} for n in range(3)])
    dependent = await queue.put({}, after=parents, keep=60)

    await queue.cancel(parents[0])

    assert await state_of(queue, dependent) == "cancelled"


async def test_a_dependent_that_nobody_keeps_is_gone_when_it_is_cancelled(queue: Any) -> None:
    parent = await queue.put({})
    dependent = await queue.put({}, after=[parent])

    await queue.cancel(parent)

    assert await state_of(queue, dependent) is None


async def test_what_comes_after_a_cancelled_dependent_is_cancelled_too(queue: Any) -> None:
    parent, dependent = await pair(queue)
    grandchild = await queue.put({}, after=[dependent], keep=60)

    await queue.cancel(parent)

    assert await state_of(queue, grandchild) == "cancelled"


async def test_a_held_dependent_runs_after_its_requeued_parent(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue)
    await discarded(queue, jobs, parent)

    await queue.requeue(parent)
    held = await queue.get(dependent)
    assert await complete_next(queue) == parent

    assert (held.state, held.waits_for) == ("waiting", {"parents": parent})
    assert await state_of(queue, dependent) == "ready"


async def test_many_requeued_parents_let_their_dependents_go_on(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue)
    await discarded(queue, jobs, parent)

    assert await queue.requeue() == 1

    assert (await queue.get(dependent)).waits_for == {"parents": parent}


async def test_a_cancelled_dependent_stays_so_when_its_parent_is_requeued(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue, if_parent_fails="cancel")
    await discarded(queue, jobs, parent)

    await queue.requeue(parent)
    await complete_next(queue)

    assert await state_of(queue, dependent) == "cancelled"


async def test_a_requeued_dependent_waits_for_the_parents_that_live(queue: Any) -> None:
    first, second = await queue.put_many([{"n": 1}, {"n": 2}])
    dependent = await queue.put({}, after=[first, second], keep=60)
    await queue.cancel(first)
    assert await state_of(queue, dependent) == "cancelled"

    await queue.requeue(dependent)
    waited = await state_of(queue, dependent)
    await complete_next(queue)

    assert (waited, await state_of(queue, dependent)) == ("waiting", "ready")


# cancelled together


async def test_the_whole_tree_is_cancelled_if_that_is_asked_for(queue: Any) -> None:
    root = await queue.put({})
    children = [await queue.put({}, after=[root], if_parent_fails=rule, keep=60) for rule in RULES]
    below = await queue.put({}, after=children, if_parent_fails="run", keep=60)

    assert await queue.cancel(root, dependents=True) == "cancelled"

    states = {await state_of(queue, job_id) for job_id in [*children, below]}
    assert states == {"cancelled"}


async def test_a_dependent_that_runs_is_asked_to_end(queue: Any, jobs: Collection[Any]) -> None:
    parent = await queue.put({}, keep=60)
    await complete_next(queue)
    dependent = await queue.put({}, after=[parent])
    await queue.next()

    assert await queue.cancel(parent, dependents=True) is None

    assert "cancel_requested_at" in document(jobs, dependent)


# put


async def test_a_parent_that_is_not_there_is_said_so_and_nothing_is_put(queue: Any) -> None:
    there, gone = await queue.put({}), ObjectId()

    with pytest.raises(JobNotFound, match=r"in any queue: .* put both together") as caught:
        await queue.put({}, after=[there, gone])

    assert (caught.value.job_id, await queue.size()) == (gone, 1)


async def test_a_parent_that_was_marked_in_vain_is_let_go(
    queue: Any, jobs: Collection[Any]
) -> None:
    there = await queue.put({})

    with pytest.raises(JobNotFound):
        await queue.put({}, after=[there, ObjectId()])

    assert "needed" not in document(jobs, there)


async def test_jobs_can_come_after_others_of_the_same_call(queue: Any) -> None:
    a, b, c = (ObjectId() for _ in range(3))

    await queue.put_many(
        [
            NewJob({"c": 1}, job_id=c, after=[a, b]),
            NewJob({"b": 1}, job_id=b, after=[a]),
            NewJob({"a": 1}, job_id=a),
        ]
    )

    assert [await complete_next(queue) for _ in range(3)] == [a, b, c]


async def test_all_jobs_of_a_call_can_come_after_the_same(queue: Any) -> None:
    parent = await queue.put({})
    ids = await queue.put_many([{"n": 1}, {"n": 2}, NewJob({}, after=[])], after=[parent])

    before = [await state_of(queue, job_id) for job_id in ids]
    await complete_next(queue)
    after = [await state_of(queue, job_id) for job_id in ids]

    assert (before, after[:2]) == (["waiting", "waiting", "ready"], ["ready", "ready"])


async def test_a_rule_of_a_call_holds_for_jobs_that_say_themselves_what_they_come_after(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent = ObjectId()
    _, follows, says_more = await queue.put_many(
        [
            NewJob({}, job_id=parent),
            NewJob({}, after=[parent], keep=60),
            NewJob({}, after=[parent], if_parent_fails="hold"),
        ],
        if_parent_fails="cancel",
    )

    await discarded(queue, jobs, parent)

    states = [await state_of(queue, each) for each in (follows, says_more)]
    assert states == ["cancelled", "waiting"]


@pytest.mark.parametrize("keys", [None, ["k"]], ids=["no keys", "keys"])
async def test_a_rule_of_a_call_that_no_job_can_need_is_refused(
    queue: Any, keys: list[str] | None
) -> None:
    with pytest.raises(ConfigurationError, match="give after="):
        await queue.put_many([{}], keys=keys, if_parent_fails="cancel")

    assert await queue.size() == 0


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_jobs_in_a_circle_are_refused_and_nothing_is_put(queue: Any, length: int) -> None:
    ids = [ObjectId() for _ in range(length)]
    circle = [NewJob({}, job_id=ids[n], after=[ids[n - 1]]) for n in range(length)]

    with pytest.raises(ConfigurationError, match=r"after (itself|one another in a circle)"):
        await queue.put_many([{}, *circle])

    assert await queue.size() == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"after": "x"}, "after is a list"),
        ({"after": 7}, "after is a list"),
        ({"after": [None]}, "a job id is a single value"),
        ({"after": [{"$gt": ""}]}, "a job id is a single value"),
        ({"if_parent_fails": "run"}, "give after="),
        ({"after": [], "if_parent_fails": "ignore"}, "if_parent_fails is"),
        ({"after": [1], "key": "k", "on_conflict": "skip"}, "does not go with after"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_a_sentence(
    queue: Any, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        await queue.put({}, **settings)

    assert await queue.size() == 0


async def test_a_dependent_that_is_put_again_is_there_once(queue: Any) -> None:
    parent, dependent = await queue.put({}), ObjectId()

    for _ in range(2):
        assert await queue.put({}, after=[parent], job_id=dependent) == dependent

    await complete_next(queue)
    assert await complete_next(queue) == dependent
    assert await queue.next() is None


async def test_a_dependent_whose_key_is_taken_is_not_put_and_needs_nobody(
    queue: Any, jobs: Collection[Any]
) -> None:
    await queue.put({}, key="k")
    parent = await queue.put({})

    with pytest.raises(DuplicateJob):
        await queue.put({}, key="k", after=[parent])

    assert "needed" not in document(jobs, parent)


async def test_ids_of_any_kind_can_be_parents(queue: Any, jobs: Collection[Any]) -> None:
    ids = ["order-1", 7, b"bytes", UUID(int=7)]
    jobs.with_options(CODEC).insert_many(
        [{"_id": one, "queue": "default", "state": "ready", "payload": {}} for one in ids]
    )
    dependent = await queue.put({}, after=[*ids, 7.0])

    for _ in ids:
        assert await state_of(queue, dependent) == "waiting"
        await complete_next(queue)

    assert await state_of(queue, dependent) == "ready"


async def test_a_request_can_come_after_others(queue: Any) -> None:
    parent = await queue.put({})

    with pytest.raises(TimeoutError):
        await queue.request({}, after=[parent], timeout=0)

    assert (await queue.stats())["waiting"] == 1


# in transactions


async def test_a_dependent_in_a_transaction_is_put_with_it(shell: Shell, queue: Any) -> None:
    parent, _ = await pair(queue)  # (the indexes are there)
    async with shell.transaction() as session:
        dependent = await queue.put({}, after=[parent], session=session)
    await complete_next(queue)

    assert await state_of(queue, dependent) == "ready"


async def test_a_dependent_of_one_that_ended_runs_when_its_transaction_commits(
    shell: Shell, queue: Any
) -> None:
    parent, _ = await pair(queue)
    await complete_next(queue)
    async with shell.transaction() as session:
        dependent = await queue.put({}, after=[parent], session=session)

    assert await state_of(queue, dependent) == "ready"


async def test_a_transaction_that_is_aborted_leaves_nobody_needed(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    await pair(queue)
    parent = await queue.put({})
    async with shell.transaction() as session:
        await queue.put({}, after=[parent], session=session)
        aborted = session.abort_transaction()
        if aborted is not None:
            await aborted

    assert "needed" not in document(jobs, parent)


async def test_a_parent_that_is_completed_in_a_transaction_lets_run(
    shell: Shell, queue: Any
) -> None:
    _, dependent = await pair(queue)
    job = await queue.next()
    async with shell.transaction() as session:
        await job.complete(session=session)

    assert await state_of(queue, dependent) == "ready"


# for as long as it is needed


async def test_a_parent_stays_while_its_dependent_lives(queue: Any, jobs: Collection[Any]) -> None:
    parent = await queue.put({}, keep=1)
    await queue.put({}, after=[parent])
    await complete_next(queue, "result")
    job = await queue.next()
    await job.release(delay=60)

    assert "removed_at" not in document(jobs, parent)


async def test_a_parent_goes_a_minute_after_its_dependents(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent = await queue.put({})
    await queue.put_many([{}, {}], after=[parent])
    await complete_next(queue)
    await complete_next(queue)
    needed = "needed" in document(jobs, parent)

    await complete_next(queue)

    stored = document(jobs, parent)
    left = (stored["removed_at"] - stored["finished_at"]).total_seconds()
    assert (needed, "needed" in stored, 59 < left < 70) == (True, False, True)


async def test_a_parent_that_is_kept_for_longer_stays_for_longer(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent = await queue.put({}, keep=1000)
    await queue.put({}, after=[parent])
    await complete_next(queue)
    await complete_next(queue)

    stored = document(jobs, parent)
    assert 990 < (stored["removed_at"] - stored["finished_at"]).total_seconds() < 1010


async def test_a_done_parent_is_not_removed_once_others_come_after_it(
    queue: Any, jobs: Collection[Any]
) -> None:
    parent = await queue.put({}, keep=1000)
    await complete_next(queue)

    await queue.put({}, after=[parent])

    assert "removed_at" not in document(jobs, parent)


@pytest.mark.parametrize("end", [cancelled, discarded], ids=lambda end: end.__name__)
async def test_a_parent_is_let_go_when_its_dependent_fails(
    queue: Any, jobs: Collection[Any], end: End
) -> None:
    parent, dependent = await pair(queue)
    await complete_next(queue)

    await end(queue, jobs, dependent)

    assert "needed" not in document(jobs, parent)


# what somebody did not come to


async def test_a_dependent_that_nobody_has_looked_at_is_found(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue)
    jobs.update_one({"_id": parent}, {"$set": {"state": "done"}})

    assert (await shell.queue().next()).id == dependent


async def test_a_dependent_of_a_parent_that_was_deleted_by_hand_is_found(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue)
    jobs.delete_one({"_id": parent})

    await shell.queue().next()

    assert await state_of(queue, dependent) == "cancelled"


async def test_a_parent_that_was_forgotten_is_let_go(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    parent, dependent = await pair(queue)
    await complete_next(queue)
    jobs.delete_one({"_id": dependent})
    jobs.update_one({"_id": parent}, [{"$set": {"needed": {"$subtract": ["$$NOW", 10**6]}}}])

    await shell.queue().next()

    stored = document(jobs, parent)
    assert ("needed" in stored, "removed_at" in stored) == (False, True)


# results


async def test_the_results_of_the_parents_come_in_their_order(queue: Any) -> None:
    parents = await queue.put_many([{"n": n} for n in range(40)])
    await queue.put({}, after=reversed(parents))
    for n in range(40):
        await complete_next(queue, {"n": n})

    job = await queue.next()

    assert [result["n"] async for result in job.parents] == list(range(39, -1, -1))


async def test_a_job_without_parents_has_none(queue: Any) -> None:
    await queue.put({})
    job = await queue.next()

    assert [result async for result in job.parents] == []


async def test_parents_that_failed_are_seen_as_what_they_are(
    shell: Shell, queue: Any, jobs: Collection[Any]
) -> None:
    parents = await queue.put_many([{"n": 1}, {"n": 2}])
    await queue.put({}, after=parents, if_parent_fails="run")
    await discarded(queue, jobs, parents[0])
    await complete_next(queue, "fine")
    jobs.delete_one({"_id": parents[0]})

    job = await queue.next()

    assert [result async for result in job.parents] == [None, "fine"]


async def test_however_much_the_parents_returned_a_little_of_it_is_held_at_a_time(
    queue: Any, jobs: Collection[Any]
) -> None:
    parents = [ObjectId() for _ in range(120)]
    done = {"queue": "default", "state": "done", "payload": {}, "result": "x" * 300_000}
    jobs.insert_many([{"_id": one, **done} for one in parents])
    await queue.put({}, after=parents)
    job = await queue.next()

    tracemalloc.start()
    count = 0
    async for result in job.parents:
        count += len(result) == 300_000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (count, most < 20_000_000) == (120, True)
