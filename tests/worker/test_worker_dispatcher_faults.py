"""What breaks among a dispatcher and its members, and no job is lost or left.

Laws: the document is the truth; the race is shaped.
"""

from __future__ import annotations

from typing import Any, get_args

import anyio
import pytest
from pymongo import MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncMongoQueue
from streamqueue.processes import subscriber as subscribers
from streamqueue.store import refused
from streamqueue.stream.verdict import Reason
from tests.waiting import wait_until_async
from tests.worker.faults import failing
from tests.worker.members import Members, Notes, streams, until_done
from tests.worker.started import STREAM_APP, StartedWorker
from tests.worker.test_worker_poison import ODD_DOCUMENTS, READY, SHORT_UUID, UNREADABLE
from tests.worker.test_worker_stuck import STUCK, insert_stuck

RESTARTS = "streamqueue_stream_restarts_total"
CONNECTED = "streamqueue_stream_connected"
REASONS = get_args(Reason)


def connected(*workers: StartedWorker) -> list[float]:
    return [worker.metric(CONNECTED) for worker in workers]


# the dispatcher


async def test_workers_whose_dispatcher_ends_listen_for_themselves_and_miss_nothing(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    workers = await members.start_many(3, notes, max_await=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dispatcher.stop)
        for n in range(30):
            await queue.put({"n": n})
    await until_done(jobs)

    assert sorted(notes.seen) == list(range(30))
    await wait_until_async(lambda: connected(*workers) == [1, 1, 1], "they listen")
    await wait_until_async(lambda: streams(client, jobs) == 3, "each has a stream")


async def test_workers_join_a_new_dispatcher_and_close_their_own_streams(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], client: MongoClient[Any]
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    workers = await members.start_many(3, notes, max_await=0.2)
    await dispatcher.stop()
    await wait_until_async(lambda: streams(client, jobs) == 3, "they listen")

    await members.open(max_await=0.2)
    for worker in workers:
        members.connect(worker)
    for n in range(30):
        await queue.put({"n": n})
    await until_done(jobs)

    assert sorted(notes.seen) == list(range(30))
    await wait_until_async(lambda: streams(client, jobs) == 1, "only the dispatcher listens")
    await wait_until_async(lambda: connected(*workers) == [1, 1, 1], "all say so")
    for worker in workers:
        assert worker.worker.health.reasons() == {}


@pytest.mark.slow
async def test_dispatchers_that_come_and_go_while_jobs_flow_cost_none(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any]
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    workers = await members.start_many(2, notes, concurrency=2)
    put = 0
    for _ in range(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(dispatcher.stop)
            for _ in range(20):
                await queue.put({"n": put})
                put += 1
        dispatcher = await members.open()
        for worker in workers:
            members.connect(worker)
        await queue.put_many([{"n": put + n} for n in range(20)])
        put += 20
        await until_done(jobs)

    assert sorted(notes.seen) == list(range(put))


async def test_a_worker_whose_dispatcher_falls_silent_listens_for_itself(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 0.3)
    notes = Notes()
    worker = members.prepare(notes)
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})
    await members.begin(worker)

    await queue.put({"n": 1})

    await notes.until_seen(1)
    await dispatcher.until_heard("consumer")


async def test_a_dispatcher_that_was_silent_is_listened_to_again(
    members: Members,
    jobs: Collection[Any],
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 0.3)
    worker = members.prepare(Notes())
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})
    await members.begin(worker)
    await wait_until_async(lambda: streams(client, jobs) == 1, "it opens a stream")

    async with anyio.create_task_group() as tasks:

        async def tick() -> None:
            while True:
                dispatcher.say({"tick": 1})
                await anyio.sleep(0.05)

        tasks.start_soon(tick)
        await wait_until_async(lambda: streams(client, jobs) == 0, "its stream is closed")
        await wait_until_async(lambda: connected(worker) == [1], "it is connected")
        tasks.cancel_scope.cancel()


