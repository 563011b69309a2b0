"""Schedules as programs add, list, change and run them; what fires them is in tests/worker.

Laws: the document is the truth; server time; a limit is a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from pymongo.synchronous.collection import Collection

from streamqueue import ConfigurationError, DuplicateJob, PayloadError, ScheduleNotFound
from streamqueue.protocol.operations import declare, take
from streamqueue.protocol.schedules import Step, StoredSchedule, check_schedule
from streamqueue.protocol.settings import BELL
from streamqueue.protocol.ticks import check_rule
from tests.contract.looks import document, server_time
from tests.contract.shells import Shell

HOUR = timedelta(hours=1)


@pytest.fixture
def jobs(jobs: Collection[Any]) -> Iterator[Collection[Any]]:
    """As everywhere, with no schedules left behind."""
    yield jobs
    jobs.database[f"{jobs.name}.settings"].delete_many({})
    jobs.database[f"{jobs.name}.consumers"].delete_many({})


@pytest.fixture
def schedules(shell: Shell) -> Any:
    return shell.schedules()


def stored(jobs: Collection[Any], name: str) -> dict[str, Any]:
    found = jobs.database[f"{jobs.name}.settings"].find_one({"_id": f"schedule:{name}"})
    assert found is not None, f"no schedule {name}"
    return found


def put_back(jobs: Collection[Any], name: str, by: timedelta) -> None:
    """Move the last tick back, as if nobody had run for so long."""
    back = {"$subtract": ["$last_tick", int(by.total_seconds() * 1000)]}
    jobs.database[f"{jobs.name}.settings"].update_one(
        {"_id": f"schedule:{name}"}, [{"$set": {"last_tick": back}}]
    )


def declared_in_code(jobs: Collection[Any], name: str, by: str) -> None:
    """Store what a worker does for a schedule in its code."""
    schedule = check_schedule(name, "default", check_rule(None, 3600), put={})
    jobs.database[f"{jobs.name}.settings"].update_one(
        *declare(schedule, "code", by, None), upsert=True
    )


def rings(jobs: Collection[Any]) -> Any:
    bell = jobs.find_one({"_id": BELL})
    return bell and bell["rung_at"]


async def test_a_schedule_is_listed_as_it_was_added(schedules: Any, jobs: Collection[Any]) -> None:
    now = server_time(jobs)

    await schedules.add(
        "report",
        cron="30 2 * * *",
        timezone="Europe/Berlin",
        queue="reports",
        payload={"$a": 1, "b.c": 2},
        catch_up="all",
        catch_up_limit=5,
        spread=timedelta(minutes=1),
        priority=3,
        key="report",
        keep=timedelta(hours=1),
    )

    [info] = await schedules.list()
    assert (info.name, info.queue, info.cron, info.every) == (
        *("report", "reports", "30 2 * * *"),
        None,
    )
    assert (info.timezone, info.spread, info.catch_up, info.catch_up_limit) == (
        *("Europe/Berlin", 60.0, "all", 5),
    )
    assert info.payload == {"$a": 1, "b.c": 2}
    assert info.put == {"priority": 3, "key": "report", "keep": 3600.0}
    assert (info.source, info.paused, info.last_job) == ("stored", False, None)
    assert info.declared_by
    assert abs(info.last_tick - now) < timedelta(seconds=10)
    assert len(info.next) == 3
    assert all(now < tick <= now + timedelta(days=4) for tick in info.next)
    assert list(info.next) == sorted(info.next)


async def test_schedules_are_listed_by_their_names_beside_paused_queues(
    shell: Shell, schedules: Any
) -> None:
    await shell.queue(name="emails").pause()
    for name in ("b", "a", "c"):
        await schedules.add(name, every=60)

    assert [info.name for info in await schedules.list()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, "when is it to fire"),
        ({"cron": "* * * * * *"}, "for seconds, use every="),
        ({"cron": "0 0 31 2 *"}, "never fires"),
        ({"cron": "@daily", "timezone": "Nowhere"}, "no time zone"),
        ({"every": 60, "delay": 5}, "takes no delay="),
        ({"every": 60, "queue": "a b"}, "queue"),
    ],
)
async def test_what_cannot_fire_is_refused_where_it_is_added(
    schedules: Any, settings: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigurationError, match=error):
        await schedules.add("s", **settings)
    assert await schedules.list() == []


async def test_a_payload_that_cannot_be_stored_is_refused_where_it_is_added(schedules: Any) -> None:
    with pytest.raises(PayloadError):
        await schedules.add("s", every=60, payload={"a": object()})


async def test_a_payload_may_hold_what_that_of_a_put_may(
    shell: Shell, schedules: Any, jobs: Collection[Any]
) -> None:
    payload = {"_id": 1, "of": UUID(int=5), "in": [{"a": UUID(int=6)}]}

    await schedules.add("s", every=3600, payload=payload)

    [info] = await schedules.list()
    assert info.payload == payload
    job = await shell.queue().get(await schedules.run_now("s"))
    assert job.data == payload
    assert list(job.data) == list(payload)


async def test_a_new_rule_begins_now_and_another_text_of_the_same_goes_on(
    schedules: Any, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=600)
    put_back(jobs, "s", HOUR)
    back = stored(jobs, "s")["last_tick"]

    await schedules.add("s", every=600, payload={"n": 1})
    same_rule = stored(jobs, "s")["last_tick"]
    await schedules.add("s", every=601)

    assert same_rule == back
    assert stored(jobs, "s")["last_tick"] > back + HOUR - timedelta(seconds=1)
    assert stored(jobs, "s")["payload"] == {}


async def test_every_change_rings_the_bell(schedules: Any, jobs: Collection[Any]) -> None:
    rung = []
    for call, settings in (
        ("add", {"every": 60}),
        ("pause", {}),
        ("resume", {}),
        ("remove", {}),
    ):
        jobs.delete_one({"_id": BELL})
        await getattr(schedules, call)("s", **settings)
        rung.append(rings(jobs) is not None)

    assert rung == [True] * 4


async def test_a_pause_stays_over_a_change_and_is_no_outage(
    schedules: Any, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=600)
    await schedules.pause("s")
    await schedules.pause("s")
    await schedules.add("s", every=600, payload={"n": 2})
    put_back(jobs, "s", HOUR)
    [paused] = await schedules.list()

    await schedules.resume("s")

    [info] = await schedules.list()
    assert (paused.paused, paused.next) == (True, ())
    assert not info.paused
    assert abs(info.last_tick - server_time(jobs)) < timedelta(seconds=10)


async def test_who_resumes_may_ask_for_what_was_missed(
    schedules: Any, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=600, catch_up="none")
    await schedules.pause("s")
    put_back(jobs, "s", HOUR)
    back = stored(jobs, "s")["last_tick"]

    await schedules.resume("s", catch_up="all")

    after = stored(jobs, "s")
    assert after["last_tick"] == back
    assert after["behind"]["catch_up"] == "all"
    with pytest.raises(ConfigurationError, match="catch_up must be one of"):
        await schedules.resume("s", catch_up="some")


@pytest.mark.parametrize("catch_up", [None, "none"])
async def test_who_asks_for_nothing_that_was_missed_gets_no_tick_of_the_last_minute_either(
    schedules: Any, jobs: Collection[Any], catch_up: Any
) -> None:
    await schedules.add("s", every=10)
    await schedules.pause("s")
    put_back(jobs, "s", timedelta(seconds=50))
    now = server_time(jobs)

    await schedules.resume("s", catch_up=catch_up)

    after = stored(jobs, "s")
    assert after["last_tick"] >= now
    assert "behind" not in after


async def test_one_that_was_resumed_is_late_when_nobody_fires_it(
    schedules: Any, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=600)
    await schedules.pause("s")

    await schedules.resume("s")

    after = stored(jobs, "s")
    assert timedelta(0) < after["next_tick"] - after["last_tick"] <= timedelta(seconds=601)


async def test_to_resume_one_that_is_not_paused_changes_nothing(
    schedules: Any, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=600)
    put_back(jobs, "s", HOUR)
    before = stored(jobs, "s")

    await schedules.resume("s")

    assert stored(jobs, "s") == before


async def test_a_removed_schedule_is_gone_and_its_jobs_stay(shell: Shell, schedules: Any) -> None:
    await schedules.add("s", every=600)
    await schedules.run_now("s")

    await schedules.remove("s")

    assert await schedules.list() == []
    assert await shell.queue().size() == 1


@pytest.mark.parametrize("call", ["pause", "resume", "remove", "run_now"])
async def test_a_schedule_that_is_not_there_is_said_to_be_so(schedules: Any, call: str) -> None:
    with pytest.raises(ScheduleNotFound, match="no schedule 'other'") as raised:
        await getattr(schedules, call)("other")

    assert raised.value.name == "other"


async def test_a_schedule_is_run_now_paused_or_not_and_its_ticks_stay(
    schedules: Any, jobs: Collection[Any]
) -> None:
    await schedules.add("s", every=3600, queue="q", payload={"n": 1}, priority=2)
    await schedules.pause("s")
    before = stored(jobs, "s")

    job_id = await schedules.run_now("s")

    job = document(jobs, job_id)
    assert (job["schedule"], job["queue"], job["payload"], job["priority"], job["state"]) == (
        *("s", "q", {"n": 1}, 2, "ready"),
    )
    assert job["tick"] == job["run_at"]
    assert abs(job["tick"] - server_time(jobs)) < timedelta(seconds=10)
    assert stored(jobs, "s") == before


async def test_a_run_now_whose_key_is_taken_says_so(schedules: Any, shell: Shell) -> None:
    await schedules.add("s", every=3600, key="report")
    await schedules.run_now("s")

    with pytest.raises(DuplicateJob):
        await schedules.run_now("s")
    assert await shell.queue().size() == 1


async def test_one_that_code_declares_is_neither_replaced_nor_removed_while_its_worker_lives(
    schedules: Any, jobs: Collection[Any]
) -> None:
    declared_in_code(jobs, "nightly", by="host:1:a")
    now = datetime.now(UTC)
    consumers = jobs.database[f"{jobs.name}.consumers"]
    consumers.insert_one({"_id": "host:1:a", "seen_at": now, "started_at": now, "queues": []})

    with pytest.raises(ConfigurationError, match="declared in the code of workers"):
        await schedules.add("nightly", every=5)
    with pytest.raises(ConfigurationError, match="host:1:a, which runs"):
        await schedules.remove("nightly")

    [info] = await schedules.list()
    assert (info.source, info.declared_by, info.every) == ("code", "host:1:a", 3600.0)
    consumers.delete_one({"_id": "host:1:a"})
    await schedules.remove("nightly")
    assert await schedules.list() == []


@pytest.mark.parametrize("value", [None, "x", 5, [], {"a": 1}, float("nan")])
async def test_whatever_is_stored_as_a_schedule_can_be_listed_and_removed(
    schedules: Any, jobs: Collection[Any], value: Any
) -> None:
    fields = ("queue", "rule", "spread", "payload", "put", "last_tick", "behind", "paused", "name")
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.insert_one({"_id": "schedule:odd", **dict.fromkeys(fields, value)})

    [info] = await schedules.list()

    assert info.name == "odd"
    await schedules.pause("odd")
    await schedules.resume("odd")
    await schedules.remove("odd")
    assert await schedules.list() == []


@pytest.mark.parametrize(
    ("tick", "change", "taken"),
    [
        (timedelta(0), {}, 1),
        (timedelta(seconds=2), {}, 0),  # not due
        (-HOUR, {}, 0),  # not later than the last one
        (timedelta(0), {"digest": "another"}, 0),
        (timedelta(0), {"paused": True}, 0),
        (timedelta(0), {"last_tick": "never"}, 0),
        (timedelta(0), {"spread": 0.0}, 1),
    ],
)
async def test_the_server_alone_says_whether_a_tick_may_be_taken(
    schedules: Any, jobs: Collection[Any], tick: timedelta, change: Any, taken: int
) -> None:
    await schedules.add("s", every=600)
    put_back(jobs, "s", timedelta(minutes=30))
    read = StoredSchedule.from_document(stored(jobs, "s"))
    assert read is not None
    settings = jobs.database[f"{jobs.name}.settings"]
    settings.update_one({"_id": "schedule:s"}, {"$set": {"name": "s", **change}})

    step = Step(server_time(jobs) + tick, fires=True)
    updated = settings.update_one(*take(read, step, None, "job"))

    assert updated.modified_count == taken
