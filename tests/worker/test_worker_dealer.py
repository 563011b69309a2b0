"""Workers that are dealt to: one stream for all of them, and nobody needed for it (law 10)."""

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
from streamqueue.worker import dealer as dealers
from streamqueue.worker import hand as hands
from streamqueue.worker import table as seats
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.started import StartedWorker
from tests.worker.table import SOON, Notes, Table, completed, lost, streams, until_done


async def until_free_seats(table: Table, count: int) -> None:
    """Wait until the dealer knows of so many workers with a free slot."""
    await wait_until_async(
        lambda: sum(seat.free > 0 for seat in table.dealer.dealer._table) >= count,
        f"{count} of them can take jobs",
    )


# events


async def test_a_job_reaches_one_idle_worker_and_costs_one_claim(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await table.open()
    workers = await table.seats(4, notes)
    await table.until_idle()
    for one in (table.dealer, *workers):
        one.commands.forget()

    await queue.put({"n": 1})
    await until_done(jobs)

    assert notes.seen == [1]
    sent = [sent.name for worker in workers for sent in worker.commands.all]
    assert sorted(sent) == ["delete", "update"]
    assert table.dealer.commands.besides("getMore") == []
    told = [worker.metric("streamqueue_stream_events_total") for worker in workers]
    assert sorted(told) == [0, 0, 0, 1]


async def test_only_the_dealer_has_a_stream_open(
    table: Table, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    await table.open(max_await=1)

    await table.seats(3, Notes())

    assert streams(client, jobs) == 1


async def test_jobs_put_one_after_the_other_go_to_all_workers_alike(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await table.open()
    workers = await table.seats(3, notes, concurrency=3)

    for n in range(60):
        await queue.put({"n": n})
        await until_done(jobs)

    assert sorted(notes.seen) == list(range(60))
    assert min(completed(worker) for worker in workers) >= 10
    assert lost(*workers) == 0


async def test_an_idle_table_sends_nothing_but_get_more(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    await table.open(max_await=1)
    workers = await table.seats(3, Notes(), max_await=1, reap_interval=0.1)
    await queue.put_many([{"n": n} for n in range(20)])
    await queue.put({"n": 20}, delay=0.2)
    await until_done(jobs)
    await table.until_idle(0.6)
    for one in (table.dealer, *workers):
        one.commands.forget()

    await anyio.sleep(5)

    assert [sent.name for worker in workers for sent in worker.commands.all] == []
    assert table.dealer.commands.besides("getMore") == []
    assert 2 <= len(table.dealer.commands.named("getMore")) <= 7


async def test_a_worker_that_does_nothing_about_an_event_is_helped_out(
    table: Table, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await table.open()
    await table.seats(1, notes)
    table.puppet(free=1000)
    await until_free_seats(table, 2)

    for n in range(12):
        await queue.put({"n": n})
        await notes.until_seen(n + 1)


async def test_a_worker_that_does_not_ask_when_it_is_told_to_is_helped_out(
    table: Table, jobs: Collection[Any]
) -> None:
    """A plain update does not say which job it was: somebody is to look."""
    notes = Notes()
    await table.open()
    await table.seats(1, notes)
    for n in range(6):
        jobs.insert_one({"_id": n, "queue": "default", "state": "paused", "payload": {"n": n}})
    table.puppet(free=1000)
    await until_free_seats(table, 2)

    for n in range(6):
        jobs.update_one({"_id": n}, {"$set": {"state": "ready"}})
        await notes.until_seen(n + 1)


async def test_a_worker_whose_claims_fail_is_helped_out(
    table: Table, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    notes = Notes()
    await table.open()
    _, bad = await table.seats(2, notes)
    with failing(client, "update", app=bad.app, errorCode=11600):
        for n in range(8):
            await queue.put({"n": n})
            await notes.until_seen(n + 1)


@pytest.mark.parametrize("says_so", [True, False])
async def test_a_worker_that_is_gone_with_an_event_is_replaced(
    table: Table, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch, says_so: bool
) -> None:
    monkeypatch.setattr(seats, "AGAIN_AFTER", 60)
    notes = Notes()
    await table.open()
    await table.seats(1, notes, concurrency=1)

    for n in range(8):
        puppet = table.puppet(free=1000)
        await until_free_seats(table, 2)
        await queue.put({"n": n})
        await wait_until_async(
            lambda n=n: len(notes.seen) > n or [*table.dealer.dealer._table][-1].owes, "it is dealt"
        )
        puppet.leave(says_so)
        await notes.until_seen(n + 1)


async def test_an_event_of_a_job_that_a_worker_has_already_run_is_dealt_with(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    """Else its dealer would wait for that, and deal it nothing more."""
    notes = Notes()
    worker = table.prepare(notes, concurrency=2)
    dealer = table.puppet_dealer(worker)
    dealer.say({"opened": True})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(table.begin, worker)
        await queue.put({"n": 1})
        [job] = jobs.find()
        await dealer.until_heard("ask")
        dealer.say({"jobs": [job], "more": False})
        await notes.until_seen(1)
        await dealer.until_heard("free")

        dealer.say({"event": {"operationType": "insert", "fullDocument": job}})

        with anyio.fail_after(SOON):
            while (await dealer.until_heard("free"))["done"] < 1:
                pass


# what waits


async def test_waiting_jobs_are_shared_so_that_no_slot_is_idle(
    table: Table, queue: AsyncMongoQueue
) -> None:
    await queue.put_many([{"n": n} for n in range(6)])
    await table.open()
    all_notes = [Notes(30), Notes(30), Notes(30)]

    for notes in all_notes:
        await table.seat(notes, concurrency=2, drain_timeout=0)

    await wait_until_async(lambda: all(notes.running == 2 for notes in all_notes), "two each", SOON)


@pytest.mark.parametrize(("count", "workers", "concurrency"), [(5, 3, 1), (12, 3, 2), (30, 4, 7)])
async def test_no_worker_idles_while_jobs_wait(
    table: Table, queue: AsyncMongoQueue, count: int, workers: int, concurrency: int
) -> None:
    notes = Notes(0.2)
    await table.open()
    await table.seats(workers, notes, concurrency=concurrency)
    slots = workers * concurrency
    began = time.monotonic()

    await queue.put_many([{"n": n} for n in range(count)])
    await notes.until_seen(count, within=5)

    assert sorted(notes.seen) == list(range(count))
    assert notes.most_running == min(slots, count)
    rounds = -(-count // slots)
    assert time.monotonic() - began < rounds * 0.2 + 0.4


@pytest.mark.parametrize("concurrency", [1, 20, 50, 200])
async def test_a_backlog_is_drained_by_all_without_a_lost_claim(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any], concurrency: int
) -> None:
    notes = Notes()
    count = 300 if concurrency == 1 else 3000
    await table.open()
    workers = await table.seats(4, notes, concurrency=concurrency)

    await queue.put_many([{"n": n} for n in range(count)])
    await until_done(jobs, 20)
    await table.until_idle()

    assert Counter(notes.seen) == Counter(range(count))
    assert min(completed(worker) for worker in workers) >= count / 20
    # What is announced while the last of them are claimed may be lost; of the backlog, nothing.
    assert lost(*workers) == 0


@pytest.mark.parametrize("count", [30, 80, 150, 400])
async def test_jobs_that_wait_when_workers_come_are_all_run_at_once(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any], count: int
) -> None:
    """More than a first claim takes, and fewer than a bite: none may be forgotten by all."""
    await table.open()
    workers = await table.seats(2, Notes(), concurrency=50)

    for _ in range(8):
        await queue.put_many([{"n": n} for n in range(count)])
        await until_done(jobs)
    await table.until_idle()

    assert completed(*workers) == 8 * count


@pytest.mark.parametrize("says_so", [True, False])
async def test_waiting_jobs_that_a_worker_takes_with_it_are_run_by_others(
    table: Table, queue: AsyncMongoQueue, says_so: bool
) -> None:
    notes = Notes()
    await table.open()
    puppet = table.puppet(free=10)
    await queue.put_many([{"n": n} for n in range(10)])
    puppet.ask(10)
    assert len((await puppet.until_heard("jobs"))["jobs"]) == 10
    await table.seats(1, notes)
    assert notes.seen == []

    puppet.leave(says_so)

    await notes.until_seen(10)


async def test_waiting_jobs_that_a_worker_does_nothing_about_are_run_by_others(
    table: Table, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await table.open()
    puppet = table.puppet(free=10)
    await queue.put_many([{"n": n} for n in range(10)])
    puppet.ask(10)
    assert len((await puppet.until_heard("jobs"))["jobs"]) == 10

    await table.seats(1, notes)

    await notes.until_seen(10, within=3)


async def test_waiting_jobs_that_a_worker_gave_up_are_dealt_again(
    table: Table, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks anew without a word about those it was dealt: it may have dropped them."""
    monkeypatch.setattr(dealers, "READ_EVERY", 60)
    await queue.put_many([{"n": n} for n in range(10)])
    await table.open()
    puppet = table.puppet(free=10)
    puppet.ask(10)
    first = await puppet.until_heard("jobs")

    puppet.ask(10)

    assert (await puppet.until_heard("jobs"))["jobs"] == first["jobs"]


async def test_jobs_that_were_read_before_a_claim_was_lost_are_read_again(
    table: Table, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealers, "READ_EVERY", 60)
    await queue.put_many([{"n": n} for n in range(20)])
    await table.open()
    puppet = table.puppet(free=10)
    puppet.ask(10)
    first = await puppet.until_heard("jobs")

    puppet.say({"lost": 10, "won": 5})
    puppet.say({"free": 10, "done": 0, "more": False, "stuck": []})
    puppet.ask(20)

    second = await puppet.until_heard("jobs")
    assert len(first["jobs"]) == 10
    assert len(second["jobs"]) == 20  # as far as it can know: it was not told which


# order and time


async def test_a_more_urgent_job_comes_before_the_rest_of_a_backlog(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.1)
    await queue.put_many([{"n": n} for n in range(200)])
    await table.open()
    for _ in range(3):
        await table.seat(notes, concurrency=2)
    await notes.until_seen(20)

    await queue.put({"n": "urgent"}, priority=1)
    before = len(notes.seen)
    await wait_until_async(lambda: "urgent" in notes.seen, "the urgent one ran")

    # A worker looks at the stream four times a second while it has enough to do: 15 jobs.
    assert notes.seen.index("urgent") - before <= 28


async def test_jobs_that_another_program_inserted_without_a_priority_are_run(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes(0.02)
    await table.open()
    await table.seats(2, notes, concurrency=1)

    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": "lone"}})
    await notes.until_seen(1)
    await queue.put_many([{"n": n} for n in range(100)], priority=-1)
    jobs.insert_one({"queue": "default", "state": "ready", "payload": {"n": "among many"}})

    await wait_until_async(lambda: "among many" in notes.seen, "it ran", 5)
    assert len(notes.seen) < 95  # an absent priority sorts behind all numbers until it has one


async def test_delayed_jobs_are_promoted_on_time_by_the_dealer(
    table: Table, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    await table.open()
    workers = await table.seats(3, notes)
    began = time.monotonic()

    await queue.put_many([{"n": n} for n in range(10)], delay=0.5)
    await notes.until_seen(10)

    assert 0.45 < time.monotonic() - began < 1.2
    promotions = [s for w in workers for s in w.commands.named("update") if "scheduled" in str(s)]
    assert promotions == []


async def test_delayed_jobs_from_before_the_dealer_are_promoted_on_time(
    table: Table, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    began = time.monotonic()
    await queue.put({"n": 1}, delay=1)
    await table.open()
    await table.seat(notes)

    await notes.until_seen(1)

    assert 0.95 < time.monotonic() - began < 1.5


async def test_a_promotion_is_the_only_write_of_the_dealer(
    table: Table, queue: AsyncMongoQueue
) -> None:
    notes = Notes()
    dealer = await table.open()
    await table.seats(2, notes)
    await table.until_idle()
    dealer.commands.forget()

    await queue.put({"n": 1}, delay=0.3)
    await notes.until_seen(1)
    await table.until_idle()

    assert len(dealer.commands.named("update")) == 1


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_delayed_job_is_promoted_whoever_has_gone_meanwhile(
    table: Table, queue: AsyncMongoQueue, leaves: bool
) -> None:
    notes = Notes()
    dealer = await table.open()
    first, second = await table.seats(2, notes)
    await queue.put({"n": 1}, delay=0.5)

    if leaves:
        await first.stop()
    else:
        await dealer.stop()

    await notes.until_seen(1)
    await wait_until_async(lambda: completed(first, second) == 1, "it is completed")


async def test_a_job_that_fails_is_tried_again_on_time(
    table: Table, queue: AsyncMongoQueue
) -> None:
    tries: list[float] = []

    async def fails_once(job: AsyncJob) -> None:
        tries.append(time.monotonic())
        if len(tries) < 2:
            raise ValueError("once")

    await table.open()
    await table.seats(2, fails_once, backoff=Backoff(initial=0.3, jitter=0))

    await queue.put({})
    await wait_until_async(lambda: len(tries) == 2, "it is tried again", SOON)

    assert 0.25 < tries[1] - tries[0] < 0.8


async def test_the_jobs_of_a_worker_that_vanished_are_run_when_their_leases_end(
    table: Table, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    await table.open()
    await table.seats(2, notes, reap_interval=60)
    puppet = table.puppet(free=0, consumer="vanishing")
    ends = datetime.now(UTC) + timedelta(seconds=1)
    held = {"state": "running", "locked_by": "vanishing", "lease": b"a", "attempts": 1}
    jobs.insert_one({"queue": "default", "payload": {"n": 1}, "locked_until": ends, **held})

    puppet.close()

    await notes.until_seen(1, within=2.5)


async def test_leases_are_watched_by_workers_that_are_dealt_nothing(
    table: Table, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them holds a job; were it to vanish, another must know that there is a lease."""
    monkeypatch.setattr(hands, "SILENT_AFTER", 60)
    await table.open()
    workers = await table.seats(2, Notes(30), concurrency=1, reap_interval=0.1, drain_timeout=0)
    for worker in workers:
        worker.commands.forget()

    await queue.put({"n": 1})

    def looked(worker: StartedWorker) -> bool:
        return any("locked_until" in str(sent.command) for sent in worker.commands.named("find"))

    await wait_until_async(lambda: all(map(looked, workers)), "both have looked", 3)