async def test_a_stream_that_breaks_when_a_dispatcher_is_back_says_nothing_of_the_dispatchers(
    members: Members,
    jobs: Collection[Any],
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 60)
    worker = members.prepare(Notes(), max_await=0.1)
    await members.begin(worker)
    dispatcher = members.puppet_dispatcher(worker)
    breaks = {"errorCode": 280, "blockConnection": True, "blockTimeMS": 500}

    with failing(client, "getMore", app=STREAM_APP, times=1, **breaks) as fault:
        await wait_until_async(lambda: fault.hits() > 0, "its read is about to fail")
        dispatcher.say({"opened": True})
        await wait_until_async(
            lambda: any(worker.metric(RESTARTS, reason=r) for r in REASONS), "its stream breaks"
        )

    await wait_until_async(lambda: streams(client, jobs) == 0, "its stream is closed")
    await wait_until_async(lambda: connected(worker) == [1], "it is connected")
    assert worker.worker.health.reasons() == {}


async def test_a_worker_that_a_dispatcher_starts_needs_no_stream_of_its_own(
    members: Members, client: MongoClient[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 60)
    worker = members.prepare(Notes())
    refused = {"errorCode": 13, "blockConnection": True, "blockTimeMS": 500}

    async with anyio.create_task_group() as tasks:
        with failing(client, "aggregate", app=STREAM_APP, times=1, **refused) as fault:
            tasks.start_soon(members.begin, worker)
            await wait_until_async(lambda: fault.hits() > 0, "its stream is about to be refused")
            dispatcher = members.puppet_dispatcher(worker)
            dispatcher.say({"opened": True})
            await dispatcher.until_heard("ask")
            dispatcher.say({"jobs": [], "more": False})
            await dispatcher.until_heard("idle")
            await anyio.sleep(1)  # longer than the refusal takes

    assert not worker.ended.is_set()
    assert connected(worker) == [1]


async def test_a_worker_that_waits_for_an_answer_stops_at_once(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "ANSWER_WITHIN", 60)
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 60)
    worker = members.prepare(Notes())
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})
    await members.begin(worker)
    await dispatcher.until_heard("ask")

    await worker.stop(within=5)

    assert connected(worker) == [0]


async def test_a_dispatcher_that_takes_long_to_answer_holds_up_no_job(
    members: Members, queue: AsyncMongoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "ANSWER_WITHIN", 0.2)
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 60)
    notes = Notes()
    await queue.put({"n": 1})
    worker = members.prepare(notes)
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})

    await members.begin(worker)

    await notes.until_seen(1)
    await dispatcher.until_heard("ask")


async def test_a_dispatcher_that_cannot_read_what_waits_holds_up_no_job(
    members: Members,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribers, "ANSWER_WITHIN", 0.3)
    notes = Notes()
    dispatcher = await members.open()
    with failing(client, "find", app=dispatcher.app, errorCode=11600):
        await queue.put_many([{"n": n} for n in range(30)])
        await members.start(notes)
        await notes.until_seen(30)


