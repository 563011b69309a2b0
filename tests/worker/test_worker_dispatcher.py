"""A dispatcher and its members: one stream for all of them, and nobody needed for it.

Law: the race is shaped.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, Backoff
from streamqueue.processes import members as processes_members
from streamqueue.processes import subscriber as subscribers
from streamqueue.processes import waiting_jobs
from streamqueue.worker import partition
from streamqueue.worker.slots import Slots
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.members import SOON, Members, Notes, completed, lost, streams, until_done
from tests.worker.started import StartedWorker


async def until_free(members: Members, count: int) -> None:
    """Wait until the dispatcher knows of so many workers with a free slot."""
    await wait_until_async(
        lambda: sum(member.free > 0 for member in members.dispatcher.dispatcher._members) >= count,
        f"{count} of them can take jobs",
    )


# events


async def test_a_job_reaches_one_idle_worker_and_costs_one_claim(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(4, notes)
    await members.until_idle()
    everybody: list[Any] = [members.dispatcher, *workers]
    for one in everybody:
        one.commands.forget()

    await queue.put({"n": 1})
    await until_done(jobs)

    assert notes.seen == [1]
    sent = [sent.name for worker in workers for sent in worker.commands.all]
    looks = "find"  # a process may look for itself, too, on a machine that stands still for a while
    assert sorted(name for name in sent if name != looks) == ["delete", "findAndModify"]
    assert members.dispatcher.commands.besides("getMore") == []
    told = [worker.metric("streamqueue_stream_events_total") for worker in workers]
    assert sorted(told) == [0, 0, 0, 1]


async def test_only_the_dispatcher_has_a_stream_open(
    members: Members, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await members.open(max_await=1)

    await members.start_many(3, Notes())

    assert streams(client, jobs) == 1


@pytest.mark.slow
async def test_jobs_put_one_after_the_other_go_to_all_workers_alike(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(3, notes, concurrency=3)

    for n in range(60):
        await queue.put({"n": n})
        await until_done(jobs)

    assert sorted(notes.seen) == list(range(60))
    assert min(completed(worker) for worker in workers) >= 10
    assert lost(*workers) == 0


async def test_an_idle_table_sends_nothing_but_get_more_and_looks_for_leases(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await members.open(max_await=1)
    workers = await members.start_many(3, Notes(), max_await=1)
    await queue.put_many([{"n": n} for n in range(20)])
    await queue.put({"n": 20}, delay=0.2)
    await until_done(jobs)
    await members.until_idle(0.6)
    everybody: list[Any] = [members.dispatcher, *workers]
    for one in everybody:
        one.commands.forget()

    await anyio.sleep(5)

    for worker in workers:
        looks = [sent.command["filter"] for sent in worker.commands.all]
        assert looks in ([], [{"state": "running"}])  # one every five seconds
    assert members.dispatcher.commands.besides("getMore") == []
    assert 2 <= len(members.dispatcher.commands.named("getMore")) <= 7


async def test_a_worker_that_does_nothing_about_an_event_is_helped_out(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await members.open()
    await members.start_many(1, notes)
    members.puppet(free=1000)
    await until_free(members, 2)

    for n in range(12):
        await queue.put({"n": n})
        await notes.until_seen(n + 1)


async def test_a_worker_that_does_not_ask_when_it_is_told_to_is_helped_out(
    members: Members, jobs: Collection[Any]
) -> None:
    """A plain update does not say which job it was: somebody is to look."""
    notes = Notes()
    await members.open()
    await members.start_many(1, notes)
    for n in range(6):
        jobs.insert_one({"_id": n, "queue": "default", "state": "paused", "payload": {"n": n}})
    members.puppet(free=1000)
    await until_free(members, 2)

    for n in range(6):
        jobs.update_one({"_id": n}, {"$set": {"state": "ready"}})
        await notes.until_seen(n + 1)


async def test_a_worker_whose_claims_fail_is_helped_out(
    members: Members, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    notes = Notes()
    await members.open()
    _, bad = await members.start_many(2, notes)
    with failing(client, "update", app=bad.app, errorCode=11600):
        for n in range(8):
            await queue.put({"n": n})
            await notes.until_seen(n + 1)


async def test_lone_jobs_are_shared_with_a_worker_from_the_moment_it_has_joined(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    workers = await members.start_many(2, notes)
    await wait_until_async(lambda: dispatcher.dispatcher._partition._listed, "the list was read")
    monkeypatch.setattr(partition, "LOOK_PAUSE", 60)  # before it is read again
    workers += await members.start_many(1, notes)
    await until_free(members, 3)

    for n in range(9):
        await queue.put({"n": n})
        await until_done(jobs)

    await wait_until_async(lambda: completed(*workers) == 9, "all are counted")
    assert [completed(worker) for worker in workers] == [3, 3, 3]


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_worker_that_is_gone_with_an_event_is_replaced(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch, says_so: bool
) -> None:
    monkeypatch.setattr(processes_members, "AGAIN_AFTER", 60)
    notes = Notes()
    await members.open()
    await members.start_many(1, notes, concurrency=1)

    for n in range(8):
        puppet = members.puppet(free=1000)
        await until_free(members, 2)
        await queue.put({"n": n})
        await wait_until_async(
            lambda n=n: (
                len(notes.seen) > n or [*members.dispatcher.dispatcher._members][-1].unacknowledged
            ),
            "it is sent",
        )
        puppet.leave(says_so)
        await notes.until_seen(n + 1)


async def test_an_event_of_a_job_that_a_worker_has_already_run_is_acknowledged(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    """Else its dispatcher would wait for that, and send it nothing more."""
    notes = Notes()
    worker = members.prepare(notes, concurrency=2)
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(members.begin, worker)
        await queue.put({"n": 1})
        [job] = jobs.find()
        await dispatcher.until_heard("ask")
        dispatcher.say({"jobs": [job], "more": False})
        await notes.until_seen(1)
        await dispatcher.until_heard("idle")

        dispatcher.say({"event": {"operationType": "insert", "fullDocument": job}})

        with anyio.fail_after(SOON):
            assert (await dispatcher.until_heard("ask"))["done"] == 1


# what waits


async def test_waiting_jobs_are_shared_so_that_no_slot_is_idle(
    members: Members, queue: AsyncMongoQueue
) -> None:
    await queue.put_many([{"n": n} for n in range(6)])
    await members.open()
    all_notes = [Notes(30), Notes(30), Notes(30)]

    for notes in all_notes:
        await members.start(notes, concurrency=2, drain_timeout=0)

    await wait_until_async(lambda: all(notes.running == 2 for notes in all_notes), "two each", SOON)


@pytest.mark.parametrize(("count", "workers", "concurrency"), [(5, 3, 1), (12, 3, 2), (30, 4, 7)])
async def test_no_worker_idles_while_jobs_wait(
    members: Members, queue: AsyncMongoQueue, count: int, workers: int, concurrency: int
) -> None:
    notes = Notes(0.2)
    await members.open()
    await members.start_many(workers, notes, concurrency=concurrency)
    slots = workers * concurrency
    began = time.monotonic()

    await queue.put_many([{"n": n} for n in range(count)])
    await notes.until_seen(count, within=5)

    assert sorted(notes.seen) == list(range(count))
    assert notes.most_running == min(slots, count)
    rounds = -(-count // slots)
    assert time.monotonic() - began < rounds * 0.2 + 0.4


@pytest.mark.few(1)
@pytest.mark.parametrize("concurrency", [1, 20, 50, 200])
async def test_a_backlog_is_drained_by_all_and_hardly_a_claim_is_lost(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], concurrency: int
) -> None:
    notes = Notes()
    count = 300 if concurrency == 1 else 3000
    await members.open()
    workers = await members.start_many(4, notes, concurrency=concurrency)

    await queue.put_many([{"n": n} for n in range(count)])
    await until_done(jobs, 20)
    await members.until_idle()

    assert Counter(notes.seen) == Counter(range(count))
    assert min(completed(worker) for worker in workers) >= count / 20
    # The share of a member that stands still for longer than the dispatcher waits is handed out
    # once more, and one of the two loses; without a dispatcher every second claim is lost.
    assert lost(*workers) <= count / 10


async def test_waiting_jobs_that_one_member_was_sent_are_not_sent_to_another(
    members: Members, queue: AsyncMongoQueue
) -> None:
    await queue.put_many([{"n": n} for n in range(30)])
    await members.open()
    one, other = members.puppet(free=30), members.puppet(free=0)
    one.ask(30)
    assert len((await one.until_heard("jobs"))["jobs"]) == 30
    new = await queue.put({"n": 30})  # nobody is free for its event, so all is read again
    await wait_until_async(
        lambda: members.dispatcher.dispatcher.loaded, "more is known to wait", SOON
    )

    other.ask(30)

    assert [job["_id"] for job in (await other.until_heard("jobs"))["jobs"]] == [new]


@pytest.mark.few(2)
@pytest.mark.parametrize("count", [30, 80, 150, 400])
async def test_jobs_that_wait_when_workers_come_are_all_run_at_once(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], count: int
) -> None:
    """More than a first claim takes, and fewer than a chunk: none may be forgotten by all."""
    await members.open()
    workers = await members.start_many(2, Notes(), concurrency=50)

    for _ in range(8):
        await queue.put_many([{"n": n} for n in range(count)])
        await until_done(jobs)
    await members.until_idle()

    assert completed(*workers) == 8 * count


@pytest.mark.parametrize("says_so", [True, False])
async def test_waiting_jobs_that_a_worker_takes_with_it_are_run_by_others(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch, says_so: bool
) -> None:
    monkeypatch.setattr(waiting_jobs, "READ_EVERY", 60)
    notes = Notes()
    await members.open()
    puppet = members.puppet(free=10)
    await queue.put_many([{"n": n} for n in range(10)])
    puppet.ask(10)
    assert len((await puppet.until_heard("jobs"))["jobs"]) == 10
    await members.start_many(1, notes)
    assert notes.seen == []

    puppet.leave(says_so)

    await notes.until_seen(10)


async def test_waiting_jobs_that_a_worker_does_nothing_about_are_run_by_others(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await members.open()
    puppet = members.puppet(free=10)
    await queue.put_many([{"n": n} for n in range(10)])
    puppet.ask(10)
    assert len((await puppet.until_heard("jobs"))["jobs"]) == 10

    await members.start_many(1, notes)

    await notes.until_seen(10, within=3)


async def test_waiting_jobs_that_a_member_gave_up_are_sent_again(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks anew without a word about those it was sent: it may have dropped them."""
    monkeypatch.setattr(waiting_jobs, "READ_EVERY", 60)
    await queue.put_many([{"n": n} for n in range(10)])
    await members.open()
    puppet = members.puppet(free=10)
    puppet.ask(10)
    first = await puppet.until_heard("jobs")

    puppet.ask(10)

    assert (await puppet.until_heard("jobs"))["jobs"] == first["jobs"]


