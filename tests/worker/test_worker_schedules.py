"""Schedules that workers fire: one job a tick, whatever stops, changes, fails or comes late.

Laws: a limit is a limit; nobody polls; server time; poison is contained.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import anyio
import pytest
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from pymongo import MongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.synchronous.collection import Collection

from streamqueue import AsyncJob, AsyncMongoQueue, AsyncSchedules, ConfigurationError, Worker
from streamqueue.clock import ServerClock
from streamqueue.protocol import ticks as protocol_ticks
from streamqueue.protocol.settings import BELL
from streamqueue.protocol.unique import OnConflict
from streamqueue.worker.schedules import schedules as firing_schedules
from tests.contract.looks import server_time
from tests.contract.test_schedules import declared_in_code, put_back, stored
from tests.waiting import wait_until_async
from tests.worker.faults import CONNECTION_CUT, REPLICATION_TIMED_OUT, failing
from tests.worker.processes import PROGRAM, WorkerProcess
from tests.worker.started import StartedWorker, WorkerStarter

DAY = 86400
SOON = 1.5
"""Seconds until a tick that a test gets ready for."""


class Ticks:
    """A handler that notes for which ticks it ran."""

    def __init__(self) -> None:
        self.at: list[datetime] = []
        self.began: list[datetime] = []

    async def __call__(self, job: AsyncJob) -> None:
        assert job.run_at is not None
        self.at.append(job.run_at)
        self.began.append(datetime.now(UTC))

    async def until(self, count: int, within: float = 10.0) -> None:
        await wait_until_async(lambda: len(self.at) >= count, f"{count} ticks", within)


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture(autouse=True)
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between two ticks is long for a test."""
    monkeypatch.setattr(protocol_ticks, "SHORTEST", 0.1)


@pytest.fixture
async def schedules(async_jobs: AsyncCollection[dict[str, Any]]) -> AsyncSchedules:
    return AsyncSchedules(async_jobs)


def offset_in(jobs: Collection[Any], seconds: float, every: int = DAY) -> float:
    """The offset with which the next tick of a long period comes in so many seconds."""
    due = server_time(jobs) + timedelta(seconds=seconds)
    return round(due.timestamp() % every, 3)


def results(*workers: StartedWorker) -> dict[str, int]:
    """What they have counted of ticks."""
    counted = {
        result: sum(
            worker.metric("streamqueue_schedule_ticks_total", result=result) for worker in workers
        )
        for result in ("fired", "skipped", "dropped", "error")
    }
    return {result: int(count) for result, count in counted.items() if count}


# one job a tick


async def test_a_worker_that_was_told_to_stop_fires_no_more(
    start: WorkerStarter, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def waits(job: AsyncJob) -> None:
        begun.set()
        await go_on.wait()

    worker = start.prepare(waits, sweep_interval=None)
    worker.worker.schedule(every=0.25)(waits)
    await start.begin(worker)
    await begun.wait()

    worker.worker.stop()

    await worker.until_idle(1)
    assert not worker.ended.is_set()
    go_on.set()
    await worker.until_ended()


async def test_each_tick_is_one_job_whatever_number_of_workers_declare_it(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any]
) -> None:
    workers = [start.prepare(ticks) for _ in range(3)]
    for worker in workers:
        worker.worker.schedule(every=0.25)(ticks)
        await start.begin(worker)

    await ticks.until(6)

    gaps = {other - one for one, other in pairwise(sorted(ticks.at))}
    assert gaps == {timedelta(seconds=0.25)}
    assert {tick.microsecond % 250_000 for tick in ticks.at} == {0}
    assert set(results(*workers)) == {"fired"}


async def test_a_tick_is_put_by_one_transaction_and_the_others_only_look(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing_schedules, "TURN", timedelta(seconds=0.3))
    workers = [start.prepare(ticks, sweep_interval=None) for _ in range(3)]
    for worker in workers:
        worker.worker.schedule(every=2)(ticks)
        await start.begin(worker)
    await ticks.until(1)  # those who were there first learn that they are not alone
    await anyio.sleep(0.5)
    for worker in workers:
        worker.commands.forget()

    await ticks.until(2)
    await anyio.sleep(1)

    commits = [len(worker.commands.named("commitTransaction")) for worker in workers]
    aborts = [len(worker.commands.named("abortTransaction")) for worker in workers]
    assert (sum(commits), sum(aborts), len(ticks.at)) == (1, 0, 2)