async def test_jobs_that_could_not_be_read_for_a_worker_that_left_are_read_for_another(
    members: Members, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    await queue.put({"n": 1})  # before there is a stream to say so
    dispatcher = await members.open()
    leaving = members.puppet(free=0, consumer="leaving")
    other = members.puppet(free=0, consumer="other")
    await leaving.until_heard("opened")
    await other.until_heard("opened")
    fails = {"errorCode": 50, "blockConnection": True, "blockTimeMS": 500}

    with failing(client, "find", app=dispatcher.app, times=4, **fails) as fault:
        leaving.say({"ask": 1, "done": 0, "refused": []})
        await wait_until_async(lambda: fault.hits() > 0, "the read is about to fail")
        leaving.leave(True)
        other.say({"idle": 1, "done": 0, "more": False, "refused": []})
        await other.until_heard("fetch")


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0" * 16, id="no frame"),
        pytest.param(b"\xff\xff\xff\x7f" + b"x" * 16, id="a length beyond all bounds"),
        pytest.param(b"\x05\0\0\0\0", id="an empty frame"),
        pytest.param(b"\x09\0\0\0\x99\xff\xff\xff\xff", id="a frame that is no document"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
async def test_a_dispatcher_outlives_what_it_does_not_understand(
    members: Members, queue: AsyncMongoQueue, data: bytes, joined: bool
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    await members.start_many(1, notes)
    puppet = members.puppet(free=0) if joined else members.stranger()

    puppet.say_bytes(data)
    await queue.put({"n": 1})

    await notes.until_seen(1)
    assert not dispatcher.ended.is_set()


@pytest.mark.parametrize(
    "frame",
    [
        {"ask": 3},
        {"ask": "many", "done": 0, "refused": []},
        {"idle": None, "done": [], "more": 1, "refused": []},
    ],
)
async def test_a_dispatcher_outlives_a_worker_of_another_version(
    members: Members, queue: AsyncMongoQueue, frame: dict[str, Any]
) -> None:
    notes = Notes()
    dispatcher = await members.open()
    await members.start_many(1, notes)
    puppet = members.puppet(free=1)

    puppet.say(frame)
    for n in range(4):
        await queue.put({"n": n})

    await notes.until_seen(4)
    assert not dispatcher.ended.is_set()


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "frame",
    [
        {"jobs": []},
        {"tick": 1},
        {"tick": "t"},
        {"fetch": 1},
        {"news": 1},
        {"event": {"_id": 1}},
    ],
)
async def test_a_worker_outlives_a_dispatcher_of_another_version(
    members: Members, queue: AsyncMongoQueue, frame: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 0.5)
    notes = Notes()
    worker = members.prepare(notes)
    dispatcher = members.puppet_dispatcher(worker)
    dispatcher.say({"opened": True})
    await members.begin(worker)

    dispatcher.say(frame)
    await queue.put({"n": 1})

    await notes.until_seen(1, within=3)


# the dispatcher's stream


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        ("not_resumable", {"errorCode": 280}),
        ("history_lost", {"errorCode": 286, "errorLabels": ["NonResumableChangeStreamError"]}),
        ("history_lost", {"errorCode": 136}),
        ("network", {"closeConnection": True}),
        ("unknown", {"errorCode": 8000}),
    ],
)
async def test_the_workers_say_that_their_dispatchers_stream_is_broken_and_miss_nothing(
    members: Members,
    queue: AsyncMongoQueue,
    client: MongoClient[Any],
    reason: str,
    fault: dict[str, Any],
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(2, notes)

    async with anyio.create_task_group() as tasks:
        with failing(client, "getMore", "aggregate", app=STREAM_APP, **fault):
            await wait_until_async(
                lambda: all(w.metric(RESTARTS, reason=reason) for w in workers), "all know of it"
            )
            assert connected(*workers) == [0, 0]
            assert all("stream" in worker.worker.health.reasons() for worker in workers)
            late = members.prepare(notes)
            members.connect(late)
            tasks.start_soon(members.begin, late)
            await queue.put_many([{"n": n} for n in range(10)])

    await notes.until_seen(10, within=10)
    workers.append(late)
    await wait_until_async(lambda: connected(*workers) == [1, 1, 1], "all know that it is open")
    assert [worker.worker.health.reasons() for worker in workers] == [{}, {}, {}]


async def test_while_the_stream_is_quiet_all_workers_know_that_it_lives(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "SILENT_AFTER", 60)
    await members.open(max_await=0.1)
    workers = await members.start_many(2, Notes())
    heard = [worker.metric("streamqueue_stream_last_event_timestamp_seconds") for worker in workers]

    await wait_until_async(
        lambda: all(
            worker.metric("streamqueue_stream_last_event_timestamp_seconds") > before
            for worker, before in zip(workers, heard, strict=True)
        ),
        "each has heard of it",
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("how", ["drop", "rename", "drop the database"])
async def test_a_table_outlives_its_collection(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], how: str
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(2, notes)
    await queue.put({"n": 1})
    await until_done(jobs)
    indexes = set(jobs.index_information())

    if how == "drop":
        jobs.drop()
    elif how == "rename":
        jobs.rename("elsewhere")
    else:
        jobs.database.client.drop_database(jobs.database.name)
    await queue.put({"n": 2})

    await notes.until_seen(2)
    assert [worker.metric(RESTARTS, reason="invalidate") >= 1 for worker in workers] == [True] * 2
    await wait_until_async(lambda: set(jobs.index_information()) == indexes, "indexes as before")


async def test_a_cut_that_the_driver_mends_loses_no_event(
    members: Members, queue: AsyncMongoQueue, client: MongoClient[Any]
) -> None:
    notes = Notes()
    await members.open()
    workers = await members.start_many(2, notes)

    for n in range(5):
        with failing(client, "getMore", app=STREAM_APP, times=1, closeConnection=True) as cut:
            await wait_until_async(cut.hits, "it broke")
            await queue.put({"n": n})
        await notes.until_seen(n + 1)

    assert [worker.metric(RESTARTS) for worker in workers] == [0, 0]


# documents


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", STUCK)
async def test_a_job_that_cannot_be_changed_stops_no_other_and_keeps_nobody_busy(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], kind: str
) -> None:
    notes = Notes()
    insert_stuck(jobs, kind, 3)
    dispatcher = await members.open()
    workers = [await members.start(notes, concurrency=2) for _ in range(2)]

    for n in range(5):
        await queue.put({"n": n})
        await notes.until_seen(n + 1)
    await queue.put_many([{"n": n} for n in range(5, 60)])
    await notes.until_seen(60, within=10)

    await members.until_idle(0.9)  # some time between two tries
    everybody: list[Any] = [dispatcher, *workers]
    sent = [sent.name for one in everybody for sent in one.commands.besides("getMore")]
    assert len(sent) < 600
    assert -1 not in notes.seen


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", STUCK)
async def test_a_job_that_could_not_be_changed_is_run_soon_after_it_can_be(
    members: Members, jobs: Collection[Any], kind: str
) -> None:
    notes = Notes()
    insert_stuck(jobs, kind)
    await members.open()
    workers = [await members.start(notes) for _ in range(2)]
    await members.until_idle(0.3)

    jobs.database.command("collMod", jobs.name, validator={})

    await notes.until_seen(1, within=6)
    assert sum(worker.metric("streamqueue_missed_wakeups_total") for worker in workers) == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("count", [1, 100])
async def test_stuck_jobs_hide_no_others_behind_them(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], count: int
) -> None:
    notes = Notes()
    await queue.put_many([{"n": n} for n in range(20)])
    insert_stuck(jobs, "ready", count)
    await members.open()

    for _ in range(2):
        await members.start(notes, concurrency=2)

    await notes.until_seen(20, within=60)


