"""Limits that hold whatever happens: consumers that die, rules that change, tasks beside others,
and every way by which a job can be taken.

Law: a limit is a limit.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.errors import OperationFailure
from pymongo.synchronous.collection import Collection

from streamqueue.store import known_settings
from streamqueue.store.flows import claims
from tests.contract.looks import document, let_lease_run_out, server_time
from tests.contract.shells import Shell
from tests.contract.test_queue_limits import put_all, rule
from tests.waiting import wait_until_async

SOON = 10.0


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no settings left behind."""
    yield jobs
    jobs.database[f"{jobs.name}.settings"].delete_many({})


@pytest.fixture
def settings_hold_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_settings, "SURE_FOR", 0.0)


def put_calls(jobs: Collection[Any], tasks: str, groups: str = "") -> None:
    """Put a call of each task, a letter each, in this order; and of each group, if any."""
    put_all(jobs, groups or "-" * len(tasks))
    for number, task in enumerate(tasks):
        jobs.update_one({"payload.n": number}, {"$set": {"task": task}})


# consumers that die


async def test_what_a_dead_consumer_held_is_free_once_its_leases_are_over_and_not_before(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 3}])
    put_all(jobs, "-" * 10)
    lost = await shell.queue().claim(2)
    queue = shell.queue()
    assert len(await queue.claim(10)) == 1

    assert await queue.claim(10) == []

    let_lease_run_out(jobs, *(job.id for job in lost))
    await queue.repair()

    assert len(await queue.claim(10)) == 2


async def test_however_many_die_a_limit_is_as_large_as_ever(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 3}, {"per": "group", "running": 1}])
    put_all(jobs, "abcdefgh")
    jobs.update_many({}, {"$set": {"max_attempts": 100}})
    for _ in range(7):
        held = await shell.queue().claim(10)
        assert len(held) == 3
        let_lease_run_out(jobs)
        await shell.queue().repair()

    assert len(await shell.queue().claim(10)) == 3


# rules that change


async def test_a_limit_that_is_set_raised_lowered_and_taken_away_holds_for_each_start(
    jobs: Collection[Any], shell: Shell, settings_hold_at_once: None
) -> None:
    put_all(jobs, "-" * 60)
    queue, other = shell.queue(), shell.queue()
    held = await queue.claim(5)

    for running, left, more in [(3, 4, 0), (3, 2, 1), (10, 3, 7), (2, 2, 0), (1, 1, 0), (4, 1, 3)]:
        await queue.limit(running=running)
        for job in held[left:]:
            await job.complete()
        started = await other.claim(20)
        assert len(started) == more, (running, left)
        held = [*started, *held[:left]]

    await queue.limit(running=None)
    assert len(await other.claim(20)) == 20


async def test_one_that_was_told_of_a_limit_counts_what_others_start_who_do_not_know_it_yet(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 100_000}])
    put_all(jobs, "-" * 20)
    unaware, aware = shell.queue(), shell.queue()
    assert await unaware.next()
    rule(jobs, limits=[{"per": "queue", "running": 3}])
    assert await aware.next()
    assert len(await unaware.claim(2)) == 2  # within its two seconds, and in slots of any number

    assert await aware.next() is None


# several limits


async def test_a_limit_of_one_task_leaves_the_others_alone(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "task": "a", "running": 2}])
    put_calls(jobs, "aaaabbbb")

    tasks = Counter(job._record.task for job in await started(shell))

    assert tasks == {"a": 2, "b": 4}


async def test_a_limit_per_task_is_as_many_of_each(jobs: Collection[Any], shell: Shell) -> None:
    rule(jobs, limits=[{"per": "task", "running": 2}])
    put_calls(jobs, "aaaabbbb")

    tasks = Counter(job._record.task for job in await started(shell))

    assert tasks == {"a": 2, "b": 2}


async def test_limits_of_the_queue_a_task_and_a_group_hold_together(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(
        jobs,
        limits=[
            {"per": "queue", "running": 4},
            {"per": "queue", "task": "a", "running": 2},
            {"per": "group", "running": 1},
        ],
    )
    put_calls(jobs, "aaaabbbbbb", "xxyzwwvuts")

    found = await started(shell)

    assert len(found) == 4
    assert Counter(job._record.task for job in found) == {"a": 2, "b": 2}
    assert len({job._record.group for job in found}) == 4


async def started(shell: Shell) -> list[Any]:
    """What one may start after the other, and what at once: together, all that may."""
    found = [*await shell.queue().claim(3), *await shell.queue().claim(100)]
    assert await shell.queue().next() is None
    return found


# what is held back


async def test_what_is_held_back_is_as_it_was_however_often_somebody_looks(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}], declared={"ordered": True})
    put_all(jobs, "-a-aab")
    queue = shell.queue()
    held = await queue.next()
    before = list(jobs.find({"_id": {"$ne": held.id}}))

    for _ in range(3):
        assert await queue.claim(10) == []
        assert await shell.queue().next() is None

    assert list(jobs.find({"_id": {"$ne": held.id}})) == before


@pytest.mark.parametrize("end", ["complete", "error", "release", "die"])
async def test_a_job_has_its_slots_while_it_runs_and_no_longer(
    jobs: Collection[Any], shell: Shell, end: str
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}], declared={"ordered": True})
    put_all(jobs, "a")
    queue = shell.queue(max_attempts=1 if end == "die" else 3, keep=60)
    job = await queue.next()
    assert document(jobs, job.id)["slots"] == ["q#1", "o#1:a"]

    await getattr(job, {"die": "error"}.get(end, end))()

    assert "slots" not in document(jobs, job.id)