async def test_the_job_of_a_tick_says_what_it_is(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any]
) -> None:
    worker = start.prepare(ticks)
    worker.worker.schedule(
        every=0.25, name="often", payload={"$a": 1}, priority=4, keep=60, max_attempts=7
    )(ticks)
    await start.begin(worker)

    await ticks.until(1)

    job = await wait_until_async(lambda: jobs.find_one({"state": "done"}), "it is done")
    assert (job["schedule"], job["tick"], job["run_at"]) == ("often", ticks.at[0], ticks.at[0])
    assert (job["payload"], job["priority"], job["max_attempts"]) == ({"$a": 1}, 4, 7)


async def test_a_schedule_in_code_may_have_a_payload_as_a_put_has(
    start: WorkerStarter, jobs: Collection[Any]
) -> None:
    seen: list[Any] = []

    async def handler(job: AsyncJob) -> None:
        seen.append(job.data)

    worker = start.prepare(handler)
    worker.worker.schedule(every=0.25, payload={"of": UUID(int=5)})(handler)

    await start.begin(worker)

    await wait_until_async(lambda: seen, "its job is run")
    assert seen[0] == {"of": UUID(int=5)}


async def test_a_stored_schedule_is_fired_by_a_worker_that_does_not_serve_its_queue(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    worker = await start(ticks)
    await schedules.add("s", every=0.25, queue="of_others")

    await wait_until_async(lambda: jobs.count_documents({"queue": "of_others"}), "its job is there")

    await wait_until_async(lambda: results(worker).get("fired"), "and counted")
    assert ticks.at == []


async def test_a_schedule_stands_above_or_below_the_handler(
    async_jobs: AsyncCollection[Any],
) -> None:
    worker = Worker(async_jobs)

    @worker.schedule(every=1)
    @worker.handler("above")
    async def one(job: AsyncJob) -> None: ...

    @worker.handler("below")
    @worker.schedule(every=1, name="second")
    @worker.schedule(every=2)
    async def two(job: AsyncJob) -> None: ...

    declared = worker._settings.declared_schedules()
    assert [(one.name, one.queue) for one in declared] == [
        *(("above", "above"), ("below", "below"), ("second", "below")),
    ]


async def test_the_handler_that_a_schedule_stands_above_may_be_a_method(
    async_jobs: AsyncCollection[Any], ticks: Ticks
) -> None:
    worker = Worker(async_jobs)
    worker.handler("a")(ticks.__call__)
    worker.handler("b")(Ticks().__call__)

    worker.schedule(every=1)(ticks.__call__)

    assert [one.queue for one in worker._settings.declared_schedules()] == ["a"]


@pytest.mark.parametrize(
    ("names", "queues", "reason"),
    [
        ([None], [], "which is no handler"),
        ([None], ["a", "b"], "the handler of a and b"),
        ([None, None], ["a"], "two schedules are called a"),
        (["x", "x"], ["a"], "two schedules are called x"),
    ],
)
async def test_a_schedule_that_does_not_say_whose_it_is_is_refused_at_the_start(
    async_jobs: AsyncCollection[Any], names: list[Any], queues: list[str], reason: str
) -> None:
    worker = Worker(async_jobs)

    async def handler(job: AsyncJob) -> None: ...

    async def other(job: AsyncJob) -> None: ...

    worker.handler("other")(other)
    for name in names:
        worker.schedule(every=1, name=name)(handler)
    for queue in queues:
        worker.handler(queue)(handler)

    with pytest.raises(ConfigurationError, match=reason):
        await worker.run(handle_signals=False)


async def test_what_is_no_rule_is_refused_where_it_is_declared(
    async_jobs: AsyncCollection[Any],
) -> None:
    worker = Worker(async_jobs)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"cron": "0 0 31 2 *"}, "never fires"),
        ({"every": 1, "delay": 5}, "takes no delay="),
        ({"every": 1, "name": "a b"}, "name of a schedule"),
    )

    for settings, reason in wrong:
        with pytest.raises(ConfigurationError, match=reason):
            worker.schedule(**settings)