async def test_jobs_that_were_read_before_a_claim_was_lost_are_read_again(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_jobs, "READ_EVERY", 60)
    await queue.put_many([{"n": n} for n in range(20)])
    await members.open()
    puppet = members.puppet(free=10)
    puppet.ask(10)
    first = await puppet.until_heard("jobs")

    puppet.say({"lost": 10, "won": 5})
    puppet.say({"idle": 10, "done": 0, "more": False, "refused": []})
    puppet.ask(20)

    second = await puppet.until_heard("jobs")
    assert len(first["jobs"]) == 10
    assert len(second["jobs"]) == 20  # as far as it can know: it was not told which


async def test_a_worker_that_would_claim_ahead_says_when_its_slot_is_free(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, "answered", lambda slots, _: setattr(slots, "_ahead", 5))
    gate, seen = anyio.Event(), []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data["n"])
        await gate.wait()

    await members.open()
    await members.start(handler, concurrency=1, sweep_interval=None)
    await queue.put({"n": 1})
    await wait_until_async(lambda: seen, "it runs")
    await members.until_idle(0.3)
    await queue.put({"n": 2})
    await members.until_idle(0.3)

    gate.set()

    await wait_until_async(lambda: seen == [1, 2], "the other runs", SOON)


# order and time


async def test_a_more_urgent_job_comes_before_the_rest_of_a_backlog(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.1)
    await queue.put_many([{"n": n} for n in range(200)])
    await members.open()
    for _ in range(3):
        await members.start(notes, concurrency=2)
    await notes.until_seen(20)

    await queue.put({"n": "urgent"}, priority=1)
    before = len(notes.seen)
    await wait_until_async(lambda: "urgent" in notes.seen, "the urgent one ran")

    # A worker looks at the stream four times a second while it has enough to do: 15 jobs.
    assert notes.seen.index("urgent") - before <= 28