async def test_nothing_is_withheld_for_what_was_known_a_moment_ago(
    jobs: Collection[Any], shell: Shell, settings_hold_at_once: None
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "---")
    queue, other = shell.queue(), shell.queue()
    held = await other.next()
    for _ in range(2):
        assert await queue.next() is None
        await held.complete()
        (again,) = await queue.claim(1)
        await again.release()
        (held,) = await other.claim(1)


async def test_of_two_that_go_for_the_same_place_one_gets_it_and_the_other_nothing(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "--")
    queue, other = shell.queue(), shell.queue()
    await (await other.next()).release()  # it knows the rules
    store = store_of(shell, other)
    chosen = (await answer_of(store.choose("default", 1))).jobs
    jobs.update_one({"payload.n": {"$ne": 0}}, {"$set": {"priority": 1}})
    assert await queue.next() is not None

    assert await answer_of(store.take(chosen, "other", 60.0, lambda _queue: 3)) == []


async def test_one_whose_place_is_taken_keeps_none_of_those_that_are_claimed_with_it(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 4}])
    put_all(jobs, "-----")
    queue, other = shell.queue(), shell.queue()
    await (await other.next()).release()  # it knows the rules
    store = store_of(shell, other)
    chosen = (await answer_of(store.choose("default", 4))).jobs
    assert len(chosen) == 4
    jobs.update_one({"payload.n": 4}, {"$set": {"priority": 1}})
    held = await queue.next()

    taken = await answer_of(store.take(chosen, "other", 60.0, lambda _queue: 3))

    assert len(taken) == 3
    slots = [slot for job in (*taken, document(jobs, held.id)) for slot in job["slots"]]
    assert len(set(slots)) == 4
    (left,) = jobs.find({"state": "ready"})
    assert left.get("attempts", 0) == 0


async def test_what_was_claimed_of_one_queue_is_given_back_when_the_claim_of_another_fails(
    jobs: Collection[Any], shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "--")
    queue = shell.queue()
    await (await queue.next()).release()  # it knows the rules
    store = store_of(shell, queue)
    plain = jobs.insert_one({"queue": "plain", "state": "ready", "payload": {}}).inserted_id
    chosen = (await answer_of(store.choose("default", 1))).jobs
    claim_once = claims.claim_once

    def failing(store: Any, claim: Any, consumer: str) -> Any:
        if "plain" in claim.queues:
            raise OperationFailure("interrupted", 11601)
        return claim_once(store, claim, consumer)

    monkeypatch.setattr(claims, "claim_once", failing)
    both = [*chosen, {"_id": plain, "queue": "plain"}]

    with pytest.raises(OperationFailure):
        await answer_of(store.take(both, "other", 60.0, lambda _queue: 3))

    assert jobs.count_documents({"state": "ready", "attempts": {"$in": [None, 0]}}) == 3


async def test_a_start_that_comes_too_late_for_its_rate_is_none(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "rate": {"count": 20, "seconds": 1.0}}])
    put_all(jobs, "--")
    queue = shell.queue()
    assert await queue.next(wait=SOON) is not None
    void_at, claim = await reserved_claim(store_of(shell, queue))
    await wait_until_async(lambda: server_time(jobs) > void_at, "it is void", SOON)

    assert await answer_of(claim()) == []
    assert await queue.next(wait=SOON) is not None


def store_of(shell: Shell, queue: Any) -> Any:
    """Return the store of a queue of either shell."""
    return (queue if shell.is_async else queue._target)._store


async def reserved_claim(store: Any) -> Any:
    """Choose the next job as soon as its rate lets it start; return when that start is void by the
    server's clock, and what claims it."""

    async def chosen() -> Any:
        return (await answer_of(store.choose("default", 1))).jobs

    jobs: Any = await wait_until_async(chosen, "it may start", SOON)
    void_at = jobs[0]["starts"][0][2].until
    return void_at, lambda: store.take(jobs, "late", 60.0, lambda _queue: 3)


async def answer_of(call: Any) -> Any:
    """Return what either shell answers."""
    return await call if inspect.isawaitable(call) else call


# every door


async def test_a_job_that_is_requeued_waits_for_its_turn_as_any_other(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "--")
    queue = shell.queue(max_attempts=1)
    dead = await queue.next()
    await dead.error("no more")
    held = await queue.next()
    assert held is not None

    assert await queue.requeue(dead.id) == 1

    assert await queue.next() is None
    await held.complete()
    assert (await queue.next()).id == dead.id


async def test_a_schedule_that_is_run_by_hand_puts_what_waits_for_its_turn(
    jobs: Collection[Any], shell: Shell
) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "-")
    queue, schedules = shell.queue(), shell.schedules()
    held = await queue.next()
    await schedules.add("nightly", every=3600, queue="default", payload={"n": "now"})

    await schedules.run_now("nightly")

    assert await queue.claim(10) == []
    await held.complete()
    assert (await queue.next()).data["n"] == "now"
    jobs.database[f"{jobs.name}.settings"].delete_many({})


async def test_who_iterates_waits_until_there_is_room(jobs: Collection[Any], shell: Shell) -> None:
    rule(jobs, limits=[{"per": "queue", "running": 1}])
    put_all(jobs, "---")
    queue = shell.queue()
    seen = []

    async for job in queue:
        assert jobs.count_documents({"state": "running"}) == 1
        assert await queue.next() is None
        seen.append(job.data["n"])
        await job.complete()
        if len(seen) == 3:
            break

    assert seen == [0, 1, 2]