# late, frozen, early


async def test_a_process_frozen_between_reading_and_writing_puts_no_second_job(
    start: WorkerStarter,
    ticks: Ticks,
    jobs: Collection[Any],
    schedules: AsyncSchedules,
    spawn: Callable[..., WorkerProcess],
) -> None:
    frozen = spawn(program=PROGRAM.with_name("scheduler.py"))
    await schedules.add("s", every=DAY, offset=offset_in(jobs, SOON))
    await anyio.to_thread.run_sync(frozen.until_said, "read")
    await start(ticks)  # only now, so that the other one is the first to read
    await ticks.until(1)
    await wait_until_async(lambda: not jobs.count_documents({"state": {"$exists": True}}), "gone")

    frozen.send(signal.SIGCONT)
    await anyio.to_thread.run_sync(frozen.until_said, "written")
    await anyio.sleep(0.3)

    assert len(ticks.at) == 1
    assert frozen.said("ran") == []


async def test_no_tick_is_put_before_it_is_due_by_the_servers_clock(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = ServerClock.now
    monkeypatch.setattr(ServerClock, "now", lambda clock: now(clock) + timedelta(seconds=1))
    worker = start.prepare(ticks)
    offset = offset_in(jobs, 2)
    worker.worker.schedule(every=DAY, offset=offset, keep=60)(ticks)
    await start.begin(worker)

    await ticks.until(1)

    [job] = await wait_until_async(lambda: list(jobs.find({"schedule": "default"})), "it is there")
    assert job["seq"].as_datetime() >= ticks.at[0].replace(microsecond=0)
    assert ticks.began[0] >= ticks.at[0]
    assert len(worker.commands.named("find")) < 30


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("catch_up", "put", "counted"),
    [
        ("none", 0, {"dropped": 6}),
        ("one", 1, {"fired": 1, "skipped": 5}),
        ("all", 6, {"fired": 6}),
    ],
)
async def test_after_an_outage_of_an_hour(
    start: WorkerStarter,
    ticks: Ticks,
    schedules: AsyncSchedules,
    jobs: Collection[Any],
    catch_up: Any,
    put: int,
    counted: dict[str, int],
) -> None:
    offset = offset_in(jobs, 300, every=600)  # the last one was five minutes ago
    await schedules.add("s", every=600, offset=offset, catch_up=catch_up)
    put_back(jobs, "s", timedelta(hours=1))

    worker = await start(ticks)

    await wait_until_async(lambda: results(worker) == counted, "all of them were counted")
    await ticks.until(put)
    assert ticks.at == sorted(ticks.at)
    assert len(ticks.at) == put
    last_tick = stored(jobs, "s")["last_tick"]
    assert timedelta(seconds=290) < server_time(jobs) - last_tick < timedelta(seconds=320)


async def test_a_new_schedule_catches_up_nothing_and_restarts_keep_its_grid(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any]
) -> None:
    first: Any = None
    for _ in range(20):
        worker = start.prepare(ticks, drain_timeout=0)
        worker.worker.schedule(every=0.5)(ticks)
        await start.begin(worker)
        await wait_until_async(
            lambda: jobs.database[f"{jobs.name}.settings"].count_documents({}), "declared"
        )
        first = first or stored(jobs, "default")["last_tick"]
        await worker.stop()

    last = stored(jobs, "default")["last_tick"]

    assert all(tick.timestamp() % 0.5 == 0 for tick in ticks.at)
    assert last == first or last.timestamp() % 0.5 == 0
    assert len(set(ticks.at)) == len(ticks.at)
    # (What was read first is the time of the declaration, or the first tick, if that has come by.)
    assert all(tick >= first for tick in ticks.at)