async def test_jobs_that_another_program_inserted_without_a_priority_are_run(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.02)
    await members.open()
    await members.start_many(2, notes, concurrency=1)

    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": "lone"}})
    await notes.until_seen(1)
    await queue.put_many([{"n": n} for n in range(3000)], priority=-1)  # more than one read has
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": "among many"}})

    await wait_until_async(lambda: "among many" in notes.seen, "it ran", 5)
    assert len(notes.seen) < 95  # an absent priority sorts behind all numbers until it has one


async def test_delayed_jobs_are_promoted_on_time_by_the_dispatcher(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(3, notes)
    began = time.monotonic()

    await queue.put_many([{"n": n} for n in range(10)], delay=0.5)
    await notes.until_seen(10)

    assert 0.45 < time.monotonic() - began < 1.2
    promotions = [s for w in workers for s in w.commands.named("update") if "scheduled" in str(s)]
    assert promotions == []


async def test_delayed_jobs_from_before_the_dispatcher_are_promoted_on_time(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    began = time.monotonic()
    await queue.put({"n": 1}, delay=1)
    await members.open()
    await members.start(notes)

    await notes.until_seen(1)

    assert 0.95 < time.monotonic() - began < 1.5


async def test_a_promotion_is_the_only_write_of_the_dispatcher(
    members: Members, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    await members.start_many(2, notes)
    await members.until_idle()
    dispatcher.commands.forget()

    await queue.put({"n": 1}, delay=0.3)
    await notes.until_seen(1)
    await members.until_idle()

    assert len(dispatcher.commands.named("update")) == 1


@pytest.mark.few(1)
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_delayed_job_is_promoted_whoever_has_gone_meanwhile(
    members: Members, queue: AsyncMongoQueue, leaves: bool
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    first, second = await members.start_many(2, notes)
    await queue.put({"n": 1}, delay=0.5)

    if leaves:
        await first.stop()
    else:
        await dispatcher.stop()

    await notes.until_seen(1)
    await wait_until_async(lambda: completed(first, second) == 1, "it is completed")


async def test_a_job_that_fails_is_tried_again_on_time(
    members: Members, queue: AsyncMongoQueue
) -> None:
    tries: list[float] = []

    async def fails_once(job: AsyncJob) -> None:
        tries.append(time.monotonic())
        if len(tries) < 2:
            raise ValueError("once")

    await members.open()
    await members.start_many(2, fails_once, backoff=Backoff(initial=0.3, jitter=0))

    await queue.put({})
    await wait_until_async(lambda: len(tries) == 2, "it is tried again", SOON)

    assert 0.25 < tries[1] - tries[0] < 0.8


async def test_the_jobs_of_a_worker_that_vanished_are_run_when_their_leases_end(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await members.open()
    await members.start_many(2, notes, reap_interval=60)
    puppet = members.puppet(free=0, consumer="vanishing")
    ends = datetime.now(UTC) + timedelta(seconds=1)
    held = {"state": "running", "locked_by": "vanishing", "lease": b"a", "attempts": 1}
    jobs.insert_one({"queue": "default", "payload": {"n": 1}, "locked_until": ends, **held})

    puppet.close()

    await notes.until_seen(1, within=2.5)


async def test_leases_are_watched_by_workers_that_are_sent_nothing(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them holds a job; were it to vanish, another must know that there is a lease."""
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 60)
    await members.open()
    workers = await members.start_many(
        2, Notes(30), concurrency=1, reap_interval=0.1, drain_timeout=0
    )
    for worker in workers:
        worker.commands.forget()

    await queue.put({"n": 1})

    def looked(worker: StartedWorker) -> bool:
        return any("locked_until" in str(sent.command) for sent in worker.commands.named("find"))

    await wait_until_async(lambda: all(map(looked, workers)), "both have looked", 3)