async def test_more_stuck_jobs_than_can_be_remembered_keep_no_table_busy(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refused, "MOST_STUCK", 3)
    notes = Notes()
    insert_stuck(jobs, "ready", 10)
    await members.open()
    for _ in range(2):
        await members.start(notes, concurrency=2)

    await members.until_idle(0.3)
    await queue.put({"n": 1})
    await notes.until_seen(1, within=5)
    await members.until_idle(0.3)


@pytest.mark.few(13)
@pytest.mark.parametrize("name", ODD_DOCUMENTS)
@pytest.mark.parametrize("before", [True, False])
async def test_an_odd_document_stops_no_other(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], name: str, before: bool
) -> None:
    notes = Notes()
    if before:
        jobs.insert_one(dict(ODD_DOCUMENTS[name]))
    dispatcher = await members.open()
    await members.start_many(2, notes)
    if not before:
        jobs.insert_one(dict(ODD_DOCUMENTS[name]))

    for n in range(4):
        await queue.put({"n": n})
        await wait_until_async(lambda n=n: n in notes.seen, "the good one ran", 2)

    assert not dispatcher.ended.is_set()


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [*UNREADABLE, "the payload of a ready job"])
@pytest.mark.parametrize("before", [True, False])
async def test_a_document_that_cannot_be_decoded_stops_no_other(
    members: Members, queue: AsyncMongoQueue, jobs: Collection[Any], name: str, before: bool
) -> None:
    notes = Notes()
    payload = {"payload": {"bad": SHORT_UUID}}
    document = dict(UNREADABLE.get(name, READY | payload))
    if before:
        jobs.insert_one(document)
    dispatcher = await members.open()
    await members.start_many(2, notes)
    if not before:
        jobs.insert_one(document)

    for n in range(4):
        await queue.put({"n": n})
        await wait_until_async(lambda n=n: n in notes.seen, "the good one ran", 1)
    await queue.put_many([{"n": n} for n in range(4, 40)])
    await wait_until_async(lambda: {*range(40)} <= {*notes.seen}, "all good ones ran", 2)

    assert not dispatcher.ended.is_set()
    await members.until_idle(0.3)