# changed, paused, removed


async def test_what_is_changed_paused_or_removed_a_moment_before_its_tick_does_not_fire(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    offset = offset_in(jobs, SOON)
    for name in ("changed", "paused", "removed", "left"):
        await schedules.add(name, every=DAY, offset=offset, payload={"name": name})
    await start(ticks)

    await schedules.add("changed", every=DAY, offset=offset_in(jobs, DAY / 2))
    await schedules.pause("paused")
    await schedules.remove("removed")
    await ticks.until(1)
    await anyio.sleep(0.3)

    assert len(ticks.at) == 1


async def test_what_a_running_worker_declares_is_not_removed_though_another_one_declared_it_last(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    workers = [start.prepare(ticks) for _ in range(2)]
    for worker in workers:
        worker.worker.schedule(every=DAY, name="nightly")(ticks)
        await start.begin(worker)
        consumer = worker.worker._settings.options.consumer_id
        await wait_until_async(
            lambda by=consumer: jobs.database[f"{jobs.name}.settings"].find_one(
                {"_id": "schedule:nightly", "declared_by": by}
            ),
            "it is declared",
        )
    await workers[1].stop()

    with pytest.raises(ConfigurationError, match="which runs"):
        await schedules.remove("nightly")

    await workers[0].stop()
    await schedules.remove("nightly")


async def test_a_change_takes_effect_at_once_in_workers_that_run(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=DAY)
    await start(ticks, sweep_interval=None)

    await schedules.add("s", every=0.25)
    await ticks.until(1, within=5)
    await schedules.pause("s")
    paused_at = server_time(jobs)
    await anyio.sleep(0.7)

    assert all(tick <= paused_at for tick in ticks.at)
    await schedules.resume("s")
    count = len(ticks.at)
    await ticks.until(count + 1, within=5)
    assert ticks.at[count] > paused_at + timedelta(seconds=0.5)


async def test_of_two_versions_of_the_code_one_rule_fires(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    old = start.prepare(ticks)
    old.worker.schedule(every=0.5)(ticks)
    await start.begin(old)
    await ticks.until(1)

    new = start.prepare(ticks)
    new.worker.schedule(every=0.5, offset=0.2)(ticks)
    await start.begin(new)
    await wait_until_async(lambda: stored(jobs, "default")["rule"]["offset"], "the new one holds")
    changed_at = stored(jobs, "default")["declared_at"]
    await wait_until_async(lambda: sum(tick > changed_at for tick in ticks.at) >= 2, "it fires")

    assert {tick.microsecond for tick in ticks.at if tick > changed_at} == {200_000, 700_000}
    assert "another version of the code has declared another rule" in caplog.text


async def test_a_schedule_that_is_declared_no_more_fires_no_more_and_a_stored_one_is_left_alone(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    declared_in_code(jobs, "gone", by="host:1:a")
    put_back(jobs, "gone", timedelta(hours=1))
    await schedules.add("stored", every=0.5)

    worker = start.prepare(ticks)
    worker.worker.schedule(every=0.3, name="stored")(ticks)  # it is there already
    await start.begin(worker)
    await ticks.until(2)

    assert stored(jobs, "gone").get("last_job") is None
    assert stored(jobs, "stored")["source"] == "stored"
    assert {tick.microsecond % 500_000 for tick in ticks.at} == {0}


# keys


@pytest.mark.parametrize("on_conflict", ["raise", "skip"])
async def test_with_a_key_that_is_taken_a_tick_is_skipped_and_counted(
    start: WorkerStarter, jobs: Collection[Any], on_conflict: OnConflict
) -> None:
    running, most = 0, 0
    gate = anyio.Event()

    async def handler(job: AsyncJob) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    worker = start.prepare(handler)
    worker.worker.schedule(every=0.25, key="report", on_conflict=on_conflict)(handler)
    await start.begin(worker)

    await wait_until_async(lambda: results(worker).get("skipped", 0) >= 2, "ticks were skipped")
    last_job = stored(jobs, "default")["last_job"]
    there = jobs.find_one({"schedule": "default"}, {"_id": 1})
    gate.set()
    await wait_until_async(lambda: results(worker)["fired"] == 2, "it goes on")

    assert most == 1
    assert there == {"_id": last_job}


async def test_with_replace_the_job_that_waits_becomes_that_of_the_newest_tick(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    worker = await start(ticks)
    await schedules.add("s", every=0.25, queue="unserved", key="k", on_conflict="replace")

    await wait_until_async(lambda: results(worker).get("fired", 0) >= 3, "it was replaced")
    await schedules.pause("s")

    [job] = jobs.find({"schedule": "s"})
    assert (job["tick"], job["run_at"]) == (stored(jobs, "s")["last_tick"],) * 2
    assert stored(jobs, "s")["last_job"] == job["_id"]
    assert results(worker).get("skipped") is None


# trouble


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("commitTransaction", CONNECTION_CUT),
        ("commitTransaction", {"errorCode": 91}),
        ("commitTransaction", {"errorCode": 189, "closeConnection": False}),
        ("insert", {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}),
        ("findAndModify", {"errorCode": 251, "errorLabels": ["TransientTransactionError"]}),
        ("find", CONNECTION_CUT),
    ],
)
async def test_a_tick_whose_transaction_fails_is_put_all_the_same_and_once(
    start: WorkerStarter,
    ticks: Ticks,
    client: MongoClient[Any],
    jobs: Collection[Any],
    command: str,
    fault: dict[str, Any],
) -> None:
    worker = start.prepare(ticks, sweep_interval=None)
    worker.worker.schedule(every=DAY, offset=offset_in(jobs, SOON))(ticks)
    await start.begin(worker)
    await wait_until_async(
        lambda: jobs.database[f"{jobs.name}.settings"].count_documents({}), "declared"
    )
    await worker.until_idle()

    with failing(client, command, app=worker.app, times=2, **fault) as fault_set:
        await ticks.until(1)
        assert fault_set.hits() >= 1

    await anyio.sleep(0.3)
    assert len(ticks.at) == 1
    assert stored(jobs, "default")["last_tick"] == ticks.at[0]


async def test_what_was_stored_by_a_declaration_in_doubt_fires(
    start: WorkerStarter, ticks: Ticks, client: MongoClient[Any], jobs: Collection[Any]
) -> None:
    worker = start.prepare(ticks, sweep_interval=None)
    worker.worker.schedule(every=0.25)(ticks)
    settings = f"{jobs.database.name}.{jobs.name}.settings"

    with failing(
        client, "update", app=worker.app, times=1, namespace=settings, **REPLICATION_TIMED_OUT
    ) as fault:
        await start.begin(worker)
        await ticks.until(1)
        assert fault.hits() == 1


async def test_a_worker_fires_what_it_declares_though_the_bell_is_refused(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    if jobs.name not in jobs.database.list_collection_names():
        jobs.database.create_collection(jobs.name)
    jobs.database.command("collMod", jobs.name, validator={"_id": {"$ne": BELL}})
    worker = start.prepare(ticks, sweep_interval=None)
    worker.worker.schedule(every=0.25)(ticks)
    try:
        await start.begin(worker)
        await ticks.until(1)
    finally:
        jobs.database.command("collMod", jobs.name, validator={})

    assert "install the validator of this version" in caplog.text


async def test_a_hanging_write_delays_no_other_schedule(
    start: WorkerStarter, ticks: Ticks, client: MongoClient[Any], jobs: Collection[Any]
) -> None:
    worker = start.prepare(ticks, sweep_interval=None)
    offset = offset_in(jobs, SOON)
    for number in range(3):
        worker.worker.schedule(every=DAY, offset=offset, name=f"s{number}")(ticks)
    await start.begin(worker)
    await worker.until_idle()

    hangs = {"blockConnection": True, "blockTimeMS": 4000}
    with failing(client, "findAndModify", app=worker.app, times=1, **hangs):
        await ticks.until(2)
        assert max(server_time(jobs) - tick for tick in ticks.at) < timedelta(seconds=3)
        await ticks.until(3)

    assert len(ticks.at) == 3


async def test_schedules_that_anybody_damaged_stop_no_other(
    start: WorkerStarter, ticks: Ticks, schedules: AsyncSchedules, jobs: Collection[Any]
) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]
    await schedules.add("good", every=0.25)
    for number, (field, value) in enumerate(
        [
            *(("rule", {"cron": "x"}), ("rule", None), ("put", {"delay": 5}), ("put", {"x": 1})),
            *(("payload", {"priority": 10**12}), ("queue", "a b"), ("queue", None)),
            *(("last_tick", "never"), ("catch_up_limit", "x"), ("behind", [1]), ("digest", None)),
        ]
    ):
        await schedules.add(f"odd{number}", every=0.25)
        settings.update_one({"_id": f"schedule:odd{number}"}, {"$set": {field: value}})
    settings.insert_one({"_id": "schedule:not a name", "rule": {"every": 1}})
    settings.insert_one({"_id": "schedule:empty"})

    worker = await start(ticks)
    await wait_until_async(
        lambda: jobs.count_documents({"schedule": "good"}) or results(worker).get("fired", 0) > 6,
        "the good one fires",
    )
    await ticks.until(6)

    assert worker.error is None


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("digest", None), ("digest", ["x"]), ("digest", Code("x"))),
        *(("last_tick", None), ("last_tick", "never"), ("last_tick", DatetimeMS(9 * 10**15))),
        *(("last_tick", DatetimeMS(-(10**15))), ("catch_up_limit", 10**12), ("spread", -1)),
    ],
)
async def test_a_schedule_that_somebody_has_damaged_fires_as_if_that_were_not_there(
    start: WorkerStarter,
    ticks: Ticks,
    schedules: AsyncSchedules,
    jobs: Collection[Any],
    field: str,
    value: Any,
) -> None:
    added = server_time(jobs)
    await schedules.add("s", every=0.25)
    jobs.database[f"{jobs.name}.settings"].update_one(
        {"_id": "schedule:s"}, {"$set": {field: value}}
    )

    await start(ticks)
    await ticks.until(3)

    assert min(ticks.at) > added
    assert len(set(ticks.at)) == len(ticks.at)


