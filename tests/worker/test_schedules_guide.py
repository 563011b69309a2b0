"""The guide on schedules: its code, as it stands there, and what its tables say."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import anyio
from pymongo import AsyncMongoClient, MongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import MongoQueue, Schedules, Worker
from streamqueue.protocol import ticks
from streamqueue.protocol.ticks import check_rule
from tests.waiting import wait_until_async

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "schedules.md").read_text()
IN_CODE, STORED = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)


def here(code: str, jobs: Collection[Any]) -> str:
    """The guide's code, on the test's database."""
    return code.replace(".shop.jobs", f'["{jobs.database.name}"]["{jobs.name}"]')


async def test_the_worker_of_the_guide_fires(
    uri: str, jobs: Collection[Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr(ticks, "SHORTEST", 0.1)
    looked_after, reported = [], []

    async def look_after(what: str) -> None:
        looked_after.append(what)

    async def write_report(until: datetime) -> None:
        reported.append(until)

    clients: list[AsyncMongoClient[Any]] = []

    def client(uri: str) -> AsyncMongoClient[Any]:
        clients.append(AsyncMongoClient(uri))
        return clients[-1]

    names: dict[str, Any] = {
        "uri": uri,
        "Worker": Worker,
        "AsyncMongoClient": client,
        "look_after": look_after,
        "write_report": write_report,
    }
    exec(here(IN_CODE, jobs).replace("every=10", "every=0.2"), names)
    worker = names["worker"]
    async with anyio.create_task_group() as tasks:
        await tasks.start(_quietly(worker.run))
        settings = jobs.database[f"{jobs.name}.settings"]
        stored = await wait_until_async(
            lambda: settings.count_documents({"kind": "schedule"}) == 3, "it has declared all"
        )
        job_id = await anyio.to_thread.run_sync(Schedules(jobs).run_now, "reports")
        await wait_until_async(lambda: looked_after and reported, "both ran")
        worker.stop()
    for each in clients:
        await each.close()

    assert stored
    assert job_id is not None
    assert set(looked_after) == {"poll"}
    assert abs((reported[0] - datetime.now(UTC)).total_seconds()) < 60


def _quietly(run: Callable[..., Any]) -> Callable[..., Any]:
    async def quietly(*, task_status: Any) -> None:
        await run(handle_signals=False, task_status=task_status)

    return quietly


def test_the_stored_schedule_of_the_guide_is_changed_run_and_removed(
    uri: str, jobs: Collection[Any]
) -> None:
    printed: list[Any] = []
    with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
        names: dict[str, Any] = {
            "uri": uri,
            "MongoClient": lambda uri: client,
            "Schedules": Schedules,
            "print": lambda *what: printed.append(what),
        }
        exec(here(STORED, jobs), names)

    [(name, coming, last_job, source, _)] = printed
    assert (name, len(coming), last_job, source) == ("invoices", 3, None, "stored")
    assert Schedules(jobs).list() == []
    assert MongoQueue(jobs, name="invoices").get(names["job_id"]).state == "ready"


def test_the_table_of_the_nights_of_berlin_is_right() -> None:
    rows = re.findall(r"^\| `(30 2|0 \*) (.*?)` \| (\S+.*?) \| (.*?) \|$", GUIDE, re.M)

    assert len(rows) == 2
    for start, rest, spring, autumn in rows:
        rule = check_rule(f"{start} {rest}", None, 0, "Europe/Berlin")
        for shown, midnight in (
            (spring, datetime(2026, 3, 28, 23, 30, tzinfo=UTC)),
            (autumn, datetime(2026, 10, 24, 23, 30, tzinfo=UTC)),
        ):
            times = re.findall(r"\d\d:\d\d", shown)
            following = [tick for tick, _ in zip(rule.ticks(midnight), times, strict=False)]
            local = [f"{tick.astimezone(ZoneInfo('Europe/Berlin')):%H:%M}" for tick in following]
            assert local == times
