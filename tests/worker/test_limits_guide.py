"""The guide on groups, order and limits: its recipes, as they stand there."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from pymongo import AsyncMongoClient
from pymongo.synchronous.collection import Collection

from streamqueue import Backoff, Limit, MongoQueue, Rate, Worker
from streamqueue.protocol.limits import Rule
from streamqueue.protocol.settings import QueueSettings
from tests.waiting import wait_until_async

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "limits.md").read_text()
*RECIPES, CHANGES = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.M | re.S)
SOON = 10.0


class Work:
    """What a handler of the guide calls: who is at it at the same moment, and what it was given."""

    def __init__(self, seconds: float = 0.005) -> None:
        self.seconds = seconds
        self.began: list[float] = []
        self.done: list[tuple[Any, ...]] = []
        self.at_once = self.most = 0
        self.of: Counter[Any] = Counter()
        self.most_of = 0
        self.fails: set[tuple[Any, ...]] = set()

    async def __call__(self, *given: Any) -> None:
        self.began.append(anyio.current_time())
        self.at_once += 1
        self.of[given[0]] += 1
        self.most = max(self.most, self.at_once)
        self.most_of = max(self.most_of, self.of[given[0]])
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.at_once -= 1
            self.of[given[0]] -= 1
        if given in self.fails:
            self.fails.remove(given)
            raise OSError("try again")
        self.done.append(given)

    async def until(self, count: int) -> None:
        await wait_until_async(lambda: len(self.done) == count, f"{count} are done", SOON)


@pytest.fixture
async def guide(uri: str, jobs: Collection[Any]) -> AsyncIterator[Any]:
    """What the guide defines, on the test's collection; its worker runs."""
    work = {name: Work() for name in ("call_partner", "write_report", "enter", "write_export")}
    async with AsyncMongoClient[dict[str, Any]](uri) as client:
        here = client[jobs.database.name][jobs.name]
        names: dict[str, Any] = {
            "uri": uri,
            "AsyncMongoClient": lambda _uri: SimpleNamespace(shop=SimpleNamespace(jobs=here)),
            "MongoClient": lambda _uri: SimpleNamespace(shop=SimpleNamespace(jobs=jobs)),
            "Worker": lambda collection: Worker(collection, backoff=Backoff(initial=0.05)),
            **{each.__name__: each for each in (Limit, MongoQueue, Rate)},
            **work,
        }
        for recipe in RECIPES:
            exec(recipe, names)
        guide = SimpleNamespace(**names, change=lambda: exec(CHANGES, names))
        async with anyio.create_task_group() as tasks:

            async def run(*, task_status: Any) -> None:
                await guide.worker.run(handle_signals=False, task_status=task_status)

            await tasks.start(run)
            yield guide
            guide.worker.stop()
    for name in ("settings", "rates"):
        jobs.database[f"{jobs.name}.{name}"].delete_many({})


async def in_thread(function: Any, *arguments: Any) -> None:
    await anyio.to_thread.run_sync(function, *arguments)


async def test_the_partner_has_no_more_calls_than_it_allows(guide: Any) -> None:
    calls: Work = guide.call_partner
    calls.seconds = 0.2

    await in_thread(guide.poll_all, range(20))

    await calls.until(20)
    assert calls.most == 5


async def test_calls_are_spread_over_the_time(guide: Any) -> None:
    calls: Work = guide.call_partner

    await in_thread(guide.poll_all, range(40))

    await calls.until(40)
    assert calls.began[-1] - calls.began[0] > 39 / 51 * 0.9


async def test_reports_are_of_two_customers_at_a_time(guide: Any) -> None:
    reports: Work = guide.write_report
    for month in range(3):
        for customer in ("ada", "bob", "carl", "dora"):
            await in_thread(guide.ask_for_report, customer, month)

    await reports.until(12)
    assert reports.most == 2
    assert reports.most_of == 1


async def test_orders_of_a_customer_are_entered_as_they_came_though_one_fails(guide: Any) -> None:
    orders: Work = guide.enter
    orders.fails = {("ada", 0), ("bob", 2)}
    for event in range(5):
        for customer in ("ada", "bob", "carl"):
            await in_thread(guide.order_changed, customer, event)

    await orders.until(15)
    entered = defaultdict(list)
    for customer, event in orders.done:
        entered[customer].append(event)
    assert dict(entered) == {customer: [0, 1, 2, 3, 4] for customer in ("ada", "bob", "carl")}


async def test_a_customer_with_one_page_does_not_wait_for_one_with_many(guide: Any) -> None:
    exports: Work = guide.write_export
    exports.seconds = 0.05
    await in_thread(guide.export_all, "ada", 60)
    await exports.until(3)

    await in_thread(guide.export_all, "bob", 1)

    await wait_until_async(lambda: ("bob", 0) in exports.done, "bob has his page", SOON)
    assert len(exports.done) < 40
    assert exports.most_of == 3


async def test_what_is_set_wins_and_what_is_taken_away_is_as_the_code_has_it(
    guide: Any, jobs: Collection[Any]
) -> None:
    await in_thread(guide.change)

    stored = jobs.database[f"{jobs.name}.settings"].find_one({"_id": "polls"}) or {}
    assert QueueSettings.from_document(stored).rules.limits == (
        Rule("queue", running=2, rate=Rate(50)),
    )