async def test_an_idle_worker_with_a_thousand_schedules_sends_what_one_without_any_does(
    start: WorkerStarter, ticks: Ticks, jobs: Collection[Any]
) -> None:
    settings = jobs.database[f"{jobs.name}.settings"]
    now = server_time(jobs)
    settings.insert_many(
        {
            "_id": f"schedule:s{number}",
            "queue": "default",
            "rule": {"cron": f"{number % 60} 3 1 1 *", "timezone": "Europe/Berlin"},
            "source": "stored",
            "last_tick": now,
        }
        for number in range(1000)
    )
    worker = await start(ticks, max_await=1, sweep_interval=30)
    await worker.until_idle(1)
    worker.commands.forget()

    await anyio.sleep(2)

    looks = worker.commands.besides("getMore")
    assert [look.command.get("filter") for look in looks] == [{"state": "running"}] * len(looks)
    assert len(looks) <= 1


async def test_members_of_a_dispatcher_fire_and_each_tick_is_one_job(
    members: Any, schedules: AsyncSchedules, ticks: Ticks
) -> None:
    await members.open()
    await members.start(ticks)
    await members.start(ticks)

    await schedules.add("s", every=0.25)

    await ticks.until(3)
    assert len(set(ticks.at)) == len(ticks.at)


async def test_a_plain_job_costs_what_it_did(
    start: WorkerStarter, queue: AsyncMongoQueue, ticks: Ticks
) -> None:
    sent: list[str] = []

    async def handler(job: AsyncJob) -> None:
        sent.extend(command.name for command in worker.commands.besides("getMore"))

    worker = start.prepare(handler)
    worker.worker.schedule(every=DAY)(handler)
    await start.begin(worker)
    await worker.until_idle()
    worker.commands.forget()

    await queue.put({"n": 1})

    await worker.until_outcomes(completed=1)
    assert sent == ["findAndModify"]
